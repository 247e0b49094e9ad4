"""What became of a bind whose answer was lost, or of a pod that the watch never showed."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from hami.config import Settings
from hami.core import codec
from hami.sandbox.apiserver import ApiServer
from hami.sandbox.apiserver.faults import Drop, Fault
from tests.support.controller import pod_object, running
from tests.support.kube import until

pytestmark = pytest.mark.faults

NODES = ["n0", "n1"]
Configure = Callable[..., Settings]


async def test_lost_bind_is_undone_as_soon_as_the_server_answers_again(
    server: ApiServer, configure: Configure
) -> None:
    pod = server.store.create(pod_object("p", gpus=2, memory=30_000))
    rival = server.store.create(pod_object("rival", gpus=2, memory=30_000))
    server.faults.add(Fault(verb="create", resource="pods/binding", status=500))
    blind = server.faults.add(Fault(verb="get", resource="pods", name="p", status=500))

    async with running(configure()) as controller:
        assert await controller.bind(pod, "n0")
        assert not (await controller.filter(rival, ["n0"]))["NodeNames"]
        server.faults.remove(blind)

        async def freed() -> bool:
            return bool((await controller.filter(rival, ["n0"]))["NodeNames"])

        await until(freed)

    annotations = server.store.get("pods", "p")["metadata"].get("annotations") or {}
    assert codec.NODE_KEY not in annotations


async def test_bound_pod_counts_however_long_the_server_is_away(
    server: ApiServer, configure: Configure
) -> None:
    """The Binding is made, then nothing is heard for longer than a reservation lasts."""
    pod = server.store.create(pod_object("p", gpus=2, memory=30_000))
    rival = server.store.create(pod_object("rival", gpus=2, memory=30_000))
    server.faults.add(Fault(verb="watch", resource="pods", drop=Drop.BEFORE))
    server.faults.add(Fault(verb="create", resource="pods/binding", drop=Drop.AFTER))
    blind = server.faults.add(Fault(verb="get", resource="pods", name="p", drop=Drop.BEFORE))

    async with running(configure(bind_timeout_seconds=0.3)) as controller:
        server.faults.drop_streams()
        assert await controller.bind(pod, "n0")
        asked = blind.hits

        async def asked_for_long() -> bool:
            """In more rounds, a second apart, than the 0.9 seconds of a reservation."""
            return blind.hits >= asked + 12

        await until(asked_for_long)
        assert not (await controller.filter(rival, ["n0"]))["NodeNames"]
        assert "perhaps already bound" in (await controller.filter(pod, NODES))["Error"]
        server.faults.remove(blind)

        async def confirmed() -> bool:
            return await controller.value("hami_reservations", state="confirmed") == 1

        await until(confirmed)


async def test_pod_that_comes_and_goes_behind_the_watch_leaves_nothing(
    server: ApiServer, configure: Configure
) -> None:
    blind = server.faults.add(Fault(verb="watch", resource="pods", drop=Drop.BEFORE))

    async with running(configure()) as controller:
        server.faults.drop_streams()
        pod = server.store.create(pod_object("p"))
        assert await controller.bind(pod, "n0") == ""
        assert await controller.usage()
        server.store.delete("pods", "p")
        server.faults.remove(blind)

        async def forgotten() -> bool:
            return not await controller.usage()

        await until(forgotten)


async def test_binding_that_comes_late_finds_its_record_gone(
    server: ApiServer, configure: Configure
) -> None:
    """The bind is cut off at once, undone, and the API server gets to the Binding only then."""
    pod = server.store.create(pod_object("p"))
    late = server.faults.add(
        Fault(verb="create", resource="pods/binding", drop=Drop.EARLY, delay_seconds=4.0)
    )

    async with running(configure(bind_timeout_seconds=0.3)) as controller:
        assert await controller.bind(pod, "n0")
        assert late.hits
        server.faults.remove(late)
        assert await controller.usage() == {}
        assert await controller.bind(pod, "n1") == ""

    assert server.store.get("pods", "p")["spec"]["nodeName"] == "n1"
