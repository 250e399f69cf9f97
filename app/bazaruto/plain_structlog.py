"""structlog without rich, which it looks for to colour tracebacks that no log here has: 3 MB in each process."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["structlog"]


@contextmanager
def _without(module: str) -> Iterator[None]:
    modules: dict[str, Any] = vars(sys)["modules"]
    known = modules.get(module)
    modules[module] = None  # which is how Python is told that there is none
    try:
        yield
    finally:
        del modules[module]
        if known:
            modules[module] = known


with _without("rich"):
    import structlog
