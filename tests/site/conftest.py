"""The site on the hosts of the lab that BAZARUTO_LAB names, as molecule/default has built it there."""

from __future__ import annotations

import dataclasses
import json
import os
import secrets
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest

from tests.lab.host import Host
from tests.lab.lab import Lab, directory_of

BUILT = "BAZARUTO_SITE_IS_BUILT"  # said by molecule/default: nobody else's lab is broken here
DOMAIN = "bazaruto.test"
PASSWORD = secrets.token_urlsafe(16)
T = TypeVar("T")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Only where a site was built for it."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.hosts)
            if not os.environ.get(BUILT):
                item.add_marker(pytest.mark.skip(reason="needs a whole site on a lab: `make test-site` builds one"))


@dataclasses.dataclass(frozen=True)
class Site:
    """The lab's hosts, and the addresses this machine has in their network."""

    lab: Lab
    network: dict[str, Any]  # of lab.json

    def host(self, name: str) -> Host:
        return self.lab.host(name)

    def run(self, name: str, command: str, *, check: bool = True) -> str:
        """What a shell command says on a host, as root."""
        return self.host(name).run(command, check=check).stdout.strip()

    def fetch(self, name: str, url: str) -> Any:
        """The JSON that a host is answered at a URL; no host needs curl."""
        program = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1], timeout=10).read().decode())"
        return json.loads(self.run(name, f"python3 -c '{program}' '{url}'"))

    @property
    def outside(self) -> str:
        """An address that belongs to nobody of the site: the world."""
        return str(self.network["outside_address"])

    def sql(self, statement: str, database: str = "bazaruto") -> str:
        """What PostgreSQL's superuser is answered on db1."""
        return self.run("db1", f'cd /; sudo -u postgres psql -XAtd {database} -c "{statement}"')


@pytest.fixture(scope="session")
def site() -> Site:
    directory = directory_of()
    return Site(Lab(directory), json.loads((directory / "lab.json").read_text(encoding="utf-8")))


class Client:
    """Somebody in the world who talks to the edge, by its name and with its certificate checked."""

    def __init__(self, http: httpx.Client, token: str = "") -> None:
        self._http = http
        self._headers = {"Host": DOMAIN, **({"Authorization": f"Bearer {token}"} if token else {})}

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        return self._http.request(method, path, headers=self._headers, extensions={"sni_hostname": DOMAIN}, **options)

    def get(self, path: str) -> httpx.Response:
        return self.request("GET", path)

    def post(self, path: str, json: object = None) -> httpx.Response:
        return self.request("POST", path, json=json)

    def made(self, path: str, json: object) -> dict[str, Any]:
        """What was made by a request that must not fail."""
        answer = self.post(path, json)
        assert answer.status_code == 201, answer.text
        made: dict[str, Any] = answer.json()
        return made

    def login(self, email: str) -> Client:
        answer = self.post("/v1/auth/login", {"email": email, "password": PASSWORD})
        assert answer.status_code == 200, answer.text
        return Client(self._http, answer.json()["token"])


@pytest.fixture(scope="session")
def world(site: Site) -> Iterator[Client]:
    """Nobody in particular."""
    context = ssl.create_default_context(cadata=site.run("edge1", "cat /etc/ssl/certs/bazaruto.crt"))
    transport = httpx.HTTPTransport(verify=context, local_address=site.outside)
    edge = site.host("edge1").address
    with httpx.Client(base_url=f"https://{edge}", transport=transport, timeout=35) as http:
        yield Client(http)


@pytest.fixture(scope="session")
def staff(site: Site, world: Client) -> Client:
    """An agent, made on a host as the first one is."""
    email = f"agent.{secrets.token_hex(4)}@example.com"
    command = f"bazarutod users add {email} --name 'Site Test' --role agent"
    site.run(
        "app1",
        f"echo {PASSWORD} | sudo -u bazaruto BAZARUTO_CONFIG=/etc/bazaruto/bazarutod.yml "
        f"/opt/bazaruto/current/bin/{command}",
    )
    return world.login(email)


@pytest.fixture(scope="session")
def customer(world: Client, staff: Client) -> Client:
    """A customer with an active policy."""
    email = f"customer.{secrets.token_hex(4)}@example.com"
    staff.made("/v1/users", {"email": email, "name": "Site Customer", "password": PASSWORD})
    return world.login(email)


def eventually(what: Callable[[], T], seconds: float = 60) -> T:
    """What is asked for, as soon as it is true, answered without an error of the network; else the last answer."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            answer = what()
        except (httpx.TransportError, OSError):
            if time.monotonic() > deadline:
                raise
        else:
            if answer or time.monotonic() > deadline:
                return answer
        time.sleep(0.2)
