"""A filter beside the playbooks."""

from __future__ import annotations


class FilterModule:
    """Ansible's way to find filters."""

    def filters(self):
        return {"shouted": str.upper}
