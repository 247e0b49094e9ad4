"""Every law holds whatever goes wrong: a controller in this process against random faults."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from hami.sandbox.apiserver import ApiServer
from tests.faults import machine
from tests.faults.machine import Machine
from tests.support.controller import Controller, running

pytestmark = pytest.mark.faults


@dataclass(kw_only=True)
class InProcess:
    """A controller that is stopped in order."""

    controller: Controller

    def is_alive(self) -> bool:
        return True

    def trouble(self) -> None:
        return

    def calm(self) -> None:
        return

    def end(self) -> None:
        return


async def live(directory: Path, *, steps: int, mode: str) -> None:
    chosen = machine.seed()
    async with ApiServer(fault_seed=chosen).running() as server:
        settings = machine.settings_of(server, directory, mode=mode)

        @asynccontextmanager
        async def opened(_: bool) -> AsyncIterator[InProcess]:
            async with running(settings) as controller:
                yield InProcess(controller=controller)

        afternoon = Machine(server=server, seed=chosen, open_controller=opened, steps=steps)
        await afternoon.run()
        print(afternoon.said())


async def test_a_few_hundred_steps(tmp_path: Path) -> None:
    await live(tmp_path, steps=300, mode="cooperative")


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("mode", ["cooperative", "exclusive"])
async def test_thousands_of_steps(tmp_path: Path, mode: str) -> None:
    await live(tmp_path, steps=1500, mode=mode)
