"""Concrete technologies behind the ports, one or few files for each."""
