"""Snapshots of content: what is launched cannot change, and says truly which commit it is."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from bazaruto.control import catalog, content_files
from bazaruto.control.content import Content, ContentError, Release, UnknownContentError

ENTRY = {"summary": "x", "playbook": "job.yml", "effect": "read", "launch": "viewer", "timeout_seconds": 60}
PLAYBOOK = "playbooks/job.yml"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A small content directory, in no checkout."""
    directory = tmp_path / "source"
    write(directory, "playbooks/operations.yml", yaml.safe_dump({"operations": {"job": ENTRY}}))
    write(directory, PLAYBOOK, "- hosts: all\n")
    write(directory, "roles/job/tasks/main.yml", "[]\n")
    write(directory, "inventories/local/hosts.yml", "all: {hosts: {localhost: }}\n")
    write(directory, "ansible.cfg", "[defaults]\n")
    write(directory, "app/not_content.py", "")
    return directory


def write(directory: Path, name: str, text: str) -> Path:
    path = directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def git(directory: Path, *words: str) -> str:
    identity = ["-c", "user.name=T", "-c", "user.email=t@example.org", "-c", "init.defaultBranch=main"]
    done = subprocess.run(["git", *identity, *words], cwd=directory, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def commit_all(directory: Path) -> str:
    if not (directory / ".git").exists():
        git(directory, "init", "-q")
    git(directory, "add", "-A")
    git(directory, "commit", "-q", "--allow-empty", "-m", "x")
    return git(directory, "rev-parse", "HEAD")


def content(source: Path, store: str = "store") -> Content:
    return Content(source, source.parent / store / "content")


def age(directory: Path) -> None:
    """Wait until the clock has left the moment of the last write: files are told by their times from then on."""
    newest = content_files.newest(content_files.fingerprint(directory))
    while time.time_ns() < newest + 2_100_000_000:
        time.sleep(0.05)


def what_is(release: Release) -> tuple[str | None, bool]:
    return release.revision, release.dirty


def test_a_snapshot_holds_the_content_and_nothing_else(source: Path) -> None:
    write(source, "roles/job/__pycache__/x.pyc", "")
    write(source, "roles/job/library/tool.py", "").chmod(0o755)
    (source / "roles" / "same").symlink_to("job")
    release = content(source).current()
    found = {str(path.relative_to(release.directory)) for path in release.directory.rglob("*") if not path.is_dir()}
    assert found == {
        "playbooks/operations.yml", PLAYBOOK, "roles/job/tasks/main.yml", "roles/job/library/tool.py",
        "inventories/local/hosts.yml", "ansible.cfg",
    }  # fmt: skip
    assert (release.directory / "roles" / "same" / "tasks" / "main.yml").read_text() == "[]\n"
    assert release.directory.name == release.digest[:16]
    assert release.catalogue.directory == release.directory
    modes = {stat.S_IMODE(path.lstat().st_mode) for path in release.directory.rglob("*") if not path.is_symlink()}
    assert modes == {0o400, 0o500}
    assert os.access(release.directory / "roles/job/library/tool.py", os.X_OK)


def test_a_snapshot_stays_when_the_source_changes(source: Path) -> None:
    kept = content(source)
    before = kept.current()
    (source / PLAYBOOK).write_text("- hosts: none\n")
    after = kept.current()
    assert (before.directory / PLAYBOOK).read_text() == "- hosts: all\n"
    assert (after.directory / PLAYBOOK).read_text() == "- hosts: none\n"
    (source / PLAYBOOK).write_text("- hosts: all\n")
    assert kept.current().directory == before.directory


@pytest.mark.parametrize("settled", [False, True])
def test_no_change_is_missed_even_of_equal_length_and_time(source: Path, settled: bool) -> None:
    kept = content(source)
    digests = [kept.current().digest]
    if settled:
        age(source)
        assert kept.current().digest == digests[0]
    for hosts in ("one", "two", "six"):
        path = source / PLAYBOOK
        times = path.stat()
        path.write_text(f"- hosts: {hosts}\n")
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        digests.append(kept.current().digest)
    assert len(set(digests)) == 4


def test_what_is_added_renamed_removed_or_made_executable_is_another_content(source: Path) -> None:
    kept = content(source)
    digests = [kept.current().digest]
    added = write(source, "roles/job/files/a", "x")
    digests.append(kept.current().digest)
    added.chmod(0o755)
    digests.append(kept.current().digest)
    added = added.rename(added.with_name("b"))
    digests.append(kept.current().digest)
    assert len(set(digests)) == 4
    added.unlink()
    assert kept.current().digest == digests[0]
    (source / PLAYBOOK).chmod(0o640)
    assert kept.current().digest == digests[0], "who else may read a file is no content"


def test_two_nodes_have_the_same_digest_of_the_same_content(source: Path, tmp_path: Path) -> None:
    commit_all(source)
    git(tmp_path, "clone", "-q", str(source), "clone")
    here, there = content(source).current(), content(tmp_path / "clone", "other").current()
    assert (here.digest, what_is(here)) == (there.digest, what_is(there))


def test_content_in_no_checkout_has_no_revision(source: Path) -> None:
    assert what_is(content(source).current()) == (None, False)


def test_installed_content_says_of_which_commit_it_is_unless_it_was_touched(source: Path) -> None:
    said = {"commit": "c" * 40, "dirty": False, "digest": content(source).current().digest}
    (source / "REVISION").write_text(json.dumps(said))
    assert what_is(content(source).current()) == ("c" * 40, False)
    write(source, "ansible.cfg", "[defaults]\nforks = 3\n")
    assert what_is(content(source).current()) == ("c" * 40, True)
    (source / "REVISION").write_text("{}")
    assert what_is(content(source).current()) == (None, True)


def test_content_at_a_commit_says_which(source: Path) -> None:
    assert what_is(content(source).current()) == (None, False)
    kept = content(source)
    first = commit_all(source)
    assert what_is(kept.current()) == (first, False)
    write(source, "app/not_content.py", "changed")
    assert what_is(kept.current()) == (first, False), "the rest of the checkout is not run"
    second = commit_all(source)
    assert what_is(kept.current()) == (second, False)
    git(source, "checkout", "-q", first)
    assert what_is(kept.current()) == (first, False)
    git(source, "checkout", "-q", "main")
    git(source, "gc", "-q")  # packs the refs
    third = commit_all(source)
    assert what_is(kept.current()) == (third, False)


@pytest.mark.parametrize("change", ["modified", "staged", "added", "removed", "executable", "behind the index"])
def test_content_that_differs_from_its_commit_is_dirty(source: Path, change: str) -> None:
    commit = commit_all(source)
    kept = content(source)
    assert what_is(kept.current()) == (commit, False)
    path = source / PLAYBOOK
    if change == "added":
        write(source, "roles/job/defaults/main.yml", "{}\n")
    elif change == "removed":
        (source / "roles/job/tasks/main.yml").unlink()
    elif change == "executable":
        path.chmod(0o755)
    else:
        if change == "behind the index":
            git(source, "update-index", "--assume-unchanged", PLAYBOOK)
        path.write_text("- hosts: none\n")
        if change == "staged":
            git(source, "add", "-A")
    assert what_is(kept.current()) == (commit, True)
    if change == "modified":
        git(source, "checkout", "-q", ".")
        assert what_is(kept.current()) == (commit, False)


def test_ignored_files_make_nothing_dirty(source: Path) -> None:
    write(source, ".gitignore", "*.local\n")
    commit = commit_all(source)
    kept = content(source)
    write(source, "inventories/local/host_vars/x.local", "")
    assert what_is(kept.current()) == (commit, False)
    write(source, ".gitignore", "")
    assert what_is(kept.current()) == (commit, True)


def test_a_directory_below_a_checkout_and_a_worktree_of_it_are_at_its_commit(source: Path, tmp_path: Path) -> None:
    inner = source.rename(tmp_path / "inner")
    (tmp_path / "repository").mkdir()
    inner = inner.rename(tmp_path / "repository" / "operations")
    commit = commit_all(tmp_path / "repository")
    assert what_is(content(inner).current()) == (commit, False)
    git(tmp_path / "repository", "worktree", "add", "-q", "-b", "other", str(tmp_path / "worktree"))
    there = content(tmp_path / "worktree" / "operations")
    assert what_is(there.current()) == (commit, False)
    write(tmp_path / "worktree" / "operations", PLAYBOOK, "- hosts: none\n")
    assert what_is(there.current()) == (commit, True)
    other = commit_all(tmp_path / "worktree")
    assert what_is(there.current()) == (other, False)
    assert what_is(content(inner).current()) == (commit, False)


def test_a_submodule_is_compared_with_the_commit_that_is_recorded_of_it(source: Path, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    write(shared, "tasks/main.yml", "[]\n")
    commit_all(shared)
    git(source, "init", "-q")
    git(source, "-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(shared), "roles/shared")
    commit = commit_all(source)
    kept = content(source)
    assert what_is(kept.current()) == (commit, False)
    write(source, "roles/shared/tasks/main.yml", "[1]\n")
    assert what_is(kept.current()) == (commit, True)


def test_nothing_that_a_repository_configures_is_executed(source: Path, tmp_path: Path) -> None:
    trap, sprung = tmp_path / "trap", tmp_path / "sprung"
    trap.write_text(f"#!/bin/sh\ntouch {sprung}\ncat\n")
    trap.chmod(0o755)
    write(source, ".gitattributes", "* filter=trap diff=trap\n")
    commit = commit_all(source)
    hooks = source / ".git" / "hooks"
    for name in ("post-checkout", "post-index-change", "fsmonitor-watchman"):
        trap_hook = hooks / name
        trap_hook.write_bytes(trap.read_bytes())
        trap_hook.chmod(0o755)
    for name in ("core.fsmonitor", "filter.trap.clean", "filter.trap.process", "diff.trap.textconv", "core.pager"):
        git(source, "config", name, str(trap))
    write(source, PLAYBOOK, "- hosts: none\n")
    assert what_is(content(source).current()) == (commit, True)
    assert not sprung.exists()


def test_whose_checkout_it_is_does_not_matter(source: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("giving files to somebody else needs root")
    commit = commit_all(source)
    for path in (source, *source.rglob("*")):
        os.chown(path, 65534, 65534)
    assert what_is(content(source).current()) == (commit, False)


def test_without_git_the_commit_is_known_and_counts_as_changed(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = commit_all(source)
    monkeypatch.setenv("PATH", "/nowhere")
    assert what_is(content(source).current()) == (commit, True)


def test_a_repository_that_ignores_the_content_says_nothing_of_it(source: Path, tmp_path: Path) -> None:
    write(tmp_path, ".gitignore", "source/\nstore/\n")
    commit_all(tmp_path)
    assert what_is(content(source).current()) == (None, False)


def test_a_broken_catalogue_is_named_where_it_is_mended_and_the_mended_one_is_taken(source: Path) -> None:
    kept = content(source)
    good = kept.current()
    (source / PLAYBOOK).rename(source / "playbooks/lost.yml")
    for _ in range(2):
        with pytest.raises(catalog.CatalogueError) as refused:
            kept.current()
        assert str(refused.value) == (
            f"{source}/playbooks/operations.yml: operations.job: playbook: playbooks/job.yml is not there"
        )
    assert kept.at(good.digest).directory == good.directory, "runs that were accepted before start all the same"
    assert kept.operation("job") == good.catalogue.operations["job"], "and they can be shown"
    assert [path.name for path in good.directory.parent.iterdir()] == [good.directory.name], "nothing is left of it"
    (source / "playbooks/lost.yml").rename(source / PLAYBOOK)
    assert kept.current() == good


@pytest.mark.parametrize("target", ["../../../../outside", "/etc/passwd", "../../app/not_content.py", "nothing", "."])
def test_a_link_that_leaves_the_content_is_refused_by_name(source: Path, target: str) -> None:
    write(source.parent, "outside", "secret")
    (source / "roles" / "job" / "tasks" / "link").symlink_to(target)
    if target == ".":
        assert content(source).current()
        return
    with pytest.raises(ContentError, match=r"roles/job/tasks/link leads to .*relative link"):
        content(source).current()


def test_a_pipe_in_the_content_is_refused_at_once(source: Path) -> None:
    os.mkfifo(source / "roles" / "job" / "pipe")
    with pytest.raises(ContentError, match="roles/job/pipe is neither"):
        content(source).current()


def test_content_that_is_too_large_is_refused_before_it_is_read(source: Path) -> None:
    with write(source, "roles/job/files/image", "").open("wb") as file:
        file.truncate(65 * 2**20)
    with pytest.raises(ContentError, match="has 65 MiB, and 64 MiB is what is copied"):
        content(source).current()


def test_a_snapshot_that_was_changed_is_not_used_again(source: Path) -> None:
    kept = content(source)
    first = kept.current()
    path = first.directory / PLAYBOOK
    path.chmod(0o600)
    path.write_text("- hosts: bad\n")
    for fresh in (kept, content(source)):
        again = fresh.current()
        assert again.digest == first.digest
        assert again.directory == first.directory.with_name(f"{first.directory.name}.2")
        assert (again.directory / PLAYBOOK).read_text() == "- hosts: all\n"
        assert fresh.at(first.digest).directory == again.directory


def test_a_file_that_is_added_to_a_snapshot_is_a_change_of_it(source: Path) -> None:
    kept = content(source)
    first = kept.current()
    (first.directory / "roles").chmod(0o700)
    write(first.directory, "roles/other", "")
    assert kept.current().directory != first.directory


def test_a_node_has_the_content_of_a_run_or_says_that_it_has_not(source: Path, tmp_path: Path) -> None:
    accepted = content(source).current()
    elsewhere = Content(source, tmp_path / "other node")
    made = elsewhere.at(accepted.digest)
    assert made.digest == accepted.digest
    assert made.directory.parent == tmp_path / "other node"
    (source / PLAYBOOK).write_text("- hosts: none\n")
    third = Content(source, tmp_path / "third node")
    with pytest.raises(UnknownContentError, match=f"does not have the content {accepted.digest[:16]} that"):
        third.at(accepted.digest)
    assert content(source).at(accepted.digest).directory == accepted.directory, "this one has kept it"


def test_many_at_once_get_one_whole_snapshot(source: Path) -> None:
    for number in range(200):
        write(source, f"roles/job/files/{number}", "x" * 1000)
    begin = threading.Barrier(16)

    def one(fresh: Content) -> Path:
        begin.wait()
        return fresh.current().directory

    shared = content(source)
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(one, [shared] * 8 + [content(source) for _ in range(8)]))
    assert len(set(found)) == 1
    assert [path.name for path in found[0].parent.iterdir()] == [found[0].name]


def test_a_current_that_is_switched_is_followed(source: Path, tmp_path: Path) -> None:
    write(tmp_path / "next", PLAYBOOK, "- hosts: next\n")
    write(tmp_path / "next", "playbooks/operations.yml", (source / "playbooks/operations.yml").read_text())
    current = tmp_path / "current"
    current.symlink_to(source)
    kept = Content(current, tmp_path / "store")
    before = kept.current()
    (tmp_path / "new").symlink_to("next")
    (tmp_path / "new").rename(current)
    assert (kept.current().directory / PLAYBOOK).read_text() == "- hosts: next\n"
    assert (before.directory / PLAYBOOK).read_text() == "- hosts: all\n"


def test_a_store_that_cannot_be_written_is_one_sentence(source: Path) -> None:
    (source.parent / "file").write_text("")
    with pytest.raises(ContentError, match=r"cannot be copied to .*file/content"):
        Content(source, source.parent / "file" / "content").current()
