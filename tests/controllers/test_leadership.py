"""Who leads: the rule of the scheduler's Lease, names, reigns and what they refuse."""

from __future__ import annotations

from collections.abc import Callable

import anyio
import pytest

from hami.config import ControllerSettings, Settings
from hami.controllers import leadership
from hami.controllers.leadership import Identity, Leadership, Mandate, leads_on
from hami.errors import ConfigError, HamiError, NotLeaderError, UnavailableError
from hami.kube.client import connect
from hami.sandbox.apiserver import ApiServer
from tests.support.kube import until


@pytest.mark.parametrize(
    ("host", "holder", "expected"),
    [
        ("x-1", "x-1_6c1fcb3e-5a0e-4b6e-9a41-8c58e4e3f6a5", True),
        ("x-1", "x-10_6c1fcb3e-5a0e-4b6e-9a41-8c58e4e3f6a5", False),
        ("x-10", "x-1_6c1fcb3e-5a0e-4b6e-9a41-8c58e4e3f6a5", False),
        ("x-1", "x-1", True),
        ("x-1", "x-1_a_b", True),
        ("x-1", "X-1_a", False),
        ("x-1", "", False),
        ("", "", False),
        ("", "_a", True),
        ("x-1", "_x-1", False),
    ],
)
def test_a_scheduler_is_beside_its_controller_by_the_whole_host_name(
    host: str, holder: str, expected: bool
) -> None:
    assert leads_on(host, holder) is expected


def test_two_processes_never_have_one_name() -> None:
    settings, environment = ControllerSettings(), {"POD_NAME": "hami-7d9f-abcde"}

    first, second = (Identity.of(settings, environment) for _ in range(2))

    assert first.name.startswith("hami-7d9f-abcde_")
    assert first.name != second.name
    assert first.host == second.host, "of the machine, which a pod may share (hostNetwork)"


def test_a_given_identity_is_name_and_host() -> None:
    identity = Identity.of(ControllerSettings(identity="x-1"), {"POD_NAME": "other"})

    assert identity.host == "x-1"
    assert identity.name.startswith("x-1_")


def test_lease_times_that_allow_two_leaders_are_refused() -> None:
    settings = ControllerSettings(leader_elect=True, lease_renew_seconds=20.0)

    with pytest.raises(ConfigError, match="duration > renew deadline > retry"):
        leadership.make(settings, None, {})  # type: ignore[arg-type]


class Reign:
    """What is done at the beginning and end of reigns."""

    def __init__(self, *failures: HamiError) -> None:
        self.failures = list(failures)
        self.mandates: list[Mandate] = []
        self.resigned = 0

    async def take_over(self, mandate: Mandate) -> None:
        self.mandates.append(mandate)
        if self.failures:
            raise self.failures.pop(0)

    def resign(self) -> None:
        self.resigned += 1


async def test_without_an_election_this_process_leads_until_its_end() -> None:
    alone, reign = Leadership("me"), Reign()
    assert not alone.is_ready

    async with anyio.create_task_group() as group:
        await group.start(alone.run, reign.take_over, reign.resign)
        assert (alone.is_leader, alone.is_ready, alone.role) == (True, True, "leader")
        mandate = alone.mandate()
        assert (mandate.mark, alone.term, alone.leader) == ("me/0", 0, "me")
        mandate.require()
        group.cancel_scope.cancel()

    assert reign.resigned == 1
    assert not alone.is_leader
    with pytest.raises(NotLeaderError, match="nobody is"):
        alone.require()
    with pytest.raises(NotLeaderError, match="the reign me/0 is over"):
        mandate.require()


async def test_a_take_over_that_fails_is_made_again_before_anything_is_decided() -> None:
    reign = Reign(UnavailableError("no answer"), UnavailableError("no answer"))
    alone = Leadership("me")

    async with anyio.create_task_group() as group:
        await group.start(alone.run, reign.take_over, reign.resign)
        group.cancel_scope.cancel()

    assert len(reign.mandates) == 3


async def test_nothing_is_decided_while_it_takes_over() -> None:
    alone, begun, go_on = Leadership("me"), anyio.Event(), anyio.Event()

    async def take_over(mandate: Mandate) -> None:
        mandate.require()  # its own writes are sent
        begun.set()
        await go_on.wait()

    async with anyio.create_task_group() as group:
        group.start_soon(alone.run, take_over, lambda: None)
        await begun.wait()
        assert not alone.is_leader
        with pytest.raises(NotLeaderError, match="taking over"):
            alone.require()
        go_on.set()
        await alone.changed(within_seconds=10.0)
        alone.require()
        group.cancel_scope.cancel()


def test_a_mandate_of_an_earlier_reign_is_refused_in_a_later_one() -> None:
    present: list[Mandate] = []

    def lasts(mandate: Mandate) -> bool:
        return present == [mandate]

    first = Mandate(identity="me", term=1, lasts=lasts)
    second = Mandate(identity="me", term=1, lasts=lasts)
    present.append(second)

    second.require()
    with pytest.raises(NotLeaderError):
        first.require()


@pytest.mark.faults
async def test_a_scheduler_that_renews_no_more_takes_the_leadership_along(
    server: ApiServer, configure: Callable[..., Settings]
) -> None:
    meta = {"name": "hami-scheduler", "namespace": "default"}
    body = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": meta}
    spec = {"holderIdentity": "x-1_a", "leaseDurationSeconds": 3}
    server.store.create({**body, "spec": spec})
    settings = configure(
        leader_elect=True,
        identity="x-1",
        lease_namespace="default",
        scheduler_lease_name="hami-scheduler",
    )
    reign = Reign()

    async with connect(settings.kube) as client, anyio.create_task_group() as group:
        leads = leadership.make(settings.controller, client, {})
        await group.start(leads.run, reign.take_over, reign.resign)

        async def begun_and_over() -> bool:
            return bool(reign.resigned)

        await until(begun_and_over)
        assert not leads.is_leader
        assert len(reign.mandates) == 1

        async def given_back() -> bool:
            found = server.store.get("leases", "hami-controller")
            return not found["spec"]["holderIdentity"]

        await until(given_back)
        with pytest.raises(NotLeaderError, match="nobody is"):
            leads.require()
        group.cancel_scope.cancel()
