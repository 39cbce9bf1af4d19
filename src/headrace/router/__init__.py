"""Which endpoint answers a request."""
