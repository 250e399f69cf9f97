"""Become another user in a systemd unit named for the run, so that what it starts can be found and ended."""

from __future__ import annotations

DOCUMENTATION = r"""
name: transient_unit
short_description: Run as another user, in a transient systemd unit named for the run
description:
  - Runs what a task runs on its host as C(bazaruto-RUN-XXXXXXXX.service). Killing ssh ends nothing there;
    C(systemctl stop 'bazaruto-RUN-*.service') ends all of it, what became a daemon included.
  - The host needs systemd, and a connection as root or as a user that may call sudo without a password.
  - What is still in the unit when the task's own process ends is ended too, so it does not fit C(async) tasks.
author: Bazaruto Ops
options:
  become_user:
    description: The user to become.
    default: root
    keyword: [{name: become_user}]
    vars: [{name: ansible_become_user}]
  become_exe:
    description: The program that starts transient units.
    default: systemd-run
    vars: [{name: ansible_transient_unit_exe}]
  become_flags:
    description: More options for it, for example C(--property=Nice=10).
    default: ""
    keyword: [{name: become_flags}]
    vars: [{name: ansible_become_flags}]
  become_pass:
    description: Not used; sudo must not ask for a password.
    required: false
  run:
    description: The run. The control plane gives it; by hand the roles make one of the time.
    default: by-hand
    vars: [{name: database_backup_run}, {name: bazaruto_run_id}]
  host:
    description: The host, as the inventory names it.
    default: ""
    vars: [{name: inventory_hostname}]
  units_file:
    description: >-
      Where to write down which unit starts on which host, before it starts. The control plane names the file, and reads
      there whom to ask when the run was cut off.
    default: ""
    env: [{name: BAZARUTO_RUN_UNITS}]
"""

import json
import os
import re
import secrets
import shlex
from typing import Any

from ansible.errors import AnsibleError
from ansible.plugins.become import BecomeBase

STOP_SECONDS = 4  # between the SIGTERM and the SIGKILL of a stopped unit


class BecomeModule(BecomeBase):
    """What Ansible asks for the command line."""

    name = "transient_unit"

    def build_become_command(self, cmd: str, shell: Any) -> str:
        """The command that runs `cmd` in a new unit, its standard streams passed on."""
        super().build_become_command(cmd, shell)
        if not cmd:
            return cmd
        run = str(self.get_option("run"))
        if not re.fullmatch(r"[A-Za-z0-9_.-]+", run):
            raise AnsibleError(f"the run {run!r} is not of letters, digits, '_', '.' and '-': correct bazaruto_run_id")
        unit = f"bazaruto-{run}-{secrets.token_hex(4)}.service"
        self._write_down(unit)
        words = [
            *(self.get_option("become_exe"), "--quiet", "--pipe", "--wait", "--collect", "--service-type=exec"),
            *(f"--unit={unit}", f"--description=Bazaruto run {run}", f"--uid={self.get_option('become_user')}"),
            *(f"--property=TimeoutStopSec={STOP_SECONDS}", "--setenv=LANG=C.UTF-8"),
            *shlex.split(self.get_option("become_flags") or ""),
        ]
        as_root = 'as_root=; [ "$(id -u)" = 0 ] || as_root="sudo -n"; exec $as_root'
        return f"{as_root} {shlex.join(words)} -- {self._build_success_command(cmd, shell)}"

    def _write_down(self, unit: str) -> None:
        """Nothing may start that could not be found again: what cannot be written down is not started."""
        path = self.get_option("units_file")
        if not path:
            return
        line = json.dumps({"host": str(self.get_option("host")), "unit": unit}).encode() + b"\n"
        try:
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            try:
                whole = os.write(file, line) == len(line)
                os.fsync(file)
            finally:
                os.close(file)
        except OSError as error:
            raise AnsibleError(
                f"the unit {unit} could not be written down in {path}, so it was not started: {error}"
            ) from error
        if not whole:
            raise AnsibleError(
                f"the unit {unit} could not be written down in {path}, so it was not started: free some space"
            )
