"""What admission makes of namespace quotas."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest

from hami.core.admission import Rules, admit
from hami.core.device import PodRequest
from hami.core.objects import Pod
from hami.core.quota import Lack, Need, QuotaBook, needs, read_quota
from hami.errors import AdmissionError
from tests.core.test_admission import CORES, GPU, MEM, admitted, container, pod, rules
from tests.support.builders import VENDORS, make_quota


def rules_with(memory: int | None = None, cores: int | None = None) -> tuple[Rules, list[Need]]:
    """Rules with one quota in namespace ``default``, and what pods are seen to need."""
    book, seen = QuotaBook(), list[Need]()
    book.set_quota(read_quota(make_quota(memory=memory, cores=cores), VENDORS)[0])

    def lack(namespace: str, request: PodRequest) -> Lack | None:
        need = needs(request, device_memory={})
        seen.extend(need.values())
        room = book.room(namespace)
        return next(iter(room.lacks(need)), None) if room is not None else None

    return replace(rules(), lack=lack), seen


def test_pod_that_its_namespace_has_no_room_for_is_refused() -> None:
    site, _ = rules_with(memory=5000)
    fits = pod(container(limits={GPU: 1, MEM: 5000}))
    too_much = pod(container(limits={GPU: 2, MEM: 3000}))

    admitted(fits, site)
    with pytest.raises(AdmissionError) as refusal:
        admitted(too_much, site)

    assert str(refusal.value) == (
        "exceeding resource quota: quota default/gpus: limits.nvidia.com/gpumem: "
        "needs 6000 MiB, 5000 of 5000 left"
    )


def test_namespace_of_the_review_counts_and_not_what_the_pod_says() -> None:
    site, _ = rules_with(memory=0)
    raw = pod(container(limits={GPU: 1, MEM: 1}), metadata={"namespace": ""})

    admit(msgspec.convert(raw, Pod), raw, site, namespace="elsewhere")
    with pytest.raises(AdmissionError, match="quota"):
        admit(msgspec.convert(raw, Pod), raw, site, namespace="default")


@pytest.mark.parametrize(
    ("asked", "need"),
    [
        pytest.param({MEM: 3000}, Need(memory=3000, cores=0), id="count left out"),
        pytest.param({GPU: 2}, Need(memory=0, cores=200), id="whole devices have all the cores"),
        pytest.param({GPU: 2, MEM: 10, CORES: 30}, Need(memory=20, cores=60), id="all said"),
    ],
)
def test_what_is_filled_in_counts(asked: dict[str, int], need: Need) -> None:
    site, seen = rules_with()

    admitted(pod(container(limits=asked)), site)

    assert seen == [need]


def test_pods_that_are_not_ours_or_ask_for_nothing_are_not_looked_at() -> None:
    site, seen = rules_with(memory=0, cores=0)

    admitted(pod(container(limits={GPU: 1}), schedulerName="another"), site)
    admitted(pod(container()), site)

    assert seen == []


def test_weights_of_a_pod_whose_count_is_filled_in_are_looked_at() -> None:
    raw = pod(
        container(limits={MEM: 3000}),
        metadata={"annotations": {"hami.io/device-scoring-weights": "slot=1"}},
    )

    with pytest.raises(AdmissionError, match="weights"):
        admitted(raw)
