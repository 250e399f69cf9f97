"""What the shell offers at TAB: from the content where it says it, else from a control plane that answers at once.

Whatever cannot be found out is not offered; a message would land in the middle of the line that is being typed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import typer

from bazaruto import config
from bazaruto.control.client_errors import RefusedError, UnreachableError

if TYPE_CHECKING:
    from bazaruto.control.catalog import Catalogue

ANSWER_SECONDS = 0.5  # for the control plane; a person waits with a finger on the key
RECENT = 30  # runs that are offered
LIVING = ("queued", "waiting", "running")
STATUSES = (*LIVING, "succeeded", "failed", "canceled", "timed_out", "interrupted", "rejected")
ROLES = ("viewer", "operator", "approver", "admin")

Offer = tuple[str, str]  # the word, and what is said beside it


def _offered(find: Callable[[typer.Context], Iterator[Offer]]) -> Callable[[typer.Context, str], list[Offer]]:
    """What there is that begins as the word does; nothing when it cannot be found out."""

    def offer(ctx: typer.Context, incomplete: str) -> list[Offer]:
        from bazaruto.control.catalog import CatalogueError

        try:
            return [each for each in find(ctx) if each[0].startswith(incomplete)]
        except (config.SettingsError, CatalogueError, UnreachableError, RefusedError, OSError, ValueError):
            return []

    return offer


@_offered
def operations(_: typer.Context) -> Iterator[Offer]:
    for operation in _catalogue().operations.values():
        yield operation.name, operation.summary


@_offered
def environments(_: typer.Context) -> Iterator[Offer]:
    for name in _catalogue().environments():
        yield name, ""


@_offered
def parameters(ctx: typer.Context) -> Iterator[Offer]:
    """Those of the operation that stands before it; values too where there are few, a secret without the sign."""
    named = ctx.params.get("operation") or next(iter(ctx.args), "")  # typer stops at a `-p` that has no value yet
    operation = _catalogue().operations.get(named)
    given = {str(word).partition("=")[0] for word in ctx.params.get("parameter") or ()}
    for name, parameter in operation.parameters.items() if operation else ():
        choices = ("true", "false") if parameter.type == "bool" else parameter.choices
        if name in given:
            continue
        if parameter.secret:
            yield name, parameter.description
        elif choices and parameter.type != "list":
            yield from ((f"{name}={choice}", parameter.description) for choice in choices)
        else:
            yield f"{name}=", parameter.description


@_offered
def roles(_: typer.Context) -> Iterator[Offer]:
    for role in ROLES:
        yield role, ""


@_offered
def keys(_: typer.Context) -> Iterator[Offer]:
    yield "sealing.key", "seals the variables of runs that wait"
    yield "audit.key", "chains the entries of the audit"


@_offered
def statuses(_: typer.Context) -> Iterator[Offer]:
    for status in STATUSES:
        yield status, ""


@_offered
def runs(_: typer.Context) -> Iterator[Offer]:
    for run in _recent():
        yield _as_offer(run)


@_offered
def runs_to_cancel(_: typer.Context) -> Iterator[Offer]:
    for run in _recent():
        if run.get("status", "running") in LIVING:
            yield _as_offer(run)


@_offered
def runs_to_approve(_: typer.Context) -> Iterator[Offer]:
    for run in _recent():
        if run.get("approval", "pending") == "pending":
            yield _as_offer(run)


@_offered
def runs_to_retry(_: typer.Context) -> Iterator[Offer]:
    for run in _recent():
        if run.get("status", "failed") not in (*LIVING, "succeeded"):
            yield _as_offer(run)


@_offered
def runs_to_waive(_: typer.Context) -> Iterator[Offer]:
    for run in _recent():
        if run.get("left_running", True) and not run.get("waived_at"):
            yield _as_offer(run)


def _as_offer(run: dict[str, Any]) -> Offer:
    return run["id"], " ".join(str(run[name]) for name in ("operation", "environment", "status") if name in run)


def _recent() -> list[dict[str, Any]]:
    """Runs as the control plane has them, newest first; when it does not answer, those that left a directory here."""
    from bazaruto.control.client import connect

    settings = config.load()
    try:
        return connect(settings, ANSWER_SECONDS).items("/api/v1/runs", RECENT)
    except UnreachableError:
        directories = sorted((settings.home / "control" / "runs").iterdir(), reverse=True)
        return [{"id": each.name} for each in directories[:RECENT]]


def _catalogue() -> Catalogue:
    from bazaruto.control import catalog

    return catalog.load(config.load().content_directory)
