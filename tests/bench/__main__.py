"""Run the benchmarks: `make bench`, or `python -m tests.bench service backups setup` for some of them."""

from __future__ import annotations

import argparse
import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from . import audit, backups, events, launches, memory, retention, service, site, start
from .figures import Figure, report

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("setup", "memory", "service", "backups", "events", "launches", "audit", "retention", "start", "plays")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--pairs", type=int, default=3, help="how often each pair is measured (default 3)")
    chosen = parser.parse_args()
    parts = chosen.parts or PARTS
    figures = site.measure(chosen.pairs) if "plays" in parts else []
    if set(parts) - {"plays"}:
        figures += _of_this_machine(parts, chosen.pairs)
    if figures:
        report(figures, ROOT / "var" / "bench.json")


def _of_this_machine(parts: Sequence[str], pairs: int) -> list[Figure]:
    """The figures of an installation by `bazaruto up`."""
    figures: list[Figure] = []
    bazaruto = str(Path(sys.executable).parent / "bazaruto")
    with tempfile.TemporaryDirectory(prefix="bazaruto-bench-") as directory:
        home = Path(directory) / "var"
        environment = backups.environment_of(home, _free_port(), _free_port())
        cold = _timed([bazaruto, "up"], environment)
        try:
            warm = _timed([bazaruto, "up"], environment)
            if "setup" in parts:
                figures.append(Figure("`bazaruto up`, warm ÷ cold (without pip)", warm, cold, "s", ""))
            status = _status(bazaruto, environment)
            figures += memory.measure(home) if "memory" in parts else []
            if "service" in parts:
                figures += service.measure(pairs, home, status["url"], status["database_url"])
            if "backups" in parts:
                owner = backups.superuser_url(home)
                print(f"database of {backups.fill(status['database_url']) / 1e6:.0f} MB")
                figures += backups.measure(bazaruto, environment, owner, pairs)
            figures += launches.measure(pairs) if "launches" in parts else []
            figures += audit.measure() if "audit" in parts else []
            if "events" in parts:
                control = _status(bazaruto, environment, "control")
                figures += events.measure(home, control["url"], control["database_url"])
            if "retention" in parts:
                control = _status(bazaruto, environment, "control")
                figures += retention.measure(home, control["database_url"], environment)
            if "start" in parts:
                database_url = start.database_beside(status["database_url"], backups.superuser_url(home))
                figures += start.measure(environment, database_url, _free_port(), pairs)
        finally:
            subprocess.run([bazaruto, "down"], env=environment, check=True)
    return figures


def _timed(arguments: list[str], environment: dict[str, str]) -> float:
    started = time.perf_counter()
    subprocess.run(arguments, env=environment, check=True)
    return time.perf_counter() - started


def _status(bazaruto: str, environment: dict[str, str], part: str = "service") -> dict[str, str]:
    done = subprocess.run([bazaruto, "status", "-o", "json"], env=environment, capture_output=True, check=True)
    answer: dict[str, str] = json.loads(done.stdout)[part]
    return answer


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


if __name__ == "__main__":
    main()
