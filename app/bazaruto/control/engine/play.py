"""Plays a run's playbook through ansible-runner, with all that Ansible may know of where it runs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path

from bazaruto import processes
from bazaruto.control.engine import remote, rundir, warm
from bazaruto.control.engine.recorder import Recorder

ENVIRONMENT = {
    "ANSIBLE_HOST_KEY_CHECKING": "True",  # ansible-runner switches it off unless it is set
    "ANSIBLE_NOCOLOR": "True",  # events are records, not screens
    "ANSIBLE_FORCE_COLOR": "False",
    "ANSIBLE_CACHE_PLUGIN": "jsonfile",
}
MASTER_SECONDS = 2.0  # how long an SSH master may take to end
SETTINGS = {"suppress_output_file": True, "suppress_ansible_output": True, "pexpect_timeout": 1}


class DirectoryTakenError(Exception):
    """The directory for what must not outlive this run is somebody else's."""


def play(directory: rundir.RunDirectory, spec: rundir.Spec, recorder: Recorder) -> tuple[int | None, str | None]:
    """Run the playbook to its end: ansible-playbook's exit code, and what went wrong around it."""
    import ansible_runner

    try:
        os.environ.update(environment(directory, spec))
        (directory.private / "env" / "settings").write_text(json.dumps(SETTINGS), encoding="utf-8")
        options = [*(["--check"] if spec.check else []), *(["--diff"] if spec.diff else [])]
        with warm.playbook_in_fork():
            runner = ansible_runner.run(
                private_data_dir=str(directory.private),
                ident="run",
                artifact_dir=str(volatile_directory(spec.run) / "artifacts"),
                project_dir=spec.content_directory,
                playbook=spec.playbook,
                inventory=spec.inventory,
                limit=spec.limit,
                cmdline=" ".join(options) or None,
                fact_cache_type="ours",  # what is not "jsonfile" leaves the cache to the environment
                event_handler=recorder,
                cancel_callback=lambda: False,  # else it would install a signal handler of its own
                quiet=True,
            )
    except Exception as error:  # noqa: BLE001 - told in the outcome
        return None, f"The playbook could not be played ({type(error).__name__}: {error})."
    return runner.rc, None


def environment(directory: rundir.RunDirectory, spec: rundir.Spec) -> dict[str, str]:
    """Ansible's variables for one run, with the directories they name made."""
    volatile = volatile_directory(spec.run)
    try:
        volatile.mkdir(mode=0o700)
    except FileExistsError:
        raise DirectoryTakenError(f"{volatile} exists already: remove it") from None
    temporary = directory.private / "tmp"
    temporary.mkdir(mode=0o700)
    facts = directory.path.parents[1] / "facts" / spec.environment
    facts.mkdir(mode=0o700, parents=True, exist_ok=True)
    return {
        **ENVIRONMENT,
        "ANSIBLE_SSH_CONTROL_PATH_DIR": str(volatile),
        "ANSIBLE_LOCAL_TEMP": str(temporary),
        remote.UNITS_VARIABLE: str(remote.units_file(directory)),
        "ANSIBLE_CACHE_PLUGIN_CONNECTION": str(facts),
        **({"ANSIBLE_VAULT_PASSWORD_FILE": spec.vault_password_file} if spec.vault_password_file else {}),
    }


def volatile_directory(run: str) -> Path:
    """Where lies what must not outlive the run: its SSH sockets, and the events that Ansible hands to ansible-runner.

    Short, since a socket's path holds 107 bytes, and known beforehand. In memory where that can be: Ansible waits for
    ever when its callback plugin cannot write an event to a full disk.
    """
    memory = Path("/dev/shm")  # noqa: S108 - a directory that exists already is refused
    place = memory if os.access(memory, os.W_OK | os.X_OK) else Path("/tmp")  # noqa: S108 - likewise
    return place / f"bazaruto-{run}"


def end_masters(run: str) -> None:
    """End the run's SSH masters, which outlive the playbook, and remove their directory."""
    directory = volatile_directory(run)
    if not directory.is_dir():
        return
    if any(directory.iterdir()):
        mark = f"{directory}/"
        masters = [pid for pid in processes.everyone() if any(mark in word for word in processes.arguments_of(pid))]
        living = [identity for identity in map(processes.identify, masters) if identity]
        for master in living:
            processes.send(master, signal.SIGTERM)
        processes.wait_all(living, time.monotonic() + MASTER_SECONDS)
    shutil.rmtree(directory)
