"""The governor over real processes under the real shim, on simulated GPUs."""

from __future__ import annotations

import mmap
import os
import threading
import time
from pathlib import Path

import pytest

from hami.config import NodeAgentSettings
from hami.errors import DeviceError
from hami.nodeagent import region
from hami.nodeagent.governor.loop import Governor
from hami.nodeagent.governor.tenants import OneRegion
from hami.nodeagent.governor.usage import DeviceReading, ProcessMemory
from hami.nodeagent.region import CoreMode, Policy
from hami.nodeagent.region_layout import Usage
from tests.support.governed import ScriptedDriver, eventually, governed
from tests.support.gpus import simulated_gpus

MIB = 2**20


async def test_forced_limit_holds(tmp_path: Path) -> None:
    async with governed(tmp_path) as bench:
        container = bench.container(300, policy=Policy.FORCE)
        container.start()
        container.start()

        await bench.shares({0: 30}, within=2)
        assert bench.of(container).share_permille == 300


async def test_who_is_alone_is_not_paced_and_limits_hold_for_two(tmp_path: Path) -> None:
    async with governed(tmp_path) as bench:
        first = bench.container(200)
        first.start()
        await eventually(lambda: bench.of(first).mode is CoreMode.OFF)
        assert (await bench.use(first))[0] > 60

        second = bench.container(400)
        second.start()

        await bench.shares({0: 20, 1: 40}, within=3)
        second.stop()
        await eventually(lambda: bench.of(first).mode is CoreMode.OFF)


async def test_those_without_a_limit_share_by_weight(tmp_path: Path) -> None:
    async with governed(tmp_path) as bench:
        light, heavy = bench.container(weight=100), bench.container(weight=300)
        for container in (light, heavy):
            container.start()
            container.start()

        await eventually(lambda: bench.of(light).share_permille == 250)
        await bench.shares({0: 25}, within=4)
        assert (await bench.use(heavy))[0] > 50

        light.tenant.control.set_weight(300)
        await eventually(lambda: bench.of(light).share_permille in (499, 500))


async def test_lower_priority_waits_for_the_higher_one(tmp_path: Path) -> None:
    async with governed(tmp_path) as bench:
        first, second = bench.container(priority=0), bench.container(priority=1)
        second.start()
        await eventually(lambda: second.busy_ns() > 0)

        first.start()
        await eventually(lambda: bench.of(second).mode is CoreMode.BLOCK)
        await bench.shares({1: 0}, within=0.1)

        first.stop()
        await eventually(lambda: bench.of(second).mode is CoreMode.OFF)
        before = second.busy_ns()
        await eventually(lambda: second.busy_ns() > before)


async def test_suspended_container_waits_and_goes_on(tmp_path: Path) -> None:
    async with governed(tmp_path) as bench:
        container = bench.container()
        container.start()
        await eventually(lambda: container.busy_ns() > 0)

        container.tenant.suspended = True
        await eventually(lambda: bench.of(container).suspended)
        await bench.shares({0: 0}, within=0.1)

        container.tenant.suspended = False
        before = container.busy_ns()
        await eventually(lambda: container.busy_ns() > before)


async def test_limit_that_is_changed_counts_at_once(tmp_path: Path) -> None:
    async with governed(tmp_path) as bench:
        container = bench.container(600, policy=Policy.FORCE)
        container.start()
        await bench.shares({0: 60}, within=3)

        container.tenant.control.set_core_limit(0, 200)

        await bench.shares({0: 20}, within=2)


async def test_spoilt_bucket_does_not_lift_the_limit(tmp_path: Path) -> None:
    async with governed(tmp_path) as bench:
        container = bench.container(200, policy=Policy.FORCE)
        with emptied_bucket(container.tenant.directory / region.USAGE):
            container.start()

            await eventually(lambda: bench.of(container).held)
            await eventually(lambda: [s.reason for s in bench.suspicions] == ["pace"])

            async def holds() -> bool:
                return (await bench.use(container, seconds=5))[0] < 25

            await eventually(holds)


async def test_suspect_is_suspended_where_that_is_wanted(tmp_path: Path) -> None:
    async with governed(tmp_path, untracked_policy="suspend") as bench:
        container = bench.container(200, policy=Policy.FORCE)
        with emptied_bucket(container.tenant.directory / region.USAGE):
            container.start()

            await eventually(lambda: bench.of(container).suspended)
            await bench.shares({0: 0}, within=0.1)
            assert bench.suspicions[0].suspends


async def test_spoilt_file_is_its_containers_trouble_alone(tmp_path: Path) -> None:
    async with governed(tmp_path) as bench:
        spoilt = bench.container(300, policy=Policy.FORCE)
        whole = bench.container(300, policy=Policy.FORCE)
        whole.start()
        os.truncate(spoilt.tenant.directory / region.USAGE, 10)

        await eventually(lambda: bench.governor.counts.tenant_errors > 2)
        await bench.shares({1: 30}, within=2)
        assert bench.of(spoilt).mode is CoreMode.LIMIT


async def test_driver_that_fails_leaves_the_rates(tmp_path: Path) -> None:
    driver = ScriptedDriver(error=DeviceError("it hangs"))
    async with governed(tmp_path, driver=driver) as bench:
        container = bench.container(300, policy=Policy.FORCE)
        container.start()

        await eventually(lambda: bench.governor.counts.driver_errors > 2)
        await bench.shares({0: 30}, within=6)
        assert bench.governor.counts.ticks > 2


async def test_driver_that_cannot_measure_time_leaves_the_shims_word(tmp_path: Path) -> None:
    uuid = simulated_gpus().uuids[0]
    driver = ScriptedDriver({uuid: DeviceReading(error="not supported")})
    async with governed(tmp_path, driver=driver) as bench:
        container = bench.container(300, policy=Policy.FORCE)
        container.start()

        def guessed() -> bool:
            use = bench.of(container).use_permille
            return use is not None and 200 < use < 400

        await eventually(guessed)
        await bench.shares({0: 30}, within=6)


async def test_memory_that_no_hook_saw_counts(tmp_path: Path) -> None:
    driver = ScriptedDriver()
    async with governed(tmp_path, driver=driver, governor_memory_seconds=0.01) as bench:
        container = bench.container()
        pid = container.start(mode="memory", size=10 * MIB)
        driver.readings = {
            bench.gpus.uuids[0]: DeviceReading(
                samples=(), processes=(ProcessMemory(pid=pid, used_bytes=110 * MIB),)
            )
        }

        await eventually(lambda: container.tenant.control.control.devices[0].untracked_bytes > 0)

        assert container.tenant.control.control.devices[0].untracked_bytes == 100 * MIB
        assert bench.of(container).untracked_bytes == 100 * MIB
        assert not bench.suspicions


async def test_memory_far_beyond_what_hooks_saw_is_told(tmp_path: Path) -> None:
    driver = ScriptedDriver()
    async with governed(
        tmp_path, driver=driver, governor_memory_seconds=0.01, untracked_limit=50
    ) as bench:
        container = bench.container()
        pid = container.start(mode="memory", size=10 * MIB)
        driver.readings = {
            bench.gpus.uuids[0]: DeviceReading(
                samples=(), processes=(ProcessMemory(pid=pid, used_bytes=110 * MIB),)
            )
        }

        await eventually(lambda: [s.reason for s in bench.suspicions] == ["memory"])


async def test_next_governor_goes_on_where_the_last_one_stopped(tmp_path: Path) -> None:
    region.create(
        tmp_path,
        devices=[region.RegionDevice(uuid="GPU-a", core_limit_permille=300)],
        policy=Policy.FORCE,
    )
    source = OneRegion(tmp_path)
    control = source.tenant.control
    control.set_pace(0, ns_per_second=600_000_000, burst_ns=5, now_ns=time.monotonic_ns())
    granted = control.granted(0, time.monotonic_ns())

    await Governor(source, ScriptedDriver(), NodeAgentSettings()).tick()

    assert control.rate(0) == pytest.approx(600_000_000, rel=0.01)  # twice the share: as was learnt
    assert control.granted(0, time.monotonic_ns()) >= granted
    source.tenant.close()


async def test_region_is_paced_before_any_governor_saw_it(tmp_path: Path) -> None:
    gpus = simulated_gpus()
    device = region.RegionDevice(uuid=gpus.uuids[0], core_limit_permille=300)
    region.create(tmp_path, devices=[device])

    control = OneRegion(tmp_path).tenant.control

    assert control.core_mode(0) is CoreMode.LIMIT
    assert control.rate(0) == 300_000_000
    assert control.control.pulse & 1


class emptied_bucket:  # noqa: N801 - a context manager
    """While the block runs, the device time that was taken is set to zero all the time."""

    def __init__(self, usage: Path) -> None:
        self._usage = usage
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _work(self) -> None:
        with self._usage.open("r+b") as file, mmap.mmap(file.fileno(), 0) as content:
            start = Usage.buckets.offset
            while not self._stop.wait(0.0005):
                content[start : start + 8] = bytes(8)
