"""Takes secrets out of what is logged: by the field's name, and by their shape inside texts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "***"
_SECRET_NAME = re.compile(
    r"(?i)(^|[_\-.])(password|passwd|passphrase|secret|token|authorization|cookie|api[_-]?key|private[_-]?key|pgpassword)s?$"
)
_SHAPES = (
    (re.compile(r"\b(bz|bzr|whsec)_[A-Za-z0-9_-]{20,}"), rf"\1_{HIDDEN}"),  # tokens of ours
    (re.compile(r"(?i)\b([a-z][a-z0-9+.-]*://[^\s:/@]*):[^\s@/]+@"), rf"\1:{HIDDEN}@"),
    (re.compile(r"(?i)\b(bearer|basic)\s+[a-z0-9._~+/=-]{6,}"), rf"\1 {HIDDEN}"),
    (
        re.compile(
            r"""(?ix)(["']?\b[\w.-]*(?:password|passwd|passphrase|secret|token|cookie|api[_-]?key)["']?\s*[=:]\s*)"""
            r"""("(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|[^\s,;&"']+)"""
        ),
        rf"\1{HIDDEN}",
    ),
)
_OUTPUT_SHAPES = (  # those that ordinary output never has, each with words without which it is not there
    (("bz_", "bzr_", "whsec_"), *_SHAPES[0]),
    (("://",), re.compile(r"""(://[^\s:/@"'<>]*):[^\s/"'<>]+@"""), rf"\1:{HIDDEN}@"),
    (
        ("earer", "EARER", "asic", "ASIC"),
        re.compile(r"(?i)\b(bearer|authorization[\"'\\]*\s*[=:]\s*[\"'\\]*basic)\s+[a-z0-9._~+/-]{12,}=*"),
        rf"\1 {HIDDEN}",
    ),
)
_MAY_HOLD_ONE = re.compile(r"(?i)://|bz_|bzr_|whsec_|bearer|basic|passw|passphrase|secret|token|cookie|api[_-]?key")


def redacted(text: str) -> str:
    """The text with `***` where a password, token or key stood."""
    if _MAY_HOLD_ONE.search(text):
        for shape, shown in _SHAPES:
            text = shape.sub(shown, text)
    return text


def redacted_output(text: str) -> str:
    """The same for what a program printed, where only unmistakable shapes are taken out: nothing else is disturbed."""
    for words, shape, shown in _OUTPUT_SHAPES:
        if any(word in text for word in words):
            text = shape.sub(shown, text)
    return text


def redact(value: Any) -> Any:
    """The same, through mappings and sequences; fields named like secrets lose their value altogether."""
    if isinstance(value, str):
        return redacted(value)
    if isinstance(value, Mapping):
        return {
            key: HIDDEN if isinstance(key, str) and item and _SECRET_NAME.search(key) else redact(item)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple | set | frozenset):
        return [redact(item) for item in value]
    if isinstance(value, bytes):
        return redacted(value.decode("utf-8", "backslashreplace"))
    return value
