"""Follows a run until it has ended; Ctrl-C on a terminal asks whether to cancel it, or to leave it to itself."""

from __future__ import annotations

import contextlib
import signal
import sys
import termios
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import typer

from bazaruto.control.cli.printing import Output, print_json
from bazaruto.control.client_errors import RefusedError, UnreachableError

if TYPE_CHECKING:
    from rich.console import Console

    from bazaruto.control.client import Client, Step
    from bazaruto.control.render import Progress

EXIT_CODES = {
    "succeeded": 0,
    "failed": 1,
    "rejected": 2,
    "canceled": 3,
    "timed_out": 3,
    "interrupted": 4,
}
UNKNOWN = 4
NO_EVENTS = 2**31 - 1  # after the last that there can be


Told: TypeAlias = "Callable[[Console, Mapping[str, Any]], None]"  # says how a run ended, and what it returned


class Detached(BaseException):
    """The watching is to end, the run is not."""


def follow(client: Client, launched: dict[str, Any], output: Output, told: Told | None = None) -> dict[str, Any]:
    """Show a run until it has ended, and its end, in the operation's own way when it has one; the run then. Leaves with
    UNKNOWN when its end was not seen.
    """
    from bazaruto.control import render

    screen = render.console(stderr=output is Output.JSON)
    screen.quiet = output is Output.JSON
    with left_to_itself(launched["id"]), render.Progress(screen) as progress:
        ended = _Watch(client, launched, progress).until_it_ended()
    if output is Output.JSON:
        print_json(ended)
    else:
        (told or render.end_of_run)(screen, ended)
    return ended


def wait(client: Client, run: dict[str, Any], output: Output) -> dict[str, Any]:
    """The run when it has ended, without showing its events."""
    from bazaruto.control import render

    screen = render.console(stderr=True)
    screen.quiet = output is Output.JSON
    with left_to_itself(run["id"]), screen.status("ending its processes …"):
        for step in client.follow(run["id"], NO_EVENTS):
            run = step.run
    return run


@contextlib.contextmanager
def left_to_itself(run: str) -> Iterator[None]:
    """Whoever stops the command, or cannot ask any more, is told that the run goes on and how to come back to it."""
    try:
        with _signals_detach():
            yield
    except (Detached, KeyboardInterrupt, BrokenPipeError):  # the last: whoever read this has stopped reading
        with contextlib.suppress(OSError):  # a terminal that was closed reads nothing
            typer.echo(f"The run goes on: `bazaruto logs -f {run}` follows it.", err=True)
        raise typer.Exit(UNKNOWN) from None
    except (UnreachableError, RefusedError) as error:
        raise UnreachableError(f"{error} The run goes on: `bazaruto show {run}` says how it ended.") from error


class _Watch:
    """One run on one terminal."""

    def __init__(self, client: Client, launched: dict[str, Any], progress: Progress) -> None:
        self._client = client
        self._run = launched
        self._progress = progress
        self._after = 0
        self._wants_cancel = False

    def until_it_ended(self) -> dict[str, Any]:
        while True:
            try:
                for step in self._client.follow(self._run["id"], self._after):
                    self._show(step)
            except KeyboardInterrupt:
                self._decide()
            else:
                return self._run

    def _show(self, step: Step) -> None:
        """Each event once: the next is asked for before this one is shown, since Ctrl-C may come in between."""
        self._run = step.run
        for event in step.events:
            self._after = event["seq"]
            self._progress.show(step.run, [event])
        self._progress.show(step.run, [])

    def _decide(self) -> None:
        """Raises Detached unless somebody at a terminal wants the run canceled."""
        if self._wants_cancel or not (sys.stdin.isatty() and sys.stderr.isatty()):
            raise Detached
        with self._progress.paused():
            if not _cancel_or_detach():
                raise Detached
            self._wants_cancel = True
            try:
                self._run = self._client.cancel(self._run["id"], "Ctrl-C")
            except RefusedError as error:  # it ended meanwhile, which is shown next
                typer.echo(str(error), err=True)


def _cancel_or_detach() -> bool:
    """True for cancel. A second Ctrl-C, or the end of the input, means detach."""
    termios.tcflush(sys.stdin, termios.TCIFLUSH)  # what was typed before the question is no answer to it
    try:
        while True:
            typer.echo("\nCancel the run, or detach? [c/d] ", nl=False, err=True)
            line = sys.stdin.readline()
            answer = line.strip().lower()
            if not line or answer in ("d", "detach"):
                return False
            if answer in ("c", "cancel"):
                return True
    except KeyboardInterrupt:
        typer.echo(err=True)
        return False


@contextlib.contextmanager
def _signals_detach() -> Iterator[None]:
    """SIGTERM and a terminal that is closed end the watching; where they were ignored (nohup), they stay so."""

    def detach(*_: object) -> None:
        raise Detached

    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGHUP)}
    changed = [each for each, handler in before.items() if handler is signal.SIG_DFL]
    for each in changed:
        signal.signal(each, detach)
    try:
        yield
    finally:
        for each in changed:
            signal.signal(each, before[each])
