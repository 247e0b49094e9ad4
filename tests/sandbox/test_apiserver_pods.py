"""What is particular to pods: defaults, validation, binding, eviction, logs, quotas."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import pytest

from hami.sandbox.apiserver import ApiServer, LogQuery
from hami.sandbox.apiserver.quantities import canonical
from tests.support.rest import JSON_PATCH, MERGE_PATCH, Rest, make_pod

DEFAULT = "/api/v1/namespaces/default"
PODS = f"{DEFAULT}/pods"


@pytest.fixture
async def rest() -> AsyncIterator[Rest]:
    async with ApiServer().running() as server, Rest.connect(server) as client:
        yield client


async def test_new_pod_gets_the_defaults_of_a_cluster(rest: Rest) -> None:
    pod = make_pod(limits={"example.com/gpu": 1, "example.com/gpumem": 3000, "cpu": 0.5})
    pod["status"] = {"phase": "Running"}

    created = await rest.post(PODS, pod)

    spec = created["spec"]
    assert created["status"] == {"phase": "Pending", "qosClass": "Burstable"}
    assert spec["restartPolicy"] == "Always"
    assert spec["schedulerName"] == "default-scheduler"
    assert spec["terminationGracePeriodSeconds"] == 30
    assert spec["serviceAccountName"] == "default"
    assert spec["priority"] == 0
    assert len(spec["tolerations"]) == 2
    assert spec["containers"][0]["imagePullPolicy"] == "IfNotPresent"
    quantities = {"example.com/gpu": "1", "example.com/gpumem": "3k", "cpu": "500m"}
    assert spec["containers"][0]["resources"] == {"limits": quantities, "requests": quantities}


@pytest.mark.parametrize(
    ("given", "written"),
    [
        (0, "0"),
        (3000, "3k"),
        ("0.5", "500m"),
        ("1500m", "1500m"),
        ("1024Mi", "1Gi"),
        ("1536Mi", "1536Mi"),
        ("512", "512"),
        ("0.5Gi", "512Mi"),
        ("0.5Ki", "512"),
        ("1e3", "1e3"),
        ("1E", "1E"),
        ("-2000", "-2k"),
        ("1.0000000001", "1000000001n"),
        ("100Ei", "100Ei"),
    ],
)
def test_quantities_are_written_in_canonical_form(given: object, written: str) -> None:
    assert canonical(given) == written


def container(**changes: Any) -> dict[str, Any]:
    pod = make_pod()
    pod["spec"]["containers"][0].update(changes)
    return pod


def metadata(**changes: Any) -> dict[str, Any]:
    pod = make_pod()
    pod["metadata"].update(changes)
    return pod


def spec(**changes: Any) -> dict[str, Any]:
    pod = make_pod()
    pod["spec"].update(changes)
    return pod


GPU = "example.com/gpu"


@pytest.mark.parametrize(
    ("pod", "message"),
    [
        (metadata(name="Web_1"), 'metadata.name: Invalid value: "Web_1"'),
        (metadata(name="a" * 254), "must be no more than 253 bytes"),
        (metadata(labels={"a": "x" * 64}), "must be no more than 63 bytes"),
        (metadata(labels={"a b": "x"}), 'metadata.labels: Invalid value: "a b"'),
        (metadata(labels={"a": "-x"}), "a valid label must be an empty string"),
        (metadata(annotations={"x/y/z": ""}), "metadata.annotations: Invalid value"),
        (metadata(annotations={"a": "x" * 2**18}), "may not be more than 262144 bytes"),
        (spec(containers=[]), "spec.containers: Required value"),
        (spec(restartPolicy="Sometimes"), "spec.restartPolicy: Unsupported value"),
        (spec(terminationGracePeriodSeconds=-1), "must be greater than or equal to 0"),
        (spec(nodeName="No Node"), "spec.nodeName: Invalid value"),
        (container(name=""), "spec.containers[0].name: Required value"),
        (container(name="A"), 'spec.containers[0].name: Invalid value: "A"'),
        (container(image=""), "spec.containers[0].image: Required value"),
        (container(volumeMounts=[{"name": "x", "mountPath": "/x"}]), 'Not found: "x"'),
        (container(resources={"limits": {GPU: "1.5"}}), "must be an integer"),
        (container(resources={"limits": {GPU: "-1"}}), "must be greater than or equal to 0"),
        (container(resources={"limits": {GPU: "lots"}}), "quantities must match"),
        (container(resources={"limits": {"gpu": "1"}}), "must be a standard resource"),
        (container(resources={"requests": {GPU: 1}}), "Limit must be set for non overcommitable"),
        (
            container(resources={"requests": {GPU: 1}, "limits": {GPU: 2}}),
            f"must be equal to {GPU} limit of 2",
        ),
        (
            container(resources={"requests": {"cpu": 2}, "limits": {"cpu": 1}}),
            "must be less than or equal to cpu limit of 1",
        ),
    ],
)
async def test_pod_that_breaks_a_rule_is_invalid(
    rest: Rest, pod: dict[str, Any], message: str
) -> None:
    status = await rest.post(PODS, pod, expect=422)

    assert status["reason"] == "Invalid"
    assert message in status["message"]
    assert status["details"]["causes"][0]["message"] in status["message"]


@pytest.mark.parametrize(
    "pod",
    [
        metadata(labels=["a"]),
        metadata(labels={"a": 1}),
        metadata(name=7),
        spec(containers={"a": 1}),
        spec(containers=["text"]),
        spec(containers=None, tolerations="x"),
        container(env="x"),
        container(resources={"limits": {GPU: [1]}}),
        container(resources={"limits": [1]}),
    ],
)
async def test_pod_of_the_wrong_shape_is_a_bad_request(rest: Rest, pod: dict[str, Any]) -> None:
    status = await rest.post(PODS, pod, expect=400)

    assert "cannot be handled as a Pod" in status["message"]


async def test_misspelt_field_is_told_or_refused_as_asked(rest: Rest) -> None:
    pod = container(resorces={"limits": {GPU: 1}})

    status = await rest.post(f"{PODS}?fieldValidation=Strict", pod, expect=400)
    assert status["message"] == (
        'strict decoding error: unknown field "spec.containers[0].resorces"'
    )

    async with rest.session.post(PODS, json=pod) as response:
        assert response.status == 201
        assert "spec.containers[0].resorces" in response.headers["Warning"]


@pytest.mark.parametrize(
    ("patch", "status"),
    [
        ([{"op": "replace", "path": "/spec/containers/0/image", "value": "other:1"}], 200),
        ([{"op": "add", "path": "/spec/activeDeadlineSeconds", "value": 5}], 200),
        ([{"op": "add", "path": "/spec/tolerations/-", "value": {"key": "x"}}], 200),
        ([{"op": "remove", "path": "/spec/tolerations/0"}], 422),
        ([{"op": "add", "path": "/spec/nodeName", "value": "n1"}], 422),
        ([{"op": "add", "path": "/spec/containers/0/args", "value": ["x"]}], 422),
        ([{"op": "remove", "path": "/spec/schedulingGates/0"}], 200),
        ([{"op": "add", "path": "/spec/schedulingGates/-", "value": {"name": "b"}}], 422),
    ],
)
async def test_spec_of_a_pod_is_all_but_immutable(rest: Rest, patch: Any, status: int) -> None:
    await rest.post(PODS, spec(schedulingGates=[{"name": "a"}]))

    await rest.patch(f"{PODS}/web", patch, JSON_PATCH, expect=status)


async def test_seeded_pod_without_defaults_can_be_patched(rest: Rest) -> None:
    rest.server.store.create(make_pod())

    patched = await rest.patch(f"{PODS}/web", {"metadata": {"labels": {"a": "b"}}}, MERGE_PATCH)

    assert patched["spec"]["restartPolicy"] == "Always"


async def test_priority_comes_from_the_class(rest: Rest) -> None:
    classes = "/apis/scheduling.k8s.io/v1/priorityclasses"
    await rest.post(classes, {"metadata": {"name": "high"}, "value": 1000})

    created = await rest.post(PODS, spec(priorityClassName="high"))
    status = await rest.post(PODS, spec(priorityClassName="none"), expect=403)

    assert created["spec"]["priority"] == 1000
    assert "no PriorityClass with name none was found" in status["message"]


async def test_binding_puts_the_pod_on_the_node_and_copies_annotations(rest: Rest) -> None:
    pod = await rest.post(PODS, make_pod())
    binding = {
        "metadata": {"name": "web", "uid": pod["metadata"]["uid"], "annotations": {"a": "b"}},
        "target": {"apiVersion": "v1", "kind": "Node", "name": "n1"},
    }

    answer = await rest.post(f"{PODS}/web/binding", binding, expect=201)

    bound = await rest.get(f"{PODS}/web")
    assert answer["status"] == "Success"
    assert bound["spec"]["nodeName"] == "n1"
    assert bound["metadata"]["annotations"] == {"a": "b"}
    assert bound["status"]["conditions"][0]["type"] == "PodScheduled"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"spec": {"nodeName": "n0"}}, 'already assigned to node "n0"'),
        ({"spec": {"schedulingGates": [{"name": "a"}]}}, "has non-empty .spec.schedulingGates"),
        ({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}, "is being deleted"),
        ({"metadata": {"uid": "other"}}, "Precondition failed: UID"),
    ],
)
async def test_binding_of_a_pod_that_does_not_wait_for_one_conflicts(
    rest: Rest, change: dict[str, Any], message: str
) -> None:
    pod = make_pod()
    pod["metadata"]["uid"] = "meant"
    for part, values in change.items():
        pod[part].update(values)
    before = rest.server.store.create(pod)

    binding = {"metadata": {"uid": "meant"}, "target": {"name": "n1"}}
    status = await rest.post(f"{PODS}/web/binding", binding, expect=409)

    assert status["reason"] == "Conflict"
    assert message in status["message"]
    assert rest.server.store.get("pods", "web") == before


@pytest.mark.parametrize("binding", [{}, {"target": {}}, {"target": {"kind": "Pod", "name": "n"}}])
async def test_binding_to_nothing_is_a_bad_request(rest: Rest, binding: Any) -> None:
    await rest.post(PODS, make_pod())

    await rest.post(f"{PODS}/web/binding", binding, expect=400)


async def test_eviction_respects_the_disruption_budget(rest: Rest) -> None:
    for name in ("a", "b"):
        pod = make_pod(name=name, labels={"app": "web"}, node="n1")
        conditions = [{"type": "Ready", "status": "True"}]
        pod["status"] = {"phase": "Running", "conditions": conditions}
        rest.server.store.create(pod)
    budget = {
        "metadata": {"name": "one"},
        "spec": {"minAvailable": "50%", "selector": {"matchLabels": {"app": "web"}}},
    }
    await rest.post("/apis/policy/v1/namespaces/default/poddisruptionbudgets", budget)

    options = {"deleteOptions": {"gracePeriodSeconds": 0}}
    await rest.post(f"{PODS}/a/eviction", options, expect=201)
    status = await rest.post(f"{PODS}/b/eviction", options, expect=429)

    await rest.get(f"{PODS}/a", expect=404)
    await rest.get(f"{PODS}/b")
    assert status["details"]["causes"][0]["reason"] == "DisruptionBudget"


async def test_logs_come_from_the_reader(rest: Rest) -> None:
    asked: list[tuple[str, str, str, LogQuery]] = []

    async def read(
        namespace: str, pod: str, container: str, query: LogQuery
    ) -> AsyncGenerator[bytes, None]:
        asked.append((namespace, pod, container, query))

        async def lines() -> AsyncGenerator[bytes, None]:
            yield b"one\n"
            yield b"two\n"

        return lines()

    await rest.post(PODS, make_pod())
    await rest.get(f"{PODS}/web/log", expect=404)
    rest.server.log_reader = read

    async with rest.session.get(f"{PODS}/web/log?tailLines=2&follow=true") as response:
        assert await response.text() == "one\ntwo\n"
    await rest.get(f"{PODS}/web/log?container=none", expect=400)
    await rest.get(f"{PODS}/none/log", expect=404)
    assert asked == [("default", "web", "main", LogQuery(follow=True, tail_lines=2))]


async def test_quota_bounds_what_the_pods_of_a_namespace_ask_for(rest: Rest) -> None:
    hard = {f"requests.{GPU}": 3, "pods": 10}
    await rest.post(
        f"{DEFAULT}/resourcequotas", {"metadata": {"name": "q"}, "spec": {"hard": hard}}
    )
    await rest.post(PODS, make_pod(name="a", limits={GPU: 2}))

    status = await rest.post(PODS, make_pod(name="b", limits={GPU: 2}), expect=403)
    await rest.post(PODS, make_pod(name="c", limits={GPU: 1}))

    assert status["message"] == (
        f'pods "b" is forbidden: exceeded quota: q, requested: requests.{GPU}=2, '
        f"used: requests.{GPU}=2, limited: requests.{GPU}=3"
    )


async def test_limits_of_extended_resources_are_stored_and_bound_nothing(rest: Rest) -> None:
    hard = {f"limits.{GPU}": "1", "limits.cpu": "1"}
    await rest.post(
        f"{DEFAULT}/resourcequotas", {"metadata": {"name": "q"}, "spec": {"hard": hard}}
    )

    await rest.post(PODS, make_pod(name="a", limits={GPU: 2, "cpu": 1}))
    status = await rest.post(PODS, make_pod(name="b", limits={"cpu": 1}), expect=403)

    assert "limited: limits.cpu=1" in status["message"]


async def test_finished_pods_do_not_count_for_the_quota(rest: Rest) -> None:
    await rest.post(
        f"{DEFAULT}/resourcequotas", {"metadata": {"name": "q"}, "spec": {"hard": {"pods": 1}}}
    )
    await rest.post(PODS, make_pod(name="a"))
    await rest.patch(f"{PODS}/a/status", {"status": {"phase": "Succeeded"}}, MERGE_PATCH)

    await rest.post(PODS, make_pod(name="b"))
