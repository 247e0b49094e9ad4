"""Where the cluster is found, what is said when it is not, and how credentials are renewed."""

from __future__ import annotations

import ssl
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trustme
from aiohttp import web
from prometheus_client import CollectorRegistry

from hami import __version__
from hami.config import KubeSettings
from hami.errors import ConfigError, KubeError, UnavailableError
from hami.kube import credentials
from hami.kube.client import KubeClient, connect
from hami.kube.metrics import KubeMetrics
from tests.support.scripted import scripted, write_kubeconfig


def test_the_setting_goes_before_the_environment_and_the_usual_place(tmp_path: Path) -> None:
    usual = tmp_path / ".kube" / "config"
    usual.parent.mkdir()
    files = [tmp_path / "set", tmp_path / "named", usual]
    for file in files:
        file.touch()
    environment = {"KUBECONFIG": str(files[1]), "HOME": str(tmp_path)}

    def find(kubeconfig: Path | None, **env: str) -> str | None:
        path = str(kubeconfig) if kubeconfig else None
        return credentials.find_kubeconfig(KubeSettings(kubeconfig=path), env)

    assert find(files[0], **environment) == str(files[0])
    assert find(None, **environment) == str(files[1])
    assert find(None, HOME=str(tmp_path)) == str(usual)
    assert find(None, HOME="/nowhere", KUBERNETES_SERVICE_HOST="10.0.0.1") is None


def test_several_paths_in_the_environment_need_one_that_is_there(tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.touch()
    named = f"{tmp_path / 'absent'}:{there}"

    found = credentials.find_kubeconfig(KubeSettings(), {"KUBECONFIG": named})

    assert found == named


@pytest.mark.parametrize(
    ("kubeconfig", "environment", "told"),
    [
        ("/nowhere/a", {}, "/nowhere/a"),
        (None, {"KUBECONFIG": "/nowhere/b"}, "/nowhere/b"),
        (None, {"HOME": "/nowhere"}, "/nowhere/.kube/config"),
    ],
    ids=["setting", "environment", "nothing"],
)
def test_no_cluster_is_an_error_that_says_what_was_tried(
    kubeconfig: str | None, environment: dict[str, str], told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        credentials.find_kubeconfig(KubeSettings(kubeconfig=kubeconfig), environment)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "- a list",
        "{unbalanced",
        "just words",
        "current-context: c",
        "{current-context: c, contexts: [{name: c, context: {cluster: x, user: y}}]}",
        "{current-context: c, contexts: 7, clusters: 7, users: 7}",
        "\x00\x01",
    ],
)
async def test_a_malformed_kubeconfig_is_a_clear_error(tmp_path: Path, text: str) -> None:
    file = tmp_path / "config"
    file.write_text(text)

    with pytest.raises(ConfigError, match=str(file)):
        await credentials.load(KubeSettings(kubeconfig=str(file)), {})


async def test_a_certificate_that_is_none_is_a_clear_error(tmp_path: Path) -> None:
    path = write_kubeconfig(tmp_path / "config", "https://localhost", authority=b"no certificate")

    with pytest.raises(ConfigError, match="TLS"):
        async with connect(KubeSettings(kubeconfig=path)):
            pass


async def test_a_pod_without_a_service_account_is_told_so() -> None:
    environment = {
        "HOME": "/nowhere",
        "KUBERNETES_SERVICE_HOST": "10.0.0.1",
        "KUBERNETES_SERVICE_PORT": "443",
    }

    with pytest.raises(ConfigError, match="service account"):
        await credentials.load(KubeSettings(), environment)


async def test_requests_carry_the_token_and_our_name(tmp_path: Path) -> None:
    async def echo(request: web.Request) -> web.Response:
        return web.Response(
            text=f"{request.headers['Authorization']} {request.headers['User-Agent']}"
        )

    async with scripted(echo) as address:
        path = write_kubeconfig(tmp_path / "config", address, user={"token": "s3cret"})
        async with connect(KubeSettings(kubeconfig=path)) as client:
            assert await client.get("/x") == f"Bearer s3cret hami/{__version__}".encode()


async def test_the_servers_certificate_is_verified(tmp_path: Path) -> None:
    async def hello(_: web.Request) -> web.Response:
        return web.Response(text="hello")

    authority, stranger = trustme.CA(), trustme.CA()
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(tls)

    async def ask(ca: trustme.CA) -> bytes:
        pem = ca.cert_pem.bytes()
        path = write_kubeconfig(tmp_path / "config", address, authority=pem)
        async with connect(KubeSettings(kubeconfig=path)) as client:
            return await client.get("/x")

    async with scripted(hello, tls=tls) as address:
        assert await ask(authority) == b"hello"
        with pytest.raises(UnavailableError, match="certificate"):
            await ask(stranger)


async def test_a_proxy_of_the_environment_is_used_unless_the_host_is_excepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def proxy(request: web.Request) -> web.Response:
        return web.Response(text=f"via proxy to {request.url.host}")

    async def ask() -> bytes:
        path = write_kubeconfig(tmp_path / "config", "http://cluster.invalid")
        async with connect(KubeSettings(kubeconfig=path)) as client:
            return await client.get("/x")

    async with scripted(proxy) as address:
        monkeypatch.setenv("http_proxy", address)
        assert await ask() == b"via proxy to cluster.invalid"
        monkeypatch.setenv("no_proxy", "cluster.invalid")
        with pytest.raises(UnavailableError):
            await ask()


async def test_a_proxy_of_the_environment_is_not_used_for_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def server(_: web.Request) -> web.Response:
        return web.Response(text="itself")

    monkeypatch.setenv("http_proxy", "http://proxy.invalid:3128")
    monkeypatch.delenv("no_proxy", raising=False)
    async with scripted(server) as address:
        path = write_kubeconfig(tmp_path / "config", address)
        async with connect(KubeSettings(kubeconfig=path)) as client:
            assert await client.get("/x") == b"itself"


class Guarded:
    """Admits one token; counts requests."""

    def __init__(self, token: str) -> None:
        self.token = token
        self.requests = 0

    async def __call__(self, request: web.Request) -> web.Response:
        self.requests += 1
        if request.headers.get("Authorization") == f"Bearer {self.token}":
            return web.Response(text="welcome")
        return web.json_response({"kind": "Status", "message": "who?"}, status=401)


async def client_with_clock(path: str, clock: Callable[[], float]) -> KubeClient:
    settings = KubeSettings(kubeconfig=path)
    configuration = await credentials.load(settings, {})
    source = credentials.Credentials(settings, {}, configuration, clock=clock)
    return KubeClient(source, settings, metrics=KubeMetrics(CollectorRegistry()))


def exec_plugin(directory: Path) -> dict[str, Any]:
    """A user whose token is in the file ``token``, printed by a program."""
    program = directory / "plugin"
    program.write_text(
        f"#!{sys.executable}\n"
        "import json, pathlib\n"
        f"token = pathlib.Path({str(directory / 'token')!r}).read_text()\n"
        "print(json.dumps({'kind': 'ExecCredential', 'status': {'token': token},\n"
        "                  'apiVersion': 'client.authentication.k8s.io/v1'}))\n"
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    version = "client.authentication.k8s.io/v1"
    return {"exec": {"command": str(program), "apiVersion": version}}


async def test_an_expired_exec_token_is_renewed_within_the_request(tmp_path: Path) -> None:
    token, now = tmp_path / "token", [0.0]
    token.write_text("old")
    server = Guarded("old")
    async with scripted(server) as address:
        path = write_kubeconfig(tmp_path / "config", address, user=exec_plugin(tmp_path))
        client = await client_with_clock(path, lambda: now[0])
        try:
            assert await client.get("/x") == b"welcome"

            server.token = "new"
            token.write_text("new")
            now[0] += 60.0

            assert await client.get("/x") == b"welcome"
            assert server.requests == 3
        finally:
            await client.close()


async def test_credentials_that_stay_wrong_are_not_renewed_in_a_loop(tmp_path: Path) -> None:
    now = [0.0]
    server = Guarded("right")
    async with scripted(server) as address:
        path = write_kubeconfig(tmp_path / "config", address, user={"token": "wrong"})
        client = await client_with_clock(path, lambda: now[0])
        try:
            now[0] += 60.0
            for expected in (2, 3, 4):  # the first request asks twice, the following ones once
                with pytest.raises(KubeError) as refusal:
                    await client.get("/x")
                assert refusal.value.status == 401
                assert server.requests == expected
        finally:
            await client.close()


async def test_a_cluster_that_moved_is_found_when_credentials_are_renewed(tmp_path: Path) -> None:
    now = [0.0]
    old, new = Guarded("not ours"), Guarded("ours")
    async with scripted(old) as old_address, scripted(new) as new_address:
        path = write_kubeconfig(tmp_path / "config", old_address, user={"token": "ours"})
        client = await client_with_clock(path, lambda: now[0])
        try:
            write_kubeconfig(tmp_path / "config", new_address, user={"token": "ours"})
            now[0] += 60.0

            assert await client.get("/x") == b"welcome"
            assert client.host == new_address
        finally:
            await client.close()


async def test_a_kubeconfig_that_was_spoilt_meanwhile_leaves_the_client_as_it_was(
    tmp_path: Path,
) -> None:
    now = [0.0]
    server = Guarded("right")
    async with scripted(server) as address:
        path = write_kubeconfig(tmp_path / "config", address, user={"token": "wrong"})
        client = await client_with_clock(path, lambda: now[0])
        try:
            for spoilt in (b"no certificate", None):
                if spoilt:
                    write_kubeconfig(tmp_path / "config", "https://x", authority=spoilt)
                else:
                    (tmp_path / "config").write_text("{unbalanced")
                now[0] += 60.0
                with pytest.raises(KubeError) as refusal:
                    await client.get("/x")
                assert refusal.value.status == 401
            assert client.host == address
        finally:
            await client.close()
