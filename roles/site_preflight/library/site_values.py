#!/usr/bin/python
"""Look at the values a site is built from, and name everything in them that cannot work."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: site_values
short_description: Name everything in a site's values that cannot work
description:
  - Looks at groups, addresses, secrets, sums and files on the control node. Fails with one sentence for each that is
    missing, contradicts another, or is still the example's. Connects to no host and changes nothing.
options:
  inventory:
    description: Where the values are, for the sentences.
    type: str
    required: true
  groups:
    description: The hosts of each group.
    type: dict
    required: true
  single_groups:
    description: Groups in which exactly one host is possible.
    type: list
    elements: str
    default: []
  domain:
    description: The name that users type.
    type: str
    required: true
  addresses:
    description: The address at which the other hosts reach each host.
    type: dict
    required: true
  management_addresses:
    description: The addresses and networks from which SSH is allowed.
    type: list
    elements: str
    required: true
  secrets:
    description: The secrets by name.
    type: dict
    required: true
  secret_names:
    description: Which there must be.
    type: list
    elements: str
    default: []
  sums:
    description: Numbers that must not exceed others.
    type: list
    elements: dict
    default: []
    suboptions:
      what: {description: What is added up., type: str, required: true}
      value: {description: The sum., type: int, required: true}
      maximum: {description: What it must not exceed., type: int, required: true}
      mend: {description: What to do when it does., type: str, required: true}
  files:
    description: Files of the control node that are needed.
    type: list
    elements: dict
    default: []
    suboptions:
      variable: {description: The variable that names it., type: str, required: true}
      path: {description: Where it is., type: path, required: true}
      mend: {description: What to do when it is not there., type: str, required: true}
attributes:
  check_mode: {support: full}
  diff_mode: {support: none}
author: Bazaruto Ops
"""

EXAMPLES = r"""
- name: Refuse values that cannot work
  site_values:
    inventory: inventories/lab
    groups: {database: [db1], cache: [cache1]}
    single_groups: [database]
    domain: bazaruto.test
    addresses: {db1: 10.0.0.5, cache1: 10.0.0.6}
    management_addresses: [10.0.0.1]
    secrets: "{{ site_secrets }}"
    secret_names: [redis_admin_password]
  delegate_to: localhost
  run_once: true
"""

RETURN = r"""
problems:
  description: One sentence for each.
  returned: always
  type: list
  elements: str
"""

import collections
import ipaddress
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

EXAMPLE_NETWORKS = tuple(
    map(ipaddress.ip_network, ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "2001:db8::/32"))
)
EXAMPLE_DOMAIN = re.compile(r"(^|\.)example(\.(com|net|org|edu))?$", re.IGNORECASE)
PLACEHOLDER = re.compile(r"change[-_ ]?me|placeholder|^<.*>$|^(secret|password|todo|x+)$", re.IGNORECASE)
SHORTEST_SECRET = 16

ARGUMENTS: dict[str, Any] = {
    "inventory": {"type": "str", "required": True},
    "groups": {"type": "dict", "required": True},
    "single_groups": {"type": "list", "elements": "str", "default": []},
    "domain": {"type": "str", "required": True},
    "addresses": {"type": "dict", "required": True},
    "management_addresses": {"type": "list", "elements": "str", "required": True},
    "secrets": {"type": "dict", "required": True, "no_log": True},
    "secret_names": {"type": "list", "elements": "str", "default": [], "no_log": False},
    "sums": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "what": {"type": "str", "required": True},
            "value": {"type": "int", "required": True},
            "maximum": {"type": "int", "required": True},
            "mend": {"type": "str", "required": True},
        },
    },
    "files": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "variable": {"type": "str", "required": True},
            "path": {"type": "path", "required": True},
            "mend": {"type": "str", "required": True},
        },
    },
}


def problems(values: dict[str, Any]) -> list[str]:
    """One sentence for everything that cannot work."""
    return [
        *_groups(values["groups"], values["single_groups"], values["inventory"]),
        *_domain(values["domain"], values["inventory"]),
        *_addresses(values["addresses"]),
        *_management_addresses(values["management_addresses"]),
        *_secrets(values["secrets"], values["secret_names"]),
        *(
            f"{each['what']} come to {each['value']}, and {each['maximum']} is the most: {each['mend']}."
            for each in values["sums"]
            if each["value"] > each["maximum"]
        ),
        *(
            f"{each['variable']} is {each['path']}, which is no file on the control node: {each['mend']}."
            for each in values["files"]
            if not Path(each["path"]).is_file()
        ),
    ]


def _groups(groups: dict[str, list[str]], single: list[str], inventory: str) -> Iterator[str]:
    empty = sorted(name for name, hosts in groups.items() if not hosts)
    if empty:
        yield f"No host is in {_listed(empty)}: name at least one for each in {inventory}/hosts.yml."
    for name in single:
        if len(groups.get(name, [])) > 1:
            yield f"The group {name} has {_listed(groups[name])}, and can have one host only: keep one of them."


def _domain(domain: str, inventory: str) -> Iterator[str]:
    if not domain:
        yield f"site_domain is not set: say in {inventory}/group_vars/all/site.yml which name users type."
    elif EXAMPLE_DOMAIN.search(domain):
        yield f"site_domain is still {domain}, the example's: set your own name in {inventory}/group_vars/all/site.yml."


def _addresses(addresses: dict[str, str]) -> Iterator[str]:
    unknown = sorted(host for host, address in addresses.items() if not address)
    if unknown:
        yield f"site_address of {_listed(unknown)} is not set: say how the other hosts reach each of them."
    examples = {host: address for host, address in addresses.items() if address and _is_example(address)}
    if examples:
        shown = _listed(f"{host} ({address})" for host, address in sorted(examples.items()))
        yield f"site_address is still an example's at {shown}: set the hosts' own in hosts.yml (ansible_host)."
    lonely = {host: address for host, address in addresses.items() if address and _is_lonely(address)}
    if lonely:
        shown = _listed(f"{host} ({address})" for host, address in sorted(lonely.items()))
        yield f"site_address leads each host to itself at {shown}: set one that the other hosts can reach."
    hosts_of = collections.defaultdict(list)
    for host, address in sorted(addresses.items()):
        hosts_of[address].append(host)
    for address, hosts in hosts_of.items():
        if address and len(hosts) > 1:
            yield f"site_address of {_listed(hosts)} is the same, {address}: each host needs its own."


def _management_addresses(addresses: list[str]) -> Iterator[str]:
    if not addresses:
        yield "site_management_addresses is empty: SSH would be closed to you; name your addresses or networks."
    for address in addresses:
        try:
            network = ipaddress.ip_network(address)
        except ValueError:
            yield f"site_management_addresses has {address!r}, which is neither an address nor a network."
        else:
            if _in_example(network):
                yield f"site_management_addresses still has {address}, the example's: name your own."


def _secrets(secrets: dict[str, Any], names: list[str]) -> Iterator[str]:
    mend = "see vault.yml.example in inventories/production/group_vars/all"
    missing = sorted(name for name in names if not secrets.get(name))
    if missing:
        yield f"site_secrets lacks {_listed(missing)}: add what is missing to the vault; {mend}."
    placeholders = sorted(name for name, value in secrets.items() if value and PLACEHOLDER.search(str(value)))
    if placeholders:
        yield f"site_secrets still has a placeholder at {_listed(placeholders)}: put random values into the vault."
    short = sorted(
        name
        for name, value in secrets.items()
        if value and name not in placeholders and len(str(value)) < SHORTEST_SECRET
    )
    if short:
        yield f"site_secrets has fewer than {SHORTEST_SECRET} characters at {_listed(short)}: openssl rand -hex 24."


def _is_example(address: str) -> bool:
    try:
        return _in_example(ipaddress.ip_network(address))
    except ValueError:
        return bool(EXAMPLE_DOMAIN.search(address))


def _is_lonely(address: str) -> bool:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address == "localhost" or address.startswith("localhost.")
    return parsed.is_loopback or parsed.is_unspecified


def _in_example(network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> bool:
    return any(
        each.version == network.version and each.overlaps(network) for each in EXAMPLE_NETWORKS if network.prefixlen
    )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)


def main() -> None:
    module = AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    found = problems(module.params)
    if found:
        module.fail_json(msg="Nothing was touched. " + " ".join(found), problems=found)
    module.exit_json(problems=[])


if __name__ == "__main__":
    main()
