"""Failures on purpose: which requests go wrong, how, and how often.

Tests add rules; the server asks for each request whether one applies. Chance comes from a seeded
generator, so that a failing run can be repeated.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

import anyio

from hami.errors import SandboxError
from hami.sandbox.apiserver.answers import StatusError
from hami.sandbox.apiserver.requests import Target

_REASONS: Final = {
    400: "BadRequest",
    401: "Unauthorized",
    403: "Forbidden",
    404: "NotFound",
    409: "Conflict",
    410: "Expired",
    429: "TooManyRequests",
    500: "InternalError",
    503: "ServiceUnavailable",
    504: "Timeout",
}


class Drop(StrEnum):
    """When a connection is cut without an answer."""

    BEFORE = "before the request is handled"
    AFTER = "after it was handled: the write happened, the client cannot know"
    EARLY = "at once, and the request is handled ``delay_seconds`` later all the same"


class Distortion(StrEnum):
    """What becomes of a watch."""

    TRUNCATE = "a line is cut in the middle and the connection with it"
    MALFORM = "one line is no JSON; the stream goes on"
    SILENCE = "no more lines come, and no end either"
    DUPLICATE = "every line comes twice"
    END = "the stream ends, as if its time were up"


@dataclass(slots=True, kw_only=True)
class Fault:
    """One rule. An empty verb, resource or name fits all."""

    verb: str = ""
    resource: str = ""
    """``pods`` or ``pods/binding``."""
    name: str = ""
    """The name in the URL; a create has none."""
    times: int | None = None
    """How often it applies; None for always."""
    probability: float = 1.0
    delay_seconds: float = 0.0
    status: int = 0
    """The HTTP status to refuse with; 0 to refuse nothing."""
    retry_after_seconds: int | None = None
    drop: Drop | None = None
    distortion: Distortion | None = None
    after_lines: int = 0
    """How many lines of a watch pass before the distortion or each line's delay begins."""
    hits: int = field(default=0, init=False)

    def fits(self, target: Target) -> bool:
        """Whether the rule is about such a request and not used up."""
        return (
            self.verb in ("", target.verb)
            and self.resource in ("", target.resource)
            and self.name in ("", target.name)
            and (self.times is None or self.hits < self.times)
        )

    def refusal(self) -> StatusError:
        """The answer that the rule gives in place of the real one."""
        return StatusError(
            self.status,
            _REASONS.get(self.status, ""),
            "injected fault",
            retry_after_seconds=self.retry_after_seconds,
        )


class Faults:
    """The rules in force."""

    def __init__(self, *, seed: int = 0, forget_changes: Callable[[], None]) -> None:
        self._random = random.Random(seed)
        self._rules: list[Fault] = []
        self._streams: set[asyncio.Transport] = set()
        self._down_until = 0.0
        self.forget_changes = forget_changes
        """Empties the logs of changes: whoever goes on from an earlier version meets 410."""

    def add(self, fault: Fault) -> Fault:
        """Put a rule in force; of several that fit, the first added applies."""
        self._rules.append(fault)
        return fault

    def remove(self, fault: Fault) -> None:
        """Take a rule out of force."""
        self._rules.remove(fault)

    def clear(self) -> None:
        """Take all rules out of force, and be up."""
        self._rules.clear()
        self._down_until = 0.0

    def take_down(self, seconds: float) -> None:
        """Cut all connections that watch, and every new one for so long."""
        self._down_until = asyncio.get_running_loop().time() + seconds
        self.drop_streams()

    def drop_streams(self) -> None:
        """Cut the connections of all watches and followed logs."""
        for transport in tuple(self._streams):
            transport.abort()

    def is_down(self) -> bool:
        """Whether connections are being cut."""
        return asyncio.get_running_loop().time() < self._down_until

    def find(self, target: Target) -> Fault | None:
        """The rule that applies to this request, counted as applied; None where none does."""
        for fault in self._rules:
            if fault.fits(target) and self._random.random() < fault.probability:
                fault.hits += 1
                return fault
        return None

    def open_stream(self, transport: asyncio.Transport) -> None:
        """Remember a connection that streams."""
        self._streams.add(transport)

    def close_stream(self, transport: asyncio.Transport) -> None:
        """Forget it."""
        self._streams.discard(transport)


class ConnectionDroppedError(SandboxError):
    """The connection is to be cut here and now."""


async def distort(
    chunks: AsyncGenerator[list[bytes], None], fault: Fault
) -> AsyncGenerator[list[bytes], None]:
    """The lines of a watch as the fault lets them through; may raise ConnectionDroppedError."""
    passed = 0
    async with aclosing(chunks):
        async for lines in chunks:
            for line in lines:
                passed += 1
                if passed <= fault.after_lines:
                    yield [line]
                    continue
                await anyio.sleep(fault.delay_seconds)
                if fault.distortion is Distortion.END:
                    return
                if fault.distortion is Distortion.SILENCE:
                    await anyio.sleep_forever()
                yield _distorted(line, fault, is_first=passed == fault.after_lines + 1)
                if fault.distortion is Distortion.TRUNCATE:
                    raise ConnectionDroppedError("a line of the watch was cut")


def _distorted(line: bytes, fault: Fault, *, is_first: bool) -> list[bytes]:
    match fault.distortion:
        case Distortion.DUPLICATE:
            return [line, line]
        case Distortion.MALFORM if is_first:
            return [b'{"type":"ADDED","obj\n']
        case Distortion.TRUNCATE:
            return [line[: len(line) // 2]]
    return [line]
