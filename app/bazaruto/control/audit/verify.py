"""Proves the audit: every entry's mac and place, against the key, and against the heads outside of the database."""

from __future__ import annotations

import collections
import dataclasses
import hmac
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from psycopg import Connection
from pydantic import BaseModel, Field

from bazaruto.control.audit import chain, heads
from bazaruto.control.audit.changes import Audit
from bazaruto.control.audit.entries import Moment
from bazaruto.control.keys import KeyName, Keys, KeyUnusable
from bazaruto.database import statements

SQL = statements(__package__, "verify.sql")
AT_ONCE = 2000  # rows
MOST_FINDINGS = 20  # told; one is enough


class Finding(BaseModel):
    """Something that was done to the record."""

    seq: int = Field(description="The entry")
    what: str


class Verification(BaseModel):
    """What the audit is worth."""

    intact: bool = Field(description="Nothing was found, and the key and the file are there")
    entries: int
    since: Moment | None
    heads_compared: int = Field(description="Entries that this control node's file has too")
    first: Finding | None = Field(description="The first entry that is not as it was written")
    findings: list[Finding] = Field(description="The first twenty")
    problems: list[str] = Field(description="What keeps the whole from being proven now")
    unproven: list[str] = Field(description="What cannot be proven from here, and is no sign of harm")


@dataclasses.dataclass(frozen=True)
class Heads:
    """What the file outside of the database knows."""

    exists: bool
    committed: Mapping[int, list[bytes]]
    intended: Mapping[int, list[bytes]]
    places: Mapping[bytes, int]  # mac → its entry
    broken: int  # lines that cannot be read

    def has(self, seq: int, mac: bytes) -> bool:
        return mac in self.committed.get(seq, ()) or mac in self.intended.get(seq, ())


@dataclasses.dataclass(frozen=True)
class Known:
    """The keys that are here, and which was in use from which entry on, as far as an entry proves it."""

    materials: Mapping[str, bytes]
    epochs: list[tuple[int, str]]
    in_use: str | None  # None: it is lost

    def at(self, seq: int) -> str | None:
        """The key that was in use for an entry; None when nothing says so."""
        found = [fingerprint for first, fingerprint in self.epochs if first <= seq]
        return found[-1] if found else None


def verify(audit: Audit, holding: Connection[Any], reading: Connection[Any]) -> Verification:
    """Go through all entries as they are at this moment; writers are held only until that moment is fixed."""
    with holding.transaction():
        holding.execute(SQL.hold_head)
        reading.execute(SQL.one_moment)
        head = reading.execute(SQL.head).fetchone() or {}
        sizes = {path: path.stat().st_size for path in heads.files(audit.heads.path.parent)}
    in_file = _heads(audit.heads.path, sizes)
    problems: list[str] = []
    try:
        audit.keys.matching(KeyName.AUDIT, head["key"])
        in_use = head["key"]
    except KeyUnusable as error:
        problems.append(str(error))
        in_use = None
    turns = reading.execute(SQL.turning_points).fetchall()
    known = _known(audit.keys, in_use, turns)
    proof = _Proof(audit.node, known, in_file, _accepted(turns, known, audit.node))
    with reading.cursor(name="audit") as cursor:
        cursor.itersize = AT_ONCE
        cursor.execute(SQL.all_entries)
        for row in cursor:
            proof.look(row)
    proof.end(head["seq"], bytes(head["mac"]))
    if not in_file.exists and proof.of_node[audit.node]:
        problems.append(
            f"{audit.heads.path} is missing: the last entries could have been deleted, and nothing would show it."
        )
    return proof.result(problems)


@dataclasses.dataclass(frozen=True)
class _Accepted:
    """What somebody has answered for: files that were rotated away, and entries that a lost database took along."""

    rotated_before: int = 0  # entries of this node before this one may have no line any more
    lost: tuple[range, ...] = ()


class _Proof:
    """One passage through the chain."""

    def __init__(self, node: str, known: Known, heads: Heads, accepted: _Accepted) -> None:
        self._node = node
        self._known = known
        self._heads = heads
        self._accepted = accepted
        self._expected = 1
        self._previous = chain.BEGINNING
        self._key: str | None = None
        self._since: Any = None
        self._compared = self._without_key = self._rotated = self._entries = 0
        self.of_node: collections.Counter[str] = collections.Counter()
        self._findings: list[Finding] = []

    def look(self, row: Mapping[str, Any]) -> None:
        """The next entry."""
        entry, mac = chain.of_row(row), bytes(row["mac"])
        if entry.seq != self._expected:
            last = entry.seq - 1
            gap = f"entry {last} is" if last == self._expected else f"entries {self._expected} to {last} are"
            self._find(self._expected, f"{gap} missing: deleted, or moved elsewhere")
        if wrong := self._wrong(entry, mac):
            self._find(entry.seq, wrong)
        self._entries += 1
        self._since = self._since or entry.at
        self.of_node[entry.node] += 1
        self._expected, self._previous, self._key = entry.seq + 1, mac, entry.key

    def end(self, seq: int, mac: bytes) -> None:
        """After the last: what the file and the head know beyond it."""
        last = self._expected - 1
        beyond = sorted(each for each in self._heads.committed if each > last)
        missing = [each for each in beyond if not self._is_given_up(each)]
        if missing:
            whole = f"{self._expected} to {missing[-1]}" if missing[-1] > self._expected else f"{self._expected}"
            self._find(self._expected, f"is missing: heads.log has entries until {missing[-1]}; {whole} were deleted")
        elif seq > last:
            self._find(self._expected, f"is missing: the chain had {seq} entries, and the last ones were deleted")
        elif (seq, mac) != (last, self._previous):
            self._find(max(1, last), "is not where the chain ends: entries were added, or exchanged, behind its back")
        if self._key is not None and self._known.in_use not in (None, self._key):
            self._find(last, f"was made with key {self._key}, while {self._known.in_use} was in use")

    def result(self, problems: list[str]) -> Verification:
        findings = sorted(self._findings, key=lambda finding: finding.seq)[:MOST_FINDINGS]
        return Verification(
            intact=not findings and not problems,
            entries=self._entries,
            since=self._since,
            heads_compared=self._compared,
            first=findings[0] if findings else None,
            findings=findings,
            problems=problems,
            unproven=list(self._unproven()),
        )

    def _wrong(self, entry: chain.Entry, mac: bytes) -> str | None:
        """What is wrong with an entry, the likeliest cause first."""
        in_file = self._heads.has(entry.seq, mac)
        if problem := self._wrong_key(entry):
            return problem
        material = self._known.materials.get(entry.key)
        if material is None:
            self._without_key += 1
        elif not hmac.compare_digest(chain.mac(material, entry), mac):
            return self._why_wrong(entry, mac)
        if entry.previous != self._previous:
            return "does not follow the entry before it: one of both was exchanged, moved or made anew"
        committed = self._heads.committed.get(entry.seq)
        if in_file:
            self._compared += 1
        elif committed and not self._is_given_up(entry.seq):
            return "was made anew with the key: heads.log has another mac for it"
        elif entry.node == self._node and self._heads.exists:
            if entry.seq >= self._accepted.rotated_before:
                return "was inserted with the key, or its line taken out of heads.log: that does not know it"
            self._rotated += 1
        return None

    def _wrong_key(self, entry: chain.Entry) -> str | None:
        in_use = self._known.at(entry.seq)
        if in_use is not None:
            return None if entry.key == in_use else f"was made with key {entry.key}, while {in_use} was in use"
        if entry.key not in self._known.materials:
            if self._known.in_use is None:
                return None  # the key is lost, which is said once
            return f"was made with key {entry.key}, of which nothing is known"
        replaces = (entry.action, entry.target, entry.outcome) == ("key.replace", KeyName.AUDIT, "accepted")
        if self._key not in (None, entry.key) and not replaces:
            return f"was made with another key ({entry.key}) than the entry before it, and nobody had replaced that"
        return None

    def _why_wrong(self, entry: chain.Entry, mac: bytes) -> str:
        if self._heads.has(entry.seq, mac):
            return "was changed: what it says is not what was entered"
        if (place := self._heads.places.get(mac)) is not None:
            return f"is in the place of another: it was entered as {place}"
        if entry.seq in self._heads.committed:
            return "was replaced: neither the key nor heads.log know it"
        return "was inserted or changed: its mac was not made with the key"

    def _is_given_up(self, seq: int) -> bool:
        return any(seq in lost for lost in self._accepted.lost)

    def _find(self, seq: int, what: str) -> None:
        if len(self._findings) < MOST_FINDINGS:
            self._findings.append(Finding(seq=seq, what=what))

    def _unproven(self) -> Iterator[str]:
        others = {node: count for node, count in self.of_node.items() if node != self._node}
        for node, count in sorted(others.items()):
            yield f"{count} entries were written by {node}: whether its last ones are there, only its file can prove"
        if self._rotated:
            yield f"{self._rotated} entries have no line any more: their file was rotated away, which was accepted"
        for lost in self._accepted.lost:
            yield f"entries {lost[0]} to {lost[-1]} were lost with the database, which was accepted"
        if self._without_key:
            yield f"{self._without_key} entries were made with a key that is lost: only order and heads are compared"
        if self._heads.broken:
            yield f"{self._heads.broken} lines of heads.log cannot be read"
        for seq, macs in self._heads.intended.items():
            if macs and seq not in self._heads.committed and seq >= self._expected:
                yield (
                    f"entry {seq} was begun and is not there: its change was not committed, or that and the entry were"
                    " taken back before the next one was written"
                )


def _heads(path: Path, sizes: Mapping[Path, int]) -> Heads:
    committed, intended = collections.defaultdict(list), collections.defaultdict(list)
    places: dict[bytes, int] = {}
    broken = 0
    for file, size in sizes.items():
        for line in heads.lines(file, size):
            if line is None:
                broken += 1
                continue
            places[line.mac] = line.seq
            if line.state == "head":
                committed[line.seq].append(line.mac)
            elif line.state == "intent":
                intended[line.seq].append(line.mac)
            elif line.mac in intended[line.seq]:
                intended[line.seq].remove(line.mac)
    return Heads(path.is_file(), committed, intended, places, broken)


def _known(keys: Keys, in_use: str | None, turns: list[Mapping[str, Any]]) -> Known:
    """The newest replacement that its own key proves tells all keys before it; the lost ones too."""
    materials = {key.fingerprint: key.material for key in keys.kept(KeyName.AUDIT)}
    if in_use is not None:
        materials[in_use] = keys.current(KeyName.AUDIT).material
    for row in reversed(turns):
        if (row["action"], row["target"]) == ("key.replace", KeyName.AUDIT) and _proven(row, materials):
            told = json.loads(row["parameters"])["keys"]
            return Known(materials, [(each["first"], each["fingerprint"]) for each in told], in_use)
    return Known(materials, [], in_use)


def _accepted(turns: list[Mapping[str, Any]], known: Known, node: str) -> _Accepted:
    rotations = [row for row in turns if row["action"] == "audit.rotation" and row["node"] == node]
    accepted = _Accepted()
    for row in rotations:
        if _proven(row, known.materials):
            told = json.loads(row["parameters"])["lost"]
            lost = (*accepted.lost, *((range(told[0], told[1] + 1),) if told else ()))
            accepted = _Accepted(row["seq"], lost)
    return accepted


def _proven(row: Mapping[str, Any], materials: Mapping[str, bytes]) -> bool:
    material = materials.get(row["key"])
    return material is not None and hmac.compare_digest(chain.mac(material, chain.of_row(row)), bytes(row["mac"]))
