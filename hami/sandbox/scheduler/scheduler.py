"""The scheduler stand-in: queue, cycle, binding, and what it says about each pod.

One pod is decided on at a time; binds run beside that. State is rebuilt from the API server: a
scheduler that starts anew finds every pod that is not bound.
"""

from __future__ import annotations

import time

import aiohttp
import anyio
from anyio.abc import TaskGroup, TaskStatus

from hami.errors import KubeError, NotFoundError
from hami.kube.client import STRATEGIC_MERGE_PATCH, KubeClient
from hami.kube.events import EventRecorder
from hami.kube.informer import Informer
from hami.kube.patching import bind
from hami.kube.reflector import Reflector
from hami.kube.resources import NODES, PODS, ObjectRef
from hami.logs import get_logger
from hami.sandbox.scheduler import filters
from hami.sandbox.scheduler.cache import Cache
from hami.sandbox.scheduler.config import Profile, SchedulerConfig
from hami.sandbox.scheduler.cycle import Cycle, UnschedulableError
from hami.sandbox.scheduler.extender import Extender, ExtenderError
from hami.sandbox.scheduler.objects import Node, Pod, decode_node, decode_pod
from hami.sandbox.scheduler.queue import Change, Entry, Queue
from hami.sandbox.scheduler.times import wall_time

log = get_logger(__name__)


class Scheduler:
    """Gives pods to nodes, for every profile of its configuration."""

    def __init__(self, client: KubeClient, config: SchedulerConfig) -> None:
        """Do nothing until ``run``."""
        self._client = client
        self._config = config
        self._profiles = {profile.scheduler_name: profile for profile in config.profiles}
        self._events = {name: EventRecorder(client, component=name) for name in self._profiles}
        self._pods = Informer(Reflector(client, PODS, decode=decode_pod))
        self._nodes = Informer(Reflector(client, NODES, decode=decode_node))
        self._cache = Cache()
        self._queue = Queue(
            initial_seconds=config.pod_initial_backoff_seconds,
            max_seconds=config.pod_max_backoff_seconds,
        )
        self._wake = anyio.Event()
        for extender in config.extenders:
            if extender.preempt_verb:
                log.warning("preempt_verb_ignored", extender=extender.url_prefix)

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Schedule for ever; started once all pods and nodes are known.

        Raises:
            ConfigError: An extender's certificates cannot be read.
        """
        connector = aiohttp.TCPConnector(limit=0)  # binds wait for each other nowhere here
        async with (
            aiohttp.ClientSession(connector=connector, trust_env=False) as session,
            anyio.create_task_group() as tasks,
        ):
            extenders = [Extender(config, session) for config in self._config.extenders]
            self._nodes.add_handler(self._set_node, self._delete_node)
            self._pods.add_handler(self._set_pod, self._delete_pod)
            for name, events in self._events.items():
                await tasks.start(events.run, name=f"{name} events")
            await tasks.start(self._nodes.run, name="scheduler nodes")
            await tasks.start(self._pods.run, name="scheduler pods")
            log.info("scheduler_started", profiles=sorted(self._profiles))
            task_status.started()
            cycle = Cycle(self._config, self._cache, extenders)
            while True:
                await self._schedule_next(cycle, extenders, tasks)

    # what happens in the cluster

    def _set_node(self, node: Node, before: Node | None) -> None:
        self._cache.set_node(node)
        if before is None or node.differs(before):
            self._happened(Change.NODE)

    def _delete_node(self, node: Node) -> None:
        self._cache.remove_node(node.name)

    def _set_pod(self, pod: Pod, before: Pod | None) -> None:
        if pod.finished:
            self._let_go(pod)
        elif pod.spec.node_name:
            self._queue.remove(pod.uid)
            self._cache.confirm(pod)
            if before is None or not before.spec.node_name:
                self._happened(Change.TAKEN)
        elif self._is_ours(pod) and not pod.gated:
            if not self._cache.is_assumed(pod.uid):
                self._queue.put(pod, now=time.monotonic())
                self._wake.set()
        else:
            self._queue.remove(pod.uid)

    def _delete_pod(self, pod: Pod) -> None:
        self._let_go(pod)

    def _let_go(self, pod: Pod) -> None:
        """The pod holds nothing and waits for nothing any more."""
        self._queue.remove(pod.uid)
        self._cache.forget(pod.uid)
        if pod.spec.node_name:
            self._happened(Change.FREED)

    def _happened(self, change: Change) -> None:
        self._queue.move(change, now=time.monotonic())
        self._wake.set()

    def _is_ours(self, pod: Pod) -> bool:
        return pod.spec.scheduler_name in self._profiles

    # scheduling

    async def _schedule_next(
        self, cycle: Cycle, extenders: list[Extender], tasks: TaskGroup
    ) -> None:
        """Decide on the next pod, or wait until there may be one."""
        self._wake = anyio.Event()
        entry = self._queue.pop(now=time.monotonic())
        if entry is None:
            with anyio.move_on_after(max(0.0, self._queue.next_due() - time.monotonic())):
                await self._wake.wait()
            return
        pod = entry.pod
        profile = self._profiles[pod.spec.scheduler_name]
        if pod.metadata.deletion_timestamp is not None:
            self._queue.done(pod.uid)
            self._say(pod, "FailedScheduling", f"skip schedule deleting pod: {pod.key}")
            return
        try:
            node = await self._choose(cycle, pod, profile)
        except (UnschedulableError, ExtenderError) as error:
            await self._refuse(entry, error)
            return
        self._cache.assume(pod, node)
        tasks.start_soon(self._bind, entry, node, extenders, name=f"bind {pod.key}")

    async def _choose(self, cycle: Cycle, pod: Pod, profile: Profile) -> str:
        if filters.needs_affinity(pod):
            raise UnschedulableError("affinity is not implemented by the sandbox's scheduler")
        return await cycle.choose(pod, profile)

    async def _bind(self, entry: Entry, node: str, extenders: list[Extender]) -> None:
        pod = entry.pod
        try:
            await self._bind_by_whom_it_concerns(pod, node, extenders)
        except (ExtenderError, KubeError) as error:
            live = self._pods.get(pod.metadata.namespace, pod.metadata.name)
            if live is None or live.uid != pod.uid or not live.spec.node_name:
                self._cache.forget(pod.uid)
                self._queue.move(Change.FREED, now=time.monotonic(), but=pod.uid)
            await self._refuse(entry, error)
            return
        self._queue.done(pod.uid)
        log.info("pod_scheduled", pod=pod.key, node=node)
        self._say(pod, "Scheduled", f"Successfully assigned {pod.key} to {node}", warning=False)

    async def _bind_by_whom_it_concerns(
        self, pod: Pod, node: str, extenders: list[Extender]
    ) -> None:
        """By the extender that binds, if it is interested; else ourselves."""
        for extender in extenders:
            if not extender.config.bind_verb or not extender.is_interested(pod):
                continue
            try:
                await extender.bind(pod, node)
            except ExtenderError as error:
                if not extender.config.ignorable:
                    raise
                log.info("extender_skipped", pod=pod.key, extender=extender.name, error=str(error))
                continue
            return
        await bind(self._client, ObjectRef.to(PODS, pod), uid=pod.uid, node=node)

    async def _refuse(
        self, entry: Entry, error: UnschedulableError | ExtenderError | KubeError
    ) -> None:
        """The pod stays: say why, and let it wait."""
        rejected = isinstance(error, UnschedulableError)
        entry.extender_refused = rejected and getattr(error, "extender_refused", False)
        pod = entry.pod
        level = log.info if rejected else log.warning
        level("pod_not_scheduled", pod=pod.key, attempt=entry.attempts, error=str(error))
        live = self._pods.get(pod.metadata.namespace, pod.metadata.name)
        if live is None or live.uid != pod.uid or live.spec.node_name or live.finished:
            # gone, or bound after all: an extender's answer may be lost and its bind not
            self._queue.done(pod.uid)
            return
        self._queue.put_back(entry, live, failed=not rejected, now=time.monotonic())
        self._say(live, "FailedScheduling", str(error))
        await self._note(
            live, reason="Unschedulable" if rejected else "SchedulerError", message=str(error)
        )
        self._wake.set()

    async def _note(self, pod: Pod, *, reason: str, message: str) -> None:
        """The pod's condition; a write only where it changes."""
        wanted = ("False", reason, message)
        for each in pod.status.conditions or ():
            if each.type == "PodScheduled" and (each.status, each.reason, each.message) == wanted:
                return
        condition = {
            "type": "PodScheduled",
            "status": "False",
            "reason": reason,
            "message": message,
            "lastTransitionTime": wall_time(),
        }
        body = {"metadata": {"uid": pod.uid}, "status": {"conditions": [condition]}}
        ref = ObjectRef.to(PODS, pod)
        try:
            await self._client.patch(ref.path("status"), body, content_type=STRATEGIC_MERGE_PATCH)
        except NotFoundError:
            log.debug("pod_gone", pod=pod.key)
        except KubeError as error:
            log.warning("pod_condition_not_written", pod=pod.key, error=str(error))

    def _say(self, pod: Pod, reason: str, message: str, *, warning: bool = True) -> None:
        self._events[pod.spec.scheduler_name].record(
            ObjectRef.to(PODS, pod), reason, message, type="Warning" if warning else "Normal"
        )
