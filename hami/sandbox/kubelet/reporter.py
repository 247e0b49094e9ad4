"""Brings pods' statuses to the API server: the latest of each, in one task, until it took them.

Workers say what is; nobody waits for the network but who asks to (``settled``). A status that was
overtaken before it was sent is never sent. As from the kubelet, it is a strategic merge patch with
the uid as the only precondition: nobody else writes these fields.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn

import anyio

from hami.errors import (
    ConflictError,
    KubeError,
    NotFoundError,
    ThrottledError,
    UnavailableError,
)
from hami.kube.backoff import Backoff, Delays
from hami.kube.client import STRATEGIC_MERGE_PATCH, KubeClient
from hami.kube.resources import ObjectRef
from hami.logs import get_logger

log = get_logger(__name__)

RETRY: Final = Backoff(base_seconds=0.1, cap_seconds=5.0)


@dataclass(slots=True, kw_only=True)
class _Entry:
    ref: ObjectRef
    wanted: Mapping[str, Any]
    sent: Mapping[str, Any] | None = None
    settled: anyio.Event = field(default_factory=anyio.Event)


class StatusReporter:
    """Sends the statuses of one node's pods."""

    def __init__(self, client: KubeClient) -> None:
        self._client = client
        self._entries: dict[str, _Entry] = {}
        self._work = anyio.Event()

    def report(self, ref: ObjectRef, status: Mapping[str, Any]) -> None:
        """This is the pod's status now."""
        entry = self._entries.get(ref.uid)
        if entry is None:
            entry = self._entries[ref.uid] = _Entry(ref=ref, wanted=status)
        entry.wanted = status
        if entry.sent != status:
            if entry.settled.is_set():
                entry.settled = anyio.Event()
            self._work.set()

    def last(self, uid: str) -> Mapping[str, Any]:
        """The status reported last; empty if there was none."""
        entry = self._entries.get(uid)
        return entry.wanted if entry else {}

    async def settled(self, uid: str) -> None:
        """Return once the API server has the status, or the pod is gone."""
        entry = self._entries.get(uid)
        while entry is not None and entry.sent != entry.wanted:
            await entry.settled.wait()

    def forget(self, uid: str) -> None:
        """The pod is gone."""
        entry = self._entries.pop(uid, None)
        if entry is not None:
            entry.sent = entry.wanted
            entry.settled.set()

    async def run(self) -> NoReturn:
        """Send for ever."""
        delays = Delays(RETRY)
        while True:
            await self._work.wait()
            self._work = anyio.Event()
            failed = False
            for entry in [each for each in self._entries.values() if each.sent != each.wanted]:
                failed = not await self._send(entry) or failed
            if failed:
                self._work.set()
                await anyio.sleep(delays.after_failure())

    async def _send(self, entry: _Entry) -> bool:
        """Whether there is nothing more to do for the entry as it was."""
        wanted = entry.wanted
        body = {"metadata": {"uid": entry.ref.uid}, "status": wanted}
        try:
            await self._client.patch(
                entry.ref.path("status"), body, content_type=STRATEGIC_MERGE_PATCH
            )
        except (NotFoundError, ConflictError):
            self.forget(entry.ref.uid)  # it is gone, or another pod has its name
            return True
        except (UnavailableError, ThrottledError) as error:
            log.warning("pod_status_delayed", pod=str(entry.ref), error=str(error))
            return False
        except KubeError as error:
            log.warning("pod_status_refused", pod=str(entry.ref), error=str(error))
        entry.sent = wanted
        if entry.sent == entry.wanted:
            entry.settled.set()
        return True
