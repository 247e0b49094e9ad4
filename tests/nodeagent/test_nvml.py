"""What the driver says, by a simulated driver through the real ``pynvml``."""

from __future__ import annotations

import anyio

from hami.config import NodeAgentSettings
from hami.core.device import DeviceUuid
from hami.nodeagent.nvml import DOUBLE_BIT_ECC_EVENT, XID_EVENT, DeviceEvent, Nvml, NvmlEvents
from hami.sandbox.gpu import node as gpu_node
from tests.support.gpus import A100_MIB, T4_MIB, simulated_gpus
from tests.support.kube import SOON


async def test_devices_are_read_in_order_with_what_is_offered_of_them() -> None:
    gpus = simulated_gpus()
    settings = NodeAgentSettings(split_count=7, memory_scaling=0.5, core_scaling=1.25)

    reading = await Nvml(settings).read()

    assert [d.uuid for d in reading.devices] == list(gpus.uuids)
    assert [d.memory for d in reading.devices] == [A100_MIB // 2, A100_MIB // 2, T4_MIB // 2]
    assert {(d.slots, d.cores, d.mode, d.healthy) for d in reading.devices} == {
        (7, 125, "hami-core", True)
    }
    assert reading.devices[2].model == "NVIDIA-Tesla T4"
    assert not reading.faults


async def test_lost_device_is_a_fault_of_its_own_until_it_answers_again() -> None:
    gpus = simulated_gpus()
    nvml = Nvml(NodeAgentSettings())
    whole = await nvml.read()

    with gpus.lost(1):
        reading = await nvml.read()
        use = await nvml.use()

    assert reading.devices == whole.devices
    assert list(reading.faults) == [gpus.uuids[1]]
    assert [u.memory_used_bytes is None for u in use] == [False, True, False]
    assert await nvml.read() == whole


async def test_device_that_was_never_seen_is_no_device() -> None:
    gpus = simulated_gpus()
    with gpus.lost(0):
        reading = await Nvml(NodeAgentSettings()).read()

    assert [d.uuid for d in reading.devices] == list(gpus.uuids[1:])
    assert not reading.faults


async def test_events_name_their_device() -> None:
    gpus = simulated_gpus()
    events = NvmlEvents(NodeAgentSettings())
    assert await events.wait(seconds=0.01) is None
    met: list[DeviceEvent | None] = []

    async def listen() -> None:
        met.append(await events.wait(seconds=SOON))

    async def hear(kind: int, *, gpu: int, data: int = 0) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listen)
            await anyio.wait_all_tasks_blocked()
            gpu_node.inject_event(gpus.state, gpu, kind=kind, data=data)

    await hear(XID_EVENT, gpu=2, data=48)
    await hear(DOUBLE_BIT_ECC_EVENT, gpu=0)

    assert met == [
        DeviceEvent(uuid=uuid_of(2), kind=XID_EVENT, data=48),
        DeviceEvent(uuid=uuid_of(0), kind=DOUBLE_BIT_ECC_EVENT, data=0),
    ]


def uuid_of(index: int) -> DeviceUuid:
    return DeviceUuid(simulated_gpus().uuids[index])
