"""The admin token that file permission gives on a control node, also when no other token works any more."""

from __future__ import annotations

import getpass
import socket

from bazaruto import database
from bazaruto.config import Settings
from bazaruto.control import tokens
from bazaruto.control.audit.changes import Actor, Audit


class CannotWriteToken(Exception):
    """This user is no admin here."""


def replace(settings: Settings) -> dict[str, str | None]:
    """A new token in control/admin.token, in place of the one there, which is revoked. Needs nothing but the control
    database and the right to write that file.
    """
    by = f"{getpass.getuser()} on {socket.gethostname()}"
    few = settings.db.model_copy(update={"min_connections": 0, "max_connections": 1})
    with database.open_pool(settings.control_database_url, few, "bazaruto-token") as pool:
        try:
            with Audit(settings.home, pool).change(Actor(by), "token.admin") as change:
                made, revoked = tokens.replace_admin(change.connection, settings.home, by)
                change.target = made.id
                change.detail = f"replaces {revoked}" if revoked else None
            path = tokens.keep_admin(settings.home)
        except OSError as error:
            raise CannotWriteToken(
                f"{error.filename or settings.home} cannot be written ({error.strerror}): be the user that runs the "
                "control plane."
            ) from error
    return {"id": made.id, "path": str(path), "revoked": revoked}
