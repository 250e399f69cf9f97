"""What a check run says would change, in words that are the same whenever the same would change."""

from __future__ import annotations

import hashlib
import re

BANNER = re.compile(r"\A\s*(?:TASK|RUNNING HANDLER) \[.*\] \*+\n")  # printed with whichever host comes first
RENDERED = re.compile(r"^(--- before|\+\+\+ after): .*/ansible-(?:local|tmp)-.*$", re.MULTILINE)  # each time another


def diff(text: str) -> str:
    """A diff without its task's banner, and without the names of Ansible's temporary files in its headers."""
    return RENDERED.sub(r"\1: rendered", BANNER.sub("", text))


def digest(text: str) -> str:
    """What stands for the whole of a diff that is too long for a record."""
    return hashlib.sha256(diff(text).encode()).hexdigest()
