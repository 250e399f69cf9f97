"""Argon2id password hashes, few at once: each costs a tenth of a second and 64 MiB."""

from __future__ import annotations

import contextlib
import secrets
import threading
from collections.abc import Iterator

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from bazaruto.problems import Problem

WAIT_SECONDS = 1.0  # for a free place; then the client is told to come back
RETRY_AFTER_SECONDS = 2


class Passwords:
    """Hashes and verifies with at most `concurrent` hashes under way, and few callers waiting."""

    def __init__(self, concurrent: int) -> None:
        self._hasher = PasswordHasher()
        self._places = threading.BoundedSemaphore(concurrent)
        self._waiting = threading.BoundedSemaphore(concurrent * 3)  # the rest is refused at once
        # A user without a password, and none at all, cost the same time as one with a wrong password.
        self._nobody = self._hasher.hash(secrets.token_urlsafe(32))

    def hash(self, password: str) -> str:
        """The argon2id hash of a new password."""
        with self._place():
            return self._hasher.hash(password)

    def matches(self, password_hash: str | None, password: str) -> bool:
        """Whether the password is right; as slow for a user who does not exist (None)."""
        with self._place():
            try:
                self._hasher.verify(password_hash or self._nobody, password)
            except (VerificationError, InvalidHashError):
                return False
        return password_hash is not None

    @contextlib.contextmanager
    def _place(self) -> Iterator[None]:
        if not self._waiting.acquire(blocking=False):
            raise _busy()
        try:
            free = self._places.acquire(timeout=WAIT_SECONDS)
        finally:
            self._waiting.release()
        if not free:
            raise _busy()
        try:
            yield
        finally:
            self._places.release()


def _busy() -> Problem:
    return Problem(
        503,
        "Too many logins at once",
        f"Passwords are checked a few at a time; try again in {RETRY_AFTER_SECONDS} seconds.",
        headers={"Retry-After": str(RETRY_AFTER_SECONDS)},
    )
