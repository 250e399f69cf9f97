"""docs/service.md's commands, taken from its text and run as printed, give what is printed below them."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from .conftest import Platform

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "service.md"
MARK = "-- end of block"


def test_the_pages_commands_print_what_it_says(platform: Platform) -> None:
    """All blocks in one shell; a `text` block is the output of the `sh` block before it."""
    blocks = re.findall(r"```sh\n(.*?)```(?:\n\n```text\n(.*?)```)?", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) > 10
    script = "".join(f"{commands}\necho '{MARK}'\n" for commands, _ in blocks)
    script = script.replace("http://localhost:8080", platform.service_url).replace(". .venv/bin/activate\n", "")
    rules = platform.home / "config" / "business_rules.json"
    before = rules.read_bytes()
    try:
        done = subprocess.run(
            ["bash", "-e", "-o", "pipefail", "-c", script],
            cwd=ROOT,
            env=platform.environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    finally:
        rules.write_bytes(before)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    outputs = done.stdout.split(f"{MARK}\n")
    for (commands, printed), output in zip(blocks, outputs, strict=False):
        if printed:
            assert output == printed, commands
