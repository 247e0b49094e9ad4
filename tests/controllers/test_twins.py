"""Pods in flight that the kubelet cannot tell apart: who waits for whom, and until when."""

from __future__ import annotations

from dataclasses import replace

import anyio
from anyio.lowlevel import checkpoint
from hypothesis import given
from hypothesis import strategies as st

from hami.controllers.twins import (
    NODE_LOCK,
    Key,
    Twins,
    keys_of_allocation,
    keys_of_request,
    needs_lock,
)
from hami.core.device import Role, VendorName
from hami.core.vendor import Lock, table
from hami.core.vendors.nvidia import NVIDIA
from tests.support import builders

ONE: frozenset[Key] = frozenset({(NVIDIA.name, 1)})
BOTH = table([NVIDIA, builders.OTHER])
TWO: frozenset[Key] = frozenset({(NVIDIA.name, 2)})


class Clock:
    """Stands still unless it is told to go on."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


async def settle() -> None:
    """Let every task run as far as it can."""
    for _ in range(10):
        await checkpoint()


class Arrivals:
    """Enters pods in the background and notes in which order they got their turn."""

    def __init__(self, twins: Twins, group: anyio.abc.TaskGroup) -> None:
        self._twins, self._group = twins, group
        self.order: list[str] = []

    async def enter(self, uid: str, *, node: str = "n", keys: frozenset[Key] = ONE) -> None:
        async def wait() -> None:
            await self._twins.enter(uid, node=node, keys=keys)
            self.order.append(uid)

        self._group.start_soon(wait)
        await settle()


async def test_turns_come_first_come_first_served() -> None:
    twins = Twins(patience_seconds=60)
    async with anyio.create_task_group() as group:
        arrivals = Arrivals(twins, group)
        for uid in ("a", "b", "c"):
            await arrivals.enter(uid)
        assert arrivals.order == ["a"]

        twins.leave("a")
        await settle()
        assert arrivals.order == ["a", "b"]

        twins.leave("b")
    assert arrivals.order == ["a", "b", "c"]


async def test_other_counts_other_nodes_and_pods_of_several_counts() -> None:
    twins = Twins(patience_seconds=60)
    async with anyio.create_task_group() as group:
        arrivals = Arrivals(twins, group)
        await arrivals.enter("one")
        await arrivals.enter("two", keys=TWO)
        await arrivals.enter("elsewhere", node="m")
        await arrivals.enter("both", keys=ONE | TWO)
        assert arrivals.order == ["one", "two", "elsewhere"]

        twins.leave("one")
        await settle()
        assert "both" not in arrivals.order
        twins.leave("two")
    assert arrivals.order[-1] == "both"


async def test_waiting_pod_that_gives_up_lets_the_next_one_pass() -> None:
    twins = Twins(patience_seconds=60)
    async with anyio.create_task_group() as group:
        arrivals = Arrivals(twins, group)
        await arrivals.enter("a")
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as hasty:
                hasty.start_soon(lambda: twins.enter("b", node="n", keys=ONE))
                await settle()
                await arrivals.enter("c")
                scope.cancel()
        twins.leave("a")
    assert arrivals.order == ["a", "c"]


async def test_pod_that_is_deleted_while_it_waits_is_not_kept() -> None:
    twins = Twins(patience_seconds=60)
    async with anyio.create_task_group() as group:
        arrivals = Arrivals(twins, group)
        await arrivals.enter("a")
        await arrivals.enter("b")
        twins.leave("b")
        await settle()
        twins.leave("a")
    assert arrivals.order == ["a", "b"]
    assert len(twins) == 0


async def test_pod_of_a_dead_agent_is_passed_after_the_deadline() -> None:
    clock = Clock()
    twins = Twins(patience_seconds=60, clock=clock)
    twins.saw_allocating("dead", node="n", keys=ONE)

    with anyio.move_on_after(0) as waiting:
        await twins.enter("a", node="n", keys=ONE)
    clock.now = 60
    await twins.enter("b", node="n", keys=ONE)

    assert waiting.cancelled_caught


async def test_pods_seen_allocating_after_a_restart_hold_back_their_twins() -> None:
    twins = Twins(patience_seconds=60)
    twins.saw_allocating("old", node="n", keys=ONE)
    twins.saw_allocating("old", node="n", keys=ONE)
    async with anyio.create_task_group() as group:
        arrivals = Arrivals(twins, group)
        await arrivals.enter("new")
        assert arrivals.order == []
        twins.leave("old")
    assert arrivals.order == ["new"]


async def test_pod_that_somebody_else_bound_meanwhile_holds_back_those_who_wait() -> None:
    twins = Twins(patience_seconds=60)
    async with anyio.create_task_group() as group:
        arrivals = Arrivals(twins, group)
        await arrivals.enter("a")
        await arrivals.enter("b")
        twins.saw_allocating("other", node="n", keys=ONE)
        twins.leave("a")
        await settle()
        assert arrivals.order == ["a"]
        twins.leave("other")
    assert arrivals.order == ["a", "b"]


def test_keys_are_the_counts_that_the_kubelet_asks_for() -> None:
    request = builders.make_pod_request(
        builders.asking(builders.make_demand(2), builders.make_demand(3, vendor="OTHER")),
        builders.asking(),
        builders.asking(builders.make_demand(1)),
    )
    allocation = builders.make_allocation(
        [builders.given("a"), builders.given("b"), builders.given("n", vendor="OTHER")],
        [],
        [builders.given("a")],
    )

    other = VendorName("OTHER")
    assert keys_of_request(request, BOTH) == {(NVIDIA.name, 2), (other, 3), (NVIDIA.name, 1)}
    assert keys_of_allocation(allocation, BOTH) == {(NVIDIA.name, 2), (other, 1), (NVIDIA.name, 1)}


def test_pods_of_vendors_with_a_lock_share_a_key_whatever_container_asks() -> None:
    vendors = table([NVIDIA, replace(builders.OTHER, lock=Lock.NODE)])
    init = builders.make_pod_request(
        builders.asking(builders.make_demand(3, vendor="OTHER"), role=Role.INIT),
        builders.asking(builders.make_demand(1)),
    )
    plain = builders.make_pod_request(builders.asking(builders.make_demand(1)))
    allocation = builders.make_allocation([builders.given("n", vendor="OTHER")])

    assert NODE_LOCK in keys_of_request(init, vendors) & keys_of_allocation(allocation, vendors)
    assert needs_lock(init, vendors)
    assert not needs_lock(plain, vendors)
    assert not needs_lock(init, BOTH)


def test_pods_that_no_agent_looks_for_have_no_key() -> None:
    vendors = table([NVIDIA, replace(builders.OTHER, agent_consumes=False)])
    request = builders.make_pod_request(builders.asking(builders.make_demand(3, vendor="OTHER")))

    assert keys_of_request(request, vendors) == frozenset()


steps = st.lists(
    st.tuples(
        st.sampled_from(["enter", "leave", "see"]),
        st.integers(0, 5),
        st.sampled_from(["n", "m"]),
        st.sampled_from([ONE, TWO, ONE | TWO]),
    ),
    max_size=25,
)


@given(steps)
async def test_no_two_twins_are_ever_let_through_together(
    moves: list[tuple[str, int, str, frozenset[Key]]],
) -> None:
    """Whatever comes and goes: those let through and not gone have no count in common on a node."""
    twins = Twins(patience_seconds=60)
    passed: dict[str, tuple[str, frozenset[Key]]] = {}
    async with anyio.create_task_group() as group:

        async def enter(uid: str, node: str, keys: frozenset[Key]) -> None:
            await twins.enter(uid, node=node, keys=keys)
            passed[uid] = node, keys

        for number, (move, who, node, keys) in enumerate(moves):
            uid = f"{who}"
            if move == "enter" and uid not in passed:
                group.start_soon(enter, f"{uid}.{number}", node, keys)
            elif move == "leave":
                for known in [known for known in passed if known.startswith(f"{who}.")]:
                    twins.leave(known)
                    del passed[known]
            await settle()
            flights = list(passed.values())
            for i, (node_a, keys_a) in enumerate(flights):
                for node_b, keys_b in flights[i + 1 :]:
                    assert node_a != node_b or not keys_a & keys_b
        group.cancel_scope.cancel()


async def test_how_long_one_more_would_wait_is_learnt_from_those_before_it() -> None:
    clock = Clock()
    twins = Twins(patience_seconds=60, clock=clock)
    async with anyio.create_task_group() as group:
        arrivals = Arrivals(twins, group)
        for uid in ("a", "b", "c", "d"):
            await arrivals.enter(uid)
        await arrivals.enter("elsewhere", node="m")
        assert twins.expected_wait(node="n", keys=ONE) == 0, "nobody has told yet"

        clock.now = 0.5
        twins.leave("a")
        await settle()

        assert twins.expected_wait(node="n", keys=ONE) == 3 * 0.5
        assert twins.expected_wait(node="n", keys=TWO) == 0
        assert twins.expected_wait(node="m", keys=ONE) == 0
        assert twins.expected_wait(node="unknown", keys=ONE) == 0

        twins.leave("c")  # gave up; it never had its turn, and tells nothing
        assert twins.expected_wait(node="n", keys=ONE) == 2 * 0.5
        for uid in ("b", "d", "elsewhere"):
            twins.leave(uid)
            await settle()
    assert twins.expected_wait(node="n", keys=ONE) == 0


async def test_nodes_where_one_more_would_wait_long_are_busy() -> None:
    clock = Clock()
    twins = Twins(patience_seconds=60, clock=clock)
    for uid in ("a", "b", "c"):
        twins.saw_allocating(uid, node="n0", keys=ONE)
    clock.now += 4
    twins.leave("a")

    assert twins.busy(ONE, seconds=7) == {"n0"}
    assert twins.busy(ONE, seconds=8) == frozenset()
    assert twins.busy(TWO, seconds=0) == frozenset()


async def test_only_those_whose_turn_it_is_are_woken() -> None:
    """A burst of hundreds must not cost a look at each for each."""
    looks = 0

    def clock() -> float:
        nonlocal looks
        looks += 1
        return 0.0

    twins = Twins(patience_seconds=60, clock=clock)
    async with anyio.create_task_group() as group:
        arrivals = Arrivals(twins, group)
        uids = [f"p{i}" for i in range(60)]
        for uid in uids:
            await arrivals.enter(uid)
        woken = []
        for uid in uids[:-1]:
            looks = 0
            twins.leave(uid)
            await settle()
            woken.append(looks)
    assert arrivals.order == uids
    assert max(woken) < 5 * len(uids), "each of them looked at all the others"


async def test_pod_that_is_seen_bound_while_it_waits_ends_its_wait_in_its_turn() -> None:
    twins = Twins(patience_seconds=60)
    async with anyio.create_task_group() as group:
        arrivals = Arrivals(twins, group)
        for uid in ("a", "b", "c"):
            await arrivals.enter(uid)
        twins.saw_allocating("b", node="n", keys=ONE)

        twins.leave("a")
        await settle()
        assert arrivals.order == ["a", "b"]

        twins.leave("b")
    assert arrivals.order == ["a", "b", "c"]


async def test_pod_that_is_seen_bound_to_another_node_holds_back_its_twins_there() -> None:
    """A bind whose end nobody saw, and then another controller's."""
    twins = Twins(patience_seconds=60)
    async with anyio.create_task_group() as group:
        arrivals = Arrivals(twins, group)
        await arrivals.enter("a", node="n")
        twins.saw_allocating("a", node="m", keys=ONE)
        await arrivals.enter("b", node="n")
        await arrivals.enter("c", node="m")
        assert arrivals.order == ["a", "b"]
        twins.leave("a")
    assert arrivals.order == ["a", "b", "c"]


async def test_pod_of_a_dead_agent_tells_of_no_longer_wait_than_its_twins_have() -> None:
    clock = Clock()
    twins = Twins(patience_seconds=60, clock=clock)
    for uid in ("dead", "also-dead"):
        twins.saw_allocating(uid, node="n", keys=ONE)
    clock.now = 3600.0
    twins.leave("dead")
    assert twins.expected_wait(node="n", keys=ONE) == 0, "who is passed holds nobody back"

    twins.saw_allocating("alive", node="n", keys=ONE)
    assert twins.expected_wait(node="n", keys=ONE) == 60
