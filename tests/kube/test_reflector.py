"""Whatever happens to lists and watches, the reflector goes on from the right place."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from hami.core.objects import Pod
from hami.kube import reflector as reflectors
from hami.kube.backoff import Backoff
from hami.kube.client import KubeClient
from hami.kube.informer import Informer
from hami.kube.watching import Event
from tests.support.kube import SOON, eventually, pod_informer, pod_reflector, until, value_of
from tests.support.playing import (
    Play,
    Player,
    breaking,
    chattering,
    event,
    listing,
    raw_pod,
    refuse,
    sending,
    silent,
    status,
)

QUICK = Backoff(base_seconds=0.001, cap_seconds=0.01)
ONE = listing(1, raw_pod("a", 1))
B2 = event("ADDED", raw_pod("b", 2))


class Scene:
    """A player, and an informer that follows it."""

    def __init__(self, player: Player, client: KubeClient, informer: Informer[Pod]) -> None:
        self.player = player
        self.client = client
        self.informer = informer

    async def names(self, *expected: str) -> None:
        """Return once the store holds these and nothing else."""
        wanted = sorted(expected)
        await eventually(
            self.informer,
            lambda: sorted(pod.metadata.name for pod in self.informer.list()) == wanted,
        )

    async def watching_from(self, *versions: int) -> None:
        """Return once the watches so far went on from these versions."""

        async def reached() -> bool:
            return self.player.watched == [str(version) for version in versions]

        await until(reached)

    def restarts(self, reason: str) -> float:
        return value_of(self.client.metrics.watch_restarts, "pods", reason)


@asynccontextmanager
async def scene(
    directory: Path, *watches: Play, lists: list[Play] | None = None, **options: Any
) -> AsyncIterator[Scene]:
    player = Player(lists=lists or [ONE], watches=list(watches))
    async with player.client(directory) as client, anyio.create_task_group() as group:
        informer = pod_informer(client, "ns", **{"backoff": QUICK, **options})
        with anyio.fail_after(SOON):
            await group.start(informer.run)
        yield Scene(player, client, informer)
        group.cancel_scope.cancel()


async def test_a_watch_goes_on_from_the_list(tmp_path: Path) -> None:
    async with scene(tmp_path, silent(B2, event("DELETED", raw_pod("a", 3)))) as played:
        await played.names("b")
        await played.watching_from(1)


async def test_a_watch_that_ended_goes_on_from_its_last_event(tmp_path: Path) -> None:
    async with scene(tmp_path, sending(B2)) as played:
        await played.watching_from(1, 2)
        assert len(played.player.listed) == 1


async def test_a_watch_that_broke_goes_on_from_its_last_event(tmp_path: Path) -> None:
    broken = breaking(B2, event("ADDED", raw_pod("c", 3))[:20])
    async with scene(tmp_path, broken, silent(event("ADDED", raw_pod("c", 3)))) as played:
        await played.names("a", "b", "c")
        await played.watching_from(1, 2)
        assert (played.restarts("failed"), len(played.player.listed)) == (1, 1)


async def test_a_half_line_at_the_end_of_a_stream_is_not_taken_for_an_event(
    tmp_path: Path,
) -> None:
    async with scene(tmp_path, sending(B2, event("DELETED", raw_pod("a", 3))[:-1])) as played:
        await played.watching_from(1, 2)
        await played.names("a", "b")
        assert len(played.player.listed) == 1


async def test_a_bookmark_moves_the_place_to_go_on_from(tmp_path: Path) -> None:
    bookmark = event("BOOKMARK", {"metadata": {"resourceVersion": "77"}})
    async with scene(tmp_path, sending(bookmark)) as played:
        await played.watching_from(1, 77)


@pytest.mark.parametrize(
    "expired",
    [refuse(410), sending(event("ERROR", status(410, "Expired")))],
    ids=["status", "event"],
)
async def test_a_version_that_is_too_old_is_listed_again(tmp_path: Path, expired: Play) -> None:
    lists = [ONE, listing(9, raw_pod("c", 8))]
    async with scene(tmp_path, expired, lists=lists) as played:
        await played.names("c")
        await played.watching_from(1, 9)
        assert played.restarts("expired") == 1


@pytest.mark.parametrize(
    "line",
    [b"{not json\n", b"[]\n", b'{"type":"ADDED","object":{}}\n', event("LOST", raw_pod("x", 5))],
    ids=["no json", "wrong shape", "nameless", "unknown type"],
)
async def test_a_line_that_cannot_be_trusted_is_reported_and_listed_over(
    tmp_path: Path, line: bytes
) -> None:
    lists = [ONE, listing(9, raw_pod("c", 8))]
    async with scene(tmp_path, silent(B2, line), lists=lists) as played:
        await played.names("c")
        assert played.restarts("malformed") == 1
        assert value_of(played.client.metrics.malformed, "pods") == 1


async def test_a_line_beyond_the_bound_is_listed_over(tmp_path: Path) -> None:
    lists = [ONE, listing(9, raw_pod("c", 8))]
    endless = silent(b'{"type":"ADDED","object":{"x":"' + b"x" * 2000)
    async with scene(tmp_path, endless, lists=lists, max_line_bytes=1000) as played:
        await played.names("c")
        assert played.restarts("malformed") == 1


async def test_the_largest_object_that_servers_take_passes(tmp_path: Path) -> None:
    big = raw_pod("big", 2)
    big["metadata"]["annotations"] = {"note": "x" * 3 * 1024 * 1024}
    async with scene(tmp_path, silent(event("ADDED", big))) as played:
        await played.names("a", "big")
        await played.watching_from(1)


async def test_a_silent_watch_is_renewed_from_where_it_was(tmp_path: Path) -> None:
    async with scene(tmp_path, silent(B2), inactivity_seconds=0.1) as played:
        await played.names("a", "b")

        async def renewed() -> bool:
            return played.player.watched[:2] == ["1", "2"]

        await until(renewed)
        assert played.restarts("silent") >= 1
        assert len(played.player.listed) == 1


async def test_a_watch_that_never_ends_is_renewed_by_the_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reflectors, "CLOCK_GRACE_SECONDS", 0.0)
    async with scene(tmp_path, chattering(), chattering(), watch_seconds=0.1) as played:

        async def renewed() -> bool:
            return len(played.player.watched) >= 2

        await until(renewed)
        assert played.restarts("clock") >= 1
        assert len(played.player.listed) == 1


async def test_a_list_that_expires_half_way_is_begun_again(tmp_path: Path) -> None:
    lists = [
        listing(1, raw_pod("old", 1), next_token="t"),
        refuse(410),
        listing(5, raw_pod("a", 4), next_token="u"),
        listing(5, raw_pod("b", 5)),
    ]
    async with scene(tmp_path, lists=lists) as played:
        await played.names("a", "b")
        tokens = [query.get("continue") for query in played.player.listed]
        assert tokens == [None, "t", None, "u"]
        await played.watching_from(5)


async def test_an_unreadable_object_in_a_list_stops_no_other(tmp_path: Path) -> None:
    bad = raw_pod("bad", 1, spec={"containers": "many"})
    nameless = {"metadata": {"uid": "?"}}
    lists = [listing(3, raw_pod("a", 1), bad, nameless, raw_pod("b", 2))]
    async with scene(tmp_path, lists=lists) as played:
        await played.names("a", "b")
        assert value_of(played.client.metrics.malformed, "pods") == 2


async def test_an_unreadable_object_in_a_watch_keeps_its_last_good_state(tmp_path: Path) -> None:
    bad = event("MODIFIED", raw_pod("a", 2, spec={"containers": "many"}))
    async with scene(tmp_path, silent(bad, event("ADDED", raw_pod("b", 3)))) as played:
        await played.names("a", "b")
        kept = played.informer.get("ns", "a")
        assert kept is not None
        assert kept.metadata.resource_version == "1"
        await played.watching_from(1)
        assert value_of(played.client.metrics.malformed, "pods") == 1


async def test_a_list_that_is_refused_is_asked_for_again(tmp_path: Path) -> None:
    lists = [refuse(500), refuse(403), refuse(429), sending(b"no list"), ONE]
    async with scene(tmp_path, lists=lists) as played:
        await played.names("a")
        reasons = {reason: played.restarts(reason) for reason in ("failed", "throttled")}
        assert reasons == {"failed": 2, "throttled": 1}
        assert played.restarts("malformed") == 1


async def test_a_server_that_keeps_refusing_a_version_is_listed_again(tmp_path: Path) -> None:
    restored = [refuse(504)] * reflectors.MAX_REFUSALS
    lists = [ONE, listing(1, raw_pod("restored", 1))]
    async with scene(tmp_path, *restored, lists=lists) as played:
        await played.names("restored")
        assert len(played.player.listed) == 2


async def test_watches_that_end_at_once_are_not_repeated_in_a_hurry(tmp_path: Path) -> None:
    patient = Backoff(base_seconds=3600.0, cap_seconds=3600.0)
    async with scene(
        tmp_path, sending(), backoff=patient, uniform=lambda: 1.0, watch_seconds=60.0
    ) as played:

        async def noticed() -> bool:
            return played.restarts("failed") == 1

        await until(noticed)
        await anyio.wait_all_tasks_blocked()
        assert played.player.watched == ["1"]


async def test_a_duplicated_event_is_harmless(tmp_path: Path) -> None:
    async with scene(tmp_path, silent(B2, B2, B2, event("DELETED", raw_pod("a", 3)))) as played:
        await played.names("b")


async def test_a_bug_in_the_receiver_ends_the_reflector(tmp_path: Path) -> None:
    def broken(_: Event[Pod]) -> None:
        raise ZeroDivisionError

    async with Player(lists=[ONE], watches=[]).client(tmp_path) as client:
        with anyio.fail_after(SOON), pytest.raises(ZeroDivisionError):
            await pod_reflector(client, "ns").run(broken)
