"""How backups travel between the host that keeps them and those that make or prove them."""
