"""The one exception that modules turn into a failed task."""

from __future__ import annotations


class Refused(Exception):
    """Something cannot be done here and now; the text says what, where, and what to do."""
