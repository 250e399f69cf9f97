"""bazarutod, the insurance service."""
