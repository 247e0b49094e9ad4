"""A recorder of Events that nobody hears."""

from __future__ import annotations

from typing import Any

from hami.kube.events import EventRecorder


class Silent(EventRecorder):
    """Keeps the reasons of what is said and sends nothing."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def record(self, ref: Any, reason: str, message: str, *, type: Any = "Normal") -> None:
        self.said.append(reason)
