"""Who may come in, over what, and what the server tells about itself."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import trustme
import yaml

from hami.errors import SandboxError
from hami.sandbox.apiserver import ApiServer, ServerTls
from tests.support.rest import Rest, make_pod

PODS = "/api/v1/namespaces/default/pods"


@pytest.fixture
async def rest() -> AsyncIterator[Rest]:
    async with ApiServer().running() as server, Rest.connect(server) as client:
        yield client


async def statuses(server: ApiServer, **request: Any) -> int:
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"{server.url}{PODS}", **request) as response,
    ):
        return response.status


async def test_tokens_open_the_door() -> None:
    async with ApiServer(tokens={"secret": "alice"}).running() as server:
        assert await statuses(server) == 401
        assert await statuses(server, headers={"Authorization": "Bearer wrong"}) == 401
        assert await statuses(server, headers={"Authorization": "Bearer secret"}) == 200
        config = yaml.safe_load(server.kubeconfig())
        assert config["users"][0]["user"] == {"token": "secret"}


async def test_client_certificates_open_the_door(tmp_path: Path) -> None:
    authority = trustme.CA()
    files = {name: tmp_path / name for name in ("certificate", "key", "authority")}
    issued = authority.issue_cert("127.0.0.1")
    issued.cert_chain_pems[0].write_to_path(files["certificate"])
    issued.private_key_pem.write_to_path(files["key"])
    authority.cert_pem.write_to_path(files["authority"])
    trusting, known = (
        ssl.create_default_context(cadata=authority.cert_pem.bytes().decode()) for _ in range(2)
    )
    authority.issue_cert("client", common_name="alice").configure_cert(known)

    tls = ServerTls(client_authority=files["authority"], **files)
    async with ApiServer(tls=tls).running() as server:
        assert server.url.startswith("https://")
        assert await statuses(server, ssl=trusting) == 401
        assert await statuses(server, ssl=known) == 200
        cluster = yaml.safe_load(server.kubeconfig())["clusters"][0]["cluster"]
        assert cluster["certificate-authority-data"]


async def test_missing_certificate_is_told(tmp_path: Path) -> None:
    none = tmp_path / "none"
    tls = ServerTls(certificate=none, key=none, authority=none)

    with pytest.raises(SandboxError, match="unusable"):
        async with ApiServer(tls=tls).running():
            pass


async def test_port_in_use_is_told(rest: Rest) -> None:
    port = int(rest.server.url.rpartition(":")[2])

    with pytest.raises(SandboxError, match=f"cannot listen on 127.0.0.1:{port}"):
        async with ApiServer(port=port).running():
            pass


async def test_server_says_that_it_is_well(rest: Rest) -> None:
    for path in ("/healthz", "/readyz", "/livez"):
        async with rest.session.get(path) as response:
            assert (response.status, await response.text()) == (200, "ok")
    assert (await rest.get("/version"))["major"] == "1"


async def test_discovery_lists_every_kind_both_ways(rest: Rest) -> None:
    plain = set()
    groups = await rest.get("/apis")
    for path in ["/api/v1"] + [f"/apis/{group['name']}/v1" for group in groups["groups"]]:
        listed = await rest.get(path)
        plain |= {one["name"] for one in listed["resources"] if "/" not in one["name"]}

    accept = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
    aggregated = set()
    for path in ("/api", "/apis"):
        listed = await rest.send("GET", path, headers={"Accept": accept})
        assert listed["kind"] == "APIGroupDiscoveryList"
        for group in listed["items"]:
            aggregated |= {one["resource"] for one in group["versions"][0]["resources"]}

    assert plain == aggregated
    assert {"pods", "nodes", "leases", "mutatingwebhookconfigurations"} <= plain


async def test_access_review_says_that_all_is_allowed(rest: Rest) -> None:
    path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"

    review = await rest.post(path, {"spec": {}})

    assert review["status"]["allowed"] is True


async def test_objects_are_shown_as_tables_and_as_metadata(rest: Rest) -> None:
    await rest.post(PODS, make_pod())
    table = {"Accept": "application/json;as=Table;v=v1;g=meta.k8s.io"}
    partial = {"Accept": "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io"}

    rows = await rest.send("GET", PODS, headers=table)
    metadata = await rest.send("GET", PODS, headers=partial)

    assert [column["name"] for column in rows["columnDefinitions"][:3]] == [
        "Name",
        "Ready",
        "Status",
    ]
    assert rows["rows"][0]["cells"][:3] == ["web", "0/1", "Pending"]
    assert set(metadata["items"][0]) == {"kind", "apiVersion", "metadata"}


async def test_form_that_the_server_does_not_have_is_not_acceptable(rest: Rest) -> None:
    accept = {"Accept": "application/vnd.kubernetes.protobuf"}

    status = await rest.send("GET", PODS, headers=accept, expect=406)

    assert status["reason"] == "NotAcceptable"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", f"{PODS}/web"),
        ("PUT", PODS),
        ("PATCH", PODS),
        ("PUT", f"{PODS}/web/binding"),
        ("GET", f"{PODS}/web/eviction"),
        ("DELETE", f"{PODS}/web/status"),
    ],
)
async def test_methods_that_fit_no_verb_are_refused(rest: Rest, method: str, path: str) -> None:
    status = await rest.send(method, path, b"{}", expect=405)

    assert status["reason"] == "MethodNotAllowed"
