"""Looks for secrets wherever a run may have left them: files, processes, database, answers; in many spellings.

It shares no code with what redacts: each secret has some letters and digits that most spellings leave alone, and these
are looked for, as they are, as base64 at each alignment, and as hexadecimal.
"""

from __future__ import annotations

import base64
import dataclasses
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psycopg

SHORTEST = 8  # letters and digits in a row that are the secret's, and nobody else's


@dataclasses.dataclass(frozen=True)
class Found:
    """A secret where it must not be."""

    where: str
    spelling: str
    around: str


class SecretSearch:
    """Searches for the same secrets in one place after the other."""

    def __init__(self, secrets: Iterable[str]) -> None:
        self._needles = dict(needle for secret in secrets for needle in _needles(secret))
        self._any = re.compile(b"|".join(map(re.escape, self._needles)))

    def data(self, where: str, data: bytes) -> list[Found]:
        """In some bytes, also where lines were broken within a secret."""
        found = []
        for text in (data, re.sub(rb"(?:\\+[rn]|\s|\x1b\[[0-9;]*[A-Za-z])+", b"", data)):
            for match in self._any.finditer(text):
                around = text[max(0, match.start() - 80) : match.end() + 40].decode("utf-8", "replace")
                found.append(Found(where, self._needles[match[0]], around))
        return found

    def tree(self, *roots: Path, but: Iterable[Path] = ()) -> list[Found]:
        """In all files below, their names, and where links lead."""
        left_out = set(but)
        return [found for root in roots for path in _walk(root, left_out) for found in self._file(path)]

    def _file(self, path: Path) -> list[Found]:
        found = self.data(f"the name of {path}", os.fsencode(path))
        try:
            if path.is_symlink():
                found += self.data(f"the link {path}", os.fsencode(path.readlink()))
            elif path.is_file():
                found += self.data(str(path), path.read_bytes())
        except FileNotFoundError:
            return found  # gone meanwhile
        return found

    def processes(self) -> list[Found]:
        """In the command line and the environment of every process."""
        found = []
        for proc in Path("/proc").glob("[0-9]*"):
            for part in ("cmdline", "environ"):
                try:
                    found += self.data(f"{proc}/{part}", (proc / part).read_bytes())
                except (FileNotFoundError, ProcessLookupError, PermissionError):
                    continue
        return found

    def database(self, url: str) -> list[Found]:
        """In every row of every table."""
        found = []
        with psycopg.connect(url) as connection:
            tables = connection.execute(
                "SELECT schemaname, tablename FROM pg_tables WHERE schemaname <> ALL (%s)",
                (["pg_catalog", "information_schema"],),
            ).fetchall()
            for schema, table in tables:
                query = f'SELECT row_to_json(t)::text FROM "{schema}"."{table}" t'
                for (row,) in connection.execute(query).fetchall():
                    found += self.data(f"table {table}", row.encode() + b"\n" + _bytea(row))
        return found

    def answers(self, http: httpx.Client, names: dict[str, str]) -> list[Found]:
        """In what the API answers to each GET it documents; `names` stand for what is in braces."""
        paths: dict[str, Any] = http.get("/openapi.json").json()["paths"]
        found = []
        for path in [path for path, methods in paths.items() if "get" in methods]:
            answer = http.get(path.format(**names))
            assert answer.status_code < 500, (path, answer.text)
            found += self.data(f"GET {path}", answer.content)
            found += self.data(f"GET {path}", str(answer.headers).encode())
        return found


def _needles(secret: str) -> Iterator[tuple[bytes, str]]:
    cores = [core for core in re.findall("[A-Za-z0-9]+", secret) if len(core) >= SHORTEST]
    assert cores, "a secret without letters cannot be searched for"
    for core in cores:
        yield core.encode(), core
        for digits in (core.encode().hex(), core.encode().hex().upper()):
            yield digits.encode(), f"{core} in hexadecimal"
        for before in range(3):
            encoded = base64.b64encode(bytes(before) + core.encode())
            yield encoded[(0, 2, 3)[before] : (before + len(core)) * 8 // 6], f"{core} in base64"


def _bytea(row: str) -> bytes:
    """What the row's byte strings hold."""
    return b"\n".join(bytes.fromhex(digits) for digits in re.findall(r"\\\\x((?:[0-9a-f]{2})+)", row))


def _walk(root: Path, left_out: set[Path]) -> Iterator[Path]:
    if root in left_out:
        return
    yield root
    if root.is_dir() and not root.is_symlink():
        try:
            entries = sorted(root.iterdir())
        except FileNotFoundError:
            return
        for entry in entries:
            yield from _walk(entry, left_out)
