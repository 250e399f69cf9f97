"""Whom this user's commands ask, and with which token: what `bazaruto login` wrote down, in a file of theirs alone."""

from __future__ import annotations

import dataclasses
import ipaddress
import json
import os
import stat
import urllib.parse
from pathlib import Path

from bazaruto.control.client_errors import RefusedError


@dataclasses.dataclass(frozen=True)
class Login:
    """A token, and the only place it is ever sent to."""

    url: str
    token: str = dataclasses.field(repr=False)


def path() -> Path:
    """Where the login of this user is."""
    configuration = os.environ.get("XDG_CONFIG_HOME", "")
    parent = Path(configuration) if configuration.startswith("/") else Path.home() / ".config"
    return parent / "bazaruto" / "login.json"


def read() -> Login | None:
    """This user's login; None without one. Raises RefusedError for one that others can read or have written."""
    file = path()
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise _unusable(file, f"cannot be read: {error.strerror}") from error
    with os.fdopen(descriptor, encoding="utf-8") as opened:
        status, above = os.fstat(descriptor), file.parent.stat()
        if not stat.S_ISREG(status.st_mode) or {status.st_uid, above.st_uid} - {os.geteuid()}:
            raise _unusable(file, "is not your own file")
        if status.st_mode & 0o077 or above.st_mode & 0o022:
            raise _unusable(file, f"can be read or replaced by others (mode {stat.S_IMODE(status.st_mode):04o})")
        try:
            values = json.load(opened)
            return Login(checked_url(str(values["url"])), str(values["token"]))
        except (ValueError, KeyError, TypeError) as error:
            raise _unusable(file, "is damaged") from error


def write(login: Login) -> Path:
    """Keep a login, whole or not at all."""
    file = path()
    file.parent.parent.mkdir(parents=True, exist_ok=True)
    file.parent.mkdir(mode=0o700, exist_ok=True)
    file.parent.chmod(0o700)
    partial = file.with_name(f".login.{os.getpid()}")
    partial.unlink(missing_ok=True)
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as opened:
        json.dump(dataclasses.asdict(login), opened)
        opened.flush()
        os.fsync(opened.fileno())
    partial.replace(file)
    return file


def remove() -> bool:
    """Forget the login; False when there is none. The token goes on working until it is revoked."""
    try:
        path().unlink()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def checked_url(url: str) -> str:
    """A control plane's address, without a slash at its end. Raises RefusedError for one that is not encrypted."""
    try:
        parts = urllib.parse.urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise RefusedError(f"{url} is no URL: {error}.") from error
    extra = parts.username or parts.password or parts.query or parts.fragment or parts.path.strip("/")
    if parts.scheme not in ("http", "https") or not host or extra:
        raise RefusedError(f"{url} is not the URL of a control plane, which is like https://HOST:PORT.")
    if parts.scheme == "http" and not _is_this_machine(host):
        raise RefusedError(f"{url} is not encrypted: a token sent there could be read on the way. Use https://.")
    return url.rstrip("/")


def _is_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _unusable(file: Path, why: str) -> RefusedError:
    return RefusedError(
        f"The login {file} {why}. It is not used: revoke its token where it may be known, and log in anew."
    )
