"""What is held for a preemptor, and what counts of those that might go: by the clock alone."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec
import pytest
from prometheus_client import CollectorRegistry

from hami.controllers.counters import ControllerCounters
from hami.controllers.nominations import Nomination, Nominations
from hami.controllers.occupants import Occupants, grace_seconds, started
from hami.core.cache import AllocationCache
from hami.core.objects import (
    LabelSelector,
    LabelSelectorRequirement,
    ObjectMeta,
    Pod,
    PodDisruptionBudget,
    PodDisruptionBudgetSpec,
    PodDisruptionBudgetStatus,
    PodSpec,
    PodStatus,
)
from tests.support.builders import given, make_allocation, make_devices

HOLD_SECONDS = 15.0


@dataclass(kw_only=True)
class Scene:
    """One node of one device, a victim on it and a preemptor; time stands still."""

    now: float = 0.0
    ready: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    cache: AllocationCache = field(default_factory=AllocationCache)

    def __post_init__(self) -> None:
        self.cache.set_node("node-0", make_devices(1))
        self.cache.confirm(make_allocation([given("GPU-0", memory=39_000)], uid="victim"))
        self.nominations = Nominations(
            self.cache,
            on_ready=self.ready.append,
            last_seconds=lambda: HOLD_SECONDS,
            on_lost=self.lost.append,
            clock=lambda: self.now,
        )

    def nominate(self, uid: str = "preemptor", *, seconds: float = 40.0) -> None:
        allocation = make_allocation([given("GPU-0", memory=39_000)], uid=uid)
        self.nominations.add(
            Nomination(allocation=allocation, victims={"victim"}, expires_at=self.now + seconds)
        )

    @property
    def used(self) -> int:
        (charge,) = self.cache.table.used("node-0").values()
        return charge.memory // 1000


def pod_of(uid: str, **fields: object) -> Pod:
    return msgspec.structs.replace(
        Pod(metadata=ObjectMeta(name=uid, namespace="default", uid=uid)), **fields
    )


def test_a_nomination_holds_beside_its_victim_and_is_ready_when_that_is_gone() -> None:
    scene = Scene()
    scene.nominate()
    assert scene.used == 78

    scene.cache.release("preemptor")  # as filter does, to look
    assert scene.nominations.hold_again("preemptor")
    assert scene.used == 78

    scene.now = 39.0
    scene.cache.forget("victim")
    scene.nominations.on_delete(pod_of("victim"))
    assert (scene.ready, scene.used) == (["preemptor"], 39)
    nomination = scene.nominations.get("preemptor")
    assert nomination is not None
    assert nomination.expires_at == 39.0 + HOLD_SECONDS


def test_a_nomination_that_is_not_used_ends() -> None:
    scene = Scene()
    scene.nominate()
    assert scene.nominations.expired() == ()
    scene.now = scene.nominations.next_end()

    assert scene.nominations.get("preemptor") is None
    assert not scene.nominations.hold_again("preemptor")
    assert [n.allocation.uid for n in scene.nominations.expired()] == ["preemptor"]
    assert (scene.used, len(scene.nominations)) == (39, 0)
    scene.nominations.on_delete(pod_of("victim"))
    assert scene.ready == []


def test_a_nomination_whose_time_is_over_is_not_woken_by_a_victim_that_goes_late() -> None:
    """What it held ended with its time, and may be another's by now."""
    scene = Scene()
    scene.nominate()
    scene.now = scene.nominations.next_end()
    scene.cache.expire(scene.now)
    scene.cache.forget("victim")
    scene.nominations.on_delete(pod_of("victim"))
    assert (scene.ready, scene.used) == ([], 0)
    assert [n.allocation.uid for n in scene.nominations.expired()] == ["preemptor"]


def test_who_was_told_that_a_node_is_held_is_told_when_a_reign_ends() -> None:
    scene = Scene()
    scene.nominate()
    scene.nominations.clear()
    assert scene.lost == ["preemptor"]


@pytest.mark.parametrize("how", ["gone", "finished", "ending", "withdrawn"])
def test_nothing_is_held_for_a_preemptor_that_needs_nothing_any_more(how: str) -> None:
    scene = Scene()
    scene.nominate()
    match how:
        case "gone":
            scene.nominations.on_delete(pod_of("preemptor"))
        case "finished":
            scene.nominations.on_set(pod_of("preemptor", status=PodStatus(phase="Failed")), None)
        case "ending":
            meta = ObjectMeta(name="preemptor", uid="preemptor", deletion_timestamp="now")
            scene.nominations.on_set(Pod(metadata=meta), None)
        case _:
            scene.nominations.withdraw("preemptor")
            scene.nominations.withdraw("preemptor")

    assert (scene.used, len(scene.nominations)) == (39, 0)


def test_what_a_bound_preemptor_holds_is_not_the_nominations_to_give_back() -> None:
    scene = Scene()
    scene.nominate()
    scene.cache.confirm(make_allocation([given("GPU-0", memory=39_000)], uid="preemptor"))
    bound = pod_of("preemptor", spec=PodSpec(node_name="node-0"))
    scene.nominations.on_set(bound, None)

    assert (scene.used, len(scene.nominations)) == (78, 0)


def test_one_victim_may_go_for_two() -> None:
    scene = Scene()
    scene.nominate("first")
    scene.nominate("second")
    scene.nominations.withdraw("first")
    scene.nominations.on_delete(pod_of("victim"))

    assert scene.ready == ["second"]


# -- those that might go -----------------------------------------------------------------------


def occupants(cache: AllocationCache) -> Occupants:
    return Occupants(cache, counters=ControllerCounters(CollectorRegistry()))


def budget(selector: LabelSelector | None, *, allowed: int = 1) -> PodDisruptionBudget:
    return PodDisruptionBudget(
        metadata=ObjectMeta(name="few", namespace="default"),
        spec=PodDisruptionBudgetSpec(selector=selector),
        status=PodDisruptionBudgetStatus(disruptions_allowed=allowed),
    )


def victim_pod(*, phase: str = "Running", priority: int = 0, ending: bool = False) -> Pod:
    return Pod(
        metadata=ObjectMeta(
            name="victim",
            namespace="default",
            uid="victim",
            labels={"app": "db"},
            deletion_timestamp="2026-01-01T00:00:00Z" if ending else None,
        ),
        spec=PodSpec(node_name="node-0", priority=priority),
        status=PodStatus(phase=phase),
    )


DB = LabelSelector(match_labels={"app": "db"})


@pytest.mark.parametrize(
    ("selector", "phase", "covered"),
    [
        (DB, "Running", (0,)),
        (LabelSelector(), "Running", (0,)),
        (LabelSelector(match_labels={"app": "web"}), "Running", ()),
        (None, "Running", ()),
        (DB, "Pending", ()),
        (
            LabelSelector(match_expressions=[LabelSelectorRequirement(key="a", operator="?")]),
            "Running",
            (),
        ),
    ],
)
def test_a_victim_is_covered_by_the_budgets_that_choose_it(
    selector: LabelSelector | None, phase: str, covered: tuple[int, ...]
) -> None:
    scene = Scene()
    there = occupants(scene.cache)
    there.on_pod_set(victim_pod(phase=phase), None)
    there.on_budget_set(budget(selector), None)

    (victim,) = there.victims(["node-0"], below=1)["node-0"]
    assert victim.budgets == covered
    there.on_budget_delete(budget(selector))
    (victim,) = there.victims(["node-0"], below=1)["node-0"]
    assert (victim.budgets, there.budgets()) == ((), ())


def test_only_less_important_pods_that_do_not_end_already_are_victims() -> None:
    scene = Scene()
    there = occupants(scene.cache)
    assert not there.any_below(10)
    there.on_pod_set(victim_pod(priority=5), None)
    assert there.any_below(6)
    assert not there.any_below(5)
    assert there.victims(["node-0", "node-1"], below=5) == {}
    there.on_pod_set(victim_pod(priority=5, ending=True), None)
    assert there.victims(["node-0"], below=6) == {}
    assert list(there.ending()) == ["node-0"]
    there.on_pod_delete(victim_pod())
    scene.cache.forget("victim")
    assert not there.any_below(10)
    assert there.ending() == {}


@pytest.mark.parametrize("text", ["", "yesterday", "9999999-01-01T00:00:00Z"])
def test_times_and_graces_that_make_no_sense_do_no_harm(text: str) -> None:
    pod = Pod(status=PodStatus(start_time=text), spec=PodSpec(termination_grace_period_seconds=-1))

    assert started(pod) == 0.0
    assert grace_seconds(pod) == 0.0
    assert grace_seconds(Pod()) == 30.0
