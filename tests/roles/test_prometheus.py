"""Prometheus and Alertmanager alone, beside a small application (molecule/prometheus): they notice, and they tell."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.lab.host import Host
from tests.lab.lab import REPOSITORY
from tests.lab.waiting import becomes_true, until
from tests.site.plays import Played, play

from .conftest import check_tells_the_truth

SCENARIO = REPOSITORY / "molecule" / "prometheus"
ASK = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1], timeout=5).read().decode())"


@pytest.fixture(scope="module")
def monitor(host: Callable[[str], Host]) -> Host:
    return host("mon1")


def converge(*arguments: str, playbook: str = "converge.yml") -> Played:
    """Run the roles again."""
    return play(*arguments, playbook=SCENARIO / playbook)


def asked(monitor: Host, path: str, port: int = 9090) -> Any:
    """What Prometheus, or Alertmanager, answers on its own host."""
    return json.loads(monitor.run(f"python3 -c '{ASK}' 'http://127.0.0.1:{port}{path}'").stdout)


def targets(monitor: Host) -> dict[str, str]:
    """The health of each job's target."""
    active = asked(monitor, "/api/v1/targets?state=active")["data"]["activeTargets"]
    return {each["labels"]["job"]: each["health"] for each in active}


def test_the_guides_alerts_fire_when_they_should_and_only_then(monitor: Host) -> None:
    monitor.copy(SCENARIO / "files", "/run/alerts-test")
    said = monitor.run("promtool test rules /run/alerts-test/alerts.test.yml")
    assert "SUCCESS" in said.stdout + said.stderr


def test_everything_is_scraped(monitor: Host) -> None:
    up = {"prometheus": "up", "bazaruto": "up"}
    assert becomes_true(lambda: targets(monitor) == up, 40), targets(monitor)


def test_they_listen_on_this_host_only(monitor: Host) -> None:
    lines = monitor.run("ss -Hltnp").stdout.splitlines()
    addresses = {line.split()[3] for line in lines if "prometheus" in line}
    assert addresses == {"127.0.0.1:9090", "127.0.0.1:9093"}


def test_alertmanager_is_sandboxed(monitor: Host) -> None:
    monitor.run("systemd-analyze security --threshold=15 --no-pager prometheus-alertmanager")


def test_a_configuration_that_promtool_refuses_changes_nothing(monitor: Host) -> None:
    before = monitor.run("sha256sum /etc/prometheus/prometheus.yml /etc/prometheus/rules/*").stdout
    played = converge("-e", '{"prometheus_jobs": [{"name": "", "targets": {"a": "192.0.2.1:80"}}]}')
    assert played.rc != 0, played
    assert monitor.run("sha256sum /etc/prometheus/prometheus.yml /etc/prometheus/rules/*").stdout == before
    assert asked(monitor, "/api/v1/status/runtimeinfo")["data"]["reloadConfigSuccess"]


def test_contradictions_are_refused_by_name() -> None:
    played = converge("-e", "alertmanager_webhook_token=secret-nowhere")
    assert (played.rc != 0, played.changed) == (True, frozenset()), played
    assert "no alertmanager_webhook_url to use it for" in played.said
    assert "secret-nowhere" not in played.said
    played = converge("-e", '{"prometheus_jobs": [{"name": "a", "targets": {}}, {"name": "a", "targets": {}}]}')
    assert (played.rc != 0, played.changed) == (True, frozenset()), played
    assert "two jobs of one name" in played.said


def test_check_mode_tells_the_truth_about_what_drifted(monitor: Host) -> None:
    drifts = [
        "echo '# planted' >> /etc/prometheus/prometheus.yml; systemctl stop prometheus",
        "echo '# planted' >> /etc/prometheus/alertmanager.yml; chmod 0644 /etc/prometheus/alertmanager-webhook.token",
        "systemctl disable prometheus-alertmanager",
    ]
    check_tells_the_truth("prometheus", monitor, drifts)


def test_an_application_that_stops_is_told_to_whoever_is_to_know(monitor: Host, passwords: dict[str, str]) -> None:
    assert converge(playbook="converge_quickly.yml").rc == 0
    try:
        monitor.run("echo 'database_up 0' > /usr/local/lib/application.metrics")
        told = "/run/alerts.log"
        until(lambda: "ApplicationDown" in monitor.run(f"cat {told}", check=False).stdout, 60, "no alert was sent")
        line = monitor.run(f"head -1 {told}").stdout
        authorization, _, body = line.partition(" {")
        assert authorization == f"Bearer {passwords['redis_monitoring_password']}"
        alert = json.loads("{" + body)["alerts"][0]
        assert (alert["labels"]["severity"], alert["labels"]["host"]) == ("critical", "app1")
        monitor.run("echo 'database_up 1' > /usr/local/lib/application.metrics")
        until(lambda: not asked(monitor, "/api/v1/alerts")["data"]["alerts"], 30, "the alert was not taken back")
        monitor.run("systemctl stop application")
        until(lambda: asked(monitor, "/api/v2/alerts?active=true", 9093) != [], 30, "no alert reached Alertmanager")
    finally:
        monitor.run("systemctl start application")
        assert converge().rc == 0
