"""What-if over HTTP: what would be, as webhook and scheduler would have it, and no trace of it."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given as forall
from hypothesis import strategies as st

from hami.config import Settings
from hami.controllers import whatif
from hami.controllers.answers import Problem, WhatIf
from hami.controllers.whatif import WhatIfs
from hami.core.admission import Rules
from hami.core.cache import AllocationCache
from hami.core.objects import Node
from hami.core.request import Defaults
from hami.core.vendors.nvidia import NVIDIA
from hami.errors import HamiError
from hami.kube.informer import Informer
from hami.sandbox.apiserver import ApiServer
from tests.core.test_duplicate import content, filled
from tests.support.builders import VENDORS
from tests.support.controller import (
    Controller,
    gpus,
    node_object,
    place,
    pod_object,
    quota_object,
    running,
)

Configure = Callable[..., Settings]


async def post(controller: Controller, body: bytes | dict[str, Any]) -> tuple[int, bytes]:
    data = io.BytesIO(body if isinstance(body, bytes) else msgspec.json.encode(body))
    async with controller.session.post(
        controller.health_url + "/v1/what-if", data=data
    ) as response:
        assert response.content_type == "application/json"
        return response.status, await response.read()


async def ask(controller: Controller, pod: object, replicas: int = 1) -> WhatIf:
    status, body = await post(controller, {"pod": pod, "replicas": replicas})
    assert status == 200, body
    return msgspec.json.decode(body, type=WhatIf)


async def refused(controller: Controller, body: bytes | dict[str, Any]) -> tuple[int, str]:
    status, answer = await post(controller, body)
    return status, msgspec.json.decode(answer, type=Problem).error


def raw_pod(limits: dict[str, Any], **spec: Any) -> dict[str, Any]:
    """A pod as a user writes it."""
    containers = [{"name": "main", "image": "x", "resources": {"limits": limits}}]
    return {"kind": "Pod", "metadata": {"name": "p"}, "spec": {"containers": containers, **spec}}


async def test_copies_go_where_the_scheduler_would_put_them_one_after_the_other(
    server: ApiServer, configure: Configure
) -> None:
    async with running(configure()) as controller:
        await place(server, controller, "n1", "first", memory=1000)
        answer = await ask(controller, pod_object("p", memory=15_000), replicas=5)
        usage = await controller.usage()

    assert [replica.node for replica in answer.placed] == ["n1"] * 4 + ["n0"]
    assert {d.memory for replica in answer.placed for d in replica.devices} == {15_000}
    assert {d.container for replica in answer.placed for d in replica.devices} == {"c0"}
    assert (answer.asked, answer.more, answer.more_is_bound) == (5, 3, False)
    assert answer.refusal is None
    assert [slots for slots, _, _ in usage.values()] == [1], "nothing is held for what is not"


async def test_manifest_means_what_the_webhook_would_make_of_it(
    server: ApiServer, configure: Configure
) -> None:
    """No count, no namespace, no scheduler's name; a whole device where no memory is named."""
    names = NVIDIA.resources

    async with running(configure()) as controller:
        part = await ask(controller, raw_pod({names.memory: 10_000}))
        whole = await ask(controller, raw_pod({names.count: 1}))

    ((shared,),) = (replica.devices for replica in part.placed)
    ((exclusive,),) = (replica.devices for replica in whole.placed)
    assert part.pod == "default/p"
    assert (shared.memory, shared.cores, part.more) == (10_000, 0, 15)
    assert (exclusive.memory, exclusive.cores, whole.more) == (40_000, 100, 3)


async def test_what_does_not_fit_is_explained_with_what_is_in_the_way(
    server: ApiServer, configure: Configure
) -> None:
    async with running(configure()) as controller:
        await place(server, controller, "n0", "a", memory=30_000)
        await place(server, controller, "n0", "b", memory=39_000)
        answer = await ask(controller, pod_object("p", memory=20_000, gpus=2), replicas=3)

    assert [replica.node for replica in answer.placed] == ["n1"] * 2
    assert answer.refusal is not None
    first = answer.refusal.nearest[0]
    assert first.line == "n0: GPU-n0-1 lacks 10000 MiB, GPU-n0-0 lacks 19000 MiB"
    assert first.would_fit == "would fit if 2 pods ended"
    assert answer.refusal.move is not None
    assert (answer.refusal.move.node, sorted(answer.refusal.move.pods)) == (
        "n0",
        ["default/a", "default/b"],
    )
    assert all("default/p" not in near.pods for near in answer.refusal.nearest)
    assert answer.refusal.message.startswith("no available node, 2 do not fit: ")


async def test_quota_bounds_the_copies(server: ApiServer, configure: Configure) -> None:
    server.store.create(quota_object("gpus", memory=10000))

    async with running(configure()) as controller:
        some = await ask(controller, pod_object("p", memory=3000))
        many = await ask(controller, pod_object("p", memory=3000), replicas=9)
        status, told = await refused(controller, {"pod": pod_object("p", memory=11_000)})

    assert (len(some.placed), some.more) == (1, 2)
    assert len(many.placed) == 3
    assert many.refusal is not None
    assert "needs 3000 MiB, 1000 of 10000 left" in many.refusal.message
    assert (status, "needs 11000 MiB" in told) == (422, True), "the webhook would refuse it"


async def test_pod_that_exists_may_be_asked_about(server: ApiServer, configure: Configure) -> None:
    async with running(configure()) as controller:
        pod = server.store.create(pod_object("p", memory=30_000, gpus=2))
        await controller.filter(pod, ["n0"])
        answer = await ask(controller, server.store.get("pods", "p"), replicas=2)

    assert [replica.node for replica in answer.placed] == ["n1"]


async def test_least_that_would_have_to_move_is_found_among_all_nodes(
    server: ApiServer, configure: Configure
) -> None:
    async with running(configure()) as controller:
        for i in range(4):
            await place(server, controller, "n0", f"small-{i}", memory=15_000)
        for i in range(2):
            await place(server, controller, "n1", f"large-{i}", memory=20_000 + i)
        one = await ask(controller, pod_object("p", memory=30_000))
        never = await ask(controller, pod_object("p", memory=50_000))

    assert one.refusal is not None
    assert one.refusal.move is not None
    assert (one.refusal.move.node, one.refusal.move.pods) == ("n1", ("default/large-0",))
    assert never.refusal is not None
    assert never.refusal.move is None


async def test_template_of_a_deployment_is_taken_for_its_pod(
    server: ApiServer, configure: Configure
) -> None:
    template = {"spec": pod_object("x", memory=1000)["spec"]}
    deployment = {"kind": "Deployment", "metadata": {"name": "web", "namespace": "team"},
                  "spec": {"template": template}}  # fmt: skip
    cron = {"kind": "CronJob", "metadata": {"generateName": "job-"},
            "spec": {"jobTemplate": {"spec": {"template": template}}}}  # fmt: skip

    async with running(configure()) as controller:
        assert (await ask(controller, deployment)).pod == "team/web"
        assert (await ask(controller, cron)).pod == "default/what-if"


async def test_node_selector_narrows_the_choice(server: ApiServer, configure: Configure) -> None:
    labelled = node_object("n2", gpus("n2"))
    labelled["metadata"]["labels"] = {"pool": "a100"}
    server.store.create(labelled)
    pod = pod_object("p")

    async with running(configure()) as controller:
        pod["spec"]["nodeSelector"] = {"pool": "a100"}
        there = await ask(controller, pod)
        pod["spec"]["nodeSelector"] = {"pool": "none"}
        nowhere = await ask(controller, pod)

    assert [replica.node for replica in there.placed] == ["n2"]
    assert nowhere.placed == ()
    assert nowhere.refusal is not None


async def test_counting_stops_at_its_bound(
    server: ApiServer, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(whatif, "MAX_MORE", 7)

    async with running(configure()) as controller:
        answer = await ask(controller, pod_object("p", memory=100))

    assert (answer.more, answer.more_is_bound) == (7, True)


BAD: list[Any] = [
    pytest.param(b"", 400, "expected", id="empty"),
    pytest.param(b"no json", 400, "expected", id="text"),
    pytest.param(b"\xff", 400, "", id="no utf-8"),
    pytest.param(b'{"pod":' + b"[" * 100_000, 400, "", id="deep"),
    pytest.param({"replicas": 1}, 400, "pod", id="no pod"),
    pytest.param({"pod": None}, 400, "manifest", id="null"),
    pytest.param({"pod": [1]}, 400, "manifest", id="list"),
    pytest.param({"pod": {}}, 400, "spec", id="no spec"),
    pytest.param({"pod": {"spec": []}}, 400, "spec", id="odd spec"),
    pytest.param({"pod": {"spec": {"containers": 1}}}, 400, "containers", id="odd containers"),
    pytest.param({"pod": {"spec": {}, "metadata": 1}}, 400, "metadata", id="odd metadata"),
    pytest.param({"pod": {"kind": "Node"}}, 400, "Deployment", id="another kind"),
    pytest.param({"pod": {"kind": ["x"], "spec": {}}}, 400, "kind", id="odd kind"),
    pytest.param({"pod": {"kind": "Job", "spec": 1}}, 400, "spec", id="odd template"),
    pytest.param({"pod": pod_object("p"), "replicas": 0}, 400, "1 to 1000", id="none"),
    pytest.param({"pod": pod_object("p"), "replicas": 1001}, 400, "1 to 1000", id="too many"),
    pytest.param({"pod": pod_object("p"), "replicas": "x"}, 400, "replicas", id="no number"),
    pytest.param({"pod": pod_object("p"), "loud": 1}, 400, "loud", id="unknown field"),
    pytest.param({"pod": raw_pod({})}, 400, "no devices", id="no devices"),
    pytest.param(
        {"pod": raw_pod({NVIDIA.resources.count: 1}, schedulerName="mine")},
        400,
        "'mine'",
        id="another scheduler",
    ),
    pytest.param(
        {"pod": raw_pod({NVIDIA.resources.count: 1}, nodeSelector=[1])},
        400,
        "nodeSelector",
        id="odd selector",
    ),
    pytest.param(
        {"pod": raw_pod({NVIDIA.resources.memory: "lots"})}, 422, "gpumem", id="odd quantity"
    ),
    pytest.param(
        {"pod": raw_pod({NVIDIA.resources.count: 1}, nodeName="n0")}, 422, "nodeName", id="node"
    ),
    pytest.param({"pod": {"spec": {"containers": []}}}, 422, "no containers", id="no containers"),
]


@pytest.mark.parametrize(("body", "status", "told"), BAD)
async def test_question_that_is_none_is_answered_in_words(
    server: ApiServer, configure: Configure, body: bytes | dict[str, Any], status: int, told: str
) -> None:
    async with running(configure()) as controller:
        found, error = await refused(controller, body)

    assert (found, told in error) == (status, True), error


async def test_body_beyond_the_bound_is_refused(server: ApiServer, configure: Configure) -> None:
    async with running(configure()) as controller:
        status, error = await refused(controller, b" " * (4 * 1024 * 1024))

    assert status == 400
    assert "at most" in error


def what_ifs(cache: AllocationCache) -> WhatIfs:
    rules = Rules(vendors=VENDORS, defaults=Defaults(), scheduler_name="hami-scheduler")
    nodes: Informer[Node] = Informer.__new__(Informer)  # asked only where a pod selects nodes
    return WhatIfs(cache, nodes, rules=rules)


@forall(
    pods=st.integers(0, 6),
    limits=st.dictionaries(
        st.sampled_from(NVIDIA.resources.all()), st.integers(-1, 120_000) | st.just("x")
    ),
    replicas=st.integers(-1, 30),
    init=st.booleans(),
)
async def test_there_is_never_a_side_effect(
    pods: int, limits: dict[str, Any], replicas: int, init: bool
) -> None:
    cache = filled(pods)
    pod = raw_pod(limits)
    if init:
        pod["spec"]["initContainers"] = pod["spec"]["containers"]
    before = content(cache)

    try:
        answer = await what_ifs(cache).answer(
            msgspec.json.encode({"pod": pod, "replicas": replicas})
        )
    except HamiError:
        answer = None

    assert content(cache) == before
    if answer is not None:
        assert len(answer.placed) == answer.asked or answer.refusal is not None
        assert answer.refusal is None or answer.more == 0
