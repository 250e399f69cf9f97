"""Takes a run's secrets out of what it prints, in whatever spelling a program gave them.

Each secret becomes a few needles: itself with every character in any of its spellings (JSON, URL, shell, YAML, HTML,
repr(), octal; also line breaks where a terminal or a program wrapped it), base64 at its three alignments, hexadecimal.
A needle has an anchor, letters and digits that no spelling changes: only where that occurs is the pattern made and
tried, so that a text without secrets costs a few searches and nothing more.
"""

from __future__ import annotations

import base64
import functools
import html
import json
import re
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from math import isfinite
from typing import Any, TextIO

from bazaruto.redaction import HIDDEN, redacted_output

SHORTEST_SECRET = 4  # a shorter value cannot be told from ordinary output: see `problem`
KEPT_FIELDS = frozenset({"at", "type", "action"})  # of an event; ours, not the playbook's
_ANCHOR_LENGTHS = (3, 24)  # of letters and digits
_SLASHES = r"\\{1,15}"  # as many as four JSON texts inside each other put before a character; bounded, or slow
_CODE = rf"\x1b\[[0-9;]*[A-Za-z]|{_SLASHES}(?:u001[bB]|x1[bB]|033)\[[0-9;]*[A-Za-z]"  # colours, moves of the cursor
_BREAK = rf"(?:\r?\n[ \t]*|(?:{_SLASHES}r)?{_SLASHES}n *|{_CODE})*"  # where a long text was wrapped
_SPACES = (
    rf"(?:\s|{_SLASHES}[nrt]|%(?:25)*(?:20|09|0[AaDd])|\+|{_SLASHES}(?:u00|x)(?:20|09|0[AaDd])"
    rf"|&#(?:9|10|13|32);|{_CODE})*"
)
_SQUEEZED_OUT = re.compile(rf"{_CODE}|\\+[nrt]")
_RUNS = re.compile(r"""[\s]+|[\\'"]+|[A-Za-z0-9]|.""", re.DOTALL)


def problem(value: Any) -> str | None:
    """Why a value cannot be a secret, since it could not be taken out of the output; None when it can."""
    short = [text for text in _texts(value) if len("".join(text.split())) < SHORTEST_SECRET]
    return f"must be at least {SHORTEST_SECRET} characters long: less cannot be redacted" if short else None


class Redactor:
    """Replaces the secrets it knows wherever they occur, and passwords in URLs, bearer tokens and tokens of ours."""

    def __init__(self, secrets: Iterable[Any]) -> None:
        self._pieces: set[str] = set()
        self._needles: list[_Needle] = []
        self._indexes: list[_Index | _FewLetters] = []
        self.learn(secrets)

    def learn(self, secrets: Iterable[Any]) -> None:
        """Know more of them from now on."""
        self._pieces |= {piece for secret in secrets for text in _texts(secret) for piece in _pieces(text)}
        longest_first = sorted(self._pieces, key=lambda piece: (-len(piece), piece))
        self._needles = [needle for piece in longest_first for needle in _needles(piece)]
        self._indexes = _indexes(self._needles)

    def text(self, value: str) -> str:
        return redacted_output(self._take(self._found(value), value))

    def clean(self, value: Any) -> Any:
        """The same value with secrets replaced, and without what PostgreSQL's JSON cannot hold."""
        if isinstance(value, str):
            return self.text(_storable(value))
        if isinstance(value, Mapping):
            return {self.clean(str(key)): self.clean(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.clean(item) for item in value]
        if isinstance(value, float) and not isfinite(value):
            return None
        if isinstance(value, int | float) and not isinstance(value, bool):
            return HIDDEN if self._found(str(value)) else value
        return value

    def event(self, event: Mapping[str, Any]) -> dict[str, Any]:
        """A cleaned event: its names and what is ours in it stay as they are. All its texts are searched at once."""
        texts = {name: _storable(text) for name, text in event.items() if isinstance(text, str)}
        found = self._found("\n".join(texts.values()))
        return {
            name: value
            if name in KEPT_FIELDS
            else redacted_output(self._take(found, texts[name]) if found else texts[name])
            if name in texts
            else self.clean(value)
            for name, value in event.items()
        }

    def holds_secret(self, text: str) -> bool:
        """Whether one of the secrets is in a text."""
        return self._take(self._found(text), text) != text

    def _found(self, text: str) -> list[_Needle]:
        """Needles that may be in a text, longest first."""
        if not self._needles:
            return []
        squeezed = "".join(text.split())
        if "\\" in squeezed or "\x1b" in squeezed:
            squeezed = _SQUEEZED_OUT.sub("", squeezed)
        near = {needle for keys in self._indexes for needle in keys.near(squeezed)}
        return [needle for needle in self._needles if needle in near and needle.anchor in squeezed] if near else []

    @staticmethod
    def _take(needles: list[_Needle], text: str) -> str:
        for needle in needles:
            text = needle.pattern.sub(HIDDEN, text)
        return text


class RedactedStream:
    """A text stream that writes whole lines, redacted: what a process itself has to say, tracebacks too."""

    def __init__(self, target: TextIO, redactor: Redactor) -> None:
        self._target = target
        self._redactor = redactor
        self._line = ""

    def write(self, text: str) -> int:
        *lines, self._line = (self._line + text).split("\n")
        for line in lines:
            self._target.write(self._redactor.text(line) + "\n")
        return len(text)

    def flush(self) -> None:
        """Hand on what is whole; half a line might end within a secret."""
        self._target.flush()

    def __getattr__(self, name: str) -> Any:
        """What libraries ask of a standard stream besides: its descriptor, its buffer, its encoding."""
        return getattr(self._target, name)


class _Needle:
    """One spelling of a secret: a quick test, and the exact pattern, which is made at the first need."""

    def __init__(self, anchor: str, build: Callable[[], str]) -> None:
        self.anchor = anchor  # in every text that holds it, once spaces are out; "" when there is no such thing
        self._build = build

    @functools.cached_property
    def pattern(self) -> re.Pattern[str]:
        return re.compile(self._build())


class _Index:
    """Needles by the first bytes of their anchors, read as one integer: a text is compared with all of them at once."""

    def __init__(self, size: int, needles: Iterable[_Needle]) -> None:
        self._size = size
        self._by_key: dict[int, list[_Needle]] = {}
        for needle in needles:
            (key,) = self._keys(needle.anchor[:size].encode(), 0)
            self._by_key.setdefault(key, []).append(needle)

    def near(self, squeezed: str) -> Iterator[_Needle]:
        """Needles whose anchors may be in a text."""
        data = squeezed.encode("ascii", "replace")
        for offset in range(min(self._size, len(data))):
            keys = self._keys(data, offset)
            if not self._by_key.keys().isdisjoint(keys):
                for key in self._by_key.keys() & set(keys):
                    yield from self._by_key[key]

    def _keys(self, data: bytes, offset: int) -> tuple[int, ...]:
        count = (len(data) - offset) // self._size
        return struct.unpack_from(f"{count}{'Q' if self._size == 8 else 'I'}", data, offset)


class _FewLetters:
    """Needles with short anchors, or none: each is looked for by itself."""

    def __init__(self, needles: list[_Needle]) -> None:
        self._needles = needles

    def near(self, squeezed: str) -> Iterator[_Needle]:
        return (needle for needle in self._needles if needle.anchor in squeezed)


def _indexes(needles: list[_Needle]) -> list[_Index | _FewLetters]:
    long = [needle for needle in needles if len(needle.anchor) >= 8]
    medium = [needle for needle in needles if 4 <= len(needle.anchor) < 8]
    short = [needle for needle in needles if len(needle.anchor) < 4]
    indexes = [_Index(8, long) if long else None, _Index(4, medium) if medium else None]
    return [*filter(None, indexes), *([_FewLetters(short)] if short else [])]


def _pieces(text: str) -> Iterator[str]:
    """What is searched for of one secret: each of its lines; a line too short for itself with its neighbour."""
    lines = [line for line in map(str.strip, text.splitlines()) if line]
    for index, line in enumerate(lines):
        if len(line) >= SHORTEST_SECRET:
            yield line
        elif index:
            yield f"{lines[index - 1]}\n{line}"
        elif len(lines) > 1:
            yield f"{line}\n{lines[1]}"


def _needles(piece: str) -> Iterator[_Needle]:
    yield _Needle(_anchor(piece), lambda: _spelled(piece))
    written = {piece, json.dumps(piece)[1:-1], json.dumps(piece, ensure_ascii=False)[1:-1]}
    for data in sorted(text.encode() for text in written):
        for core in _base64_cores(data):
            yield _Needle(_anchor(core), functools.partial(_base64_pattern, core))
        for digits in (data.hex(), data.hex().upper()):
            yield _Needle(_anchor(digits), functools.partial(_BREAK.join, digits))


def _anchor(text: str) -> str:
    """The longest run of letters and digits; "" when none is long enough to be worth a search."""
    runs = re.findall(r"(?:(?:^|(?<=\\))[nrt])?([A-Za-z0-9]+)", text)  # `\n` would be taken for a line break
    longest = max(runs, key=len, default="")
    shortest, enough = _ANCHOR_LENGTHS
    return longest[:enough] if len(longest) >= shortest else ""


def _spelled(piece: str) -> str:
    """A pattern for the piece with each character in any spelling. Runs of spaces, and of quotes, are taken as one."""
    pattern, between = "", ""
    for run in _RUNS.findall(piece):
        if run.isspace():
            pattern, between = pattern + _SPACES, ""
            continue
        pattern += between
        if run[0] in "\\'\"":  # a shell closes, escapes and opens its quotes again; YAML and CSV double them
            pattern += rf"""(?:[\\'"]|{"|".join(_spellings(run))}){{{len(run)},{16 + 8 * len(run)}}}?"""
        elif run.isascii() and run.isalnum():
            pattern += run
        else:
            pattern += rf"{f'(?:{_SLASHES})?' if pattern else ''}(?:{re.escape(run)}|{'|'.join(_spellings(run))})"
        between = _BREAK
    return pattern


def _spellings(characters: str) -> Iterator[str]:
    """Patterns for any one of these characters as programs write it; the first backslash is matched before them."""
    for character in sorted(set(characters)):
        code, octets = ord(character), character.encode()
        yield "".join(rf"%(?:25)*{_any_case(f'{octet:02x}')}" for octet in octets)
        yield _SLASHES.join(f"x{_any_case(f'{octet:02x}')}" for octet in octets)
        yield _SLASHES.join(f"0?{octet:03o}" for octet in octets)
        yield f"x{_any_case(f'{code:02x}')}" if code < 256 else f"U{_any_case(f'{code:08x}')}"
        yield _SLASHES.join(f"u{_any_case(unit)}" for unit in _utf16(character))
        yield rf"&(?:amp;)*#(?:0*{code}|[xX]0*{_any_case(f'{code:x}')});"
        if (named := html.escape(character)) != character:
            yield "&(?:amp;)*" + re.escape(named[1:])


def _utf16(character: str) -> list[str]:
    data = character.encode("utf-16-be")
    return [data[index : index + 2].hex() for index in range(0, len(data), 2)]


def _any_case(digits: str) -> str:
    return "".join(f"[{digit}{digit.upper()}]" if digit.isalpha() else digit for digit in digits)


def _base64_cores(data: bytes) -> Iterator[str]:
    """What base64 makes of these bytes wherever they stand in a longer text, less what their neighbours decide."""
    for before in range(3):
        encoded = base64.b64encode(bytes(before) + data).decode().rstrip("=")
        whole = (before + len(data)) * 8 // 6  # characters that hold nothing of what comes after
        core = encoded[-(-before * 8 // 6) : whole]
        if len(core) >= SHORTEST_SECRET:
            yield core


def _base64_pattern(core: str) -> str:
    """With the characters beside it, which hold a few of its bits; in the standard alphabet and in that of URLs."""
    beside = r"[A-Za-z0-9+/_-]?"
    spelled = _BREAK.join({"+": "[+-]", "/": r"\\*[/_]"}.get(character, character) for character in core)
    return f"{beside}{_BREAK}{spelled}{_BREAK}{beside}=*"


def _storable(text: str) -> str:
    return text.replace("\x00", "\ufffd").encode("utf-8", "replace").decode("utf-8")


def _texts(value: Any) -> Iterator[str]:
    """Every text in a value; numbers are texts too, true, false and null are none."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)
    elif value is not None and not isinstance(value, bool):
        yield str(value)
