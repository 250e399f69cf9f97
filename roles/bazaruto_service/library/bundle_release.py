#!/usr/bin/python
"""Install a release from its bundle: whole or not at all, without internet."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: bundle_release
short_description: Install a release from its bundle, whole or not at all
description:
  - Makes a virtual environment beside O(directory), installs the wheels of O(bundle) into it with their hashes checked,
    and renames it. What was cut off has no C(.complete) and is made anew; so is what came from another bundle.
  - C(.complete) holds the bundle's SHA-256, so that two releases of one version are told apart.
options:
  bundle:
    description: The bundle, on this host.
    type: path
    required: true
  sha256:
    description: What the bundle must be; it is refused when it is something else.
    type: str
    required: true
  directory:
    description: Where the release goes. Its parent directory is there already.
    type: path
    required: true
  pip:
    description: A wheel of pip, which runs as it is; the last one that fits the pattern.
    type: str
    default: /usr/share/python-wheels/pip-*.whl
attributes:
  check_mode: {support: full}
  diff_mode: {support: full}
author: Bazaruto Ops
"""

EXAMPLES = r"""
- name: Install the release
  bundle_release:
    bundle: /opt/bazaruto/bundles/bazaruto-0.1.0.bundle.tar
    sha256: fa71c4cec97d30e0e5267ddc9bfce21763676e1aee9c33975743320453b15184
    directory: /opt/bazaruto/releases/0.1.0
"""

RETURN = r"""
reason:
  description: Why the release was made, or would be; empty when it was there.
  returned: success
  type: str
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from glob import glob
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

COMPLETE = ".complete"


class Refused(Exception):
    """The release cannot be installed; the text says why and what to do."""


def install(options: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    """Make the release unless it is there; returns the module's answer."""
    directory, wanted = Path(options["directory"]), options["sha256"]
    reason = missing(directory, wanted)
    answer = {"changed": bool(reason), "reason": reason}
    if not reason or check_mode:
        return answer
    bundle = Path(options["bundle"])
    if (found := sha256(bundle)) != wanted:
        raise Refused(f"{bundle} has the SHA-256 {found}, and not {wanted}: copy it to this host again")
    with alone(directory.parent):
        if missing(directory, wanted):
            partial = directory.with_name(f".{directory.name}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            make(partial, bundle, options["pip"], final=directory)
            (partial / COMPLETE).write_text(f"{wanted}\n", encoding="utf-8")
            run(["sync", "--file-system", str(partial)])  # on the disk before it is called complete
            replace(partial, directory)
    return answer


def missing(directory: Path, wanted: str) -> str:
    """Why there is no such release yet; empty when there is."""
    if not directory.is_dir():
        return "it is not installed"
    try:
        complete = (directory / COMPLETE).read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return "an installation was cut off"
    return "" if complete == wanted else "it was installed from another bundle"


@contextmanager
def alone(parent: Path) -> Iterator[None]:
    """One installation at a time."""
    descriptor = os.open(parent, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def make(partial: Path, bundle: Path, pip: str, final: Path) -> None:
    """A virtual environment with everything that the bundle holds, as if it had been made at its final place."""
    run([sys.executable, "-m", "venv", "--without-pip", str(partial)])
    source = partial / "bundle"
    unpack(bundle, source)
    wheels = sorted(glob(pip))  # noqa: PTH207 - a pattern of an absolute path, which pathlib does not take
    if not wheels:
        raise Refused(f"no wheel of pip is at {pip}: install the package python3-venv")
    python = str(partial / "bin" / "python")
    command = [python, "-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check", "--no-index"]
    command += ["--no-deps", "--require-hashes", "--no-compile", f"--find-links={source / 'wheels'}"]
    run([*command, f"--requirement={source / 'requirements.txt'}"], PYTHONPATH=wheels[-1], PIP_CONFIG_FILE=os.devnull)
    shutil.rmtree(source)
    # Now, as the service runs where it can write nothing.
    run([python, "-m", "compileall", "-q", "-j0", str(partial / "lib")])
    for script in [partial / "pyvenv.cfg", *(partial / "bin").iterdir()]:
        if script.is_file() and not script.is_symlink():
            script.write_bytes(script.read_bytes().replace(os.fsencode(partial), os.fsencode(final)))


def unpack(bundle: Path, directory: Path) -> None:
    """The bundle's files, of which none may lie outside."""
    with tarfile.open(bundle) as archive:
        for entry in archive:
            target = directory / entry.name
            content = archive.extractfile(entry)
            if content is None or ".." in target.parts or Path(entry.name).is_absolute():
                raise Refused(f"{bundle} holds {entry.name!r}, which no bundle does: make it anew with `make bundle`")
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as file:
                shutil.copyfileobj(content, file)


def replace(partial: Path, directory: Path) -> None:
    """Put the new one in the place of what was there."""
    old = directory.with_name(f".{directory.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if directory.exists():
        directory.rename(old)
    partial.rename(directory)
    shutil.rmtree(old, ignore_errors=True)


def sha256(file: Path) -> str:
    """The digest of a file."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def run(command: list[str], **environment: str) -> None:
    """Run a command, or refuse with the last line it said."""
    kept = {"PATH": os.defpath, "LC_ALL": "C.UTF-8", **environment}
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=kept)
    if done.returncode != 0:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["it said nothing"]
        raise Refused(f"`{' '.join(command[:4])} …` failed: {lines[-1]}")


def main() -> None:
    """Ansible's entry point."""
    module = AnsibleModule(
        argument_spec={
            "bundle": {"type": "path", "required": True},
            "sha256": {"type": "str", "required": True},
            "directory": {"type": "path", "required": True},
            "pip": {"type": "str", "default": "/usr/share/python-wheels/pip-*.whl"},
        },
        supports_check_mode=True,
    )
    directory = module.params["directory"]
    os.umask(0o022)
    try:
        answer = install(module.params, module.check_mode)
    except (Refused, OSError, tarfile.TarError) as error:
        module.fail_json(msg=f"{directory} was not installed: {error}")
    before = "" if answer["changed"] else "complete\n"
    module.exit_json(**answer, diff={"before": before, "after": "complete\n", "before_header": directory})


if __name__ == "__main__":
    main()
