"""Pods wait, back off and come again as in kube-scheduler's queue."""

from __future__ import annotations

import msgspec

from hami.sandbox.scheduler.objects import Pod, decode_pod
from hami.sandbox.scheduler.queue import UNSCHEDULABLE_SECONDS, Change, Entry, Queue


def pod(name: str, *, priority: int = 0, **annotations: str) -> Pod:
    body = {
        "metadata": {"name": name, "uid": name, "annotations": annotations},
        "spec": {"priority": priority, "containers": [{"name": "main"}]},
    }
    return decode_pod(msgspec.Raw(msgspec.json.encode(body)))


def popped(queue: Queue, *, now: float) -> str | None:
    entry = queue.pop(now=now)
    return entry.pod.metadata.name if entry else None


def refused(queue: Queue, *, now: float, extender: bool = False, failed: bool = False) -> Entry:
    """The next pod is popped and put back at once."""
    entry = queue.pop(now=now)
    assert entry is not None
    entry.extender_refused = extender
    queue.put_back(entry, entry.pod, failed=failed, now=now)
    return entry


def test_priority_goes_first_then_who_came_first() -> None:
    queue = Queue()
    for index, each in enumerate([pod("a"), pod("b"), pod("c", priority=5)]):
        queue.put(each, now=float(index))
    assert [popped(queue, now=9) for _ in range(4)] == ["c", "a", "b", None]


def test_an_unschedulable_pod_waits_until_something_happens() -> None:
    queue = Queue()
    queue.put(pod("a"), now=0)
    refused(queue, now=0)
    assert popped(queue, now=100) is None
    queue.move(Change.NODE, now=100)
    assert popped(queue, now=100) == "a"


def test_it_does_not_wait_for_ever() -> None:
    queue = Queue()
    queue.put(pod("a"), now=0)
    refused(queue, now=0)
    assert queue.next_due() == UNSCHEDULABLE_SECONDS
    assert popped(queue, now=UNSCHEDULABLE_SECONDS) == "a"


def test_a_pod_that_is_moved_early_still_backs_off() -> None:
    queue = Queue()
    queue.put(pod("a"), now=0)
    refused(queue, now=0)
    queue.move(Change.NODE, now=0.5)
    assert popped(queue, now=0.9) is None
    assert queue.next_due() == 1.0
    assert popped(queue, now=1.0) == "a"


def test_back_off_doubles_up_to_its_cap() -> None:
    queue = Queue()
    queue.put(pod("a"), now=0)
    waits, now = [], 0.0
    for _ in range(6):
        refused(queue, now=now, failed=True)
        waits.append(queue.next_due() - now)
        now = queue.next_due()
    assert waits == [1, 2, 4, 8, 10, 10]


def test_only_a_pod_that_an_extender_refused_cares_about_pods_that_come() -> None:
    queue = Queue()
    queue.put(pod("a"), now=0)
    queue.put(pod("b"), now=1)
    refused(queue, now=1)
    refused(queue, now=1, extender=True)
    queue.move(Change.TAKEN, now=100)
    assert [popped(queue, now=100) for _ in range(2)] == ["b", None]


def test_a_change_of_the_pod_itself_counts_and_its_status_does_not() -> None:
    queue = Queue()
    queue.put(pod("a"), now=0)
    refused(queue, now=0)
    queue.put(pod("a"), now=100)
    assert popped(queue, now=100) is None
    queue.put(pod("a", changed="yes"), now=100)
    assert popped(queue, now=100) == "a"


def test_what_happens_meanwhile_is_not_missed() -> None:
    queue = Queue()
    queue.put(pod("a"), now=0)
    entry = queue.pop(now=0)
    assert entry is not None
    queue.move(Change.NODE, now=0.1)
    queue.put_back(entry, entry.pod, failed=False, now=0.2)
    assert queue.waiting()["backoff"] == 1


def test_a_removed_pod_does_not_come_back() -> None:
    queue = Queue()
    for name in "abc":
        queue.put(pod(name), now=0)
    refused(queue, now=0)
    refused(queue, now=0, failed=True)
    for name in "abc":
        queue.remove(name)
    queue.move(Change.NODE, now=100)
    assert popped(queue, now=1000) is None


def test_a_pod_that_was_removed_and_added_again_waits_anew() -> None:
    queue = Queue()
    queue.put(pod("a"), now=0)
    queue.put(pod("b"), now=1)
    queue.remove("a")
    queue.put(pod("a"), now=2)
    assert [popped(queue, now=3) for _ in range(3)] == ["b", "a", None]
