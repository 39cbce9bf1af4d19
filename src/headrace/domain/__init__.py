"""Frozen data and pure rules. Nothing here does I/O or knows a wire."""
