"""What the drill alone needs: a PostgreSQL cluster to throw away."""
