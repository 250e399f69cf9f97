"""What can go wrong in asking the control plane; apart from its client, so that catching costs no import of HTTP."""

from __future__ import annotations


class UnreachableError(Exception):
    """The control plane does not answer."""

    def __init__(self, text: str, *, heard: bool = False) -> None:
        super().__init__(text)
        self.heard = heard  # it may have taken what it was told: nobody knows what came of that


class RefusedError(Exception):
    """The control plane refused; the text says why, and names every wrong field."""
