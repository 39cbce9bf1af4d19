"""Protocols only: what the core asks of the outside."""
