"""What one role alone must do on one bare host, asked by its scenario in molecule/."""
