"""Any sequence of calls is decided as an oracle does; drivers that grow by more or by less."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hami.sandbox.gpu import catalogue
from tests.support.gpu import MIB, OUT_OF_MEMORY, Client, Machine

StartPooler = Callable[..., Client]

STEP = 32 * MIB
LIMIT = 320 * MIB
ON_DEVICE = 1
THRESHOLD, RESERVED = 4, 5


def reserved(client: Client, pool: int) -> int:
    return client.value("get", pool, RESERVED)


@pytest.fixture
def stepping(tmp_path: Path) -> Iterator[Callable[[int], Machine]]:
    """Makes a machine whose pools grow by so many bytes."""
    machines: list[Machine] = []

    def make(step: int) -> Machine:
        gpus = [catalogue.get("h100")]
        machines.append(Machine.create(tmp_path, gpus, exact_peaks=True, pool_step_bytes=step))
        return machines[-1]

    yield make
    for machine in machines:
        machine.stop()


def test_smaller_steps_are_learnt_and_the_limit_can_be_used_up(
    stepping: Callable[[int], Machine], start_pooler: StartPooler
) -> None:
    machine = stepping(2 * MIB)
    container = machine.container(100 * MIB)
    client = start_pooler(container)

    client.value("async", 50 * MIB)
    client.value("async", 50 * MIB)

    assert container.used_bytes() == machine.peak_bytes() == 100 * MIB
    assert client.ask("async", 1)[0] == OUT_OF_MEMORY


def test_larger_steps_are_charged_when_they_are_seen_and_known_from_then_on(
    stepping: Callable[[int], Machine], start_pooler: StartPooler
) -> None:
    machine = stepping(64 * MIB)
    container = machine.container(100 * MIB)
    client = start_pooler(container)

    client.value("async", MIB)
    assert container.used_bytes() == 64 * MIB
    assert client.ask("async", 64 * MIB)[0] == OUT_OF_MEMORY

    assert machine.peak_bytes() == container.used_bytes() == 64 * MIB


def test_step_that_does_not_fit_is_given_back(
    stepping: Callable[[int], Machine], start_pooler: StartPooler
) -> None:
    machine = stepping(64 * MIB)
    container = machine.container(50 * MIB)
    client = start_pooler(container)

    assert client.ask("async", MIB)[0] == OUT_OF_MEMORY

    assert container.used_bytes() == machine.used_bytes() == 0
    assert client.ask("alloc", 50 * MIB)[0] == 0


@dataclass
class Pool:
    """What the oracle thinks of one pool."""

    handle: int
    reserved: int = 0
    threshold: int = 0
    held: list[tuple[int, int]] = field(default_factory=list)
    """Address and bytes."""

    @property
    def used(self) -> int:
        return sum(size for _, size in self.held)

    def trim(self, keep: int = 0) -> None:
        self.reserved = min(self.reserved, -(-max(keep, self.used) // STEP) * STEP)


@dataclass
class Model:
    """A process with its device's own pool and another one, and plain memory."""

    client: Client
    pools: list[Pool]
    plain: list[tuple[int, int]] = field(default_factory=list)

    @classmethod
    def begin(cls, client: Client) -> Model:
        handles = client.value("default", 0), client.value("create", ON_DEVICE, 0, 0)
        return cls(client, [Pool(handle) for handle in handles])

    @property
    def charged(self) -> int:
        return sum(pool.reserved for pool in self.pools) + sum(size for _, size in self.plain)


def rounded(size: int, unit: int) -> int:
    return -(-size // unit) * unit


def grows(pool: Pool, size: int) -> int:
    spare = pool.reserved - pool.used
    return rounded(max(size - spare, 0), STEP)


class Oracle:
    """Decides by one sum over all processes."""

    def __init__(self, models: Sequence[Model]) -> None:
        self.models = list(models)

    def charged(self) -> int:
        return sum(model.charged for model in self.models)

    def admits(self, model: Model, needed: Callable[[], int]) -> bool:
        if self.charged() + needed() <= LIMIT:
            return True
        for pool in model.pools:  # unused reserve of its own goes first
            pool.trim()
        return self.charged() + needed() <= LIMIT

    def take(self, model: Model, which: int, size: int) -> None:
        pool, size = model.pools[which], rounded(size, 512)
        fits = self.admits(model, lambda: grows(pool, size))
        order = ("async", size) if which == 0 else ("from", pool.handle, size)
        result, address = model.client.ask(order[0], *order[1:])
        assert result == (0 if fits else OUT_OF_MEMORY)
        if fits:
            pool.reserved += grows(pool, size)
            pool.held.append((address, size))

    def take_plain(self, model: Model, size: int) -> None:
        size = rounded(size, 2 * MIB)  # as the driver does: the peak is then the sum
        fits = self.admits(model, lambda: size)
        result, address = model.client.ask("alloc", size)
        assert result == (0 if fits else OUT_OF_MEMORY)
        if fits:
            model.plain.append((address, size))


sizes = st.one_of(
    st.integers(1, LIMIT // 4),
    st.integers(LIMIT - STEP, LIMIT),
    st.sampled_from([1, STEP, 2 * STEP]),
)
processes = st.integers(0, 2)
operations = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["async", "from", "alloc"]), processes, sizes),
        st.tuples(st.sampled_from(["free-async", "free"]), processes, st.integers(0, 50)),
        st.tuples(st.sampled_from(["sync", "sync-stream", "sync-event"]), processes, st.just(0)),
        st.tuples(st.just("trim"), processes, st.integers(0, 3 * STEP)),
        st.tuples(st.just("threshold"), processes, st.sampled_from([0, STEP, 2**64 - 1])),
        st.tuples(st.sampled_from(["recreate", "reset", "kill"]), processes, st.just(0)),
    ),
    max_size=40,
)


def free(model: Model, order: str, choice: int) -> None:
    lists = [model.plain, *(pool.held for pool in model.pools)]
    held = [(entries, index) for entries in lists for index in range(len(entries))]
    if held:
        entries, index = held[choice % len(held)]
        address, _ = entries.pop(index)
        assert model.client.ask(order, address) == (0,)


def recreate(model: Model) -> None:
    """Destroy the second pool, and all that is left in it, and make another."""
    pool = model.pools[1]
    assert model.client.ask("destroy", pool.handle) == (0,)
    for address, _ in pool.held:
        assert model.client.ask("free-async", address) == (0,)
    model.pools[1] = Pool(model.client.value("create", ON_DEVICE, 0, 0))


def step(oracle: Oracle, model: Model, order: str, size: int) -> None:
    if order in ("async", "from"):
        oracle.take(model, ["async", "from"].index(order), size)
    elif order == "alloc":
        oracle.take_plain(model, size)
    elif order in ("free", "free-async"):
        free(model, order, size)
    elif order == "threshold":
        model.pools[1].threshold = size
        assert model.client.ask("set", model.pools[1].handle, THRESHOLD, size) == (0,)
    elif order == "trim":
        model.pools[1].trim(size)
        assert model.client.ask("trim", model.pools[1].handle, size) == (0,)
    elif order == "recreate":
        recreate(model)
    elif order == "reset":
        assert model.client.ask("reset") == (0,)
        model.plain.clear()
        for pool in model.pools:
            pool.held.clear()
            pool.trim()
    else:
        assert model.client.ask(order) == (0,)
        for pool in model.pools:
            pool.trim(pool.threshold)


@given(script=operations)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_every_sequence_is_decided_as_the_oracle_does(
    exact: Machine, start_pooler: StartPooler, script: list[tuple[str, int, int]]
) -> None:
    container = exact.container(LIMIT, name=f"run-{len(list(exact.path.iterdir()))}")
    oracle = Oracle([Model.begin(start_pooler(container)) for _ in range(3)])
    for order, process, size in script:
        if order == "kill":
            oracle.models[process].client.stop()
            oracle.models[process] = Model.begin(start_pooler(container))
        else:
            step(oracle, oracle.models[process], order, size)
        client = oracle.models[process].client
        free_bytes = LIMIT - oracle.charged()
        assert client.ask("info") == (0, free_bytes, LIMIT)
        assert client.ask("nvml", container.uuids[0]) == (0, free_bytes, LIMIT, oracle.charged())
        for pool in oracle.models[process].pools:
            assert reserved(client, pool.handle) == pool.reserved
    for model in oracle.models:
        model.client.stop()
    assert exact.peak_bytes() <= LIMIT
