"""What pods ask of each vendor, and what admission makes of it: the same answer of both."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from hami.config import HygonSettings, Settings
from hami.core.admission import Rules, admit
from hami.core.objects import Pod
from hami.core.quantity import MAX_INT32
from hami.core.request import Defaults, read_container
from hami.core.vendor import Vendor
from hami.core.vendors.enflame import ENFLAME_GCU
from hami.core.vendors.hygon import HYGON
from hami.errors import AdmissionError, QuantityError
from hami.site import vendor_table
from tests.support.builders import Quantity, make_container

VENDORS = vendor_table(Settings())
FACTOR_3 = vendor_table(Settings(hygon=HygonSettings(memory_factor=3)))[HYGON.name]
NUM, MEM, CORES = HYGON.resources.all()
(CARDS,) = ENFLAME_GCU.resources.all()

Asked = tuple[int, int, int, int] | None
"""Count, MiB, percent of memory, cores."""


def read(
    vendor: Vendor,
    *,
    limits: dict[str, Quantity] | None = None,
    requests: dict[str, Quantity] | None = None,
) -> Asked:
    request = read_container(make_container(limits=limits, requests=requests), vendor)
    if request is None:
        return None
    return request.count, request.memory, request.memory_percent, request.cores


@pytest.mark.parametrize(
    ("vendor", "asked", "expected"),
    [
        pytest.param(HYGON, {}, None, id="nothing"),
        pytest.param(HYGON, {MEM: 5, CORES: 5}, None, id="dcu-no-count"),
        pytest.param(HYGON, {NUM: 0}, None, id="dcu-zero"),
        pytest.param(HYGON, {NUM: 1}, (1, 0, 100, 100), id="dcu-count-only"),
        pytest.param(HYGON, {NUM: 2, MEM: 2000}, (2, 2000, 0, 100), id="dcu-memory"),
        pytest.param(HYGON, {NUM: 1, CORES: 60}, (1, 0, 100, 60), id="dcu-cores"),
        pytest.param(HYGON, {NUM: 1, CORES: 0}, (1, 0, 100, 0), id="dcu-no-cores-on-purpose"),
        pytest.param(HYGON, {NUM: 1, CORES: 500}, (1, 0, 100, 100), id="dcu-cores-clamped"),
        pytest.param(HYGON, {NUM: 1, MEM: "16Ki"}, (1, 16384, 0, 100), id="dcu-suffix"),
        pytest.param(FACTOR_3, {NUM: 1, MEM: 7}, (1, 21, 0, 100), id="dcu-factor"),
        pytest.param(ENFLAME_GCU, {}, None, id="gcu-nothing"),
        pytest.param(ENFLAME_GCU, {CARDS: 0}, None, id="gcu-zero"),
        pytest.param(ENFLAME_GCU, {CARDS: "2"}, (2, 100, 0, 100), id="gcu-two"),
    ],
)
def test_request_is_read_from_limits_or_else_from_requests(
    vendor: Vendor, asked: dict[str, Quantity], expected: Asked
) -> None:
    assert read(vendor, limits=asked) == expected
    assert read(vendor, requests=asked) == expected


def test_limits_win_over_requests() -> None:
    assert read(HYGON, limits={NUM: 1}, requests={NUM: 3, MEM: 9}) == (1, 9, 0, 100)


MALFORMED: list[tuple[Vendor, dict[str, Quantity]]] = [
    (HYGON, {NUM: -1}),
    (HYGON, {NUM: "500m"}),
    (HYGON, {NUM: MAX_INT32 + 1}),
    (HYGON, {NUM: 1, MEM: -1}),
    (HYGON, {NUM: 1, MEM: "1.5"}),
    (HYGON, {NUM: 1, MEM: "16Gi"}),
    (FACTOR_3, {NUM: 1, MEM: MAX_INT32 // 3 + 1}),
    (HYGON, {NUM: 1, CORES: MAX_INT32 + 1}),
    (ENFLAME_GCU, {CARDS: "many"}),
    (ENFLAME_GCU, {CARDS: 2**31}),
]


@pytest.mark.parametrize(("vendor", "asked"), MALFORMED)
def test_what_cannot_be_meant_is_an_error_for_both_readers(
    vendor: Vendor, asked: dict[str, Quantity]
) -> None:
    with pytest.raises(QuantityError, match="container 'main'"):
        read(vendor, limits=asked)
    with pytest.raises(AdmissionError, match="container 'main'"):
        admitted(asked, vendor)


def admitted(limits: dict[str, Quantity], *vendors: Vendor, **spec: Any) -> list[dict[str, Any]]:
    raw = {
        "metadata": {"name": "p"},
        "spec": {"containers": [{"name": "main", "resources": {"limits": limits}}], **spec},
    }
    table = {v.name: v for v in vendors} if vendors else VENDORS
    rules = Rules(vendors=table, defaults=Defaults(), scheduler_name="hami-scheduler")
    return list(admit(msgspec.convert(raw, Pod), raw, rules))


@pytest.mark.parametrize(
    "limits",
    [{NUM: 1}, {NUM: 1, MEM: 100}, {NUM: 1, CORES: 30}, {CARDS: 2}, {NUM: 1, CARDS: 1}],
)
def test_pod_is_given_to_the_scheduler_and_its_limits_are_left_alone(
    limits: dict[str, Quantity],
) -> None:
    patch = admitted(limits)

    assert patch == [{"op": "add", "path": "/spec/schedulerName", "value": "hami-scheduler"}]


@pytest.mark.parametrize("limits", [{}, {MEM: 100}, {CORES: 3}])
def test_pod_without_a_count_is_no_business_of_ours(limits: dict[str, Quantity]) -> None:
    assert admitted(limits) == []


def test_privileged_container_is_refused_beside_any_vendors_devices() -> None:
    with pytest.raises(AdmissionError, match="privileged"):
        admitted(
            {CARDS: 1}, initContainers=[{"name": "i", "securityContext": {"privileged": True}}]
        )
