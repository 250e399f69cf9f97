"""The whole API against its own document, by schemathesis: as every role, with what is right, wrong and odd."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .conftest import ControlPlane, started

# Of each role: the phases, and how many examples an endpoint is given in fuzzing. "coverage" tries the boundaries of
# each field, which are the same for every role.
ROLES = {
    "viewer": ("fuzzing", 6),
    "operator": ("fuzzing", 6),
    "approver": ("fuzzing", 6),
    "admin": ("coverage,fuzzing", 8),
}
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "unsupported_method",
    "ignored_auth",
)


@pytest.fixture
def plane(postgres_cluster: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A control plane with some past, for each role: the wrong tokens of all together would be too many for one.

    Its worker rests, since what is launched here is not meant.
    """
    for each in started(postgres_cluster, tmp_path_factory.mktemp("schema"), BAZARUTO_CONTROL_REQUESTS_PER_SECOND="0"):
        for operation in ("say", "fail"):
            each.finished(each.launch(operation)["id"])
        each.stop("worker")
        yield each


@pytest.mark.parametrize("role", ROLES)
def test_every_answer_is_one_that_the_document_promises(plane: ControlPlane, role: str, tmp_path: Path) -> None:
    phases, examples = ROLES[role]
    document = _with_what_there_is(plane, plane.http.get("/openapi.json").json())
    (tmp_path / "openapi.json").write_text(json.dumps(document), encoding="utf-8")
    done = subprocess.run(
        [
            *(Path(sys.executable).with_name("schemathesis"), "run", "openapi.json"),
            *("--url", f"http://127.0.0.1:{plane.port}", "--header", f"Authorization: Bearer {_token(plane, role)}"),
            *("--checks", ",".join(CHECKS), "--phases", phases, "--continue-on-failure"),
            *("--max-examples", str(examples), "--seed", "1", "--generation-deterministic"),
            *("--suppress-health-check", "all", "--no-shrink", "--no-color", "--request-timeout", "20"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    if role == "admin":  # every endpoint was reached, beyond 403 and 404
        assert "Authentication failed" not in done.stdout, done.stdout
        assert "Missing test data" not in done.stdout, done.stdout


def _with_what_there_is(plane: ControlPlane, document: dict[str, Any]) -> dict[str, Any]:
    """The document, without its words on what is no request at all, and with names and ids that there are."""
    document = copy.deepcopy(document)
    runs = [
        run["id"]
        for status in ("succeeded", "failed", "queued", "waiting")
        for run in plane.http.get("/api/v1/runs", params={"status": status, "limit": 2}).json()["items"]
    ]
    spare = plane.http.post("/api/v1/tokens", json={"name": "spare", "role": "viewer"}).json()["id"]
    there_is = {
        "/api/v1/runs/{id}": runs,
        "/api/v1/operations/{name}": ["say", "slow"],
        "/api/v1/tokens/{id}": [spare],
        "/api/v1/keys/{name}": ["sealing.key", "audit.key"],
    }
    for path, methods in document["paths"].items():
        for operation in methods.values():
            del operation["responses"]["default"]
            for parameter in operation["parameters"]:
                if parameter["in"] == "path":
                    parameter["schema"] = {
                        "enum": next(ids for start, ids in there_is.items() if path.startswith(start))
                    }
    launch = document["components"]["schemas"]["LaunchRequest"]["properties"]
    launch["operation"] = {"enum": ["say", "touch", "raze"]}
    launch["environment"] = {"enum": ["local", "guarded"]}
    launch["parameters"] = {"type": "object", "properties": {"word": {"enum": ["word"]}}}
    return document


def _token(plane: ControlPlane, role: str) -> str:
    made = plane.http.post("/api/v1/tokens", json={"name": f"some-{role}", "role": role})
    assert made.status_code == 201, made.text
    token: str = made.json()["token"]
    return token
