"""The listeners: who is let in, over real sockets on loopback."""

import ssl
import stat
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import httpx
import pytest
import trio
import yaml
from cryptography import x509
from kubeapi_memory import MemoryBackend

from machineplane.kubeapi.auth import kubeconfig, load_credentials
from machineplane.kubeapi.errors import ApiError, PortTaken
from machineplane.kubeapi.guard import Guard, check_loopback, is_loopback
from machineplane.kubeapi.server import ApiConfig, serve_api


@asynccontextmanager
async def serving(tmp_path, **changes):
    credentials = load_credentials(tmp_path / "api")
    options = {"http_port": 0, "tls_host": "127.0.0.1", "tls_port": 0} | changes
    config = ApiConfig(
        certificate=credentials.certificate, key=credentials.key, token=credentials.token, **options
    )
    async with trio.open_nursery() as nursery:
        addresses = await nursery.start(serve_api, config, MemoryBackend())
        trust = ssl.create_default_context(cadata=credentials.ca_pem.decode())
        async with httpx.AsyncClient(verify=trust) as client:
            yield addresses, client, credentials
        nursery.cancel_scope.cancel()


async def test_the_plain_listener_serves_loopback_names_only(tmp_path):
    async with serving(tmp_path) as (addresses, client, _):
        assert (await client.get(f"{addresses.http}/version")).status_code == 200
        port = addresses.http.rpartition(":")[2]
        for headers, status in (
            ({"Host": f"localhost:{port}"}, 200),
            ({"Host": f"[::1]:{port}"}, 200),
            ({"Host": "evil.example"}, 403),
            ({"Host": f"localhost.evil.example:{port}"}, 403),
            ({"Origin": "https://evil.example"}, 403),
            ({"Origin": "null"}, 403),
            ({"Origin": f"http://localhost:{port}"}, 200),
        ):
            reply = await client.get(f"{addresses.http}/api", headers=headers)
            assert reply.status_code == status, headers
            if status == 403:
                assert reply.json()["reason"] == "Forbidden"


async def test_the_tls_listener_wants_the_token(tmp_path):
    async with serving(tmp_path) as (addresses, client, credentials):
        for header, status in (
            (None, 401),
            ("Bearer wrong", 401),
            ("Bearer", 401),
            (f"Basic {credentials.token}", 401),
            (f"Bearer {credentials.token}", 200),
            (f"Bearer {credentials.token}", 200),
        ):
            reply = await client.get(
                f"{addresses.tls}/version", headers={"Authorization": header} if header else {}
            )
            assert reply.status_code == status
            if status == 401:
                assert reply.json()["reason"] == "Unauthorized"


async def test_a_listener_outlives_nonsense(tmp_path):
    async with serving(tmp_path) as (addresses, client, _):
        for url in (addresses.http, addresses.tls):
            port = int(url.rpartition(":")[2])
            for data in (
                b"\0" * 100,
                b"GET / HTTP/1.1\r\n\r\n",
                b"GET / HTTP/9\r\nHost: a\r\n\r\n",
                b"X" * 100_000,
            ):
                stream = await trio.open_tcp_stream("127.0.0.1", port)
                async with stream:
                    with trio.move_on_after(0.5):
                        try:
                            await stream.send_all(data)
                            await stream.receive_some()
                        except trio.BrokenResourceError:
                            pass
        assert (await client.get(f"{addresses.http}/version")).status_code == 200


async def test_the_quick_starts_curl_lines(tmp_path):
    manifest = (
        "metadata: {name: a}\nspec: {selector: {matchLabels: {a: b}}, "
        "template: {metadata: {labels: {a: b}}, spec: {containers: [{name: c, image: d}]}}}"
    )
    async with serving(tmp_path, tls_port=None) as (addresses, client, _):
        url = f"{addresses.http}/apis/apps/v1/namespaces/default/deployments"
        made = await client.post(url, content=manifest, headers={"Content-Type": "application/yaml"})
        assert made.status_code == 201
        assert len((await client.get(url)).json()["items"]) == 1
        assert (
            len((await client.get(f"{addresses.http}/api/v1/namespaces/default/pods")).json()["items"]) == 1
        )
        assert (await client.delete(f"{url}/a")).status_code == 200


async def test_a_body_that_is_too_large_is_refused_by_its_announced_length(tmp_path):
    async with serving(tmp_path, tls_port=None) as (addresses, _, _):
        stream = await trio.open_tcp_stream("127.0.0.1", int(addresses.http.rpartition(":")[2]))
        async with stream:
            head = b"POST /api/v1/namespaces HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4194304\r\n\r\nx"
            await stream.send_all(head)
            with trio.fail_after(5):
                assert b" 413 " in await stream.receive_some()


async def test_a_watch_ends_when_its_client_goes(tmp_path):
    backend = MemoryBackend()
    async with trio.open_nursery() as nursery:
        addresses = await nursery.start(serve_api, ApiConfig(http_port=0), backend)
        stream = await trio.open_tcp_stream("127.0.0.1", int(addresses.http.rpartition(":")[2]))
        async with stream:
            await stream.send_all(b"GET /api/v1/nodes?watch=1 HTTP/1.1\r\nHost: localhost\r\n\r\n")
            received = b""
            while b'"ADDED"' not in received:
                received += await stream.receive_some()
            assert backend.open_watches == 1
        with trio.fail_after(5):
            await backend.until_watches(0)
        nursery.cancel_scope.cancel()


async def test_a_stream_that_fails_midway_ends_only_itself(tmp_path):
    backend = MemoryBackend()
    async with trio.open_nursery() as nursery:
        addresses = await nursery.start(serve_api, ApiConfig(http_port=0), backend)
        async with httpx.AsyncClient() as client:
            url = f"{addresses.http}/api/v1/nodes?watch=1"
            backend.watch_fault = RuntimeError("broken backend")
            with pytest.raises(httpx.RemoteProtocolError):
                await client.get(url)
            backend.watch_fault, backend.fail = None, RuntimeError("broken backend")
            assert (await client.get(url)).json()["reason"] == "InternalError"
            backend.fail = None
            assert (await client.get(f"{addresses.http}/api/v1/nodes")).status_code == 200
        nursery.cancel_scope.cancel()


async def test_a_taken_port_names_the_option():
    with trio.socket.socket() as taken:
        await taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(
            PortTaken, match=f"--rest-api-port: cannot listen on 127.0.0.1 port {port}: another program"
        ):
            await serve_api(ApiConfig(http_port=port), MemoryBackend())


@pytest.mark.parametrize(
    ("url", "loopback"),
    [
        ("//localhost", True), ("//127.0.0.1:3000", True), ("//127.9.9.9", True), ("//[::1]:80", True),
        ("//LOCALHOST", True),
        ("//10.0.0.1", False), ("//evil@localhost", False), ("//localhost.evil", False), ("//", False), ("//[::1", False),
        ("//localhost:x", False), ("null", False), ("//127.0.0.1.evil", False), ("//0x7f.1", False),
    ],
)  # fmt: skip
def test_loopback(url, loopback):
    assert is_loopback(url) is loopback


def test_two_hosts_or_none_are_refused():
    for headers in ([], [("host", "localhost"), ("host", "evil")]):
        with pytest.raises(ApiError):
            check_loopback(headers)


async def test_too_many_requests_are_429():
    sent = []

    async def app(scope, receive, send):
        await guard(scope, receive, send)

    guard = Guard(app, lambda headers: None, trio.CapacityLimiter(1))

    async def send(message):
        sent.append(message)

    await guard({"type": "http", "headers": []}, None, send)
    assert sent[0]["status"] == 429
    assert guard.places.borrowed_tokens == 0


def test_credentials_stay_and_are_private(tmp_path):
    first = load_credentials(tmp_path / "api", ["10.0.0.7", "m0.example"])
    again = load_credentials(tmp_path / "api", ["10.0.0.7"])
    assert (first.token, first.ca_pem) == (again.token, again.ca_pem) and len(first.token) >= 40
    assert first.token not in repr(first)
    for name in ("ca.key", "server.key", "token"):
        assert stat.S_IMODE((tmp_path / "api" / name).stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "api").stat().st_mode) == 0o700


def test_the_server_certificate_is_renewed_for_a_new_name_and_in_time(tmp_path):
    def names(**options):
        credentials = load_credentials(tmp_path / "api", **options)
        certificate = x509.load_pem_x509_certificate(credentials.certificate.read_bytes())
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return certificate.serial_number, found

    first, _ = names()
    same, _ = names()
    other, with_name = names(names=["m0.example"])
    late, _ = names(names=["m0.example"], now=datetime.now(UTC) + timedelta(days=800))
    assert first == same != other != late
    assert "m0.example" in with_name.get_values_for_type(x509.DNSName)


def test_a_kubeconfig_is_complete():
    config = yaml.safe_load(kubeconfig("https://10.0.0.7:6443", b"PEM", "secret", "lab-m0"))
    assert config["current-context"] == "lab-m0"
    assert config["clusters"][0]["cluster"] == {
        "server": "https://10.0.0.7:6443",
        "certificate-authority-data": "UEVN",
    }
    assert config["users"][0]["user"] == {"token": "secret"}
