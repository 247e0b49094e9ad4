"""Admission webhooks, called over real TLS."""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import trustme
from aiohttp import web

from hami.sandbox.apiserver import ApiServer
from tests.support.rest import MERGE_PATCH, Rest, make_pod

DEFAULT = "/api/v1/namespaces/default"
PODS = f"{DEFAULT}/pods"
MUTATING = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations"
VALIDATING = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations"
ADD_LABEL = [{"op": "add", "path": "/metadata/labels/hooked", "value": "yes"}]

Respond = Callable[[Any], Any]
"""From the request of a review to the fields of its response, or the whole answer as text."""


@dataclass
class Hook:
    """A webhook server that answers as it is told and remembers what it was asked."""

    respond: Respond = lambda _: {"allowed": True}
    reviews: list[Any] = field(default_factory=list)
    url: str = ""
    port: int = 0
    bundle: str = ""

    async def handle(self, request: web.Request) -> web.Response:
        review = await request.json()
        self.reviews.append(review)
        response = self.respond(review["request"])
        if isinstance(response, str):
            return web.Response(text=response)
        response = {"uid": review["request"]["uid"], **response}
        kind = {"kind": "AdmissionReview", "apiVersion": review["apiVersion"]}
        return web.json_response({**kind, "response": response})

    @asynccontextmanager
    async def running(self, authority: trustme.CA) -> AsyncIterator[Hook]:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        authority.issue_cert("127.0.0.1", "hook.default.svc").configure_cert(context)
        app = web.Application(client_max_size=2**23)
        app.router.add_post("/{path:.*}", self.handle)
        runner = web.AppRunner(app, handle_signals=False, shutdown_timeout=0.1)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
            self.port = runner.addresses[0][1]
            self.url = f"https://127.0.0.1:{self.port}/hook"
            self.bundle = base64.b64encode(authority.cert_pem.bytes()).decode()
            yield self
        finally:
            await runner.cleanup()

    def webhook(self, **changes: Any) -> dict[str, Any]:
        rule = {"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"]}
        return {
            "name": "hook.example.com",
            "clientConfig": {"url": self.url, "caBundle": self.bundle},
            "rules": [{**rule, "resources": ["pods"]}],
            "admissionReviewVersions": ["v1"],
            "sideEffects": "None",
            **changes,
        }

    def patches(self, *operations: Any, **more: Any) -> None:
        patch = base64.b64encode(json.dumps(operations).encode()).decode()
        response = {"allowed": True, "patchType": "JSONPatch", "patch": patch, **more}
        self.respond = lambda _: response


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
async def hook(authority: trustme.CA) -> AsyncIterator[Hook]:
    async with Hook().running(authority) as running:
        yield running


@pytest.fixture
async def rest() -> AsyncIterator[Rest]:
    async with ApiServer().running() as server, Rest.connect(server) as client:
        yield client


async def configure(rest: Rest, *webhooks: Any, path: str = MUTATING, name: str = "a") -> None:
    await rest.post(path, {"metadata": {"name": name}, "webhooks": list(webhooks)})


async def test_webhook_changes_a_pod_before_it_is_stored(rest: Rest, hook: Hook) -> None:
    hook.patches(
        *ADD_LABEL,
        {"op": "add", "path": "/spec/containers/0/resources/limits", "value": {"a.b/gpu": 3000}},
    )
    await configure(rest, hook.webhook())

    created = await rest.post(PODS, make_pod())

    assert created["metadata"]["labels"] == {"hooked": "yes"}
    limits = {"a.b/gpu": "3k"}
    assert created["spec"]["containers"][0]["resources"] == {"limits": limits, "requests": limits}


async def test_review_says_what_is_asked(rest: Rest, hook: Hook) -> None:
    await configure(rest, hook.webhook())
    pod = make_pod(name="")
    pod["metadata"]["generateName"] = "web-"

    await rest.post(PODS, pod)

    (review,) = hook.reviews
    request = review["request"]
    assert (review["kind"], review["apiVersion"]) == ("AdmissionReview", "admission.k8s.io/v1")
    assert request["kind"] == {"group": "", "version": "v1", "kind": "Pod"}
    assert request["resource"] == {"group": "", "version": "v1", "resource": "pods"}
    assert (request["operation"], request["namespace"]) == ("CREATE", "default")
    assert request["dryRun"] is False
    assert request["object"]["spec"]["schedulerName"] == "default-scheduler"
    assert "name" not in request["object"]["metadata"]
    assert "uid" not in request["object"]["metadata"]


async def test_old_review_version_is_spoken_where_nothing_else_is_listed(
    rest: Rest, hook: Hook
) -> None:
    await configure(rest, hook.webhook(admissionReviewVersions=["v1beta1"]))

    await rest.post(PODS, make_pod())

    assert hook.reviews[0]["apiVersion"] == "admission.k8s.io/v1beta1"


async def test_denied_pod_is_refused_in_the_words_of_the_webhook(rest: Rest, hook: Hook) -> None:
    hook.respond = lambda _: {"allowed": False, "status": {"message": "no room", "code": 403}}
    await configure(rest, hook.webhook())

    status = await rest.post(PODS, make_pod(), expect=403)

    assert status["message"] == 'admission webhook "hook.example.com" denied the request: no room'
    await rest.get(f"{PODS}/web", expect=404)


async def test_denial_without_a_word_is_a_bad_request(rest: Rest, hook: Hook) -> None:
    hook.respond = lambda _: {"allowed": False}
    await configure(rest, hook.webhook())

    status = await rest.post(PODS, make_pod(), expect=400)

    assert status["message"].endswith("denied the request without explanation")


async def test_warnings_reach_the_client(rest: Rest, hook: Hook) -> None:
    hook.respond = lambda _: {"allowed": True, "warnings": ['too "big"']}
    await configure(rest, hook.webhook())

    async with rest.session.post(PODS, json=make_pod()) as response:
        assert response.headers["Warning"] == r'299 - "too \"big\""'


@pytest.mark.parametrize(
    "answer",
    [
        "no json",
        "{}",
        '{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1"}',
        '{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1",'
        '"response":{"uid":"other","allowed":true}}',
        '{"kind":"Pod","apiVersion":"v1","response":{"uid":"x","allowed":true}}',
        '"' + "x" * 9_000_000 + '"',
    ],
)
async def test_answer_that_is_none_is_a_failure(rest: Rest, hook: Hook, answer: str) -> None:
    hook.respond = lambda _: answer
    await configure(rest, hook.webhook())

    status = await rest.post(PODS, make_pod(), expect=500)

    assert 'failed calling webhook "hook.example.com"' in status["message"]


@pytest.mark.parametrize(
    "response",
    [
        {"allowed": True, "patch": "bm8gcGF0Y2g=", "patchType": "JSONPatch"},
        {"allowed": True, "patch": "W10=", "patchType": "Merge"},
        {"allowed": True, "patch": "!", "patchType": "JSONPatch"},
    ],
)
async def test_patch_that_cannot_be_applied_is_a_failure(
    rest: Rest, hook: Hook, response: Any
) -> None:
    hook.respond = lambda _: response
    await configure(rest, hook.webhook())

    await rest.post(PODS, make_pod(), expect=500)


async def test_ignored_failures_let_the_pod_pass(rest: Rest, hook: Hook) -> None:
    hook.respond = lambda _: "no json"
    await configure(rest, hook.webhook(failurePolicy="Ignore"))

    await rest.post(PODS, make_pod())

    assert len(hook.reviews) == 1


async def test_webhook_of_another_authority_is_not_trusted(rest: Rest, hook: Hook) -> None:
    other = base64.b64encode(trustme.CA().cert_pem.bytes()).decode()
    await configure(rest, hook.webhook(clientConfig={"url": hook.url, "caBundle": other}))

    status = await rest.post(PODS, make_pod(), expect=500)

    assert "failed calling webhook" in status["message"]
    assert hook.reviews == []


async def test_webhook_that_cannot_be_reached_has_failed(rest: Rest, hook: Hook) -> None:
    refused = {"url": "https://127.0.0.1:1/hook", "caBundle": hook.bundle}
    await configure(rest, hook.webhook(clientConfig=refused))

    status = await rest.post(PODS, make_pod(), expect=500)

    assert 'Post "https://127.0.0.1:1/hook"' in status["message"]


async def test_webhook_that_takes_too_long_has_failed(rest: Rest, hook: Hook) -> None:
    async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    silent = await asyncio.start_server(swallow, "127.0.0.1", 0)
    port = silent.sockets[0].getsockname()[1]
    client = {"url": f"https://127.0.0.1:{port}/", "caBundle": hook.bundle}
    await configure(rest, hook.webhook(clientConfig=client, timeoutSeconds=1))

    async with silent:
        status = await rest.post(PODS, make_pod(), expect=500)

    assert "context deadline exceeded" in status["message"]


async def test_service_is_found_through_its_endpoints(rest: Rest, hook: Hook) -> None:
    subset = {"addresses": [{"ip": "127.0.0.1"}], "ports": [{"port": hook.port}]}
    client = {"service": {"namespace": "default", "name": "hook"}, "caBundle": hook.bundle}
    await configure(rest, hook.webhook(clientConfig=client))

    status = await rest.post(PODS, make_pod(), expect=500)
    assert 'service "hook" in namespace "default" has no endpoint' in status["message"]

    endpoints = {"metadata": {"name": "hook"}, "subsets": [subset]}
    await rest.post(f"{DEFAULT}/endpoints", endpoints)
    await rest.post(PODS, make_pod())
    assert len(hook.reviews) == 1


@pytest.mark.parametrize(
    ("changes", "is_called"),
    [
        ({}, True),
        ({"rules": [{"operations": ["*"], "resources": ["*/*"]}]}, True),
        ({"rules": [{"operations": ["UPDATE"], "resources": ["pods"]}]}, False),
        ({"rules": [{"operations": ["*"], "resources": ["pods/status"]}]}, False),
        ({"rules": [{"operations": ["*"], "resources": ["pods"], "scope": "Cluster"}]}, False),
        ({"objectSelector": {"matchLabels": {"app": "web"}}}, True),
        ({"objectSelector": {"matchLabels": {"app": "db"}}}, False),
        (
            {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "default"}}},
            True,
        ),
        (
            {
                "namespaceSelector": {
                    "matchExpressions": [
                        {
                            "key": "kubernetes.io/metadata.name",
                            "operator": "NotIn",
                            "values": ["default"],
                        }
                    ]
                }
            },
            False,
        ),
    ],
)
async def test_rules_and_selectors_say_which_webhooks_are_called(
    rest: Rest, hook: Hook, changes: dict[str, Any], is_called: bool
) -> None:
    for rule in changes.get("rules", ()):
        rule.update({"apiGroups": ["*"], "apiVersions": ["*"]})
    await configure(rest, hook.webhook(**changes))

    await rest.post(PODS, make_pod(labels={"app": "web"}))

    assert bool(hook.reviews) is is_called


async def test_webhooks_are_asked_in_order_and_again_if_needed(
    rest: Rest, hook: Hook, authority: trustme.CA
) -> None:
    async with Hook().running(authority) as later:
        later.patches(*ADD_LABEL)
        await configure(rest, later.webhook(name="later.example.com"), name="b")
        await configure(rest, hook.webhook(reinvocationPolicy="IfNeeded"), name="a")

        await rest.post(PODS, make_pod())

    seen = [review["request"]["object"]["metadata"]["labels"] for review in hook.reviews]
    assert seen == [{}, {"hooked": "yes"}]
    assert len(later.reviews) == 1


async def test_dry_run_is_told_to_the_webhook(rest: Rest, hook: Hook) -> None:
    hook.patches(*ADD_LABEL)
    await configure(rest, hook.webhook())

    created = await rest.post(f"{PODS}?dryRun=All", make_pod())

    assert created["metadata"]["labels"] == {"hooked": "yes"}
    assert hook.reviews[0]["request"]["dryRun"] is True
    await rest.get(f"{PODS}/web", expect=404)


async def test_validating_webhook_guards_updates_and_deletions(rest: Rest, hook: Hook) -> None:
    await rest.post(PODS, make_pod())
    hook.respond = lambda _: {"allowed": False, "status": {"message": "stay"}}
    rule = {"operations": ["UPDATE", "DELETE"], "apiGroups": ["*"], "apiVersions": ["*"]}
    rules = [{**rule, "resources": ["pods"]}]
    await configure(rest, hook.webhook(rules=rules), path=VALIDATING)

    await rest.patch(f"{PODS}/web", {"metadata": {"labels": {"a": "b"}}}, MERGE_PATCH, expect=400)
    await rest.delete(f"{PODS}/web", expect=400)

    update, deletion = (review["request"] for review in hook.reviews)
    assert update["oldObject"]["metadata"]["labels"] == {}
    assert update["object"]["metadata"]["labels"] == {"a": "b"}
    assert (deletion["object"], deletion["operation"]) == (None, "DELETE")


async def test_webhook_cannot_move_a_pod_to_another_namespace(rest: Rest, hook: Hook) -> None:
    hook.patches({"op": "replace", "path": "/metadata/namespace", "value": "kube-system"})
    await configure(rest, hook.webhook())

    await rest.post(PODS, make_pod(), expect=400)


@pytest.mark.parametrize(
    ("changes", "field_name"),
    [
        ({"name": "short"}, "name"),
        ({"admissionReviewVersions": ["v9"]}, "admissionReviewVersions"),
        ({"sideEffects": "Some"}, "sideEffects"),
        ({"timeoutSeconds": 31}, "timeoutSeconds"),
        ({"failurePolicy": "Hope"}, "failurePolicy"),
        ({"clientConfig": {}}, "clientConfig"),
        ({"clientConfig": {"url": "http://x.example.com"}}, "clientConfig.url"),
        ({"clientConfig": {"url": "https://x", "caBundle": "?"}}, "clientConfig.caBundle"),
        ({"matchConditions": [{"name": "x", "expression": "true"}]}, "matchConditions"),
        ({"objectSelector": {"matchExpressions": [{"key": "a"}]}}, "objectSelector"),
    ],
)
async def test_webhook_that_could_not_be_called_is_invalid(
    rest: Rest, hook: Hook, changes: dict[str, Any], field_name: str
) -> None:
    configuration = {"metadata": {"name": "a"}, "webhooks": [hook.webhook(**changes)]}

    status = await rest.post(MUTATING, configuration, expect=422)

    assert status["details"]["causes"][0]["field"] == f"webhooks[0].{field_name}"
