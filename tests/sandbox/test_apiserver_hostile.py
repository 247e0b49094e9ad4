"""Whatever clients send, the answer is one that an API server gives, and nobody else notices."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hami.sandbox.apiserver import ApiServer
from tests.support.rest import JSON_PATCH, MERGE_PATCH, STRATEGIC_PATCH, Rest, make_pod

PODS = "/api/v1/namespaces/default/pods"
QUOTAS = "/api/v1/namespaces/default/resourcequotas"
WEBHOOKS = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations"

JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5)
    | st.sampled_from(["name", "1Gi", "-1", "²", "a/b", "Always", "\ud800"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=4,
)
FIELDS = [
    ("metadata", "name"),
    ("metadata", "labels"),
    ("metadata", "labels", "a"),
    ("metadata", "annotations"),
    ("metadata", "finalizers"),
    ("metadata", "ownerReferences"),
    ("metadata", "namespace"),
    ("metadata", "generateName"),
    ("metadata", "resourceVersion"),
    ("metadata",),
    ("spec",),
    ("status",),
    ("spec", "containers"),
    ("spec", "initContainers"),
    ("spec", "tolerations"),
    ("spec", "volumes"),
    ("spec", "schedulingGates"),
    ("spec", "priorityClassName"),
    ("spec", "terminationGracePeriodSeconds"),
    ("spec", "nodeName"),
    ("spec", "hard"),
    ("spec", "containers", 0),
    ("spec", "containers", 0, "name"),
    ("spec", "containers", 0, "image"),
    ("spec", "containers", 0, "env"),
    ("spec", "containers", 0, "ports"),
    ("spec", "containers", 0, "volumeMounts"),
    ("spec", "containers", 0, "resources"),
    ("spec", "containers", 0, "resources", "limits"),
    ("spec", "containers", 0, "resources", "limits", "example.com/gpu"),
    ("webhooks",),
    ("webhooks", 0),
    ("webhooks", 0, "rules"),
    ("webhooks", 0, "clientConfig"),
    ("webhooks", 0, "objectSelector"),
    ("webhooks", 0, "timeoutSeconds"),
]


def with_junk(changes: list[tuple[tuple[Any, ...], Any]]) -> dict[str, Any]:
    obj = make_pod(limits={"example.com/gpu": 1})
    obj["webhooks"] = [{"name": "a.b.c"}]
    for path, junk in changes:
        inner: Any = obj
        try:
            for part in path[:-1]:
                inner = inner[part]
            inner[path[-1]] = junk
        except (KeyError, IndexError, TypeError):
            continue
    return obj


@settings(max_examples=120, deadline=None)
@given(
    changes=st.lists(st.tuples(st.sampled_from(FIELDS), JUNK), min_size=1, max_size=3),
    path=st.sampled_from([PODS, QUOTAS, WEBHOOKS]),
)
def test_junk_in_an_object_is_stored_or_refused(
    changes: list[tuple[tuple[Any, ...], Any]], path: str
) -> None:
    obj = with_junk(changes)
    obj.pop("kind")
    obj.pop("apiVersion")

    async def scenario() -> None:
        async with ApiServer().running() as server, Rest.connect(server) as rest:
            async with rest.session.post(path, json=obj) as response:
                refused = await response.json()
                assert response.status in (201, 400, 403, 404, 422, 500), refused
                assert response.status != 500 or "resourceVersion" in refused["message"]
            await rest.post(PODS, make_pod(name="innocent"))
            tables = {"Accept": "application/json;as=Table;v=v1;g=meta.k8s.io"}
            await rest.send("GET", path, headers=tables)

    asyncio.run(scenario())


@settings(max_examples=120, deadline=None)
@given(
    changes=st.lists(st.tuples(st.sampled_from(FIELDS), JUNK), min_size=1, max_size=3),
    content_type=st.sampled_from([MERGE_PATCH, STRATEGIC_PATCH, JSON_PATCH]),
    subresource=st.sampled_from(["", "/status"]),
    junk=JUNK,
)
def test_junk_in_a_patch_is_applied_or_refused(
    changes: list[tuple[tuple[Any, ...], Any]], content_type: str, subresource: str, junk: Any
) -> None:
    patch: Any = with_junk(changes)
    if content_type == JSON_PATCH:
        pointers = ["/".join(map(str, ("", *path))) for path, _ in changes]
        patch = [{"op": "add", "path": path, "value": junk} for path in pointers]

    async def scenario() -> None:
        async with ApiServer().running() as server, Rest.connect(server) as rest:
            await rest.post(PODS, make_pod())
            headers = {"Content-Type": content_type}
            url = f"{PODS}/web{subresource}"
            async with rest.session.patch(url, data=json.dumps(patch), headers=headers) as response:
                assert response.status in (200, 400, 409, 422), await response.text()
            await rest.get(PODS)
            await rest.delete(f"{PODS}/web")

    asyncio.run(scenario())


@pytest.mark.parametrize("body", [b'{"a":' * 100_000, b"[" * 100_000 + b"]" * 100_000])
@pytest.mark.parametrize("method", ["POST", "PATCH"])
async def test_body_nested_without_end_is_a_bad_request(body: bytes, method: str) -> None:
    async with ApiServer().running() as server, Rest.connect(server) as rest:
        await rest.post(PODS, make_pod())
        content_type = MERGE_PATCH if method == "PATCH" else "application/json"
        path = f"{PODS}/web" if method == "PATCH" else PODS

        status = await rest.send(method, path, body, content_type=content_type, expect=400)

        assert status["reason"] == "BadRequest"


@pytest.mark.parametrize("depth", [50, 200, 400, 800])
async def test_deeply_nested_status_is_stored_or_refused(depth: int) -> None:
    nested: Any = {}
    for _ in range(depth):
        nested = {"a": nested}

    async with ApiServer().running() as server, Rest.connect(server) as rest:
        await rest.post(PODS, make_pod())
        body = json.dumps({"status": nested})
        headers = {"Content-Type": MERGE_PATCH}
        async with rest.session.patch(f"{PODS}/web/status", data=body, headers=headers) as response:
            assert response.status in (200, 400, 422)
        await rest.get(PODS)


@pytest.mark.parametrize(
    "query",
    [
        "limit=-1",
        "limit=x",
        "limit=٣",
        "continue=x",
        "continue=e30=",
        "resourceVersion=x",
        "labelSelector=a%20b",
        "fieldSelector=a",
        "watch=1&resourceVersion=-1",
        "watch=1&timeoutSeconds=x",
    ],
)
async def test_query_that_makes_no_sense_is_a_bad_request(query: str) -> None:
    async with ApiServer().running() as server, Rest.connect(server) as rest:
        await rest.get(f"{PODS}?{query}", expect=400)


async def test_endless_numbers_do_no_harm() -> None:
    async with ApiServer().running() as server, Rest.connect(server) as rest:
        pod = make_pod(node="n1")
        pod["spec"]["terminationGracePeriodSeconds"] = 2**62
        await rest.post(PODS, pod)

        deleted = await rest.delete(f"{PODS}/web")
        async with rest.watch(f"{PODS}?timeoutSeconds={10**17}") as stream:
            (event,) = await stream.take(1)

    assert event["object"] == deleted


async def test_line_breaks_in_field_names_stay_out_of_the_headers() -> None:
    async with ApiServer().running() as server, Rest.connect(server) as rest:
        pod = make_pod()
        pod["spec"]["a\r\nX-Evil: yes"] = 1
        async with rest.session.post(PODS, json=pod) as response:
            assert response.status == 201
            assert "X-Evil" not in response.headers
            assert "X-Evil: yes" in response.headers["Warning"]
