"""Whose certificates a client of the control plane believes."""

from __future__ import annotations

import ssl
from pathlib import Path

from bazaruto.config import SettingsError


def context(url: str, ca_file: Path) -> ssl.SSLContext:
    """The authorities of this file, or the system's where it is empty. Verification is never off."""
    if not url.startswith("https:"):
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # which believes nobody, and costs nothing
    try:
        return ssl.create_default_context(cafile=None if ca_file == Path() else ca_file)
    except OSError as error:
        raise SettingsError(f"control_ca_file: {ca_file} has no certificates in PEM ({error.strerror}).") from error


def why_not(url: str, error: BaseException) -> str | None:
    """What to do about a certificate that is not believed; None when that is not what happened."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ssl.SSLCertVerificationError):
        inner = getattr(cause, "reason", None)
        cause = inner if isinstance(inner, BaseException) else cause.__cause__ or cause.__context__
    if cause is None:
        return None
    return (
        f"The certificate of {url} is not believed ({cause.verify_message.rstrip('.')}): set BAZARUTO_CONTROL_URL to "
        "the name in it, and BAZARUTO_CONTROL_CA_FILE to its authority where the system does not know that."
    )
