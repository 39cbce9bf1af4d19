"""Batch jobs: planned, shared out, worked on and finished, each row exactly once."""
