"""Load a backup into an empty database: an archive with pg_restore, the guide's .sql.gz with psql."""

from __future__ import annotations

import gzip
import os
import re
import subprocess
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ansible.module_utils.bazaruto_backup import programs
from ansible.module_utils.bazaruto_backup.refusal import Refused

if TYPE_CHECKING:
    from ansible.module_utils.bazaruto_backup.connection import Server

# For the restoring sessions only. Their commits need not wait for the disk: the swap's does, and flushes what
# was before it. The jobs are the parallelism: with the server's parallel workers on top for indexes, 440 MB took
# 12.5 s instead of 9.2 s on two cores; for queries the same is assumed, and was lost in the noise when measured.
# The restored statistics call every page visible, and no page of a restored table is, until it is vacuumed: an
# index-only scan would fetch every row by itself.
FAST = (
    "-c synchronous_commit=off -c maintenance_work_mem=256MB -c max_parallel_maintenance_workers=0 "
    "-c max_parallel_workers_per_gather=0 -c enable_indexonlyscan=off -c jit=off -c log_min_duration_statement=-1"
)
_COPY = re.compile(rb"COPY .* FROM stdin;\s*")
_ALLOWED_COMMANDS = (rb"\restrict ", rb"\unrestrict ", b"\\.")
# pg_dump ends every complete script so.
_COMPLETE = b"-- PostgreSQL database dump complete"
_BLOCK = 1 << 20


def jobs_or_cpus(jobs: int) -> int:
    """As many as asked for; 0: one for each processor."""
    return jobs or max(1, os.cpu_count() or 1)


def load_archive(server: Server, pg_restore: str, path: Path, database: str, options: Sequence[str]) -> None:
    """Restore an archive into an empty database; ProgramFailed at the first statement that fails."""
    argv = [*(pg_restore, *server.arguments(), f"--dbname={database}", "--exit-on-error"), *options, str(path)]
    programs.run(argv, server.environment(FAST))


def check_script(path: Path) -> None:
    """Refuse a .sql.gz that is cut off, damaged, no dump, or would do more than fill the database it is given."""
    last = b""
    in_data = False
    try:
        with gzip.open(path) as file:
            for number, line in enumerate(file, 1):
                if in_data:
                    in_data = line.rstrip() != b"\\."
                    continue
                if line.startswith(b"\\") and not line.startswith(_ALLOWED_COMMANDS):
                    raise Refused(
                        f"line {number} of {path.name} is a command to psql ({line[:40]!r}), which could reach another "
                        "database or this machine: dump without -C, or remove it"
                    )
                in_data = _COPY.fullmatch(line) is not None
                if line.startswith(b"-- PostgreSQL database dump"):
                    last = line.strip()
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise Refused(f"{path.name} is damaged or cut off ({error}): use another archive") from error
    if last != _COMPLETE:
        raise Refused(f"{path.name} does not end as a complete dump of pg_dump does: use another archive")


def load_script(server: Server, psql: str, path: Path, database: str) -> None:
    """Run a checked script in one transaction: all of it, or nothing."""
    argv = [
        *(psql, *server.arguments(), f"--dbname={database}", "--no-psqlrc", "--quiet", "--output=/dev/null"),
        *("--single-transaction", "--set=ON_ERROR_STOP=1", "--file=-"),
    ]
    with programs.running(argv, server.environment(FAST), stdin=subprocess.PIPE) as program:
        if program.process.stdin is None:
            raise Refused("psql has no standard input")
        try:
            with gzip.open(path) as file:
                while block := file.read(_BLOCK):
                    program.process.stdin.write(block)
            program.process.stdin.close()
        except BrokenPipeError:
            pass  # psql ended early; wait says why
        program.wait()
