"""A duplicate of the cache: the same content, and nothing done to it is seen by the original."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given as forall
from hypothesis import strategies as st

from hami.core.cache import AllocationCache
from hami.core.placement import Choice, Placer
from tests.support.builders import (
    asking,
    given,
    make_allocation,
    make_demand,
    make_devices,
    make_pod_request,
)

SMALL = make_pod_request(asking(make_demand(memory=1000)))


def filled(pods: int = 3) -> AllocationCache:
    cache = AllocationCache()
    for name in ("node-0", "node-1"):
        cache.set_node(name, make_devices(2, prefix=f"GPU-{name}"))
    for i in range(pods):
        node = f"node-{i % 2}"
        cache.confirm(make_allocation([given(f"GPU-{node}-0")], uid=f"uid-{i}", node=node))
    return cache


def content(value: Any, seen: frozenset[int] = frozenset()) -> Any:
    """Everything that an object holds, as plain values that can be compared."""
    if id(value) in seen or callable(value):
        return None
    seen |= {id(value)}
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, dict):
        return {str(key): content(inner, seen) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [content(inner, seen) for inner in value]
    if isinstance(value, (set, frozenset)):
        return sorted(map(str, value))
    slots = [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())]
    inner = {name: getattr(value, name) for name in slots} | getattr(value, "__dict__", {})
    if inner and type(value).__module__.startswith("hami."):
        return {key: content(part, seen) for key, part in inner.items()}
    return repr(value)


def test_duplicate_has_the_same_content() -> None:
    cache = filled()

    assert content(cache.duplicate()) == content(cache)


@forall(pods=st.integers(0, 6), more=st.integers(1, 6))
def test_what_is_done_to_a_duplicate_is_not_seen_by_the_original(pods: int, more: int) -> None:
    cache = filled(pods)
    before = content(cache)

    twin = cache.duplicate()
    for i in range(more):
        choice = Placer(twin.table).choose(SMALL, "node-0")
        assert isinstance(choice, Choice)
        twin.hold(make_allocation(*choice.containers, uid=f"uid-new-{i}"), expires_at=float("inf"))
    for uid in [reservation.allocation.uid for reservation in twin.reservations()]:
        twin.forget(uid)

    assert content(cache) == before
    assert content(twin) != before or pods == 0


def test_what_happens_to_the_original_is_not_seen_by_a_duplicate() -> None:
    cache = filled()
    twin = cache.duplicate()
    before = content(twin)

    cache.set_node("node-2", make_devices(9))
    cache.remove_node("node-0")
    cache.forget("uid-1")

    assert content(twin) == before
