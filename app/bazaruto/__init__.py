"""Bazaruto: the insurance service, and the control plane that operates it."""

__version__ = "0.1.0"
