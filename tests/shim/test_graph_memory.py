"""Graphs that allocate: charged with what the driver reserves, announced before they run."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.gpu import MIB, OUT_OF_MEMORY, Client, Machine

StartPooler = Callable[..., Client]

STEP = 32 * MIB
LIMIT = 320 * MIB
USED, RESERVED, RESERVED_HIGH = 0, 2, 3
AUTO_FREE, UPLOAD = 1, 2
OLD, SECOND, WITH_FLAGS, WITH_PARAMS = 1, 2, 3, 4


def build(client: Client, *sizes: int, freed: bool = True, device: int = 0) -> list[int]:
    """A chain that allocates all sizes and then frees them; the addresses."""
    assert client.ask("graph") == (0,)
    addresses = [client.value("node-alloc", size, device, 0) for size in sizes]
    for address in addresses if freed else ():
        assert client.ask("node-free", address) == (0,)
    return addresses


def executable(client: Client, *sizes: int, form: int = WITH_FLAGS, flags: int = 0) -> int:
    build(client, *sizes)
    return client.value("instantiate", form, flags)


# --- the simulated driver ---


def test_reserve_of_graphs_grows_at_the_launch_and_goes_when_it_is_trimmed(
    exact: Machine, start_pooler: StartPooler
) -> None:
    plain = start_pooler(exact)
    graph = executable(plain, 40 * MIB)
    assert exact.used_bytes() == 0

    assert plain.ask("launch", graph) == (0,)

    assert plain.value("graph-memory", 0, USED) == 0
    assert plain.value("graph-memory", 0, RESERVED) == exact.used_bytes() == 2 * STEP
    assert plain.ask("trim-graphs", 0) == (0,)
    assert plain.value("graph-memory", 0, RESERVED_HIGH) == 2 * STEP
    assert exact.used_bytes() == 0


def test_nodes_that_follow_a_free_have_its_memory(
    exact: Machine, start_pooler: StartPooler
) -> None:
    plain = start_pooler(exact)
    assert plain.ask("graph") == (0,)
    for _ in range(3):
        assert plain.ask("node-free", plain.value("node-alloc", STEP, 0, 0)) == (0,)

    assert plain.ask("launch", plain.value("instantiate", WITH_FLAGS, 0)) == (0,)

    assert exact.peak_bytes() == STEP


def test_what_a_graph_leaves_allocated_is_freed_by_the_program_or_by_the_next_launch(
    exact: Machine, start_pooler: StartPooler
) -> None:
    plain = start_pooler(exact)
    (address,) = build(plain, STEP, freed=False)
    graph = plain.value("instantiate", WITH_FLAGS, 0)
    assert plain.ask("launch", graph) == (0,)
    assert plain.ask("launch", graph) == (1,)
    assert plain.ask("free-async", address) == (0,)
    assert plain.ask("launch", graph) == (0,)
    assert plain.value("graph-memory", 0, USED) == STEP

    freeing = plain.value("instantiate", WITH_FLAGS, AUTO_FREE)

    assert plain.ask("launch", freeing) == (0,)
    assert plain.value("graph-memory", 0, USED) == STEP


def test_allocations_of_a_captured_stream_become_nodes(
    exact: Machine, start_pooler: StartPooler
) -> None:
    plain = start_pooler(exact)
    assert plain.ask("capture") == (0,)
    assert plain.ask("free-async", plain.value("async", STEP)) == (0,)
    assert plain.ask("end-capture") == (0,)
    assert exact.used_bytes() == 0

    assert plain.ask("launch", plain.value("instantiate", WITH_FLAGS, 0)) == (0,)

    assert exact.used_bytes() == STEP


# --- the shim over it ---


@pytest.mark.parametrize("form", [OLD, SECOND, WITH_FLAGS, WITH_PARAMS])
def test_launch_is_charged_with_what_it_reserves(
    exact: Machine, start_pooler: StartPooler, form: int
) -> None:
    container = exact.container(LIMIT)
    client = start_pooler(container)
    graph = executable(client, 40 * MIB, form=form)
    assert container.used_bytes() == 0

    assert client.ask("launch", graph) == (0,)
    assert container.used_bytes() == 2 * STEP
    assert client.ask("info") == (0, LIMIT - 2 * STEP, LIMIT)
    assert client.ask("nvml", container.uuids[0]) == (0, LIMIT - 2 * STEP, LIMIT, 2 * STEP)

    assert client.ask("launch", graph) == (0,)
    assert container.used_bytes() == 2 * STEP
    assert client.ask("trim-graphs", 0) == (0,)
    assert container.used_bytes() == exact.used_bytes() == 0


@pytest.mark.parametrize("order", ["launch", "upload"])
def test_graph_that_does_not_fit_is_not_run(
    exact: Machine, start_pooler: StartPooler, order: str
) -> None:
    container = exact.container(LIMIT)
    client = start_pooler(container)
    graph = executable(client, LIMIT, STEP)

    assert client.ask(order, graph) == (OUT_OF_MEMORY,)

    assert container.used_bytes() == exact.peak_bytes() == 0
    assert client.ask(order, executable(client, LIMIT)) == (0,)
    assert container.used_bytes() == exact.peak_bytes() == LIMIT


def test_graph_that_is_uploaded_at_once_is_judged_at_once(
    exact: Machine, start_pooler: StartPooler
) -> None:
    container = exact.container(LIMIT)
    client = start_pooler(container)

    build(client, LIMIT + 1)
    assert client.ask("instantiate", WITH_FLAGS, UPLOAD)[0] == OUT_OF_MEMORY
    assert client.ask("instantiate", WITH_PARAMS, UPLOAD)[0] == OUT_OF_MEMORY
    executable(client, STEP, form=WITH_PARAMS, flags=UPLOAD)

    assert container.used_bytes() == STEP


def test_chain_that_frees_as_it_goes_needs_only_what_is_live_at_once(
    exact: Machine, start_pooler: StartPooler
) -> None:
    container = exact.container(LIMIT)
    client = start_pooler(container)
    assert client.ask("graph") == (0,)
    for _ in range(20):
        assert client.ask("node-free", client.value("node-alloc", LIMIT - STEP, 0, 0)) == (0,)

    assert client.ask("launch", client.value("instantiate", WITH_FLAGS, 0)) == (0,)

    assert container.used_bytes() == exact.peak_bytes() == LIMIT - STEP


def test_graph_that_ran_before_runs_again_though_nothing_else_fits(
    exact: Machine, start_pooler: StartPooler
) -> None:
    client = start_pooler(exact.container(LIMIT))
    graph = executable(client, LIMIT - STEP)
    assert client.ask("launch", graph) == (0,)
    client.value("alloc", STEP)

    for _ in range(3):
        assert client.ask("launch", graph) == (0,)

    assert exact.peak_bytes() == LIMIT


@pytest.mark.parametrize("order", ["alloc", "async"])
def test_unused_reserve_of_graphs_goes_before_a_request_is_refused(
    exact: Machine, start_pooler: StartPooler, order: str
) -> None:
    container = exact.container(LIMIT)
    client = start_pooler(container)
    graph = executable(client, LIMIT)
    assert client.ask("launch", graph) == (0,)

    address = client.value(order, LIMIT)

    assert client.value("graph-memory", 0, RESERVED) == 0
    assert client.ask("launch", graph) == (OUT_OF_MEMORY,)
    assert client.ask("free", address) == (0,)
    assert client.ask("launch", graph) == (0,)
    assert exact.peak_bytes() == LIMIT


def test_memory_of_a_child_graph_counts_as_well(exact: Machine, start_pooler: StartPooler) -> None:
    container = exact.container(LIMIT)
    client = start_pooler(container)
    build(client, LIMIT, STEP)
    assert client.ask("wrap") == (0,)
    assert client.ask("launch", client.value("instantiate", WITH_FLAGS, 0)) == (OUT_OF_MEMORY,)

    build(client, LIMIT)
    assert client.ask("wrap") == (0,)
    assert client.ask("launch", client.value("instantiate", WITH_FLAGS, 0)) == (0,)

    assert container.used_bytes() == exact.peak_bytes() == LIMIT


def test_node_of_another_device_counts_there(exact: Machine, start_pooler: StartPooler) -> None:
    container = exact.container(LIMIT, STEP)
    client = start_pooler(container)
    build(client, STEP, device=1)

    assert client.ask("launch", client.value("instantiate", WITH_FLAGS, 0)) == (0,)
    assert (container.used_bytes(0), container.used_bytes(1)) == (0, STEP)

    build(client, STEP + 1, device=1)
    assert client.ask("launch", client.value("instantiate", WITH_FLAGS, 0)) == (OUT_OF_MEMORY,)
    assert (exact.peak_bytes(0), exact.peak_bytes(1)) == (0, STEP)


def test_capture_charges_nothing_and_its_launch_does(
    exact: Machine, start_pooler: StartPooler
) -> None:
    container = exact.container(LIMIT)
    client = start_pooler(container)
    client.value("alloc", LIMIT)

    assert client.ask("capture") == (0,)
    address = client.value("async", STEP)
    assert client.ask("free-async", address) == (0,)
    assert client.ask("end-capture") == (0,)
    graph = client.value("instantiate", WITH_FLAGS, 0)
    assert container.used_bytes() == LIMIT

    assert client.ask("launch", graph) == (OUT_OF_MEMORY,)


def test_memory_of_graphs_goes_with_the_context(exact: Machine, start_pooler: StartPooler) -> None:
    container = exact.container(LIMIT)
    client = start_pooler(container)
    build(client, LIMIT, freed=False)
    assert client.ask("launch", client.value("instantiate", WITH_FLAGS, 0)) == (0,)

    assert client.ask("reset") == (0,)

    assert container.used_bytes() == exact.used_bytes() == 0


def test_graph_without_memory_is_launched_though_there_is_none(
    exact: Machine, start_pooler: StartPooler
) -> None:
    client = start_pooler(exact.container(0))
    assert client.ask("graph") == (0,)
    graph = client.value("instantiate", WITH_FLAGS, 0)

    assert client.ask("launch", graph) == (0,)
    assert client.ask("drop", graph) == (0,)


def test_container_whose_limits_cannot_be_read_launches_no_graph_that_allocates(
    exact: Machine, start_pooler: StartPooler
) -> None:
    container = exact.container(LIMIT)
    (container.directory / "control").write_bytes(b"foreign")
    client = start_pooler(container)
    graph = executable(client, 1)

    assert client.ask("launch", graph) == (OUT_OF_MEMORY,)


@pytest.mark.parametrize("flags", ["0", "2"])
def test_functions_got_by_address_are_charged_as_well(
    exact: Machine, start_pooler: StartPooler, flags: str
) -> None:
    container = exact.container(STEP)
    client = start_pooler(container, RESOLVE=flags)
    fitting, other = executable(client, STEP, form=WITH_PARAMS), executable(client, STEP + 1)

    assert client.ask("launch", fitting) == (0,)
    assert container.used_bytes() == STEP
    assert client.ask("launch", other) == (OUT_OF_MEMORY,)
    assert exact.peak_bytes() == STEP


@given(
    script=st.lists(
        st.tuples(st.sampled_from(["run", "trim", "alloc", "free"]), st.integers(0, 12)),
        max_size=30,
    )
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
def test_limit_is_never_passed_and_nothing_is_refused_that_fits(
    exact: Machine, start_pooler: StartPooler, script: list[tuple[str, int]]
) -> None:
    """Graphs of one chain, each of its own size, beside plain memory."""
    container = exact.container(LIMIT, name=f"run-{len(list(exact.path.iterdir()))}")
    client = start_pooler(container)
    graphs = [executable(client, size * STEP) for size in range(1, 13)]
    reserved = 0
    plain: list[tuple[int, int]] = []
    for order, number in script:
        held = sum(size for _, size in plain)
        if order == "run":
            size = (number % 12 + 1) * STEP
            if max(size, reserved) + held > LIMIT:  # what is unused goes, perhaps in vain
                reserved = 0
            fits = size + held <= LIMIT
            assert client.ask("launch", graphs[number % 12]) == (0 if fits else OUT_OF_MEMORY,)
            reserved = max(reserved, size) if fits else 0
        elif order == "trim":
            assert client.ask("trim-graphs", 0) == (0,)
            reserved = 0
        elif order == "alloc":
            size = (number + 1) * 16 * MIB
            if reserved + size + held > LIMIT:
                reserved = 0
            fits = size + held <= LIMIT
            outcome, address = client.ask("alloc", size)
            assert outcome == (0 if fits else OUT_OF_MEMORY)
            if fits:
                plain.append((address, size))
        elif plain:
            address, _ = plain.pop(number % len(plain))
            assert client.ask("free", address) == (0,)
        assert container.used_bytes() == reserved + sum(size for _, size in plain)
    client.stop()
    assert exact.peak_bytes() <= LIMIT
