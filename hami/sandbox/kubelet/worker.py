"""One pod's life on its node: admission, init containers, containers, restarts, the end.

Owns the pod's processes: whatever happens to this task, none of them outlives it. The order of
events is that of the kubelet's pod workers. A deletion cancels what keeps the pod running and then
ends the containers: SIGTERM, the grace, SIGKILL; sidecars last.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any, Final

import anyio
import anyio.to_thread
from anyio.abc import TaskStatus

from hami.errors import KubeError, NotFoundError, SandboxError
from hami.kube.backoff import Backoff, retrying
from hami.kube.client import KubeClient
from hami.kube.events import EventRecorder
from hami.kube.resources import PODS, ObjectRef
from hami.logs import get_logger
from hami.sandbox.kubelet import admission, environment, status
from hami.sandbox.kubelet.admission import Refusal
from hami.sandbox.kubelet.backoff import CrashLoop
from hami.sandbox.kubelet.manager import RunOptions
from hami.sandbox.kubelet.node import now
from hami.sandbox.kubelet.objects import Container, Pod
from hami.sandbox.kubelet.plugins import PluginError
from hami.sandbox.kubelet.reporter import StatusReporter
from hami.sandbox.kubelet.settings import KubeletSettings
from hami.sandbox.kubelet.status import Record, Running, Terminated, Waiting
from hami.sandbox.runtime import Container as Process
from hami.sandbox.runtime import ContainerSpec, Exit, Runtime, StartError

log = get_logger(__name__)

DEFAULT_GRACE_SECONDS: Final = 30
KILL_SECONDS: Final = 10.0
"""How long a killed process may take to be gone."""
START_ERROR_CODE: Final = 128
LOST_CODE: Final = 137
NO_COMMAND: Final = (
    "no command specified: the sandbox runs no images, so the container's `command` must say what "
    "to run"
)
DELETE_BACKOFF: Final = Backoff(base_seconds=0.1, cap_seconds=5.0)
DELETE_ATTEMPTS: Final = 1000


class Stage(Enum):
    """How far a worker is."""

    ARRIVED = "arrived"
    """Others are admitted first; it may hold devices from before a restart."""
    ACTIVE = "active"
    """It is being admitted, or runs: it holds what it holds."""
    OVER = "over"
    """No process of it is left, and none will come."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """What the workers of one node share."""

    settings: KubeletSettings
    client: KubeClient
    runtime: Runtime
    statuses: StatusReporter
    events: EventRecorder
    admit: Callable[[PodWorker], Awaitable[Refusal | None]]
    run_options: Callable[[Pod, Container], Awaitable[RunOptions]]
    on_over: Callable[[], None]
    """A pod's processes are gone: its devices may be freed."""
    on_start: Callable[[float], None]
    """The seconds from a pod's arrival to its first container."""


class PodWorker:
    """Runs one pod."""

    def __init__(self, pod: Pod, services: Services) -> None:
        self.pod = pod
        self.stage = Stage.OVER if pod.finished else Stage.ARRIVED
        self._services = services
        self._settings = services.settings
        self._records = status.new_records(pod.spec)
        self._processes: dict[str, Process] = {}
        self._life = anyio.CancelScope()
        self._patience = anyio.CancelScope()
        self._stopping = anyio.Event()
        self._gone = False
        self._began = time.monotonic()
        self._reported_start = False
        self._requests: admission.Amounts | None = None

    @property
    def ref(self) -> ObjectRef:
        """Points at the pod, in this life of its."""
        return ObjectRef.to(PODS, self.pod)

    def requests(self) -> admission.Amounts:
        """What the pod needs.

        Raises:
            QuantityError: It asks for what is no quantity.
        """
        if self._requests is None:
            self._requests = admission.requests(self.pod)
        return self._requests

    @property
    def directory(self) -> Path:
        """What the pod has on its node: logs and volumes."""
        meta = self.pod.metadata
        return self._settings.root / "pods" / f"{meta.namespace}_{meta.name}_{meta.uid}"

    def log_path(self, container: str) -> Path:
        """Where the container's output goes."""
        return self.directory / "logs" / f"{container}.log"

    def is_running(self, container: str) -> bool:
        """Whether the container has a process."""
        return container in self._processes

    # what the API server says

    def update(self, pod: Pod) -> None:
        """The pod changed; a deletion, or a phase that another wrote, begins or hastens its end."""
        self.pod = pod
        if pod.finished and self.stage is not Stage.OVER:
            self._life.cancel()
        if pod.metadata.deletion_timestamp is not None:
            self._stop()

    def removed(self) -> None:
        """The pod is gone from the API server: end what is left of it."""
        self._gone = True
        self._stop()

    def _stop(self) -> None:
        self._stopping.set()
        self._life.cancel()
        if self._patience.deadline != float("inf"):
            sooner = anyio.current_time() + self._grace_seconds()
            self._patience.deadline = min(self._patience.deadline, sooner)

    def _grace_seconds(self) -> float:
        meta, spec = self.pod.metadata, self.pod.spec
        wanted: float = DEFAULT_GRACE_SECONDS
        if self._gone:
            wanted = 0
        elif meta.deletion_grace_period_seconds is not None:
            wanted = meta.deletion_grace_period_seconds
        elif spec.termination_grace_period_seconds is not None:
            wanted = spec.termination_grace_period_seconds
        return max(wanted, self._settings.minimum_grace_seconds)

    # life

    async def run(self) -> None:
        """From arrival to the removal of the pod from the API server."""
        try:
            if self.stage is Stage.ARRIVED:
                await self._live()
                self.stage = Stage.OVER
                self._services.on_over()
            await self._stopping.wait()
            await self._delete()
            await anyio.to_thread.run_sync(
                partial(shutil.rmtree, self.directory, ignore_errors=True)
            )
        finally:
            with anyio.CancelScope(shield=True):
                await self._kill_all()
            self.stage = Stage.OVER
            self._services.statuses.forget(self.pod.uid)

    async def _live(self) -> None:
        with self._life:
            refusal = await self._services.admit(self)
            if refusal is not None:
                self._reject(refusal)
                return
            self._report()
            await self._run_containers()
        await self._terminate()
        self._report(over=True)

    def _reject(self, refusal: Refusal) -> None:
        log.warning(
            "pod_rejected", pod=self.pod.key, node=self._settings.node_name,
            reason=refusal.reason, error=refusal.message,
        )  # fmt: skip
        self._say(refusal.reason, refusal.message, warning=True)
        self._services.statuses.report(
            self.ref,
            status.rejection(self.pod, reason=refusal.reason, message=refusal.message, now=now()),
        )

    async def _run_containers(self) -> None:
        """Init containers one after the other, then the rest until all have ended for good."""
        async with anyio.create_task_group() as sidecars:
            for record in self._records.init:
                if record.spec.is_sidecar:
                    await sidecars.start(partial(self._supervise, record, policy="Always"))
                    continue
                policy = "Never" if self.pod.spec.restart_policy == "Never" else "OnFailure"
                end = await self._supervise(record, policy=policy)
                if not end.succeeded:
                    sidecars.cancel_scope.cancel()
                    return
            async with anyio.create_task_group() as containers:
                for record in self._records.main:
                    await containers.start(
                        partial(self._supervise, record, policy=self.pod.spec.restart_policy)
                    )
            sidecars.cancel_scope.cancel()

    async def _supervise(
        self,
        record: Record,
        *,
        policy: str,
        task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
    ) -> Exit:
        """Keep one container as its policy says.

        Started once its first start was tried; a sidecar, once it runs.

        Returns:
            Its last end.
        """
        loop = CrashLoop(
            base_seconds=self._settings.restart_backoff_seconds,
            cap_seconds=self._settings.restart_backoff_cap_seconds,
        )
        told = False
        while True:
            process = await self._create(record)
            if not told and (isinstance(process, Process) or not record.spec.is_sidecar):
                told = True
                task_status.started()
            if process is None:
                await anyio.sleep(self._settings.config_retry_seconds)
                continue
            end = await self._outlive(record, process)
            if policy == "Never" or (policy == "OnFailure" and end.succeeded):
                return end
            await self._back_off(record, loop.after_end(now=time.monotonic()))
            record.restarts += 1

    async def _create(self, record: Record) -> Process | Exit | None:
        """Start the container: its process, or its end where it would not run.

        None means that it cannot even be created, which time may mend.
        """
        pod, spec = self.pod, record.spec
        try:
            options = await self._services.run_options(pod, spec)
            container = self._container_spec(record, options)
        except (environment.ConfigError, PluginError) as error:
            self._refuse(record, "CreateContainerConfigError", str(error))
            return None
        except (SandboxError, OSError) as error:
            self._refuse(record, "CreateContainerError", str(error))
            return None
        if not container.command:
            self._refuse(record, "CreateContainerError", NO_COMMAND)
            return None
        try:
            process = await self._services.runtime.start(container)
        except StartError as error:
            return self._fail_to_start(record, error)
        self._processes[spec.name] = process
        record.container_id = f"sandbox://{pod.uid}/{spec.name}/{record.restarts}"
        record.state = Running(started_at=now())
        self._report()
        self._say("Started", f"Started container {spec.name}")
        if not self._reported_start:
            self._reported_start = True
            self._services.on_start(time.monotonic() - self._began)
        return process

    def _container_spec(self, record: Record, options: RunOptions) -> ContainerSpec:
        pod, spec = self.pod, record.spec
        variables = environment.variables(
            pod, spec, plugins=options.env, node=self._settings.environment
        )
        mounts = environment.mounts(pod, spec, volumes_dir=self.directory / "volumes")
        # a volume mount gives way to a plugin's mount at the same place, as for the kubelet
        taken = {mount.container_path for mount in options.mounts}
        own = [mount for mount in mounts if mount.container_path not in taken]
        scratch = self.directory / "containers" / f"{spec.name}-{record.restarts}"
        scratch.mkdir(parents=True, exist_ok=True)
        log_path = self.log_path(spec.name)
        log_path.parent.mkdir(exist_ok=True)
        security = spec.security_context
        return ContainerSpec(
            name=f"{pod.key}/{spec.name}",
            command=environment.command(spec, variables),
            env=variables,
            mounts=(*options.mounts, *own),
            working_dir=spec.working_dir or "/",
            log_path=log_path,
            scratch=scratch,
            privileged=bool(security and security.privileged),
        )

    def _refuse(self, record: Record, reason: str, error: str) -> None:
        record.state = Waiting(reason=reason, message=error)
        self._report()
        self._say("Failed", f"Error: {error}", warning=True)

    def _fail_to_start(self, record: Record, error: StartError) -> Exit:
        self._terminated(
            record, Exit(code=START_ERROR_CODE), reason="StartError", message=str(error)
        )
        self._say("Failed", f"Error: {error}", warning=True)
        return Exit(code=START_ERROR_CODE)

    async def _outlive(self, record: Record, process: Process | Exit) -> Exit:
        """Wait for the container's end, unless it has come, and note it."""
        if isinstance(process, Exit):
            return process
        end = await process.wait()
        self._note_end(record, end)
        return end

    def _note_end(self, record: Record, end: Exit) -> None:
        self._processes.pop(record.spec.name, None)
        reason = "Completed" if end.succeeded else "Error"
        self._terminated(record, end, reason=reason)

    def _terminated(self, record: Record, end: Exit, *, reason: str, message: str = "") -> None:
        since = record.state.started_at if isinstance(record.state, Running) else None
        record.state = Terminated(
            exit_code=end.code,
            signal=end.signal,
            reason=reason,
            message=message,
            started_at=since,
            finished_at=now(),
            container_id=record.container_id,
        )
        self._report()

    async def _back_off(self, record: Record, seconds: float) -> None:
        assert isinstance(record.state, Terminated)
        record.last = record.state
        if seconds == 0.0:
            return
        meta = self.pod.metadata
        where = f"container={record.spec.name} pod={meta.name}_{meta.namespace}({meta.uid})"
        record.state = Waiting(
            reason="CrashLoopBackOff",
            message=f"back-off {seconds:g}s restarting failed {where}",
        )
        self._report()
        self._say(
            "BackOff", f"Back-off restarting failed container {record.spec.name}", warning=True
        )
        await anyio.sleep(seconds)

    # the end

    async def _terminate(self) -> None:
        """End what still runs: containers together, then sidecars, the last started first."""
        grace = self._grace_seconds()
        deadline = anyio.current_time() + grace
        sidecars = {record.spec.name for record in self._records.init if record.spec.is_sidecar}
        records = self._records.all()
        first = [record for record in records if record.spec.name not in sidecars]
        await self._end_containers(first, deadline=deadline)
        for record in reversed(self._records.init):
            if record.spec.is_sidecar:
                least = anyio.current_time() + self._settings.minimum_grace_seconds
                await self._end_containers([record], deadline=max(deadline, least))
        for record in records:
            if isinstance(record.state, Waiting) and self._stopping.is_set():
                self._lose(record)

    async def _end_containers(self, records: list[Record], *, deadline: float) -> None:
        running = [each for each in records if each.spec.name in self._processes]
        for record in running:
            self._say("Killing", f"Stopping container {record.spec.name}")
            self._processes[record.spec.name].terminate()
        with anyio.CancelScope(deadline=deadline) as self._patience:
            await self._await_ends(running)
        left = [each for each in running if each.spec.name in self._processes]
        for record in left:
            self._processes[record.spec.name].kill()
        await self._await_ends(left)

    async def _await_ends(self, records: list[Record]) -> None:
        for record in records:
            process = self._processes.get(record.spec.name)
            if process is not None:
                self._note_end(record, await process.wait())

    def _lose(self, record: Record) -> None:
        """What was never started, or waited for a restart, ends with the pod."""
        if record.last is not None:
            record.state = record.last
            return
        record.state = Terminated(
            exit_code=LOST_CODE,
            reason="ContainerStatusUnknown",
            message="The container could not be located when the pod was terminated",
            finished_at=now(),
        )

    async def _kill_all(self) -> None:
        """The last resort, when this task ends by force: nothing stays."""
        for process in self._processes.values():
            process.kill()
        with anyio.move_on_after(KILL_SECONDS):
            for name, process in list(self._processes.items()):
                await process.wait()
                del self._processes[name]

    async def _delete(self) -> None:
        """Let the API server forget the pod, once it knows how it ended."""
        if self._gone:
            return
        await self._services.statuses.settled(self.pod.uid)
        body: Mapping[str, Any] = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "gracePeriodSeconds": 0,
            "preconditions": {"uid": self.pod.uid},
        }
        try:
            await retrying(
                partial(self._services.client.delete, self.ref.path(), body),
                "delete pod",
                attempts=DELETE_ATTEMPTS,
                backoff=DELETE_BACKOFF,
            )
        except NotFoundError:
            pass
        except KubeError as error:
            log.warning("pod_not_deleted", pod=self.pod.key, error=str(error))

    # telling

    def _report(self, *, over: bool = False) -> None:
        statuses = self._services.statuses
        before = statuses.last(self.pod.uid)
        statuses.report(
            self.ref,
            status.pod_status(self.pod, self._records, over=over, now=now(), before=before),
        )

    def _say(self, reason: str, message: str, *, warning: bool = False) -> None:
        self._services.events.record(
            self.ref, reason, message, type="Warning" if warning else "Normal"
        )
