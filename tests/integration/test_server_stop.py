"""A stop loses no request: readiness fails first, what was begun ends, then the process exits with 0."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from .serving import closed_by_server, json_lines, read_answer, serving, wait_for

PROGRAM = """
import sys, time
from bazaruto import config, logs, metrics, probes, server, web
from bazaruto.health import Health

settings = config.load()
logs.configure(settings, "program")
app = web.create_app("program", settings, metrics.Metrics())
health = Health([])
probes.add_probes(app, health)

@app.get("/slow")
def slow():
    time.sleep(float(sys.argv[1]))
    return {"slow": True}

sys.exit(server.serve(app, host="127.0.0.1", port=0, limits=settings.server, probe_paths=probes.PATHS,
                      on_drain=health.draining.set))
"""


class Program:
    """A process that serves /slow."""

    def __init__(self, home: Path, slow_seconds: float, descriptors: int | None = None) -> None:
        self.home = home
        environment = {**os.environ, "BAZARUTO_SERVER_DRAIN_DELAY": "1s", "BAZARUTO_SERVER_DRAIN_TIMEOUT": "8s"}
        argv = [sys.executable, "-c", PROGRAM, str(slow_seconds)]
        if descriptors is not None:
            argv = ["prlimit", f"--nofile={descriptors}:{descriptors}", *argv]
        self.process = subprocess.Popen(argv, env=environment)
        wait_for(lambda: self.line("listening"), 20)
        self.port = int(self.line("listening")["port"])

    def line(self, message: str) -> dict[str, object]:
        path = self.home / "log" / "program.log"
        lines = json_lines(path) if path.exists() else []
        return next((line for line in lines if line["message"].startswith(message)), {})

    def begin(self, path: str) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=15)
        connection.request("GET", path)
        return connection


@pytest.fixture
def slow_program(home: Path) -> Iterator[Program]:
    """A process whose /slow takes three seconds."""
    program = Program(home, 3.0)
    yield program
    if program.process.poll() is None:
        program.process.kill()
        program.process.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_fails_readiness_first_ends_requests_in_flight_and_exits_0(
    slow_program: Program, number: signal.Signals
) -> None:
    assert slow_program.begin("/readyz").getresponse().status == 200
    slow = slow_program.begin("/slow")
    time.sleep(0.3)
    slow_program.process.send_signal(number)
    wait_for(lambda: slow_program.line("stopping"), 2)
    assert slow_program.begin("/readyz").getresponse().status == 503
    assert slow_program.begin("/nothing").getresponse().status == 404  # still served, so that balancers notice
    wait_for(lambda: slow_program.begin("/nothing").getresponse().status == 503, 3)
    assert slow_program.begin("/livez").getresponse().status == 200
    answer = slow.getresponse()
    assert (answer.status, answer.read()) == (200, b'{"slow":true}')
    assert answer.getheader("Connection") == "close"
    assert slow_program.process.wait(timeout=5) == 0
    assert slow_program.line("stopped")["clean"] is True


def test_a_second_signal_exits_at_once(slow_program: Program) -> None:
    slow = slow_program.begin("/slow")
    slow_program.process.send_signal(signal.SIGTERM)
    wait_for(lambda: slow_program.line("stopping"), 2)
    started = time.monotonic()
    slow_program.process.send_signal(signal.SIGTERM)
    assert slow_program.process.wait(timeout=5) == 128 + signal.SIGTERM
    assert time.monotonic() - started < 0.5
    slow.close()


def test_a_stop_closes_idle_connections_and_does_not_wait_for_them(home: Path) -> None:
    with serving(home, idle_timeout=60) as running, running.connect() as client:
        client.sendall(b"GET /hello HTTP/1.1\r\nHost: test\r\n\r\n")
        assert read_answer(client).status == 200
        running.server.stop()
        assert closed_by_server(client, 3)
        running.thread.join(timeout=5)
        assert running.outcome == [0]


def test_requests_that_outlast_drain_timeout_are_cut_off_and_the_status_says_so(home: Path) -> None:
    with serving(home, drain_timeout=0.5) as running:
        (client,) = running.block(1)
        running.server.stop()
        running.thread.join(timeout=5)
        assert running.outcome == [1]
        client.close()


def test_a_request_begun_before_the_stop_and_completed_after_it_is_served(home: Path) -> None:
    with serving(home) as running, running.connect() as client:
        client.sendall(b"POST /echo HTTP/1.1\r\nHost: test\r\nContent-Length: 4\r\n\r\nab")
        wait_for(lambda: any(channel.request for channel in running.server.active_channels.values()))
        running.server.stop()
        wait_for(lambda: running.server._refusing_since)
        client.sendall(b"cd")
        assert read_answer(client).json == {"bytes": 4}


def test_a_taken_port_is_a_sentence(home: Path) -> None:
    from bazaruto import server

    with serving(home) as running, pytest.raises(server.CannotListen, match="set another host or port"):
        server.listen("127.0.0.1", running.port)


def test_a_process_out_of_descriptors_does_not_spin_and_serves_again_when_there_are_some(home: Path) -> None:
    program = Program(home, 0.0, descriptors=40)
    try:
        clients = [socket.create_connection(("127.0.0.1", program.port)) for _ in range(60)]
        wait_for(lambda: program.line("no connection can be accepted"))
        before = _processor_seconds(program.process.pid)
        time.sleep(1.0)
        assert _processor_seconds(program.process.pid) - before < 0.3
        for client in clients:
            client.close()
        assert program.begin("/livez").getresponse().status == 200
    finally:
        program.process.kill()
        program.process.wait()


def _processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
