"""Which of several endpoints that are ready gets a request: decisions without I/O."""
