"""Each rule refuses a device for its reason alone, and earlier rules are told before later ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import combinations

import pytest

from hami.core import fit
from hami.core.allocation import Charge
from hami.core.device import Device, DevicePolicy, DeviceRequest, PodRequest, Selection
from hami.core.quantity import Percent
from hami.core.verdict import Reason, Unit
from tests.support.builders import (
    OTHER,
    asking,
    make_demand,
    make_device,
    make_pod_request,
    make_table,
)

IDLE = Charge()


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One device with its use, and one request."""

    device: Device = field(default_factory=make_device)
    used: Charge = IDLE
    cordoned: bool = False
    request: DeviceRequest = field(default_factory=lambda: make_demand(memory=1000, cores=10))
    policy: DevicePolicy = DevicePolicy.SPREAD
    selection: Selection | None = None

    @property
    def pod(self) -> PodRequest:
        return make_pod_request(
            asking(self.request), device_policy=self.policy, selection=self.selection
        )

    def ask(self) -> tuple[fit.Question, int]:
        """The question, and the device's code."""
        table = make_table([])
        cordon = frozenset({self.device.uuid}) if self.cordoned else frozenset[str]()
        table.set_node("node-0", [self.device], cordoned=cordon)
        table.charge("node-0", {self.device.uuid: self.used}, sign=1)
        snapshot = table.view()
        question, codes = fit.ask(snapshot, snapshot.columns, self.pod, self.request)
        return question, int(codes[0, 0])

    @property
    def reason(self) -> Reason | None:
        code = self.ask()[1]
        return None if code == fit.FITS else fit.RULES[code - 1].reason


def select(**texts: object) -> Selection:
    return replace(Selection(), **texts)  # type: ignore[arg-type] # each case names its field


A100, EMPTY_MODE = make_device(model="NVIDIA A100-SXM4-40GB"), make_device(mode="")
WHOLE_CORES = make_demand(memory=1000, cores=100)
NO_CORES = make_demand(memory=1000)


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        pytest.param(Case(), None, id="an_idle_device_fits"),
        pytest.param(Case(device=make_device(healthy=False)), Reason.UNHEALTHY, id="sick"),
        pytest.param(Case(cordoned=True), Reason.CORDONED, id="cordoned"),
        # type
        pytest.param(Case(device=A100, selection=select(use_types=("A100",))), None,
                     id="a_wanted_type_fits"),
        pytest.param(Case(device=A100, selection=select(use_types=("V100", "SXM4-40"))), None,
                     id="one_of_the_wanted_types_is_enough"),
        pytest.param(Case(device=make_device(model="nvidia a100"),
                          selection=select(use_types=("A100",))), None,
                     id="letter_case_of_the_model_is_free"),
        pytest.param(Case(device=A100, selection=select(use_types=("V100",))), Reason.TYPE,
                     id="a_type_that_is_not_wanted"),
        pytest.param(Case(device=A100, selection=select(avoid_types=("A100",))), Reason.TYPE,
                     id="an_avoided_type"),
        pytest.param(Case(device=A100, selection=select(avoid_types=("V100",))), None,
                     id="another_avoided_type_does_not_matter"),
        pytest.param(Case(device=A100,
                          selection=select(use_types=("A100",), avoid_types=("40GB",))),
                     Reason.TYPE, id="avoiding_wins_over_wanting"),
        pytest.param(Case(selection=select(modes="hami-core,mig")), None, id="a_mode_in_the_list"),
        pytest.param(Case(selection=select(modes="mps")), Reason.TYPE, id="a_mode_not_in_the_list"),
        pytest.param(Case(device=EMPTY_MODE, selection=select(modes="mps")), None,
                     id="an_empty_mode_is_in_every_list"),
        # uuid
        pytest.param(Case(selection=select(use_uuids=frozenset({"GPU-0", "GPU-9"}))), None,
                     id="a_wanted_device_fits"),
        pytest.param(Case(selection=select(use_uuids=frozenset({"gpu-0"}))), Reason.UUID,
                     id="letter_case_of_ids_matters"),
        pytest.param(Case(selection=select(avoid_uuids=frozenset({"GPU-0"}))), Reason.UUID,
                     id="an_avoided_device"),
        pytest.param(Case(selection=select(use_uuids=frozenset({"GPU-0"}),
                                           avoid_uuids=frozenset({"GPU-0"}))), Reason.UUID,
                     id="avoiding_a_device_wins_over_wanting_it"),
        # slots
        pytest.param(Case(device=make_device(slots=2), used=Charge(slots=1)), None,
                     id="the_last_slot_is_usable"),
        pytest.param(Case(device=make_device(slots=2), used=Charge(slots=2)), Reason.SLOTS,
                     id="all_slots_taken"),
        pytest.param(Case(device=make_device(slots=0)), Reason.SLOTS, id="no_slots_at_all"),
        # alone
        pytest.param(Case(policy=DevicePolicy.MUTEX), None, id="mutex_takes_an_idle_device"),
        pytest.param(Case(policy=DevicePolicy.MUTEX, used=Charge(slots=1)), Reason.NOT_ALONE,
                     id="mutex_refuses_a_busy_device"),
        pytest.param(Case(policy=DevicePolicy.MUTEX, used=Charge(slots=1), request=NO_CORES),
                     Reason.NOT_ALONE, id="mutex_refuses_it_even_for_no_cores"),
        # memory
        pytest.param(Case(used=Charge(memory=39_000)), None, id="exactly_the_memory_left"),
        pytest.param(Case(used=Charge(memory=39_001)), Reason.MEMORY, id="one_mib_too_few"),
        pytest.param(Case(request=make_demand(percent=100), used=Charge(memory=1)), Reason.MEMORY,
                     id="all_the_memory_of_a_device_in_use"),
        pytest.param(Case(request=make_demand(percent=50), used=Charge(memory=20_000)), None,
                     id="the_other_half_of_the_memory"),
        pytest.param(Case(device=make_device(memory=1001), request=make_demand(percent=50),
                          used=Charge(memory=501)), None, id="a_share_is_rounded_down"),
        # cores
        pytest.param(Case(used=Charge(cores=90)), None, id="exactly_the_cores_left"),
        pytest.param(Case(used=Charge(cores=91)), Reason.CORES, id="one_percent_too_few"),
        pytest.param(Case(device=make_device(cores=200), used=Charge(cores=150)), None,
                     id="scaled_cores_go_beyond_100"),
        # exclusive
        pytest.param(Case(request=WHOLE_CORES), None, id="whole_cores_of_an_idle_device"),
        pytest.param(Case(request=WHOLE_CORES, used=Charge(slots=1)), Reason.NOT_ALONE,
                     id="whole_cores_beside_somebody_without_cores"),
        pytest.param(Case(request=WHOLE_CORES, device=make_device(cores=200), used=Charge(slots=1)),
                     None, id="whole_cores_are_not_exclusive_where_cores_are_scaled"),
        # exhausted
        pytest.param(Case(request=NO_CORES, used=Charge(cores=99)), None,
                     id="no_cores_beside_almost_all"),
        pytest.param(Case(request=NO_CORES, used=Charge(cores=100)), Reason.CORES_EXHAUSTED,
                     id="no_cores_where_none_are_left"),
        pytest.param(Case(request=NO_CORES, device=make_device(cores=0)), None,
                     id="no_cores_of_a_device_that_counts_none"),
        # MIG
        pytest.param(Case(device=make_device(mode="mig")), Reason.MIG, id="mig_without_profiles"),
    ],
)  # fmt: skip
def test_a_device_fails_for_its_own_reason(case: Case, reason: Reason | None) -> None:
    assert case.reason == reason


def change(case: Case, rule: int) -> Case:
    """The same case, made to fail this rule too."""
    changes: tuple[Callable[[Case], Case], ...] = (
        lambda c: replace(c, device=replace(c.device, healthy=False)),
        lambda c: replace(c, cordoned=True),
        lambda c: replace(c, selection=replace(c.selection or Selection(), use_types=("V100",))),
        lambda c: replace(
            c, selection=replace(c.selection or Selection(), avoid_uuids=frozenset({"GPU-0"}))
        ),
        lambda c: replace(c, used=c.used + Charge(slots=10)),
        lambda c: replace(c, policy=DevicePolicy.MUTEX, used=c.used + Charge(slots=1)),
        lambda c: replace(c, used=c.used + Charge(memory=40_000)),
        lambda c: replace(
            c, request=replace(c.request, cores=Percent(100)), used=c.used + Charge(cores=1)
        ),
        lambda c: replace(
            c, request=replace(c.request, cores=Percent(100)), used=c.used + Charge(slots=1)
        ),
        lambda c: replace(
            c, request=replace(c.request, cores=Percent(0)), used=c.used + Charge(cores=100)
        ),
        lambda c: replace(c, device=replace(c.device, mode="mig")),
    )
    return changes[rule](case)


CONTRARY = {(7, 9), (8, 9), (6, 10), (7, 10), (8, 10), (9, 10)}
"""Pairs that nothing can break at once: some cores and none; a shared device and a MIG one."""


@pytest.mark.parametrize("rule", range(len(fit.RULES)))
def test_every_rule_can_fail_alone(rule: int) -> None:
    assert change(Case(), rule).ask()[1] == rule + 1


@pytest.mark.parametrize(
    ("first", "second"),
    [pair for pair in combinations(range(len(fit.RULES)), 2) if pair not in CONTRARY],
)
def test_the_earlier_of_two_broken_rules_is_told(first: int, second: int) -> None:
    broken = change(change(Case(), second), first)

    assert broken.ask()[1] == first + 1


def test_rules_stand_in_the_order_told_to_users() -> None:
    assert [rule.reason for rule in fit.RULES] == [
        Reason.UNHEALTHY,
        Reason.CORDONED,
        Reason.TYPE,
        Reason.UUID,
        Reason.SLOTS,
        Reason.NOT_ALONE,
        Reason.MEMORY,
        Reason.CORES,
        Reason.NOT_ALONE,
        Reason.CORES_EXHAUSTED,
        Reason.MIG,
    ]


@pytest.mark.parametrize(
    ("case", "needed", "free", "unit"),
    [
        pytest.param(Case(used=Charge(memory=39_500)), 1000, 500, Unit.MIB, id="memory"),
        pytest.param(Case(used=Charge(cores=95)), 10, 5, Unit.PERCENT, id="cores"),
        pytest.param(Case(used=Charge(slots=10)), 1, 0, Unit.SLOTS, id="slots"),
        pytest.param(
            Case(used=Charge(memory=50_000)), 1000, 0, Unit.MIB, id="overfull_is_none_free"
        ),
    ],
)
def test_a_lack_says_what_was_needed_and_what_is_free(
    case: Case, needed: int, free: int, unit: Unit
) -> None:
    question, code = case.ask()
    rule = fit.RULES[code - 1]
    assert rule.lack is not None

    lacking = rule.lack(question)

    assert [int(part if isinstance(part, int) else part[0, 0]) for part in lacking] == [
        needed,
        free,
    ]
    assert rule.unit is unit


def test_devices_of_another_vendor_are_absent() -> None:
    case = Case(device=make_device(vendor=OTHER.name, healthy=False))

    assert case.ask()[1] == fit.ABSENT


def test_places_beyond_a_nodes_devices_are_absent() -> None:
    table = make_table([make_device()], [])
    snapshot = table.view()

    _, codes = fit.ask(snapshot, snapshot.columns, Case().pod, Case().request)

    assert codes[0].tolist()[:2] == [fit.FITS, fit.ABSENT]
    assert set(codes[1].tolist()) == {fit.ABSENT}
