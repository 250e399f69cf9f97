"""Every line is the guide's JSON; what clients send can forge nothing; secrets stay out."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bazaruto import config, logs
from bazaruto.logs import Served

ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=80) | st.sampled_from(
    [
        "status=403",
        " status=403 ",
        "authentication failed",
        '","message":"authentication failed email=x"}\n{"a":"status=403',
        "\x00\x1b[31m\r\n\x7f\u2028\x85",
        "\ud800",
        "authentication\u00a0failed",
        "a\\u0020b",
    ]
)
FORGE = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def log_home(tmp_path: Path) -> Iterator[Path]:
    """A home whose logs this process writes, until the test ends."""
    before = (logging.root.handlers[:], logging.root.level, sys.excepthook, threading.excepthook)
    logs.configure(config.load({"BAZARUTO_HOME": str(tmp_path)}), "unit", echo=False)
    yield tmp_path
    logging.captureWarnings(False)
    logging.root.handlers[:], logging.root.level = before[0], before[1]
    sys.excepthook, threading.excepthook = before[2], before[3]
    logs.request_id.set(None)


def lines(home: Path, name: str = "unit") -> list[dict[str, Any]]:
    """Every line of a log so far."""
    return [json.loads(line) for line in (home / "log" / f"{name}.log").read_bytes().splitlines()]


def access_text(home: Path) -> str:
    """What grep sees of access.log; the file is emptied."""
    path = home / "log" / "access.log"
    text = path.read_bytes().decode("ascii")
    os.truncate(path, 0)
    return text


def test_a_line_has_the_guides_fields_first(log_home: Path) -> None:
    logs.request_id.set("req_123456789")
    logs.get("tests").info("User created successfully", user_id="123e4567", email="user@example.com")
    (line,) = lines(log_home)
    assert list(line)[:3] == ["level", "timestamp", "message"]
    assert line["level"] == "info"
    assert line["timestamp"].endswith("Z")
    assert (line["message"], line["user_id"]) == ("User created successfully", "123e4567")
    assert (line["email"], line["request_id"]) == ("user@example.com", "req_123456789")


def test_the_five_levels_are_written_under_their_names(log_home: Path) -> None:
    log = logs.get("tests")
    (log_home / "config").mkdir()
    (log_home / "config" / "log-level").write_text("debug\n")
    for write in (log.debug, log.info, log.warn, log.error, log.fatal):
        write("one")
    assert [line["level"] for line in lines(log_home) if line["message"] == "one"] == [*logs.LEVELS]


def test_the_level_is_set_at_run_time_by_a_file_and_the_setting_rules_again_without_it(
    log_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "LEVEL_CHECK_SECONDS", 0.0)
    level, log = log_home / "config" / "log-level", logs.get("tests")
    level.parent.mkdir()
    log.debug("unseen")
    level.write_text("error")
    log.warn("unseen")
    logging.getLogger("waitress").warning("unseen")
    level.unlink()
    log.info("seen")
    level.write_text("DEBUG\n")
    log.debug("seen")
    level.write_text("everything")
    log.debug("seen")
    messages = [line["message"] for line in lines(log_home)]
    assert "unseen" not in messages
    assert messages.count("seen") == 3
    assert any("none of the five levels" in message for message in messages)


def test_the_access_log_is_written_at_every_level(log_home: Path) -> None:
    (log_home / "config").mkdir()
    (log_home / "config" / "log-level").write_text("fatal")
    logs.get("tests").error("unseen")
    logs.access(Served("GET", "/v1/x", "/v1/{id}", 403, 0.002, "127.0.0.1", "req_1"))
    assert "request served method=GET path=/v1/x status=403 duration=2.0ms" in access_text(log_home)


@FORGE
@given(
    method=ANY_TEXT, path=st.binary(max_size=60) | ANY_TEXT.map(lambda t: t.encode("utf-8", "replace")), user=ANY_TEXT
)
def test_no_method_path_or_user_can_forge_a_line(log_home: Path, method: str, path: bytes, user: str) -> None:
    latin = method.encode("utf-8", "replace").decode("latin-1")
    logs.access(Served(latin, path.decode("latin-1"), "unmatched", 404, 0.1, "127.0.0.1", "req_1", user))
    text = access_text(log_home)
    assert text.count("\n") == 1
    assert "status=403" not in text
    assert text.count("status=") == 1
    assert "authentication failed" not in text
    assert json.loads(text)["status"] == 404


@FORGE
@given(email=ANY_TEXT, client=ANY_TEXT, reason=ANY_TEXT)
def test_no_email_can_forge_a_line(log_home: Path, email: str, client: str, reason: str) -> None:
    logs.authentication_failed(email=email, client=client, reason=reason)
    text = access_text(log_home)
    assert text.count("\n") == 1
    assert "status=" not in text
    assert text.count("authentication failed") == 1
    assert text.isprintable() or text[:-1].isprintable()
    assert json.loads(text)["message"].startswith("authentication failed email=")


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(message=ANY_TEXT, value=ANY_TEXT | st.binary() | st.floats() | st.dictionaries(ANY_TEXT, ANY_TEXT))
def test_whatever_is_logged_is_one_json_line(log_home: Path, message: str, value: object) -> None:
    logs.get("tests").info(message, value=value, other={1, 2}, thing=object())
    content = (log_home / "log" / "unit.log").read_bytes()
    os.truncate(log_home / "log" / "unit.log", 0)
    assert content.count(b"\n") == 1
    assert json.loads(content)["level"] == "info"


@pytest.mark.parametrize(
    "fields",
    [
        {"password": "hunter2"},
        {"headers": {"Authorization": "Bearer hunter2hunter2"}},
        {"nested": [{"refresh_token": "hunter2"}]},
        {"note": "Authorization: Bearer hunter2hunter2"},
        {"url": "postgresql://user:hunter2@host/db"},
        {"url": "redis://:hunter2@host:6379/0"},
        {"conninfo": "host=h user=u password=hunter2 dbname=d"},
        {"body": '{"email": "a@b", "password": "hunter2 and \\" more"}'},
        {"api_key": "hunter2", "Set-Cookie": "hunter2"},
        {"text": "token=hunter2&x=1"},
    ],
)
def test_secrets_are_not_logged(log_home: Path, fields: dict[str, Any]) -> None:
    logs.get("tests").info("event", **fields)
    logging.getLogger("library").warning("said %s", fields)
    assert b"hunter2" not in (log_home / "log" / "unit.log").read_bytes()


def test_no_token_in_a_path_or_an_e_mail_is_logged(log_home: Path) -> None:
    for token in ("bz_" + "A" * 43, "bzr_0123456789ab_" + "A" * 43, "whsec_" + "A" * 43):
        logs.access(Served("GET", f"/v1/auth/{token}", "unmatched", 404, 0.1, "127.0.0.1", "req_1"))
        logs.authentication_failed(email=f"{token}@example.com", client="127.0.0.1", reason="wrong")
        logs.get("tests").info("refused", detail=f"what was sent: {token}.")
    assert "AAAA" not in access_text(log_home)
    assert b"AAAA" not in (log_home / "log" / "unit.log").read_bytes()


def test_what_only_looks_like_a_secret_is_kept(log_home: Path) -> None:
    logs.get("tests").info("event", token_id="t1", url="http://127.0.0.1:8080/v1", passwords_checked=3)
    (line,) = lines(log_home)
    assert (line["token_id"], line["url"], line["passwords_checked"]) == ("t1", "http://127.0.0.1:8080/v1", 3)


def test_tracebacks_warnings_and_uncaught_errors_become_lines(tmp_path: Path) -> None:
    program = """
import logging, threading, warnings
from bazaruto import config, logs
logs.configure(config.load(), "program", echo=False)
warnings.warn("careful")
logging.getLogger("procrastinate.worker").error("two\\nlines %s", {"a": 1})
logging.getLogger("x").info("%d", "wrong argument")
thread = threading.Thread(target=lambda: 1 / 0)
thread.start(); thread.join()
try:
    {}["password=hunter2"]
except KeyError:
    logs.get("tests").exception("caught")
raise RuntimeError("the end")
"""
    environment = {**os.environ, "BAZARUTO_HOME": str(tmp_path)}
    ended = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, check=False)
    assert (ended.returncode, ended.stderr) == (1, b"")
    found = lines(tmp_path, "program")
    assert [line["level"] for line in found] == ["warn", "error", "info", "error", "error", "fatal"]
    assert "ZeroDivisionError" in found[3]["exception"]
    assert "KeyError" in found[4]["exception"]
    assert "hunter2" not in json.dumps(found)
    assert "the end" in found[5]["message"]


def test_processes_that_append_to_one_file_do_not_tear_each_others_lines(tmp_path: Path) -> None:
    program = """
import threading
from bazaruto import config, logs
from bazaruto.logs import Served
logs.configure(config.load(), "program", echo=False)
def write():
    for _ in range(300):
        logs.access(Served("GET", "/" + "x" * 700, "unmatched", 200, 0.1, "127.0.0.1", "req_1"))
threads = [threading.Thread(target=write) for _ in range(4)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
"""
    environment = {**os.environ, "BAZARUTO_HOME": str(tmp_path)}
    processes = [subprocess.Popen([sys.executable, "-c", program], env=environment) for _ in range(3)]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    assert len(lines(tmp_path, "access")) == 3 * 4 * 300


def test_a_file_rotated_away_is_opened_anew(log_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bazaruto import log_files

    monkeypatch.setattr(log_files, "LOOK_SECONDS", 0.0)
    log, path = logs.get("tests"), log_home / "log" / "unit.log"
    log.info("before")
    path.rename(path.with_suffix(".log.1"))
    log.info("after")
    log.info("last")
    assert [line["message"] for line in lines(log_home)] == ["after", "last"]


def test_a_log_that_cannot_be_written_loses_lines_says_so_once_and_recovers(tmp_path: Path) -> None:
    program = """
import resource, signal
from bazaruto import config, logs
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
logs.configure(config.load(), "program", echo=False)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
for number in range(20):
    logs.get("tests").info("a line that fills the file", number=number)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
logs.get("tests").info("room again")
"""
    environment = {**os.environ, "BAZARUTO_HOME": str(tmp_path)}
    ended = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    found = lines(tmp_path, "program")  # whole lines only: the torn one was taken back
    said = ended.stderr.splitlines()
    assert found[-1]["message"] == "room again"
    assert len(said) == 2
    assert "cannot be written" in said[0]
    assert f"{21 - len(found)} lines were lost" in said[1]
