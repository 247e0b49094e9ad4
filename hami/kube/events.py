"""Events on objects, for ``kubectl describe``: said once, counted up, never a flood.

``record`` is synchronous, costs microseconds and never fails; a few tasks send. What is the same
(object, type, reason, message) becomes one Event with a count; many alike (same but for the
message) become one that says so; an object that goes on talking is cut off by a token bucket; a
full queue drops its oldest, warnings last. Everything that is dropped is counted. Several are sent
at a time, of each Event one version.

Events are news, not state: losing one loses no truth, so a send is tried a few times only.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final, Generic, Literal, NamedTuple, NoReturn, TypeVar

import anyio
from anyio.abc import TaskStatus

from hami.errors import CodecError, ConflictError, KubeError, NotFoundError
from hami.kube.backoff import Backoff, retrying
from hami.kube.client import KubeClient
from hami.kube.resources import EVENTS, ObjectRef
from hami.kube.throttle import TokenBucket
from hami.logs import get_logger

log = get_logger(__name__)

EventType = Literal["Normal", "Warning"]
K = TypeVar("K")
V = TypeVar("V")

MAX_MESSAGE_BYTES: Final = 1024
MAX_NAME_BYTES: Final = 253
REMEMBERED: Final = 4096
"""Events, groups of alike ones, and objects that are remembered; the least recent is forgotten."""
REMEMBER_SECONDS: Final = 600.0
"""An Event that is older is not counted up but written anew."""
ALIKE: Final = 10
"""So many different messages of one reason on one object are told apart; further ones are not."""
OBJECT_BURST: Final = 25
OBJECT_SECONDS: Final = 300.0
"""An object may say 25 things at once, and one more every five minutes."""
COMBINED: Final = "(combined from similar events): "
SENDERS: Final = 8
"""Events on their way at a time: at 5 ms each, more than a scheduler can give rise to."""
SEND_BACKOFF: Final = Backoff(base_seconds=0.5, cap_seconds=5.0)


class _Subject(NamedTuple):
    """What makes Events alike."""

    ref: ObjectRef
    type: EventType
    reason: str


class _Said(NamedTuple):
    """What makes Events the same; the message is empty for the combined one of a subject."""

    subject: _Subject
    message: str


@dataclass(slots=True, kw_only=True)
class _Pending:
    """Waits to be sent; counts up while it waits. The name makes sending it twice harmless."""

    name: str
    message: str
    first: str
    last: str
    count: int = 1


@dataclass(slots=True, kw_only=True)
class _Written:
    """An Event that the API server has."""

    name: str
    count: int
    at: float


@dataclass(slots=True, kw_only=True)
class _Variety:
    """The different messages of one subject of late."""

    since: float
    messages: set[str] = field(default_factory=set)


class _Recent(Generic[K, V]):
    """A mapping that forgets what was least recently used."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._items: OrderedDict[K, V] = OrderedDict()

    def get(self, key: K) -> V | None:
        if key not in self._items:
            return None
        self._items.move_to_end(key)
        return self._items[key]

    def put(self, key: K, value: V) -> V:
        self._items[key] = value
        self._items.move_to_end(key)
        if len(self._items) > self._size:
            self._items.popitem(last=False)
        return value


class EventRecorder:
    """Records what one component has to say about objects."""

    def __init__(
        self,
        client: KubeClient,
        *,
        component: str,
        instance: str = "",
        capacity: int = 1000,
        flush_seconds: float = 3.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Sends nothing until ``run`` does.

        Args:
            client: Where to send.
            component: Who speaks, such as ``hami-scheduler``.
            instance: Which of them: the pod's or node's name.
            capacity: Different Events that may wait.
            flush_seconds: How long a stopping process goes on sending.
            clock: For ageing and token buckets.
        """
        self._client = client
        self._metrics = client.metrics
        self._component = component
        self._instance = instance or component
        self._capacity = capacity
        self._flush_seconds = flush_seconds
        self._clock = clock
        self._pending: OrderedDict[_Said, _Pending] = OrderedDict()
        self._sending: set[_Said] = set()
        self._work = anyio.Event()
        self._written: _Recent[_Said, _Written] = _Recent(REMEMBERED)
        self._varieties: _Recent[_Subject, _Variety] = _Recent(REMEMBERED)
        self._buckets: _Recent[ObjectRef, TokenBucket] = _Recent(REMEMBERED)

    @property
    def waiting(self) -> int:
        """How many wait to be sent."""
        return len(self._pending)

    def record(
        self, ref: ObjectRef, reason: str, message: str, *, type: EventType = "Normal"
    ) -> None:
        """Say this about the object; sent soon, or counted as dropped. Never raises or waits.

        Args:
            ref: What it is about; with its uid, or ``kubectl describe`` will not show it.
            reason: One CamelCase word from a small set.
            message: For people; cut to 1024 bytes.
            type: ``Warning`` outlives ``Normal`` in a full queue.
        """
        if not self._bucket(ref).try_take(self._clock()):
            self._metrics.events_dropped.labels("talkative").inc()
            return
        said, text = self._fold(_Subject(ref, type, reason), clip(message, MAX_MESSAGE_BYTES))
        now = _wall_time()
        if waiting := self._pending.get(said):
            waiting.message, waiting.last, waiting.count = text, now, waiting.count + 1
            return
        if len(self._pending) >= self._capacity:
            self._make_room()
        name = f"{ref.name[: MAX_NAME_BYTES - 17]}.{uuid.uuid4().hex[:16]}"
        self._pending[said] = _Pending(name=name, message=text, first=now, last=now)
        self._wake()

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> NoReturn:
        """Send for ever; on cancellation, what waits is still sent within ``flush_seconds``."""
        task_status.started()
        try:
            async with anyio.create_task_group() as senders:
                for _ in range(SENDERS):
                    senders.start_soon(self._send_for_ever, name="events sender")
        finally:
            with anyio.move_on_after(self._flush_seconds, shield=True):
                async with anyio.create_task_group() as senders:
                    for _ in range(min(SENDERS, len(self._pending))):
                        senders.start_soon(self._send_waiting, name="events sender")
            if self._pending:
                self._metrics.events_dropped.labels("stopped").inc(len(self._pending))
                log.info("events_dropped", events=len(self._pending))
        raise AssertionError("unreachable: senders end only when cancelled")

    async def _send_for_ever(self) -> NoReturn:
        while True:
            work = self._work
            await self._send_waiting()
            await work.wait()

    async def _send_waiting(self) -> None:
        """Send until nothing waits that is not on its way already."""
        while (said := self._next()) is not None:
            pending = self._pending.pop(said)
            self._sending.add(said)
            try:
                await self._try_to_send(said, pending)
            finally:
                self._sending.discard(said)

    def _next(self) -> _Said | None:
        """The oldest that waits; what is being said already waits for that to be done."""
        return next((said for said in self._pending if said not in self._sending), None)

    def _wake(self) -> None:
        self._work.set()
        self._work = anyio.Event()

    async def _try_to_send(self, said: _Said, pending: _Pending) -> None:
        try:
            await retrying(
                lambda: self._send(said, pending),
                f"event on {said.subject.ref}",
                attempts=3,
                backoff=SEND_BACKOFF,
            )
        except anyio.get_cancelled_exc_class():
            if said in self._pending:
                self._pending[said].count += pending.count
            else:
                self._pending[said] = pending
            raise
        except (KubeError, CodecError) as error:
            self._metrics.events_dropped.labels("refused").inc()
            log.warning(
                "event_not_sent",
                object=str(said.subject.ref),
                reason=said.subject.reason,
                error=str(error),
            )

    async def _send(self, said: _Said, pending: _Pending) -> None:
        """Count up the Event that says this already, or create it."""
        written = self._written.get(said)
        if written is not None and self._clock() - written.at < REMEMBER_SECONDS:
            try:
                await self._count_up(said, written, pending)
            except NotFoundError:
                pass  # it has expired; say it anew
            else:
                return
        await self._create(said, pending)

    async def _count_up(self, said: _Said, written: _Written, pending: _Pending) -> None:
        total = written.count + pending.count
        body = {"count": total, "lastTimestamp": pending.last, "message": pending.message}
        path = EVENTS.path(_namespace(said.subject.ref), written.name)
        await self._client.patch(path, body)
        written.count, written.at = total, self._clock()
        self._metrics.events_sent.labels("counted").inc()

    async def _create(self, said: _Said, pending: _Pending) -> None:
        subject = said.subject
        namespace = _namespace(subject.ref)
        body = {
            "apiVersion": EVENTS.api_version,
            "kind": EVENTS.kind,
            "metadata": {"name": pending.name, "namespace": namespace},
            "involvedObject": subject.ref.involved(),
            "type": subject.type,
            "reason": subject.reason,
            "message": pending.message,
            "count": pending.count,
            "firstTimestamp": pending.first,
            "lastTimestamp": pending.last,
            "source": {"component": self._component, "host": self._instance},
            "reportingComponent": self._component,
            "reportingInstance": self._instance,
        }
        with contextlib.suppress(ConflictError):  # an attempt that got no answer had arrived
            await self._client.post(EVENTS.path(namespace), body)
        count = pending.count
        self._written.put(said, _Written(name=pending.name, count=count, at=self._clock()))
        self._metrics.events_sent.labels("created").inc()

    def _fold(self, subject: _Subject, message: str) -> tuple[_Said, str]:
        """Under what to count a message, and how to put it; alike ones share one Event."""
        variety, now = self._varieties.get(subject), self._clock()
        if variety is None or now - variety.since >= REMEMBER_SECONDS:
            variety = self._varieties.put(subject, _Variety(since=now))
        if message in variety.messages or len(variety.messages) < ALIKE:
            variety.messages.add(message)
            return _Said(subject, message), message
        return _Said(subject, ""), clip(COMBINED + message, MAX_MESSAGE_BYTES)

    def _bucket(self, ref: ObjectRef) -> TokenBucket:
        known = self._buckets.get(ref)
        if known is not None:
            return known
        return self._buckets.put(ref, TokenBucket(rate=1 / OBJECT_SECONDS, burst=OBJECT_BURST))

    def _make_room(self) -> None:
        oldest = next(iter(self._pending))
        normal = (said for said in self._pending if said.subject.type == "Normal")
        del self._pending[next(normal, oldest)]
        self._metrics.events_dropped.labels("queue full").inc()


def clip(text: str, max_bytes: int) -> str:
    """The text, or as much of it as fits with an ellipsis; cut between characters."""
    encoded = text.encode(errors="replace")
    if len(encoded) <= max_bytes:
        return encoded.decode()
    ellipsis = "…"
    room = max_bytes - len(ellipsis.encode())
    return encoded[:room].decode(errors="ignore") + ellipsis


def _namespace(ref: ObjectRef) -> str:
    """Events on cluster-wide objects live in ``default``."""
    return ref.namespace or "default"


def _wall_time() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
