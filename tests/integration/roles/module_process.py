"""Run a module's work in a process of its own, so that a test can kill it: `python -m tests.…module_process JSON`."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from typing import Any

from tests import role_modules


def start(role: str, module: str, options: dict[str, Any], file_bytes: int = 0) -> subprocess.Popen[str]:
    """Start `module` of `role` with these options; with file_bytes, no file it writes may grow past that."""
    work = json.dumps({"role": role, "module": module, "options": options, "file_bytes": file_bytes})
    return subprocess.Popen(
        [sys.executable, "-m", __name__, work],
        cwd=role_modules.ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def main() -> None:
    """Do in this process what Ansible would do on a host: the module's main, with its arguments."""
    work = json.loads(sys.argv[1])
    if work["file_bytes"]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (work["file_bytes"], work["file_bytes"]))
    from ansible.module_utils import basic
    from ansible.module_utils.testing import patch_module_args

    module = role_modules.load(work["role"], work["module"])
    assert basic is not None
    with patch_module_args(work["options"]):
        module.main()


if __name__ == "__main__":
    main()
