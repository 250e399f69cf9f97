"""Replace the live database: by a restored backup, or back by the one an earlier restore replaced."""

from __future__ import annotations

import concurrent.futures
import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ansible.module_utils.bazaruto_backup import contents, programs, statements, storage
from ansible.module_utils.bazaruto_backup.connection import Server, hold_lock, one, server_version
from ansible.module_utils.bazaruto_backup.refusal import Refused
from ansible.module_utils.bazaruto_restore import loading, proof, swap

if TYPE_CHECKING:
    import psycopg


class Restore:
    """One restore on its way: `check` touches nothing, `run` does the work."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options
        self.names = swap.Names(options["database"], options["run"])
        self.server = Server(options["connection"], f"bazaruto restore {options['run']}")
        self.path = Path(options["path"])
        self.jobs = loading.jobs_or_cpus(options["jobs"])
        self.imported = self.path.name.endswith(".sql.gz")
        self.proof = proof.Proof()
        self.manifest: dict[str, Any] = {}
        self.properties: dict[str, Any] = {}
        self.live_exists = True
        self.held_jobs: int | None = None

    @contextlib.contextmanager
    def admitted(self) -> Iterator[psycopg.Connection[Any]]:
        """A session that is the only restore in the cluster, while the backup's file cannot be let go."""
        storage.usable(str(self.path.parent), writable=False)
        with self.server.connect(swap.MAINTENANCE_DATABASE) as session:
            hold_lock(session, swap.RESTORE_KEY, "another restore")
            with storage.opened_for_use(self.path):
                yield session

    def check(self, session: psycopg.Connection[Any]) -> list[str]:
        """Refuse what cannot work, before anything is touched; returns what killed restores left."""
        self.programs = self.server.programs(["pg_restore", "psql", "vacuumdb"], server_version(session)[1])
        try:
            self._check_file()
        except proof.Faulty as error:
            raise Refused(f"{self.path.name} is not restored: {error}") from error
        live = contents.database_properties(session, self.names.live)
        self.live_exists = live is not None
        self.properties = live or self.manifest.get("properties") or {}
        if not self.properties:
            raise Refused(
                f"there is no database {self.names.live} whose owner and encoding an import could take: create it"
            )
        if self.live_exists:
            swap.refuse_prepared_transactions(session, self.names.live)
        self._refuse_missing_roles(session)
        self._refuse_small_disk(session)
        for name in (self.names.new, self.names.kept):
            if contents.database_properties(session, name):
                raise Refused(f"the database {name} is there already: this run was done before; use another run id")
        return swap.unfinished(session, self.names.live)

    def run(self, session: psycopg.Connection[Any], left: list[str]) -> dict[str, Any]:
        """Copy, prove, swap; until the swap the live database only stops taking writes."""
        dropped = removable(swap.previous(session, self.names.live), self.options["keep_previous"])
        for name in left:
            swap.drop(session, name)
        hold = None
        if self.live_exists and not self.options["keep_writes"]:
            hold = swap.WriteHold(self.server, self.names.live, self.options["hold_timeout"])
        try:
            with self._dropping(dropped):
                self._copy(session)
            outage = self._swap(session, hold)
        except BaseException:
            swap.drop(session, self.names.new)
            raise
        finally:
            if hold:
                hold.release()
        return {
            "swap_seconds": round(outage, 3),
            "kept": self.names.kept if self.live_exists else None,
            "dropped": dropped,
        }

    @contextlib.contextmanager
    def _dropping(self, names: list[str]) -> Iterator[None]:
        """Drop databases in a session of its own while the block runs; what hinders that is raised after it."""

        def drop() -> None:
            with self.server.connect(swap.MAINTENANCE_DATABASE) as session:
                for name in names:
                    swap.drop(session, name)

        with concurrent.futures.ThreadPoolExecutor(max_workers=1) as aside:
            dropping = aside.submit(drop)
            yield
            dropping.result()

    def _check_file(self) -> None:
        if self.imported:
            loading.check_script(self.path)
            self.proof.passed("checksum", "the archive is whole, and its script complete", "checksum")
            return
        self.manifest = proof.check_file(self.proof, self.path.parent, self.path.stem)
        proof.check_list(self.proof, self.path, self.manifest, self.programs["pg_restore"], self.server)

    def _refuse_missing_roles(self, session: psycopg.Connection[Any]) -> None:
        missing = [name for (name,) in session.execute(statements.MISSING_ROLES, [self.manifest.get("roles", [])])]
        if missing:
            raise Refused(
                f"the backup needs roles that this cluster lacks ({', '.join(missing)}): create them, or run "
                f"`psql -d postgres -f {self.path.with_suffix('.roles.sql')}`"
            )

    def _refuse_small_disk(self, session: psycopg.Connection[Any]) -> None:
        """The new database beside the old one; a data directory on another host cannot be looked at from here."""
        needed = self.manifest.get("database_bytes") or 0
        if self.live_exists and not needed:
            needed = one(session, statements.DATABASE_SIZE, self.names.live)[0]
        data = Path(one(session, statements.DATA_DIRECTORY)[0])
        with contextlib.suppress(FileNotFoundError):
            storage.refuse_without_space(data, needed + storage.RESERVE_BYTES, f"the restore of {self.path.name}")

    def _copy(self, session: psycopg.Connection[Any]) -> None:
        contents.create_database(session, self.names.new, self.properties)
        failure = None
        try:
            if self.imported:
                loading.load_script(self.server, self.programs["psql"], self.path, self.names.new)
            else:
                how = [f"--jobs={self.jobs}", *(["--statistics"] if self._has_statistics() else [])]
                loading.load_archive(self.server, self.programs["pg_restore"], self.path, self.names.new, how)
        except programs.ProgramFailed as error:
            failure = error
        try:
            proof.restored(self.proof, failure, self.path)
            with self.server.connect(self.names.new) as restored:
                if self.imported:
                    self.proof.rows = proof.count_rows(restored)
                    proof.check_invariants(self.proof, restored, self.options["invariants"])
                    self.proof.level = "restored"  # no manifest says what it should hold
                else:
                    proof.check_contents(self.proof, restored, self.path, self.manifest, self.options["invariants"])
        except proof.Faulty as error:
            raise Refused(f"{self.path.name} was not put in place, {self.names.live} is as it was: {error}") from error
        if not self._has_statistics():
            self._analyze()
        contents.apply_properties(session, self.names.new, self.properties)

    def _has_statistics(self) -> bool:
        return bool(self.manifest.get("statistics"))

    def _analyze(self) -> None:
        """pg_dump has statistics since 18: without them the first queries after the swap would be slow."""
        argv = [
            *(self.programs["vacuumdb"], *self.server.arguments(), f"--dbname={self.names.new}"),
            *("--analyze-only", "--quiet", f"--jobs={self.jobs}"),
        ]
        try:
            programs.run(argv, self.server.environment())
        except programs.ProgramFailed as error:
            raise Refused(f"the restored database could not be analyzed: {error}") from error

    def _swap(self, session: psycopg.Connection[Any], hold: swap.WriteHold | None) -> float:
        if self.options["hold_jobs"]:
            self.held_jobs = hold_jobs(self.server, self.names.new)
        if not self.live_exists:
            swap.rename(session, self.names.new, self.names.live)
            return 0.0
        if hold:
            hold.refuse_lost()
        swap.refuse_prepared_transactions(session, self.names.live)
        return swap.swap(self.server, self.names.live, self.names.new, self.names.kept, hold)


def removable(previous: list[str], keep: int) -> list[str]:
    """Of the databases that earlier restores have replaced (newest first), those beyond the ones to keep.

    They go while the copy begins: dropping a database afterwards would first write all of the copy's pages to the disk
    (2.5 s for 440 MB), and waiting for it beforehand took 0.4 s of a restore of 800 MB. The database that this restore
    replaces is not among them.
    """
    return previous[keep:]


def hold_jobs(server: Server, database: str) -> int | None:
    """Hold the database's job queue; None when it has none that can be held."""
    with server.connect(database) as session:
        if not one(session, statements.HAS_HOLD_JOBS)[0]:
            return None
        one(session, statements.BECOME_OWNER)
        return int(one(session, statements.HOLD_JOBS)[0])


def undo(options: dict[str, Any], *, check_mode: bool) -> dict[str, Any]:
    """Swap the live database with the one that was replaced last; doing it twice is doing nothing."""
    names = swap.Names(options["database"], options["run"])
    server = Server(options["connection"], f"bazaruto restore_undo {options['run']}")
    started = time.monotonic()
    with server.connect(swap.MAINTENANCE_DATABASE) as session:
        hold_lock(session, swap.RESTORE_KEY, "another restore")
        previous = swap.previous(session, names.live)
        if not previous:
            raise Refused(f"there is nothing to undo: no database {names.live}_before_… is kept in this cluster")
        live_exists = contents.database_properties(session, names.live) is not None
        if live_exists:
            swap.refuse_prepared_transactions(session, names.live)
        answer = {"restored": previous[0], "kept": names.kept if live_exists else None, "previous": previous}
        if check_mode:
            return answer
        hold = swap.WriteHold(server, names.live, options["hold_timeout"]) if live_exists else None
        try:
            held = hold_jobs(server, previous[0]) if options["hold_jobs"] else None
            if live_exists:
                outage = swap.swap(server, names.live, previous[0], names.kept, hold)
            else:
                outage = 0.0
                swap.rename(session, previous[0], names.live)
        finally:
            if hold:
                hold.release()
        previous = swap.previous(session, names.live)
    seconds = round(time.monotonic() - started, 3)
    return {**answer, "held_jobs": held, "swap_seconds": round(outage, 3), "seconds": seconds, "previous": previous}
