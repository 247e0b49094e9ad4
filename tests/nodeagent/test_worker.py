from __future__ import annotations

import threading

import anyio
import pytest

from hami.errors import DeviceError
from hami.nodeagent.worker import Worker


async def test_result_and_error_of_a_call_reach_its_caller() -> None:
    worker = Worker("test", deadline_seconds=10)

    assert await worker.call(lambda: 41 + 1, "adding") == 42
    with pytest.raises(ValueError, match="nothing"):
        await worker.call(lambda: int("nothing"), "reading")
    assert await worker.call(lambda: "still here", "asking") == "still here"


async def test_calls_run_one_after_the_other_in_one_thread_that_is_not_ours() -> None:
    worker = Worker("test", deadline_seconds=10)
    met: list[threading.Thread] = []

    async with anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(worker.call, lambda: met.append(threading.current_thread()), "x")

    assert len(met) == 20
    assert len(set(met)) == 1
    assert met[0] is not threading.current_thread()


async def test_call_that_hangs_is_given_up_and_further_ones_are_refused_until_it_returns() -> None:
    worker = Worker("driver", deadline_seconds=0.05)
    release = threading.Event()
    returned = threading.Event()

    def hang() -> None:
        release.wait()
        returned.set()

    with pytest.raises(DeviceError, match="hanging: no answer"):
        await worker.call(hang, "hanging")
    with pytest.raises(DeviceError, match="next: driver still hangs in hanging"):
        await worker.call(lambda: None, "next")

    release.set()
    await anyio.to_thread.run_sync(returned.wait)
    assert await after_refusals(worker) == "back"


async def after_refusals(worker: Worker) -> str:
    """The thread marks its call as finished a moment after the call's last line."""
    with anyio.fail_after(10):
        while True:
            try:
                return await worker.call(lambda: "back", "again")
            except DeviceError:
                await anyio.lowlevel.checkpoint()


async def test_hanging_thread_keeps_no_process_from_ending() -> None:
    worker = Worker("driver", deadline_seconds=0.01)
    threads: list[threading.Thread] = []

    def hang() -> None:
        threads.append(threading.current_thread())
        threading.Event().wait(5)

    with pytest.raises(DeviceError):
        await worker.call(hang, "hanging")

    assert all(thread.daemon for thread in threads)
    assert threads


async def test_call_that_somebody_gave_up_early_is_waited_for_and_not_held_against_the_next() -> (
    None
):
    worker = Worker("driver", deadline_seconds=10)
    release = threading.Event()
    with anyio.move_on_after(0.01):
        await worker.call(release.wait, "being slow")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(anyio.to_thread.run_sync, release.set)
        assert await worker.call(lambda: "answer", "next") == "answer"


async def test_cancelled_caller_leaves_the_worker_usable() -> None:
    worker = Worker("test", deadline_seconds=10)
    release = threading.Event()

    with anyio.move_on_after(0.01):
        await worker.call(release.wait, "waiting")
    release.set()

    assert await after_refusals(worker) == "back"
