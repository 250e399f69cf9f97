"""What is told to journald on a real host can be found there by its fields."""

from __future__ import annotations

import json
import secrets
import shlex

from tests.hosts.test_scopes import PYTHON
from tests.lab.host import Host
from tests.lab.waiting import becomes_true


def test_a_head_of_the_audit_is_found_in_the_journal_by_its_fields(host: Host) -> None:
    mac = secrets.token_hex(32)
    told = f"'bazaruto-audit', 'audit entry 7', {{'BAZARUTO_AUDIT_SEQ': '7', 'BAZARUTO_AUDIT_MAC': {mac!r}}}"
    host.run(f"{PYTHON} {shlex.quote(f'from bazaruto.control.audit import journald; journald.tell({told})')}")

    def found() -> str:
        return host.run(f"journalctl -t bazaruto-audit -o json BAZARUTO_AUDIT_MAC={mac}").stdout.strip()

    assert becomes_true(lambda: bool(found()), 10)
    entry = json.loads(found())
    assert (entry["MESSAGE"], entry["BAZARUTO_AUDIT_SEQ"]) == ("audit entry 7", "7")
