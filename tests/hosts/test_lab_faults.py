"""What the lab's fault tools do to a host, shown by their effect, and that it ends."""

from __future__ import annotations

import socket
import subprocess
import time
from datetime import UTC, datetime, timedelta

import pytest

from tests.lab import clock, faults
from tests.lab.errors import LabError
from tests.lab.host import Host
from tests.lab.waiting import becomes_true

DAY = timedelta(days=1)
# A unit whose sandbox is that of our services. It says its wall clock, and whether waiting still takes its time.
TICKER = """
import threading, time
while True:
    begun = time.monotonic()
    threading.Event().wait(0.2)
    time.sleep(0.2)
    print(int(time.time()), time.monotonic() - begun < 2, flush=True)
"""
TICKER_UNIT = """
[Service]
ExecStart=/usr/bin/python3 /usr/local/lib/ticker.py
DynamicUser=yes
ProtectSystem=strict
NoNewPrivileges=yes
MemoryDenyWriteExecute=yes
SystemCallFilter=@system-service
"""


def test_what_a_host_had_written_outlives_kill_and_stop(host: Host) -> None:
    host.run("echo kept >/root/kept && sudo -u postgres touch /var/lib/postgresql/kept")
    for end in (Host.kill, Host.stop):
        end(host)
        assert not host.runs()
        assert faults.state(host) == "down"
        host.start()
        assert host.run("cat /root/kept && ls /var/lib/postgresql/kept").stdout.split()[0] == "kept"


def test_a_host_that_is_cut_off_hears_nothing(host: Host) -> None:
    faults.cut(host)
    assert not host.answers()
    assert faults.state(host) == "cut off"
    faults.join(host)
    assert becomes_true(host.answers, 10)


def test_a_frozen_host_accepts_connections_and_says_nothing(host: Host) -> None:
    faults.freeze(host)
    with socket.create_connection((host.address, 22), timeout=5) as connection:
        connection.settimeout(0.5)
        with pytest.raises(TimeoutError):
            connection.recv(1)
    assert faults.state(host) == "frozen"
    faults.thaw(host)
    assert host.answers()


def test_one_frozen_unit_leaves_the_host_at_work(host: Host) -> None:
    host.run("systemd-run --collect --unit=test-frozen sleep 600")
    faults.freeze(host, "test-frozen.service")
    assert host.run("systemctl show -P FreezerState test-frozen").stdout == "frozen\n"
    faults.thaw(host, "test-frozen.service")
    assert host.run("systemctl show -P FreezerState test-frozen").stdout == "running\n"
    host.run("systemctl stop test-frozen")


def test_a_full_disk_harms_nobody_else_and_heals(host: Host) -> None:
    faults.fill(host, "backups")
    write = "dd if=/dev/zero of=/var/backups/bazaruto/test bs=1M count=1"
    done = host.run(write, check=False)
    assert "No space left on device" in done.stderr
    assert "/var/backups/bazaruto is full" in faults.state(host)
    host.run("dd if=/dev/zero of=/root/test bs=1M count=1")
    faults.free(host, "backups")
    host.run(f"{write} && rm /var/backups/bazaruto/test")
    with pytest.raises(LabError, match=r"db1 has no small disk runs; it has postgresql, backups\."):
        faults.fill(host, "runs")


def test_a_full_disk_takes_postgresql_down_until_there_is_space(host: Host) -> None:
    host.run("sudo -u postgres psql -Xc 'SELECT 1'")  # what the first session after a start writes is there
    faults.fill(host, "postgresql")
    table = "CREATE TABLE large AS SELECT repeat(md5(n::text), 50) FROM generate_series(1, 20000) n"
    grow = f"sudo -u postgres psql -Xc '{table}'"
    assert "No space left on device" in host.run(grow, check=False).stderr
    faults.free(host, "postgresql")
    host.run(f"systemctl restart postgresql@15-main && {grow}")
    host.run("sudo -u postgres psql -Xc 'DROP TABLE large'")


def test_a_slow_network_is_slow_both_ways(host: Host) -> None:
    faults.slow(host, 1000)
    try:
        for words, sent in ((["head -c 250000 /dev/zero"], b""), (["cat >/dev/null"], bytes(250_000))):
            begun = time.monotonic()
            subprocess.run(host.ssh(*words), input=sent, capture_output=True, check=True)
            assert time.monotonic() - begun > 1.5  # 2 s of bits, less what a burst may be
    finally:
        faults.fast(host)
    shown = subprocess.run(["tc", "qdisc", "show", "dev", host.link], capture_output=True, text=True, check=True).stdout
    assert "tbf" not in shown + host.run("tc qdisc show dev host0").stdout


def test_a_sandboxed_unit_sees_another_time_and_waits_as_before(host: Host) -> None:
    for path, content in (("/usr/local/lib/ticker.py", TICKER), ("/etc/systemd/system/ticker.service", TICKER_UNIT)):
        host.run(f"cat >{path} <<'END'\n{content}\nEND")
    host.run("systemctl daemon-reload && systemctl start ticker")
    assert abs(said_by(host) - datetime.now(UTC)) < timedelta(minutes=1)
    try:
        clock.shift(host, "ticker", int(DAY.total_seconds()))
        assert abs(said_by(host) - DAY - datetime.now(UTC)) < timedelta(minutes=1)
        running = host.run("systemctl show -P MainPID ticker").stdout
        clock.shift(host, "ticker", -int(DAY.total_seconds()))  # a jump of what runs
        assert abs(said_by(host) + DAY - datetime.now(UTC)) < timedelta(minutes=1)
        assert host.run("systemctl show -P MainPID ticker").stdout == running
        assert abs(float(host.run("date +%s").stdout) - time.time()) < 60  # nobody else's
    finally:
        clock.shift(host, "ticker", 0)
    assert abs(said_by(host) - datetime.now(UTC)) < timedelta(minutes=1)
    host.run("systemctl stop ticker")


def test_the_clock_of_postgresql_is_left_alone(host: Host) -> None:
    with pytest.raises(LabError, match="keeps the true time"):
        clock.shift(host, "postgresql@15-main", 60)


def said_by(host: Host) -> datetime:
    """What the ticker says from now on, and that it waits as long as it should."""
    cursor = host.run("journalctl -n 0 --show-cursor | sed -n 's/^-- cursor: //p'").stdout.strip()
    lines: list[str] = []

    def speaks() -> bool:
        lines[:] = host.run(f"journalctl -u ticker -o cat --after-cursor='{cursor}'").stdout.splitlines()
        return any(line.endswith("True") for line in lines)

    assert becomes_true(speaks, 10), lines
    return datetime.fromtimestamp(int([line for line in lines if line.endswith("True")][-1].split()[0]), UTC)
