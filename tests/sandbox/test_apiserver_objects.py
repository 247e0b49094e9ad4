"""The rules of reading and writing objects, over real HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from hami.sandbox.apiserver import ApiServer
from tests.support.rest import JSON_PATCH, MERGE_PATCH, STRATEGIC_PATCH, Rest, make_pod

PODS = "/api/v1/namespaces/default/pods"


@pytest.fixture
async def rest() -> AsyncIterator[Rest]:
    async with ApiServer(event_window=16).running() as server, Rest.connect(server) as client:
        yield client


async def test_created_object_gets_name_uid_time_and_version(rest: Rest) -> None:
    pod = make_pod(name="")
    pod["metadata"]["generateName"] = "web-"

    created = await rest.post(PODS, pod)

    assert created["metadata"]["name"].startswith("web-")
    assert len(created["metadata"]["name"]) == len("web-") + 5
    assert created["metadata"]["uid"]
    assert created["metadata"]["creationTimestamp"].endswith("Z")
    assert created == await rest.get(f"{PODS}/{created['metadata']['name']}")


async def test_second_object_of_a_name_is_refused(rest: Rest) -> None:
    await rest.post(PODS, make_pod())

    status = await rest.post(PODS, make_pod(), expect=409)

    assert status["reason"] == "AlreadyExists"
    assert status["message"] == 'pods "web" already exists'


async def test_absent_objects_paths_and_namespaces_are_not_found(rest: Rest) -> None:
    for path in (f"{PODS}/none", "/api/v1/gadgets", "/apis/apps/v1/deployments", "/nowhere"):
        status = await rest.get(path, expect=404)
        assert (status["kind"], status["reason"]) == ("Status", "NotFound")
    status = await rest.post("/api/v1/namespaces/none/pods", make_pod(), expect=404)
    assert status["message"] == 'namespaces "none" not found'


async def test_update_from_a_stale_version_conflicts(rest: Rest) -> None:
    first = await rest.post(PODS, make_pod())
    first["metadata"]["labels"] = {"writer": "one"}
    await rest.put(f"{PODS}/web", first)

    first["metadata"]["labels"] = {"writer": "two"}
    status = await rest.put(f"{PODS}/web", first, expect=409)

    assert status["reason"] == "Conflict"
    assert (await rest.get(f"{PODS}/web"))["metadata"]["labels"] == {"writer": "one"}


async def test_update_that_changes_nothing_keeps_the_version(rest: Rest) -> None:
    created = await rest.post(PODS, make_pod())

    updated = await rest.put(f"{PODS}/web", created)

    assert updated["metadata"]["resourceVersion"] == created["metadata"]["resourceVersion"]


@pytest.mark.parametrize(
    ("content_type", "patch"),
    [
        (MERGE_PATCH, {"metadata": {"annotations": {"a": "1"}}}),
        (STRATEGIC_PATCH, {"metadata": {"annotations": {"a": "1"}}}),
        (JSON_PATCH, [{"op": "add", "path": "/metadata/annotations", "value": {"a": "1"}}]),
    ],
)
async def test_every_kind_of_patch_changes_the_object(
    rest: Rest, content_type: str, patch: Any
) -> None:
    await rest.post(PODS, make_pod())

    patched = await rest.patch(f"{PODS}/web", patch, content_type)

    assert patched["metadata"]["annotations"] == {"a": "1"}


async def test_server_side_apply_is_refused_in_words(rest: Rest) -> None:
    await rest.post(PODS, make_pod())

    status = await rest.patch(f"{PODS}/web", {}, "application/apply-patch+yaml", expect=415)

    assert "application/merge-patch+json" in status["message"]


async def test_resource_version_in_a_patch_is_a_precondition(rest: Rest) -> None:
    created = await rest.post(PODS, make_pod())
    version = created["metadata"]["resourceVersion"]
    patch = {"metadata": {"resourceVersion": version, "annotations": {"a": "1"}}}

    await rest.patch(f"{PODS}/web", patch, MERGE_PATCH)
    status = await rest.patch(f"{PODS}/web", patch, MERGE_PATCH, expect=409)

    assert status["reason"] == "Conflict"


async def test_failed_test_operation_leaves_the_object_alone(rest: Rest) -> None:
    created = await rest.post(PODS, make_pod())
    patch = [
        {"op": "add", "path": "/metadata/annotations", "value": {"a": "1"}},
        {"op": "test", "path": "/metadata/uid", "value": "other"},
    ]

    status = await rest.patch(f"{PODS}/web", patch, JSON_PATCH, expect=422)

    assert status["reason"] == "Invalid"
    assert await rest.get(f"{PODS}/web") == created


async def test_status_and_spec_are_written_apart(rest: Rest) -> None:
    await rest.post(PODS, make_pod())
    patch = {"spec": {"activeDeadlineSeconds": 9}, "status": {"message": "said"}}

    status_written = await rest.patch(f"{PODS}/web/status", patch, MERGE_PATCH)
    assert status_written["status"]["message"] == "said"
    assert "activeDeadlineSeconds" not in status_written["spec"]

    patch["status"] = {"message": "unsaid"}
    spec_written = await rest.patch(f"{PODS}/web", patch, MERGE_PATCH)
    assert spec_written["status"]["message"] == "said"
    assert spec_written["spec"]["activeDeadlineSeconds"] == 9
    assert spec_written["metadata"]["generation"] == 2


async def test_pages_of_a_list_show_one_moment(rest: Rest) -> None:
    for name in "abcde":
        await rest.post(PODS, make_pod(name=name))
    first = await rest.get(f"{PODS}?limit=2")
    await rest.delete(f"{PODS}/d")

    token = first["metadata"]["continue"]
    second = await rest.get(f"{PODS}?limit=2&continue={token}")
    third = await rest.get(f"{PODS}?limit=2&continue={second['metadata']['continue']}")

    names = [item["metadata"]["name"] for page in (first, second, third) for item in page["items"]]
    assert names == list("abcde")
    assert first["metadata"]["remainingItemCount"] == 3
    assert second["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]
    assert "continue" not in third["metadata"]


async def test_continuing_an_expired_list_is_gone(rest: Rest) -> None:
    for name in "abc":
        await rest.post(PODS, make_pod(name=name))
    first = await rest.get(f"{PODS}?limit=1")

    rest.server.store.forget_changes()

    token = first["metadata"]["continue"]
    status = await rest.get(f"{PODS}?limit=1&continue={token}", expect=410)
    assert status["reason"] == "Expired"


async def test_selectors_narrow_a_list(rest: Rest) -> None:
    await rest.post(PODS, make_pod(name="a", labels={"tier": "web"}))
    await rest.post(PODS, make_pod(name="b", labels={"tier": "db"}))

    by_label = await rest.get(f"{PODS}?labelSelector=tier in (web)")
    by_field = await rest.get(f"{PODS}?fieldSelector=metadata.name!=a")

    assert [item["metadata"]["name"] for item in by_label["items"]] == ["a"]
    assert [item["metadata"]["name"] for item in by_field["items"]] == ["b"]
    await rest.get(f"{PODS}?fieldSelector=spec.colour=red", expect=400)


async def test_bound_pod_waits_for_its_kubelet_to_confirm_the_deletion(rest: Rest) -> None:
    await rest.post(PODS, make_pod(node="n1"))

    deleted = await rest.delete(f"{PODS}/web?gracePeriodSeconds=7")
    assert deleted["metadata"]["deletionGracePeriodSeconds"] == 7
    assert "deletionTimestamp" in (await rest.get(f"{PODS}/web"))["metadata"]

    await rest.delete(f"{PODS}/web", {"gracePeriodSeconds": 0})
    await rest.get(f"{PODS}/web", expect=404)


async def test_unbound_pod_is_gone_at_once(rest: Rest) -> None:
    await rest.post(PODS, make_pod())

    await rest.delete(f"{PODS}/web")

    await rest.get(f"{PODS}/web", expect=404)


async def test_finalizer_keeps_an_object_until_it_is_taken_off(rest: Rest) -> None:
    pod = make_pod()
    pod["metadata"]["finalizers"] = ["example.com/keep"]
    await rest.post(PODS, pod)

    await rest.delete(f"{PODS}/web")
    kept = await rest.get(f"{PODS}/web")
    assert "deletionTimestamp" in kept["metadata"]

    await rest.patch(f"{PODS}/web", {"metadata": {"finalizers": None}}, MERGE_PATCH)
    await rest.get(f"{PODS}/web", expect=404)


async def test_deletion_of_another_object_of_the_same_name_conflicts(rest: Rest) -> None:
    await rest.post(PODS, make_pod())

    status = await rest.delete(f"{PODS}/web", {"preconditions": {"uid": "other"}}, expect=409)

    assert "UID in precondition" in status["message"]


async def test_collections_are_deleted_by_selector(rest: Rest) -> None:
    await rest.post(PODS, make_pod(name="a", labels={"tier": "web"}))
    await rest.post(PODS, make_pod(name="b"))

    await rest.delete(f"{PODS}?labelSelector=tier")

    assert [item["metadata"]["name"] for item in (await rest.get(PODS))["items"]] == ["b"]


async def test_deleted_namespace_takes_its_content_along(rest: Rest) -> None:
    await rest.post("/api/v1/namespaces", {"metadata": {"name": "team"}})
    await rest.post("/api/v1/namespaces/team/pods", make_pod(name="bound", node="n1"))
    await rest.post("/api/v1/namespaces/team/pods", make_pod(name="free"))

    await rest.delete("/api/v1/namespaces/team")
    await rest.get("/api/v1/namespaces/team/pods/free", expect=404)
    status = await rest.post("/api/v1/namespaces/team/pods", make_pod(), expect=403)
    assert "being terminated" in status["message"]

    await rest.delete("/api/v1/namespaces/team/pods/bound?gracePeriodSeconds=0")
    await rest.get("/api/v1/namespaces/team", expect=404)


async def test_dry_run_persists_nothing(rest: Rest) -> None:
    created = await rest.post(f"{PODS}?dryRun=All", make_pod())

    assert created["metadata"]["uid"]
    await rest.get(f"{PODS}/web", expect=404)


async def test_malformed_bodies_are_refused(rest: Rest) -> None:
    for body in (b"", b"[]", b"{", b"\xff", b'"text"', b'{"metadata": 7}'):
        status = await rest.send("POST", PODS, body, expect=400)
        assert status["reason"] == "BadRequest"
    await rest.send("POST", PODS, b"a: b", content_type="application/yaml", expect=415)


async def test_body_over_three_mebibytes_is_refused(rest: Rest) -> None:
    pod = make_pod()
    pod["metadata"]["annotations"] = {"a": "x" * (3 * 1024 * 1024)}

    status = await rest.post(PODS, pod, expect=413)

    assert status["reason"] == "RequestEntityTooLarge"


async def test_requests_are_counted_by_verb_and_resource(rest: Rest) -> None:
    await rest.post(PODS, make_pod())
    await rest.patch(f"{PODS}/web/status", {"status": {"phase": "Running"}}, MERGE_PATCH)

    assert rest.server.requests["create", "pods"] == 1
    assert rest.server.requests["patch", "pods/status"] == 1


async def test_dumped_store_goes_on_with_the_same_versions(rest: Rest) -> None:
    created = await rest.post(PODS, make_pod())

    restored = type(rest.server.store).load(rest.server.store.dump())

    assert restored.get("pods", "web") == created
    assert restored.version > int(created["metadata"]["resourceVersion"])


async def test_oldest_event_makes_room_for_the_newest(rest: Rest) -> None:
    for number in range(20_000):
        rest.server.store.create({"kind": "Event", "metadata": {"name": f"e{number}"}})

    await rest.post("/api/v1/namespaces/default/events", {"metadata": {"name": "newest"}})

    assert rest.server.store.find("events", "e0") is None
    assert rest.server.store.find("events", "e1") is not None
    assert rest.server.store.find("events", "newest") is not None
