"""Cancel, time limit and idle limit, of playbooks whose processes are hard to end."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import psycopg

from bazaruto import embedded

from .freezes import GRACE_SECONDS, LIMIT_SECONDS, cancel_all
from .kills import must_be_interrupted
from .rig import Case, Rig
from .suite import fault

FAMILY = {"asynchronous", "daemon", "bare", "deaf"}
ENDED_SECONDS = GRACE_SECONDS + 10
IDLE_SECONDS = 5.0  # of the operation trace_idle
ROWS = 60_000  # of the dump; each takes a millisecond
SLOWLY = """
CREATE FUNCTION slowly(text) RETURNS boolean LANGUAGE plpgsql AS
$$ BEGIN PERFORM pg_sleep(0.001); RETURN true; END $$;
CREATE TABLE rows (id bigint, words text);
INSERT INTO rows SELECT n, repeat(md5(n::text), 40) FROM generate_series(1, {rows}) n;
ALTER TABLE rows ADD CHECK (slowly(words)) NOT VALID;
"""


@fault("cancel of a run")
def one(rig: Rig, count: int) -> list[Case]:
    return cancel_all(rig, rig.in_task(count), ENDED_SECONDS)


@fault("cancel of async task, daemons, a shell deaf to SIGTERM", batch=3)
def family(rig: Rig, count: int) -> list[Case]:
    return cancel_all(rig, with_family(rig, count), ENDED_SECONDS)


@fault("SIGKILL of the supervisor of such a family", batch=3)
def family_interrupted(rig: Rig, count: int) -> list[Case]:
    cases = with_family(rig, count)
    for case in cases:
        os.kill(rig.supervisor(case.run).pid, signal.SIGKILL)
    for case in must_be_interrupted(cases, "was killed by SIGKILL"):
        case.within = ENDED_SECONDS
    return cases


@fault("SIGKILL of guard and supervisor of such a family", batch=3)
def family_swept(rig: Rig, count: int) -> list[Case]:
    """Only what the guard noted tells of the daemon without an environment."""
    cases = with_family(rig, count)
    for case in cases:
        rig.plane.until(functools.partial(_noted, rig, case))
        for who in (rig.guard(case.run), rig.supervisor(case.run)):
            os.kill(who.pid, signal.SIGKILL)
    for case in must_be_interrupted(cases, "guard and its supervisor died"):
        case.within = ENDED_SECONDS
    return cases


def with_family(rig: Rig, count: int) -> list[Case]:
    """Runs in their task, whose children have all begun."""
    cases = rig.in_task(count, "family")
    for case in cases:
        rig.plane.until(functools.partial(_has_family, case))
    return cases


def _has_family(case: Case) -> bool:
    return {path.stem for path in case.trace.glob("*.pid")} == FAMILY


def _noted(rig: Rig, case: Case) -> bool:
    """Whether the guard has seen all of the children."""
    noted = (rig.plane.directory(case.run) / "processes.json").read_text(encoding="utf-8")
    return all(f'"pid": {path.read_text().split()[0]},' in noted for path in case.trace.glob("*.pid"))


@fault("cancel of a pg_restore", batch=2)
def restore(rig: Rig, count: int) -> list[Case]:
    """Its process and its session in the database are both gone."""
    cases = restoring(rig, count)
    cancel_all(rig, cases, ENDED_SECONDS)
    return _without_sessions(rig, cases)


@fault("SIGKILL of the supervisor of a pg_restore", batch=2)
def restore_interrupted(rig: Rig, count: int) -> list[Case]:
    cases = restoring(rig, count)
    for case in cases:
        os.kill(rig.supervisor(case.run).pid, signal.SIGKILL)
    return _without_sessions(rig, must_be_interrupted(cases, "was killed by SIGKILL"))


def restoring(rig: Rig, count: int) -> list[Case]:
    """Runs whose pg_restore is seen at work in the database."""
    program = embedded.postgresql_bin() / "pg_restore"
    dump = _dump(rig)
    cases = []
    for _ in range(count):
        database = rig.cluster.create_database()
        trace = rig.new_trace()
        (trace / "dump").symlink_to(dump)
        name = f"{rig.cluster.cluster.url('postgres', database)}&application_name={trace.name}"
        asked = {"trace": str(trace), "program": str(program), "database": name}
        cases.append(Case(rig.plane.launch("refill", parameters=asked)["id"], trace))
    for case in cases:
        rig.plane.in_task(case.run, "Wait for the file")
        rig.plane.until(functools.partial(_sessions, rig, case))
    return cases


def _dump(rig: Rig) -> Path:
    """A dump that takes a minute to restore, made once."""
    path = rig.root / "slow.dump"
    if not path.exists():
        database = rig.cluster.create_database()
        url = rig.cluster.cluster.url("postgres", database)
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(SLOWLY.format(rows=ROWS).encode())
        subprocess.run([embedded.postgresql_bin() / "pg_dump", "-Fc", f"--file={path}", url], check=True)
    return path


def _sessions(rig: Rig, case: Case) -> list[Any]:
    asked = "SELECT pid, query FROM pg_stat_activity WHERE application_name = %s AND query LIKE 'COPY%%'"
    with psycopg.connect(rig.cluster.url) as connection:
        return connection.execute(asked, [case.trace.name]).fetchall()


def _without_sessions(rig: Rig, cases: list[Case]) -> list[Case]:
    rig.settle(cases)
    for case in cases:
        if sessions := _sessions(rig, case):
            case.lies.append(f"ended, and its sessions live: {sessions}")
    return cases


@fault("time limit")
def limit(rig: Rig, count: int) -> list[Case]:
    cases = rig.in_task(count, "trace_brief")
    for case in cases:
        case.must_be("timed_out", end=False, says="after its time limit of 8 s", within=LIMIT_SECONDS + ENDED_SECONDS)
    return cases


@fault("idle limit")
def idle(rig: Rig, count: int) -> list[Case]:
    cases = rig.in_task(count, "trace_idle")
    for case in cases:
        case.must_be("timed_out", end=False, says="without any event", within=IDLE_SECONDS + ENDED_SECONDS)
    return cases


@fault("cancel of queued and waiting runs", batch=4)
def before_start(rig: Rig, count: int) -> list[Case]:
    """One change runs, the others wait for it: they end at once, and never start."""
    first = rig.launch("trace_change")
    rig.plane.in_task(first.run, "Wait for the file")
    waiting = [rig.launch("trace_change") for _ in range(count)]
    for case in waiting[1:]:
        rig.plane.with_status(case.run, "waiting")
    for case in waiting:
        assert rig.cancel(case.run).status_code == 202
        case.must_be("canceled", end=False, says="before it started")
        case.started = False
    first.release()
    first.must_be("succeeded", end=True)
    return [first, *waiting]


@fault("worker restarted in the middle of a cancel", batch=3)
def restarted_in_between(rig: Rig, count: int) -> list[Case]:
    """Asked for while no worker lives, or killed while what is left is being ended."""
    cases = with_family(rig, count)
    rig.provably_running(cases)
    for case in cases[::2]:
        assert rig.cancel(case.run).status_code == 202
    for case in cases[::2]:
        rig.plane.until((rig.plane.directory(case.run) / "cancel.json").exists)
    rig.kill("worker")
    for case in cases[1::2]:
        assert rig.cancel(case.run).status_code == 202
    rig.restart("worker")
    for case in cases:
        case.must_be("canceled", end=False, says="canceled by admin", within=ENDED_SECONDS)
    return cases


@fault("cancel and success at the same moment")
def race(rig: Rig, count: int) -> list[Case]:
    """Whichever was first: the record agrees with what the playbook did."""
    cases = rig.in_task(count)
    for number, case in enumerate(cases):
        case.release()
        time.sleep(0.15 * number)  # at another point of its end each time
        answer = rig.cancel(case.run)
        assert answer.status_code in (202, 409), answer.text
        case.must_be("succeeded", "canceled", within=ENDED_SECONDS)
    return cases


@fault("cancel of a run that is just being claimed")
def just_claimed(rig: Rig, count: int) -> list[Case]:
    """Between acceptance, claim and the supervisor's start."""
    cases = []
    for number in range(count):
        case = rig.launch()
        time.sleep(0.05 * number)
        assert rig.cancel(case.run).status_code == 202
        case.must_be("canceled", end=False, says="canceled by admin", within=ENDED_SECONDS)
        case.started = False
        cases.append(case)
    return cases
