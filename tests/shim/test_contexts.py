"""What a context takes of a device counts before it is made, and until it is gone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hami.nodeagent import region
from hami.nodeagent.controlfile import ControlFile
from hami.sandbox.gpu import catalogue
from tests.support.gpu import MIB, OUT_OF_MEMORY, Client, Container, Machine

StartObjects = Callable[..., Client]

CONTEXT = 300 * MIB
LIMIT = 1000 * MIB


@pytest.fixture
def exact(tmp_path: Path) -> Iterator[Machine]:
    """Where contexts take memory."""
    gpus = [catalogue.get("h100")]
    machine = Machine.create(tmp_path, gpus, exact_peaks=True, context_bytes=CONTEXT)
    yield machine
    machine.stop()


@pytest.fixture
def container(exact: Machine) -> Container:
    """Where the agent has learnt what a context takes."""
    container = exact.container(LIMIT)
    with ControlFile(container.directory) as control:
        control.set_context(0, CONTEXT)
    return container


def contexts(container: Container) -> int:
    """What the slots say of contexts."""
    use = region.read_usage(container.directory)
    return sum(process.devices[0].context_bytes for process in use.processes)


def test_primary_context_counts_once_until_its_last_release(
    container: Container, start_objects: StartObjects
) -> None:
    client = start_objects(container)
    assert container.used_bytes() == contexts(container) == CONTEXT

    client.value("primary")
    assert container.used_bytes() == CONTEXT
    assert client.ask("info") == (0, LIMIT - CONTEXT, LIMIT)

    assert client.ask("unprimary") == (0,)
    assert container.used_bytes() == CONTEXT
    assert client.ask("unprimary") == (0,)
    assert container.used_bytes() == contexts(container) == 0


@pytest.mark.parametrize("version", [2, 3, 4])
def test_each_further_context_counts(
    container: Container, start_objects: StartObjects, version: int
) -> None:
    client = start_objects(container)

    made = client.value("context", version)

    assert container.used_bytes() == contexts(container) == 2 * CONTEXT
    assert client.ask("destroy", made) == (0,)
    assert container.used_bytes() == contexts(container) == CONTEXT


def test_context_that_does_not_fit_is_refused_and_the_driver_not_asked(
    exact: Machine, container: Container, start_objects: StartObjects
) -> None:
    client = start_objects(container)
    client.alloc(LIMIT - 2 * CONTEXT + MIB)
    before = exact.used_bytes()

    assert client.ask("context")[0] == OUT_OF_MEMORY
    assert container.used_bytes() == LIMIT - CONTEXT + MIB
    assert exact.used_bytes() == before


def test_context_that_the_driver_refuses_is_not_charged(
    container: Container, start_objects: StartObjects
) -> None:
    client = start_objects(container, HAMI_SIM_FAULTS="cuCtxCreate_v2:1=999")

    assert client.ask("context")[0] == 999
    assert container.used_bytes() == CONTEXT
    assert client.ask("destroy", 12345)[0] != 0
    assert container.used_bytes() == CONTEXT


def test_reset_takes_the_memory_and_leaves_the_context_that_others_hold(
    exact: Machine, container: Container, start_objects: StartObjects
) -> None:
    client = start_objects(container)
    client.alloc(100 * MIB)

    assert client.ask("reset") == (0,)

    assert container.used_bytes() == contexts(container) == CONTEXT
    assert exact.used_bytes() == CONTEXT
    assert client.ask("unprimary") == (0,)
    assert container.used_bytes() == exact.used_bytes() == 0


def test_context_made_before_its_size_was_known_is_left_to_the_agent(
    exact: Machine, start_objects: StartObjects
) -> None:
    container = exact.container(LIMIT)
    first = start_objects(container)
    assert container.used_bytes() == 0
    with ControlFile(container.directory) as control:
        control.set_context(0, CONTEXT)

    second = start_objects(container)

    assert container.used_bytes() == CONTEXT
    assert first.ask("unprimary") == (0,)
    assert container.used_bytes() == CONTEXT
    with ControlFile(container.directory) as control:
        control.set_context(0, CONTEXT // 2)
    assert second.ask("unprimary") == (0,)
    assert container.used_bytes() == 0


def test_processes_that_make_contexts_at_once_never_pass_the_limit(
    container: Container, start_objects: StartObjects
) -> None:
    clients = [start_objects(container, CUDA_VISIBLE_DEVICES="0") for _ in range(3)]
    for client in clients:
        client.tell("context")
    results = sorted(client.answer()[0] for client in clients)

    assert results == [OUT_OF_MEMORY] * 3
    assert container.used_bytes() == 3 * CONTEXT <= LIMIT


def test_threads_that_retain_and_release_at_once_leave_one_charge(
    container: Container, start_objects: StartObjects
) -> None:
    client = start_objects(container)
    assert client.ask("unprimary") == (0,)

    assert client.ask("crowd", 300, 4) == (0,)
    client.value("primary")

    assert container.used_bytes() == contexts(container) == CONTEXT
