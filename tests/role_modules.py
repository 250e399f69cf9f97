"""Import what the roles ship: modules from `library/`, shared code as `ansible.module_utils.…`, as on a host."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import ansible.module_utils

ROOT = Path(__file__).resolve().parents[1]

for _directory in sorted(ROOT.glob("roles/*/module_utils")):
    if str(_directory) not in ansible.module_utils.__path__:
        ansible.module_utils.__path__.append(str(_directory))


def load(role: str, module: str) -> ModuleType:
    """The module `module` of `role`."""
    path = ROOT / "roles" / role / "library" / f"{module}.py"
    spec = importlib.util.spec_from_file_location(f"library_{module}", path)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded
