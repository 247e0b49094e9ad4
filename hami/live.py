"""Settings that change while a process runs: the ones of now, and the watch on their files.

``Live.now`` is what holds at this moment. A part that was given a ``view`` reads a group, or what
is made of the settings, as it is at each use; whatever must be told is in ``on_change``. A changed
file counts once two looks in a row agree on it, so a half-written one is never taken. One that is
wrong is refused as a whole. What cannot change under a running process (see ``LIVE``) keeps its
value and is named once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Generic, TypeVar, cast

import anyio
import anyio.to_thread
import msgspec
from prometheus_client import Counter

from hami.config import Settings
from hami.errors import ConfigError
from hami.loading import Loaded, Process, read_file, resolve
from hami.logs import get_logger

log = get_logger(__name__)

T = TypeVar("T")
Told = Callable[[Settings, Settings], None]
"""Called with the settings before and after a change, on the event loop; must not fail."""

_PROCESSES: Final = frozenset({"log", "kube", "controller", "node_agent"})
"""Groups about this software; the others are each about one vendor's devices."""

LIVE: Final = frozenset(
    {
        "log.level",
        "log.format",
        "kube.qps",
        "kube.burst",
        "kube.in_flight",
        "kube.urgent_qps",
        "kube.urgent_burst",
        "kube.urgent_in_flight",
        "kube.request_timeout_seconds",
        *(
            f"{group.name}.{field.name}"
            for group in msgspec.structs.fields(Settings)
            if group.name not in _PROCESSES
            for field in msgspec.structs.fields(group.type)
        ),
        "controller.scheduler_name",
        "controller.overwrite_default_scheduler",
        "controller.mode",
        "controller.node_policy",
        "controller.device_policy",
        "controller.node_label_selector",
        "controller.device_config_file",
        "controller.config_poll_seconds",
        "controller.node_lock_timeout_seconds",
        "controller.hold_seconds",
        "controller.bind_timeout_seconds",
        "controller.allocate_timeout_seconds",
        "controller.max_attempts",
        "controller.orphan_seconds",
        "controller.preemption",
        "controller.nudges_per_second",
        "controller.handshake_seconds",
        "controller.handshake_timeout_seconds",
        "controller.max_body_bytes",
        "controller.max_review_bytes",
    }
)
"""Settings of the controller that a changed file changes without a restart."""

_OTHERS: Final[Mapping[Process, str]] = {"controller": "node_agent", "node_agent": "controller"}
"""The group that is no business of a process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What became of new settings, by dotted path."""

    applied: tuple[str, ...]
    waiting: tuple[str, ...]
    """Those that a restart would change."""


class _View(Generic[T]):
    """Reads as what is made of the settings of now."""

    __slots__ = ("_live", "_made", "_make", "_of")

    def __init__(self, live: Live, make: Callable[[Settings], T]) -> None:
        self._live = live
        self._make = make
        self._of: Settings | None = None
        self._made: T | None = None

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - as in what is viewed
        now = self._live.now
        if now is not self._of:
            self._of, self._made = now, self._make(now)
        return getattr(self._made, name)


class Live:
    """The settings of a process, as they are now."""

    def __init__(self, settings: Settings, *, process: Process = "controller") -> None:
        self.now = settings
        self.on_change: list[Told] = []
        self._process = process

    def view(self, make: Callable[[Settings], T]) -> T:
        """A stand-in for ``make(now)``: each attribute that is read of it is the one of now."""
        return cast(T, _View(self, make))

    def adopt(self, wanted: Settings) -> Change:
        """Change what can be changed, and tell those who want to know."""
        before, applied, waiting = self.now, [], []
        groups: dict[str, Any] = {}
        for group, name, value in _differences(before, wanted):
            dotted = f"{group}.{name}"
            if dotted in LIVE or group == _OTHERS[self._process]:
                groups.setdefault(group, {})[name] = value
                if dotted in LIVE:
                    applied.append(dotted)
            else:
                waiting.append(dotted)
        if groups:
            self.now = msgspec.structs.replace(
                before,
                **{
                    group: msgspec.structs.replace(getattr(before, group), **fields)
                    for group, fields in groups.items()
                },
            )
            for tell in self.on_change:
                tell(before, self.now)
        return Change(applied=tuple(applied), waiting=tuple(waiting))


def _differences(before: Settings, wanted: Settings) -> Iterator[tuple[str, str, object]]:
    for group in msgspec.structs.fields(Settings):
        old, new = getattr(before, group.name), getattr(wanted, group.name)
        for field in msgspec.structs.fields(old):
            value = getattr(new, field.name)
            if value != getattr(old, field.name):
                yield group.name, field.name, value


@dataclass(frozen=True, slots=True, kw_only=True)
class _Content:
    """What was found at a file's place."""

    text: str = ""
    problem: str = ""
    """Why it could not be read."""


class Reloader:
    """Looks at the files that settings came from, and has changes adopted."""

    def __init__(
        self,
        live: Live,
        loaded: Loaded,
        *,
        results: Counter,
        check: Callable[[Settings], object] = lambda _: None,
    ) -> None:
        """Nothing is read yet.

        Args:
            live: What is to change.
            loaded: What the process started with.
            results: Counts reloads by ``result``.
            check: Raises a ConfigError for settings that the process could not use.
        """
        self._check = check
        self._live = live
        self._sources = loaded.sources
        self._notes = dict(loaded.notes)
        self._results = results
        self._used = {path: _Content(text=text) for path, text in loaded.files.items()}
        self._seen: dict[Path, _Content] | None = None
        self._waiting: tuple[str, ...] = ()

    async def run(self) -> None:
        """Look again and again; at once over where no file is read."""
        while self._used:
            await anyio.sleep(self._live.now.controller.config_poll_seconds)
            await self.look()

    async def look(self) -> None:
        """One look at the files; what is new and was there at the last look is used."""
        content = await anyio.to_thread.run_sync(_contents, self._used)
        if content == self._used or content != self._seen:
            self._seen = content
            return
        try:
            loaded = await anyio.to_thread.run_sync(self._resolve, content)
            self._check(loaded.settings)
        except ConfigError as error:
            self._results.labels("refused").inc()
            log.warning("settings_refused", error=str(error))
        else:
            content = {path: content[path] for path in loaded.files}
            self._adopt(loaded)
        self._used, self._seen = content, None

    def _resolve(self, content: dict[Path, _Content]) -> Loaded:
        """The settings that the files make; one that is named only now is read and added."""

        def read(path: Path) -> str:
            found = content[path] = content.get(path) or _content(path)
            if found.problem:
                raise ConfigError(found.problem)
            return found.text

        return resolve(self._sources, read=read)

    def _adopt(self, loaded: Loaded) -> None:
        change = self._live.adopt(loaded.settings)
        self._results.labels("partly" if change.waiting else "applied").inc()
        if change.applied:
            log.info("settings_changed", settings=list(change.applied))
        if change.waiting and change.waiting != self._waiting:
            log.warning("settings_need_restart", settings=list(change.waiting))
        self._waiting = change.waiting
        if loaded.notes != self._notes:
            tell(loaded.notes)
            self._notes = dict(loaded.notes)


def _contents(known: Mapping[Path, _Content]) -> dict[Path, _Content]:
    """What stands there now; what was read from a pipe cannot change."""
    return {
        path: content if path.exists() and not path.is_file() else _content(path)
        for path, content in known.items()
    }


def _content(path: Path) -> _Content:
    try:
        return _Content(text=read_file(path))
    except ConfigError as error:
        return _Content(problem=str(error))


def tell(notes: Mapping[str, str]) -> None:
    """Say once what is set but has no effect: one line a reason."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in notes.items():
        by_reason.setdefault(reason, []).append(name)
    for reason, names in by_reason.items():
        log.warning("settings_without_effect", settings=names, reason=reason)
