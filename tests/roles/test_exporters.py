"""Exporters alone on one host (molecule/exporters): figures for whoever may ask, and nothing else."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import pytest

from tests.lab.host import Host
from tests.lab.lab import REPOSITORY
from tests.lab.waiting import becomes_true
from tests.site.plays import play

from .conftest import check_tells_the_truth

CONVERGE = REPOSITORY / "molecule" / "exporters" / "converge.yml"


@pytest.fixture(scope="module")
def edge(host: Callable[[str], Host]) -> Host:
    return host("edge1")


def metrics(edge: Host, port: int) -> str:
    """What an exporter says to this machine."""
    return httpx.get(f"http://{edge.address}:{port}/metrics", timeout=10).text


def test_the_host_shows_what_it_has(edge: Host) -> None:
    said = metrics(edge, 9100)
    for name in ("node_memory_MemAvailable_bytes", "node_load1", "node_cpu_seconds_total", "node_boot_time_seconds"):
        assert f"\n{name}" in said, name


def test_nginx_shows_its_figures_and_when_it_is_away(edge: Host) -> None:
    assert "\nnginx_up 1" in metrics(edge, 9113)
    edge.run("systemctl stop nginx")
    try:
        assert "\nnginx_up 0" in metrics(edge, 9113)
    finally:
        edge.run("systemctl start nginx")
    assert becomes_true(lambda: "\nnginx_up 1" in metrics(edge, 9113), 10)


def test_they_come_back_with_their_host_though_nginx_is_away(edge: Host) -> None:
    edge.run("systemctl stop nginx; systemctl restart prometheus-nginx-exporter", check=False)
    edge.run("systemctl start nginx")
    assert becomes_true(
        lambda: edge.run("systemctl is-active prometheus-nginx-exporter", check=False).returncode == 0, 20
    )
    assert "\nnginx_up 1" in metrics(edge, 9113)


def test_they_listen_on_one_address_only(edge: Host) -> None:
    lines = edge.run("ss -Hltnp").stdout.splitlines()
    assert {line.split()[3] for line in lines if "prometheus" in line} == {
        f"{edge.address}:9100",
        f"{edge.address}:9113",
    }


def test_they_are_sandboxed(edge: Host) -> None:
    edge.run("systemd-analyze security --threshold=25 --no-pager prometheus-node-exporter")
    edge.run("systemd-analyze security --threshold=15 --no-pager prometheus-nginx-exporter")


def test_what_they_are_told_is_read_by_root_only(edge: Host) -> None:
    said = edge.run("stat -c '%a %U %G' /etc/default/prometheus-node-exporter /etc/default/prometheus-nginx-exporter")
    assert set(said.stdout.splitlines()) == {"640 root root"}


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ("exporters_address=0.0.0.0", "no name and not all addresses"),
        ('{"exporters_enabled": ["postgres"], "exporters_postgres_host": "192.0.2.1"}', "set it to require"),
        ('{"exporters_enabled": ["redis"], "exporters_redis_url": "redis://:word@x:1"}', "without a password"),
    ],
)
def test_contradictions_are_refused_by_name(variables: str, sentence: str) -> None:
    played = play("-e", variables, playbook=CONVERGE)
    assert (played.rc != 0, played.changed) == (True, frozenset()), played
    assert sentence in played.said


def test_check_mode_tells_the_truth_about_what_drifted(edge: Host) -> None:
    drifts = [
        "echo '# planted' >> /etc/default/prometheus-node-exporter; systemctl stop prometheus-node-exporter",
        "rm /etc/systemd/system/prometheus-nginx-exporter.service.d/sandbox.conf",
    ]
    check_tells_the_truth("exporters", edge, drifts)
