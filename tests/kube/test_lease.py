"""One leader at a time, and a quick, safe change of hands."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from hami.errors import ConfigError
from hami.kube.client import KubeClient
from hami.kube.lease import LeaderElector, LeaseTimes
from hami.kube.resources import LEASES
from hami.sandbox.apiserver.faults import Drop, Fault
from tests.support.cluster import Cluster
from tests.support.kube import SOON, until

STEADY = LeaseTimes(duration_seconds=60.0, renew_deadline_seconds=40.0, retry_seconds=0.05)
"""No stall of a busy machine loses such a Lease."""
QUICK = LeaseTimes(duration_seconds=1.0, renew_deadline_seconds=0.5, retry_seconds=0.05)
"""For tests in which a Lease is to be lost."""


class Candidate:
    """An elector whose work tells that it has begun and ended."""

    def __init__(
        self, client: KubeClient, cluster: Cluster, identity: str, times: LeaseTimes = STEADY
    ) -> None:
        self.elector = LeaderElector(
            client, namespace=cluster.namespace, name="hami", identity=identity, times=times
        )
        self.began = anyio.Event()
        self.ended = anyio.Event()
        self.reigns = 0

    async def lead(self) -> None:
        assert self.elector.is_leader
        self.reigns += 1
        self.began.set()
        try:
            await anyio.sleep_forever()
        finally:
            self.ended.set()

    @asynccontextmanager
    async def campaigning(self) -> AsyncIterator[None]:
        async with anyio.create_task_group() as group:
            await group.start(self.elector.run, self.lead)
            yield
            group.cancel_scope.cancel()


async def lease(client: KubeClient, cluster: Cluster) -> dict[str, Any]:
    spec: dict[str, Any] = json.loads(await client.get(LEASES.path(cluster.namespace, "hami")))[
        "spec"
    ]
    return spec


async def soon(event: anyio.Event) -> None:
    with anyio.fail_after(SOON):
        await event.wait()


async def test_the_first_candidate_leads_and_says_so(client: KubeClient, cluster: Cluster) -> None:
    first = Candidate(client, cluster, "first")

    async with first.campaigning():
        await soon(first.began)
        spec = await lease(client, cluster)

    assert (spec["holderIdentity"], spec["leaseDurationSeconds"]) == ("first", 60)
    assert spec["leaseTransitions"] == 0
    assert spec["renewTime"].endswith("Z")


async def test_a_second_candidate_waits_while_the_first_renews(
    client: KubeClient, cluster: Cluster
) -> None:
    first, second = Candidate(client, cluster, "first"), Candidate(client, cluster, "second")

    async with first.campaigning():
        await soon(first.began)
        async with second.campaigning():
            before = (await lease(client, cluster))["renewTime"]

            async def renewed() -> bool:
                return bool((await lease(client, cluster))["renewTime"] != before)

            await until(renewed)
            assert second.elector.holder == "first"
            assert not second.elector.is_leader
            assert first.elector.is_leader

    assert second.reigns == 0


async def test_a_leader_that_stops_hands_over_at_once(client: KubeClient, cluster: Cluster) -> None:
    first, second = Candidate(client, cluster, "first"), Candidate(client, cluster, "second")

    async with first.campaigning():
        await soon(first.began)
    assert (await lease(client, cluster))["holderIdentity"] == ""

    async with second.campaigning():
        await soon(second.began)
        assert (await lease(client, cluster))["leaseTransitions"] == 1


async def test_a_leader_that_died_is_followed_after_its_lease_ran_out(
    client: KubeClient, cluster: Cluster
) -> None:
    path = LEASES.path(cluster.namespace)
    spec = {"holderIdentity": "dead", "leaseDurationSeconds": 1, "leaseTransitions": 4}
    metadata = {"name": "hami"}
    await client.post(
        path,
        {"apiVersion": LEASES.api_version, "kind": "Lease", "metadata": metadata, "spec": spec},
    )
    heir = Candidate(client, cluster, "heir")

    async with heir.campaigning():
        await soon(heir.began)
        spec = await lease(client, cluster)

    assert (spec["holderIdentity"], spec["leaseTransitions"]) == ("heir", 5)


async def test_a_restarted_leader_of_the_same_identity_goes_on_at_once(
    client: KubeClient, cluster: Cluster
) -> None:
    forever = {"holderIdentity": "me", "leaseDurationSeconds": 3600, "leaseTransitions": 2}
    body = {"apiVersion": LEASES.api_version, "kind": "Lease", "spec": forever}
    await client.post(LEASES.path(cluster.namespace), {**body, "metadata": {"name": "hami"}})
    again = Candidate(client, cluster, "me")

    async with again.campaigning():
        await soon(again.began)
        assert (await lease(client, cluster))["leaseTransitions"] == 3, "a reign of its own"


async def test_a_leader_whose_lease_is_taken_stops_working(
    client: KubeClient, cluster: Cluster
) -> None:
    first = Candidate(client, cluster, "first")

    async with first.campaigning():
        await soon(first.began)
        path = LEASES.path(cluster.namespace, "hami")
        await client.patch(path, {"spec": {"holderIdentity": "usurper"}})
        await soon(first.ended)
        assert not first.elector.is_leader
        assert first.elector.holder == "usurper"


async def test_work_that_ends_by_itself_gives_the_lease_back(
    client: KubeClient, cluster: Cluster
) -> None:
    elector = LeaderElector(
        client, namespace=cluster.namespace, name="hami", identity="brief", times=STEADY
    )

    async def nothing() -> None:
        return

    with anyio.fail_after(SOON):
        await elector.run(nothing)

    assert (await lease(client, cluster))["holderIdentity"] == ""
    assert not elector.is_leader


async def test_work_that_fails_fails_loudly_and_gives_the_lease_back(
    client: KubeClient, cluster: Cluster
) -> None:
    elector = LeaderElector(
        client, namespace=cluster.namespace, name="hami", identity="broken", times=STEADY
    )

    async def fail() -> None:
        raise ZeroDivisionError

    with anyio.fail_after(SOON), pytest.raises(ExceptionGroup) as failure:
        await elector.run(fail)

    assert failure.group_contains(ZeroDivisionError)
    assert (await lease(client, cluster))["holderIdentity"] == ""


async def test_a_follower_that_watches_leads_as_soon_as_the_lease_is_free(
    client: KubeClient, cluster: Cluster
) -> None:
    rarely = LeaseTimes(duration_seconds=3600.0, renew_deadline_seconds=3000.0, retry_seconds=600.0)
    first = Candidate(client, cluster, "first")
    second = Candidate(client, cluster, "second", rarely)

    async with anyio.create_task_group() as group:
        await group.start(second.elector.watch)
        async with first.campaigning():
            await soon(first.began)
            await group.start(second.elector.run, second.lead)

            async def follows() -> bool:
                return second.elector.holder == "first"

            await until(follows)
        await soon(second.began)
        assert second.elector.term == 1
        group.cancel_scope.cancel()


async def test_a_leader_that_watches_knows_at_once_that_its_lease_was_taken(
    client: KubeClient, cluster: Cluster
) -> None:
    rarely = LeaseTimes(duration_seconds=3600.0, renew_deadline_seconds=3000.0, retry_seconds=600.0)
    first = Candidate(client, cluster, "first", rarely)

    async with anyio.create_task_group() as group:
        await group.start(first.elector.watch)
        await group.start(first.elector.run, first.lead)
        await soon(first.began)
        path = LEASES.path(cluster.namespace, "hami")
        await client.patch(path, {"spec": {"holderIdentity": "usurper"}})
        await soon(first.ended)
        group.cancel_scope.cancel()


@pytest.mark.faults
async def test_a_candidate_cancelled_while_it_takes_the_lease_gives_it_back(
    client: KubeClient, cluster: Cluster
) -> None:
    body = {"apiVersion": LEASES.api_version, "kind": "Lease", "metadata": {"name": "hami"}}
    await client.post(LEASES.path(cluster.namespace), {**body, "spec": {"holderIdentity": ""}})
    lost = Fault(verb="patch", resource="leases", times=1, drop=Drop.AFTER)
    cluster.sandbox.faults.add(lost)
    slow = Fault(verb="get", resource="leases", delay_seconds=0.5)
    first = Candidate(client, cluster, "first")

    async with first.campaigning():

        async def written() -> bool:
            return lost.hits > 0

        await until(written)
        cluster.sandbox.faults.add(slow)
    cluster.sandbox.faults.clear()

    assert (await lease(client, cluster))["holderIdentity"] == ""


@pytest.mark.faults
async def test_each_reign_of_one_process_has_a_term_of_its_own(
    client: KubeClient, cluster: Cluster
) -> None:
    first = Candidate(client, cluster, "first", QUICK)
    terms: list[int] = []

    async with first.campaigning():
        await soon(first.began)
        terms.append(first.elector.term)
        fault = cluster.sandbox.faults.add(Fault(resource="leases", status=503))
        await soon(first.ended)
        cluster.sandbox.faults.remove(fault)

        async def leads_again() -> bool:
            return first.reigns > 1

        await until(leads_again)
        terms.append(first.elector.term)

    assert terms == [0, 1], "though it never gave the Lease back"


@pytest.mark.faults
async def test_candidates_that_saw_the_same_free_lease_do_not_both_get_it(
    client: KubeClient, cluster: Cluster
) -> None:
    body = {"apiVersion": LEASES.api_version, "kind": "Lease", "metadata": {"name": "hami"}}
    await client.post(LEASES.path(cluster.namespace), {**body, "spec": {"holderIdentity": ""}})
    cluster.sandbox.faults.add(Fault(verb="patch", resource="leases", times=5, delay_seconds=0.1))
    candidates = [Candidate(client, cluster, f"candidate-{number}") for number in range(5)]

    async with anyio.create_task_group() as group:
        for candidate in candidates:
            await group.start(candidate.elector.run, candidate.lead)

        async def all_have_tried() -> bool:
            return cluster.sandbox.requests["patch", "leases"] > len(candidates)

        await until(all_have_tried)
        reigns = [candidate.reigns for candidate in candidates]
        group.cancel_scope.cancel()

    assert sorted(reigns) == [0, 0, 0, 0, 1]


@pytest.mark.faults
async def test_a_leader_that_cannot_renew_stops_before_anybody_may_follow(
    client: KubeClient, cluster: Cluster
) -> None:
    first = Candidate(client, cluster, "first", QUICK)

    async with first.campaigning():
        await soon(first.began)
        fault = cluster.sandbox.faults.add(Fault(resource="leases", status=503))
        await soon(first.ended)
        assert not first.elector.is_leader
        cluster.sandbox.faults.remove(fault)

        async def leads_again() -> bool:
            return first.reigns > 1

        await until(leads_again)


@pytest.mark.parametrize(
    "times",
    [
        {"duration_seconds": 10.0, "renew_deadline_seconds": 10.0},
        {"renew_deadline_seconds": 2.0, "retry_seconds": 2.0},
        {"retry_seconds": 0.0},
    ],
)
def test_times_that_allow_two_leaders_are_refused(times: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        LeaseTimes(**times)
