"""How commands find the controller, against real servers that stand where it may be."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import web

from hami.controllers.answers import Explanations
from hami.errors import (
    CodecError,
    ConfigError,
    HamiError,
    InquiryError,
    SandboxError,
    UnavailableError,
)
from hami.sandbox import lifecycle
from hami.tools.reach import Answer, Target, reach
from tests.support.sandbox import short_directory

PROXY = "/api/v1/namespaces/hami-system/services/http:hami-controller:9395/proxy"


class Server:
    """Answers as it is told, and remembers what it was asked."""

    def __init__(self) -> None:
        self.status, self.body = 200, b'{"pods":[]}'
        self.asked: list[tuple[str, str, bytes]] = []
        self.url = ""

    async def handle(self, request: web.Request) -> web.Response:
        self.asked.append((request.method, request.path, await request.read()))
        return web.Response(status=self.status, body=self.body, content_type="application/json")


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    made = Server()
    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", made.handle)
    runner = web.AppRunner(app, handle_signals=False, shutdown_timeout=0.0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield made
    await runner.cleanup()


def kubeconfig(server: Server, directory: Path) -> Path:
    file = directory / "kubeconfig"
    cluster = {"name": "c", "cluster": {"server": server.url}}
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "x",
        "clusters": [cluster],
        "users": [{"name": "u", "user": {"token": "t"}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
    }
    file.write_text(yaml.safe_dump(content))
    return file


@asynccontextmanager
async def announced(**facts: str) -> AsyncIterator[Path]:
    """The state directory of a running sandbox that says this of itself."""
    with short_directory() as place, lifecycle.claim(place):
        lifecycle.announce(place, {"kubeconfig": "/sandbox", **facts})
        yield place


async def ask(
    target: Target,
    path: str = "/v1/explain",
    body: bytes | None = None,
    environment: dict[str, str] | None = None,
) -> Answer:
    async with reach(target, environment or {}) as controller:
        return await controller.ask(path, body)


async def test_given_address_is_asked(server: Server) -> None:
    answer = await ask(Target(server=f"{server.url}/"))

    assert answer.decode(Explanations) == Explanations(pods=())
    assert server.asked == [("GET", "/v1/explain", b"")]


async def test_address_may_stand_in_the_environment_and_body_is_posted(server: Server) -> None:
    await ask(Target(), "/v1/what-if", b"{}", {"HAMI_SERVER": server.url})

    assert server.asked == [("POST", "/v1/what-if", b"{}")]


async def test_running_sandbox_is_found(server: Server) -> None:
    async with announced(health=server.url) as place:
        await ask(Target(sandbox=place))

    assert server.asked == [("GET", "/v1/explain", b"")]


async def test_sandbox_that_was_named_and_does_not_run_is_an_error() -> None:
    with short_directory() as place, pytest.raises(SandboxError, match="no sandbox runs"):
        await ask(Target(sandbox=place))


async def test_else_the_service_is_asked_through_the_api_server(
    server: Server, tmp_path: Path
) -> None:
    target = Target(kubeconfig=kubeconfig(server, tmp_path))

    await ask(target)
    await ask(target, "/v1/what-if", b"{}")
    await ask(Target(kubeconfig=target.kubeconfig, service="gpu/hami:health"))

    assert server.asked == [
        ("GET", f"{PROXY}/v1/explain", b""),
        ("POST", f"{PROXY}/v1/what-if", b"{}"),
        ("GET", "/api/v1/namespaces/gpu/services/http:hami:health/proxy/v1/explain", b""),
    ]


async def test_other_cluster_of_the_environment_is_meant_rather_than_a_sandbox(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with announced(health="http://127.0.0.1:1") as place:
        monkeypatch.setattr(lifecycle, "directory", lambda _: place)
        chosen = kubeconfig(server, tmp_path)
        await ask(Target(), environment={"KUBECONFIG": str(chosen)})

    assert server.asked[0][1].startswith(PROXY)


@pytest.mark.parametrize("through_proxy", [False, True])
async def test_refusal_of_the_controller_is_told_in_its_words(
    server: Server, tmp_path: Path, through_proxy: bool
) -> None:
    server.status, server.body = 404, b'{"error":"pod a/b: there is no such pod","state":"unknown"}'
    target = (
        Target(kubeconfig=kubeconfig(server, tmp_path))
        if through_proxy
        else Target(server=server.url)
    )

    answer = await ask(target)

    problem = answer.problem()
    assert problem is not None
    assert problem.state == "unknown"
    with pytest.raises(InquiryError, match=r"^pod a/b: there is no such pod$"):
        answer.decode(Explanations)


async def test_missing_service_is_told_with_what_to_do(server: Server, tmp_path: Path) -> None:
    status = {"kind": "Status", "message": 'services "hami-controller" not found', "code": 404}
    server.status, server.body = 404, json.dumps(status).encode()

    with pytest.raises(UnavailableError, match=r"not found; say where it is with --server") as met:
        await ask(Target(kubeconfig=kubeconfig(server, tmp_path)))

    assert met.value.status == 404


async def test_nobody_at_the_address_is_told() -> None:
    with pytest.raises(UnavailableError, match=r"controller at http://127.0.0.1:1: no answer"):
        await ask(Target(server="http://127.0.0.1:1"))


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        pytest.param(200, b"nonsense", CodecError, id="no JSON"),
        pytest.param(200, b'{"pods":1}', CodecError, id="another shape"),
        pytest.param(502, b"<html>", UnavailableError, id="an intermediary"),
        pytest.param(404, b"404: Not Found", UnavailableError, id="an older controller"),
    ],
)
async def test_answer_that_is_none_is_an_error_of_ours(
    server: Server, status: int, body: bytes, error: type[HamiError]
) -> None:
    server.status, server.body = status, body

    answer = await ask(Target(server=server.url))
    with pytest.raises(error):
        answer.decode(Explanations)


@pytest.mark.parametrize(
    "wrong",
    [
        {"server": "nonsense"},
        {"server": "ftp://x"},
        {"server": "http://:80"},
        {"server": "http://x:99999999"},
        {"service": "hami-controller"},
        {"service": "a/b/c:1"},
        {"service": "a/../b:1"},
    ],
)
async def test_address_that_is_none_is_a_wrong_use(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="expected"):
        await ask(Target(**wrong))
