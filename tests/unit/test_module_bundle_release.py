"""Releases are installed from a bundle: whole, made anew when they were cut off, and never from something else."""

from __future__ import annotations

import hashlib
import io
import subprocess
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests import role_modules

bundle_release = role_modules.load("bazaruto_service", "bundle_release")
MODIFIED_AT = (2020, 2, 2, 0, 0, 0)


def _wheel(version: str) -> bytes:
    """A package `hello` with one command, as small as pip takes it."""
    about = f"hello-{version}.dist-info"
    files = {
        "hello.py": f"def main():\n    print('hello {version}')\n",
        f"{about}/METADATA": f"Metadata-Version: 2.1\nName: hello\nVersion: {version}\n",
        f"{about}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{about}/entry_points.txt": "[console_scripts]\nhello = hello:main\n",
    }
    files[f"{about}/RECORD"] = "".join(f"{name},,\n" for name in [*files, f"{about}/RECORD"])
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as archive:
        for name, text in files.items():
            archive.writestr(zipfile.ZipInfo(name, MODIFIED_AT), text)
    return written.getvalue()


def _bundle(path: Path, version: str = "1", locked_as: bytes | None = None, **more: bytes) -> dict[str, Any]:
    wheel = _wheel(version)
    digest = hashlib.sha256(locked_as or wheel).hexdigest()
    files = {
        "requirements.txt": f"hello=={version} --hash=sha256:{digest}\n".encode(),
        f"wheels/hello-{version}-py3-none-any.whl": wheel,
        **more,
    }
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    releases = path.parent / "releases"
    releases.mkdir(exist_ok=True)
    return {
        "bundle": str(path),
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "directory": str(releases / "1"),
        "pip": str(path.parent / "pip-*.whl"),
    }


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory with the pip that Python brings."""
    import ensurepip

    [wheel] = (Path(ensurepip.__file__).parent / "_bundled").glob("pip-*.whl")
    (tmp_path / wheel.name).symlink_to(wheel)
    return tmp_path


def _says(options: dict[str, Any]) -> str:
    command = [str(Path(options["directory"]) / "bin" / "hello")]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_a_release_runs_where_it_is_and_a_second_run_changes_nothing(place: Path) -> None:
    options = _bundle(place / "hello.tar")
    predicted = bundle_release.install(options, check_mode=True)
    assert not Path(options["directory"]).exists()
    assert bundle_release.install(options, check_mode=False) == predicted
    assert predicted == {"changed": True, "reason": "it is not installed"}
    assert _says(options) == "hello 1"
    assert not bundle_release.install(options, check_mode=False)["changed"]
    assert [path.name for path in (place / "releases").iterdir()] == ["1"]


def test_an_installation_that_was_cut_off_is_made_anew(place: Path) -> None:
    options = _bundle(place / "hello.tar")
    bundle_release.install(options, check_mode=False)
    (Path(options["directory"]) / ".complete").unlink()
    (place / "releases" / ".1.partial").mkdir()
    assert bundle_release.install(options, check_mode=False)["reason"] == "an installation was cut off"
    assert _says(options) == "hello 1"


def test_the_same_version_from_another_bundle_replaces_the_release(place: Path) -> None:
    bundle_release.install(_bundle(place / "hello.tar"), check_mode=False)
    options = _bundle(place / "other.tar", "2")
    assert bundle_release.install(options, check_mode=False)["reason"] == "it was installed from another bundle"
    assert _says(options) == "hello 2"


def test_a_bundle_that_changed_on_its_way_is_refused(place: Path) -> None:
    options = _bundle(place / "hello.tar")
    with (place / "hello.tar").open("ab") as file:
        file.write(b"more")
    with pytest.raises(bundle_release.Refused, match="copy it to this host again"):
        bundle_release.install(options, check_mode=False)


def test_a_wheel_that_is_not_the_locked_one_is_refused_and_leaves_no_release(place: Path) -> None:
    options = _bundle(place / "hello.tar", locked_as=b"another")
    with pytest.raises(bundle_release.Refused, match="failed"):
        bundle_release.install(options, check_mode=False)
    assert not Path(options["directory"]).exists()


def test_a_file_that_would_lie_outside_is_refused(place: Path) -> None:
    options = _bundle(place / "hello.tar", **{"../../outside": b"x"})
    with pytest.raises(bundle_release.Refused, match="no bundle does"):
        bundle_release.install(options, check_mode=False)
    assert not (place / "outside").exists()


def test_without_pip_it_is_said_what_to_install(place: Path) -> None:
    options = {**_bundle(place / "hello.tar"), "pip": str(place / "none-*.whl")}
    with pytest.raises(bundle_release.Refused, match="install the package python3-venv"):
        bundle_release.install(options, check_mode=False)
