"""What the roles around database backups share: the storage's format, and how PostgreSQL is reached."""
