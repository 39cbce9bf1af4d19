"""HTTP/1.1 server: hot routes answered at protocol level, every other path by an ASGI app."""
