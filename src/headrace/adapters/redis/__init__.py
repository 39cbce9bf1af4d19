"""Redis, or Valkey, which speaks its protocol."""
