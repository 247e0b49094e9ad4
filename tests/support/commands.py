"""Commands of this project as processes of their own, for tests that kill them and for timings."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from hami.config import Settings

ROOT = Path(__file__).parents[2]
START_SECONDS = 60.0


@dataclass(slots=True, kw_only=True)
class Process:
    """A running command, whose log lines are collected."""

    process: asyncio.subprocess.Process
    lines: list[dict[str, object]] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def logged(self, event: str) -> dict[str, object]:
        """The first log line of this event, now or later."""
        async with asyncio.timeout(START_SECONDS):
            while True:
                for line in self.lines:
                    if line.get("event") == event:
                        return line
                assert not self.ended, f"ended with {self.process.returncode}: {self.lines[-5:]}"
                self.changed.clear()
                await self.changed.wait()

    @property
    def ended(self) -> bool:
        return self.process.returncode is not None and self.process.stderr is not None

    async def wait(self) -> int:
        async with asyncio.timeout(START_SECONDS):
            return await self.process.wait()

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)


@asynccontextmanager
async def command(
    name: str,
    settings: Settings,
    directory: Path,
    *,
    environment: Mapping[str, str] | None = None,
    arguments: Sequence[str] = (),
) -> AsyncIterator[Process]:
    """``hami NAME`` with these settings, which log as JSON; killed at the end if it still runs."""
    file = directory / f"{name}.yaml"
    file.write_bytes(msgspec.yaml.encode(settings))
    started = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "hami", name, "--config", str(file), *arguments,
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
        stderr=asyncio.subprocess.PIPE,
        limit=16 * 1024 * 1024,
    )  # fmt: skip
    process = Process(process=started)
    reader = asyncio.create_task(_collect(process))
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            started.kill()
        await started.wait()
        await reader


async def _collect(process: Process) -> None:
    assert process.process.stderr is not None
    async for line in process.process.stderr:
        try:
            process.lines.append(msgspec.json.decode(line, type=dict[str, object]))
        except msgspec.DecodeError:
            process.lines.append({"event": "text", "text": line.decode(errors="replace")})
        process.changed.set()
    process.changed.set()
