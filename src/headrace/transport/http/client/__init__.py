"""HTTP/1.1 client for the data path: kept connections, one exchange at a time on each."""
