"""Jobs: what workers make of claims, what happens when workers or databases die, and what is seen of it."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from bazaruto import database

from .conftest import Client, Installation, claim_on, new_policy, wait_until


@pytest.fixture(scope="module")
def site(install: Callable[..., Installation]) -> Installation:
    """An installation of this module's own, whose queue nobody else fills."""
    return install(BAZARUTO_JOBS_SHUTDOWN_GRACE="5s")


@pytest.fixture(scope="module")
def staff(site: Installation) -> Client:
    return site.serve().login(site.add_user("admin"))


@pytest.fixture
def worker(site: Installation) -> Iterator[Any]:
    process = site.worker()
    yield process
    process.terminate()
    assert process.wait(20) == 0, (site.home / "worker.stderr").read_text()


def _submit(staff: Client, policy: dict[str, Any], **changes: Any) -> str:
    answer = staff.post("/v1/claims", json=claim_on(policy, **changes))
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def _assessed(staff: Client, claim: str, seconds: float = 20) -> dict[str, Any]:
    def look() -> Any:
        shown = staff.get(f"/v1/claims/{claim}").json()
        return shown if shown["status"] != "submitted" else None

    shown: dict[str, Any] = wait_until(look, seconds)
    return shown


def _metric(client: Client, line: str) -> float:
    for found in client.get("/metrics").text.splitlines():
        if found.startswith(line + " "):
            return float(found.rpartition(" ")[2])
    return 0.0


def _fail_a_job(site: Installation) -> int:
    """Queue an assessment of no claim."""
    row = site.one(
        "INSERT INTO procrastinate_jobs (queue_name, task_name, args) VALUES ('default', 'assess_claim', %s)"
        " RETURNING id",
        json.dumps({"claim_id": "00000000-0000-4000-8000-000000000000"}),
    )
    return int(row["id"])


def test_the_rules_decide_about_a_claim_and_the_history_says_which(staff: Client, worker: object) -> None:
    policy = new_policy(staff, staff, product="health", coverage_minor=10_000_000)
    small = _submit(staff, policy, amount_minor=20_000)
    large = _submit(staff, policy, amount_minor=20_001)
    early = _submit(staff, policy, amount_minor=1, incident_on="2025-01-30")
    outcomes = {claim: _assessed(staff, claim) for claim in (small, large, early)}
    assert [outcomes[claim]["status"] for claim in (small, large, early)] == ["approved", "in_review", "in_review"]
    assert [line["to_status"] for line in outcomes[small]["history"]] == ["submitted", "in_review", "approved"]
    assert {line["via"] for line in outcomes[small]["history"][1:]} == {"job:assess_claim"}
    assert "auto-approval limit of 20000 EUR (rules version 1)" in outcomes[large]["history"][1]["reason"]
    assert "waiting period of 30 days" in outcomes[early]["history"][1]["reason"]


def test_an_assessment_that_runs_twice_changes_nothing_more(site: Installation, staff: Client, worker: object) -> None:
    claim = _submit(staff, new_policy(staff, staff))
    history = _assessed(staff, claim)["history"]
    job = site.one(
        "INSERT INTO procrastinate_jobs (queue_name, task_name, args) VALUES ('default', 'assess_claim', %s)"
        " RETURNING id",
        json.dumps({"claim_id": claim}),
    )
    wait_until(
        lambda: (
            site.one("SELECT status::text FROM procrastinate_jobs WHERE id = %s", job["id"])["status"] == "succeeded"
        )
    )
    assert staff.get(f"/v1/claims/{claim}").json()["history"] == history


def test_a_failed_job_is_listed_with_its_reason_and_can_be_retried(
    site: Installation, staff: Client, worker: object
) -> None:
    job = _fail_a_job(site)

    def listed() -> Any:
        items = staff.get("/jobs/failed").json()["items"]
        return next((item for item in items if item["id"] == job), None)

    failed = wait_until(listed)
    assert failed["task"] == "assess_claim"
    assert failed["error"].startswith("ClaimMissing: there is no claim")
    assert failed["attempts"] == 1
    nobody = Client(staff.url, staff.process)
    assert nobody.get("/jobs/failed").status_code == 200
    assert nobody.get("/jobs/failed", headers={"X-Forwarded-For": "203.0.113.9"}).status_code == 401
    assert nobody.post(f"/jobs/failed/{job}/retry").status_code == 401
    assert staff.post(f"/jobs/failed/{job}/retry").status_code == 200
    wait_until(lambda: site.one("SELECT count(*) AS c FROM job_failures WHERE job_id = %s", job)["c"] == 2)
    assert staff.post("/jobs/failed/999999/retry").status_code == 404


def test_counters_and_durations_are_the_same_from_every_instance_and_only_grow(
    site: Installation, staff: Client, worker: object
) -> None:
    line = 'jobs_processed_total{outcome="succeeded",task="assess_claim"}'
    before = _metric(staff, line)
    _assessed(staff, _submit(staff, new_policy(staff, staff)))
    wait_until(lambda: _metric(staff, line) == before + 1)
    other = site.serve()

    def own(client: Client) -> list[str]:
        return [text for text in client.get("/metrics").text.splitlines() if text.startswith("job")]

    assert own(staff) == own(other)
    labels = 'outcome="succeeded",task="assess_claim"'
    buckets = [float(text.split()[-1]) for text in own(other) if "duration_seconds_bucket" in text and labels in text]
    assert buckets == sorted(buckets)
    assert buckets[-1] == before + 1 == _metric(other, f"job_processing_duration_seconds_count{{{labels}}}")
    assert _metric(other, f"job_processing_duration_seconds_sum{{{labels}}}") > 0
    other.terminate()


def test_the_queue_is_shown_by_state_with_age_and_workers(site: Installation, staff: Client) -> None:
    wait_until(lambda: staff.get("/healthz/jobs").json()["workers_alive"] == 0)
    policy = new_policy(staff, staff)
    before = staff.get("/healthz/jobs").json()["states"]["todo"]
    claim = _submit(staff, policy)
    seen = staff.get("/healthz/jobs").json()
    assert seen["states"]["todo"] == before + 1
    assert seen["oldest_age_seconds"] >= 0
    assert _metric(staff, "job_queue_size") == before + 1
    detailed = staff.get("/healthz/detailed").json()
    assert detailed["checks"]["jobs"]["status"] == "degraded"
    worker = site.worker()
    assert staff.get("/healthz/jobs").json()["workers_alive"] == 1
    _assessed(staff, claim)
    worker.terminate()
    assert worker.wait(20) == 0


def test_held_jobs_do_not_run_until_released_and_never_when_dropped(site: Installation, staff: Client) -> None:
    policy = new_policy(staff, staff)
    kept, dropped = _submit(staff, policy), None
    site.rows("SELECT hold_jobs()")
    assert "1 assess_claim" in site.bazarutod("jobs", "held").stdout
    assert _metric(staff, "job_queue_held") == 1
    worker = site.worker()
    later = _submit(staff, policy)
    _assessed(staff, later)
    assert staff.get(f"/v1/claims/{kept}").json()["status"] == "submitted"
    assert site.bazarutod("jobs", "release").stdout == "1 held jobs were released\n"
    _assessed(staff, kept)
    worker.terminate()
    worker.wait(20)
    dropped = _submit(staff, policy)
    site.rows("SELECT hold_jobs()")
    assert site.bazarutod("jobs", "drop").stdout == "1 held jobs were cancelled\n"
    worker = site.worker()
    _assessed(staff, _submit(staff, policy))
    assert staff.get(f"/v1/claims/{dropped}").json()["status"] == "submitted"
    worker.terminate()
    worker.wait(20)


def test_while_writes_are_held_changes_are_refused_reads_go_on_and_jobs_wait(
    site: Installation, staff: Client, worker: object
) -> None:
    policy = new_policy(staff, staff)
    with psycopg.connect(site.database_url, autocommit=True) as holder:
        claim = _submit(staff, policy)
        holder.execute("SELECT pg_advisory_lock(%s)", [database.WRITE_HOLD_KEY])
        refused = staff.post("/v1/claims", json=claim_on(policy))
        assert (refused.status_code, refused.headers["Retry-After"]) == (503, "5")
        assert staff.get(f"/v1/policies/{policy['id']}").status_code == 200
        assert staff.get("/readyz").status_code == 200
        shown = staff.get("/healthz/detailed").json()["checks"]["writes"]
        assert (shown["status"], shown["error"].partition(":")[0]) == ("degraded", "held")
        job = site.one(
            "INSERT INTO procrastinate_jobs (queue_name, task_name, args) VALUES ('default', 'assess_claim', %s)"
            " RETURNING id",
            json.dumps({"claim_id": claim}),
        )["id"]
        wait_until(lambda: site.one("SELECT attempts FROM procrastinate_jobs WHERE id = %s", job)["attempts"] >= 1)
        assert site.one("SELECT status::text FROM procrastinate_jobs WHERE id = %s", job)["status"] == "todo"
        # Said, not left to the end of the session: the server notices a closed connection a moment later.
        holder.execute("SELECT pg_advisory_unlock(%s)", [database.WRITE_HOLD_KEY])
    assert staff.post("/v1/claims", json=claim_on(policy)).status_code == 201
    wait_until(
        lambda: site.one("SELECT status::text FROM procrastinate_jobs WHERE id = %s", job)["status"] == "succeeded"
    )


def test_the_jobs_of_a_killed_worker_are_taken_over(site: Installation, staff: Client) -> None:
    dead = site.one(
        "INSERT INTO procrastinate_workers (last_heartbeat) VALUES (now() - interval '1 minute') RETURNING id"
    )
    claim = _submit(staff, new_policy(staff, staff))
    site.rows(
        "UPDATE procrastinate_jobs SET status = 'doing', worker_id = %s"
        " WHERE status = 'todo' AND args->>'claim_id' = %s",
        dead["id"],
        claim,
    )
    poison = _fail_a_job(site)
    site.rows(
        "UPDATE procrastinate_jobs SET status = 'doing', worker_id = %s, attempts = 7 WHERE id = %s", dead["id"], poison
    )
    worker = site.worker()
    _assessed(staff, claim)
    assert site.one("SELECT status::text FROM procrastinate_jobs WHERE id = %s", poison)["status"] == "failed"
    error = site.one("SELECT error FROM job_failures WHERE job_id = %s", poison)["error"]
    assert error.startswith("WorkerDied")
    worker.terminate()
    worker.wait(20)


def test_a_worker_lives_through_the_loss_of_its_connections(site: Installation, staff: Client, worker: Any) -> None:
    def lose_connections() -> None:
        site.rows(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND application_name LIKE 'bazaruto-worker%%' AND pid <> %s",
            0,
        )

    for _ in range(3):
        lose_connections()
        assert _assessed(staff, _submit(staff, new_policy(staff, staff)), 40)
    assert worker.poll() is None


def test_a_job_that_ended_while_the_database_could_not_be_told_runs_again(
    site: Installation, staff: Client, worker: object
) -> None:
    claim = _submit(staff, new_policy(staff, staff))
    _assessed(staff, claim)
    own = site.one("SELECT max(id) AS id FROM procrastinate_workers")["id"]
    job = site.one(
        "INSERT INTO procrastinate_jobs (queue_name, task_name, args, status, worker_id)"
        " VALUES ('default', 'assess_claim', %s, 'doing', %s) RETURNING id",
        json.dumps({"claim_id": claim}),
        own,
    )["id"]
    wait_until(
        lambda: site.one("SELECT status::text FROM procrastinate_jobs WHERE id = %s", job)["status"] == "succeeded", 40
    )


def test_a_stopped_worker_takes_nothing_new_and_ends_with_zero(site: Installation) -> None:
    process = site.worker()
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 0
    wait_until(lambda: not site.rows("SELECT id FROM procrastinate_jobs WHERE status = 'doing'"))


def _blocked_job(site: Installation, staff: Client, blocker: psycopg.Connection[Any]) -> str:
    """A claim whose assessment a worker has begun, and cannot end before `blocker` lets it; returns the claim."""
    claim = _submit(staff, new_policy(staff, staff, product="health"), amount_minor=1)
    blocker.execute("SELECT 1 FROM claims WHERE id = %s FOR UPDATE", [claim])
    return claim


def _waits_for_a_lock(site: Installation) -> Any:
    waiting = "SELECT 1 AS one FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    return site.rows(waiting)


def test_a_stopped_worker_ends_the_job_it_has_begun(site: Installation, staff: Client) -> None:
    with psycopg.connect(site.database_url) as blocker:
        claim = _blocked_job(site, staff, blocker)
        process = site.worker()
        wait_until(lambda: _waits_for_a_lock(site))
        log = site.home / "log" / "bazaruto-worker.log"
        asked = log.read_text().count("Worker asked to stop")
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: log.read_text().count("Worker asked to stop") > asked)
        assert process.poll() is None
        blocker.rollback()
    assert process.wait(20) == 0
    assert staff.get(f"/v1/claims/{claim}").json()["status"] != "submitted"
    assert not site.rows("SELECT id FROM procrastinate_jobs WHERE status = 'doing'")


def test_a_job_that_outlasts_the_grace_is_given_up_and_runs_again(site: Installation, staff: Client) -> None:
    with psycopg.connect(site.database_url) as blocker:
        claim = _blocked_job(site, staff, blocker)
        process = site.worker(BAZARUTO_JOBS_SHUTDOWN_GRACE="500ms")
        wait_until(lambda: _waits_for_a_lock(site))
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 1
        blocker.rollback()
    site.rows("UPDATE procrastinate_workers SET last_heartbeat = now() - interval '1 minute'")  # not to wait for it
    again = site.worker()
    _assessed(staff, claim)
    again.terminate()
    assert again.wait(20) == 0


def test_ended_policies_lapse_and_running_ones_do_not(site: Installation, staff: Client, worker: object) -> None:
    running = new_policy(staff, staff)
    holder = staff.get("/v1/users/me").json()["id"]
    ended = site.one(
        "INSERT INTO policies (user_id, product, coverage_minor, premium_minor, currency, starts_on, ends_on,"
        " created_at, updated_at) VALUES"
        " (%s, 'home', 100, 1, 'EUR', '2020-01-01', '2020-12-31', '2020-01-01', '2020-01-01')"
        " RETURNING id",
        holder,
    )["id"]
    site.rows("UPDATE policies SET status = 'active', updated_at = '2020-01-02' WHERE id = %s", ended)
    job = site.one(
        "INSERT INTO procrastinate_jobs (queue_name, task_name, args)"
        " VALUES ('default', 'lapse_ended_policies', '{\"timestamp\": 1}') RETURNING id"
    )["id"]
    wait_until(
        lambda: site.one("SELECT status::text FROM procrastinate_jobs WHERE id = %s", job)["status"] == "succeeded"
    )
    assert staff.get(f"/v1/policies/{ended}").json()["status"] == "lapsed"
    assert staff.get(f"/v1/policies/{running['id']}").json()["status"] == "active"
