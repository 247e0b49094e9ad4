"""Pools count with what the driver reserves for them, and never take it beyond the limit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hami.nodeagent.controlfile import ControlFile
from hami.sandbox.gpu import catalogue
from tests.support.gpu import MIB, OUT_OF_MEMORY, Client, Container, Machine, wait_for

Compile = Callable[..., Path]
StartPooler = Callable[..., Client]

STEP = 32 * MIB
LIMIT = 320 * MIB
ON_DEVICE, ON_HOST = 1, 2
THRESHOLD, RESERVED, RESERVED_HIGH, USED, USED_HIGH = 4, 5, 6, 7, 8


@pytest.fixture
def exact(tmp_path: Path) -> Iterator[Machine]:
    """Two H100s whose peaks never count the dead."""
    machine = Machine.create(tmp_path, [catalogue.get("h100")] * 2, exact_peaks=True)
    yield machine
    machine.stop()


@pytest.fixture
def start_pooler(compile_program: Compile) -> Iterator[StartPooler]:
    """Starts ``pooler`` processes in a container (None: without the shim), on its first device."""
    program = compile_program("pooler", "-pthread")
    started: list[Client] = []

    def start(container: Container | Machine, **env: str) -> Client:
        environment = (
            container.environment() if isinstance(container, Machine) else container.environment
        )
        client = Client(program, {**environment, **env})
        started.append(client)
        assert client.ask("init", 0) == (0,)
        return client

    yield start
    for client in started:
        client.stop()


def value(client: Client, order: str, *words: object) -> int:
    """The second number of an answer that begins with success."""
    result, answer = client.ask(order, *words)
    assert result == 0
    return answer


def reserved(client: Client, pool: int) -> int:
    return value(client, "get", pool, RESERVED)


# --- the simulated driver ---


def test_pool_grows_in_steps_and_keeps_what_is_freed_until_a_synchronisation(
    exact: Machine, start_pooler: StartPooler
) -> None:
    plain = start_pooler(exact)
    pool = value(plain, "default", 0)

    address = value(plain, "async", 40 * MIB)
    assert (reserved(plain, pool), value(plain, "get", pool, USED)) == (2 * STEP, 40 * MIB)
    assert plain.ask("free-async", address) == (0,)
    assert (reserved(plain, pool), value(plain, "get", pool, USED)) == (2 * STEP, 0)
    assert exact.used_bytes() == 2 * STEP

    assert plain.ask("sync-stream") == (0,)
    assert (reserved(plain, pool), exact.used_bytes()) == (0, 0)
    assert value(plain, "get", pool, RESERVED_HIGH) == 2 * STEP


def test_release_threshold_keeps_so_much_across_a_synchronisation(
    exact: Machine, start_pooler: StartPooler
) -> None:
    plain = start_pooler(exact)
    pool = value(plain, "default", 0)
    assert plain.ask("set", pool, THRESHOLD, STEP) == (0,)

    assert plain.ask("free-async", value(plain, "async", 3 * STEP)) == (0,)
    assert plain.ask("sync") == (0,)

    assert reserved(plain, pool) == STEP
    assert plain.ask("trim", pool, 0) == (0,)
    assert exact.used_bytes() == 0


def test_pool_has_a_maximum_and_the_device_has_one_too(
    exact: Machine, start_pooler: StartPooler
) -> None:
    plain = start_pooler(exact)
    pool = value(plain, "create", ON_DEVICE, 0, 50 * MIB)

    assert plain.ask("from", pool, 51 * MIB)[0] == OUT_OF_MEMORY
    assert plain.ask("from", pool, 50 * MIB)[0] == 0
    assert reserved(plain, pool) == 50 * MIB

    _, free, _ = plain.ask("info")
    value(plain, "alloc", free - STEP)
    assert plain.ask("async", STEP + 1)[0] == OUT_OF_MEMORY
    assert plain.ask("async", STEP)[0] == 0


@pytest.mark.parametrize(
    "order",
    [
        pytest.param(("create", 0, 0, 0), id="no location"),
        pytest.param(("get", 4711, 5), id="unknown pool"),
        pytest.param(("destroy", 4711), id="destroying an unknown pool"),
        pytest.param(("trim", 4711, 0), id="trimming an unknown pool"),
        pytest.param(("from", 4711, 1), id="taking from an unknown pool"),
        pytest.param(("from", 0, 1), id="taking from no pool"),
        pytest.param(("async", 0), id="no bytes"),
        pytest.param(("free-async", 4711), id="freeing an unknown pointer"),
    ],
)
def test_driver_says_what_it_thinks_of_nonsense(
    exact: Machine, start_pooler: StartPooler, order: tuple[object, ...]
) -> None:
    clients = [start_pooler(exact), start_pooler(exact.container(LIMIT))]

    answers = {client.ask(str(order[0]), *order[1:])[0] for client in clients}

    assert answers == {1}


# --- the shim over it ---


def test_reserve_is_what_counts_and_every_query_shows_it(
    exact: Machine, start_pooler: StartPooler
) -> None:
    container = exact.container(LIMIT)
    client = start_pooler(container)

    value(client, "async", 1)

    assert container.used_bytes() == STEP
    assert client.ask("info") == (0, LIMIT - STEP, LIMIT)
    assert client.ask("nvml", container.uuids[0]) == (0, LIMIT - STEP, LIMIT, STEP)


def test_last_byte_of_the_limit_can_be_had_from_a_pool_and_no_more(
    exact: Machine, start_pooler: StartPooler
) -> None:
    client = start_pooler(exact.container(LIMIT))

    for _ in range(LIMIT // STEP):
        value(client, "async", STEP)

    assert client.ask("async", 1)[0] == OUT_OF_MEMORY
    assert client.ask("alloc", 1)[0] == OUT_OF_MEMORY
    assert exact.peak_bytes() == LIMIT


def test_what_the_pool_has_to_spare_is_granted_where_it_could_not_grow(
    exact: Machine, start_pooler: StartPooler
) -> None:
    client = start_pooler(exact.container(LIMIT))
    value(client, "async", LIMIT - STEP)
    value(client, "async", 1)

    assert client.ask("async", STEP - 512)[0] == 0
    assert client.ask("async", 1)[0] == OUT_OF_MEMORY
    assert exact.peak_bytes() == LIMIT


@pytest.mark.parametrize("how", ["sync", "sync-stream", "sync-event"])
def test_synchronisation_gives_back_what_the_driver_let_go(
    exact: Machine, start_pooler: StartPooler, how: str
) -> None:
    container = exact.container(LIMIT)
    client = start_pooler(container)
    address = value(client, "async", STEP)

    assert client.ask("free-async", address) == (0,)
    assert container.used_bytes() == STEP

    assert client.ask(how) == (0,)
    assert container.used_bytes() == 0


def test_kept_reserve_counts_and_goes_when_it_is_trimmed(
    exact: Machine, start_pooler: StartPooler
) -> None:
    container = exact.container(LIMIT)
    client = start_pooler(container)
    pool = value(client, "default", 0)
    assert client.ask("set", pool, THRESHOLD, 2**64 - 1) == (0,)

    assert client.ask("free-async", value(client, "async", 4 * STEP)) == (0,)
    assert client.ask("sync") == (0,)
    assert container.used_bytes() == 4 * STEP

    assert client.ask("trim", pool, STEP) == (0,)
    assert container.used_bytes() == STEP


@pytest.mark.parametrize("order", ["alloc", "async"])
def test_unused_reserve_of_the_process_goes_before_a_request_is_refused(
    exact: Machine, start_pooler: StartPooler, order: str
) -> None:
    container = exact.container(LIMIT)
    client = start_pooler(container)
    kept = value(client, "create", ON_DEVICE, 0, 0)
    assert client.ask("set", kept, THRESHOLD, 2**64 - 1) == (0,)
    assert client.ask("free-async", value(client, "from", kept, LIMIT)) == (0,)
    assert client.ask("sync") == (0,)
    assert container.used_bytes() == LIMIT

    assert client.ask(order, LIMIT)[0] == 0

    assert (reserved(client, kept), container.used_bytes()) == (0, LIMIT)
    assert exact.peak_bytes() == LIMIT


def test_pool_memory_may_be_freed_as_any_other(exact: Machine, start_pooler: StartPooler) -> None:
    container = exact.container(LIMIT)
    client = start_pooler(container)
    pool = value(client, "default", 0)

    assert client.ask("free", value(client, "async", STEP)) == (0,)
    assert client.ask("trim", pool, 0) == (0,)
    assert container.used_bytes() == 0

    assert client.ask("free-async", value(client, "alloc", STEP)) == (0,)
    assert container.used_bytes() == 0


def test_plain_memory_that_is_freed_behind_work_stays_charged_until_the_work_is_done(
    exact: Machine, start_pooler: StartPooler
) -> None:
    container = exact.container(LIMIT)
    client, other = start_pooler(container), start_pooler(container)
    address = value(client, "alloc", LIMIT)

    assert client.ask("work", 200_000) == (0,)
    assert client.ask("free-async", address) == (0,)
    assert client.ask("free-async", address) == (1,)
    assert client.ask("sync") == (0,)

    assert container.used_bytes() == exact.used_bytes() == 0
    assert other.ask("alloc", LIMIT)[0] == 0
    assert exact.peak_bytes() == LIMIT


def test_plain_memory_freed_behind_endless_work_stays_charged_as_long_as_its_context(
    exact: Machine, start_pooler: StartPooler
) -> None:
    container = exact.container(LIMIT)
    client, other = start_pooler(container), start_pooler(container)
    address = value(client, "alloc", LIMIT)

    assert client.ask("work", 2_000_000_000) == (0,)
    assert client.ask("free-async", address) == (0,)

    assert other.ask("alloc", 1)[0] == OUT_OF_MEMORY
    assert client.ask("async", 1)[0] == OUT_OF_MEMORY
    assert container.used_bytes() == exact.used_bytes() == LIMIT
    assert client.ask("reset") == (0,)
    assert container.used_bytes() == exact.used_bytes() == 0


def test_who_is_about_to_be_refused_looks_whether_freed_memory_is_gone(
    exact: Machine, start_pooler: StartPooler
) -> None:
    client = start_pooler(exact.container(LIMIT))
    address = value(client, "alloc", LIMIT)

    assert client.ask("work", 100_000) == (0,)
    assert client.ask("free-async", address) == (0,)

    wait_for(lambda: client.ask("alloc", LIMIT)[0] == 0, "the freed memory is granted again")
    assert exact.peak_bytes() == LIMIT


def test_pool_of_another_device_counts_there(exact: Machine, start_pooler: StartPooler) -> None:
    container = exact.container(LIMIT, STEP)
    client = start_pooler(container)
    created, default = value(client, "create", ON_DEVICE, 1, 0), value(client, "default", 1)

    address = value(client, "from", created, STEP)
    assert (container.used_bytes(0), container.used_bytes(1)) == (0, STEP)
    assert client.ask("from", default, 1)[0] == OUT_OF_MEMORY
    assert client.ask("free-async", address) == (0,)
    assert client.ask("from", default, 1)[0] == 0

    assert (exact.used_bytes(0), exact.peak_bytes(1)) == (0, STEP)


def test_devices_own_pool_can_be_replaced(exact: Machine, start_pooler: StartPooler) -> None:
    container = exact.container(LIMIT)
    client = start_pooler(container)
    pool = value(client, "create", ON_DEVICE, 0, 0)

    assert client.ask("set-current", 0, pool) == (0,)
    value(client, "async", STEP + 1)

    assert value(client, "current", 0) == pool
    assert (reserved(client, pool), container.used_bytes()) == (2 * STEP, 2 * STEP)


def test_pool_of_host_memory_is_not_charged(exact: Machine, start_pooler: StartPooler) -> None:
    container = exact.container(STEP)
    client = start_pooler(container)
    pool = value(client, "create", ON_HOST, 0, 0)

    address = value(client, "from", pool, 4 * STEP)
    assert container.used_bytes() == 0
    assert client.ask("free-async", address) == (0,)
    assert client.ask("async", STEP)[0] == 0


def test_pool_below_a_step_is_judged_by_its_maximum(
    exact: Machine, start_pooler: StartPooler
) -> None:
    container = exact.container(20 * MIB)
    client = start_pooler(container)
    pool = value(client, "create", ON_DEVICE, 0, 16 * MIB)

    assert client.ask("async", 1)[0] == OUT_OF_MEMORY
    assert client.ask("from", pool, 16 * MIB)[0] == 0

    assert container.used_bytes() == 16 * MIB


def test_destroyed_pool_is_discharged_with_the_last_of_its_memory(
    exact: Machine, start_pooler: StartPooler
) -> None:
    container = exact.container(LIMIT)
    client = start_pooler(container)
    pool = value(client, "create", ON_DEVICE, 0, 0)
    first, second = value(client, "from", pool, STEP), value(client, "from", pool, STEP)

    assert client.ask("destroy", pool) == (0,)
    assert client.ask("free-async", first) == (0,)
    assert container.used_bytes() == 2 * STEP
    assert client.ask("free-async", second) == (0,)
    assert (container.used_bytes(), exact.used_bytes()) == (0, 0)

    again = value(client, "create", ON_DEVICE, 0, 0)
    value(client, "from", again, STEP)
    assert container.used_bytes() == STEP


def test_unused_pool_is_discharged_when_it_is_destroyed(
    exact: Machine, start_pooler: StartPooler
) -> None:
    container = exact.container(LIMIT)
    client = start_pooler(container)
    pool = value(client, "create", ON_DEVICE, 0, 0)
    assert client.ask("set", pool, THRESHOLD, 2**64 - 1) == (0,)
    assert client.ask("free-async", value(client, "from", pool, STEP)) == (0,)

    assert client.ask("destroy", pool) == (0,)

    assert container.used_bytes() == 0


def test_default_pool_cannot_be_destroyed_and_goes_on_being_charged(
    exact: Machine, start_pooler: StartPooler
) -> None:
    container = exact.container(LIMIT)
    client = start_pooler(container)
    value(client, "async", STEP)

    assert client.ask("destroy", value(client, "default", 0)) == (1,)

    value(client, "async", STEP)
    assert container.used_bytes() == 2 * STEP


def test_memory_of_pools_goes_with_the_context(exact: Machine, start_pooler: StartPooler) -> None:
    container = exact.container(LIMIT)
    client = start_pooler(container)
    value(client, "async", LIMIT)

    assert client.ask("reset") == (0,)

    assert container.used_bytes() == exact.used_bytes() == 0
    assert client.ask("init", 0) == (0,)
    assert client.ask("async", LIMIT)[0] == 0


def test_driver_out_of_memory_is_passed_on_and_not_charged(
    exact: Machine, start_pooler: StartPooler
) -> None:
    container = exact.container(None)
    client = start_pooler(container)

    assert client.ask("async", 2**40)[0] == OUT_OF_MEMORY

    assert container.used_bytes() == 0


@pytest.mark.parametrize("size", [2**63, 2**64 - 1])
def test_absurd_size_is_refused_and_leaves_nothing_behind(
    exact: Machine, start_pooler: StartPooler, size: int
) -> None:
    client = start_pooler(exact.container(LIMIT))

    assert client.ask("async", size)[0] == OUT_OF_MEMORY

    assert client.ask("info") == (0, LIMIT, LIMIT)


def test_device_that_the_container_was_not_given_has_no_pools(
    exact: Machine, start_pooler: StartPooler
) -> None:
    client = start_pooler(exact.container(LIMIT), NVIDIA_VISIBLE_DEVICES=exact.uuids[1])

    assert client.ask("async", 1)[0] == OUT_OF_MEMORY


def test_lowered_limit_leaves_what_the_pool_has_and_lets_it_not_grow(
    exact: Machine, start_pooler: StartPooler
) -> None:
    container = exact.container(LIMIT)
    client = start_pooler(container)
    value(client, "async", STEP + 1)

    with ControlFile(container.directory) as control:
        control.set_memory_limit(0, STEP)

    assert client.ask("async", MIB)[0] == 0
    assert client.ask("async", STEP)[0] == OUT_OF_MEMORY


@pytest.mark.parametrize("flags", ["0", "2"])
def test_functions_got_by_address_are_charged_as_well(
    exact: Machine, start_pooler: StartPooler, flags: str
) -> None:
    container = exact.container(LIMIT)
    client = start_pooler(container, RESOLVE=flags)
    pool = value(client, "create", ON_DEVICE, 0, 0)

    first, second = value(client, "async", STEP), value(client, "from", pool, STEP)
    assert container.used_bytes() == 2 * STEP
    assert client.ask("free-async", first) == client.ask("free-async", second) == (0,)
    assert client.ask("sync-stream") == (0,)

    assert container.used_bytes() == 0


def test_forked_child_begins_with_no_pools(exact: Machine, start_pooler: StartPooler) -> None:
    container = exact.container(LIMIT)
    client = start_pooler(container)
    value(client, "async", STEP)

    client.tell("fork")
    assert client.ask("init", 0) == (0,)
    value(client, "async", STEP)
    assert container.used_bytes() == 2 * STEP
    client.tell("exit", 7)
    assert client.answer() == (7,)

    value(client, "async", STEP)
    assert reserved(client, value(client, "default", 0)) == 2 * STEP


def test_32_racing_processes_never_pass_the_limit(
    exact: Machine, start_pooler: StartPooler
) -> None:
    container = exact.container(LIMIT)
    clients = [start_pooler(container) for _ in range(32)]

    for number, client in enumerate(clients):
        client.tell("loop", 0, (number % 4 + 1) * STEP - MIB, 60)
    granted = [client.answer()[1] for client in clients]

    assert sum(granted) > 32
    assert LIMIT - 4 * STEP < exact.peak_bytes() <= LIMIT
    for client in clients:
        assert client.ask("sync") == (0,)
    assert container.used_bytes() == exact.used_bytes() == 0


def test_racing_threads_leave_nothing_behind(exact: Machine, start_pooler: StartPooler) -> None:
    container = exact.container(LIMIT)
    client = start_pooler(container)

    granted = client.ask("race", 16, 2 * STEP, 200)[1]

    assert granted > 200
    assert client.ask("sync") == (0,)
    assert container.used_bytes() == exact.used_bytes() == 0
    assert client.ask("async", LIMIT)[0] == 0


def test_stream_of_another_device_takes_from_that_devices_pool(
    exact: Machine, start_pooler: StartPooler
) -> None:
    container = exact.container(LIMIT, STEP)
    client = start_pooler(container)
    assert client.ask("stream", 1) == (0,)

    address = value(client, "async", STEP)

    assert (container.used_bytes(0), container.used_bytes(1)) == (0, STEP)
    assert client.ask("async", 1)[0] == OUT_OF_MEMORY
    assert client.ask("free-async", address) == (0,)
    assert client.ask("sync-stream") == (0,)
    assert (container.used_bytes(0), container.used_bytes(1)) == (0, 0)


# --- drivers whose pools grow by more or by less ---


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

    value(client, "async", 50 * MIB)
    value(client, "async", 50 * MIB)

    assert container.used_bytes() == machine.peak_bytes() == 100 * MIB
    assert client.ask("async", 1)[0] == OUT_OF_MEMORY


def test_larger_steps_are_charged_when_they_are_seen_and_known_from_then_on(
    stepping: Callable[[int], Machine], start_pooler: StartPooler
) -> None:
    machine = stepping(64 * MIB)
    container = machine.container(100 * MIB)
    client = start_pooler(container)

    value(client, "async", MIB)
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


# --- any sequence of calls, against an oracle ---


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
        handles = value(client, "default", 0), value(client, "create", ON_DEVICE, 0, 0)
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
    model.pools[1] = Pool(value(model.client, "create", ON_DEVICE, 0, 0))


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
