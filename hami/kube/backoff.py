"""How long to wait before another try, as data; and the helper that tries again.

Delays have full jitter: each is drawn evenly between nothing and a ceiling that doubles, so that
thousands of clients that lost one server do not come back as one wave. Randomness, clock and sleep
are arguments.
"""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

import anyio

from hami.errors import ThrottledError, UnavailableError
from hami.logs import get_logger

log = get_logger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """A sequence of ceilings: ``base``, ``base * factor``, … up to ``cap``."""

    base_seconds: float = 0.2
    factor: float = 2.0
    cap_seconds: float = 30.0
    reset_after_seconds: float = 60.0
    """This long without a failure, and the sequence begins again."""

    def ceiling(self, attempt: int) -> float:
        """Longest delay after the given failure; the first is 0."""
        exponent = min(attempt, 64)  # beyond that any factor has met its cap, or a float's end
        return min(self.cap_seconds, self.base_seconds * self.factor**exponent)


class Delays:
    """One run through a ``Backoff``: the delay after each failure, starting over after a calm."""

    def __init__(
        self,
        backoff: Backoff,
        *,
        uniform: Callable[[], float] = random.random,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._backoff = backoff
        self._uniform = uniform
        self._clock = clock
        self._attempt = 0
        self._calm_from = clock()

    def after_failure(self, *, at_least_seconds: float = 0.0) -> float:
        """Seconds to wait now; a server's own wish (Retry-After) is kept up to the cap."""
        now = self._clock()
        if now - self._calm_from >= self._backoff.reset_after_seconds:
            self._attempt = 0
        ceiling = self._backoff.ceiling(self._attempt)
        self._attempt += 1
        delay = self._uniform() * ceiling
        if at_least_seconds > 0:
            delay += min(at_least_seconds, self._backoff.cap_seconds)
        self._calm_from = now + delay
        return delay


QUICK = Backoff(base_seconds=0.1, cap_seconds=2.0)
"""For a request that somebody waits for."""


async def retrying(
    call: Callable[[], Awaitable[T]],
    what: str,
    *,
    attempts: int = 4,
    backoff: Backoff = QUICK,
    uniform: Callable[[], float] = random.random,
    sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
) -> T:
    """The first success of ``call``, which is made up to ``attempts`` times.

    Tries again only where the same request may succeed later (no answer, 5xx, 429). A request that
    failed without an answer may have been carried out: ``call`` must carry a precondition or be
    harmless when made twice.

    Raises:
        UnavailableError, ThrottledError: The last attempt's failure.
        KubeError: Any other answer, at once.
    """
    delays = Delays(backoff, uniform=uniform)
    for attempt in range(1, attempts):
        try:
            return await call()
        except (UnavailableError, ThrottledError) as error:
            wish = error.retry_after_seconds if isinstance(error, ThrottledError) else None
            delay = delays.after_failure(at_least_seconds=wish or 0.0)
            log.info("request_retried", what=what, attempt=attempt, seconds=delay, error=str(error))
            await sleep(delay)
    return await call()
