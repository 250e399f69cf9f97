"""A run's scope: stopping the worker's unit spares the run, and ending the scope ends all of it."""

from __future__ import annotations

import secrets
import shlex

from tests.hosts.test_transient_units import count
from tests.lab.host import Host
from tests.lab.waiting import becomes_true

PYTHON = "env PYTHONPATH=/opt/bazaruto/app python3 -c"
# As worker, guard and what the guard starts; the guard has its own session, and that alone would not save it.
WORKER = """
import os, subprocess, time
from bazaruto.control.engine import scopes

if os.fork() == 0:
    os.setsid()
    assert scopes.enter(RUN)
    subprocess.Popen(["sleep", NUMBER])
    subprocess.Popen(["setsid", "sleep", NUMBER])
time.sleep(600)
"""


def test_a_run_outlives_its_workers_unit_and_ends_with_its_scope(host: Host) -> None:
    run = f"20261123-120000-{secrets.token_hex(3)}"
    program = WORKER.replace("RUN", repr(run)).replace("NUMBER", repr("73001"))
    host.run(f"systemd-run --collect --unit=test-worker {PYTHON} {shlex.quote(program)}")
    assert becomes_true(lambda: count(host, "sleep 73001") == 2, 10)
    host.run("systemctl stop test-worker")
    assert host.units("test-worker.service") == []
    assert count(host, "sleep 73001") == 2
    assert len(in_scope(host, run, "print(*scopes.members({run!r}))").split()) == 3
    in_scope(host, run, "scopes.end({run!r}); scopes.end({run!r})")
    assert count(host, "sleep 73001") == 0
    assert becomes_true(lambda: host.units(f"bazaruto-run-{run}.scope") == [], 5)


def test_a_second_scope_of_one_run_is_refused(host: Host) -> None:
    run = f"20261123-120000-{secrets.token_hex(3)}"
    program = f"from bazaruto.control.engine import scopes; import time; assert scopes.enter({run!r}); time.sleep(600)"
    host.run(f"systemd-run --collect --unit=test-first {PYTHON} {shlex.quote(program)}")
    assert becomes_true(lambda: host.units(f"bazaruto-run-{run}.scope") != [], 10)
    assert in_scope(host, run, "print(scopes.enter({run!r}))") == "False\n"
    in_scope(host, run, "scopes.end({run!r})")


def in_scope(host: Host, run: str, statement: str) -> str:
    """What bazaruto.control.engine.scopes answers on the host."""
    program = f"from bazaruto.control.engine import scopes; {statement.format(run=run)}"
    return host.run(f"{PYTHON} {shlex.quote(program)}").stdout
