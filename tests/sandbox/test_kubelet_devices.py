"""Device plugins meet the kubelet stand-in as they meet the kubelet."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from tests.support.device_plugin import RESOURCE, DevicePlugin
from tests.support.node import NodeBench, container, eventually, make_pod, open_node

CARDS = ["card-0", "card-1", "card-2", "card-3"]


def plugin(bench: NodeBench, *devices: str, **options: object) -> DevicePlugin:
    return DevicePlugin(bench.plugins, list(devices) or CARDS, **options)  # type: ignore[arg-type]


async def admitted(bench: NodeBench, pod: dict[str, Any], phase: str = "Running") -> dict[str, Any]:
    """The pod, created once the node has its four cards."""
    await bench.offers(RESOURCE, capacity="4", allocatable="4")
    await bench.create(pod)
    return await bench.phase(pod["metadata"]["name"], phase)


# registration


async def test_devices_become_the_nodes_capacity() -> None:
    async with open_node() as bench, plugin(bench).serving() as cards:
        await bench.offers(RESOURCE, capacity="4", allocatable="4")
        cards.set_health("card-1", "Unhealthy")
        await bench.offers(RESOURCE, capacity="4", allocatable="3")
        cards.set_health("card-1", "Healthy")
        await bench.offers(RESOURCE, capacity="4", allocatable="4")


async def test_a_plugin_that_goes_away_leaves_capacity_but_nothing_to_allocate() -> None:
    async with open_node() as bench:
        async with plugin(bench).serving():
            await bench.offers(RESOURCE, capacity="4", allocatable="4")
        await bench.offers(RESOURCE, capacity="4", allocatable="0")
        async with plugin(bench).serving():
            await bench.offers(RESOURCE, capacity="4", allocatable="4")


async def test_capacity_ends_with_the_grace() -> None:
    async with open_node(endpoint_grace_seconds=0.1) as bench:
        async with plugin(bench).serving():
            await bench.offers(RESOURCE, capacity="4", allocatable="4")
        await bench.offers(RESOURCE, capacity="0", allocatable="0")


async def test_a_second_registration_replaces_the_first() -> None:
    async with open_node() as bench, plugin(bench).serving() as cards:
        await bench.offers(RESOURCE, capacity="4", allocatable="4")
        cards.health["card-4"] = "Healthy"
        await cards.register()
        await bench.offers(RESOURCE, capacity="5", allocatable="5")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        pytest.param({"version": "v1"}, "is not supported by kubelet", id="foreign version"),
        pytest.param({"resource_name": "cpu"}, "is invalid", id="not an extended resource"),
        pytest.param({"resource_name": "kubernetes.io/gpu"}, "is invalid", id="Kubernetes' domain"),
        pytest.param({"endpoint": "nobody.sock"}, "failed to dial", id="nobody listens"),
        pytest.param({"endpoint": "../x.sock"}, "is not the name of a socket", id="elsewhere"),
    ],
)
async def test_a_bad_registration_is_refused(change: dict[str, str], said: str) -> None:
    async with (
        open_node(plugin_dial_seconds=0.3) as bench,
        plugin(bench).serving(register=False) as cards,
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await cards.register(**change)
        assert said in (refusal.value.details() or "")


# allocation


async def test_each_container_gets_its_devices_in_a_call_of_its_own() -> None:
    async with open_node() as bench, plugin(bench).serving() as cards:
        pod = make_pod("a", container("one", cards=1), container("two", cards=2))
        await admitted(bench, pod)
        assert [len(devices) for devices in cards.allocations] == [1, 2]
        assert len({device for devices in cards.allocations for device in devices}) == 3


async def test_what_the_plugin_prefers_is_given() -> None:
    async with (
        open_node() as bench,
        plugin(bench, preferred=lambda request: ["card-3", "card-1"]).serving() as cards,
    ):
        await admitted(bench, make_pod("a", container(cards=2)))
        assert sorted(cards.allocations[0]) == ["card-1", "card-3"]
        request = cards.preferences[0]
        assert list(request.available_deviceIDs) == CARDS
        assert list(request.must_include_deviceIDs) == []
        assert request.allocation_size == 2


async def test_a_preference_for_what_is_not_free_is_not_honoured() -> None:
    async with (
        open_node() as bench,
        plugin(bench, preferred=lambda request: ["card-9", "card-2"]).serving() as cards,
    ):
        await admitted(bench, make_pod("a", container(cards=2)))
        assert "card-2" in cards.allocations[0]
        assert set(cards.allocations[0]) <= set(CARDS)
        assert len(cards.allocations[0]) == 2


async def test_a_plugin_that_refuses_fails_the_pod() -> None:
    async with open_node() as bench, plugin(bench).serving() as cards:
        cards.refusal = "no pod is waiting here"
        pod = await admitted(bench, make_pod("a", container(cards=1)), "Failed")
        assert pod["status"]["reason"] == "UnexpectedAdmissionError"
        assert pod["status"]["message"] == (
            "Pod was rejected: Allocate failed due to rpc error: code = Unknown desc = "
            "no pod is waiting here, which is unexpected"
        )


async def test_a_refused_pod_leaves_its_devices_to_others() -> None:
    async with open_node() as bench, plugin(bench).serving() as cards:
        cards.refusal = "not now"
        await admitted(bench, make_pod("a", container(cards=4)), "Failed")
        cards.refusal = None
        await admitted(bench, make_pod("b", container(cards=4)))


async def test_a_pod_that_asks_for_more_than_is_free_fails() -> None:
    async with open_node() as bench, plugin(bench).serving():
        await admitted(bench, make_pod("a", container(cards=3)))
        pod = await admitted(bench, make_pod("b", container(cards=2)), "Failed")
        assert pod["status"]["reason"] == "UnexpectedAdmissionError"
        assert f"unavailable for {RESOURCE}. Requested: 2, Available: 1" in pod["status"]["message"]


async def test_a_resource_without_a_plugin_is_no_reason_to_refuse() -> None:
    async with open_node() as bench:
        await bench.create(make_pod("a", container(cards=1)))
        await bench.phase("a", "Running")


async def test_a_pod_whose_plugin_is_gone_fails() -> None:
    async with open_node() as bench:
        async with plugin(bench).serving():
            await bench.offers(RESOURCE, capacity="4", allocatable="4")
        await bench.offers(RESOURCE, capacity="4", allocatable="0")
        await bench.create(make_pod("a", container(cards=1)))
        pod = await bench.phase("a", "Failed")
        assert "no healthy devices present" in pod["status"]["message"]


async def test_containers_use_the_devices_of_init_containers_again() -> None:
    async with open_node() as bench, plugin(bench).serving() as cards:
        init = [container("init", run="true", cards=3)]
        await admitted(bench, make_pod("a", container(cards=4), init=init))
        first, second = cards.allocations
        assert set(first) < set(second)
        assert sorted(second) == CARDS


async def test_a_sidecar_keeps_its_devices() -> None:
    async with open_node() as bench, plugin(bench).serving() as cards:
        init = [container("sidecar", cards=2, restartPolicy="Always")]
        await admitted(bench, make_pod("a", container(cards=2), init=init))
        first, second = cards.allocations
        assert not set(first) & set(second)


async def test_devices_are_free_again_once_the_pod_has_ended() -> None:
    async with open_node() as bench, plugin(bench).serving():
        await admitted(bench, make_pod("a", container(run="true", cards=4)), "Succeeded")
        await admitted(bench, make_pod("b", container(cards=4)))
        await bench.delete("b")
        await bench.gone("b")
        await admitted(bench, make_pod("c", container(cards=4)))


async def test_devices_stay_taken_until_the_containers_are_gone() -> None:
    async with open_node() as bench, plugin(bench).serving():
        stubborn = container(run="trap '' TERM; echo up; while :; do sleep 0.05; done", cards=4)
        await admitted(bench, make_pod("a", stubborn, grace=600))
        await bench.logged("a", "up")
        await bench.delete("a")
        await bench.pod("a", lambda pod: "deletionTimestamp" in pod["metadata"])
        await admitted(bench, make_pod("b", container(cards=1)), "Failed")


async def test_pods_are_admitted_one_at_a_time() -> None:
    async with open_node() as bench, plugin(bench).serving() as cards:
        await bench.offers(RESOURCE, capacity="4", allocatable="4")
        cards.hold_allocations()
        await bench.create(make_pod("a", container(cards=1)))
        await cards.asked.wait()
        await bench.create(make_pod("b", container(cards=1)))
        await bench.create(make_pod("c"))
        await eventually(
            lambda: bench.kubelet.has_pod("default", "c"), lambda: "the node has not seen pod c"
        )
        assert len(cards.allocations) == 1
        cards.release_allocations()
        for name in "abc":
            await bench.phase(name, "Running")
        assert len(cards.allocations) == 2


# what containers get


async def test_the_answer_is_merged_into_the_container() -> None:
    async with open_node() as bench, plugin(bench).serving() as cards:
        source = bench.kubelet.settings.root / "driver"
        source.write_text("from the host\n")
        cards.response.envs["CARD_LIMIT"] = "3000m"
        cards.response.mounts.add(
            host_path=str(source), container_path="/opt/card-driver/version", read_only=True
        )
        env = [{"name": "CARD_SET", "value": "by the pod, limit $(CARD_LIMIT)"}]
        run = "echo $CARD_LIMIT; echo $CARD_SET; cat /opt/card-driver/version"
        pod = make_pod("a", container(run=run, cards=1, env=env))
        await admitted(bench, pod, "Succeeded")
        assert await bench.log("a") == "3000m\nby the pod, limit 3000m\nfrom the host\n"


async def test_a_pod_can_override_what_a_plugin_says_in_a_variable() -> None:
    async with open_node() as bench, plugin(bench).serving() as cards:
        cards.response.envs["VISIBLE"] = "card-0"
        env = [{"name": "VISIBLE", "value": "all"}]
        pod = make_pod("a", container(run="echo $VISIBLE", cards=1, env=env))
        await admitted(bench, pod, "Succeeded")
        assert await bench.log("a") == "all\n"


async def test_a_cdi_device_is_refused_in_words() -> None:
    async with open_node() as bench, plugin(bench).serving() as cards:
        cards.response.cdi_devices.add(name="example.com/card=0")
        pod = await admitted(bench, make_pod("a", container(cards=1)), "Pending")
        pod = await bench.pod("a", lambda pod: "CDI devices are not supported" in str(pod))
        assert pod["status"]["phase"] == "Pending"


async def test_a_plugin_is_told_before_each_start() -> None:
    async with open_node() as bench, plugin(bench, pre_start=True).serving() as cards:
        pod = make_pod("a", container(run="exit 1", cards=1), restart="Always")
        await bench.offers(RESOURCE, capacity="4", allocatable="4")
        await bench.create(pod)
        await bench.pod(
            "a",
            lambda pod: (
                (pod.get("status", {}).get("containerStatuses") or [{}])[0].get("restartCount", 0)
                >= 1
            ),
        )
        assert len(cards.starts) >= 2
        assert len(cards.allocations) == 1
        assert cards.starts[0] == cards.allocations[0]


async def test_a_plugin_that_refuses_the_start_holds_the_container_back() -> None:
    async with open_node() as bench, plugin(bench, pre_start=True).serving() as cards:
        cards.start_refusal = "the card is resetting"
        await bench.offers(RESOURCE, capacity="4", allocatable="4")
        await bench.create(make_pod("a", container(cards=1)))
        pod = await bench.pod("a", lambda pod: "the card is resetting" in str(pod))
        state = pod["status"]["containerStatuses"][0]["state"]
        assert state["waiting"]["reason"] == "CreateContainerConfigError"
        cards.start_refusal = None
        await bench.phase("a", "Running")
