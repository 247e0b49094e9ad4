"""Named places at which a test may kill this process, to prove that nothing is lost there.

A crash point costs one comparison and does nothing unless armed. Processes arm one from the
environment at their start (``HAMI_CRASH_AT``); the modules that own the steps list their names.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Collection

from hami.errors import ConfigError

ENV = "HAMI_CRASH_AT"

_armed: list[str] = []


def arm(name: str | None, *, known: Collection[str]) -> None:
    """Make the named point deadly for this process; None or empty arms nothing.

    Raises:
        ConfigError: There is no such point.
    """
    _armed.clear()
    if not name:
        return
    if name not in known:
        raise ConfigError(f"{ENV}: expected one of {', '.join(sorted(known))}, met {name!r}")
    _armed.append(name)


def crash_point(name: str) -> None:
    """Die here, as by ``kill -9``, if this point is armed."""
    if name in _armed:
        os.kill(os.getpid(), signal.SIGKILL)
