"""How a run is judged: by its supervisor, which saw it, or by whoever is left when the supervisor is not."""

from __future__ import annotations

import dataclasses

from bazaruto.control.engine import journal, remote, rundir
from bazaruto.control.engine.recorder import Recorder

RC_BITS = {"failed": 2, "unreachable": 4}  # of ansible-playbook's exit code, each for a kind of lost host


@dataclasses.dataclass(frozen=True)
class Ending:
    """Why a supervisor ended its playbook before that ended by itself."""

    status: str
    sentence: str


def judge(
    spec: rundir.Spec, seen: Recorder, ending: Ending | None, rc: int | None, trouble: str | None
) -> tuple[str, str | None]:
    """The run's status and the sentence for it. Success needs code 0, the statistics, some host and no lost one.

    A play that came to its end has ended as it did, whoever wanted to end it meanwhile.
    """
    tolerated = frozenset(spec.tolerates)
    fine = rc is not None and not rc & ~sum(RC_BITS[kind] for kind in tolerated)
    if fine and seen.statistics is not None and not seen.lost_hosts(tolerated):
        return ("succeeded", trouble) if seen.hosts() else ("failed", _nobody(spec))
    if ending:
        return ending.status, ending.sentence
    if rc is None and trouble:
        return "failed", trouble
    if rc is None and seen.statistics is None and trouble:
        return "failed", trouble  # it was never played
    return "failed", " ".join(filter(None, [seen.reason(rc), trouble]))


def _nobody(spec: rundir.Spec) -> str:
    """Ansible takes a play without hosts for a success; a backup of nothing is none."""
    chosen = f"none of its hosts is in --limit {spec.limit}" if spec.limit else "its inventory has no host for it"
    return f"Nothing was done: {chosen}. `ansible-inventory -i inventories/{spec.environment} --graph` shows the hosts."


def unfinished(directory: rundir.RunDirectory, who: str, elsewhere: remote.Ended, past_limit: bool) -> rundir.Outcome:
    """The outcome of a run whose supervisor left none; `who` says who died, and what was done about the rest.

    What was due before counts: a cancellation, or the time limit, if its supervisor still lived past that.
    Raises ValueError for an unreadable record.
    """
    now = journal.utc()
    spec = directory.spec() if directory.spec_file.exists() else None
    seconds = spec.seconds_since_claim() if spec else None
    cancellation = directory.cancellation()
    if cancellation:
        status, sentence = "canceled", f"{cancellation.sentence} {who}"
    elif spec and past_limit:
        status, sentence = "timed_out", f"It ran past its time limit of {spec.timeout_seconds:g} s. {who}"
    else:
        status, sentence = "interrupted", f"{who} Check the hosts before it is launched again."
    return rundir.Outcome(
        status=status,
        started_at=(spec and spec.started_at) or now,
        finished_at=now,
        events=journal.count_whole(directory.events_file),
        error=" ".join(filter(None, [sentence, elsewhere.sentence])),
        seconds=seconds,
        left_running=elsewhere.hosts_left,
    )
