"""The worked examples of each vendor, from what a node says and a pod asks to what is recorded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec
import pytest

from hami.config import Settings
from hami.core import inventory, record
from hami.core.cache import AllocationCache
from hami.core.device import DeviceRequest, PodRequest
from hami.core.objects import Node, NodeStatus, ObjectMeta, Pod
from hami.core.placement import Choice, Placer
from hami.core.request import Defaults, read_request, roles_of
from hami.core.vendor import Vendor
from hami.core.vendors.enflame import ENFLAME_GCU
from hami.core.vendors.hygon import HYGON
from hami.core.verdict import Verdict
from hami.site import vendor_table
from tests.support.builders import make_allocation, make_container, make_demand, make_pod

VENDORS = vendor_table(Settings())
DCU, GCU = HYGON.resources, ENFLAME_GCU.resources
K100 = "DCU-TPXS320016070601,4,65520,100,DCU-K100_AI,0,true,0,hami-core:"


def dcus(*uuids: str, slots: int = 4, fields: int = 9) -> str:
    """The inventory of such cards, as their agent writes it."""
    tails = (f",{i},hami-core" if fields == 9 else "" for i in range(len(uuids)))
    return "".join(
        f"{uuid},{slots},65520,100,DCU-K100_AI,0,true{tail}:"
        for uuid, tail in zip(uuids, tails, strict=True)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A node, what is used of it, and a pod."""

    vendor: Vendor
    register: str = ""
    capacity: int = 0
    allocatable: int | None = None
    limits: Mapping[str, str | int]
    used: tuple[str, ...] = ()
    """Records of pods that run there already."""
    annotations: Mapping[str, str] = field(default_factory=dict)
    empty_before: int = 0
    """Containers without devices before the one that asks."""

    def node(self) -> Node:
        annotations = {self.vendor.register_key: self.register} if self.register else {}
        count, capacity = self.vendor.resources.count, self.capacity
        told = capacity if self.allocatable is None else self.allocatable
        return Node(
            metadata=ObjectMeta(name="n1", annotations=annotations),
            status=NodeStatus(
                capacity={count: str(capacity)} if capacity else None,
                allocatable={count: str(told)} if capacity else None,
            ),
        )

    def pod(self) -> Pod:
        asking = make_container(limits=self.limits)
        plain = [make_container(f"plain-{i}") for i in range(self.empty_before)]
        return make_pod(containers=[*plain, asking], annotations=self.annotations)

    def request(self) -> PodRequest:
        return read_request(self.pod(), VENDORS, Defaults())

    def choose(self) -> Choice | Verdict:
        cache = AllocationCache()
        found = inventory.devices_of(self.node(), VENDORS)
        assert found.problems == ()
        cache.set_node("n1", inventory.usable(found.devices, without=()))
        for number, text in enumerate(self.used):
            other = make_pod(
                f"other-{number}",
                containers=[make_container(limits={self.vendor.resources.count: 1})],
                annotations={"hami.io/vgpu-node": "n1", self.vendor.allocated_key: text},
            )
            allocation = record.allocation_of(other, VENDORS)
            assert allocation is not None
            cache.confirm(allocation)
        return Placer(cache.table).choose(self.request(), "n1")

    def written(self) -> Mapping[str, str]:
        choice = self.choose()
        assert isinstance(choice, Choice), choice
        allocation = make_allocation(*choice.containers, node="n1", roles=roles_of(self.pod()))
        return record.annotations_for(allocation, VENDORS, now_seconds=1, scheduled_by="a/1")


def one(request: PodRequest) -> DeviceRequest:
    (found,) = request.containers[-1].requests
    return found


@pytest.mark.parametrize(
    ("case", "asked", "expected"),
    [
        pytest.param(
            Case(vendor=HYGON, register=K100,
                 limits={DCU.count: 1, DCU.memory: 2000, DCU.cores: 60}),
            make_demand(1, memory=2000, cores=60, vendor="DCU"),
            "DCU-TPXS320016070601,DCU,2000,60:;",
            id="dcu-part-of-a-card",
        ),
        pytest.param(
            Case(vendor=HYGON, register=dcus("A", "B"), limits={DCU.count: 2}),
            make_demand(2, percent=100, cores=100, vendor="DCU"),
            "B,DCU,65520,100:A,DCU,65520,100:;",
            id="dcu-two-whole-cards-the-last-first",
        ),
        pytest.param(
            Case(vendor=HYGON, register=dcus("A", "B", fields=7), limits={DCU.count: 1}),
            make_demand(1, percent=100, cores=100, vendor="DCU"),
            "B,DCU,65520,100:;",
            id="dcu-seven-fields-all-of-index-0",
        ),
        pytest.param(
            Case(vendor=HYGON, register=dcus("A"), limits={DCU.count: 1, DCU.memory: 1000},
                 empty_before=1),
            make_demand(1, memory=1000, cores=100, vendor="DCU"),
            ";A,DCU,1000,100:;",
            id="dcu-leading-empty-container",
        ),
        pytest.param(
            Case(vendor=HYGON, register=dcus("A", "B"),
                 limits={DCU.count: 1, DCU.memory: "16Ki", DCU.cores: 130},
                 annotations={"hygon.com/use-gpuuuid": "A"}),
            make_demand(1, memory=16384, cores=100, vendor="DCU"),
            "A,DCU,16384,100:;",
            id="dcu-of-one-id-cores-clamped",
        ),
        pytest.param(
            Case(vendor=HYGON, register=dcus("A"), used=("A,DCU,65000,60:;",),
                 limits={DCU.count: 1, DCU.memory: 520, DCU.cores: 40}),
            make_demand(1, memory=520, cores=40, vendor="DCU"),
            "A,DCU,520,40:;",
            id="dcu-exactly-what-is-left",
        ),
        pytest.param(
            Case(vendor=ENFLAME_GCU, capacity=8, limits={GCU.count: 2}),
            make_demand(2, memory=100, cores=100, vendor="GCU"),
            "n1-GCU-7,GCU,100,100:n1-GCU-6,GCU,100,100:;",
            id="gcu-two-of-eight-the-last-first",
        ),
        pytest.param(
            Case(vendor=ENFLAME_GCU, capacity=2, used=("n1-GCU-1,GCU,100,100:;",),
                 limits={GCU.count: 1}),
            make_demand(1, memory=100, cores=100, vendor="GCU"),
            "n1-GCU-0,GCU,100,100:;",
            id="gcu-the-other-one",
        ),
    ],
)  # fmt: skip
def test_example_is_read_placed_and_recorded(
    case: Case, asked: DeviceRequest, expected: str
) -> None:
    request = one(case.request())
    written = case.written()

    assert (request.count, request.memory, request.memory_percent, request.cores) == (
        asked.count, asked.memory, asked.memory_percent, asked.cores,
    )  # fmt: skip
    assert written[case.vendor.to_allocate_key] == expected
    assert written[case.vendor.allocated_key] == expected
    keys = {v.allocated_key for v in VENDORS.values()} & set(written)
    assert keys == {case.vendor.allocated_key}


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        pytest.param(
            Case(vendor=HYGON, register=K100, limits={DCU.count: 1},
                 annotations={"hygon.com/nouse-dcutype": "K100"}),
            "1/1 CardTypeMismatch",
            id="dcu-avoided-type",
        ),
        pytest.param(
            Case(vendor=HYGON, register=K100, limits={DCU.count: 1},
                 annotations={"hygon.com/use-dcutype": "z100"}),
            "1/1 CardTypeMismatch",
            id="dcu-other-type",
        ),
        pytest.param(
            Case(vendor=HYGON, register=K100, limits={DCU.count: 1},
                 annotations={"hygon.com/nouse-gpuuuid": "DCU-TPXS320016070601"}),
            "1/1 CardUuidMismatch",
            id="dcu-avoided-id",
        ),
        pytest.param(
            Case(vendor=HYGON, register=dcus("A", slots=1), used=("A,DCU,1,1:;",),
                 limits={DCU.count: 1, DCU.memory: 1, DCU.cores: 1}),
            "1/1 CardTimeSlicingExhausted",
            id="dcu-no-slot",
        ),
        pytest.param(
            Case(vendor=HYGON, register=dcus("A"), used=("A,DCU,1,1:;",),
                 limits={DCU.count: 1, DCU.memory: 1, DCU.cores: 1},
                 annotations={"hami.io/gpu-scheduler-policy": "mutex"}),
            "1/1 ExclusiveDeviceAllocateConflict",
            id="dcu-mutex",
        ),
        pytest.param(
            Case(vendor=HYGON, register=dcus("A", "B"),
                 limits={DCU.count: 2, DCU.memory: 65521, DCU.cores: 1}),
            "2/2 CardInsufficientMemory",
            id="dcu-memory",
        ),
        pytest.param(
            Case(vendor=HYGON, register=dcus("A"), used=("A,DCU,1,60:;",),
                 limits={DCU.count: 1, DCU.memory: 1, DCU.cores: 50}),
            "1/1 CardInsufficientCore",
            id="dcu-cores",
        ),
        pytest.param(
            Case(vendor=HYGON, register=dcus("A"), used=("A,DCU,1,0:;",),
                 limits={DCU.count: 1, DCU.memory: 1}),
            "1/1 ExclusiveDeviceAllocateConflict",
            id="dcu-whole-compute-beside-another",
        ),
        pytest.param(
            Case(vendor=HYGON, register=dcus("A"), used=("A,DCU,1,100:;",),
                 limits={DCU.count: 1, DCU.memory: 1, DCU.cores: 0}),
            "1/1 CardComputeUnitsExhausted",
            id="dcu-no-compute-left",
        ),
        pytest.param(
            Case(vendor=HYGON, register=dcus("A", "B"), used=("A,DCU,1,60:;",),
                 limits={DCU.count: 2, DCU.memory: 1, DCU.cores: 50}),
            "1/2 AllocatedCardsInsufficientRequest, 1/2 CardInsufficientCore",
            id="dcu-one-of-two",
        ),
        pytest.param(
            Case(vendor=HYGON, register=dcus("A").replace("true", "0"), limits={DCU.count: 1}),
            "1/1 CardNotHealth",
            id="dcu-sick",
        ),
        pytest.param(
            Case(vendor=ENFLAME_GCU, capacity=2, used=("n1-GCU-1,GCU,100,100:;",),
                 limits={GCU.count: 2}),
            "1/2 AllocatedCardsInsufficientRequest, 1/2 ExclusiveDeviceAllocateConflict",
            id="gcu-one-of-two-in-use",
        ),
        pytest.param(
            Case(vendor=ENFLAME_GCU, capacity=2, used=("n1-GCU-1,GCU,0,0:;",),
                 limits={GCU.count: 2}),
            "1/2 AllocatedCardsInsufficientRequest, 1/2 ExclusiveDeviceAllocateConflict",
            id="gcu-in-use-is-in-use-whatever-its-record-says",
        ),
        pytest.param(
            Case(vendor=ENFLAME_GCU, capacity=3, allocatable=2, limits={GCU.count: 3}),
            "1/3 CardNotHealth, 2/3 AllocatedCardsInsufficientRequest",
            id="gcu-one-is-sick",
        ),
        pytest.param(
            Case(vendor=ENFLAME_GCU, capacity=3, allocatable=2, used=("n1-GCU-2,GCU,100,100:;",),
                 limits={GCU.count: 2}),
            "1/3 AllocatedCardsInsufficientRequest, 1/3 CardNotHealth, "
            "1/3 ExclusiveDeviceAllocateConflict",
            id="gcu-one-is-sick-and-one-in-use",
        ),
    ],
)  # fmt: skip
def test_example_that_does_not_fit_says_why(case: Case, reason: str) -> None:
    verdict = case.choose()

    assert isinstance(verdict, Verdict)
    assert str(verdict) == reason


def test_too_many_devices_are_asked_for() -> None:
    verdict = Case(vendor=ENFLAME_GCU, capacity=2, limits={GCU.count: 3}).choose()

    assert "NodeInsufficientDevice" in str(verdict)


def test_nodes_are_judged_from_their_bytes_as_the_api_server_sends_them() -> None:
    text = b'{"metadata":{"name":"n1"},"status":{"capacity":{"enflame.com/gcu":"1","cpu":"8"}}}'
    node = msgspec.json.decode(text, type=Node)

    found = inventory.devices_of(node, VENDORS)

    assert [d.uuid for d in found.devices[ENFLAME_GCU.name]] == ["n1-GCU-0"]
