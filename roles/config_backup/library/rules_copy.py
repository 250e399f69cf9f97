#!/usr/bin/python
"""Copy a file of business rules, checked, whole or not at all."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: rules_copy
short_description: Copy a file of business rules, checked, whole or not at all
description:
  - Copies O(src) beside O(dest), has the copy checked, puts it on the disk and renames it; so O(dest) is never half a
    file, and what was checked is what is there.
  - A O(dest) of the same content is left alone. Two copies at a time refuse each other.
options:
  src:
    description: What is copied; or else O(content).
    type: path
  content:
    description: "What is copied, from another host, in base64."
    type: str
  dest:
    description: Where to. Owner and mode of a file that is there stay; a new one gets O(mode).
    type: path
    required: true
  replace:
    description: Whether a O(dest) of other content may be replaced; otherwise it is refused.
    type: bool
    default: false
  mode:
    description: Mode of a new file, octal.
    type: str
    default: "0600"
  check_command:
    description: Command that exits 0 for right rules, to which the file's name is added; none for no check.
    type: list
    elements: str
    default: []
  lock:
    description: File to lock meanwhile.
    type: path
    required: true
attributes:
  check_mode: {support: full}
  diff_mode: {support: full}
author: Bazaruto Ops
"""

EXAMPLES = r"""
- name: Copy the rules aside
  rules_copy:
    src: /etc/bazaruto/business_rules.json
    dest: /var/backups/bazaruto/config/business_rules_20261123_154142.json
    check_command: [bazarutod, rules, check]
    lock: /var/backups/bazaruto/config/.lock
"""

RETURN = r"""
differs:
  description: Whether dest had other content, or was not there.
  returned: success
  type: bool
rules:
  description: path, size_bytes, sha256, version of what lies at dest now (in check mode, would).
  returned: success
  type: dict
"""

import base64
import contextlib
import fcntl
import hashlib
import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

LARGEST_BYTES = 1024 * 1024


class Refused(Exception):
    """The copy cannot be made; the text says what, where, and what to do."""


def main() -> None:
    """Read the arguments, copy, and answer Ansible."""
    module = AnsibleModule(
        argument_spec={
            "src": {"type": "path"},
            "content": {"type": "str"},
            "dest": {"type": "path", "required": True},
            "replace": {"type": "bool", "default": False},
            "mode": {"type": "str", "default": "0600"},
            "check_command": {"type": "list", "elements": "str", "default": []},
            "lock": {"type": "path", "required": True},
        },
        required_one_of=[("src", "content")],
        mutually_exclusive=[("src", "content")],
        supports_check_mode=True,
    )
    try:
        answer = copy(module.params, check_mode=module.check_mode)
    except Refused as error:
        module.fail_json(msg=f"{error}.")
    except OSError as error:
        module.fail_json(msg=f"{module.params['dest']} could not be written: {error}; nothing was replaced.")
    if not module._diff:
        del answer["diff"]
    module.exit_json(**answer)


def copy(options: dict[str, Any], *, check_mode: bool) -> dict[str, Any]:
    """The whole job, in the order it happens."""
    target = Path(options["dest"])
    if target.is_symlink():
        raise Refused(f"{target} is a link to {target.readlink()}: name the file itself")
    with alone(Path(options["lock"]), check_mode=check_mode):
        content = read(Path(options["src"])) if options["src"] else base64.b64decode(options["content"])
        before = read(target) if target.exists() else None
        if before is not None and before != content and not options["replace"]:
            raise Refused(f"{target} exists already with other content, it is kept as it is: try again in a second")
        if check_mode or before == content:
            check_content(options["check_command"], content, Path(options["src"] or target))
        else:
            put(content, target, options)
    return {
        "changed": before != content,
        "differs": before != content,
        "rules": {
            "path": str(target),
            "size_bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
            "version": version_of(content),
        },
        "diff": {
            "before": (before or b"").decode("utf-8", "replace"),
            "after": content.decode("utf-8", "replace"),
            "before_header": str(target),
            "after_header": str(options["src"] or "another host"),
        },
    }


def read(path: Path) -> bytes:
    """The file's content; refuses what is no regular file, and what is too large to be rules."""
    if not path.is_file():
        raise Refused(f"there is no file {path}: name one that is there")
    with path.open("rb") as file:
        content = file.read(LARGEST_BYTES + 1)
    if len(content) > LARGEST_BYTES:
        raise Refused(f"{path} has more than {LARGEST_BYTES} bytes: these are no business rules")
    return content


def check_content(command: list[str], content: bytes, path: Path) -> None:
    """Refuse rules that the service would refuse, where they lie or, for those that lie nowhere here, aside."""
    if path.is_file() and path.read_bytes() == content:
        check(command, path, path.name)
        return
    with tempfile.NamedTemporaryFile() as aside:
        aside.write(content)
        aside.flush()
        check(command, Path(aside.name), path.name)


def check(command: list[str], path: Path, name: str) -> None:
    """Refuse rules that the service would refuse."""
    if not command:
        return
    try:
        done = subprocess.run([*command, str(path)], capture_output=True, text=True, check=False, cwd="/")
    except OSError as error:
        raise Refused(
            f"the rules cannot be checked, {command[0]}: {error.strerror}; correct config_backup_check_command"
        ) from error
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split())[-600:]
        raise Refused(f"{name} holds no valid business rules ({said})")


def put(content: bytes, target: Path, options: dict[str, Any]) -> None:
    """Write beside the target, check that, rename."""
    partial = target.with_name(f".{target.name}.partial")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            if target.exists():
                known = target.stat()
                os.fchown(file.fileno(), known.st_uid, known.st_gid)
                os.fchmod(file.fileno(), known.st_mode & 0o777)
            else:
                os.fchmod(file.fileno(), int(options["mode"], 8))
            os.fsync(file.fileno())
        check(options["check_command"], partial, partial.name)
        partial.replace(target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    directory = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


@contextlib.contextmanager
def alone(lock: Path, *, check_mode: bool) -> Iterator[None]:
    """Keep other copies away; in check mode nothing is written, so nothing needs to be."""
    if check_mode:
        yield
        return
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise Refused(f"somebody else copies business rules at this moment ({lock}): try again") from None
    finally:
        os.close(descriptor)


def version_of(content: bytes) -> Any:
    """The version these rules say they are; None when they cannot be read."""
    try:
        document = json.loads(content)
    except ValueError:
        return None
    return document.get("version") if isinstance(document, dict) else None


if __name__ == "__main__":
    main()
