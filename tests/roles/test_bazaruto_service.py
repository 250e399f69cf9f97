"""The service and its worker on a host: what they do, what they may not, and what they live through."""

from __future__ import annotations

import concurrent.futures
import json
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.lab import faults
from tests.lab.host import Host
from tests.lab.waiting import until

from .conftest import converge

UNITS = ("bazarutod.service", "bazaruto-worker.service")
MAY_WRITE = {"/tmp", "/var/tmp", "/var/lib/bazaruto", "/var/lib/bazaruto/config", "/var/log/bazaruto"}
DOCUMENTED = (
    *("http_requests_total", "http_request_duration_seconds", "database_connections_active"),
    *("redis_connections_active", "job_queue_size", "job_processing_duration_seconds"),
)
PASSWORD = "a long enough secret"
RUN = secrets.token_hex(4)  # no two runs make the same users
CONNECTIONS_AT_MOST = 25 + 3 + 3 + 5 + 1  # service, its health, worker, procrastinate, LISTEN; as the role adds them up


@pytest.fixture(scope="module")
def app(host: Callable[[str], Host]) -> Host:
    return host("app1")


@pytest.fixture(scope="module")
def service(network: dict[str, Any]) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"http://{network['hosts']['app1']['address']}:8080", timeout=10) as client:
        yield client


@pytest.fixture(scope="module")
def admin(app: Host, service: httpx.Client) -> dict[str, str]:
    """The header of the first admin, made on the host as its operator would."""
    app.run(
        f"echo '{PASSWORD}' | runuser -u bazaruto -- bazarutod users add admin{RUN}@example.com --name A --role admin"
    )
    answer = service.post("/v1/auth/login", json={"email": f"admin{RUN}@example.com", "password": PASSWORD})
    return {"Authorization": f"Bearer {answer.json()['token']}"}


@pytest.fixture(scope="module")
def policy(service: httpx.Client, admin: dict[str, str]) -> str:
    holder = {"email": f"ana{RUN}@example.com", "name": "Ana", "password": PASSWORD}
    user = service.post("/v1/users", headers=admin, json=holder).json()["id"]
    terms = {
        **{"user_id": user, "product": "motor", "coverage_minor": 2_000_000, "premium_minor": 25_000},
        **{"currency": "EUR", "starts_on": "2026-01-01", "ends_on": "2035-12-31"},
    }
    policy = str(service.post("/v1/policies", headers=admin, json=terms).json()["id"])
    service.post(f"/v1/policies/{policy}/activate", headers=admin).raise_for_status()
    return policy


def claim(service: httpx.Client, admin: dict[str, str], policy: str, amount_minor: int = 60_000) -> str:
    """Claim on the policy; returns the claim's path."""
    what = {
        **{"policy_id": policy, "amount_minor": amount_minor, "currency": "EUR"},
        **{"incident_on": "2026-02-01", "description": "A stone hit the windscreen"},
    }
    answer = service.post("/v1/claims", headers=admin, json=what)
    answer.raise_for_status()
    return f"/v1/claims/{answer.json()['id']}"


def assessed(service: httpx.Client, admin: dict[str, str], path: str) -> None:
    """Wait until the worker has decided."""
    until(
        lambda: service.get(path, headers=admin).json()["status"] != "submitted",
        60,
        f"{path} was assessed by no worker",
    )


def answers(service: httpx.Client, path: str, status: int, word: str) -> Callable[[], bool]:
    """Whether the service answers so now."""

    def answered() -> bool:
        try:
            answer = service.get(path)
        except httpx.TransportError:
            return False
        return answer.status_code == status and answer.json()["status"] == word

    return answered


def main_pid(app: Host, unit: str) -> str:
    return app.run(f"systemctl show --property=MainPID --value {unit}").stdout.strip()


def changed_tasks(changed: frozenset[Any]) -> set[str]:
    return {task.partition(" : ")[2].rpartition(" (")[0] for _, task, _ in changed}


def test_a_claim_is_taken_and_assessed_by_the_worker(service: httpx.Client, admin: dict[str, str], policy: str) -> None:
    path = claim(service, admin, policy)
    assessed(service, admin, path)
    assert service.get(path, headers=admin).json()["status"] == "in_review"


def test_health_and_metrics_are_as_documented(service: httpx.Client) -> None:
    report = service.get("/healthz/detailed").json()
    assert report["status"] == "healthy", report
    metrics = service.get("/metrics").text
    assert [name for name in DOCUMENTED if f"# TYPE {name.removesuffix('_total')}" not in metrics] == []


@pytest.mark.parametrize("unit", UNITS)
def test_little_of_the_host_is_exposed_to_a_unit(app: Host, unit: str) -> None:
    assert app.run(f"systemd-analyze security --threshold=15 --no-pager {unit}", check=False).returncode == 0


@pytest.mark.parametrize("unit", UNITS)
def test_in_the_sandbox_nothing_can_be_written_but_state_and_logs(app: Host, unit: str) -> None:
    app.copy(Path(__file__).parent, "/usr/local/share/probe")
    app.run(
        f"""sed -e '/^ExecStartPre=/d; /^Restart/d; s/^Type=.*/Type=oneshot/' \\
            -e 's|^ExecStart=.*|ExecStart=/usr/bin/python3 /usr/local/share/probe/sandbox_probe.py|' \\
            /etc/systemd/system/{unit} >/run/systemd/system/probe.service
        systemctl daemon-reload && systemctl start probe.service"""
    )
    said = app.run("journalctl --unit=probe.service --output=cat --grep=writable --lines=1 --no-pager").stdout
    app.run("rm -r /run/systemd/system/probe.service /usr/local/share/probe && systemctl daemon-reload")
    found = json.loads(said)
    assert {place for place in found["writable"] if not place.startswith(("/tmp/", "/var/tmp/"))} <= MAY_WRITE
    assert found["reads"] == []


def test_no_secret_is_in_an_environment_on_a_command_line_or_open_to_others(
    app: Host, passwords: dict[str, str]
) -> None:
    seen = app.run("cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline | tr '\\0' '\\n'; true").stdout
    assert "BAZARUTO_CONFIG=" in seen
    assert [name for name, value in passwords.items() if value in seen] == []
    modes = app.run("stat --format='%a %U:%G' /etc/bazaruto/bazarutod.yml /etc/bazaruto/migrations.yml").stdout
    assert modes.split("\n")[:2] == ["640 root:bazaruto", "600 root:root"]


def test_level_and_rules_change_without_a_restart(app: Host, service: httpx.Client, admin: dict[str, str]) -> None:
    before = main_pid(app, UNITS[0])
    rules = "/etc/bazaruto/business_rules.json"
    app.run(
        f"""echo debug >/var/lib/bazaruto/config/log-level
        cp --preserve=mode,ownership {rules} {rules}.was
        sed 's/"version": 1/"version": 2/' {rules}.was >{rules}"""
    )
    until(lambda: service.get("/v1/rules", headers=admin).json()["version"] == 2, 10, "the rules were not taken")
    app.run('grep -q \'log level set.*"to":"debug"\' /var/log/bazaruto/bazarutod.log')
    app.run(f"mv {rules}.was {rules}; rm /var/lib/bazaruto/config/log-level")
    until(lambda: service.get("/v1/rules", headers=admin).json()["version"] == 1, 10, "the rules were not taken back")
    assert main_pid(app, UNITS[0]) == before


def test_logs_are_rotated_and_no_line_is_lost(app: Host, service: httpx.Client) -> None:
    asked = [f"/livez?{number}" for number in range(20)]
    app.run("cat /var/log/bazaruto/access.log >/tmp/before; logrotate --force /etc/logrotate.d/bazaruto")
    count = app.run("grep -c livez /tmp/before", check=False).stdout.strip()
    for path in asked:
        service.get(path)
    until(
        lambda: (
            app.run("test -s /var/log/bazaruto/access.log", check=False).returncode == 0
            or service.get("/livez").is_error
        ),
        10,
        "the log was not made anew",
    )
    found = app.run("cat /var/log/bazaruto/access.log /var/log/bazaruto/access.log.1 | grep -c livez").stdout
    assert int(found) == int(count) + len(asked)


def test_all_processes_open_no_more_connections_than_the_role_says(
    host: Callable[[str], Host], service: httpx.Client, admin: dict[str, str], policy: str
) -> None:
    count = (
        'for i in $(seq 25); do runuser -u postgres -- psql -XAtc "SELECT count(*), count(*) FILTER (WHERE '
        "application_name LIKE 'bazaruto-worker%') FROM pg_stat_activity WHERE usename = 'bazaruto'\"; done | sort -n"
    )
    with concurrent.futures.ThreadPoolExecutor(max_workers=33) as threads:
        counting = threads.submit(host("db1").run, count, seconds=120)

        def ask(number: int) -> None:
            with httpx.Client(base_url=service.base_url, timeout=30) as client:
                while not counting.done():
                    if number % 4:
                        client.get("/v1/claims", headers=admin)
                    else:
                        claim(client, admin, policy)
                    client.get("/healthz/detailed")

        for asking in [threads.submit(ask, number) for number in range(32)]:
            asking.result()
    most, workers = counting.result().stdout.split()[-1].split("|")
    print(f"{most} connections at most, {workers} of them the worker's")
    assert int(most) <= CONNECTIONS_AT_MOST


def test_without_redis_it_is_degraded_and_serves(
    host: Callable[[str], Host], service: httpx.Client, admin: dict[str, str]
) -> None:
    faults.cut(host("cache1"))
    try:
        until(answers(service, "/healthz", 200, "degraded"), 30, "the loss of Redis was not seen")
        assert service.get("/readyz").status_code == 200
        assert service.get("/v1/policies", headers=admin).status_code == 200
        login = service.post("/v1/auth/login", json={"email": f"ana{RUN}@example.com", "password": PASSWORD})
        assert login.status_code == 200
    finally:
        faults.join(host("cache1"))
    until(answers(service, "/healthz", 200, "healthy"), 60, "Redis was not found again")


def test_without_the_database_it_answers_503_and_recovers_by_itself(
    app: Host, host: Callable[[str], Host], service: httpx.Client, admin: dict[str, str], policy: str
) -> None:
    before = [main_pid(app, unit) for unit in UNITS]
    host("db1").kill()
    try:
        until(answers(service, "/healthz", 503, "unhealthy"), 30, "the loss of the database was not seen")
        assert service.get("/readyz").status_code == 503
        assert service.get("/livez").status_code == 200
    finally:
        host("db1").start()
    until(answers(service, "/readyz", 200, "ready"), 60, "the database was not found again")
    assessed(service, admin, claim(service, admin, policy))
    assert [main_pid(app, unit) for unit in UNITS] == before


def test_a_process_that_dies_comes_back_and_so_does_all_after_a_reboot(
    app: Host, service: httpx.Client, admin: dict[str, str], policy: str
) -> None:
    app.run(f"systemctl kill --signal=KILL {' '.join(UNITS)}")
    until(answers(service, "/readyz", 200, "ready"), 30, "the service did not come back")
    app.stop()
    app.start()
    until(answers(service, "/readyz", 200, "ready"), 60, "the service did not come back after a reboot")
    assessed(service, admin, claim(service, admin, policy))


@pytest.mark.timeout(900)
def test_check_mode_tells_the_truth(app: Host) -> None:
    app.run(
        """cd /etc
        echo '# planted' >>systemd/system/bazarutod.service
        echo '# planted' >>bazaruto/bazarutod.yml
        echo '{}' >bazaruto/business_rules.json
        ln -sfn /var/empty /opt/bazaruto/current"""
    )
    predicted = converge("bazaruto_service", "--limit=app1", "--check", "--diff")
    assert predicted.rc == 0, predicted
    done = converge("bazaruto_service", "--limit=app1")
    assert (done.rc, done.changed) == (0, predicted.changed), f"{predicted}\n{done}"
    assert changed_tasks(done.changed) == {
        *("Write the units", "Write the settings", "Write the business rules", "Switch over to release 0.1.0"),
        "Start what does not run, restart what changed",
    }


@pytest.mark.timeout(900)
def test_what_a_run_that_was_cut_off_did_not_restart_is_restarted_by_the_next_and_nothing_else(app: Host) -> None:
    before = [main_pid(app, unit) for unit in UNITS]
    app.run(
        "sed -i '/bazaruto-worker.service$/s/^......../00000000/' /run/bazaruto/bazaruto-worker.service.started"
    )  # as if its unit had been written, and the run ended there
    done = converge("bazaruto_service", "--limit=app1")
    assert changed_tasks(done.changed) == {"Start what does not run, restart what changed"}, done
    after = [main_pid(app, unit) for unit in UNITS]
    assert [was == now for was, now in zip(before, after, strict=True)] == [True, False]
    again = converge("bazaruto_service", "--limit=app1")
    assert (again.rc, again.changed) == (0, frozenset()), again


def test_more_connections_than_the_database_has_are_refused_by_name_before_anything_is_touched() -> None:
    refused = converge("bazaruto_service", "--limit=app1", "-e", '{"bazaruto_service_instances": 3}')
    assert (refused.rc, refused.changed) == (2, frozenset())
    assert "bazaruto_service_db_max_connections" in refused.failed["app1"]
