"""Ends what is left of a run whose guard and supervisor were both killed, and writes its outcome for them.

Its processes are found by the marker in their environment, and by what the guard noted while it lived, each told
apart from a later process with the same number.
"""

from __future__ import annotations

import json
from pathlib import Path

from bazaruto import processes
from bazaruto.control.engine import ending, remote, rundir, scopes, verdict
from bazaruto.control.engine.play import end_masters
from bazaruto.processes import ProcessIdentity

MARKER = "BAZARUTO_RUN_ID"


def bury(directory: rundir.RunDirectory, past_limit: bool = False) -> rundir.Outcome:
    """End everything of a run that nobody guards any more, then say so in its outcome.

    `past_limit`: they were killed because they let the run's time limit pass. Time that went by since says nothing.

    Raises OSError while the disk has no room for that, ValueError when the run's record cannot be read.
    """
    run = directory.path.name
    ended = ending.end_all(lambda: remains(directory))
    end_masters(run)
    what = f"{ended} processes that they left were ended" if ended else "no process of it was left"
    known = (
        "What it had done until then is in its events"
        if directory.events_file.exists()
        else "Its directory holds no event"
    )
    who = f"Its guard and its supervisor died without an outcome; {what}. {known}."
    outcome = verdict.unfinished(directory, who, remote.end_work(directory), past_limit)
    directory.write_outcome(outcome)
    return outcome


def remains(directory: rundir.RunDirectory) -> list[ProcessIdentity]:
    """The living processes of a run: marked ones, those in its scope, noted ones, and all that descend from them."""
    run = directory.path.name
    marked = [pid for pid in processes.everyone() if processes.environment_of(pid).get(MARKER) == run]
    found = {identity for identity in map(processes.identify, [*marked, *scopes.members(run)]) if identity}
    noted = [*noted_by_guard(directory.processes_file), *recorded(directory)]
    found |= {identity for identity in noted if processes.is_alive(identity)}
    found |= {below for above in list(found) for below in processes.family(above.pid)}
    return sorted(found)


def recorded(directory: rundir.RunDirectory) -> list[ProcessIdentity]:
    """Guard and supervisor, as they wrote themselves down."""
    files = (directory.guard_file, directory.supervisor_file)
    return [identity for identity in map(processes.read_pid_file, files) if identity]


def noted_by_guard(path: Path) -> list[ProcessIdentity]:
    """Whom the guard last saw below it."""
    try:
        return [ProcessIdentity(**values) for values in json.loads(path.read_text(encoding="utf-8"))]
    except FileNotFoundError:
        return []  # it was killed before it looked for the first time
