"""What is lost comes back by itself: cache, database, every host."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.lab import plan

from . import test_serving
from .conftest import Client, Site, eventually
from .plays import REPOSITORY


def test_without_the_cache_the_service_is_degraded_and_answers(site: Site, world: Client) -> None:
    cache = site.host("cache1")
    cache.kill()
    try:
        assert eventually(lambda: world.get("/healthz").json()["status"] == "degraded")
        answer = world.get("/healthz")
        assert (answer.status_code, answer.json()["status"]) == (200, "degraded")
        assert world.get("/readyz").status_code == 200
    finally:
        cache.start()
    assert eventually(lambda: world.get("/healthz").json()["status"] == "healthy"), world.get("/healthz").text


def test_without_the_database_it_says_503_and_recovers_by_itself(site: Site, world: Client, staff: Client) -> None:
    database = site.host("db1")
    database.kill()
    try:
        assert eventually(lambda: world.get("/healthz").status_code == 503)
        assert eventually(lambda: world.get("/readyz").status_code == 503)
    finally:
        database.start()
    assert eventually(lambda: world.get("/healthz").json()["status"] == "healthy"), world.get("/healthz").text
    assert staff.get("/v1/users/me").status_code == 200


def test_after_a_reboot_of_every_host_all_serves_again_without_a_hand(site: Site, world: Client, staff: Client) -> None:
    ansible = str(Path(sys.executable).parent / "ansible")
    argv = [ansible, "-i", "inventories/lab", "all", "-b", "-m", "ansible.builtin.reboot", "-a", "reboot_timeout=120"]
    done = subprocess.run(argv, cwd=REPOSITORY, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout
    assert eventually(lambda: world.get("/healthz").json()["status"] == "healthy"), world.get("/healthz").text
    assert staff.get("/v1/users/me").status_code == 200
    for name in plan.HOSTS:
        site.run(name, "systemctl is-system-running --wait", check=False)
        test_serving.test_every_unit_runs_and_starts_with_its_host(site, name)
    test_serving.test_prometheus_scrapes_everything(site)
