"""What Ansible printed in a run, as it stands in the run's directory on the node it ran on."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

AT_ONCE_BYTES = 1024 * 1024  # up to here it is given in one piece; what is longer holds a slot
PART_BYTES = 64 * 1024


class NotHereError(Exception):
    """This node has no output of the run; the text says why."""


@dataclasses.dataclass(frozen=True)
class Output:
    """A run's output from an offset up to where it had come when it was asked for."""

    file: BinaryIO  # open, so that it can be read to its end although the run is removed meanwhile
    offset: int
    length: int

    @property
    def short(self) -> bool:
        return self.length <= AT_ONCE_BYTES

    def parts(self) -> Iterator[bytes]:
        """All of it, in bounded memory."""
        left = self.length
        with self.file as file:
            file.seek(self.offset)
            while left and (part := file.read(min(PART_BYTES, left))):
                left -= len(part)
                yield part


def find(path: Path, offset: int, ran_on: str | None, home: Path) -> Output:
    """The output from this byte on; raises NotHereError. `ran_on` is the run's node, once it has one."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        raise NotHereError(_why(ran_on, this_node(home))) from None
    size = os.fstat(file.fileno()).st_size
    offset = min(offset, size)
    return Output(file, offset, size - offset)


def this_node(home: Path) -> str:
    """The name that workers of this home gave it."""
    try:
        return (home / "control" / "node").read_text(encoding="utf-8")
    except FileNotFoundError:
        return "a node without a worker"


def _why(ran_on: str | None, here: str) -> str:
    if ran_on is None:
        return "The run was not started, so that it has printed nothing."
    if ran_on != here:
        return f"What the run printed is on the control node it ran on: ask {ran_on}; this is {here}."
    return "There is no output of the run: it has not begun to print, or its output was let go by retention."
