"""One whole installation, brought up by `bazaruto up` in a home of its own, for all acceptance tests."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

BIN = Path(sys.executable).parent
UP_SECONDS = 180


@dataclasses.dataclass(frozen=True)
class Platform:
    """An installation as its user sees it: commands, addresses, files."""

    home: Path
    environment: dict[str, str]  # for every command

    def run(self, *words: str, timeout: float = 120, **env: str) -> subprocess.CompletedProcess[str]:
        """`bazaruto WORDS…`; the caller judges the exit code."""
        return self._command("bazaruto", *words, timeout=timeout, **env)

    def service_command(self, *words: str, timeout: float = 120, **env: str) -> subprocess.CompletedProcess[str]:
        """`bazarutod WORDS…`."""
        return self._command("bazarutod", *words, timeout=timeout, **env)

    def json(self, *words: str, timeout: float = 120) -> Any:
        """What `bazaruto WORDS… -o json` prints; it must succeed."""
        done = self.run(*words, "-o", "json", timeout=timeout)
        assert done.returncode == 0, (words, done.stdout, done.stderr)
        return json.loads(done.stdout)

    @property
    def local(self) -> dict[str, Any]:
        """What `up` decided."""
        values: dict[str, Any] = json.loads((self.home / "local.json").read_text(encoding="utf-8"))
        return values

    @property
    def service_url(self) -> str:
        """Of the service, without a slash at its end."""
        return str(self.local["service"]["url"])

    @property
    def control_url(self) -> str:
        """Of the control plane, without a slash at its end."""
        return str(self.local["control"]["url"])

    @property
    def service_database_url(self) -> str:
        """The service's database, as the role that owns it."""
        return str(self.local["service"]["database_url"])

    @property
    def token(self) -> str:
        """The first admin token of the control plane."""
        return (self.home / "control" / "admin.token").read_text(encoding="utf-8").strip()

    def processes(self) -> dict[str, dict[str, Any]]:
        """What `bazaruto status` says of each process; also when not all run."""
        found = json.loads(self.run("status", "-o", "json").stdout)["processes"]
        return {process["name"]: process for process in found}

    def _command(self, program: str, *words: str, timeout: float, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [BIN / program, *words],
            env={**self.environment, **env},
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )


def free_port() -> int:
    """A port nobody listens on now."""
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def platform_in(home: Path) -> Platform:
    """An installation in `home` with ports of its own; not up yet. Nothing comes from the tester's own settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("BAZARUTO_", "PG", "PYTEST_"))}
    return Platform(
        home,
        {
            **kept,
            "PATH": f"{BIN}{os.pathsep}{kept.get('PATH', os.defpath)}",
            "BAZARUTO_HOME": str(home),
            "XDG_CONFIG_HOME": str(home.parent / "configuration"),  # whoever runs the tests may be logged in elsewhere
            "BAZARUTO_SERVICE_PORT": str(free_port()),
            "BAZARUTO_CONTROL_PORT": str(free_port()),
        },
    )


@pytest.fixture(scope="session")
def platform() -> Iterator[Platform]:
    """The whole installation, with a proven first backup."""
    with tempfile.TemporaryDirectory(prefix="bazaruto-platform-") as directory:
        installation = platform_in(Path(directory) / "var")
        try:
            done = installation.run("up", timeout=UP_SECONDS)
            assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
            yield installation
        finally:
            installation.run("down")
