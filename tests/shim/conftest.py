from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import native
from hami.sandbox.gpu import catalogue
from tests.support.gpu import Client, Container, Machine

PROGRAMS = Path(__file__).parent / "programs"


@pytest.fixture(scope="session", autouse=True)
def built() -> None:
    """The libraries that the tests run are those of the sources."""
    native.build()


@pytest.fixture(scope="session")
def compile_program(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Compiles tests/shim/programs/NAME.c, once per set of flags."""
    directory = tmp_path_factory.mktemp("programs")
    done: dict[tuple[str, ...], Path] = {}

    def compile_one(name: str, *flags: str, output: str | None = None) -> Path:
        key = (name, *flags, output or "")
        if key not in done:
            target = directory / str(len(done)) / (output or name)
            target.parent.mkdir()
            native.compile_c(target, [PROGRAMS / f"{name}.c"], list(flags))
            done[key] = target
        return done[key]

    return compile_one


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    """A node with two H100s."""
    machine = Machine.create(tmp_path, [catalogue.get("h100")] * 2)
    yield machine
    machine.stop()


@pytest.fixture
def start_client(compile_program: Callable[..., Path]) -> Iterator[Callable[..., Client]]:
    """Starts ``client`` processes in a container, initialised on its first device."""
    program = compile_program("client")
    clients: list[Client] = []

    def start(container: Container, *, initialised: bool = True, **env: str) -> Client:
        client = Client(program, {**container.environment, **env})
        clients.append(client)
        if initialised:
            assert client.ask("init", 0) == (0,)
        return client

    yield start
    for client in clients:
        client.stop()


@pytest.fixture
def start_objects() -> Iterator[Callable[..., Client]]:
    """Starts ``objects.py`` processes in a container (a machine: without the shim), initialised on
    its first device."""
    clients: list[Client] = []

    def start(place: Container | Machine, **env: str) -> Client:
        own = place.environment() if isinstance(place, Machine) else place.environment
        program = (sys.executable, "-S", PROGRAMS / "objects.py")
        client = Client(program, {**own, **env})
        clients.append(client)
        assert client.ask("init", 0) == (0,)
        return client

    yield start
    for client in clients:
        client.stop()


@pytest.fixture
def exact(tmp_path: Path) -> Iterator[Machine]:
    """A node with two H100s whose peaks never count the dead."""
    machine = Machine.create(tmp_path, [catalogue.get("h100")] * 2, exact_peaks=True)
    yield machine
    machine.stop()


@pytest.fixture
def start_pooler(compile_program: Callable[..., Path]) -> Iterator[Callable[..., Client]]:
    """Starts ``pooler`` processes in a container (a machine: without the shim), initialised on
    its first device."""
    program = compile_program("pooler", "-pthread")
    clients: list[Client] = []

    def start(place: Container | Machine, **env: str) -> Client:
        own = place.environment() if isinstance(place, Machine) else place.environment
        client = Client(program, {**own, **env})
        clients.append(client)
        assert client.ask("init", 0) == (0,)
        return client

    yield start
    for client in clients:
        client.stop()
