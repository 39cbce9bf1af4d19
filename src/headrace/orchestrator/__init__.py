"""Runs models on executors in this process: queueing, dynamic batching, versions' lives."""
