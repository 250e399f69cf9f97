"""What a run prints holds no secret, in whatever spelling a program gave it, and loses nothing else."""

from __future__ import annotations

import base64
import html
import io
import json
import re
import shlex
import time
import traceback
from collections.abc import Callable
from urllib.parse import quote, quote_plus

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from bazaruto.control.engine import redactor
from bazaruto.control.engine.redactor import Redactor

SECRET = "Xy\"7\\pl\u00e4n's&t $e {d}/\U0001f511=%41"  # one of each kind of trouble
SPELLINGS: dict[str, Callable[[str], str]] = {
    "as it is": str,
    "JSON": lambda text: json.dumps(text)[1:-1],
    "JSON, not only ASCII": lambda text: json.dumps(text, ensure_ascii=False)[1:-1],
    "JSON in JSON": lambda text: json.dumps(json.dumps(text))[1:-1],
    "JSON in JSON in JSON": lambda text: json.dumps(json.dumps(json.dumps({"a": [text]}))),
    "URL": lambda text: quote(text, safe=""),
    "URL, slashes kept": quote,
    "URL, lower case": lambda text: re.sub("%..", lambda match: match[0].lower(), quote(text, safe="")),
    "form": quote_plus,
    "URL in URL": lambda text: quote(quote(text, safe=""), safe=""),
    "shell": shlex.quote,
    "shell in JSON": lambda text: json.dumps(shlex.quote(text)),
    "shell in shell": lambda text: shlex.quote(shlex.quote(text)),
    "YAML, single quotes": lambda text: "'" + text.replace("'", "''") + "'",
    "YAML": lambda text: yaml.safe_dump({"a": text}),
    "YAML, other characters kept": lambda text: yaml.safe_dump({"a": text}, allow_unicode=True),
    "CSV": lambda text: '"' + text.replace('"', '""') + '"',
    "repr": lambda text: repr(text)[1:-1],
    "repr of repr": lambda text: repr(repr(text)),
    "repr of bytes": lambda text: repr(text.encode()),
    "ascii": ascii,
    "HTML": html.escape,
    "HTML in JSON": lambda text: json.dumps(html.escape(text)),
    "hexadecimal": lambda text: text.encode().hex(),
    "hexadecimal, upper case": lambda text: text.encode().hex().upper(),
    "base64": lambda text: base64.b64encode(text.encode()).decode(),
    "base64 of URLs": lambda text: base64.urlsafe_b64encode(text.encode()).decode(),
    "base64 of JSON": lambda text: base64.b64encode(json.dumps({"password": text}).encode()).decode(),
    "base64, second": lambda text: base64.b64encode(b"u:" + text.encode() + b"\n").decode(),
    "base64, third": lambda text: base64.b64encode(b"a" + text.encode() + b" and more").decode(),
    "base64 in lines": lambda text: base64.encodebytes(b"x" * 70 + text.encode() + b" and more").decode(),
    "base64 in lines in JSON": lambda text: json.dumps(base64.encodebytes(b"x" * 70 + text.encode()).decode()),
    "wrapped": lambda text: "\r\n".join(text[index : index + 5] for index in range(0, len(text), 5)),
    "wrapped and indented": lambda text: "\n    ".join(text[index : index + 7] for index in range(0, len(text), 7)),
    "coloured in the middle": lambda text: f"{text[:6]}\x1b[0;31m{text[6:]}\x1b[0m",
}


def holds(text: str, secret: str) -> bool:
    """Whether a part of the secret is in a text, however it was written: an own, blunter way to look."""
    found = re.findall(r"[A-Za-z0-9]{4,}", secret)
    joined = "".join(text.split())
    decoded = [joined, *(_decoded(run) for run in re.findall(r"[A-Za-z0-9+/_-]{6,}", joined))]
    return any(part in piece for part in found or [secret] for piece in decoded)


def _decoded(run: str) -> str:
    """A run of base64 at each of its alignments, and as hexadecimal."""
    standard = run.translate(str.maketrans("-_", "+/"))
    parts = [standard[start : start + (len(standard) - start) // 4 * 4] for start in range(4)]
    pairs = run[: len(run) // 2 * 2]
    data = [base64.b64decode(part) for part in parts if len(part) >= 4]
    data += [bytes.fromhex(pairs)] if re.fullmatch("[0-9a-fA-F]+", pairs) else []
    return "\n".join(each.decode("latin-1") for each in data)


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("secret", ["PLANTEDhunter2secret", "nPLANTED/hunter2+secret", "ends in \\", SECRET])
def test_a_secret_is_replaced_in_each_spelling(spelling: str, secret: str) -> None:
    written = f"before <{SPELLINGS[spelling](secret)}> after"
    shown = Redactor([secret, "another"]).text(written)
    assert "***" in shown, shown
    assert not holds(shown, secret), shown
    assert shown.startswith("before <") or spelling.startswith("base64")
    assert shown.endswith("> after") or "in lines" in spelling


@given(
    st.text(st.characters(exclude_characters="*<>", exclude_categories=["Cs", "Cc", "Z"]), min_size=4, max_size=40),
    st.sampled_from([name for name in SPELLINGS if "wrapped" not in name and "coloured" not in name]),
)
@example("\\" * 12 + "x", "JSON in JSON")
@example("''''''''", "shell in shell")
@example("nnnn\\nrt", "as it is")
def test_any_secret_is_replaced_in_any_spelling(secret: str, spelling: str) -> None:
    written = SPELLINGS[spelling](secret)
    shown = Redactor([secret]).text(f"<{written}>")
    assert "***" in shown, (written, shown)
    assert written not in shown


@given(st.text(max_size=300))
@example("the output of an ordinary task: ok=3, basic authentication is off, bearer of news, http://[::1]:8080/x@y")
@example("C:\\new\\table user@example.org:8080 token = none, https://example.org:443/a:b@c")
def test_a_text_without_secrets_stays_as_it_is(text: str) -> None:
    assert Redactor(["PLANTEDhunter2secret", "another-one!"]).text(text) == text


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("postgresql://user:PLANTED@host/db", "postgresql://user:***@host/db"),
        ("redis://:PLANTED@host:6379/0", "redis://:***@host:6379/0"),
        ("https://u:PLANT:ED@ed@host", "https://u:***@host"),
        ('{"url": "https://u:PLANTED@host/", "mail": "a@b"}', '{"url": "https://u:***@host/", "mail": "a@b"}'),
        ("Authorization: Bearer PLANTEDPLANTED1234.x==", "Authorization: Bearer ***"),
        ('{"Authorization": "Basic UExBTlRFRDpQTEFOVEVE"}', '{"Authorization": "Basic ***"}'),
        ("token bz_" + "PLANTED" * 4, "token bz_***"),
    ],
)
def test_what_looks_like_a_password_is_replaced_though_nobody_named_it(written: str, shown: str) -> None:
    assert Redactor([]).text(written) == shown


def test_a_secret_of_many_lines_is_replaced_line_by_line_and_as_a_whole() -> None:
    key = "-----BEGIN KEY-----\nMIIPLANTEDone\nMIIPLANTEDtwo\nQ==\n-----END KEY-----\n"
    cleaner = Redactor([key])
    for line in ("MIIPLANTEDone", "got MIIPLANTEDtwo\r\n"):
        assert "PLANTED" not in cleaner.text(line)
    for whole in (key, json.dumps(key), yaml.safe_dump({"key": key}), key.replace("\n", "\r\n")):
        assert not re.search("PLANTED|Q==", cleaner.text(whole)), whole


def test_secrets_in_lists_objects_and_numbers_are_replaced_and_in_names_too() -> None:
    cleaner = Redactor([{"a": ["hunter22"]}, 987654, True, None])
    assert cleaner.clean({"hunter22": ["say hunter22"], "y": "987654!", "n": 987654, "t": True, "f": 1.5}) == {
        "***": ["say ***"],
        "y": "***!",
        "n": "***",
        "t": True,
        "f": 1.5,
    }


def test_an_event_keeps_its_names_and_its_type_whatever_the_secret_is() -> None:
    event = {
        "at": "2026-11-23T09:00:00.123Z",
        "type": "runner_on_ok",
        "host": "a",
        "stdout": "stdout of runner",
        "n": 1,
    }
    cleaned = Redactor(["runner", "stdout", "type", "2026"]).event(event)
    assert cleaned == {**event, "stdout": "*** of ***"}


def test_a_longer_secret_goes_before_one_that_is_a_part_of_it() -> None:
    assert Redactor(["secret", "secret-longer"]).text("a secret-longer, a secret") == "a ***, a ***"


@pytest.mark.parametrize("value", ["", "abc", " ab c ", ["long enough", "abc"], {"pin": 123}])
def test_a_value_that_cannot_be_redacted_cannot_be_a_secret(value: object) -> None:
    assert redactor.problem(value) == "must be at least 4 characters long: less cannot be redacted"
    assert redactor.problem("abcd") is None


def test_a_process_own_words_are_redacted_by_the_line_tracebacks_too() -> None:
    target = io.StringIO()
    stream = redactor.RedactedStream(target, Redactor(["PLANTEDhunter2", "two\nlines-of-it"]))
    print("half: PLANTED", end="", file=stream)
    assert target.getvalue() == ""
    print("hunter2", file=stream)
    traceback.print_exception(RuntimeError("PLANTEDhunter2 and lines-of-it"), file=stream)
    assert "RuntimeError: *** and ***\n" in target.getvalue()
    assert "half: ***\n" in target.getvalue()


def test_many_secrets_cost_hardly_more_than_one() -> None:
    line = json.dumps({"stdout": [f"line {number} of /var/lib/bazaruto/x_{number:x}" for number in range(30)]})
    event = {"type": "runner_on_ok", "stdout": line}

    def seconds(count: int) -> float:
        cleaner = Redactor([f"PLANTED{number}x{number * 7919:x}secret" for number in range(count)])
        best = 1.0
        for _ in range(20):
            started = time.perf_counter()
            for _ in range(20):
                cleaner.event(event)
            best = min(best, time.perf_counter() - started)
        return best

    assert seconds(200) < 3 * seconds(2)


@pytest.mark.timeout(20)
def test_no_text_makes_the_search_endless() -> None:
    cleaner = Redactor(["\\" * 4 + "'\"" * 2 + "x!!!! $$$$ ????y"])
    started = time.monotonic()
    for text in ("\\" * 2000, "'\"\\" * 1000, "\\n" * 2000, "! " * 2000, "\\'x" * 1000 + "!$?" * 500):
        cleaner.text(text)
    assert time.monotonic() - started < 5
