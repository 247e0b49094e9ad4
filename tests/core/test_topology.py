"""Which devices go together: known machines, and the plain definition on any scores."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given as forall
from hypothesis import settings
from hypothesis import strategies as st

from hami.core.topology import EXACT, choose_set, score_matrix

Floats = npt.NDArray[np.float64]

NVLINK, SWITCH, SOCKET, CROSS = 1800.0, 50.0, 20.0, 10.0


def islands(size: int, island: int, inside: float, outside: float) -> Floats:
    """Devices in groups: fast within one, slow between two."""
    group = np.arange(size) // island
    matrix = np.where(group[:, np.newaxis] == group, inside, outside)
    np.fill_diagonal(matrix, 0)
    return matrix


def value(scores: Floats, chosen: Sequence[int]) -> float:
    return float(sum(scores[a, b] for a, b in combinations(chosen, 2)))


def naive(scores: Floats, candidates: Sequence[int], count: int) -> tuple[int, ...]:
    """The definition, word by word."""
    if count == 1:
        return (
            min(candidates, key=lambda a: sum(scores[a, b] for b in candidates if b != a)),
        )  # fmt: skip
    return max(combinations(candidates, count), key=lambda chosen: value(scores, chosen))


def test_devices_of_one_island_go_together() -> None:
    scores = islands(8, 4, SWITCH + NVLINK, CROSS)

    assert choose_set(scores, range(8), 4) == (0, 1, 2, 3)
    assert choose_set(scores, [3, 4, 5, 6, 7], 4) == (4, 5, 6, 7)
    assert choose_set(scores, [7, 3, 2, 6], 2) == (7, 6)


def test_a_single_device_is_the_one_that_others_miss_least() -> None:
    scores = islands(4, 2, NVLINK, CROSS)

    assert choose_set(scores, [0, 1, 2], 1) == (2,)


def test_without_scores_the_first_in_the_list_are_taken() -> None:
    scores = np.zeros((32, 32))

    assert choose_set(scores, [5, 3, 1], 1) == (5,)
    assert choose_set(scores, [5, 3, 1], 2) == (5, 3)
    assert choose_set(scores, range(31, -1, -1), 3) == (31, 30, 29)


def test_of_a_pair_the_score_from_the_first_to_the_second_counts() -> None:
    scores = np.zeros((3, 3))
    scores[0, 1], scores[2, 1] = 5, 7

    assert choose_set(scores, [0, 1, 2], 2) == (0, 1)
    assert choose_set(scores, [2, 1, 0], 2) == (2, 1)


def test_all_and_none_need_no_search() -> None:
    scores = np.zeros((40, 40))

    assert choose_set(scores, [3, 1, 2], 3) == (3, 1, 2)
    assert choose_set(scores, range(40), 40) == tuple(range(40))
    assert choose_set(scores, [1], 0) == ()
    assert choose_set(scores, [], 0) == ()


def test_more_than_there_are_is_the_callers_mistake() -> None:
    with pytest.raises(ValueError, match="from 0 to 2, met 3"):
        choose_set(np.zeros((2, 2)), [0, 1], 3)


@st.composite
def questions(draw: st.DrawFn, low: int, high: int) -> tuple[Floats, list[int], int]:
    """A matrix in any directions, some of its columns in any order, and a count."""
    size = draw(st.integers(low, high))
    numbers = st.sampled_from([0, 0, 10, 20, 50, 100, -30])
    flat = draw(st.lists(numbers, min_size=size * size, max_size=size * size))
    candidates = draw(st.permutations(range(size)))[: draw(st.integers(low, size))]
    return (
        np.array(flat, np.float64).reshape(size, size),
        candidates,
        draw(st.integers(1, len(candidates))),
    )


@settings(deadline=None)
@forall(question=questions(1, 9))
def test_the_first_best_set_is_chosen(question: tuple[Floats, list[int], int]) -> None:
    scores, candidates, count = question

    assert choose_set(scores, candidates, count) == naive(scores, candidates, count)


@pytest.mark.parametrize("count", range(1, EXACT + 1))
def test_the_first_best_set_is_chosen_of_as_many_as_are_looked_at(count: int) -> None:
    scores = np.random.default_rng(count).integers(0, 60, (EXACT, EXACT)).astype(np.float64)

    assert choose_set(scores, range(EXACT), count) == naive(scores, range(EXACT), count)


@settings(deadline=None, max_examples=30)
@forall(question=questions(EXACT + 1, 24))
def test_of_more_a_set_is_chosen_that_no_exchange_betters(
    question: tuple[Floats, list[int], int],
) -> None:
    scores, candidates, count = question
    chosen = choose_set(scores, candidates, count)

    places = [candidates.index(c) for c in chosen]
    assert places == sorted(places)
    assert len(set(chosen)) == count
    if count == 1:
        assert chosen == naive(scores, candidates, 1)
        return
    for out in chosen:
        for into in set(candidates) - set(chosen):
            other = sorted((set(chosen) - {out}) | {into}, key=candidates.index)
            assert value(scores, other) <= value(scores, chosen)


@pytest.mark.parametrize(("size", "count"), [(32, 8), (32, 12), (64, 16), (128, 64)])
def test_islands_of_large_machines_are_found(size: int, count: int) -> None:
    scores = islands(size, 8, NVLINK, SOCKET)
    shuffled = np.random.default_rng(size).permutation(size).tolist()
    chosen = choose_set(scores, shuffled, count)

    full, rest = divmod(count, 8)
    sizes = np.bincount(np.array(chosen) // 8, minlength=size // 8)
    assert sorted(sizes[sizes > 0].tolist()) == sorted([8] * full + [rest] * (rest > 0))


def test_a_matrix_holds_what_is_known() -> None:
    scores = {"a": {"b": 5, "x": 9, "a": 3}, "c": {"a": -2}}

    assert score_matrix(scores, ["a", "b", "c"]).tolist() == [[0, 5, 0], [0, 0, 0], [-2, 0, 0]]
    assert score_matrix({}, []).shape == (0, 0)
