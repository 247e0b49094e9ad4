"""Who gets which share of a device: the rules by example, and their promises by property."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hami.nodeagent.governor.shares import WHOLE, Contender, Share, divide, fill
from hami.nodeagent.region import CoreMode, Policy

OFF, LIMIT, BLOCK = CoreMode.OFF, CoreMode.LIMIT, CoreMode.BLOCK


def contender(limit: int = 0, **fields: object) -> Contender:
    return Contender(limit=limit, **fields)  # type: ignore[arg-type] # of the fields' own types


@pytest.mark.parametrize(
    ("who", "share"),
    [
        pytest.param(contender(300), Share(OFF, 300), id="alone, by default: not paced"),
        pytest.param(contender(300, policy=Policy.FORCE), Share(LIMIT, 300), id="forced: paced"),
        pytest.param(contender(300, policy=Policy.DISABLE), Share(OFF, 300), id="disabled"),
        pytest.param(contender(), Share(OFF, WHOLE), id="no limit"),
        pytest.param(contender(1000, policy=Policy.FORCE), Share(OFF, WHOLE), id="a whole device"),
    ],
)
def test_who_is_alone(who: Contender, share: Share) -> None:
    assert divide([who]) == (share,)


def test_limits_hold_for_two() -> None:
    assert divide([contender(300), contender(700)]) == (Share(LIMIT, 300), Share(LIMIT, 700))
    assert divide([contender(100), contender(200)]) == (Share(LIMIT, 100), Share(LIMIT, 200))


def test_what_limits_leave_is_shared_by_weight() -> None:
    shares = divide([contender(400), contender(weight=200), contender(weight=100)])

    assert [share.permille for share in shares] == pytest.approx([400, 400, 200], abs=2)
    assert {share.mode for share in shares} == {LIMIT}


def test_what_a_light_one_does_not_use_goes_to_the_others() -> None:
    light, heavy = divide([contender(wants=100), contender()])

    assert light.permille == pytest.approx(145, abs=2)
    assert heavy.permille == pytest.approx(855, abs=2)


def test_without_fair_sharing_only_limits_are_kept() -> None:
    shares = divide([contender(300), contender(), contender()], fair_share=False)

    assert [share.mode for share in shares] == [LIMIT, OFF, OFF]


def test_limits_beyond_the_whole_device_give_way_by_weight() -> None:
    shares = divide([contender(900, weight=300), contender(900, weight=100)])

    assert [share.permille for share in shares] == pytest.approx([750, 250], abs=2)


def test_lower_priority_waits_while_a_higher_one_works() -> None:
    first, second = contender(300, priority=0), contender(300, priority=1)

    assert divide([first, second]) == (Share(OFF, 300), Share(BLOCK, 0))
    assert divide([first, second], priority_block=False) == (Share(LIMIT, 300), Share(LIMIT, 300))
    assert divide([replace(first, active=False), second])[1] == Share(OFF, 300)


def test_lower_priority_is_held_before_it_begins() -> None:
    shares = divide([contender(priority=0), contender(priority=1, active=False)])

    assert shares == (Share(OFF, WHOLE), Share(BLOCK, 0))


def test_disabled_policy_is_never_held_and_counts_for_others() -> None:
    free = contender(policy=Policy.DISABLE, priority=1)

    assert divide([contender(300, priority=0), free])[1].mode is OFF
    assert divide([free, contender(300)])[1].mode is LIMIT


def test_newcomer_is_paced_at_what_it_would_get() -> None:
    shares = divide([contender(300, active=False), contender(700)])

    assert shares == (Share(LIMIT, 300), Share(OFF, 700))


contenders = st.builds(
    Contender,
    limit=st.integers(0, WHOLE),
    weight=st.integers(1, 10_000),
    priority=st.integers(0, 2),
    policy=st.sampled_from(Policy),
    active=st.booleans(),
    wants=st.integers(0, WHOLE),
)


@given(st.lists(contenders, min_size=1, max_size=40), st.booleans(), st.booleans())
def test_promises(everybody: list[Contender], block: bool, fair: bool) -> None:
    shares = divide(everybody, priority_block=block, fair_share=fair)

    running = [
        (who, share)
        for who, share in zip(everybody, shares, strict=True)
        if who.active and share.mode is not BLOCK
    ]
    assert sum(share.permille for _, share in running) <= WHOLE
    for who, share in zip(everybody, shares, strict=True):
        assert share.permille <= who.ceiling
        assert share.permille >= 1 or share.mode is BLOCK
        if who.policy is Policy.FORCE and who.limited:
            assert share.mode in (LIMIT, BLOCK)
        if who.policy is Policy.DISABLE:
            assert share.mode is OFF
        if share.mode is BLOCK:
            assert block
            assert any(o.active and o.priority < who.priority for o in everybody)


@given(st.lists(contenders, min_size=1, max_size=20))
def test_nothing_is_left_over_that_somebody_may_have(everybody: list[Contender]) -> None:
    active = [replace(who, active=True, priority=1) for who in everybody]

    given_out = [share.permille for share in divide(active)]

    missing = min(WHOLE, sum(who.ceiling for who in active)) - sum(given_out)
    assert missing <= len(active)  # of rounding down


@given(st.lists(contenders, min_size=2, max_size=10), st.integers(1, 10_000))
def test_more_weight_is_never_less_share(everybody: list[Contender], more: int) -> None:
    active = [replace(who, active=True, priority=1) for who in everybody]
    heavier = [replace(active[0], weight=active[0].weight + more), *active[1:]]

    assert divide(heavier)[0].permille >= divide(active)[0].permille


@given(
    st.floats(0, 1000),
    st.lists(st.tuples(st.floats(0, 1000), st.integers(1, 10_000)), min_size=1, max_size=20),
)
def test_water_finds_its_level(room: float, vessels: list[tuple[float, int]]) -> None:
    wants, weights = [want for want, _ in vessels], [weight for _, weight in vessels]

    got = fill(room, wants, weights)

    assert sum(got) == pytest.approx(min(room, sum(wants)), abs=1e-6)
    levels = [
        level / weight
        for level, want, weight in zip(got, wants, weights, strict=True)
        if level < want - 1e-6
    ]
    if levels:  # those who did not get all they want stand equally high, and nobody stands higher
        assert max(levels) == pytest.approx(min(levels), rel=1e-6, abs=1e-9)
        for level, weight in zip(got, weights, strict=True):
            assert level / weight <= max(levels) + 1e-6
