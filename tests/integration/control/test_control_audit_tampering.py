"""What an administrator of the database can do to the audit, and that each of it is found, at the right entry."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from cryptography.fernet import Fernet
from psycopg.rows import dict_row

from bazaruto import database
from bazaruto.config import DatabaseSettings, Settings
from bazaruto.control import serving
from bazaruto.control.audit import chain, repairs, verify
from bazaruto.control.audit.changes import Actor, Audit

ENTRIES = 8
SOMEBODY = Actor("somebody", "abc", "192.0.2.1", "req_1")
Admin = psycopg.Connection[dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Trail:
    """An audit with some entries, and its database's administrator."""

    audit: Audit
    admin: Admin

    def verify(self) -> verify.Verification:
        with self.audit._pool.connection() as holding, self.audit._pool.connection() as reading:
            return verify.verify(self.audit, holding, reading)


@pytest.fixture(scope="module")
def written(postgres_cluster: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trail]:
    name, home = postgres_cluster.create_database(), tmp_path_factory.mktemp("home")
    url = postgres_cluster.url_of(name)
    serving.migrate(Settings(home=home, control_database_url=url))
    with database.open_pool(url, DatabaseSettings(min_connections=1, max_connections=4), "test") as pool:
        audit = Audit(home, pool)
        for number in range(ENTRIES):
            about = {"target": f"thing {number}", "environment": "local", "parameters": {"number": number, "π": 3.14}}
            with audit.change(SOMEBODY, "thing.do", **about):
                pass
        with psycopg.connect(url, row_factory=dict_row, autocommit=True) as admin:
            admin.execute("CREATE TABLE kept AS SELECT *, parameters::text AS words FROM audit_entries")
            admin.execute("CREATE TABLE kept_head AS SELECT * FROM audit_head")
            yield Trail(audit, admin)
    postgres_cluster.drop_database(name)


@pytest.fixture
def trail(written: Trail) -> Iterator[Trail]:
    """It again as it was written, with the triggers out of the way."""
    heads = written.audit.heads.path.read_bytes()
    written.admin.execute("ALTER TABLE audit_entries DISABLE TRIGGER audit_entries_stay")
    yield written
    written.audit.heads.path.write_bytes(heads)
    written.admin.execute("TRUNCATE audit_entries; TRUNCATE audit_head")
    columns = ", ".join(each.name for each in dataclasses.fields(chain.Entry)) + ", mac"
    written.admin.execute(f"INSERT INTO audit_entries ({columns}) SELECT {columns} FROM kept".encode())
    written.admin.execute("INSERT INTO audit_head SELECT * FROM kept_head")


def rows(admin: Admin) -> list[dict[str, Any]]:
    return admin.execute("SELECT *, parameters::text AS words FROM audit_entries ORDER BY seq").fetchall()


def recompute(admin: Admin, first: int, key: bytes, fingerprint: str | None = None) -> None:
    """Chain all from an entry on anew, by the right formula."""
    previous = chain.BEGINNING
    for row in rows(admin):
        mac = bytes(row["mac"])
        if row["seq"] >= first:
            changed = {**row, "parameters": row["words"], "previous": previous, "key": fingerprint or row["key"]}
            mac = chain.mac(key, chain.of_row(changed))
            again = "UPDATE audit_entries SET previous = %s, mac = %s, key = %s WHERE seq = %s"
            admin.execute(again, [previous, mac, changed["key"], row["seq"]])
        previous = mac
    admin.execute("UPDATE audit_head SET seq = (SELECT max(seq) FROM audit_entries), mac = %s", [previous])


def sql(statement: str) -> Callable[[Trail], None]:
    return lambda trail: [trail.admin.execute(each.encode()) for each in statement.split(";")] and None


def with_another_key(trail: Trail) -> None:
    trail.admin.execute("UPDATE audit_entries SET actor = 'nobody' WHERE seq = 4")
    recompute(trail.admin, 4, Fernet.generate_key())


def with_another_key_that_says_so(trail: Trail) -> None:
    key = Fernet.generate_key()
    fingerprint = hashlib.sha256(b"fingerprint of a key\0" + key).hexdigest()[:16]
    recompute(trail.admin, 4, key, fingerprint)


def with_the_stolen_key(trail: Trail) -> None:
    trail.admin.execute("UPDATE audit_entries SET actor = 'nobody' WHERE seq = 4")
    recompute(trail.admin, 4, (trail.audit.keys.directory / "audit.key").read_bytes())


def inserted_with_the_stolen_key(trail: Trail) -> None:
    row = {**rows(trail.admin)[-1], "seq": ENTRIES + 1, "actor": "innocent"}
    columns = [each.name for each in dataclasses.fields(chain.Entry)]
    places = ", ".join("%s::json" if each == "parameters" else "%s" for each in columns)
    values = [row["words"] if each == "parameters" else row[each] for each in columns]
    trail.admin.execute(f"INSERT INTO audit_entries ({', '.join(columns)}, mac) VALUES ({places}, '')".encode(), values)
    recompute(trail.admin, ENTRIES + 1, (trail.audit.keys.directory / "audit.key").read_bytes())


COPY = """INSERT INTO audit_entries SELECT 9, at, node, actor, token, address, request_id, action, target, environment,
operation, parameters, outcome, detail, key, mac, mac FROM audit_entries WHERE seq = 8"""
RENUMBER = "DELETE FROM audit_entries WHERE seq = 4;UPDATE audit_entries SET seq = -seq WHERE seq > 4;"
WAYS: dict[str, tuple[Callable[[Trail], None], int, str]] = {
    "another actor": (sql("UPDATE audit_entries SET actor = 'x' WHERE seq = 4"), 4, "was changed"),
    "another moment": (
        sql("UPDATE audit_entries SET at = at + interval '1 microsecond' WHERE seq = 4"), 4, "was changed"),
    "another outcome": (sql("UPDATE audit_entries SET outcome = 'refused' WHERE seq = 1"), 1, "was changed"),
    "a space in the parameters": (
        sql("UPDATE audit_entries SET parameters = (parameters::text || ' ')::json WHERE seq = 4"), 4, "was changed"),
    "another node": (sql("UPDATE audit_entries SET node = 'other' WHERE seq = 4"), 4, "was changed"),
    "an unknown key": (sql("UPDATE audit_entries SET key = 'ffffffffffffffff' WHERE seq = 4"), 4, "was made with key"),
    "another mac": (sql("UPDATE audit_entries SET mac = sha256(mac) WHERE seq = 4"), 4, "was replaced"),
    "another mac at the end": (
        sql("UPDATE audit_entries SET mac = sha256(mac) WHERE seq = 8;"
            "UPDATE audit_head SET mac = (SELECT mac FROM audit_entries WHERE seq = 8)"), 8, "was replaced"),
    "one deleted": (sql("DELETE FROM audit_entries WHERE seq = 4"), 4, "missing"),
    "the first ones deleted": (sql("DELETE FROM audit_entries WHERE seq < 4"), 1, "entries 1 to 3 are missing"),
    "the last ones deleted": (sql("DELETE FROM audit_entries WHERE seq > 6"), 7, "7 to 8 were deleted"),
    "the last ones deleted, and the head set back": (
        sql("DELETE FROM audit_entries WHERE seq > 6;"
            "UPDATE audit_head SET seq = 6, mac = (SELECT mac FROM audit_entries WHERE seq = 6)"),
        7, "7 to 8 were deleted"),
    "all deleted": (
        sql("TRUNCATE audit_entries;UPDATE audit_head SET seq = 0, mac = decode(repeat('00', 32), 'hex')"),
        1, "1 to 8 were deleted"),
    "two exchanged": (
        sql("UPDATE audit_entries SET seq = -1 WHERE seq = 4;UPDATE audit_entries SET seq = 4 WHERE seq = 5;"
            "UPDATE audit_entries SET seq = 5 WHERE seq = -1"), 4, "it was entered as 5"),
    "one deleted and the rest moved up": (
        sql(RENUMBER + "UPDATE audit_entries SET seq = -seq - 1 WHERE seq < 0"), 4, "it was entered as 5"),
    "one added": (sql(COPY), 9, "is in the place of another"),
    "chained anew with another key": (with_another_key, 4, "was replaced"),
    "chained anew with another key that says so": (with_another_key_that_says_so, 4, "of which nothing is known"),
    "chained anew with the stolen key": (with_the_stolen_key, 4, "was made anew with the key"),
    "added with the stolen key": (inserted_with_the_stolen_key, 9, "was inserted with the key"),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_what_was_done_to_the_record_is_found_and_located(trail: Trail, way: str) -> None:
    assert trail.verify().intact
    tamper, seq, what = WAYS[way]
    # Sequence numbers are positive: whoever owns the table can take that away as well.
    trail.admin.execute("ALTER TABLE audit_entries DROP CONSTRAINT IF EXISTS audit_entries_seq_check")
    tamper(trail)
    found = trail.verify()
    assert not found.intact
    assert found.first is not None
    assert (found.first.seq, what in found.first.what) == (seq, True), found.findings


def test_mistakes_of_our_own_are_refused_by_the_table(trail: Trail) -> None:
    trail.admin.execute("ALTER TABLE audit_entries ENABLE TRIGGER audit_entries_stay")
    for statement in ("UPDATE audit_entries SET actor = 'x'", "DELETE FROM audit_entries", "TRUNCATE audit_entries"):
        with pytest.raises(psycopg.errors.RaiseException, match="never changed or deleted"):
            trail.admin.execute(statement.encode())
    trail.admin.execute("ALTER TABLE audit_entries DISABLE TRIGGER audit_entries_stay")
    assert trail.verify().intact


def test_lines_taken_out_of_the_file_are_found(trail: Trail) -> None:
    path: Path = trail.audit.heads.path
    path.write_text("".join(line for line in path.read_text().splitlines(True) if '"seq": 4,' not in line))
    found = trail.verify()
    assert found.first is not None
    assert (found.first.seq, "its line taken out" in found.first.what) == (4, True)


def test_a_missing_file_is_said(trail: Trail) -> None:
    path: Path = trail.audit.heads.path
    content = path.read_bytes()
    path.unlink()
    found = trail.verify()
    path.write_bytes(content)
    assert not found.intact
    assert "heads.log is missing" in found.problems[0]
    assert found.first is None


def test_what_is_proven_and_what_is_not_is_told(trail: Trail) -> None:
    found = trail.verify()
    assert (found.entries, found.heads_compared, found.findings, found.unproven) == (ENTRIES, ENTRIES, [], [])
    with trail.audit.heads.path.open("a") as file:
        file.write('{"seq": 9, "mac": "00", "at": "2026-01-01T00:00:00Z", "state": "intent"}\n{"seq": 9, "ma')
    found = trail.verify()
    assert found.intact, "neither is a sign of harm"
    assert found.unproven[0] == "1 lines of heads.log cannot be read"
    assert found.unproven[1].startswith("entry 9 was begun and is not there")


def test_entries_that_a_restored_database_lost_can_be_accepted_and_stay_told(trail: Trail) -> None:
    """Last, since the file begins anew."""
    tamper, _, _ = WAYS["the last ones deleted, and the head set back"]
    tamper(trail)
    trail.admin.execute("ALTER TABLE audit_entries ENABLE TRIGGER audit_entries_stay")
    assert not trail.verify().intact
    assert repairs.accept_rotation(trail.audit, SOMEBODY, "the database was restored from before") == 7
    assert rows(trail.admin)[-1]["parameters"] == {"reason": "the database was restored from before", "lost": [7, 8]}
    for _ in range(3):
        trail.audit.refused(SOMEBODY, "thing.do", "no")
    found = trail.verify()
    assert (found.intact, found.entries) == (True, 10), found.findings
    assert found.unproven[0].startswith("entries 7 to 8 were lost with the database, which was accepted")
    trail.admin.execute("ALTER TABLE audit_entries DISABLE TRIGGER audit_entries_stay")
    trail.admin.execute("DELETE FROM audit_entries WHERE seq = 10")
    assert [each.seq for each in trail.verify().findings] == [10], "what came later is no part of that"
