"""The audit: a chain of entries in the database, its heads outside of it, and what proves that both agree."""
