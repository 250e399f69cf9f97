"""What every answer of both HTTP faces tells a browser: neither guess, embed, store nor leak anything."""

from __future__ import annotations

ALWAYS = (
    ("X-Content-Type-Options", "nosniff"),
    ("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
)
NO_STORE = ("Cache-Control", "no-store")
# A browser that has seen this never asks this host by plain HTTP again, on any port, for a year.
OVER_TLS = (*ALWAYS, ("Strict-Transport-Security", "max-age=31536000"))


def of(scheme: str) -> tuple[tuple[str, str], ...]:
    """The headers for answers over `http` or `https`."""
    return OVER_TLS if scheme == "https" else ALWAYS
