"""Settings: the guide's names and values, one file and the environment, and no wrong one gets through."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
import yaml

from bazaruto import config


def refused(environment: dict[str, str]) -> list[str]:
    """What load says against this environment, line by line."""
    with pytest.raises(config.SettingsError) as caught:
        config.load(environment)
    return str(caught.value).splitlines()


@pytest.fixture
def settings_file(tmp_path: Path) -> Path:
    """Where a test writes its YAML."""
    return tmp_path / "bazaruto.yml"


def test_the_guides_values_are_the_defaults(tmp_path: Path) -> None:
    settings = config.load({"BAZARUTO_HOME": str(tmp_path)})
    assert (settings.server.read_timeout, settings.server.write_timeout, settings.server.idle_timeout) == (30, 30, 120)
    db, redis = settings.db, settings.redis
    assert (db.max_connections, db.min_connections, db.max_lifetime, db.idle_timeout) == (25, 5, 3600, 1800)
    assert (redis.max_connections, redis.min_connections, redis.max_lifetime) == (10, 1, 3600)


def test_the_guides_yaml_is_taken_as_printed(tmp_path: Path, settings_file: Path) -> None:
    guide = """
server:
  read_timeout: 31s
  write_timeout: 32s
  idle_timeout: 2m
db:
  max_connections: 26
  min_connections: 6
  max_lifetime: 2h
  idle_timeout: 31m
redis:
  max_connections: 11
  min_connections: 2
  max_lifetime: 1d
"""
    settings_file.write_text(guide)
    settings = config.load({"BAZARUTO_HOME": str(tmp_path), "BAZARUTO_CONFIG": str(settings_file)})
    assert (settings.server.read_timeout, settings.server.idle_timeout) == (31, 120)
    assert (settings.db.max_connections, settings.db.max_lifetime, settings.db.idle_timeout) == (26, 7200, 1860)
    assert (settings.redis.min_connections, settings.redis.max_lifetime) == (2, 86400)


def test_the_environment_rules_over_the_file_setting_by_setting(tmp_path: Path, settings_file: Path) -> None:
    settings_file.write_text("db: {max_connections: 7, min_connections: 3}\nservice_port: 9000\n")
    settings = config.load(
        {
            "BAZARUTO_HOME": str(tmp_path),
            "BAZARUTO_CONFIG": str(settings_file),
            "BAZARUTO_DB_MAX_CONNECTIONS": "8",
            "BAZARUTO_SERVER_READ_TIMEOUT": "500ms",
        }
    )
    assert (settings.db.max_connections, settings.db.min_connections, settings.service_port) == (8, 3, 9000)
    assert settings.server.read_timeout == 0.5


def test_every_unknown_and_wrong_setting_is_refused_at_once_by_its_name(tmp_path: Path, settings_file: Path) -> None:
    settings_file.write_text("server: {read_timeout: soon, typo: 1}\nredis: 5\nnonsense: true\n")
    lines = refused(
        {
            "BAZARUTO_HOME": str(tmp_path),
            "BAZARUTO_CONFIG": str(settings_file),
            "BAZARUTO_NO_SUCH_THING": "1",
            "BAZARUTO_DB_MAX_CONNECTIONS": "-1",
            "BAZARUTO_SERVER_NOPE": "1",
            "BAZARUTO_LOG_LEVEL": "loud",
            "BAZARUTO_SERVICE_PORT": "99999",
        }
    )
    text = "\n".join(lines)
    names = ["server.read_timeout", "server.typo", "redis:", "nonsense", "BAZARUTO_NO_SUCH_THING"]
    names += ["BAZARUTO_DB_MAX_CONNECTIONS", "BAZARUTO_SERVER_NOPE", "BAZARUTO_LOG_LEVEL", "BAZARUTO_SERVICE_PORT"]
    assert [name for name in names if name not in text] == []
    assert len(lines) == len(names)


@pytest.mark.parametrize("value", ["", "30 apples", "-1s", "1e999", "nan", "inf", "400d", "0", "s"])
def test_durations_that_mean_nothing_are_refused(tmp_path: Path, value: str) -> None:
    (line,) = refused({"BAZARUTO_HOME": str(tmp_path), "BAZARUTO_SERVER_READ_TIMEOUT": value})
    assert "BAZARUTO_SERVER_READ_TIMEOUT" in line


@pytest.mark.parametrize("value", [True, [], {}, "2026-01-01"])
def test_durations_of_other_types_are_refused(tmp_path: Path, settings_file: Path, value: object) -> None:
    settings_file.write_text(yaml.safe_dump({"server": {"read_timeout": value}}))
    (line,) = refused({"BAZARUTO_HOME": str(tmp_path), "BAZARUTO_CONFIG": str(settings_file)})
    assert "server.read_timeout" in line


def test_a_minimum_above_the_maximum_is_refused(tmp_path: Path) -> None:
    (line,) = refused({"BAZARUTO_HOME": str(tmp_path), "BAZARUTO_REDIS_MIN_CONNECTIONS": "11"})
    assert "min_connections (11) is more than max_connections (10)" in line


@pytest.mark.parametrize("value", ["proxy.example", "10.0.0.0/8", "127.0.0.1, ::1", "1"])
def test_a_proxy_that_is_no_address_is_refused(tmp_path: Path, value: str) -> None:
    (line,) = refused({"BAZARUTO_HOME": str(tmp_path), "BAZARUTO_SERVER_TRUSTED_PROXY": value})
    assert "is not an IP address" in line


def test_a_proxys_address_is_compared_in_one_form(tmp_path: Path) -> None:
    settings = config.load({"BAZARUTO_HOME": str(tmp_path), "BAZARUTO_SERVER_TRUSTED_PROXY": "0:0::0:1"})
    assert settings.server.trusted_proxy == "::1"


@pytest.mark.parametrize("name", ["DATABASE_URL", "CONTROL_DATABASE_URL", "REDIS_URL"])
def test_wrong_urls_are_refused_without_showing_the_password_in_them(tmp_path: Path, name: str) -> None:
    (line,) = refused({"BAZARUTO_HOME": str(tmp_path), f"BAZARUTO_{name}": "postgresql:x//u:hunter2@[h/db"})
    assert name in line
    assert "hunter2" not in line


def test_printed_settings_hold_no_password(tmp_path: Path) -> None:
    settings = config.load({"BAZARUTO_HOME": str(tmp_path), "BAZARUTO_DATABASE_URL": "postgresql://u:hunter2@h/db"})
    assert settings.database_url == "postgresql://u:hunter2@h/db"
    assert "hunter2" not in repr(settings)


@pytest.mark.parametrize("content", ["[1, 2]", "a: [", "\x00", "just a text"])
def test_a_file_that_is_no_mapping_is_refused_by_name(tmp_path: Path, settings_file: Path, content: str) -> None:
    settings_file.write_text(content)
    (line, *_) = refused({"BAZARUTO_HOME": str(tmp_path), "BAZARUTO_CONFIG": str(settings_file)})
    assert str(settings_file) in line


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    (line,) = refused({"BAZARUTO_CONFIG": str(tmp_path / "none.yml")})
    assert "none.yml" in line


def test_an_empty_file_and_empty_sections_are_the_defaults(tmp_path: Path, settings_file: Path) -> None:
    settings_file.write_text("# nothing yet\ndb:\n")
    settings = config.load({"BAZARUTO_HOME": str(tmp_path), "BAZARUTO_CONFIG": str(settings_file)})
    assert settings.db == config.DatabaseSettings()


def test_what_up_decided_is_used_until_somebody_says_otherwise(tmp_path: Path) -> None:
    decided = {
        "service": {"database_url": "postgresql://u@/service"},
        "control": {"database_url": "postgresql://u@/control"},
        "redis_url": "unix:///tmp/redis.sock",
    }
    (tmp_path / "local.json").write_text(json.dumps(decided))
    home = {"BAZARUTO_HOME": str(tmp_path)}
    assert config.load(home).database_url == "postgresql://u@/service"
    assert config.load(home, local=False).database_url == ""
    said = config.load({**home, "BAZARUTO_DATABASE_URL": "postgresql://other/x"})
    assert (said.database_url, said.redis_url) == ("postgresql://other/x", "unix:///tmp/redis.sock")


def test_directories_follow_from_home_unless_set(tmp_path: Path) -> None:
    settings = config.load({"BAZARUTO_HOME": str(tmp_path), "BAZARUTO_LOG_DIRECTORY": str(tmp_path / "elsewhere")})
    assert settings.backup_directory == tmp_path / "backups"
    assert settings.rules_file == tmp_path / "config" / "business_rules.json"
    assert settings.log_directory == tmp_path / "elsewhere"
    assert stat.S_ISDIR(tmp_path.stat().st_mode)
    assert not settings.log_directory.exists()  # reading settings makes nothing


def test_every_setting_can_be_given_by_its_variable(tmp_path: Path) -> None:
    environment = {"BAZARUTO_HOME": str(tmp_path)}
    defaults = config.load(environment).model_dump(mode="json")
    for section in config.SECTIONS:
        environment |= {f"BAZARUTO_{section}_{name}".upper(): str(value) for name, value in defaults[section].items()}
    assert config.load(environment).model_dump(mode="json") == defaults
