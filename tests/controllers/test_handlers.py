"""From the watch to the cache: objects of all kinds, good and bad, seen through ``/metrics``."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from hami.config import Settings
from hami.core import codec
from hami.core.vendors.nvidia import NVIDIA
from hami.sandbox.apiserver import ApiServer
from tests.support.controller import Controller, Usage, gpus, node_object, pod_object, running
from tests.support.kube import until

NODES = ["n0", "n1"]
MIB = 2**20
Configure = Callable[..., Settings]


def recorded(
    name: str, record: str, *, node: str = "n0", bound: str | None = "n0", **fields: Any
) -> dict[str, Any]:
    """A pod with this record of its devices."""
    pod = pod_object(name, **fields)
    pod["metadata"]["annotations"] = {
        codec.NODE_KEY: node,
        codec.BIND_PHASE_KEY: "success",
        NVIDIA.allocated_key: record,
    }
    if bound:
        pod["spec"]["nodeName"] = bound
    return pod


async def uses(controller: Controller, expected: Usage) -> None:
    """Return once the controller counts exactly this."""

    async def same() -> bool:
        return await controller.usage() == expected

    await until(same)


async def feasible(controller: Controller, **asked: Any) -> set[str]:
    """Where a pod that asks for this would fit; the best of it is held for a while."""
    pod = pod_object("probe", **asked)
    pod["metadata"]["uid"] = "probe"
    return set((await controller.filter(pod, NODES))["NodeNames"])


async def test_bound_pods_are_counted_and_finished_ones_are_not(
    server: ApiServer, configure: Configure
) -> None:
    server.store.create(recorded("runs", "GPU-n0-0,NVIDIA,3000,30:;"))
    server.store.create(recorded("unbound", "GPU-n0-1,NVIDIA,3000,30:;", bound=None))
    done = server.store.create(recorded("done", "GPU-n0-1,NVIDIA,3000,30:;"))
    server.store.update({**done, "status": {"phase": "Succeeded"}})

    async with running(configure()) as controller:
        await uses(controller, {("n0", "GPU-n0-0"): (1, 3000 * MIB, 30)})

        server.store.create(recorded("late", "GPU-n0-0,NVIDIA,1000,10:;"))
        await uses(controller, {("n0", "GPU-n0-0"): (2, 4000 * MIB, 40)})

        server.store.delete("pods", "late")
        runs = server.store.get("pods", "runs")
        server.store.update({**runs, "status": {"phase": "Failed"}})
        await uses(controller, {})


async def test_terminating_pod_counts_until_it_is_gone(
    server: ApiServer, configure: Configure
) -> None:
    pod = recorded("p", "GPU-n0-0,NVIDIA,3000,30:;")
    pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    server.store.create(pod)

    async with running(configure()) as controller:
        await uses(controller, {("n0", "GPU-n0-0"): (1, 3000 * MIB, 30)})


async def test_changed_record_is_counted_as_it_is_now(
    server: ApiServer, configure: Configure
) -> None:
    pod = server.store.create(recorded("p", "GPU-n0-0,NVIDIA,3000,30:;"))

    async with running(configure()) as controller:
        await uses(controller, {("n0", "GPU-n0-0"): (1, 3000 * MIB, 30)})
        pod["metadata"]["annotations"][NVIDIA.allocated_key] = "GPU-n0-1,NVIDIA,1,1:;"
        server.store.update(pod)
        await uses(controller, {("n0", "GPU-n0-1"): (1, MIB, 1)})
        pod = server.store.get("pods", "p")
        del pod["metadata"]["annotations"]
        server.store.update(pod)
        await uses(controller, {})


async def test_init_containers_stop_counting_once_they_are_done(
    server: ApiServer, configure: Configure
) -> None:
    pod = recorded("p", "GPU-n0-0,NVIDIA,9000,90:;GPU-n0-0,NVIDIA,1000,10:;", containers=2)
    init = pod["spec"]["containers"].pop(0)
    pod["spec"]["initContainers"] = [init]
    pod = server.store.create(pod)

    async with running(configure()) as controller:
        await uses(controller, {("n0", "GPU-n0-0"): (1, 9000 * MIB, 90)})
        state = {"terminated": {"exitCode": 0}}
        status = {"initContainerStatuses": [{"name": init["name"], "state": state}]}
        server.store.update({**pod, "status": {"phase": "Pending", **status}})
        await uses(controller, {("n0", "GPU-n0-0"): (1, 1000 * MIB, 10)})


@pytest.mark.parametrize(
    "record",
    [
        pytest.param("GPU-n0-0,NVIDIA,3000:;", id="three fields"),
        pytest.param("GPU-n0-0,NVIDIA,3000000000,0:;", id="beyond 32 bits"),
        pytest.param("GPU-n0-0,NVIDIA,-5,0:;", id="negative"),
        pytest.param("GPU-n0-0,NVIDIA,x,y:;" * 2000, id="long"),
    ],
)
async def test_pod_with_an_unreadable_record_is_reported_and_disturbs_nobody(
    server: ApiServer, configure: Configure, record: str
) -> None:
    server.store.create(recorded("bad", record))
    server.store.create(recorded("good", "GPU-n0-1,NVIDIA,3000,30:;"))

    async with running(configure()) as controller:
        await uses(controller, {("n0", "GPU-n0-1"): (1, 3000 * MIB, 30)})
        assert await controller.value("hami_malformed_annotations_total", kind="pod") == 1

        async def told() -> bool:
            return any(e["involvedObject"]["name"] == "bad" for e in server.store.list("events"))

        await until(told)
        assert await feasible(controller) == {"n0", "n1"}


async def test_record_that_becomes_unreadable_leaves_what_was_known(
    server: ApiServer, configure: Configure
) -> None:
    pod = server.store.create(recorded("p", "GPU-n0-0,NVIDIA,3000,30:;"))

    async with running(configure()) as controller:
        await uses(controller, {("n0", "GPU-n0-0"): (1, 3000 * MIB, 30)})
        pod["metadata"]["annotations"][NVIDIA.allocated_key] = "x,y:;"
        server.store.update(pod)

        async def seen() -> bool:
            return await controller.value("hami_malformed_annotations_total", kind="pod") == 1

        await until(seen)
        assert await controller.usage() == {("n0", "GPU-n0-0"): (1, 3000 * MIB, 30)}


async def test_record_for_another_node_than_the_pod_is_on_counts_nowhere(
    server: ApiServer, configure: Configure
) -> None:
    server.store.create(recorded("p", "GPU-n1-0,NVIDIA,3000,30:;", node="n1", bound="n0"))

    async with running(configure()) as controller:
        await uses(controller, {})
        assert await controller.value("hami_malformed_annotations_total", kind="pod") == 1


# -- nodes --------------------------------------------------------------------------------------


def annotate(server: ApiServer, node: str, **annotations: str | None) -> None:
    keys = {"register": NVIDIA.register_key, "cordon": codec.CORDON_KEY}
    found = server.store.get("nodes", node, "")
    for name, value in annotations.items():
        if value is None:
            found["metadata"]["annotations"].pop(keys[name], None)
        else:
            found["metadata"]["annotations"][keys[name]] = value
    server.store.update(found)


async def becomes(controller: Controller, expected: set[str], **asked: Any) -> None:
    async def same() -> bool:
        return await feasible(controller, **asked) == expected

    await until(same)


@pytest.mark.parametrize("text", ["[null]", "[", "[]", "GPU-x,1,2:", '[{"id":"a"},{"id":"a"}]'])
async def test_malformed_inventory_leaves_the_last_good_one(
    server: ApiServer, configure: Configure, text: str
) -> None:
    async with running(configure()) as controller:
        annotate(server, "n0", register=text)

        async def seen() -> bool:
            return await controller.value("hami_malformed_annotations_total", kind="node") == 1

        await until(seen)
        assert await feasible(controller) == {"n0", "n1"}
        annotate(server, "n0", register=codec.encode_register(gpus("n0", 1, memory=10)))
        await becomes(controller, {"n1"})


async def test_nodes_that_never_made_sense_offer_nothing_and_disturb_nobody(
    server: ApiServer, configure: Configure
) -> None:
    annotate(server, "n0", register="nonsense")

    async with running(configure()) as controller:
        assert await feasible(controller) == {"n1"}


async def test_node_without_shares_to_give_out_is_not_offered(
    server: ApiServer, configure: Configure
) -> None:
    async with running(configure()) as controller:
        node = server.store.get("nodes", "n0", "")
        none = copy.deepcopy(node)
        none["status"]["allocatable"] = {NVIDIA.resources.count: "0"}
        server.store.update(none)
        await becomes(controller, {"n1"})
        back = {**server.store.get("nodes", "n0", ""), "status": node["status"]}
        server.store.update(back)
        await becomes(controller, {"n0", "n1"})


async def test_cordoned_devices_are_not_given_out(server: ApiServer, configure: Configure) -> None:
    async with running(configure()) as controller:
        annotate(server, "n0", cordon="GPU-n0-0")
        await becomes(controller, {"n1"}, gpus=2)
        annotate(server, "n0", cordon=None)
        await becomes(controller, {"n0", "n1"}, gpus=2)


async def test_node_that_goes_and_comes_back_still_holds_its_pods(
    server: ApiServer, configure: Configure
) -> None:
    server.store.create(recorded("p", "GPU-n0-0,NVIDIA,3000,30:;"))

    async with running(configure(hold_seconds=0.01)) as controller:
        server.store.delete("nodes", "n0", "")
        await becomes(controller, {"n1"})
        server.store.create(node_object("n0", gpus("n0")))
        await uses(controller, {("n0", "GPU-n0-0"): (1, 3000 * MIB, 30)})


async def test_withdrawn_inventory_withdraws_the_devices(
    server: ApiServer, configure: Configure
) -> None:
    async with running(configure()) as controller:
        annotate(server, "n0", register=None)
        await becomes(controller, {"n1"})
