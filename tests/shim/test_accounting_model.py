"""Any sequence of calls: the shim decides as an oracle with one sum does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.gpu import MIB, OUT_OF_MEMORY, Client, Container, Machine

LIMIT = 64 * MIB
PROCESSES = 3

sizes = st.one_of(
    st.integers(1, LIMIT // 3), st.integers(LIMIT - MIB, LIMIT + MIB), st.sampled_from([1, LIMIT])
)
operations = st.lists(
    st.one_of(
        st.tuples(st.just("alloc"), st.integers(0, PROCESSES - 1), sizes),
        st.tuples(st.just("managed"), st.integers(0, PROCESSES - 1), sizes),
        st.tuples(st.just("pitch"), st.integers(0, PROCESSES - 1), st.integers(1, 40_000)),
        st.tuples(st.just("free"), st.integers(0, PROCESSES - 1), st.integers(0, 50)),
        st.tuples(st.just("reset"), st.integers(0, PROCESSES - 1), st.just(0)),
        st.tuples(st.just("kill"), st.integers(0, PROCESSES - 1), st.just(0)),
    ),
    max_size=40,
)


@dataclass
class Model:
    """A process, and what the oracle thinks it holds."""

    client: Client
    held: list[tuple[int, int]] = field(default_factory=list)
    """Address and charged bytes."""


def charged_bytes(order: str, size: int) -> int:
    return -(-size // 512) * 512 * 1024 if order == "pitch" else size


def used(models: Sequence[Model]) -> int:
    return sum(size for model in models for _, size in model.held)


def step(models: list[Model], order: str, size: int, model: Model) -> None:
    if order == "free":
        if model.held:
            address, _ = model.held.pop(size % len(model.held))
            assert model.client.ask("free", address) == (0,)
        return
    if order == "reset":
        assert model.client.ask("reset") == (0,)
        model.held.clear()
        return
    fits = used(models) + charged_bytes(order, size) <= LIMIT
    words = (size, 1024) if order == "pitch" else (size,)
    result, address, *_ = model.client.ask(order, *words)
    assert result == (0 if fits else OUT_OF_MEMORY)
    if fits:
        model.held.append((address, charged_bytes(order, size)))


def play(
    container: Container, start: Callable[..., Client], script: list[tuple[str, int, int]]
) -> None:
    models = [Model(start(container)) for _ in range(PROCESSES)]
    for order, process, size in script:
        if order == "kill":
            models[process].client.stop()
            models[process] = Model(start(container))
        else:
            step(models, order, size, models[process])
        assert models[process].client.ask("info") == (0, LIMIT - used(models), LIMIT)
    for model in models:
        model.client.stop()


@given(script=operations)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_every_sequence_is_decided_as_the_oracle_does(
    machine: Machine, start_client: Callable[..., Client], script: list[tuple[str, int, int]]
) -> None:
    container = machine.container(LIMIT, name=f"run-{len(list(machine.path.iterdir()))}")

    play(container, start_client, script)
