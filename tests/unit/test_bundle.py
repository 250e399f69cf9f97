"""What `make bundle` puts together: for Debian's Python whatever runs here, and the same bytes each time."""

from __future__ import annotations

import importlib.util
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
LOCK = """\
async-timeout==5.0.1 ; python_full_version < '3.11.3' \\
    --hash=sha256:aa
bottle==0.13.4 \\
    --hash=sha256:bb \\
    --hash=sha256:cc
colorama==0.4.6 ; sys_platform == 'win32' \\
    --hash=sha256:dd
exceptiongroup==1.3 ; python_full_version < '3.11' \\
    --hash=sha256:ee
ansible==14.5.0 ; python_full_version >= '3.12' \\
    --hash=sha256:ff
"""


@pytest.fixture(scope="module")
def bundle() -> ModuleType:
    loader = SourceFileLoader("bundle", str(ROOT / ".ci" / "bundle"))
    spec = importlib.util.spec_from_loader("bundle", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def test_what_hosts_need_is_chosen_by_their_python_and_not_by_this_one(bundle: ModuleType) -> None:
    assert bundle.for_hosts(LOCK).splitlines() == [
        "async-timeout==5.0.1 \\",
        "    --hash=sha256:aa",
        "bottle==0.13.4 \\",
        "    --hash=sha256:bb \\",
        "    --hash=sha256:cc",
    ]


@pytest.mark.parametrize("lock", ["service", "site"])
def test_no_entry_of_our_locks_is_overlooked(bundle: ModuleType, lock: str) -> None:
    text = (ROOT / f"app/requirements/{lock}.txt").read_text(encoding="utf-8")
    chosen = bundle.for_hosts(text)
    unconditional = [line.split(" ")[0] for line in text.splitlines() if "==" in line and ";" not in line]
    assert [name for name in unconditional if f"{name} \\" not in chosen] == []


def test_the_same_content_is_the_same_bytes_and_is_not_written_again(bundle: ModuleType, tmp_path: Path) -> None:
    wheel = tmp_path / "hello-1-py3-none-any.whl"
    wheel.write_bytes(b"one")
    [first, second] = [tmp_path / name / "hello-1.bundle.tar" for name in ("first", "second")]
    for made in (first, second):
        made.parent.mkdir()
        assert bundle.write(made, "1", [wheel], "hello==1\n")
    assert first.read_bytes() == second.read_bytes()
    assert not bundle.write(first, "1", [wheel], "hello==1\n")
    wheel.write_bytes(b"two")
    assert bundle.write(first, "1", [wheel], "hello==1\n")
    assert first.read_bytes() != second.read_bytes()


def test_a_bundle_that_was_cut_off_is_written_again(bundle: ModuleType, tmp_path: Path) -> None:
    wheel = tmp_path / "hello-1-py3-none-any.whl"
    wheel.write_bytes(b"one")
    made = tmp_path / "hello-1.bundle.tar"
    made.write_bytes(b"cut off")
    assert bundle.write(made, "1", [wheel], "hello==1\n")
