"""What the platform tells its operators: metrics, logs, and the trace a request belongs to."""
