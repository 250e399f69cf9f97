"""Retries: the launch that repeats a run, which is checked, and approved where that is needed, as any other."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from bazaruto.control import runs
from bazaruto.control.requests import RefusedRequest, RetryRequest


def once_more(before: runs.Run, secret: Collection[str], wanted: RetryRequest) -> dict[str, Any]:
    """The launch that repeats a run on the hosts that failed. Raises ClashError when there is nothing to retry, and
    RefusedRequest when a `secret` parameter that was given then is not given again.

    Without the play's statistics nobody knows which hosts failed: then it is repeated on all it was meant for.
    """
    if not before.status.terminal:
        raise runs.ClashError("The run has not ended: cancel it, or wait for its end.")
    if before.status is runs.RunStatus.SUCCEEDED:
        raise runs.ClashError("The run succeeded: there is nothing to retry.")
    failed = [
        host for host, counts in (before.hosts or {}).items() if counts.get("failed") or counts.get("unreachable")
    ]
    kept = {name: value for name, value in before.parameters.items() if name not in secret}
    forgotten = sorted(before.parameters.keys() & set(secret) - wanted.parameters.keys())
    if forgotten:
        raise RefusedRequest(
            [(f"parameters.{name}", "is secret and was not kept: give it again") for name in forgotten]
        )
    return {
        "operation": before.operation,
        "environment": before.environment,
        "parameters": {**kept, **wanted.parameters},
        "check": before.check,
        "diff": before.diff,
        "limit": ",".join(failed) or before.limit,
        "reason": wanted.reason,
        "confirm": wanted.confirm,
    }
