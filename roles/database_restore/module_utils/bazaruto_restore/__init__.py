"""What restores share: load a backup into a database, prove it there, swap it with the live one."""
