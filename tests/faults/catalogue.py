"""Every fault there is, in the order in which they are tried."""

from __future__ import annotations

from . import cancels, clocks, disks, freezes, kills, outages, torn, workers
from .suite import FAULTS

PARTS = (kills, freezes, cancels, workers, outages, torn, clocks, disks)  # each enters its own

__all__ = ["FAULTS", "PARTS"]
