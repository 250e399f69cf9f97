"""Break what runs depend on, and hold every record against the truth: `make faults`, or with names of faults."""

from __future__ import annotations

import argparse
import dataclasses
import json
import signal
import sys

from .catalogue import FAULTS
from .report import table
from .rig import rig
from .suite import Row, attempt


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="faults whose name holds one of these words")
    parser.add_argument("--runs", type=int, default=20, help="runs of each fault that must count (default 20)")
    parser.add_argument("--patience", type=float, default=1.0, help="times as long as promised an end may take")
    parser.add_argument("--list", action="store_true", help="print the names")
    parser.add_argument("-o", "--output", choices=["table", "json"], default="table")
    asked = parser.parse_args()
    chosen = [each for each in FAULTS.values() if not asked.names or any(name in each.name for name in asked.names)]
    if asked.list:
        print("\n".join(each.name for each in chosen))
        return 0
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)  # what was started is ended also when the suite is stopped
    rows: list[Row] = []
    with rig(asked.patience) as broken:
        for each in chosen:
            row = attempt(broken, each, asked.runs)
            rows.append(row)
            print(f"{each.name}: {'fine' if row.fine else 'NOT FINE'}", file=sys.stderr, flush=True)
            for lie in row.lies:
                print(f"  {lie}", file=sys.stderr, flush=True)
    if asked.output == "json":
        print(json.dumps([dataclasses.asdict(row) for row in rows], indent=2))
    else:
        print(table(rows))
    return 0 if rows and all(row.fine for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
