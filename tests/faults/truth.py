"""Holds a run's record against what the run itself noted, what lies in its directory, and who still lives."""

from __future__ import annotations

import json
from typing import Any

from bazaruto import processes
from bazaruto.control.engine.play import volatile_directory
from tests.integration.control.conftest import TERMINAL

from .rig import Case, Rig


def judge(rig: Rig, case: Case) -> None:
    """Write down, in the case of a run that has ended, every untruth."""
    record = case.record
    if record is None:
        return  # which was said already
    case.lies += _of_status(case, record)
    case.lies += _of_trace(case, record)
    case.lies += _of_life(record)
    case.lies += _of_events(rig, case, record)
    case.lies += _of_directory(rig, case, record)
    left = living(case)
    case.left = len(left)
    case.lies += [f"still lives: {words}" for words in left]


def changed_since(rig: Rig, record: dict[str, Any] | None) -> list[str]:
    """What of an ended run is different now; nothing may be."""
    if record is None:
        return []
    now = rig.record(record["id"]) or {}
    return [f"{name} became {now.get(name)!r} after the end" for name in record if now.get(name) != record[name]]


def living(case: Case) -> list[str]:
    """Processes of the run: by the marker, by its id or its trace on argv, by the numbers its daemons wrote down."""
    found: dict[int, str] = {}
    for pid in processes.everyone():
        if processes.identify(pid) is None:
            continue
        words = processes.arguments_of(pid)
        marked = processes.environment_of(pid).get("BAZARUTO_RUN_ID") == case.run
        if marked or any(case.run in word or str(case.trace) in word for word in words):
            found[pid] = f"{pid} {' '.join(words)[:120]}"
    for noted in case.trace.glob("*.pid"):
        pid, start_time = (int(word) for word in noted.read_text(encoding="utf-8").split())
        identity = processes.identify(pid)
        if identity and identity.start_time == start_time:
            found[pid] = f"{pid} {noted.stem}"
    return [found[pid] for pid in sorted(found)]


def lines(case: Case, word: str) -> int:
    """How often the run noted this."""
    path = case.trace / "lines"
    if not path.exists():
        return 0
    noted = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith(f"{word} ")]
    assert set(noted) <= {f"{word} {case.run}"}, f"another run than {case.run} was started: {noted}"
    return len(noted)


def _of_status(case: Case, record: dict[str, Any]) -> list[str]:
    lies = []
    if record["status"] not in case.allowed:
        lies.append(f"is {record['status']}, not {' or '.join(sorted(case.allowed))} ({record['error']})")
    if case.says not in (record["error"] or ""):
        lies.append(f"its error does not say {case.says!r}: {record['error']}")
    if record["status"] != "succeeded" and not record["error"]:
        lies.append("has no error, and did not succeed")
    if record["status"] == "succeeded" and record["error"] and "Not every event" not in record["error"]:
        lies.append(f"succeeded with an error: {record['error']}")
    return lies


def _of_trace(case: Case, record: dict[str, Any]) -> list[str]:
    """Started at most once; `succeeded` exactly if the last task was played."""
    starts, ends = lines(case, "start"), lines(case, "end")
    lies = []
    if starts > 1 or (case.started and case.counted and starts != 1):
        lies.append(f"was started {starts} times")
    if ends > starts:
        lies.append(f"ended {ends} times")
    if record["status"] == "succeeded" and ends != 1:
        lies.append("succeeded without its last task")
    if case.reached_end is not None and bool(ends) != case.reached_end:
        lies.append("played its last task" if ends else "did not play its last task")
    if ends and record["status"] in ("interrupted", "canceled", "timed_out") and case.reached_end is not None:
        lies.append(f"played its last task, and is {record['status']}")
    return lies


def _of_life(record: dict[str, Any]) -> list[str]:
    """Taken once at most, ended once, nothing after the end; times in order."""
    states = [change["status"] for change in record["changes"]]
    reasons = [change["reason"] for change in record["changes"]]
    lies = []
    if sum(reason.startswith("taken by") for reason in reasons) > 1:
        lies.append(f"was taken more than once: {reasons}")
    if [state in TERMINAL for state in states] != [False] * (len(states) - 1) + [True]:
        lies.append(f"its life is {states}")
    if states[-1] != record["status"]:
        lies.append(f"its life ends as {states[-1]}, its record as {record['status']}")
    times = [record["created_at"], record["started_at"], record["finished_at"]]
    if [at for at in times if at] != sorted(at for at in times if at) or not record["finished_at"]:
        lies.append(f"its times are {times}")
    return lies


def _of_events(rig: Rig, case: Case, record: dict[str, Any]) -> list[str]:
    """Contiguous from 1, as many as the record says, the same as in the journal."""
    lies = []
    shown = all_events(rig, case.run)
    numbers = [event["seq"] for event in shown]
    if numbers != list(range(1, len(numbers) + 1)):
        lies.append(f"its events are numbered {numbers[:3]}…{numbers[-3:]}, {len(numbers)} of them")
    if len(shown) != record["events"]:
        lies.append(f"{len(shown)} events are there, its record says {record['events']}")
    if not case.spoilt and rig.plane.directory(case.run).exists() and shown != rig.journal(case.run):
        lies.append(f"its journal has {len(rig.journal(case.run))} events, PostgreSQL other {len(shown)}")
    counted = any(event["type"] == "playbook_on_stats" for event in shown)
    if record["status"] == "succeeded" and not counted and not record["error"]:
        lies.append("succeeded without the event of its statistics")
    return lies


def all_events(rig: Rig, run: str) -> list[dict[str, Any]]:
    """Every event that the API has of a run."""
    found: list[dict[str, Any]] = []
    while True:
        after = found[-1]["seq"] if found else 0
        answer = rig.http.get(f"/api/v1/runs/{run}/events", params={"after": after, "limit": 5000})
        page = answer.json()["events"]
        if not page:
            return found
        found += page


def _of_directory(rig: Rig, case: Case, record: dict[str, Any]) -> list[str]:
    """The outcome says the same; secrets, reserves and sockets are gone."""
    directory = rig.plane.directory(case.run)
    if not directory.exists():
        return []
    gone = [directory / "private", volatile_directory(case.run)]
    lies = [f"{path} is still there" for path in gone if path.exists()]
    outcome = directory / "outcome.json"
    if outcome.exists():
        values = json.loads(outcome.read_text(encoding="utf-8"))
        if values["status"] != record["status"]:
            lies.append(f"its directory says {values['status']}, its record {record['status']}")
    elif case.started and not case.spoilt:
        lies.append("its directory has no outcome")
    return lies
