"""Check mode tells the truth: what `--check` says would change is what a run changes, task by task and host by host."""

from __future__ import annotations

import subprocess

import pytest

from tests.lab.waiting import until

from .conftest import Site
from .plays import REPOSITORY, command, play

pytestmark = pytest.mark.timeout(900)

# What somebody, or something, did to a site that was in order.
DRIFTS = {
    "edge1": [
        "echo '# planted' >> /etc/nginx/nginx.conf",
        "systemctl disable --now nginx",
    ],
    "app1": [
        "echo '# planted' >> /etc/bazaruto/bazarutod.yml",
        "systemctl disable bazaruto-worker",
    ],
    "app2": [
        "chmod 0644 /etc/bazaruto/bazarutod.yml",
        "echo '# planted' >> /etc/systemd/system/bazarutod.service",
    ],
    "app3": ["systemctl stop bazarutod"],
    "db1": [
        "sudo -u postgres psql -qc 'ALTER ROLE bazaruto_monitoring CREATEDB'",
        "echo '# planted' >> /etc/postgresql/15/main/pg_hba.conf",
    ],
    "cache1": [
        "echo '# planted' >> /etc/redis/redis.conf",
    ],
    "mon1": [
        "echo '# planted' >> /etc/prometheus/prometheus.yml",
        "systemctl stop prometheus-alertmanager",
    ],
    "ctl1": [
        "systemctl stop prometheus-node-exporter",
    ],
}
EVERYWHERE = [
    "echo '10.255.255.1 planted' >> /etc/hosts",
    "echo '# planted' >> /etc/nftables.conf",
]


def test_a_site_in_order_is_left_alone(site: Site) -> None:
    played = play("--check", "--diff")
    assert (played.rc, played.changed) == (0, frozenset()), played


def test_what_check_mode_predicts_is_what_a_run_changes_and_nothing_after_that(site: Site) -> None:
    for name, commands in DRIFTS.items():
        for each in [*commands, *EVERYWHERE]:
            site.host(name).run(each)
    predicted = play("--check", "--diff")
    assert predicted.rc == 0, predicted
    done = play()
    assert done.rc == 0, done
    assert predicted.changed == done.changed, (
        f"predicted only: {sorted(predicted.changed - done.changed)}; "
        f"done only: {sorted(done.changed - predicted.changed)}"
    )
    assert {host for _, _, host in done.changed} == set(DRIFTS)
    again = play()
    assert (again.rc, again.changed) == (0, frozenset()), again


def test_a_new_bare_host_is_said_to_be_bare_and_joins_even_when_its_first_run_is_cut_off(site: Site) -> None:
    host = site.host("app3")
    host.remove()
    host.start()
    predicted = play("--check")
    assert predicted.rc == 0, predicted
    assert "is not provisioned on app3" in predicted.said
    with subprocess.Popen(command(), cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as cut_off:
        until(lambda: host.run("dpkg -s nftables", check=False).returncode == 0, 120, "nothing was installed on app3")
        cut_off.kill()
    done = play()
    assert done.rc == 0, done
    again = play()
    assert (again.rc, again.changed) == (0, frozenset()), again
    assert site.run("app3", "systemctl is-active bazarutod bazaruto-worker").split() == ["active", "active"]
