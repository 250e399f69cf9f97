"""Takes ansible-runner's events: appends each to the run's journal, and keeps what the outcome needs."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from bazaruto.control.engine import journal

LAST_WORDS = 5  # lines of output that explain a run which ended before its first task
ERRORS = ("[ERROR]", "ERROR!")
TOLERABLE = {"failed": "failed hosts", "unreachable": "unreachable hosts"}  # what an operation may declare no failure


class Recorder:
    """ansible-runner's event handler."""

    def __init__(self, book: journal.Journal) -> None:
        self._book = book
        self._items: dict[tuple[str, str], dict[str, Any]] = {}
        self._last_words: list[str] = []
        self.failures: list[dict[str, Any]] = []
        self.statistics: Mapping[str, Any] | None = None
        self.failed_to_record: str | None = None
        self.heard_at = time.monotonic()  # when the last event came
        self.touched: set[str] = set()  # hosts on which something was started

    def __call__(self, data: dict[str, Any]) -> bool:
        """Never raises, since that would stop ansible-runner's reader; False: no file for each event."""
        self.heard_at = time.monotonic()
        try:
            self._take(data)
        except Exception as error:  # noqa: BLE001 - kept, and told in the outcome
            self.failed_to_record = f"{type(error).__name__}: {error}"
        return False

    def _take(self, data: dict[str, Any]) -> None:
        event = journal.event_of(data)
        self._book.append(event)
        self.touched |= journal.touched(data)
        if event["type"] == "playbook_on_stats":
            self.statistics = data.get("event_data") or {}
        elif event["type"] == "runner_item_on_failed" and not event["ignored"]:
            self._items.setdefault((event["host"], event["task"]), event)
        elif event["type"] in ("runner_on_failed", "runner_on_unreachable") and not event["ignored"]:
            self.failures.append(self._items.pop((event["host"], event["task"]), event))
        elif not event["host"] and event["stdout"].strip():
            self._hear(event["stdout"])

    def _hear(self, text: str) -> None:
        """Keep what explains an early end: the lines from an error on, or else the last ones."""
        said = [line.strip() for line in text.splitlines() if line.strip()]
        if any(line.startswith(ERRORS) for line in self._last_words[:1]):
            self._last_words = [*self._last_words, *said][:LAST_WORDS]
        elif errors := [line for line in said if line.startswith(ERRORS)]:
            self._last_words = errors
        else:
            self._last_words = [*self._last_words, *said][-LAST_WORDS:]

    def hosts(self) -> dict[str, dict[str, int]]:
        """The play's statistics turned round: host → how many tasks were ok, changed, failed, …"""
        counts: dict[str, dict[str, int]] = {}
        names = {"dark": "unreachable", "failures": "failed"}
        for kind in ("ok", "changed", "failures", "dark", "skipped", "rescued", "ignored"):
            for host, count in ((self.statistics or {}).get(kind) or {}).items():
                counts.setdefault(host, {})[names.get(kind, kind)] = count
        return counts

    def lost_hosts(self, tolerated: frozenset[str] = frozenset()) -> list[str]:
        """Hosts that failed or could not be reached, but for what is tolerated: "failed", "unreachable"."""
        fatal = set(TOLERABLE) - tolerated
        return sorted(host for host, counts in self.hosts().items() if any(counts.get(kind, 0) for kind in fatal))

    def result(self) -> Any:
        return ((self.statistics or {}).get("artifact_data") or {}).get("result")

    def reason(self, rc: int | None) -> str:
        """One sentence for a run that did not succeed."""
        lost = self.lost_hosts()
        for failure in self.failures:
            if not lost or failure["host"] in lost:
                what = "could not reach" if failure["type"] == "runner_on_unreachable" else "failed on"
                return f'Task "{failure["task"]}" {what} {failure["host"]}: {failure["message"]}'
        if self.statistics is None:
            said = " ".join(self._last_words)
            return f"ansible-playbook ended (code {rc}) before the end of the play: {said or 'it said nothing'}"
        if lost:
            return f"The play failed on {', '.join(lost)}."
        return f"ansible-playbook ended with code {rc}."
