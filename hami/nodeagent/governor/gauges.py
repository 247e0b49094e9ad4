"""What the governor knows, for Prometheus: shares, modes and use of each container and device."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric as MetricFamily

from hami import metrics
from hami.metrics import Metric
from hami.nodeagent.governor.loop import Governed, Governor
from hami.nodeagent.region import CoreMode

MODES: Final = ("off", "limit", "block", "hold", "suspend")


def families(governor: Governor, here: Collection[str], *, zone: str) -> Iterator[MetricFamily]:
    """Everything as it is now; of the pods with these uids."""
    rows = [row for row in governor.status() if row.tenant.pod_uid in here]
    for row, values in (
        (metrics.CONTAINER_UTILIZATION, [_percent(r.use_permille) for r in rows]),
        (metrics.CONTAINER_CORE_LIMIT, [_percent(r.limit_permille or None) for r in rows]),
        (metrics.CONTAINER_CORE_SHARE, [_percent(r.share_permille) for r in rows]),
        (metrics.CONTAINER_UNTRACKED, [r.untracked_bytes for r in rows]),
    ):
        family = GaugeMetricFamily(row.name, row.help, labels=[*row.labels, "zone"])
        for governed, value in zip(rows, values, strict=True):
            if value is not None:
                family.add_metric([*_labels(governed), zone], value)
        yield family
    row = metrics.CONTAINER_THROTTLED
    throttled = CounterMetricFamily(row.name, row.help, labels=[*row.labels, "zone"])
    for governed in rows:
        throttled.add_metric([*_labels(governed), zone], governed.waited_seconds)
    yield throttled
    row = metrics.CONTAINER_CORE_MODE
    modes = GaugeMetricFamily(row.name, row.help, labels=[*row.labels, "zone"])
    for governed in rows:
        for mode in MODES:
            modes.add_metric([*_labels(governed), mode, zone], mode == mode_of(governed))
    yield modes
    yield from _counts(governor)


def mode_of(governed: Governed) -> str:
    """One of MODES."""
    if governed.held and governed.mode is CoreMode.BLOCK:
        return "hold"
    return governed.mode.name.lower()


def _counts(governor: Governor) -> Iterator[MetricFamily]:
    counts = governor.counts
    for row, value in (
        (metrics.GOVERNOR_TICKS, counts.ticks),
        (metrics.GOVERNOR_SECONDS, counts.tick_seconds),
        (metrics.GOVERNOR_DRIVER_ERRORS, counts.driver_errors),
        (metrics.GOVERNOR_REGION_ERRORS, counts.tenant_errors),
    ):
        yield _counter(row, value)
    row = metrics.SUSPICIONS
    family = CounterMetricFamily(row.name, row.help, labels=list(row.labels))
    for reason in ("stranger", "memory", "pace"):
        family.add_metric([reason], counts.suspicions.get(reason, 0))
    yield family


def _counter(row: Metric, value: float) -> CounterMetricFamily:
    family = CounterMetricFamily(row.name, row.help)
    family.add_metric([], value)
    return family


def _labels(row: Governed) -> list[str]:
    tenant = row.tenant
    return [tenant.namespace, tenant.pod, tenant.container, str(row.index), row.uuid]


def _percent(permille: float | None) -> float | None:
    return None if permille is None else permille / 10
