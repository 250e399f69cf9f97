#!/usr/bin/python
"""Bring a host's sealed backups into the store, and let none in that is not what its manifest says."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: backup_fetch
short_description: Bring a host's sealed backups into the store
description:
  - Runs where backups are kept. Takes from another host what the store has not, by rsync over SSH, into
    C(arriving/HOST); checks every file against the manifest; and only then gives it its name in the store.
  - A connection that is cut, or a module that is killed, leaves nothing that would be listed; the next run goes on with
    what had arrived.
options:
  directory: {description: The store., type: path, required: true}
  host: {description: "The other host's name; its files arrive in a place named for it.", type: str, required: true}
  address: {description: Where it is reached., type: str, required: true}
  user: {description: "The account there whose key is restricted to the backups' directory.", type: str, required: true}
  key: {description: "The private key's file.", type: path, required: true}
  known_hosts: {description: The file of known host keys., type: path, required: true}
attributes:
  check_mode: {support: full}
  diff_mode: {support: full}
author: Bazaruto Ops
requirements: ["rsync, here and there", "rrsync as forced command there"]
"""

EXAMPLES = r"""
- name: Fetch what db1 has made
  backup_fetch:
    directory: /var/backups/bazaruto
    host: db1
    address: 192.0.2.30
    user: postgres
    key: /var/lib/bazaruto-backup/.ssh/id_ed25519
    known_hosts: /var/lib/bazaruto-backup/.ssh/known_hosts
"""

RETURN = r"""
fetched:
  description: Names of the backups that are in the store since now (in check mode, would be).
  returned: success
  type: list
stored:
  description: Checksum by name of every backup that the other host has, and the store too.
  returned: success
  type: dict
"""

from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.bazaruto_backup import files, programs, storage
from ansible.module_utils.bazaruto_backup.refusal import Refused
from ansible.module_utils.bazaruto_store.link import LINK, Link

ENDINGS = (".json", ".roles.sql", files.ENDING, ".dump")  # in this order a backup gets its names
LISTED_MODE = 0o640  # the manifest, which the control plane lists
SECRET_MODE = 0o600


def main() -> None:
    """Read the arguments, fetch, and answer Ansible."""
    module = AnsibleModule(
        argument_spec={"directory": {"type": "path", "required": True}, **LINK}, supports_check_mode=True
    )
    programs.end_with_a_tidy_up()
    try:
        fetched, stored = fetch(module.params, check_mode=module.check_mode)
    except Refused as error:
        module.fail_json(msg=f"{error}.")
    except OSError as error:
        module.fail_json(msg=f"the store {module.params['directory']} could not be written: {error}.")
    shown = "".join(f"{name}\n" for name in fetched)
    header = module.params["directory"]
    diff = {"before": "", "after": shown, "before_header": header, "after_header": header}
    module.exit_json(changed=bool(fetched), fetched=fetched, stored=stored, diff=diff)


def fetch(options: dict[str, Any], *, check_mode: bool) -> tuple[list[str], dict[str, str]]:
    """The whole job, in the order it happens; returns what is new in the store, and what of there it holds."""
    store = storage.usable(options["directory"], writable=True)
    link = Link(options)
    with storage.storage_lock(store, f"fetch from {link.host}", check_mode=check_mode):
        listed = link.list("bazaruto_*")
        there = sorted(Path(name).stem for name in listed if _is_dump(name))
        lacking = [name for name in there if not (store / f"{name}.dump").exists()]
        if check_mode:
            return lacking, _stored(store, [name for name in there if name not in lacking])
        arriving = store / "arriving" / link.host
        arriving.mkdir(mode=0o700, parents=True, exist_ok=True)
        _forget_others(arriving, lacking)
        if lacking:
            wanted = [f"{name}{ending}" for name in lacking for ending in ENDINGS if f"{name}{ending}" in listed]
            needed = storage.RESERVE_BYTES + sum(listed[name] - _bytes(arriving / name) for name in wanted)
            storage.refuse_without_space(store, needed, f"fetching {len(lacking)} backups from {link.host}")
            link.fetch(wanted, arriving)
        for name in lacking:
            _seal(arriving, store, name, link.host)
        return lacking, _stored(store, there)


def _is_dump(name: str) -> bool:
    return name.endswith(".dump") and storage.NAME.fullmatch(Path(name).stem) is not None


def _bytes(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _forget_others(arriving: Path, lacking: list[str]) -> None:
    """What arrived of backups that are not there any more will never be whole."""
    for path in arriving.iterdir():
        if path.is_dir():  # rsync's own, with the part of one file
            for part in path.iterdir():
                if part.name.partition(".")[0] not in lacking:
                    part.unlink()
        elif path.name.partition(".")[0] not in lacking:
            path.unlink()


def _seal(arriving: Path, store: Path, name: str, host: str) -> None:
    """Check all that has arrived; put it on the disk; give it its names, the dump's last of all."""
    if fault := _fault(arriving, name):
        for ending in ENDINGS:
            (arriving / f"{name}{ending}").unlink(missing_ok=True)
        raise Refused(
            f"{name} from {host} is not taken into the store, it stays where it was made: {fault}; make a new one "
            "with playbooks/backup.yml, and find out what changed this one"
        )
    for ending in ENDINGS:
        path = arriving / f"{name}{ending}"
        if path.exists():
            path.chmod(LISTED_MODE if ending == ".json" else SECRET_MODE)
            storage.fsync(path)
    for ending in ENDINGS:
        path = arriving / f"{name}{ending}"
        if path.exists():
            path.rename(store / path.name)
    storage.fsync(store)


def _fault(directory: Path, name: str) -> str:
    """What is wrong with what has arrived; empty when nothing is."""
    manifest, why = storage.read_manifest(directory, name)
    if manifest is None:
        return why
    dump, roles = directory / f"{name}.dump", directory / f"{name}.roles.sql"
    if not dump.is_file() or dump.stat().st_size != manifest["size_bytes"]:
        return f"{dump.name} has {_bytes(dump)} bytes, its manifest says {manifest['size_bytes']}"
    if storage.sha256(dump) != manifest["sha256"]:
        return f"{dump.name} has another checksum than its manifest says"
    described = manifest.get("roles_file")
    if described and (not roles.is_file() or storage.sha256(roles) != described.get("sha256")):
        return f"{roles.name} is not there, or not what the manifest says"
    return files.fault(directory, manifest)


def _stored(store: Path, names: list[str]) -> dict[str, str]:
    """What the store holds of these: the checksum each manifest says, for whoever may let go of the original."""
    read = {name: storage.read_manifest(store, name)[0] for name in names if (store / f"{name}.dump").exists()}
    return {name: manifest["sha256"] for name, manifest in read.items() if manifest}


if __name__ == "__main__":
    main()
