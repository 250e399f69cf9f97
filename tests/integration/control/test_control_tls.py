"""A control plane beyond its machine: only encrypted, unless told so by name; its command line believes nobody else."""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from bazaruto.control.local import daemons
from bazaruto.control.local.daemons import Daemon, DaemonError

from ..certificates import Authority, Pair
from .conftest import ControlPlane, started

EVERYWHERE = {"BAZARUTO_CONTROL_HOST": "0.0.0.0"}


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def plane(
    postgres_cluster: Any, tmp_path_factory: pytest.TempPathFactory, authority: Authority
) -> Iterator[ControlPlane]:
    """It speaks HTTPS on every address of this machine."""
    settings = {**_settings(authority.issue("plane")), **EVERYWHERE, "BAZARUTO_CONTROL_CA_FILE": str(authority.ca_file)}
    yield from started(postgres_cluster, tmp_path_factory.mktemp("tls"), **settings)


def test_the_command_line_follows_a_run_over_https(plane: ControlPlane) -> None:
    done = plane.cli("run", "say", "-e", "local")
    assert done.returncode == 0, done.stdout + done.stderr
    run = json.loads(plane.cli("runs", "-o", "json").stdout)["items"][0]["id"]
    raw = plane.cli("logs", run, "--raw").stdout
    assert raw.encode() == (plane.directory(run) / "stdout.log").read_bytes()
    assert plane.http.get("/healthz").headers["strict-transport-security"].startswith("max-age=")


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"BAZARUTO_CONTROL_CA_FILE": ""}, "is not believed (unable to get local issuer certificate)"),
        ({"BAZARUTO_CONTROL_URL": "https://localhost:PORT"}, "is not believed (Hostname mismatch"),
    ],
    ids=["unknown authority", "another name"],
)
def test_a_certificate_that_cannot_be_verified_is_not_believed(
    plane: ControlPlane, changed: dict[str, str], sentence: str
) -> None:
    done = plane.cli("runs", **{name: value.replace("PORT", str(plane.port)) for name, value in changed.items()})
    assert done.returncode == 4
    assert sentence in done.stderr
    assert "BAZARUTO_CONTROL_CA_FILE" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_up_and_status_see_whether_it_is_ready_by_its_certificate(plane: ControlPlane, authority: Authority) -> None:
    assert daemons.is_ready(Daemon("control", url=plane.url, ca_file=authority.ca_file))
    with pytest.raises(DaemonError, match="is not believed"):
        daemons.is_ready(Daemon("control", url=plane.url))


def test_the_command_line_finds_what_up_recorded(plane: ControlPlane, authority: Authority, tmp_path: Path) -> None:
    recorded = {"control": {"url": plane.url, "ca_file": str(authority.ca_file)}}
    (tmp_path / "control").mkdir()
    (tmp_path / "control" / "admin.token").write_text(plane.token, encoding="utf-8")
    (tmp_path / "local.json").write_text(json.dumps(recorded), encoding="utf-8")
    told = plane.extra_environment.keys()
    environment = {name: value for name, value in plane.environment.items() if name not in told}
    found = subprocess.run(
        ["bazaruto", "runs"],
        env={**environment, "BAZARUTO_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr


def test_plain_http_is_refused_and_says_what_is_spoken(plane: ControlPlane) -> None:
    answer = httpx.get(f"http://127.0.0.1:{plane.port}/healthz", trust_env=False)
    assert answer.status_code == 400
    assert "https://" in answer.json()["detail"]
    assert "strict-transport-security" in answer.headers


def test_it_does_not_listen_beyond_the_machine_without_tls_unless_told_so(plane: ControlPlane) -> None:
    open_to_all = {**EVERYWHERE, **_settings(Pair(Path(), Path()))}
    for host in ("0.0.0.0", "::", "192.0.2.1"):
        refused = plane.cli("serve", **{**open_to_all, "BAZARUTO_CONTROL_HOST": host})
        assert refused.returncode == 2
        assert "BAZARUTO_CONTROL_TLS_CERTIFICATE" in refused.stderr
        assert "BAZARUTO_CONTROL_PLAIN_HTTP=true" in refused.stderr
        assert len(refused.stderr.splitlines()) == 1
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    settings = {**open_to_all, "BAZARUTO_CONTROL_PLAIN_HTTP": "true", "BAZARUTO_CONTROL_PORT": str(port)}
    with subprocess.Popen(["bazaruto", "serve"], env={**plane.environment, **settings}) as told:
        try:
            ControlPlane.until(lambda: _lives(port))
        finally:
            told.terminate()


def test_a_certificate_without_its_key_is_refused(plane: ControlPlane, authority: Authority) -> None:
    refused = plane.cli("serve", BAZARUTO_CONTROL_TLS_KEY="")
    assert refused.returncode == 2
    assert refused.stderr == "control_tls_certificate and control_tls_key belong together: set both, or neither.\n"
    pair = authority.issue("refused", days=(-9, -1))
    expired = plane.cli("serve", **_settings(pair))
    assert expired.returncode == 2
    assert "expired at" in expired.stderr


def test_a_renewed_certificate_is_served_without_a_restart(plane: ControlPlane, authority: Authority) -> None:
    used = Pair(*(Path(plane.extra_environment[f"BAZARUTO_CONTROL_TLS_{each}"]) for each in ("CERTIFICATE", "KEY")))
    before = ssl.get_server_certificate(("127.0.0.1", plane.port))
    assert plane.http.get("/healthz/detailed").json()["checks"]["certificate"]["url"] == plane.url
    used.write(authority.issue("renewal", days=(-1, 9)))
    deadline = time.monotonic() + 20
    while ssl.get_server_certificate(("127.0.0.1", plane.port)) == before:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert plane.cli("runs").returncode == 0
    checked = plane.http.get("/healthz/detailed").json()["checks"]["certificate"]
    assert checked["status"] == "degraded"
    assert "expires at 20" in checked["error"]


def _lives(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/livez", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def _settings(pair: Pair) -> dict[str, str]:
    """A certificate and its key; empty paths are none."""
    files = {"CERTIFICATE": pair.certificate, "KEY": pair.key}
    return {f"BAZARUTO_CONTROL_TLS_{name}": "" if path == Path() else str(path) for name, path in files.items()}
