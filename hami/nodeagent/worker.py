"""A thread for calls that block and may never come back, such as those into a driver.

Owns one daemon thread. A call that hangs is given up after its deadline, and until it returns every
further call is refused at once: one stuck thread is the most a broken driver costs, and it never
keeps the process from ending. (A pool would lose a thread to each try, and wait for all at exit.)
A call whose caller lost patience earlier is no reason to refuse: the next one waits for its end.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

import anyio

from hami.errors import DeviceError

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job(Generic[T]):
    function: Callable[[], T]
    what: str
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[T]
    deadline: float
    """By the loop's clock."""
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    def run(self) -> None:
        """Run in the thread, and hand over the outcome to whoever may still be waiting."""
        try:
            result = self.function()
        except Exception as error:  # raised again where the result was asked for
            failure = error
            self._tell(lambda: self.future.set_exception(failure))
        else:
            self._tell(lambda: self.future.set_result(result))

    def _tell(self, settle: Callable[[], None]) -> None:
        def end() -> None:
            self.ended.set()
            if not self.future.done():  # else it was given up
                settle()

        with contextlib.suppress(RuntimeError):  # the loop has closed: nobody waits
            self.loop.call_soon_threadsafe(end)

    async def wait(self) -> bool:
        """Whether it has ended, by its deadline at the latest."""
        if not self.ended.is_set():
            with anyio.move_on_after(self.deadline - self.loop.time()):
                await self.ended.wait()
        return self.ended.is_set()


class Worker:
    """Runs one blocking call at a time, each with a deadline."""

    def __init__(self, name: str, *, deadline_seconds: float) -> None:
        self._name = name
        self._deadline_seconds = deadline_seconds
        self._jobs: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._turn = anyio.Lock()
        self._thread: threading.Thread | None = None
        self._last: _Job[Any] | None = None

    async def call(self, function: Callable[[], T], what: str, *, extra_seconds: float = 0.0) -> T:
        """The function's result, computed in the thread.

        Args:
            function: What to call; its exceptions are raised here.
            what: For messages.
            extra_seconds: Added to the deadline, for calls that wait on purpose.

        Raises:
            DeviceError: No result within the deadline, or an earlier call still hangs.
        """
        async with self._turn:
            if self._last is not None and not await self._last.wait():
                raise DeviceError(f"{what}: {self._name} still hangs in {self._last.what}")
            loop = asyncio.get_running_loop()
            future: asyncio.Future[T] = loop.create_future()
            seconds = self._deadline_seconds + extra_seconds
            self._last = _Job(
                function=function,
                what=what,
                loop=loop,
                future=future,
                deadline=loop.time() + seconds,
            )
            self._submit(self._last.run)
            try:
                with anyio.fail_after(seconds):
                    return await future
            except TimeoutError as error:
                raise DeviceError(f"{what}: no answer within {seconds:g} s") from error

    def _submit(self, run: Callable[[], None]) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name=self._name, daemon=True)
            self._thread.start()
        self._jobs.put(run)

    def _work(self) -> None:
        while True:
            self._jobs.get()()
