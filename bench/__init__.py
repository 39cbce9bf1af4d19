"""Measures the platform beside the usual way to serve a model, and beside the bare runtime."""
