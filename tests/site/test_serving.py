"""The whole site serves: requests from the world, jobs, queries and scrapes find what they need."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from .conftest import DOMAIN, Client, Site, eventually

EVERYWHERE = {"bazaruto": 3, "node": 8, "postgres": 1, "redis": 1, "nginx": 1}  # scraped targets of each job
UNITS = {
    "edge1": ["nginx"],
    "app1": ["bazarutod", "bazaruto-worker"],
    "app2": ["bazarutod", "bazaruto-worker"],
    "app3": ["bazarutod", "bazaruto-worker"],
    "db1": ["postgresql@15-main"],
    "cache1": ["redis-server"],
    "mon1": ["prometheus", "prometheus-alertmanager"],
    "ctl1": ["bazaruto-control", "bazaruto-control-worker", "postgresql@15-main"],
}


def test_a_claim_goes_from_login_to_approval_through_nginx_service_database_and_worker(
    staff: Client, customer: Client
) -> None:
    me = customer.get("/v1/users/me").json()["id"]
    policy = staff.made(
        "/v1/policies",
        {
            **{"user_id": me, "product": "motor", "coverage_minor": 2_000_000, "premium_minor": 25_000},
            **{"currency": "EUR", "starts_on": "2026-01-01", "ends_on": "2035-12-31"},
        },
    )
    assert staff.post(f"/v1/policies/{policy['id']}/activate").json()["status"] == "active"
    claim = customer.made(
        "/v1/claims",
        {
            **{"policy_id": policy["id"], "amount_minor": 60_000, "currency": "EUR", "incident_on": "2026-02-01"},
            "description": "A stone hit the windscreen",
        },
    )
    path = f"/v1/claims/{claim['id']}"
    assert eventually(lambda: customer.get(path).json()["status"] == "in_review"), "no worker assessed the claim"
    assert staff.post(f"{path}/approve", {"reason": "seen"}).json()["status"] == "approved"


def test_everything_is_healthy_and_plain_http_leads_to_https(site: Site, world: Client) -> None:
    health = world.get("/healthz").json()
    assert health["status"] == "healthy", health
    moved = httpx.get(f"http://{site.host('edge1').address}/healthz", headers={"Host": DOMAIN})
    assert (moved.status_code, moved.headers["Location"]) == (308, f"https://{DOMAIN}/healthz")


def test_requests_reach_every_application_host(site: Site, world: Client) -> None:
    for _ in range(12):
        assert world.get("/healthz").status_code == 200
    for name in ("app1", "app2", "app3"):
        lines = site.run(
            name, "journalctl -u bazarutod --no-pager -o cat | wc -l; cat /var/log/bazaruto/access.log | wc -l"
        )
        assert int(lines.splitlines()[-1]) > 0, f"{name} was never asked"


@pytest.mark.parametrize("name", UNITS)
def test_every_unit_runs_and_starts_with_its_host(site: Site, name: str) -> None:
    units = " ".join(UNITS[name])
    assert set(site.run(name, f"systemctl is-active {units}", check=False).split()) == {"active"}
    assert set(site.run(name, f"systemctl is-enabled {units}", check=False).split()) <= {"enabled", "enabled-runtime"}
    assert site.run(name, "systemctl --failed --plain --no-legend") == ""


def test_prometheus_scrapes_everything(site: Site) -> None:
    def targets() -> list[dict[str, Any]]:
        said = site.fetch("mon1", "http://127.0.0.1:9090/api/v1/targets?state=active")
        found: list[dict[str, Any]] = said["data"]["activeTargets"]
        return found

    def down() -> list[str]:
        return [f"{each['scrapeUrl']}: {each['lastError']}" for each in targets() if each["health"] != "up"]

    assert eventually(lambda: not down()), down()
    jobs = [each["labels"]["job"] for each in targets()]
    assert {job: jobs.count(job) for job in EVERYWHERE} == EVERYWHERE


def test_the_guides_alerts_are_loaded_and_reach_alertmanager(site: Site) -> None:
    rules = site.fetch("mon1", "http://127.0.0.1:9090/api/v1/rules")["data"]["groups"]
    assert [rule["health"] for group in rules for rule in group["rules"] if rule["health"] == "err"] == []
    managers = site.fetch("mon1", "http://127.0.0.1:9090/api/v1/alertmanagers")["data"]
    assert len(managers["activeAlertmanagers"]) == 1
