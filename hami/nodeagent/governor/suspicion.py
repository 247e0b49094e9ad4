"""Tenants whose use of a device does not fit what their shim says: noticed, told, perhaps held.

Three signs: a process that holds device memory and has no slot; memory beyond what hooks have seen
and a context explains; and a use that stays above its share although hardly anything is granted,
which means that the grant is not what paces it. The last is held back in any case, by stopping it
until the average is right (see ``account``).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final, Literal

from hami.config import NodeAgentSettings
from hami.core.quantity import BYTES_PER_MIB
from hami.nodeagent.governor.account import Account
from hami.nodeagent.governor.pacing import NS
from hami.nodeagent.governor.tenants import Tenant

Reason = Literal["stranger", "memory", "pace"]
SUSPEND_NS: Final = 30 * NS
"""A suspension holds so long after the last sign."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspicion:
    """Something that is not as it should be."""

    tenant: Tenant
    uuid: str
    reason: Reason
    detail: str
    suspends: bool
    """Whether the tenant's submissions wait now."""


class Watchman:
    """Looks at accounts; remembers what it has told."""

    def __init__(self, settings: NodeAgentSettings) -> None:
        self._most_bytes = settings.untracked_limit * BYTES_PER_MIB
        self._suspend = settings.untracked_policy == "suspend"
        self._told: set[tuple[str, Reason]] = set()
        self._news: list[Suspicion] = []
        self._last_sign: dict[str, int] = {}

    def look(self, account: Account, now_ns: int) -> None:
        """Look at one account."""
        meter, tenant = account.meter, account.tenant
        if not tenant.enforced:
            return
        if meter.strangers:
            self._note(
                account, now_ns, "stranger",
                f"{meter.strangers} of its processes use the device around the shim",
            )  # fmt: skip
        allowed = self._most_bytes * max(meter.processes, 1)
        if meter.excess_bytes() > allowed:
            self._note(
                account, now_ns, "memory",
                f"{meter.excess_bytes() // BYTES_PER_MIB} MiB are held that the shim has not seen",
            )  # fmt: skip
        if account.held:
            self._note(
                account, now_ns, "pace",
                "it uses more time than its limit, whatever it is granted",
            )  # fmt: skip

    def suspends(self, tenant: Tenant, now_ns: int) -> bool:
        """Whether the tenant's submissions are to wait."""
        if not self._suspend:
            return False
        sign = self._last_sign.get(tenant.key)
        return sign is not None and now_ns - sign < SUSPEND_NS

    def news(self) -> list[Suspicion]:
        """What has not been told yet."""
        told, self._news = self._news, []
        return told

    def forget(self, *, keep: Collection[str]) -> None:
        """Drop all tenants but these."""
        self._told = {sign for sign in self._told if sign[0] in keep}
        self._last_sign = {key: at for key, at in self._last_sign.items() if key in keep}

    def _note(self, account: Account, now_ns: int, reason: Reason, detail: str) -> None:
        tenant = account.tenant
        self._last_sign[tenant.key] = now_ns
        if (tenant.key, reason) in self._told:
            return
        self._told.add((tenant.key, reason))
        self._news.append(
            Suspicion(
                tenant=tenant,
                uuid=account.uuid,
                reason=reason,
                detail=detail,
                suspends=self._suspend,
            )
        )
