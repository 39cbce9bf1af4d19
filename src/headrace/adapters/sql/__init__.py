"""The registry in a database: SQLite, or PostgreSQL, with one schema and one set of statements."""
