"""AdmissionReviews: good ones, wrong ones, and ones that are none."""

from __future__ import annotations

import base64
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hami.controllers import webhook
from hami.core.admission import Rules
from hami.core.request import Defaults
from tests.support.builders import VENDORS
from tests.support.controller import pod_object

RULES = Rules(vendors=VENDORS, defaults=Defaults(), scheduler_name="hami-scheduler")


def review_of(obj: Any, *, version: str = "admission.k8s.io/v1", **request: Any) -> dict[str, Any]:
    return {
        "apiVersion": version,
        "kind": "AdmissionReview",
        "request": {
            "uid": "the-uid",
            "kind": {"group": "", "version": "v1", "kind": "Pod"},
            "namespace": "default",
            "operation": "CREATE",
            "object": obj,
            **request,
        },
    }


def answer_to(review: Any) -> tuple[dict[str, Any], webhook.Answer]:
    body = review if isinstance(review, bytes) else msgspec.json.encode(review)
    answer = webhook.review(body, RULES)
    return msgspec.json.decode(answer.body), answer


def default_pod(**asked: Any) -> dict[str, Any]:
    pod = pod_object("p", **asked)
    pod["spec"]["schedulerName"] = "default-scheduler"
    return pod


@pytest.mark.parametrize("version", ["admission.k8s.io/v1", "admission.k8s.io/v1beta1"])
def test_pod_with_devices_is_patched_in_the_version_that_was_asked(version: str) -> None:
    body, answer = answer_to(review_of(default_pod(), version=version))

    response = body["response"]
    patch = msgspec.json.decode(base64.b64decode(response["patch"]))
    assert (body["apiVersion"], body["kind"]) == (version, "AdmissionReview")
    assert (response["uid"], response["allowed"]) == ("the-uid", True)
    assert response["patchType"] == "JSONPatch"
    assert {"op": "add", "path": "/spec/schedulerName", "value": "hami-scheduler"} in patch
    assert (answer.result, answer.pod) == ("patched", "default/p")


def test_pod_without_devices_is_allowed_without_a_patch() -> None:
    body, answer = answer_to(review_of({"spec": {"containers": [{"name": "main"}]}}))

    assert body["response"] == {
        "uid": "the-uid",
        "allowed": True,
        "status": {"metadata": {}, "code": 200},
    }
    assert answer.result == "unchanged"


def test_refused_pod_is_told_why() -> None:
    pod = default_pod()
    pod["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpumem"] = "-1"

    body, answer = answer_to(review_of(pod))

    status = body["response"]["status"]
    assert body["response"]["allowed"] is False
    assert (status["code"], status["reason"]) == (403, "Forbidden")
    assert "nvidia.com/gpumem" in status["message"]
    assert answer.result == "denied"


@pytest.mark.parametrize(
    "review",
    [
        pytest.param(review_of(None, operation="DELETE"), id="a deletion"),
        pytest.param(review_of(default_pod(), operation="UPDATE"), id="an update"),
        pytest.param(review_of(default_pod(), subResource="resize"), id="a sub-resource"),
        pytest.param(review_of(default_pod(), kind={"kind": "Deployment"}), id="another kind"),
    ],
)
def test_what_is_no_new_pod_is_allowed_as_it_is(review: Any) -> None:
    body, answer = answer_to(review)

    assert body["response"]["allowed"] is True
    assert "patch" not in body["response"]
    assert answer.result == "unchanged"


@pytest.mark.parametrize(
    "review",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"{", id="cut"),
        pytest.param(b"\xff", id="no utf-8"),
        pytest.param(b"[" * 100_000, id="deep"),
        pytest.param([], id="array"),
        pytest.param({}, id="nothing in it"),
        pytest.param({"kind": "Pod", "metadata": {"name": "p"}}, id="a pod"),
        pytest.param({"kind": "AdmissionReview"}, id="no request"),
        pytest.param({"kind": "AdmissionReview", "request": []}, id="request of wrong type"),
        pytest.param(review_of(None), id="no object"),
        pytest.param(review_of([]), id="object of wrong type"),
        pytest.param(review_of({"spec": {"containers": [None]}}), id="null container"),
        pytest.param(review_of({"spec": {"containers": {"a": 1}}}), id="containers of wrong type"),
        pytest.param(
            msgspec.json.encode(review_of({"spec": {"containers": [{}], "x": "deep"}})).replace(
                b'"deep"', b"[" * 700 + b"]" * 700
            ),
            id="deeper than can be copied",
        ),
        pytest.param(review_of(default_pod(), version="admission.k8s.io/v9"), id="later version"),
        pytest.param(review_of(default_pod(), version="apps/v1"), id="other group"),
    ],
)
def test_what_is_no_review_is_refused_in_the_form_of_one(review: Any) -> None:
    body, answer = answer_to(review)

    assert body["kind"] == "AdmissionReview"
    assert body["response"]["allowed"] is False
    assert body["response"]["status"]["code"] == 400
    assert body["response"]["status"]["message"]
    assert answer.result == "malformed"


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    ["kind", "request", "object", "spec", "containers", "metadata", "resources"]
                ),
                inner,
                max_size=4,
            )
        ),
        max_leaves=15,
    )
)
def test_any_json_gets_an_answer(tree: Any) -> None:
    for review in (tree, {"kind": "AdmissionReview", "request": tree}, review_of(tree)):
        body, _ = answer_to(review)
        assert set(body) == {"apiVersion", "kind", "response"}
        assert isinstance(body["response"]["allowed"], bool)
