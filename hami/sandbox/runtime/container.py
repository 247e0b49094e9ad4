"""A running container: its pid, its signals and its end, as its monitor reports them.

The monitor is the helper ``sandbox-run``; what it says and obeys stands at the top of its source.
"""

from __future__ import annotations

import asyncio
import re
import signal
import socket
import subprocess
from dataclasses import dataclass
from typing import Final

import anyio

from hami.errors import SandboxError
from hami.sandbox.runtime.spec import StartError

_LINE: Final = re.compile(r"(started|exited|signaled) (\d{1,10})|failed (.*)")
_REAP_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Exit:
    """How a container ended."""

    code: int
    """As container runtimes report it: 128 and the signal's number for one that was killed."""
    signal: int = 0

    @property
    def succeeded(self) -> bool:
        """Whether it ended well."""
        return self.code == 0


class Container:
    """One container that was started. Made by ``Runtime.start``."""

    def __init__(self, name: str, monitor: subprocess.Popen[bytes], control: socket.socket) -> None:
        self.name = name
        self.pid = 0
        """Of its first process, as this machine counts them."""
        self.exit: Exit | None = None
        """How it ended; None while it runs, and until somebody waited for its end."""
        self._monitor = monitor
        self._control = control
        self._buffer = b""
        self._turn = anyio.Lock()

    async def started(self) -> None:
        """Wait until its command runs.

        Raises:
            StartError: It cannot be run, or nothing is known of it any more.
        """
        try:
            word, value = await self._read()
        except SandboxError as error:
            self._close()
            raise StartError(f"container {self.name}: {error}") from error
        if word != "started":
            self._close()
            raise StartError(value)
        self.pid = int(value)

    async def wait(self) -> Exit:
        """Its end. A cancelled wait may be taken up again."""
        async with self._turn:
            if self.exit is None:
                try:
                    word, value = await self._read()
                except SandboxError:
                    # the monitor was killed, and took the container's first process with it
                    word, value = "signaled", str(signal.SIGKILL.value)
                number = int(value)
                self.exit = (
                    Exit(code=number)
                    if word == "exited"
                    else Exit(code=128 + number, signal=number)
                )
                self._close()
            return self.exit

    def terminate(self) -> None:
        """Ask its first process to end (SIGTERM)."""
        self._send(b"t")

    def kill(self) -> None:
        """End all its processes (SIGKILL)."""
        self._send(b"k")

    def abandon(self) -> None:
        """End it before it has started: whoever wanted it no longer waits."""
        self._monitor.kill()
        self._close()

    def _send(self, letter: bytes) -> None:
        if self.exit is None:
            try:
                self._control.send(letter)
            except OSError:
                return  # the monitor has ended; wait() will tell

    async def _read(self) -> tuple[str, str]:
        """The monitor's next word and its value."""
        loop = asyncio.get_running_loop()
        while b"\n" not in self._buffer:
            received = await loop.sock_recv(self._control, 4096)
            if not received:
                raise SandboxError("its monitor ended without a word")
            self._buffer += received
        line, _, self._buffer = self._buffer.partition(b"\n")
        text = line.decode(errors="replace")
        match = _LINE.fullmatch(text)
        if match is None:
            raise SandboxError(f"expected a word of its monitor, met {text!r}")
        if match[3] is not None:
            return "failed", match[3]
        return match[1], match[2]

    def _close(self) -> None:
        """Let go of the monitor, which has nothing more to say and ends at once."""
        self._control.close()
        try:
            self._monitor.wait(_REAP_SECONDS)
        except subprocess.TimeoutExpired:
            self._monitor.kill()
            self._monitor.wait()
