"""What ``kubectl get`` prints: a row of columns for each kind.

Pure functions from an object and the time to a cell. Status is written by others and not validated,
so a cell that cannot be made of it says so and leaves the other rows alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from hami.sandbox.apiserver.podstatus import ready_text, restarts_text, status_text
from hami.sandbox.apiserver.records import Object
from hami.sandbox.apiserver.timetext import age_of, ago

Cell = Callable[[Object, datetime], Any]
_NONE: Final = "<none>"
_ROLE_PREFIX: Final = "node-role.kubernetes.io/"


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column; those with a priority above 0 are for ``-o wide``."""

    name: str
    cell: Cell
    type: str = "string"
    format: str = ""
    priority: int = 0

    def show(self, obj: Object, now: datetime) -> Any:  # noqa: ANN401 - any JSON value
        """The cell of an object."""
        try:
            return self.cell(obj, now)
        except (AttributeError, KeyError, TypeError, ValueError):
            return "<invalid>"

    def define(self) -> Object:
        """The ``columnDefinition`` of a Table."""
        return {
            "name": self.name,
            "type": self.type,
            "format": self.format,
            "description": "",
            "priority": self.priority,
        }


def columns_of(plural: str) -> tuple[Column, ...]:
    """The columns of a kind; name and age where it has none of its own."""
    return _COLUMNS.get(plural, (_NAME, _AGE))


def _at(*path: str, default: object = _NONE) -> Cell:
    """The cell that shows the value at the path."""

    def cell(obj: Object, _: datetime) -> object:
        value: Any = obj
        for part in path:
            value = value.get(part) if isinstance(value, Mapping) else None
        return default if value is None or value == "" else value

    return cell


def _count(*path: str) -> Cell:
    value_at = _at(*path, default=())

    def cell(obj: Object, now: datetime) -> int:
        value = value_at(obj, now)
        return len(value) if isinstance(value, list | dict) else 0

    return cell


def _wide(name: str, cell: Cell) -> Column:
    return Column(name=name, cell=cell, priority=1)


def _node_status(node: Object, _: datetime) -> str:
    conditions = (node.get("status") or {}).get("conditions") or ()
    ready = [one.get("status") for one in conditions if one.get("type") == "Ready"]
    text = "Unknown" if not ready else "Ready" if ready[0] == "True" else "NotReady"
    unschedulable = (node.get("spec") or {}).get("unschedulable")
    return f"{text},SchedulingDisabled" if unschedulable else text


def _node_roles(node: Object, _: datetime) -> str:
    labels = node["metadata"].get("labels") or {}
    roles = [key.removeprefix(_ROLE_PREFIX) for key in labels if key.startswith(_ROLE_PREFIX)]
    return ",".join(sorted(roles)) or _NONE


def _node_address(address_type: str) -> Cell:
    def cell(node: Object, _: datetime) -> object:
        addresses = (node.get("status") or {}).get("addresses") or ()
        found = [one.get("address") for one in addresses if one.get("type") == address_type]
        return found[0] if found else _NONE

    return cell


def _readiness_gates(pod: Object, _: datetime) -> str:
    gates = (pod.get("spec") or {}).get("readinessGates") or ()
    if not gates:
        return _NONE
    conditions = (pod.get("status") or {}).get("conditions") or ()
    met = {one.get("type") for one in conditions if one.get("status") == "True"}
    return f"{sum(gate.get('conditionType') in met for gate in gates)}/{len(gates)}"


def _event_object(event: Object, _: datetime) -> str:
    involved = event.get("involvedObject") or {}
    return f"{str(involved.get('kind', '')).lower()}/{involved.get('name', '')}"


def _event_source(event: Object, _: datetime) -> str:
    source = event.get("source") or {}
    parts = (source.get("component") or event.get("reportingComponent"), source.get("host"))
    return ", ".join(str(part) for part in parts if part)


def _event_time(*names: str) -> Cell:
    def cell(event: Object, now: datetime) -> str:
        series = event.get("series") or {}
        for name in names:
            if text := (series if name == "lastObservedTime" else event).get(name):
                return ago(text, now)
        return "<unknown>"

    return cell


def _quota_used(prefix_is_limits: bool) -> Cell:
    def cell(quota: Object, _: datetime) -> str:
        hard = (quota.get("spec") or {}).get("hard") or {}
        used = (quota.get("status") or {}).get("used") or {}
        return ", ".join(
            f"{name}: {used.get(name, '?')}/{limit}"
            for name, limit in sorted(hard.items())
            if name.startswith("limits.") is prefix_is_limits
        )

    return cell


def _service_ports(service: Object, _: datetime) -> str:
    ports: Iterable[Mapping[str, Any]] = (service.get("spec") or {}).get("ports") or ()
    shown = (f"{port.get('port')}/{port.get('protocol', 'TCP')}" for port in ports)
    return ",".join(shown) or _NONE


def _endpoint_addresses(endpoints: Object, _: datetime) -> str:
    return (
        ",".join(
            f"{address.get('ip')}:{port.get('port')}"
            for subset in endpoints.get("subsets") or ()
            for address in subset.get("addresses") or ()
            for port in subset.get("ports") or ()
        )
        or _NONE
    )


_NAME: Final = Column(name="Name", cell=_at("metadata", "name"), format="name")
_AGE: Final = Column(name="Age", cell=age_of)

_COLUMNS: Final[Mapping[str, tuple[Column, ...]]] = {
    "pods": (
        _NAME,
        Column(name="Ready", cell=ready_text),
        Column(name="Status", cell=status_text),
        Column(name="Restarts", cell=restarts_text),
        _AGE,
        _wide("IP", _at("status", "podIP")),
        _wide("Node", _at("spec", "nodeName")),
        _wide("Nominated Node", _at("status", "nominatedNodeName")),
        _wide("Readiness Gates", _readiness_gates),
    ),
    "nodes": (
        _NAME,
        Column(name="Status", cell=_node_status),
        Column(name="Roles", cell=_node_roles),
        _AGE,
        Column(name="Version", cell=_at("status", "nodeInfo", "kubeletVersion", default="")),
        _wide("Internal-IP", _node_address("InternalIP")),
        _wide("External-IP", _node_address("ExternalIP")),
        _wide("OS-Image", _at("status", "nodeInfo", "osImage", default="<unknown>")),
        _wide("Kernel-Version", _at("status", "nodeInfo", "kernelVersion", default="<unknown>")),
        _wide(
            "Container-Runtime",
            _at("status", "nodeInfo", "containerRuntimeVersion", default="<unknown>"),
        ),
    ),
    "namespaces": (_NAME, Column(name="Status", cell=_at("status", "phase", default="")), _AGE),
    "events": (
        Column(
            name="Last Seen",
            cell=_event_time("lastObservedTime", "lastTimestamp", "firstTimestamp", "eventTime"),
        ),
        Column(name="Type", cell=_at("type", default="")),
        Column(name="Reason", cell=_at("reason", default="")),
        Column(name="Object", cell=_event_object),
        _wide("Subobject", _at("involvedObject", "fieldPath", default="")),
        _wide("Source", _event_source),
        Column(name="Message", cell=_at("message", default="")),
        _wide("First Seen", _event_time("firstTimestamp", "eventTime")),
        Column(name="Count", cell=_at("count", default=1), type="integer", priority=1),
        _wide("Name", _at("metadata", "name")),
    ),
    "configmaps": (_NAME, Column(name="Data", cell=_count("data"), type="integer"), _AGE),
    "secrets": (
        _NAME,
        Column(name="Type", cell=_at("type", default="")),
        Column(name="Data", cell=_count("data"), type="integer"),
        _AGE,
    ),
    "services": (
        _NAME,
        Column(name="Type", cell=_at("spec", "type", default="ClusterIP")),
        Column(name="Cluster-IP", cell=_at("spec", "clusterIP")),
        Column(name="External-IP", cell=_at("spec", "externalName")),
        Column(name="Port(s)", cell=_service_ports),
        _AGE,
    ),
    "endpoints": (_NAME, Column(name="Endpoints", cell=_endpoint_addresses), _AGE),
    "resourcequotas": (
        _NAME,
        Column(name="Request", cell=_quota_used(prefix_is_limits=False)),
        Column(name="Limit", cell=_quota_used(prefix_is_limits=True)),
        _AGE,
    ),
    "leases": (_NAME, Column(name="Holder", cell=_at("spec", "holderIdentity", default="")), _AGE),
    "poddisruptionbudgets": (
        _NAME,
        Column(name="Min Available", cell=_at("spec", "minAvailable", default="N/A")),
        Column(name="Max Unavailable", cell=_at("spec", "maxUnavailable", default="N/A")),
        _AGE,
    ),
    "priorityclasses": (
        _NAME,
        Column(name="Value", cell=_at("value", default=0), type="integer"),
        Column(name="Global-Default", cell=_at("globalDefault", default=False), type="boolean"),
        _AGE,
        Column(name="PreemptionPolicy", cell=_at("preemptionPolicy", default="")),
    ),
    "mutatingwebhookconfigurations": (
        _NAME,
        Column(name="Webhooks", cell=_count("webhooks"), type="integer"),
        _AGE,
    ),
    "validatingwebhookconfigurations": (
        _NAME,
        Column(name="Webhooks", cell=_count("webhooks"), type="integer"),
        _AGE,
    ),
}
