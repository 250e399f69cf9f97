#!/usr/bin/python
"""Install a release of the control plane from its bundle, whole or not at all."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: control_release
short_description: Install a release of the control plane from its bundle, whole or not at all
description:
  - Makes a virtual environment of the wheels in O(bundle), each compared with the hashes of the bundle's lock, without
    any network. It is built beside O(directory)/O(version) and renamed last, so what has that name is whole.
  - A version that is there stays as it is, unless it came from another bundle; then it is replaced.
options:
  bundle:
    description: C(make bundle) wrote it. On this host.
    type: path
    required: true
  sha256:
    description: Of the bundle, as it should be.
    type: str
    required: true
  directory:
    description: Where releases lie.
    type: path
    required: true
  version:
    description: The release's name.
    type: str
    required: true
  python:
    description: The interpreter it is made with.
    type: path
    default: /usr/bin/python3
attributes:
  check_mode: {support: full}
  diff_mode: {support: none}
author: Bazaruto Ops
"""

EXAMPLES = r"""
- name: Install the release
  control_release:
    bundle: /opt/bazaruto/bundles/bazaruto-control-0.1.0.bundle.tar
    sha256: "{{ checksum }}"
    directory: /opt/bazaruto/control/releases
    version: 0.1.0
"""

RETURN = r"""
path:
  description: Where the release is.
  returned: success
  type: str
"""

import hashlib
import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

NEEDED_BYTES = 800 * 2**20  # the wheels, what they unpack to, and what is compiled of it
NOT_COMPILED = r"ansible_collections|ansible/modules"  # 30,000 files that mostly run on other hosts
MARK = "bundle.sha256"


class Refused(Exception):
    """The release cannot be installed; the text says why, and what to do."""


def main() -> None:
    """Read the arguments, install, and answer Ansible."""
    module = AnsibleModule(
        argument_spec={
            "bundle": {"type": "path", "required": True},
            "sha256": {"type": "str", "required": True},
            "directory": {"type": "path", "required": True},
            "version": {"type": "str", "required": True},
            "python": {"type": "path", "default": "/usr/bin/python3"},
        },
        supports_check_mode=True,
    )
    given = module.params
    release, bundle = Path(given["directory"]) / given["version"], Path(given["bundle"])
    try:
        if origin(release) == given["sha256"]:
            module.exit_json(changed=False, path=str(release))
        if not module.check_mode:
            install(release, bundle, given["sha256"], given["python"])
    except Refused as error:
        module.fail_json(msg=f"{error}.")
    except (OSError, KeyError, tarfile.TarError) as error:
        module.fail_json(msg=f"The release {release} could not be installed: {error}; nothing is left of it.")
    module.exit_json(changed=True, path=str(release))


def origin(release: Path) -> str | None:
    """SHA-256 of the bundle that a release came from; None where there is no whole release."""
    mark = release / MARK
    return mark.read_text(encoding="ascii").strip() if mark.is_file() else None


def install(release: Path, bundle: Path, sha256: str, python: str) -> None:
    """Build it beside its place, and give it its name."""
    with bundle.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise Refused(f"{bundle} has the SHA-256 {found}, and should have {sha256}: it was changed on its way")
    release.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(release.parent).free
    if free < NEEDED_BYTES:
        raise Refused(f"{release.parent} has {free:,} bytes free, the release needs {NEEDED_BYTES:,}: free some")
    for left in release.parent.glob(f".{release.name}.*"):
        shutil.rmtree(left)  # of an installation that was cut off
    partial = Path(tempfile.mkdtemp(prefix=f".{release.name}.", dir=release.parent))
    try:
        with tempfile.TemporaryDirectory(dir=partial) as unpacked:
            with tarfile.open(bundle) as packed:
                packed.extractall(unpacked)  # noqa: S202 - its hash is what it should be
            build(partial / "venv", Path(unpacked), python)
        move_scripts(partial / "venv", release)
        (partial / "venv" / MARK).write_text(sha256 + "\n", encoding="ascii")
        os.sync()
        if release.exists():
            release.rename(partial / "replaced")
        (partial / "venv").rename(release)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def build(place: Path, unpacked: Path, python: str) -> None:
    """The virtual environment, with what the control plane imports compiled."""
    run(python, "-m", "venv", str(place))
    own = str(place / "bin" / "python")
    offline = ["--no-index", "--no-deps", "--require-hashes", f"--find-links={unpacked / 'wheels'}"]
    quiet = ["--quiet", "--no-compile", "--no-cache-dir", "--disable-pip-version-check"]
    run(own, "-m", "pip", "install", *quiet, *offline, f"--requirement={unpacked / 'requirements.txt'}")
    run(own, "-m", "compileall", "-q", "-j0", "-x", NOT_COMPILED, str(place / "lib"))


def move_scripts(place: Path, release: Path) -> None:
    """Scripts name their interpreter by its path: that of the release, not of where it is built."""
    for script in (place / "bin").iterdir():
        if script.is_file() and not script.is_symlink():
            script.write_bytes(script.read_bytes().replace(os.fsencode(place), os.fsencode(release)))


def run(*words: str) -> None:
    """A command that must succeed."""
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Refused(f"`{' '.join(words[:4])} …` failed: {(done.stderr or done.stdout).strip()[-600:]}")


if __name__ == "__main__":
    main()
