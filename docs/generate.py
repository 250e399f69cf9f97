"""Write docs/reference/ from the code, or with --check say which page no longer agrees with it."""

from __future__ import annotations

import ast
import json
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import typer.main
import yaml

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = ROOT / "docs" / "reference"
TOLERATED = {"failed": "failed", "unreachable": "did not answer"}
NOTICE = "<!-- Written by docs/generate.py from the code: `make docs`. Do not edit by hand. -->\n"


def settings_page() -> str:
    """Every setting, by section, with its default and the comment that stands beside it in config.py."""
    source = (ROOT / "app" / "bazaruto" / "config.py").read_text(encoding="utf-8")
    lines = source.splitlines()
    classes = {node.name: node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)}
    page = [
        "# Settings",
        "",
        "Set in the YAML file that `BAZARUTO_CONFIG` names (`section:` and below it `name: value`), or by a",
        "variable, which wins. Durations are written `500ms`, `30s`, `5m`, `1h`, `30d`; plain numbers are seconds.",
        "Unknown names and wrong values are refused at start, all at once.",
    ]
    top = list(_fields(classes["Settings"], lines))
    sections = {name: kind for name, kind, _, _ in top if kind in classes}
    plain = [field for field in top if field[1] not in classes]
    page += ["", "## General", "", *_settings_table("", plain)]
    for section, kind in sections.items():
        page += ["", f"## `{section}`", "", ast.get_docstring(classes[kind]) or ""]
        page += ["", *_settings_table(f"{section}_", list(_fields(classes[kind], lines)))]
    return "\n".join(page) + "\n"


def _fields(node: ast.ClassDef, lines: list[str]) -> Iterator[tuple[str, str, str, str]]:
    """Name, type, default and comment of each field of a settings class."""
    for item in node.body:
        if not isinstance(item, ast.AnnAssign) or not isinstance(item.target, ast.Name):
            continue
        default = ast.unparse(item.value) if item.value else ""
        last = lines[(item.end_lineno or item.lineno) - 1]
        comment = last.split("  # ", 1)[1] if "  # " in last else ""
        yield item.target.id, ast.unparse(item.annotation), default, comment


def _settings_table(prefix: str, fields: list[tuple[str, str, str, str]]) -> list[str]:
    rows = ["| variable | default | meaning |", "| --- | --- | --- |"]
    for name, _, default, comment in fields:
        shown = "" if "default_factory" in default or default in ("''", "Path()") else f"`{default.strip(chr(39))}`"
        rows.append(f"| `BAZARUTO_{prefix.upper()}{name.upper()}` | {shown} | {_cell(comment)} |")
    return rows


def operations_page() -> str:
    """The catalogue, each operation with its parameters as API and CLI take them."""
    from bazaruto.control import catalog

    page = ["# Operations", "", "What can be launched: `bazaruto run NAME -p PARAMETER=VALUE …`."]
    for operation in catalog.load(ROOT).operations.values():
        page += ["", f"## `{operation.name}`", "", f"{operation.summary}.", ""]
        page += [
            f"Effect `{operation.effect}`, launched by `{operation.launch}`, playbook `playbooks/{operation.playbook}`."
        ]
        page += ["", "Each launch needs an [approval](../approval.md)."] if operation.approval else []
        page += [*_endings(operation)]
        schema = operation.json_schema()
        if not schema.get("properties"):
            continue
        page += ["", "| parameter | type | default | allowed | meaning |", "| --- | --- | --- | --- | --- |"]
        for name, rule in schema["properties"].items():
            default = f"`{json.dumps(rule['default'])}`" if "default" in rule else ""
            meaning = _cell(rule.get("description", ""))
            page.append(f"| `{name}` | {rule.get('type', '')} | {default} | {_allowed(rule)} | {meaning} |")
    return "\n".join(page) + "\n"


def _endings(operation: Any) -> Iterator[str]:
    """When it is ended, and what is no failure of it."""
    idle = operation.idle_timeout_seconds
    quiet = f", or {idle:g} s without an event" if idle else ""
    lost = " and ".join(f"hosts that {TOLERATED[kind]}" for kind in operation.tolerates)
    yield f"Ended after {operation.timeout_seconds:g} s{quiet}."
    if lost:
        yield f"It succeeds in spite of {lost}."


def _allowed(rule: dict[str, Any]) -> str:
    rule = rule.get("items", rule)  # a list's rules are those of its items
    parts = []
    if "enum" in rule:
        parts.append(", ".join(f"`{choice}`" for choice in rule["enum"]))
    if "minimum" in rule or "maximum" in rule:
        parts.append(f"{rule.get('minimum', '')} to {rule.get('maximum', '')}")
    if "pattern" in rule:
        parts.append(f"`{rule['pattern'].removeprefix('^(?:').removesuffix(')$')}`")
    return _cell("; ".join(parts))


def commands_page() -> str:
    """Both command lines, as they describe themselves."""
    from bazaruto.control.cli import app as bazaruto
    from bazaruto.service.cli import command as bazarutod

    page = ["# Commands"]
    for name, app in (("bazaruto", bazaruto), ("bazarutod", bazarutod)):
        page += ["", f"## {name}"]
        page += _command(name, typer.main.get_command(app))
    return "\n".join(page) + "\n"


def _command(name: str, command: Any) -> Iterator[str]:
    """A command, or each of a group's; typer brings a click of its own, so their classes are no help."""
    if children := getattr(command, "commands", None):
        for child in sorted(children):
            yield from _command(f"{name} {child}", children[child])
        return
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    usage = " ".join([name, *(_argument(argument) for argument in arguments)])
    yield from ("", f"### `{usage}`", "", (command.help or "").strip(), "")
    options = [p for p in command.params if p.param_type_name == "option" and not p.hidden and p.name != "help"]
    if options:
        yield from ("| option | meaning |", "| --- | --- |")
    for option in options:
        names = ", ".join(f"`{flag}`" for flag in [*option.opts, *option.secondary_opts])
        yield f"| {names} | {_cell(option.help or '')} |"


def _argument(argument: Any) -> str:
    shown = (argument.name or "").upper()
    return shown if argument.required else f"[{shown}]"


def endpoints_page() -> str:
    """Both HTTP faces: the control plane's table of endpoints, and the service's routes as they are served."""
    from bazaruto.control.api import ENDPOINTS

    page = ["# Endpoints", "", "## Control plane, `:8081`", ""]
    page += ["Each needs `Authorization: Bearer TOKEN` unless it says otherwise; `/openapi.json` has the shapes.", ""]
    page += ["| endpoint | answer | parameters | refusals |", "| --- | --- | --- | --- |"]
    for endpoint in ENDPOINTS:
        names = [f"`{name}`" for model in (endpoint.query, endpoint.body) if model for name in model.model_fields]
        refusals = ", ".join(str(status) for status in endpoint.refusals)
        summary = f"{endpoint.summary}{'; no token needed' if endpoint.public else ''}"
        page.append(f"| `{endpoint.method} {endpoint.path}` | {summary} | {', '.join(names)} | {refusals} |")
    page += ["", "## Service, `:8080`", "", "| endpoint |", "| --- |"]
    page += [f"| `{method} {path}` |" for path, method in sorted(_service_routes())]
    return "\n".join(page) + "\n"


def access_page() -> str:
    """Who may what, from the very list of endpoints and the catalogue that decide it."""
    from bazaruto.control import catalog
    from bazaruto.control.access import Role
    from bazaruto.control.api import ENDPOINTS

    roles = list(Role)
    head = ["| " + " | ".join(["", *roles]) + " |", "| --- |" + " --- |" * len(roles)]

    def may(lowest: Role) -> str:
        return " | ".join("yes" if role.includes(lowest) else "" for role in roles)

    page = ["# What each role may do", ""]
    page += ["Within the environments and operations a token is limited to; see [access.md](../access.md).", ""]
    page += ["## Ask", "", *head]
    for endpoint in ENDPOINTS:
        if not endpoint.public and not endpoint.launches:
            page.append(f"| {endpoint.summary}: `{endpoint.method} {endpoint.path}` | {may(endpoint.role)} |")
    public = ", ".join(f"`{endpoint.path}`" for endpoint in ENDPOINTS if endpoint.public)
    launches = " and ".join(f"`{endpoint.method} {endpoint.path}`" for endpoint in ENDPOINTS if endpoint.launches)
    page += ["", f"{public} need no token.", "", "## Launch", "", f"By {launches}.", "", *head]
    for operation in catalog.load(ROOT).operations.values():
        page.append(f"| {operation.summary}: `{operation.name}` | {may(operation.launch)} |")
    return "\n".join(page) + "\n"


def _service_routes() -> Iterator[tuple[str, str]]:
    """Path and method of each route of the assembled service; no server is needed to assemble it."""
    from bazaruto.config import Settings
    from bazaruto.service import app

    with tempfile.TemporaryDirectory() as home:
        settings = Settings(home=Path(home), database_url="postgresql:///none", db={"min_connections": 0})
        with app.opened(settings, "docs") as service, app.built(service) as running:
            for route in running.app.routes:
                yield re.sub(r"<(\w+)[^>]*>", r"{\1}", route.rule), route.method


def roles_page() -> str:
    """Every variable of every role, from its argument_specs."""
    page = ["# Roles", "", "Each role's own README says how to use it alone."]
    for specs in sorted(ROOT.glob("roles/*/meta/argument_specs.yml")):
        role = specs.parents[1].name
        main = yaml.safe_load(specs.read_text(encoding="utf-8"))["argument_specs"]["main"]
        page += ["", f"## [`{role}`](../../roles/{role}/README.md)", "", str(main.get("short_description", "")), ""]
        page += ["| variable | type | default | meaning |", "| --- | --- | --- | --- |"]
        for name, option in sorted((main.get("options") or {}).items()):
            default = f"`{_cell(str(option['default']))}`" if "default" in option else ""
            text = option.get("description", "")
            meaning = " ".join(text) if isinstance(text, list) else str(text)
            page.append(f"| `{name}` | {option.get('type', 'str')} | {default} | {_cell(meaning)} |")
    return "\n".join(page) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


PAGES: dict[str, Callable[[], str]] = {
    "settings.md": settings_page,
    "operations.md": operations_page,
    "commands.md": commands_page,
    "endpoints.md": endpoints_page,
    "access.md": access_page,
    "roles.md": roles_page,
}


def main() -> int:
    check = "--check" in sys.argv[1:]
    stale = []
    REFERENCE.mkdir(parents=True, exist_ok=True)
    for name, page in PAGES.items():
        path, text = REFERENCE / name, NOTICE + page()
        if check:
            if not path.is_file() or path.read_text(encoding="utf-8") != text:
                stale.append(f"docs/reference/{name}")
        else:
            path.write_text(text, encoding="utf-8")
    if stale:
        print(
            f"{', '.join(stale)} no longer agree with the code: run `make docs` and commit the result", file=sys.stderr
        )
    return 1 if stale else 0


if __name__ == "__main__":
    raise SystemExit(main())
