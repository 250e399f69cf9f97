"""The secrets of a lab's site: random, made once for each lab, readable only with its vault password."""

from __future__ import annotations

import secrets

import yaml

NAMES = (
    "database_owner_password",
    "database_application_password",
    "database_backup_password",
    "database_monitoring_password",
    "redis_application_password",
    "redis_monitoring_password",
    "redis_admin_password",
)


def sealed(password: str, old: bytes = b"") -> bytes:
    """A vault file's content with a value for each name: those of the old content, and new ones."""
    from ansible.constants import DEFAULT_VAULT_IDENTITY  # late: a lab that is there has its secrets
    from ansible.parsing.vault import VaultLib, VaultSecret

    vault = VaultLib([(DEFAULT_VAULT_IDENTITY, VaultSecret(password.strip().encode()))])
    known = yaml.safe_load(vault.decrypt(old)) if old else {}
    values = {name: known.get(name) or secrets.token_urlsafe(24) for name in NAMES}
    content: bytes = vault.encrypt(yaml.safe_dump(values))
    return content
