"""Content that was installed on a control node: which commit it is, as the file REVISION beside it says.

The role control_node writes that file. It is believed as far as the files are still those it was written for.
"""

from __future__ import annotations

import json
from pathlib import Path

NAME = "REVISION"


def state(root: Path, digest: str) -> tuple[str | None, bool] | None:
    """The commit, and whether the content differs from it; None where the content was not installed."""
    try:
        said = json.loads((root / NAME).read_text(encoding="utf-8"))
        commit, dirty, of = said["commit"], said["dirty"], said["digest"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        return None, True  # it says nothing, and so the content is nobody's
    return (str(commit) if commit else None), bool(dirty) or of != digest
