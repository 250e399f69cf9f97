#!/usr/bin/python
"""Install content by its revision, whole or not at all."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: control_content
short_description: Install content by its revision, whole or not at all
description:
  - Puts playbooks, roles and inventories into O(directory)/REVISION, with a file REVISION that says what they are.
    What is there stays. Nothing is switched over.
  - REVISION is the first 12 digits of the commit, with some of the digest after it where the content differs from the
    commit; the digest's alone, where nobody knows a commit. Content that is installed already keeps the name it has,
    so a site that is built from the control plane's own snapshot, which is no repository, stays at its revision.
  - The part that runs beside the playbook (an action of the same name) takes O(source), tells its digest and commit,
    and sends the files only where they are missing.
options:
  source:
    description: The directory that playbooks, roles and inventories are in, where the playbook is played.
    type: path
  directory:
    description: Where revisions lie.
    type: path
    required: true
  digest:
    description: SHA-256 of the content. Given by the action.
    type: str
  commit:
    description: The commit that the source is at. Given by the action.
    type: str
  dirty:
    description: Whether the source differs from it. Given by the action.
    type: bool
    default: false
  archive:
    description: The files, on this host. Given by the action.
    type: path
attributes:
  check_mode: {support: full}
  diff_mode: {support: none}
author: Bazaruto Ops
"""

EXAMPLES = r"""
- name: Install the content that this playbook is part of
  control_content:
    source: "{{ playbook_dir }}/.."
    directory: /opt/bazaruto/content
"""

RETURN = r"""
revision:
  description: The name in O(directory).
  returned: success
  type: str
missing:
  description: Whether it is not there.
  returned: success
  type: bool
"""

import json
import os
import shutil
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

COMMIT_LENGTH, DIGEST_LENGTH = 12, 8  # of their digits in a name
SAYS = "REVISION"  # the file


def main() -> None:
    """Read the arguments, install, and answer Ansible."""
    module = AnsibleModule(
        argument_spec={
            "source": {"type": "path"},
            "directory": {"type": "path", "required": True},
            "digest": {"type": "str"},
            "commit": {"type": "str"},
            "dirty": {"type": "bool", "default": False},
            "archive": {"type": "path"},
        },
        supports_check_mode=True,
    )
    given = module.params
    directory, archive = Path(given["directory"]), given["archive"]
    content = {name: given[name] for name in ("commit", "dirty", "digest")}
    there = installed(directory)
    name = name_of(content, there)
    missing = name not in there
    if missing and archive and not module.check_mode:
        try:
            install(directory / name, Path(archive), content)
        except (OSError, tarfile.TarError) as error:
            module.fail_json(msg=f"The content could not be installed as {directory / name}: {error}.")
        module.exit_json(changed=True, revision=name, missing=False)
    module.exit_json(changed=missing, revision=name, missing=missing)


def installed(directory: Path) -> dict[str, dict[str, Any]]:
    """What is there, by name, as the files REVISION say; the revision in use first."""
    current = os.path.realpath(directory / "current")
    found = [path for path in directory.glob(f"[!.]*/{SAYS}") if not path.parent.is_symlink()]
    found.sort(key=lambda path: (str(path.parent) != current, path.parent.name))
    return {path.parent.name: json.loads(path.read_text(encoding="utf-8")) for path in found}


def name_of(content: dict[str, Any], there: dict[str, dict[str, Any]]) -> str:
    """What this content is called here; another content of one commit gets another name."""
    same = [name for name, other in there.items() if other["digest"] == content["digest"]]
    known = [name for name in same if content["commit"] in (None, there[name]["commit"])]
    if known:
        return known[0]
    mark = content["digest"][:DIGEST_LENGTH]
    if not content["commit"]:
        return f"content-{mark}"
    name = content["commit"][:COMMIT_LENGTH]
    return f"{name}-{mark}" if content["dirty"] or name in there else name


def install(place: Path, archive: Path, content: dict[str, Any]) -> None:
    """Unpack beside it, put it on the disk, and give it its name."""
    place.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{place.name}.", dir=place.parent))
    try:
        with tarfile.open(archive) as packed:
            packed.extractall(partial)  # noqa: S202 - the action has made it
        (partial / SAYS).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        for path in [partial, *partial.rglob("*")]:
            if not path.is_symlink():
                path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
        os.sync()
        partial.rename(place)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


if __name__ == "__main__":
    main()
