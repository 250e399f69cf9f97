#!/usr/bin/python
"""Put back the files that were packed beside a control backup, and lose none of those that are there."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: control_files
short_description: Put back the files that were packed beside a control backup
description:
  - What is there already and is another file is moved into C(replaced_RUN) beside it, never overwritten. A file that
    only grows, and goes on from what was packed, stays as it is.
  - In check mode says what would be done with each file.
options:
  directory:
    description: Where control backups lie.
    type: path
    required: true
  name:
    description: The backup.
    type: str
    required: true
  into:
    description: The directory for each directory of the archive.
    type: dict
    required: true
  only_grow:
    description: Names in the archive of files that are only ever appended to.
    type: list
    elements: str
    default: []
  run:
    description: The run, for the name of what is moved aside.
    type: str
    required: true
attributes:
  check_mode: {support: full}
  diff_mode: {support: none}
author: Bazaruto Ops
"""

EXAMPLES = r"""
- name: Put the keys back
  control_files:
    directory: /var/backups/bazaruto/control
    name: bazaruto_20261123_120000
    into: {control: /var/lib/bazaruto/control}
    run: 20261123-154142
"""

RETURN = r"""
files:
  description: What was done with each file, by its name in the archive.
  returned: success
  type: dict
lines:
  description: Sentences for a person.
  returned: success
  type: list
"""

import os
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.bazaruto_backup import files, storage
from ansible.module_utils.bazaruto_backup.refusal import Refused

SAME, GROWN, BACK, REPLACED = "is the same", "has grown since, and stays", "is put back", "replaces another file"


def main() -> None:
    """Read the arguments, put the files back, and answer Ansible."""
    module = AnsibleModule(
        argument_spec={
            "directory": {"type": "path", "required": True},
            "name": {"type": "str", "required": True},
            "into": {"type": "dict", "required": True},
            "only_grow": {"type": "list", "elements": "str", "default": []},
            "run": {"type": "str", "required": True},
        },
        supports_check_mode=True,
    )
    try:
        done, lines = put_back(module.params, check_mode=module.check_mode)
    except Refused as error:
        module.fail_json(msg=f"{error}.")
    except OSError as error:
        module.fail_json(msg=f"the files of {module.params['name']} could not be put back: {error}.")
    changed = any(what in {BACK, REPLACED} for what in done.values())
    module.exit_json(changed=changed, files=done, lines=lines)


def put_back(options: dict[str, Any], *, check_mode: bool) -> tuple[dict[str, str], list[str]]:
    """Every file of the archive; refuses one that is not what the manifest says."""
    directory = storage.usable(options["directory"], writable=False)
    manifest, why = storage.read_manifest(directory, options["name"])
    if manifest is None:
        raise Refused(f"the backup {options['name']} cannot be used: {why}")
    if wrong := files.fault(directory, manifest):
        raise Refused(f"the backup {options['name']} cannot be used: {wrong}")
    described = manifest.get("files")
    if not described:
        raise Refused(f"{options['name']} has no files beside it: it is no control backup, made by control_backup.yml")
    done, lines = {}, [_lack(name, options["into"]) for name in described["missing"]]
    for name, content in files.read(directory / described["name"]).items():
        target = _target(name, options["into"])
        done[name] = _one(target, content, grows=name in options["only_grow"], run=options["run"], look_only=check_mode)
        if done[name] == REPLACED:
            lines.append(
                f"{target} is another file than {name} of the backup; it is kept in {_aside(target, options['run'])}."
            )
    return done, lines


def _target(name: str, into: dict[str, str]) -> Path:
    place, _, file = name.rpartition("/")
    if place not in into or file in {"", ".", ".."}:
        raise Refused(f"nothing says where {name} belongs: add {place!r} to control_rebuild_into")
    return Path(into[place]) / file


def _lack(name: str, into: dict[str, str]) -> str:
    """A file that was lost before the backup was made; perhaps it has survived here."""
    target = _target(name, into)
    here = f"{target} is there, and stays" if target.exists() else f"there is no {target} either: it is lost"
    return f"The backup has no {name}; {here}."


def _one(target: Path, content: bytes, *, grows: bool, run: str, look_only: bool) -> str:
    try:
        there = target.read_bytes()
    except FileNotFoundError:
        there = None
    if there == content:
        return SAME
    if there is not None and grows and there.startswith(content):
        return GROWN
    if not look_only:
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if there is not None:
            aside = _aside(target, run)
            aside.mkdir(mode=0o700, exist_ok=True)
            target.rename(aside / target.name)
        _write(target, content)
    return BACK if there is None else REPLACED


def _aside(target: Path, run: str) -> Path:
    return target.parent / f"replaced_{run}"


def _write(target: Path, content: bytes) -> None:
    """Whole or not at all, for its owner's eyes alone, and on the disk."""
    partial = target.with_name(f"{target.name}.partial")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(target)
    storage.fsync(target.parent)


if __name__ == "__main__":
    main()
