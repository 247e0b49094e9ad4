"""Pods that come and go at random while processes die, and what must be true after all of it.

One node. Everything random comes from a seed; what chance brings about in the sandbox's processes
does not, so a seed names a kind of afternoon and not an exact one.
"""

from __future__ import annotations

import random
import signal
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import anyio
import msgspec
from prometheus_client.parser import text_string_to_metric_families

from hami.core import record
from hami.core.allocation import Charge
from hami.core.objects import Pod
from hami.core.quantity import BYTES_PER_MIB
from hami.core.vendor import table
from hami.core.vendors.nvidia import NVIDIA
from hami.errors import CodecError, NotFoundError, SandboxError
from hami.nodeagent import claims, pending, region
from hami.nodeagent.app import REGIONS_DIR
from hami.sandbox.cluster import Sandbox
from tests.support.sandbox import gpu, inside, make_pod

NODE, GPUS = "node-1", 2
CARD_MIB, CARD_SLOTS = 15360, 10
PODS = "/api/v1/namespaces/default/pods"
CROWD, REMNANT = 7, 3
VENDORS = table([NVIDIA])
SETTINGS = {
    "node_agent": {"reconcile_seconds": 1, "pending_pod_seconds": 5},
    "controller": {"allocate_timeout_seconds": 15},
}


@dataclass(kw_only=True)
class Churn:
    """One afternoon on one node."""

    sandbox: Sandbox
    chance: random.Random
    counts: Counter[str] = field(default_factory=Counter)
    _number: int = 0

    async def stir(self, *, seconds: float, between: tuple[float, float] = (0.05, 0.6)) -> None:
        """Create, delete, kill and restart for so long; no device may ever be beyond its room."""
        with anyio.move_on_after(seconds):
            while True:
                await self._step()
                self.assert_room()
                await anyio.sleep(self.chance.uniform(*between))

    async def settle(self, *, seconds: float) -> None:
        """End most pods, and return once everything agrees with everything.

        Raises:
            AssertionError: It does not; the message is what was wrong last.
        """
        for name in sorted(pod.metadata.name for pod in self.pods())[REMNANT:]:
            await self._delete(name)
        wrong = ["nothing was looked at"]
        with anyio.move_on_after(seconds):
            while wrong:
                await anyio.sleep(0.1)
                wrong = await self.disagreements()
        assert not wrong, "\n".join([*wrong, str(dict(self.counts))])

    async def disagreements(self) -> list[str]:
        """What is not as it must be, on a node where nothing happens any more."""
        wrong = [
            f"{pod.key} is stuck: {pod.status}"
            for pod in self.pods()
            if pod.metadata.deletion_timestamp or pod.status.phase not in ("Running", "Succeeded")
            if not (pod.status.phase == "Failed" and pod.status.reason)
        ]
        wrong += self._region_disagreements()
        truth = self._held()
        counted = await self._counted()
        if +counted != +truth:
            wrong.append(f"the controller counts {dict(counted)}, pods hold {dict(truth)}")
        return wrong

    def pods(self) -> list[Pod]:
        return [msgspec.convert(o, Pod) for o in self.sandbox.api.store.list("pods", "default")]

    def assert_room(self) -> None:
        """No device holds more than it has."""
        slots: Counter[str] = Counter()
        for uuid, charge in self._charges():
            slots[uuid] += charge.slots
        held = self._held()
        assert all(mib <= CARD_MIB for mib in held.values()), held
        assert all(number <= CARD_SLOTS for number in slots.values()), slots

    async def _step(self) -> None:
        dice = self.chance.random()
        names = [pod.metadata.name for pod in self.pods()]
        if dice < 0.02:
            await self._kill_agent()
        elif dice < 0.04:
            self.counts["kubelet restarts"] += 1
            await self.sandbox.nodes[NODE].kubelet.restart()
        elif len(names) < CROWD and dice < 0.65:
            await self._create()
        elif names:
            await self._delete(self.chance.choice(names))

    async def _kill_agent(self) -> None:
        agent = self.sandbox.nodes[NODE].agent
        assert agent is not None
        try:
            agent.signal(signal.SIGKILL)
            self.counts["agent kills"] += 1
        except SandboxError:
            return  # it is just being started again

    async def _create(self) -> None:
        self._number += 1
        self.counts["created"] += 1
        pod = make_pod(f"churn-{self._number}", limits=self._limits(), command=self._command())
        main = pod["spec"]["containers"][0]
        if self.chance.random() < 0.25:
            other = {**main, "name": "other", "resources": {"limits": self._texts()}}
            pod["spec"]["containers"].append(other)
        if self.chance.random() < 0.2:
            first = {**main, "name": "first", "command": ["true"]}
            pod["spec"]["initContainers"] = [{**first, "resources": {"limits": self._texts()}}]
        await self.sandbox.client.post(PODS, pod)

    def _limits(self) -> dict[str, Any]:
        cores = {"gpucores": self.chance.choice((10, 20))} if self.chance.random() < 0.3 else {}
        return gpu(
            self.chance.choice((1, 1, 1, 2)), memory=self.chance.randrange(100, 2600, 100), **cores
        )

    def _texts(self) -> dict[str, str]:
        return {key: str(value) for key, value in self._limits().items()}

    def _command(self) -> list[str]:
        brief = ["gpu-probe", "--check", "--fill"]
        return self.chance.choice((brief, ["sleep", "infinity"], ["sleep", "infinity"]))

    async def _delete(self, name: str) -> None:
        self.counts["deleted"] += 1
        try:
            await self.sandbox.client.delete(
                f"{PODS}/{name}", query={"gracePeriodSeconds": self.chance.choice((0, 1, 1, 1))}
            )
        except NotFoundError:
            return

    def _living(self) -> list[Pod]:
        """Bound, and not over."""
        return [pod for pod in self.pods() if pod.spec.node_name and not pod.finished]

    def _charges(self) -> Iterator[tuple[str, Charge]]:
        """What each pod holds of each device, as its annotations have it."""
        for pod in self._living():
            allocation = record.allocation_of(pod, VENDORS)
            assert allocation is not None, f"{pod.key} is bound without a record"
            yield from allocation.charges(init_done=record.init_done(pod)).items()

    def _held(self) -> Counter[str]:
        """MiB of each device."""
        total: Counter[str] = Counter()
        for uuid, charge in self._charges():
            total[uuid] += charge.memory
        return total

    async def _counted(self) -> Counter[str]:
        """The same, as the controller counts it."""
        url = f"{self.sandbox.controller_health_url}/metrics"
        async with aiohttp.ClientSession() as session, session.get(url) as answer:
            text = await answer.text()
        return Counter(
            {
                sample.labels["device_uuid"]: int(sample.value) // BYTES_PER_MIB
                for family in text_string_to_metric_families(text)
                if family.name == "hami_gpu_memory_allocated_bytes"
                for sample in family.samples
            }
        )

    def _region_disagreements(self) -> list[str]:
        """Each container that holds devices has one region with its limits; nobody else has any."""
        found: dict[tuple[str, str], list[dict[str, int | None]]] = defaultdict(list)
        wrong = []
        for path in (self.sandbox.nodes[NODE].root / "vgpu" / REGIONS_DIR).iterdir():
            try:
                claim = claims.read(path)
                devices = region.read_usage(path).devices
            except (CodecError, OSError) as error:
                wrong.append(f"{path.name}: {error}")
                continue
            limits = {d.uuid: d.memory_limit_bytes for d in devices}
            found[claim.uid, claim.container].append(limits)
        for pod in self._living():
            for entry in pending.recorded(pod, NVIDIA):
                wanted = {d.uuid: d.memory * BYTES_PER_MIB for d in entry.devices}
                met = found.pop((pod.metadata.uid, entry.container), [])
                if met != [wanted]:
                    wrong.append(f"{pod.key}, {entry.container}: expected {wanted}, met {met}")
        return wrong + [f"left over: {key}" for key in found]


@asynccontextmanager
async def open_churn(seed: int) -> AsyncIterator[Churn]:
    """A node of two T4s, with quick housekeeping."""
    async with inside(nodes=1, gpus=GPUS, model="T4", settings=SETTINGS) as (sandbox, _):
        yield Churn(sandbox=sandbox, chance=random.Random(seed))
