"""nginx alone before two upstreams that note what they are sent (molecule/nginx): what the world may, and may not."""

from __future__ import annotations

import concurrent.futures
import json
import socket
import ssl
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from tests.lab.host import Host
from tests.lab.lab import REPOSITORY
from tests.lab.waiting import becomes_true, until
from tests.site.plays import Played, play

from .conftest import check_tells_the_truth

SECURITY = ("x-content-type-options", "strict-transport-security", "x-request-id", "content-security-policy")


@pytest.fixture(scope="module")
def edge(host: Callable[[str], Host]) -> Host:
    return host("edge1")


@pytest.fixture
def world(edge: Host) -> Iterator[httpx.Client]:
    context = ssl.create_default_context(cadata=edge.run("cat /etc/ssl/certs/bazaruto.crt").stdout)
    with httpx.Client(base_url=f"https://{edge.address}", verify=context, timeout=40) as client:
        client.headers["Host"] = "bazaruto.test"
        yield client


def converge(*arguments: str) -> Played:
    """Run the role again."""
    return play(*arguments, playbook=REPOSITORY / "molecule" / "nginx" / "converge.yml")


def ask(world: httpx.Client, method: str, path: str, **options: Any) -> httpx.Response:
    """By the certificate's name."""
    return world.request(method, path, extensions={"sni_hostname": "bazaruto.test"}, **options)


def sent(edge: Host, path: str) -> list[dict[str, Any]]:
    """The requests that upstreams got for a path, in their order."""
    lines = edge.run("cat /run/upstreams.log").stdout.splitlines()
    return [asked for asked in map(json.loads, lines) if asked["path"] == path]


def settled(edge: Host, world: httpx.Client) -> None:
    """Both upstreams run, and nginx sends to both again."""
    edge.run("systemctl start upstream-a upstream-b")
    both = {"a", "b"}
    until(
        lambda: {ask(world, "GET", "/v1/who").json().get("upstream") for _ in range(4)} == both, 30, "one is left out"
    )


def exactly(edge: Host, path: str) -> str:
    """The answer to a path that no client mends first."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with socket.create_connection((edge.address, 443), 10) as plain, context.wrap_socket(plain) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        return b"".join(iter(lambda: connection.recv(4096), b"")).decode()


@pytest.mark.parametrize(
    "path",
    [
        *("/metrics", "/healthz/detailed", "/healthz/jobs", "/jobs/failed", "/debug/pprof/heap", "/", "/stub_status"),
        *("/%6detrics", "//metrics", "/v1/../metrics", "/v1/%2e%2e/metrics", "/v1/..%2fmetrics", "/.problem/500"),
    ],
)
def test_a_path_that_is_not_open_is_answered_404_and_reaches_nobody(edge: Host, path: str) -> None:
    before = len(edge.run("cat /run/upstreams.log").stdout)
    said = exactly(edge, path)
    assert said.startswith("HTTP/1.1 404"), said
    assert "application/problem+json" in said
    assert len(edge.run("cat /run/upstreams.log").stdout) == before


@pytest.mark.parametrize("path", ["/v1/anything", "/healthz", "/readyz", "/livez"])
def test_an_open_path_is_answered_by_the_service_with_each_header_once(world: httpx.Client, path: str) -> None:
    answer = ask(world, "GET", path)
    assert answer.status_code == 200
    for name in SECURITY:
        assert len(answer.headers.get_list(name)) == 1, f"{name}: {answer.headers.get_list(name)}"


def test_who_asks_and_under_which_id_is_said_by_nginx_and_not_by_the_client(edge: Host, world: httpx.Client) -> None:
    lies = {
        "X-Forwarded-For": "6.6.6.6",
        "Forwarded": "for=6.6.6.6",
        "Via": "1.1 x",
        "X-Request-Id": "req_aaaaaaaaaaaa",
    }
    path = f"/v1/{uuid.uuid4().hex}"
    answer = ask(world, "GET", f"{path}?token=secret", headers=lies)
    headers = answer.json()["headers"]
    assert headers["x-forwarded-proto"] == "https"
    assert "," not in headers["x-forwarded-for"]
    assert "6.6.6.6" not in str(headers)
    assert headers["x-request-id"] == answer.headers["x-request-id"] != "req_aaaaaaaaaaaa"
    line = json.loads(edge.run(f"grep {path} /var/log/nginx/access.log").stdout)
    assert line["request_id"] == answer.headers["x-request-id"]
    assert (line["path"], line["status"], line["tls"]) == (path, 200, "TLSv1.3")
    assert line["upstream"].startswith("127.0.0.1:808")
    assert line["timestamp"].endswith("Z")
    assert "secret" not in json.dumps(line)


def test_a_post_is_sent_once_when_its_upstream_dies_in_the_middle(edge: Host, world: httpx.Client) -> None:
    settled(edge, world)
    died = 0
    for number in range(4):
        path = f"/v1/die?post={number}-{uuid.uuid4().hex}"
        answer = ask(world, "POST", path, content=b"pay")
        got = sent(edge, path)
        assert len(got) == 1, got
        died += got[0]["upstream"] == "a"
        assert answer.status_code == (502 if got[0]["upstream"] == "a" else 200)
    assert died, "no request reached the upstream that dies"


def test_a_get_goes_to_the_other_upstream_when_one_dies_in_the_middle(edge: Host, world: httpx.Client) -> None:
    settled(edge, world)
    paths = [f"/v1/die?get={number}-{uuid.uuid4().hex}" for number in range(4)]
    assert [ask(world, "GET", path).status_code for path in paths] == [200] * 4
    assert ["a", "b"] in [[asked["upstream"] for asked in sent(edge, path)] for path in paths]


def test_a_post_goes_to_the_other_upstream_when_one_was_never_reached(edge: Host, world: httpx.Client) -> None:
    settled(edge, world)
    edge.run("systemctl stop upstream-a")
    try:
        paths = [f"/v1/post?{number}-{uuid.uuid4().hex}" for number in range(4)]
        assert [ask(world, "POST", path).status_code for path in paths] == [200] * 4
        assert [[asked["upstream"] for asked in sent(edge, path)] for path in paths] == [["b"]] * 4
    finally:
        settled(edge, world)


def test_without_any_upstream_the_answer_is_a_problem_that_says_when_to_come_back(
    edge: Host, world: httpx.Client
) -> None:
    edge.run("systemctl stop upstream-a upstream-b")
    try:
        answer = ask(world, "GET", "/v1/users")
        assert answer.status_code == 502
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.headers["retry-after"] == "1"
        assert answer.json()["request_id"] == answer.headers["x-request-id"]
    finally:
        settled(edge, world)


def test_what_is_too_large_or_unknown_is_refused_as_the_service_would(edge: Host, world: httpx.Client) -> None:
    too_large = ask(world, "POST", "/v1/users", content=b"x" * (1048576 + 1))
    assert (too_large.status_code, too_large.json()["status"]) == (413, 413)
    assert ask(world, "POST", "/v1/users", content=b"x" * 1048576).status_code == 200
    assert ask(world, "FOO", "/v1/users").json()["status"] == 405
    assert ask(world, "GET", "/v1/users", headers={"X": "x" * 12000}).json()["status"] == 431
    assert ask(world, "GET", "/v1/" + "x" * 9000).json()["status"] == 414
    assert httpx.get(f"http://{edge.address}:443/").json()["status"] == 400


def test_one_address_that_asks_too_much_is_answered_429(edge: Host, world: httpx.Client) -> None:
    edge.run("sed -i 's/rate=100r/rate=1r/; s/burst=200/burst=20/' /etc/nginx/nginx.conf; systemctl reload nginx")
    statuses = [ask(world, "GET", "/livez").status_code for _ in range(40)]
    assert set(statuses) == {200, 429}, statuses
    assert converge().rc == 0
    assert becomes_true(lambda: ask(world, "GET", "/livez").status_code == 200, 10)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
def test_an_old_version_of_tls_is_refused(edge: Host, version: ssl.TLSVersion) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = version
    with pytest.raises(httpx.ConnectError, match=r"(?i)alert protocol version"):
        httpx.get(f"https://{edge.address}/livez", verify=context)


def test_port_80_answers_challenges_and_leads_everything_else_to_https(edge: Host) -> None:
    edge.run("echo answer > /var/www/acme/.well-known/acme-challenge/token")
    plain = f"http://{edge.address}"
    assert httpx.get(f"{plain}/.well-known/acme-challenge/token").text == "answer\n"
    moved = httpx.post(f"{plain}/v1/users?a=b", headers={"Host": "bazaruto.test"})
    assert (moved.status_code, moved.headers["location"]) == (308, "https://bazaruto.test/v1/users?a=b")


def test_a_snippet_that_nginx_refuses_changes_nothing_and_nginx_goes_on(edge: Host, world: httpx.Client) -> None:
    before = edge.run("sha256sum /etc/nginx/nginx.conf").stdout
    played = converge("-e", "nginx_server_snippet='nonsense on;'")
    assert played.rc != 0
    assert 'unknown directive \\"nonsense\\"' in played.said  # as JSON writes it
    assert not played.changed
    assert edge.run("sha256sum /etc/nginx/nginx.conf").stdout == before
    assert ask(world, "GET", "/livez").status_code == 200


def test_contradictions_are_refused_by_name(edge: Host) -> None:
    drained = '{"nginx_upstreams_drained": ["127.0.0.1:8081", "127.0.0.1:8082", "192.0.2.1:80"]}'
    played = converge("-e", drained)
    assert (played.rc != 0, played.changed) == (True, frozenset()), f"{edge.name}: {played}"
    assert "nginx_upstreams_drained names 192.0.2.1:80" in played.said
    assert "leaves no upstream" in played.said


def test_a_drained_upstream_gets_nothing_new_and_no_request_is_lost(edge: Host, world: httpx.Client) -> None:
    settled(edge, world)
    with concurrent.futures.ThreadPoolExecutor(1) as other:
        lasting = [other.submit(ask, world, "GET", f"/v1/lasting?{number}") for number in range(50)]
        assert converge("-e", '{"nginx_upstreams_drained": ["127.0.0.1:8081"]}').rc == 0
        assert {each.result().status_code for each in lasting} == {200}
    assert {ask(world, "GET", "/v1/who").json()["upstream"] for _ in range(6)} == {"b"}
    assert converge().rc == 0
    settled(edge, world)


def test_the_log_is_rotated_and_nginx_writes_to_the_new_one(edge: Host, world: httpx.Client) -> None:
    edge.run("logrotate --force /etc/logrotate.d/nginx")
    path = f"/v1/{uuid.uuid4().hex}"
    assert ask(world, "GET", path).status_code == 200
    assert becomes_true(lambda: path in edge.run("cat /var/log/nginx/access.log").stdout, 5)


@pytest.mark.parametrize(
    "drift",
    [
        "echo '# planted' >> /etc/nginx/nginx.conf; systemctl stop nginx",
        "systemctl disable --now nginx; chmod 0700 /var/www/acme/.well-known/acme-challenge",
        "rm /etc/ssl/certs/bazaruto.crt; chmod 0644 /etc/ssl/private/bazaruto.key",
    ],
)
def test_check_mode_tells_the_truth_about_what_drifted(edge: Host, world: httpx.Client, drift: str) -> None:
    assert check_tells_the_truth("nginx", edge, [drift])
    fresh = ssl.create_default_context(cadata=edge.run("cat /etc/ssl/certs/bazaruto.crt").stdout)
    with httpx.Client(base_url=f"https://{edge.address}", verify=fresh) as client:
        assert ask(client, "GET", "/livez").status_code == 200
