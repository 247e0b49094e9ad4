"""Namespace quotas: how much device memory and compute a namespace's pods may have together.

Owns the reading of ResourceQuotas, what a pod counts for, and the book of ceilings and usage. A pod
counts for the peak over its life of the sum over its devices, in MiB and percent, whatever unit the
quota is written in. Of several quotas the tightest counts, key by key. Knows neither nodes nor
pods: ``hami.core.cache`` owns the one book and moves its usage with every reservation.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import Final

from hami.core.allocation import Allocation
from hami.core.device import DeviceRequest, PodRequest, Role, VendorName
from hami.core.objects import ResourceQuota
from hami.core.quantity import parse_whole
from hami.core.vendor import Vendor, VendorTable
from hami.errors import QuantityError

KEY_PREFIX: Final = "limits."
MAX_CEILING: Final = 2**53
"""Whatever is above counts as this: more than there is, and exact in every kind of number."""
_ANY_QUANTITY: Final = 10**130
"""Above the largest that can be written."""


class Kind(Enum):
    """What is counted; the value is its unit."""

    MEMORY = " MiB"
    CORES = "%"


@dataclass(frozen=True, slots=True, kw_only=True)
class Amount:
    """Of one vendor's devices, how much together."""

    memory: int = 0
    """MiB."""
    cores: int = 0
    """Percent."""

    def __add__(self, other: Amount) -> Amount:
        """Both at the same time."""
        return Amount(memory=self.memory + other.memory, cores=self.cores + other.cores)

    def __sub__(self, other: Amount) -> Amount:
        """Without the other."""
        return Amount(memory=self.memory - other.memory, cores=self.cores - other.cores)

    def __or__(self, other: Amount) -> Amount:
        """One after the other: the larger of each."""
        return Amount(
            memory=max(self.memory, other.memory),
            cores=max(self.cores, other.cores),
        )

    def of(self, kind: Kind) -> int:
        """One of the two."""
        return self.memory if kind is Kind.MEMORY else self.cores


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What a request counts for, before its devices are chosen."""

    memory: int | None
    """MiB; None where shares of devices are asked for and it depends on which they are."""
    cores: int

    def of(self, kind: Kind) -> int | None:
        """One of the two."""
        return self.memory if kind is Kind.MEMORY else self.cores


QuotaUse = Mapping[VendorName, Amount]
"""What a pod counts for; vendors of which it counts for nothing are left out."""
NO_USE: Final[QuotaUse] = MappingProxyType({})
_NOTHING: Final = Amount()


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceiling:
    """One key of one ResourceQuota."""

    quota: str
    """``namespace/name``."""
    key: str
    """As it stands in ``spec.hard``."""
    vendor: VendorName
    kind: Kind
    most: int
    """MiB or percent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """One ResourceQuota, as far as it is about devices."""

    namespace: str
    name: str
    ceilings: tuple[Ceiling, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lack:
    """What does not fit under a ceiling."""

    ceiling: Ceiling
    needed: int
    left: int
    """Negative where more is in use than allowed, as after a quota was lowered."""

    def __str__(self) -> str:
        """``quota team-a/gpus: limits.example.com/memory: needs 6000 MiB, 1200 of 10000 left``."""
        c = self.ceiling
        return (
            f"quota {c.quota}: {c.key}: needs {self.needed}{c.kind.value}, "
            f"{max(self.left, 0)} of {c.most} left"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What is left under the tightest ceiling of each key of a namespace, at one moment."""

    left: tuple[tuple[Ceiling, int], ...]
    """Negative where more is in use than allowed."""

    def of(self, vendor: VendorName, kind: Kind) -> int | None:
        """How much of it is left; None if nothing limits it."""
        return next((n for c, n in self.left if c.vendor == vendor and c.kind is kind), None)

    def lacks(self, use: QuotaUse | Mapping[VendorName, Need]) -> tuple[Lack, ...]:
        """Every ceiling that the pod would break.

        What it does not need at all is never lacking, and what is not known yet is not looked at.
        """
        return tuple(
            Lack(ceiling=ceiling, needed=needed, left=left)
            for ceiling, left in self.left
            if (own := use.get(ceiling.vendor)) is not None
            and (needed := own.of(ceiling.kind))
            and needed > left
        )


# -- reading -----------------------------------------------------------------------------------


def read_quota(obj: ResourceQuota, vendors: VendorTable) -> tuple[Quota, tuple[str, ...]]:
    """The object's ceilings, and what is wrong with those of its keys that are left out."""
    meta, hard = obj.metadata, obj.spec.hard or {}
    ceilings: list[Ceiling] = []
    problems: list[str] = []
    for vendor in vendors.values():
        for kind, name in resource_names(vendor):
            key = KEY_PREFIX + name
            if key not in hard:
                continue
            try:
                most = parse_whole(hard[key], maximum=_ANY_QUANTITY)
            except QuantityError as error:
                problems.append(f"{key}: {error}")
                continue
            ceilings.append(
                Ceiling(
                    quota=f"{meta.namespace}/{meta.name}",
                    key=key,
                    vendor=vendor.name,
                    kind=kind,
                    most=min(most * _factor(vendor, kind), MAX_CEILING),
                )
            )
    quota = Quota(namespace=meta.namespace, name=meta.name, ceilings=tuple(ceilings))
    return quota, tuple(problems)


def resource_names(vendor: Vendor) -> Iterator[tuple[Kind, str]]:
    """The vendor's resources that quotas can limit."""
    names = vendor.resources
    if names.memory:
        yield Kind.MEMORY, names.memory
    if names.cores:
        yield Kind.CORES, names.cores


def _factor(vendor: Vendor, kind: Kind) -> int:
    """What takes a number in the vendor's unit to MiB or percent."""
    return vendor.memory_factor if kind is Kind.MEMORY else 1


# -- what a pod counts for ---------------------------------------------------------------------


def use_of(allocation: Allocation, *, init_done: bool = False) -> QuotaUse:
    """What the pod counts for; without its init containers once they are done."""
    roles = allocation.roles
    steps: list[tuple[Role, dict[VendorName, Amount]]] = []
    for position, devices in enumerate(allocation.containers):
        own: dict[VendorName, Amount] = defaultdict(Amount)
        for device in devices:
            own[device.vendor] += Amount(memory=device.memory, cores=device.cores)
        steps.append((roles[position] if position < len(roles) else Role.APP, own))
    return _peak(steps, init_done=init_done)


def needs(
    request: PodRequest, *, device_memory: Mapping[VendorName, int] | None = None
) -> dict[VendorName, Need]:
    """What a pod counts for, as far as that is known before its devices are.

    Args:
        request: What the pod asks for.
        device_memory: How large a device of each vendor is taken to be where a share of one is
            asked for, 0 for a vendor that is missing; None leaves such memory open.
    """
    sizes = device_memory or {}
    peak = _peak(
        (
            container.role,
            {asked.vendor: _amount(asked, sizes) for asked in container.requests},
        )
        for container in request.containers
    )
    asked = [asked for container in request.containers for asked in container.requests]
    open_memory = {a.vendor for a in asked if device_memory is None and _is_share(a)}
    return {
        vendor: Need(
            memory=None if vendor in open_memory else peak.get(vendor, _NOTHING).memory,
            cores=peak.get(vendor, _NOTHING).cores,
        )
        for vendor in dict.fromkeys(a.vendor for a in asked)
    }


def asks_shares(request: PodRequest) -> frozenset[VendorName]:
    """The vendors of whose devices the pod asks for a share, and not for so much memory."""
    return frozenset(
        asked.vendor
        for container in request.containers
        for asked in container.requests
        if _is_share(asked)
    )


def _is_share(asked: DeviceRequest) -> bool:
    return not asked.memory and asked.memory_percent > 0


def _amount(asked: DeviceRequest, sizes: Mapping[VendorName, int]) -> Amount:
    """Of all its devices together; a share as it is rounded when a device is charged."""
    memory = asked.memory or sizes.get(asked.vendor, 0) * asked.memory_percent // 100
    return Amount(memory=memory * asked.count, cores=asked.cores * asked.count)


def _peak(
    steps: Iterable[tuple[Role, Mapping[VendorName, Amount]]], *, init_done: bool = False
) -> dict[VendorName, Amount]:
    """The most that the containers have at one time, as ``allocation.peak`` counts it."""
    highest: dict[VendorName, Amount] = {}
    running: dict[VendorName, Amount] = {}
    for role, own in steps:
        for vendor, amount in own.items():
            together = running.get(vendor, _NOTHING) + amount
            if role is not Role.INIT:
                running[vendor] = together
            elif not init_done:
                highest[vendor] = highest.get(vendor, _NOTHING) | together
    for vendor, amount in running.items():
        highest[vendor] = highest.get(vendor, _NOTHING) | amount
    return {vendor: amount for vendor, amount in highest.items() if amount != _NOTHING}


# -- the book ----------------------------------------------------------------------------------


class QuotaBook:
    """Every namespace's ceilings and usage.

    Attributes:
        generation: Moves whenever a ceiling or the usage of any namespace does.
        on_room: Is told each namespace in which more may fit than before; it only takes note.
    """

    def __init__(self) -> None:
        self.generation = 0
        self.on_room: Callable[[str], None] = lambda _namespace: None
        self._quotas: dict[str, dict[str, Quota]] = {}
        self._tightest: dict[str, tuple[Ceiling, ...]] = {}
        self._used: dict[str, dict[VendorName, Amount]] = {}

    def duplicate(self) -> QuotaBook:
        """A book of its own with the same content, for trying things out."""
        twin = QuotaBook()
        twin.generation = self.generation
        twin._quotas = {name: dict(own) for name, own in self._quotas.items()}
        twin._tightest = dict(self._tightest)
        twin._used = {name: dict(used) for name, used in self._used.items()}
        return twin

    def set_quota(self, quota: Quota) -> None:
        """Make the quota be this. Idempotent."""
        if not quota.ceilings:
            self.remove_quota(quota.namespace, quota.name)
            return
        own = self._quotas.setdefault(quota.namespace, {})
        if own.get(quota.name) != quota:
            own[quota.name] = quota
            self._find_tightest(quota.namespace)

    def remove_quota(self, namespace: str, name: str) -> None:
        """Forget the quota; the namespace's others stand. Idempotent."""
        own = self._quotas.get(namespace, {})
        if own.pop(name, None) is not None:
            self._find_tightest(namespace)

    def charge(self, namespace: str, use: QuotaUse, *, sign: int) -> None:
        """Add (sign 1) or take back (sign -1) what a pod counts for."""
        if not use:
            return
        used = self._used.setdefault(namespace, {})
        for vendor, amount in use.items():
            before = used.get(vendor, _NOTHING)
            after = before + amount if sign > 0 else before - amount
            if after == _NOTHING:
                used.pop(vendor, None)
            else:
                used[vendor] = after
        if not used:
            del self._used[namespace]
        self.generation += 1
        if sign < 0 and namespace in self._tightest:
            self.on_room(namespace)

    def used(self, namespace: str) -> QuotaUse:
        """What the namespace's pods count for together, now."""
        return dict(self._used.get(namespace, {}))

    def ceilings(self, namespace: str) -> tuple[Ceiling, ...]:
        """The tightest of each key."""
        return self._tightest.get(namespace, ())

    def namespaces(self) -> frozenset[str]:
        """Those with a quota or with usage."""
        return frozenset(self._tightest) | frozenset(self._used)

    def room(self, namespace: str, *, without: QuotaUse = NO_USE) -> Room | None:
        """What is left in the namespace; None if it has no quota.

        Args:
            namespace: Whose.
            without: What of the usage does not count, for it will be replaced.
        """
        ceilings = self._tightest.get(namespace)
        if ceilings is None:
            return None
        used = self._used.get(namespace, {})
        return Room(
            left=tuple(
                (
                    c,
                    c.most
                    - used.get(c.vendor, _NOTHING).of(c.kind)
                    + without.get(c.vendor, _NOTHING).of(c.kind),
                )
                for c in ceilings
            )
        )

    def lack(self, namespace: str, use: QuotaUse, *, without: QuotaUse = NO_USE) -> Lack | None:
        """The first ceiling that a pod of the namespace would break; see ``room``."""
        room = self.room(namespace, without=without)
        return next(iter(room.lacks(use)), None) if room is not None else None

    def _find_tightest(self, namespace: str) -> None:
        """Of the keys of all quotas the lowest numbers; of equal ones the first quota by name."""
        own, before = self._quotas[namespace], self._tightest.get(namespace, ())
        tightest: dict[tuple[VendorName, Kind], Ceiling] = {}
        for name in sorted(own):
            for ceiling in own[name].ceilings:
                key = ceiling.vendor, ceiling.kind
                if key not in tightest or ceiling.most < tightest[key].most:
                    tightest[key] = ceiling
        if tightest:
            self._tightest[namespace] = tuple(tightest.values())
        else:
            del self._quotas[namespace], self._tightest[namespace]
        self.generation += 1
        if any(
            (now := tightest.get((old.vendor, old.kind))) is None or now.most > old.most
            for old in before
        ):
            self.on_room(namespace)
