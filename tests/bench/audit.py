"""What the audit and the look at the token cost a launch, and how long it takes to prove many entries."""

from __future__ import annotations

import contextlib
import datetime
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import httpx
import psycopg

from bazaruto.control.audit import chain
from bazaruto.control.keys import KeyName, Keys
from bazaruto.control.node import node_name

from .figures import Figure
from .launches import RUNS, Plane, cluster_of, plane_of

ROUNDS, ENTRIES = 300, 100_000
LAUNCH = {"operation": "backup", "environment": "local", "reason": "bench"}
COLUMNS = (
    "seq, at, node, actor, token, address, request_id, action, target, environment, operation, parameters, outcome, "
    "detail, key, previous, mac"
)


def measure() -> list[Figure]:
    """On a PostgreSQL of its own, as durable as `bazaruto up` makes it; no worker, so that nothing is started."""
    with tempfile.TemporaryDirectory(prefix="bazaruto-bench-") as name, contextlib.ExitStack() as stack:
        directory = Path(name)
        directory.chmod(0o711)
        cluster = stack.enter_context(cluster_of(directory))
        whole = stack.enter_context(plane_of(directory / "whole", cluster, "whole"))
        bare_program = (sys.executable, "-m", "tests.bench.audit_bare")
        bare = stack.enter_context(plane_of(directory / "bare", cluster, "bare", bare_program))
        return [*_launches(whole, bare), _proof(whole)]


def _launches(whole: Plane, bare: Plane) -> list[Figure]:
    taken: dict[str, list[float]] = {whole.url: [], bare.url: []}
    with whole.http as first, bare.http as second:
        for number in range(ROUNDS + 10):
            for http in (first, second):  # in turn, so that a machine that slows down slows both
                took = _launch(http)
                if number >= 10:
                    taken[str(http.base_url).rstrip("/")].append(took)
    ours, theirs = taken[whole.url], taken[bare.url]
    name = "launch with audit and token ÷ without"
    return [
        Figure(f"{name}, p50", statistics.median(ours), statistics.median(theirs), "ms", ""),
        Figure(f"{name}, p99", _p99(ours), _p99(theirs), "ms", ""),
    ]


def _launch(http: httpx.Client) -> float:
    started = time.perf_counter()
    answer = http.post(RUNS, json=LAUNCH)
    took = (time.perf_counter() - started) * 1e3
    assert answer.status_code == 202, answer.text
    return took


def _p99(values: list[float]) -> float:
    return statistics.quantiles(values, n=100)[-1]


def _proof(plane: Plane) -> Figure:
    """All entries proven, beside the same entries only being read."""
    _fill(plane)
    with plane.http as http:
        started = time.perf_counter()
        answer = http.get("/api/v1/audit/verification", timeout=300)
        proven = time.perf_counter() - started
        assert answer.status_code == 200, answer.text
        proof = answer.json()
        assert (proof["intact"], proof["heads_compared"]) == (True, ENTRIES), proof
        started = time.perf_counter()
        exported = http.get("/api/v1/audit/export", timeout=300).text.count("\n")
        read = time.perf_counter() - started
        assert exported == ENTRIES
    return Figure(f"{ENTRIES} entries proven ÷ exported", proven, read, "s", "")


def _fill(plane: Plane) -> None:
    """Entries as they would have been written, up to the wanted number."""
    key, node = Keys(plane.home).current(KeyName.AUDIT), node_name(plane.home)
    heads = plane.home / "control" / "audit" / "heads.log"
    with psycopg.connect(plane.database_url) as connection, heads.open("a", encoding="utf-8") as file:
        row = connection.execute("SELECT seq, mac FROM audit_head FOR UPDATE").fetchone()
        assert row is not None
        last, previous = row[0], bytes(row[1])
        with connection.cursor().copy(f"COPY audit_entries ({COLUMNS}) FROM STDIN".encode()) as copy:
            for seq in range(last + 1, ENTRIES + 1):
                entry = _entry(seq, node, key.fingerprint, previous)
                mac = chain.mac(key.material, entry)
                copy.write_row([*vars(entry).values(), mac])
                line = {"seq": seq, "mac": mac.hex(), "at": "2026-01-01T00:00:00.000000Z"}
                file.write("".join(f"{json.dumps({**line, 'state': state})}\n" for state in ("intent", "head")))
                previous = mac
        connection.execute("UPDATE audit_head SET seq = %s, mac = %s", [ENTRIES, previous])


def _entry(seq: int, node: str, key: str, previous: bytes) -> chain.Entry:
    return chain.Entry(
        seq=seq,
        at=datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC) + datetime.timedelta(seconds=seq),
        node=node,
        actor="admin",
        token="0123456789ab",
        address="127.0.0.1",
        request_id=f"req_{seq:020x}",
        action="run.launch",
        target=f"20260101-000000-{seq:06x}",
        environment="local",
        operation="backup",
        parameters='{"parameters": {"compression_level": 3}, "reason": "bench"}',
        outcome="accepted",
        detail=None,
        key=key,
        previous=previous,
    )
