"""What Ansible vaults hold, in the clear: a run must know these values to take them out of its output.

Vault files and inline `!vault` values are found by their header in the run's content and where a lab keeps its own, and
opened with the passwords that Ansible itself would use: the setting `vault_password_file`, or those of the content's
ansible.cfg.
"""

from __future__ import annotations

import configparser
import os
import re
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

HEADER = b"$ANSIBLE_VAULT;"
LARGEST_FILE = 1024 * 1024  # bytes; what is larger is no list of passwords
_INLINE = re.compile(r"\$ANSIBLE_VAULT;[0-9.]+;AES256(?:;[^\s\\\"']+)?(?:(?:\s|\\[nrt])+[0-9a-f]+)+")
_TYPED_IN = ("prompt", "prompt_ask_vault_pass")  # identities that ask a person

Passwords = list[tuple[str, Any]]  # vault id, Ansible's VaultSecret


class VaultError(Exception):
    """A vault of this run cannot be opened; the text says which, and why."""


def secrets(content_directory: Path, inventory: Path, home: Path, password_file: Path | None) -> list[Any]:
    """Every value in the vaults that a run may read. Without any password: none. Raises VaultError."""
    if password_file is not None:
        refuse_open_file(password_file)
    places = [inventory, content_directory / "playbooks", content_directory / "roles", *_lab_vault(inventory, home)]
    vaulted = list(_vaulted(places))
    if not vaulted:
        return []
    passwords = _passwords(content_directory, password_file)
    if not passwords:
        return []
    values: list[Any] = [secret.bytes.decode("utf-8", "replace") for _, secret in passwords]
    for path, text in vaulted:
        for block in [text] if text.startswith(HEADER.decode()) else _INLINE.findall(text):
            values += _opened(path, block, passwords)
    return values


def _lab_vault(inventory: Path, home: Path) -> list[Path]:
    """What inventories/lab reads from outside the content: made with each lab, and gone with it."""
    if inventory.name != "lab":
        return []
    return [home / "lab" / os.environ.get("BAZARUTO_LAB", "default") / "secrets.yml"]


def refuse_open_file(path: Path) -> None:
    """Raise VaultError unless only its owner can read the password, or change the script that says it."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise VaultError(f"vault_password_file: {path} cannot be read ({error.strerror}).") from error
    script = stat.S_ISREG(mode) and os.access(path, os.X_OK)
    forbidden, what = (0o022, "changed") if script else (0o077, "read")
    if not stat.S_ISREG(mode):
        raise VaultError(f"vault_password_file: {path} is no file.")
    if mode & forbidden:
        mend = "chmod go-w" if script else "chmod 0600"
        raise VaultError(f"vault_password_file: {path} can be {what} by others: `{mend} {path}`.")


def _vaulted(places: Iterable[Path]) -> Iterator[tuple[Path, str]]:
    """The files that hold something from a vault."""
    for place in places:
        for path in sorted(place.rglob("*")) if place.is_dir() else [place]:
            if path.is_file() and path.stat().st_size <= LARGEST_FILE and HEADER in (data := path.read_bytes()):
                yield path, data.decode("utf-8", "replace")


def _passwords(content_directory: Path, password_file: Path | None) -> Passwords:
    """The passwords Ansible would use, in its order. Raises VaultError when none of those configured can be had."""
    from ansible.errors import AnsibleError
    from ansible.parsing.dataloader import DataLoader
    from ansible.parsing.vault import get_file_vault_secret

    identities = _identities(content_directory / "ansible.cfg", password_file)
    passwords: Passwords = []
    problems = []
    loader = DataLoader()
    for identity, source in identities:
        if source in _TYPED_IN:
            continue
        path = str(content_directory / Path(os.path.expandvars(source)).expanduser())
        try:
            secret = get_file_vault_secret(filename=path, vault_id=identity, loader=loader)
            secret.load()
        except AnsibleError as error:
            problems.append(f"The vault password of {identity} cannot be had from {source}: {error}.")
        else:
            passwords.append((identity, secret))
            loader.set_vault_secrets(passwords)
    if problems and not passwords:
        raise VaultError(" ".join(problems))
    return passwords


def _identities(configuration: Path, password_file: Path | None) -> list[tuple[str, str]]:
    """Each vault id with the file its password comes from."""
    parser = configparser.ConfigParser(inline_comment_prefixes=(";",), interpolation=None)  # as Ansible reads it
    parser.read(configuration, encoding="utf-8")
    defaults = parser["defaults"] if parser.has_section("defaults") else {}
    own = defaults.get("vault_identity", "default")
    listed = [entry.strip() for entry in defaults.get("vault_identity_list", "").split(",") if entry.strip()]
    named = str(password_file or defaults.get("vault_password_file", ""))
    entries = [entry.partition("@") for entry in [*listed, *([f"{own}@{named}"] if named else [])]]
    return [(name or own, source) if at else (own, name) for name, at, source in entries]


def _opened(path: Path, block: str, passwords: Passwords) -> Iterator[Any]:
    """The values in one encrypted text. One for a vault id that nobody configured stays closed, as for Ansible."""
    from ansible.errors import AnsibleError
    from ansible.parsing.vault import VaultLib

    lines = [line.strip() for line in re.split(r"\s+|\\[nrt]", block) if line.strip()]
    label = (lines[0].split(";") + [""] * 2)[3]
    if label and label not in {identity for identity, _ in passwords}:
        return
    try:
        plain = VaultLib(passwords).decrypt("\n".join(lines)).decode("utf-8", "replace")
    except AnsibleError as error:
        which = f" of vault id {label}" if label else ""
        raise VaultError(
            f"{path} cannot be decrypted: the vault password{which} is not the one it was made with."
        ) from error
    try:
        yield yaml.load(plain, Loader=_AnyTag)  # noqa: S506 - a SafeLoader that reads unknown tags as plain values
    except yaml.YAMLError:
        yield plain  # a key, or a text of any other kind
    else:
        if "\n" not in plain.strip():
            yield plain.strip()  # an inline value is a text, whatever YAML would make of it


class _AnyTag(yaml.SafeLoader):
    """Reads `!vault`, `!unsafe` and what else Ansible may add as the values they stand before."""


def _untagged(loader: yaml.SafeLoader, _tag: str, node: yaml.Node) -> Any:
    if isinstance(node, yaml.ScalarNode):
        return loader.construct_scalar(node)
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    return loader.construct_mapping(node, deep=True) if isinstance(node, yaml.MappingNode) else None


_AnyTag.add_multi_constructor("!", _untagged)
