"""Who the embedded servers run as, and the directories and files that only this user may enter."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import pwd
import stat
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

SERVER_USER = "bazaruto"  # as root, PostgreSQL and Redis run as this system user


class EmbeddedError(Exception):
    """An embedded server cannot be used; the text is one sentence that says what to do."""


@dataclasses.dataclass(frozen=True)
class ServerUser:
    """The user the servers run as, and the words in front of their commands that make it so."""

    name: str | None  # None: the servers run as whoever calls
    uid: int
    gid: int
    prefix: tuple[str, ...] = ()


def server_user(reach: Sequence[Path]) -> ServerUser:
    """Who the servers run as: the caller, or for root a system user that is made when missing.

    Every path in `reach` must be reachable for that user. Where a parent is closed to it, no mode is changed: the
    server gets the one capability to search and read, and nothing else.
    """
    if os.geteuid() != 0:
        return ServerUser(None, os.geteuid(), os.getegid())
    entry = _system_user()
    plain = ("setpriv", "--reuid", entry.pw_name, "--regid", str(entry.pw_gid), "--clear-groups", "--no-new-privs")
    searching = (
        *("setpriv", "--reuid", entry.pw_name, "--regid", str(entry.pw_gid), "--clear-groups"),
        "--securebits=+no_setuid_fixup",  # otherwise access(2) ignores the capability
        *(f"--{kind}=-all,+dac_read_search" for kind in ("inh-caps", "ambient-caps", "bounding-set")),
        "--no-new-privs",
    )
    for prefix in (plain, searching):
        if all(_can_reach(prefix, path) for path in reach):
            return ServerUser(entry.pw_name, entry.pw_uid, entry.pw_gid, prefix)
    raise EmbeddedError(
        f"As root PostgreSQL runs as the user {SERVER_USER}, who cannot reach {' and '.join(map(str, reach))}: "
        "open their parent directories for searching (chmod o+x), or work as a normal user."
    )


def socket_base(home: Path, environment: Mapping[str, str] = os.environ) -> Path:
    """A short directory for the sockets of this home: a socket's path holds 107 bytes, a home may be longer."""
    name = f"bazaruto-{hashlib.sha256(os.fsencode(home)).hexdigest()[:12]}"
    runtime = Path(environment.get("XDG_RUNTIME_DIR", ""))
    usable = runtime.is_absolute() and len(os.fsencode(runtime)) <= 60 and not any(map(str.isspace, str(runtime)))
    with contextlib.suppress(OSError):  # not there, or not to be looked at: then the other one
        if usable and runtime.stat().st_uid == os.geteuid() and os.access(runtime, os.W_OK | os.X_OK):
            return runtime / name
    return Path("/tmp") / name  # noqa: S108 -- ownership is verified by own_directory


def own_directory(path: Path, user: ServerUser) -> Path:
    """Make `path` a directory that only `user` can enter; refuse one that somebody else made before us."""
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
        os.chown(path, user.uid, user.gid, follow_symlinks=False)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid not in {user.uid, os.geteuid()}:
        raise EmbeddedError(
            f"{path} is not a directory of the user {pwd.getpwuid(user.uid).pw_name}: somebody else made it; "
            "remove it, or set XDG_RUNTIME_DIR to a directory of your own."
        )
    if found.st_uid != user.uid:
        os.chown(path, user.uid, user.gid, follow_symlinks=False)
    if stat.S_IMODE(found.st_mode) != 0o700:
        path.chmod(0o700)
    return path


def server_environment() -> dict[str, str]:
    """What a server may know of its starter's environment: no PG*, no secret, no locale."""
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8", "TZ": "UTC"}


def _system_user() -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(SERVER_USER)
    except KeyError:
        command = [
            "useradd",
            "--system",
            "--no-create-home",
            "--home-dir",
            "/nonexistent",
            "--shell",
            "/usr/sbin/nologin",
        ]
        run([*command, SERVER_USER], cwd=Path("/"), failure=f"the system user {SERVER_USER} could not be made")
        return pwd.getpwnam(SERVER_USER)


def _can_reach(prefix: Sequence[str], path: Path) -> bool:
    return subprocess.run([*prefix, "test", "-x", path], capture_output=True, check=False, cwd="/").returncode == 0


def run(argv: Sequence[str | Path], *, cwd: Path, failure: str) -> None:
    done = subprocess.run(
        argv, cwd=cwd, env=server_environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise EmbeddedError(f"{failure}: {' | '.join((done.stderr or done.stdout).split(chr(10))[-4:]).strip(' |')}")


def write_private(path: Path, content: str, user: ServerUser) -> None:
    """Write a file that only `user` can read, whole or not at all."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(content)
        os.fchown(file.fileno(), user.uid, user.gid)
        os.fchmod(file.fileno(), 0o600)
        os.fsync(file.fileno())
    partial.replace(path)
