"""A lab's small files, by which people, Ansible and tests find its hosts: ${BAZARUTO_HOME:-var}/lab/NAME."""

from __future__ import annotations

import json
import secrets
import subprocess
from pathlib import Path

from tests.lab import image, plan
from tests.lab import secrets as seal
from tests.lab.claims import Claim

NAMES = ("key", "key.pub", "known_hosts", "ssh_config", "vault-password", "secrets.yml", "lab.json")


def are_whole(claim: Claim) -> bool:
    """Whether all are there; `lab.json` is written last."""
    return all((claim.directory / name).is_file() for name in NAMES)


def write(claim: Claim) -> None:
    """Write all of them, with new keys and secrets."""
    claim.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name in NAMES:
        (claim.directory / name).unlink(missing_ok=True)
    _make_key(claim.directory / "key", "lab")
    keys = claim.store / "host_keys"
    keys.mkdir(exist_ok=True)
    for name in plan.HOSTS:
        (keys / name).unlink(missing_ok=True)
        _make_key(keys / name, name)
    hosts = {name: plan.address(claim.network, host.number) for name, host in plan.HOSTS.items()}
    public = {name: (keys / f"{name}.pub").read_text(encoding="utf-8").split()[:2] for name in hosts}
    known = [f"{hosts[name]},{name} {' '.join(words)}\n" for name, words in public.items()]
    _write(claim, "known_hosts", "".join(known))
    _write(claim, "ssh_config", "".join(_section(claim.directory, *host) for host in hosts.items()))
    _write(claim, "vault-password", secrets.token_urlsafe(24) + "\n")
    write_secrets(claim)
    values = {
        "name": claim.directory.name,
        "id": claim.id,
        "network": str(claim.network),
        "management_address": plan.address(claim.network, plan.MANAGEMENT),
        "outside_address": plan.address(claim.network, plan.OUTSIDE),
        "control_path_directory": str(claim.control_paths),
        "hosts": {name: {"address": address} for name, address in hosts.items()},
    }
    _write(claim, "lab.json", json.dumps(values, indent=2) + "\n")


def write_secrets(claim: Claim) -> None:
    """Write the vault, anew when names were added; what it has stays."""
    path, names = claim.directory / "secrets.yml", claim.store / "secret_names"
    if path.exists() and names.exists() and names.read_text(encoding="utf-8").split() == list(seal.NAMES):
        return
    password = (claim.directory / "vault-password").read_text(encoding="utf-8")
    content = seal.sealed(password, path.read_bytes() if path.exists() else b"")
    _write(claim, "secrets.yml", content.decode())
    names.write_text("\n".join(seal.NAMES) + "\n", encoding="utf-8")


def _section(directory: Path, name: str, address: str) -> str:
    """How `ssh -F ssh_config NAME` reaches a host. In quotes, since a path may hold spaces; % is doubled."""
    place = str(directory).replace("%", "%%")
    return (
        f"Host {name} {address}\n"
        f"  HostName {address}\n"
        f"  User {image.USER}\n"
        f'  IdentityFile "{place}/key"\n'
        f'  UserKnownHostsFile "{place}/known_hosts"\n'
        "  IdentitiesOnly yes\n"
        "  StrictHostKeyChecking yes\n"
        "  BatchMode yes\n"
        "  ConnectTimeout 2\n"
    )


def _make_key(path: Path, comment: str) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", path], check=True)


def _write(claim: Claim, name: str, content: str) -> None:
    """Whole or not at all, for its owner alone."""
    partial = claim.directory / f".{name}.partial"
    partial.write_text(content, encoding="utf-8")
    partial.chmod(0o600)
    partial.rename(claim.directory / name)
