"""The kubelet stand-in: one simulated node, wired together.

It follows the real kubelet where programs can tell the difference: the device-plugin protocol,
admission, the checkpoint, the pod-resources API, pod phases and container statuses, deletion with
grace. Its containers are processes of this machine. What it leaves out stands in
``docs/sandbox-kubelet.md``.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator

import anyio
from anyio.abc import TaskGroup, TaskStatus
from prometheus_client import CollectorRegistry, Histogram

from hami.errors import NotFoundError, QuantityError
from hami.kube.backoff import retrying
from hami.kube.client import KubeClient
from hami.kube.events import EventRecorder
from hami.kube.informer import Informer
from hami.kube.reflector import Reflector
from hami.kube.resources import PODS
from hami.logs import get_logger
from hami.sandbox.kubelet import admission
from hami.sandbox.kubelet.admission import Refusal
from hami.sandbox.kubelet.book import DeviceBook
from hami.sandbox.kubelet.manager import AllocationError, DeviceManager, RunOptions
from hami.sandbox.kubelet.node import NodeReporter
from hami.sandbox.kubelet.objects import DECODER, Container, Pod
from hami.sandbox.kubelet.podresources import PodResourcesServer
from hami.sandbox.kubelet.reporter import StatusReporter
from hami.sandbox.kubelet.settings import KubeletSettings
from hami.sandbox.kubelet.worker import PodWorker, Services, Stage
from hami.sandbox.runtime import Runtime
from hami.sandbox.runtime import logs as container_logs

log = get_logger(__name__)

UNEXPECTED = "UnexpectedAdmissionError"
STOP_SECONDS = 5.0


class KubeletMetrics:
    """What the kubelets of one process count."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Register the metrics."""
        self.starts = Histogram(
            "hami_sandbox_pod_start_seconds",
            "From a pod's arrival at its node to its first container running",
            ["node"],
            registry=registry,
            buckets=(0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30),
        )


class Kubelet:
    """One node."""

    def __init__(
        self,
        client: KubeClient,
        runtime: Runtime,
        settings: KubeletSettings,
        *,
        metrics: KubeletMetrics | None = None,
    ) -> None:
        """Do nothing until ``run``.

        Args:
            client: The API server.
            runtime: Starts the containers; may be shared by several nodes.
            settings: What the node is.
            metrics: Where it counts; may be shared by several nodes.
        """
        self.settings = settings
        self._client = client
        self._runtime = runtime
        self._events = EventRecorder(client, component="kubelet", instance=settings.node_name)
        self._statuses = StatusReporter(client)
        self._pods = Informer(
            Reflector(
                client,
                PODS,
                decode=DECODER.decode,
                field_selector=f"spec.nodeName={settings.node_name}",
            )
        )
        self._node = NodeReporter(
            client, settings, book=self._book, before_round=self._expire_devices
        )
        self._resources = PodResourcesServer(
            settings.pod_resources, book=self._book, pods=self._active_pods
        )
        self._workers: dict[str, PodWorker] = {}
        self._admission = anyio.Lock()
        self._admitting: anyio.CancelScope | None = None
        self._devices: DeviceManager | None = None
        metrics = metrics or KubeletMetrics(CollectorRegistry())
        self._starts = metrics.starts.labels(settings.node_name)

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Be the node until cancelled; started once it is registered and plugins may come.

        When it ends, so do its containers.

        Raises:
            KubeError: The API server refuses the node.
            SandboxError: A socket cannot be made.
        """
        async with anyio.create_task_group() as tasks:
            self._devices = DeviceManager(
                self.settings, tasks=tasks, on_change=self._node.wake, is_running=self._is_running
            )
            try:
                await self._start_serving()
                await retrying(self._node.register, "register node")
                tasks.start_soon(self._events.run, name="kubelet events")
                tasks.start_soon(self._statuses.run, name="kubelet statuses")
                tasks.start_soon(self._node.run, name="kubelet node")
                async with anyio.create_task_group() as pods:
                    self._follow_pods(pods)
                    await tasks.start(self._pods.run, name="kubelet pods")
                    task_status.started()
                    await anyio.sleep_forever()
            finally:
                with anyio.move_on_after(STOP_SECONDS, shield=True):
                    await self._stop_serving()

    async def restart(self) -> None:
        """Do what the node sees of a restart of its kubelet.

        Sockets are removed and made again, plugins are forgotten until they register again, what
        was allocated is read from the checkpoint; an Allocate under way is lost, and made again for
        a pod that is not admitted yet. Containers go on running.
        """
        if self._admitting is not None:
            self._admitting.cancel()
        async with self._admission:
            await self._stop_serving()
            await self._start_serving()
            await retrying(self._node.register, "register node")
        log.info("kubelet_restarted", node=self.settings.node_name)

    async def _start_serving(self) -> None:
        assert self._devices is not None
        await self._devices.start()
        await self._resources.start()

    async def _stop_serving(self) -> None:
        assert self._devices is not None
        await self._devices.stop()
        await self._resources.stop()

    # pods

    def _follow_pods(self, tasks: TaskGroup) -> None:
        async def work(worker: PodWorker) -> None:
            try:
                await worker.run()
            finally:
                self._workers.pop(worker.pod.uid, None)

        def on_set(pod: Pod, _: Pod | None) -> None:
            worker = self._workers.get(pod.uid)
            if worker is not None:
                worker.update(pod)
                return
            worker = PodWorker(pod, self._services())
            self._workers[pod.uid] = worker
            worker.update(pod)
            tasks.start_soon(work, worker, name=f"pod {pod.key}")

        def on_delete(pod: Pod) -> None:
            if pod.uid in self._workers:
                self._workers[pod.uid].removed()

        self._pods.add_handler(on_set, on_delete)

    def _services(self) -> Services:
        return Services(
            settings=self.settings,
            client=self._client,
            runtime=self._runtime,
            statuses=self._statuses,
            events=self._events,
            admit=self._admit,
            run_options=self._run_options,
            on_over=self._free_devices,
            on_start=self._starts.observe,
        )

    async def _admit(self, worker: PodWorker) -> Refusal | None:
        """Decide on the pod, after those that came before it."""
        while True:
            async with self._admission:
                with anyio.CancelScope() as self._admitting:
                    try:
                        worker.stage = Stage.ACTIVE
                        return await self._decide(worker.pod)
                    finally:
                        self._admitting = None
            # cancelled by a restart of the kubelet: begin again

    async def _decide(self, pod: Pod) -> Refusal | None:
        assert self._devices is not None
        self._free_devices()
        try:
            for container in pod.containers():
                await self._devices.allocate(pod, container)
            return self._check(pod)
        except (AllocationError, QuantityError) as error:
            return Refusal(
                reason=UNEXPECTED,
                message=f"Allocate failed due to {error}, which is unexpected",
            )

    def _check(self, pod: Pod) -> Refusal | None:
        others = [
            worker.requests()
            for worker in self._workers.values()
            if worker.stage is Stage.ACTIVE and worker.pod.uid != pod.uid
        ]
        allocatable = self._node.allocatable()
        for resource, count in self._book().in_use().items():
            # what containers hold is theirs, even if its devices are no longer well
            allocatable[resource] = max(allocatable.get(resource, 0), count)
        return admission.check(
            pod,
            others=others,
            allocatable=allocatable,
            max_pods=self.settings.pods,
            labels=self._node.labels,
        )

    async def _run_options(self, pod: Pod, container: Container) -> RunOptions:
        assert self._devices is not None
        return await self._devices.run_options(pod, container)

    def _active_pods(self) -> list[Pod]:
        return [worker.pod for worker in self._workers.values() if worker.stage is Stage.ACTIVE]

    def _is_running(self, pod_uid: str, container: str) -> bool:
        worker = self._workers.get(pod_uid)
        return worker is not None and worker.is_running(container)

    def _book(self) -> DeviceBook:
        assert self._devices is not None
        return self._devices.book

    def _free_devices(self) -> None:
        assert self._devices is not None
        self._devices.free_all_but(
            {uid for uid, worker in self._workers.items() if worker.stage is not Stage.OVER}
        )

    def _expire_devices(self) -> None:
        assert self._devices is not None
        self._devices.expire()

    # logs

    def has_pod(self, namespace: str, name: str) -> bool:
        """Whether the pod is, or was until it was deleted, on this node."""
        return self._worker(namespace, name) is not None

    def read_log(
        self, namespace: str, name: str, container: str, *, lines: int | None, follow: bool
    ) -> AsyncGenerator[bytes, None]:
        """What the container wrote, and with ``follow`` what it writes until it ends.

        Raises:
            NotFoundError: There is no such pod or container on this node.
        """
        worker = self._worker(namespace, name)
        names = {each.name for each in worker.pod.containers()} if worker else set()
        if worker is None or container not in names:
            raise NotFoundError(
                f"container {container} of pod {namespace}/{name} is not on node "
                f"{self.settings.node_name}",
                status=404,
            )
        running = worker

        def ended() -> bool:
            return not follow or running.stage is Stage.OVER

        return container_logs.follow(worker.log_path(container), lines=lines, ended=ended)

    def _worker(self, namespace: str, name: str) -> PodWorker | None:
        for worker in reversed(self._workers.values()):  # the latest of that name
            meta = worker.pod.metadata
            if (meta.namespace, meta.name) == (namespace, name):
                return worker
        return None
