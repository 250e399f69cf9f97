"""Content on its way to a control node: the digest the control plane knows, a name that tells what it is, whole."""

from __future__ import annotations

import importlib.util
import json
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from bazaruto.control import content_files, installed
from tests import role_modules

control_content = role_modules.load("control_node", "control_content")
COMMIT, OTHER = "c0ffee" * 6 + "c0ff", "decade" * 6 + "deca"


def load_action() -> ModuleType:
    path = role_modules.ROOT / "roles/control_node/action_plugins/control_content.py"
    spec = importlib.util.spec_from_file_location("action_control_content", path)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


action = load_action()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    root = tmp_path / "source"
    for name in ("playbooks/site.yml", "roles/a/tasks/main.yml", "inventories/lab/hosts.yml", "ansible.cfg"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{name}\n")
    (root / "inventories/secret").write_text("#!/bin/sh\n")
    (root / "inventories/secret").chmod(0o755)
    (root / "roles/b").symlink_to("a")
    for name in ("roles/a/tasks/main.yml~", "playbooks/__pycache__/x", "docs/page.md", "roles/a/.#lock"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("left out")
    return root


def content(digest: str, commit: str | None = COMMIT, dirty: bool = False) -> dict[str, Any]:
    return {"commit": commit, "dirty": dirty, "digest": digest}


def put(directory: Path, name: str, of: dict[str, Any]) -> None:
    (directory / name).mkdir(parents=True)
    (directory / name / "REVISION").write_text(json.dumps(of))


def test_the_digest_is_the_control_planes_own(source: Path) -> None:
    files = content_files.read(source, content_files.fingerprint(source))
    assert action.digest(action.read(source)) == content_files.digest(files)


def test_what_is_installed_is_what_was_packed(source: Path, tmp_path: Path) -> None:
    files = action.read(source)
    archive = tmp_path / "content.tar.gz"
    archive.write_bytes(action.pack(files))
    place = tmp_path / "content" / "c0ffee"
    control_content.install(place, archive, content(action.digest(files)))
    assert action.digest(action.read(place)) == action.digest(files)
    assert installed.state(place, action.digest(files)) == (COMMIT, False)
    assert installed.state(place, "another") == (COMMIT, True)
    assert [path.name for path in place.parent.iterdir()] == ["c0ffee"]


def test_a_broken_archive_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "broken").write_bytes(b"no archive")
    with pytest.raises(control_content.tarfile.TarError):
        control_content.install(tmp_path / "content/c0ffee", tmp_path / "broken", content("d"))
    assert list((tmp_path / "content").iterdir()) == []


@pytest.mark.parametrize(
    ("of", "name"),
    [
        (content("1" * 64), "c0ffeec0ffee"),
        (content("1" * 64, dirty=True), "c0ffeec0ffee-11111111"),
        (content("1" * 64, commit=None), "content-11111111"),
    ],
)
def test_a_name_says_which_content_it_is(of: dict[str, Any], name: str) -> None:
    assert control_content.name_of(of, {}) == name


def test_what_is_there_keeps_its_name(tmp_path: Path) -> None:
    put(tmp_path, "c0ffeec0ffee", content("1" * 64))
    there = control_content.installed(tmp_path)
    assert control_content.name_of(content("1" * 64), there) == "c0ffeec0ffee"
    assert control_content.name_of(content("1" * 64, commit=None), there) == "c0ffeec0ffee"
    assert control_content.name_of(content("2" * 64, commit=None), there) == "content-22222222"
    assert control_content.name_of(content("2" * 64), there) == "c0ffeec0ffee-22222222"
    assert control_content.name_of(content("1" * 64, OTHER), there) == OTHER[:12]


def test_of_two_names_of_one_content_the_one_in_use_is_kept(tmp_path: Path) -> None:
    put(tmp_path, "aaaa", content("1" * 64, "a" * 40))
    put(tmp_path, "bbbb", content("1" * 64, "b" * 40))
    (tmp_path / "current").symlink_to("bbbb")
    assert control_content.name_of(content("1" * 64, None), control_content.installed(tmp_path)) == "bbbb"


def test_a_checkout_says_its_commit_and_what_differs(source: Path) -> None:
    assert action.revision(source, "d") == (None, False)
    git = ["git", "-C", str(source), "-c", "user.name=a", "-c", "user.email=a@example.com"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "One"]):
        subprocess.run([*git, *words], check=True)
    commit, dirty = action.revision(source, "d")
    assert (len(commit), dirty) == (40, False)
    (source / "ansible.cfg").write_text("changed\n")
    assert action.revision(source, "d") == (commit, True)


def test_installed_content_says_what_it_was_installed_from(source: Path) -> None:
    (source / "REVISION").write_text(json.dumps(content("d")))
    assert action.revision(source, "d") == (COMMIT, False)
    assert action.revision(source, "e") == (COMMIT, True)
