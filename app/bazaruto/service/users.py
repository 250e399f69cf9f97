"""Users: created by staff, seen by themselves and by staff."""

from __future__ import annotations

from functools import partial
from typing import Any

import bottle

from bazaruto import database, logs, web
from bazaruto.problems import FieldError, Problem
from bazaruto.service.access import (
    STAFF,
    forbidden,
    identify,
    not_found,
    path_id,
    presented_hash,
    require,
)
from bazaruto.service.context import Service, changing, only_row, reading
from bazaruto.service.fields import Email, Input, Name, Password, Role
from bazaruto.service.lists import Page

SQL = database.statements(__package__, "users.sql")
log = logs.get(__name__)


class NewUser(Input):
    """A user to be created; without a password it cannot log in."""

    email: Email
    name: Name
    role: Role = Role.CUSTOMER
    password: Password | None = None


class UserList(Page):
    """Filters of the list of users."""

    role: Role | None = None
    email: Email | None = None


def routes(app: web.App, service: Service) -> None:
    """Put users under /v1/users."""
    app.route("/v1/users", "POST", partial(_create, service))
    app.route("/v1/users", "GET", partial(_list, service))
    app.route("/v1/users/me", "GET", partial(_me, service))
    app.route("/v1/users/<user_id>", "GET", partial(_show, service))


def _create(service: Service) -> bottle.HTTPResponse:
    token = presented_hash()
    with reading(service.pool) as connection:
        caller = identify(connection, token)
    require(caller, STAFF)
    new = web.json_body(NewUser)
    if new.role is not Role.CUSTOMER and caller.role is not Role.ADMIN:
        raise forbidden()
    if new.password is not None and new.password.lower() == new.email.lower():
        raise Problem(422, "Wrong input", errors=[FieldError("password", "must not be the e-mail")])
    password_hash = service.passwords.hash(new.password) if new.password else None
    with changing(service.pool) as connection:
        user = insert(connection, new.email, new.name, new.role, password_hash)
    log.info("User created successfully", user_id=str(user["id"]), email=new.email, by=str(caller.id))
    return bottle.HTTPResponse(user, 201, {"Location": f"/v1/users/{user['id']}"})


def insert(
    connection: database.Connection, email: str, name: str, role: Role, password_hash: str | None
) -> dict[str, Any]:
    """Create a user in the caller's transaction."""
    values = {"email": email, "name": name, "role": role.value, "password_hash": password_hash}
    return only_row(connection.execute(SQL.insert_user, values))


def _list(service: Service) -> dict[str, Any]:
    token = presented_hash()
    with reading(service.pool) as connection:
        require(identify(connection, token), STAFF)
        wanted = web.query(UserList)
        values = wanted.keys() | {"role": wanted.role, "email": wanted.email}
        return wanted.answer(connection.execute(SQL.list_users, values).fetchall())


def _me(service: Service) -> dict[str, Any]:
    token = presented_hash()
    with reading(service.pool) as connection:
        return _found(connection, str(identify(connection, token).id))


def _show(service: Service, user_id: str) -> dict[str, Any]:
    token = presented_hash()
    with reading(service.pool) as connection:
        caller = identify(connection, token)
        user = _found(connection, path_id(user_id, "user"))
        caller.must_own(user["id"])
        return user


def _found(connection: database.Connection, user_id: str) -> dict[str, Any]:
    user = connection.execute(SQL.user_by_id, {"id": user_id}).fetchone()
    if user is None:
        raise not_found("user")
    return user
