"""A control node as it is installed: its runs reach hosts over SSH, and outlive all of its own services."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hosts.control_rig import REPOSITORY, SERVICES, Play, Rig
from tests.lab.waiting import until


@pytest.fixture(scope="module")
def booted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """Two bare hosts."""
    rig = Rig(tmp_path_factory.mktemp("home") / "home")
    try:
        rig.up()
        yield rig
    finally:
        rig.lab.down()


@pytest.fixture(scope="module")
def looked(booted: Rig) -> Play:
    """What check mode says before anything is installed."""
    return booted.converge("--check")


@pytest.fixture(scope="module")
def installed(booted: Rig, looked: Play) -> Rig:
    """A control node that was installed, and installed again."""
    first = booted.converge()
    assert first.code == 0, first.said
    return booted


@pytest.fixture
def rig(installed: Rig) -> Rig:
    """The control node, with nothing left of the last test."""
    installed.app1.run("rm -f /tmp/go /tmp/working")
    return installed


def test_check_mode_says_of_a_bare_host_that_nothing_is_provisioned(looked: Play) -> None:
    assert looked.code == 0, looked.said
    assert "The control plane is not provisioned on ctl1" in " ".join(looked.said.split())


def test_a_second_run_changes_nothing(rig: Rig) -> None:
    again = rig.converge()
    assert (again.code, again.changed()) == (0, []), again.said


def test_a_run_reaches_another_host_whose_key_it_checks(rig: Rig) -> None:
    run = rig.finished("hello")
    assert (run["status"], run["result"]) == ("succeeded", {"hostname": "app1"}), run
    known = "/var/lib/bazaruto/lab/control/known_hosts"
    rig.ctl1.run(f"cp -p {known} /root/known && sed -i '/^{rig.app1.address}/s/AAAA[^ ]*/AAAAwrong/' {known}")
    try:
        refused = rig.finished("hello")
    finally:
        rig.ctl1.run(f"cp -p /root/known {known}")
    assert refused["status"] == "failed"
    assert "Host key verification failed" in refused["error"]


def test_a_run_that_restarts_its_own_control_plane_goes_on_and_is_recorded(rig: Rig) -> None:
    before = [rig.pid(service) for service in SERVICES]
    run = rig.wait(rig.launch("renew"), 90)
    assert (run["status"], run["result"], run["error"]) == ("succeeded", {"done": True}, None), run
    after = [rig.pid(service) for service in SERVICES]
    assert all(after)
    assert not set(before) & set(after)
    events = rig.events(run["id"])
    assert [event["seq"] for event in events] == list(range(1, rig.written(run["id"]) + 1))
    assert {"Work before", "Restart its services", "Work after"} <= {event["task"] for event in events}


@pytest.mark.parametrize("service", SERVICES)
def test_a_restart_of_a_service_ends_no_run(rig: Rig, service: str) -> None:
    run = rig.launch("work")
    rig.wait_until_it_works(run)
    rig.ctl1.run(f"systemctl restart {service}")
    assert rig.lives(run)
    rig.let_it_end()
    assert rig.wait(run, 30)["status"] == "succeeded"


def test_a_run_outlives_a_worker_that_was_stopped(rig: Rig) -> None:
    run = rig.launch("work")
    rig.wait_until_it_works(run)
    rig.ctl1.run("systemctl stop bazaruto-control-worker")
    assert rig.lives(run)
    rig.let_it_end()
    outcome = f"/var/lib/bazaruto/control/runs/{run}/outcome.json"
    until(lambda: rig.ctl1.run(f"test -s {outcome}", check=False).returncode == 0, 30, "there is no outcome")
    assert rig.ask("show", run)["status"] == "running", "nobody has recorded it yet"
    rig.ctl1.run("systemctl start bazaruto-control-worker")
    assert rig.wait(run, 10)["status"] == "succeeded"
    assert len(rig.events(run)) == rig.written(run)


def test_a_worker_that_was_killed_is_back_and_has_its_run_within_ten_seconds(rig: Rig) -> None:
    run = rig.launch("work")
    rig.wait_until_it_works(run)
    killed = rig.pid(SERVICES[1])
    rig.ctl1.run("systemctl kill --kill-whom=all --signal=KILL bazaruto-control-worker")
    rig.let_it_end()
    until(lambda: rig.pid(SERVICES[1]) not in (0, killed), 15, "systemd has not started the worker again")
    assert rig.wait(run, 10)["status"] == "succeeded"
    assert len(rig.events(run)) == rig.written(run)


def test_a_run_is_canceled_with_all_its_processes(rig: Rig) -> None:
    run = rig.launch("work")
    rig.wait_until_it_works(run)
    rig.ask("cancel", run, "--reason", "enough")
    assert rig.wait(run, 30)["status"] == "canceled"
    assert not rig.lives(run)


def test_a_run_can_write_nowhere_but_in_its_home(rig: Rig) -> None:
    run = rig.finished("probe")
    allowed = "echo x > /var/lib/bazaruto/probe && rm /var/lib/bazaruto/probe"
    assert (run["status"], run["result"]) == ("succeeded", {"succeeded": [allowed]}), run


def test_a_reboot_brings_the_services_back_and_the_run_is_recorded_as_it_ended(rig: Rig) -> None:
    run = rig.launch("work")
    rig.wait_until_it_works(run)
    boot = rig.ctl1.run("cat /proc/sys/kernel/random/boot_id; systemctl show --property UserspaceTimestampMonotonic")
    rig.ctl1.run("systemctl reboot", check=False)
    until(lambda: not rig.ctl1.answers(), 60, "ctl1 has not gone down")
    until(rig.ctl1.answers, 60, f"ctl1 is not back ({boot.stdout})")
    until(lambda: all(rig.pid(service) for service in SERVICES), 30, "the services are not back")
    until(lambda: "{" in rig.ctl1.run("bazaruto runs -o json", check=False).stdout, 30, "the API does not answer")
    ended = rig.wait(run, 20)
    assert ended["status"] == "interrupted", ended
    assert rig.finished("hello")["status"] == "succeeded"


DRIFTS = {
    "settings": "sed -i 's/8081/8082/' /etc/bazaruto/control.yml",
    "mode of the settings": "chmod 0644 /etc/bazaruto/control.yml",
    "unit": "echo '# by hand' >> /etc/systemd/system/bazaruto-control-worker.service",
    "link": "ln -sfn /nowhere /opt/bazaruto/content/current",
    "release": "rm /opt/bazaruto/control/current/bundle.sha256",
    "service": "systemctl disable --now bazaruto-control-worker",
    "file of the inventory": "rm /var/lib/bazaruto/lab/control/lab.json",
    "key of the user manager": "loginctl disable-linger bazaruto-control",
}


def test_check_mode_predicts_what_a_run_mends(rig: Rig) -> None:
    for drift in DRIFTS.values():
        rig.ctl1.run(drift)
    said = rig.converge("--check", "--diff")
    done = rig.converge("--diff")
    assert (said.code, done.code) == (0, 0), said.said + done.said
    assert said.changed() == done.changed(), said.said + done.said
    assert len(done.changed()) >= len(DRIFTS) - 1, "two drifts are of one file"
    assert rig.converge().changed() == []
    assert rig.finished("hello")["status"] == "succeeded"


def test_another_release_and_another_content_leave_the_old_ones_and_the_data(rig: Rig, tmp_path: Path) -> None:
    runs = {run["id"] for run in rig.ask("runs", "--limit", "100")["items"]}
    newer = tmp_path / "bazaruto-control-0.1.1.bundle.tar"
    shutil.copy(rig.bundle, newer)
    content = tmp_path / "content"
    shutil.copytree(rig.content, content)
    said = {"commit": "c" * 40, "dirty": False, "digest": "of another"}
    (content / "REVISION").write_text(json.dumps(said))
    (content / "playbooks/hello.yml").write_text((content / "playbooks/hello.yml").read_text() + "# newer\n")
    upgraded = rig.converge(control_node_bundle=str(newer), control_node_content=str(content))
    assert upgraded.code == 0, upgraded.said
    here = rig.ctl1.run("ls /opt/bazaruto/control/releases; readlink /opt/bazaruto/control/current").stdout.split()
    assert here == ["0.1.0", "0.1.1", "releases/0.1.1"]
    contents = rig.ctl1.run("ls /opt/bazaruto/content; readlink /opt/bazaruto/content/current").stdout.split()
    assert len(contents) == 4, "the old one, the new one, and the link"
    assert contents[-1].startswith("c" * 12 + "-")
    assert runs <= {run["id"] for run in rig.ask("runs", "--limit", "100")["items"]}
    run = rig.finished("hello")
    assert (run["status"], run["revision"], run["dirty"]) == ("succeeded", "c" * 40, True), run


def test_the_audit_is_whole_and_journald_has_its_heads(rig: Rig) -> None:
    rig.finished("hello")
    assert rig.ctl1.run("bazaruto audit verify", check=False).returncode == 0
    heads = rig.ctl1.run("journalctl --identifier bazaruto-audit --output json --lines 1").stdout
    assert json.loads(heads)["BAZARUTO_AUDIT_MAC"]


def test_contradictions_are_refused_by_name(rig: Rig) -> None:
    wrong = {"control_node_settings": {"home": "/tmp"}, "control_node_vault_password_file": "/etc/vault"}
    refused = rig.converge(**wrong)
    said = " ".join(refused.said.split())
    assert refused.code != 0
    assert refused.changed() == []
    assert "control_node_settings has home" in said
    assert "control_node_vault_password_file is /etc/vault" in said
    nowhere = rig.converge(control_node_bundle=str(REPOSITORY / "dist/nowhere.bundle.tar"))
    assert "call `make bundle`" in " ".join(nowhere.said.split())
