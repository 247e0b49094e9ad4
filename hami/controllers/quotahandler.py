"""From the watch to the quota book: ResourceQuotas, one object at a time.

Level-based and idempotent, like its neighbours in ``handlers``. A key that cannot be read is
reported and limits nothing; the object's other keys, and all other quotas, stand.
"""

from __future__ import annotations

from hami.controllers.counters import ControllerCounters
from hami.core.objects import ResourceQuota
from hami.core.quota import QuotaBook, read_quota
from hami.core.vendor import VendorTable
from hami.kube.events import EventRecorder
from hami.kube.resources import RESOURCE_QUOTAS, ObjectRef
from hami.logs import get_logger

log = get_logger(__name__)


class QuotaHandler:
    """Keeps what namespaces may have."""

    def __init__(
        self,
        book: QuotaBook,
        *,
        vendors: VendorTable,
        recorder: EventRecorder,
        counters: ControllerCounters,
    ) -> None:
        self._book = book
        self._vendors = vendors
        self._recorder = recorder
        self._counters = counters

    def on_set(self, obj: ResourceQuota, old: ResourceQuota | None) -> None:
        """Count the quota as it is now."""
        quota, problems = read_quota(obj, self._vendors)
        self._book.set_quota(quota)
        if problems and (old is None or old.spec != obj.spec):
            self._report(obj, "; ".join(problems))

    def on_delete(self, obj: ResourceQuota) -> None:
        """The quota limits nothing any more; others of its namespace stand."""
        self._book.remove_quota(obj.metadata.namespace, obj.metadata.name)

    def _report(self, obj: ResourceQuota, problem: str) -> None:
        self._counters.malformed.labels("quota").inc()
        log.warning(
            "quota_malformed",
            namespace=obj.metadata.namespace,
            quota=obj.metadata.name,
            error=problem,
        )
        self._recorder.record(
            ObjectRef.to(RESOURCE_QUOTAS, obj), "QuotaUnreadable", problem, type="Warning"
        )
