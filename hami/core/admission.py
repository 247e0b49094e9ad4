"""Admission: a pod in, the JSON patch that makes it schedulable out, or a refusal for its author.

Fills in what the request leaves unsaid (count, exclusive cores), passes settings on as environment,
and gives the pod to this project's scheduler. What its namespace has no room for is refused. Only
what changes is patched, and admitting a patched pod again changes nothing, so that re-invocation
and fields unknown to us are safe. All that differs between accelerators comes from the vendor rows.
Input: pods as their authors wrote them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from hami.core.device import PodRequest
from hami.core.objects import Container, Pod, PodSpec
from hami.core.quantity import MAX_INT32, parse_whole
from hami.core.quota import Lack
from hami.core.request import WHOLE, Defaults, read_request
from hami.core.vendor import Vendor, VendorTable
from hami.errors import AdmissionError, CodecError, QuantityError

Operation = dict[str, Any]
"""One operation of a JSON patch (RFC 6902)."""

DEFAULT_SCHEDULER: Final = "default-scheduler"
HIDDEN: Final = "none"
"""What a container's list of visible devices says when there are none for it."""


def _nothing_lacks(_namespace: str, _request: PodRequest) -> None:
    """Where there are no quotas."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """How this site admits pods."""

    vendors: VendorTable
    defaults: Defaults
    scheduler_name: str
    """Given to pods that ask for devices; empty leaves their scheduler as it is."""
    overwrite_default_scheduler: bool = True
    """Whether pods of the default scheduler are taken over."""
    lack: Callable[[str, PodRequest], Lack | None] = _nothing_lacks
    """What the quotas of a namespace lack for a pod, wherever it goes."""


def admit(
    pod: Pod, raw: Mapping[str, Any], rules: Rules, *, namespace: str = ""
) -> tuple[Operation, ...]:
    """The operations that make the pod ready to be scheduled; none if it is no business of ours.

    Args:
        pod: The pod, decoded.
        raw: The same pod as it came, to which the operations apply.
        rules: How this site admits pods.
        namespace: Where it is made; by default where the pod itself says.

    Raises:
        AdmissionError: The pod must be refused; the message names the container and the resource,
            or the quota.
    """
    return tuple(_draft(pod, raw, rules, namespace).operations)


def admitted(pod: Pod, raw: Mapping[str, Any], rules: Rules) -> Pod:
    """The pod as it is once its operations are applied; see ``admit``."""
    return _draft(pod, raw, rules, pod.metadata.namespace).complete(pod)


def _draft(pod: Pod, raw: Mapping[str, Any], rules: Rules, namespace: str) -> _Draft:
    if not pod.spec.containers:
        raise AdmissionError("the pod has no containers")
    draft = _Draft(raw)
    if _is_for_others(pod, rules):
        return draft
    vendors = rules.vendors.values()
    asked = [vendor for vendor in vendors if _admit_containers(pod, vendor, draft)]
    if asked:
        _check_pod(pod, rules)
        _check_demand(draft.complete(pod), rules, namespace or pod.metadata.namespace)
        _admit_pod(pod, asked, draft, rules)
    return draft


def _is_for_others(pod: Pod, rules: Rules) -> bool:
    name = pod.spec.scheduler_name
    if not name or name == rules.scheduler_name:
        return False
    return not (name == DEFAULT_SCHEDULER and rules.overwrite_default_scheduler)


def _admit_containers(pod: Pod, vendor: Vendor, draft: _Draft) -> bool:
    """Complete each container's request of one vendor; whether any container has one."""
    any_asked = False
    for path, container in _containers(pod):
        asked = _Asked.read(container, vendor)
        if asked is None:
            if vendor.overwrite_env and vendor.env.visible_devices:
                draft.set_env(path, vendor.env.visible_devices, HIDDEN)
            continue
        any_asked = True
        for name, value in asked.missing_limits(vendor):
            draft.put((*path, "resources", "limits", name), str(value))
        for name, text in asked.environment(vendor):
            draft.set_env(path, name, text)
    return any_asked


def _check_pod(pod: Pod, rules: Rules) -> None:
    """Refuse what could not be scheduled, or not be limited, in spite of a sound request."""
    for _, container in _containers(pod):
        if container.security_context and container.security_context.privileged:
            raise AdmissionError(
                f"container {container.name!r} is privileged: it would see every device of its "
                "node, so a pod with device requests must not have one"
            )
    if pod.spec.node_name:
        raise AdmissionError(
            f"the pod has node {pod.spec.node_name!r} assigned: devices are chosen by scheduler "
            f"{rules.scheduler_name!r}; use a node selector instead of spec.nodeName"
        )


def _check_demand(pod: Pod, rules: Rules, namespace: str) -> None:
    """Refuse a demand, with all its defaults, that filter could not read or quotas do not allow."""
    try:
        request = read_request(pod, rules.vendors, rules.defaults)
    except CodecError as error:
        raise AdmissionError(str(error)) from error
    lack = rules.lack(namespace, request)
    if lack is not None:
        raise AdmissionError(f"exceeding resource quota: {lack}")


def _admit_pod(pod: Pod, asked: Sequence[Vendor], draft: _Draft, rules: Rules) -> None:
    if rules.scheduler_name and pod.spec.scheduler_name != rules.scheduler_name:
        draft.put(("spec", "schedulerName"), rules.scheduler_name)
    runtime_class = next((v.runtime_class_name for v in asked if v.runtime_class_name), "")
    if runtime_class and not pod.spec.runtime_class_name:
        draft.put(("spec", "runtimeClassName"), runtime_class)


Path = tuple[str | int, ...]


def _containers(pod: Pod) -> Iterator[tuple[Path, Container]]:
    """Every container with its place in the pod, init containers first."""
    for i, container in enumerate(pod.spec.init_containers or ()):
        yield ("spec", "initContainers", i), container
    for i, container in enumerate(pod.spec.containers or ()):
        yield ("spec", "containers", i), container


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """What one container says of one vendor; None where it says nothing."""

    count: int | None
    memory: int | None
    percentage: int | None
    cores: int | None
    priority: int | None

    @classmethod
    def read(cls, container: Container, vendor: Vendor) -> _Asked | None:
        """What the container asks; None if that makes no request.

        Raises:
            AdmissionError: A quantity is malformed or out of range, or two contradict each other.
        """
        names = vendor.resources
        most = MAX_INT32 // vendor.memory_factor
        asked = cls(
            count=_whole(container, names.count),
            memory=_whole(container, names.memory, maximum=most),
            percentage=_whole(container, names.memory_percentage, maximum=WHOLE),
            cores=_whole(container, names.cores),
            priority=_whole(container, names.priority),
        )
        if asked.memory is not None and asked.percentage is not None:
            raise AdmissionError(
                f"container {container.name!r} asks for both {names.memory} and "
                f"{names.memory_percentage}: give one of them"
            )
        sizes = (asked.memory, asked.percentage, asked.cores)
        sized = any(size is not None for size in sizes) and vendor.default_count > 0
        return asked if asked.count is not None or sized else None

    def missing_limits(self, vendor: Vendor) -> Iterator[tuple[str, int]]:
        """The limits that the request leaves to us.

        A request for whole devices, explicitly or by saying nothing of memory, is for their whole
        compute as well, unless it says otherwise.
        """
        names = vendor.resources
        if self.count is None:
            yield names.count, vendor.default_count
        whole = self.memory is None if self.percentage is None else self.percentage == WHOLE
        fill = vendor.fill_cores and bool(names.cores)
        if fill and self.cores is None and whole and self.count != 0:
            yield names.cores, WHOLE

    def environment(self, vendor: Vendor) -> Iterator[tuple[str, str]]:
        """The variables that tell the container about its devices."""
        if self.count == 0:
            return
        if vendor.env.priority and self.priority is not None:
            yield vendor.env.priority, str(self.priority)
        if vendor.env.core_policy and vendor.core_policy not in {"", "default"}:
            yield vendor.env.core_policy, vendor.core_policy


def _whole(container: Container, name: str, *, maximum: int = MAX_INT32) -> int | None:
    """A resource of the container, its limit before its request; None if it names neither."""
    resources = container.resources
    if resources is None or not name:
        return None
    for source in (resources.limits, resources.requests):
        if source and name in source:
            try:
                return parse_whole(source[name], maximum=maximum)
            except QuantityError as error:
                raise AdmissionError(f"container {container.name!r}, {name}: {error}") from error
    return None


class _Draft:
    """The pod as patched so far, and the operations that took it there."""

    def __init__(self, raw: Mapping[str, Any]) -> None:
        self._pod: dict[str, Any] = {"spec": copy.deepcopy(raw.get("spec"))}
        self.operations: list[Operation] = []

    def put(self, path: Path, value: object) -> None:
        """Set the value at the path, with whatever is missing on the way there."""
        parent: Any = self._pod
        for depth, step in enumerate(path[:-1], start=1):
            child = _child(parent, step)
            if child is None:
                parent[step] = _nest(path[depth:], value)
                self._record("add", path[:depth], _nest(path[depth:], value))
                return
            parent = child
        self._record("add", path, value)
        parent[path[-1]] = value

    def complete(self, pod: Pod) -> Pod:
        """The pod with what is patched so far."""
        return msgspec.structs.replace(pod, spec=msgspec.convert(self._pod["spec"], PodSpec))

    def set_env(self, container: Path, name: str, value: str) -> None:
        """Make the variable have this value, once: the last of its name is the one that counts."""
        spec: Any = self._pod
        for step in container:
            spec = spec[step]
        variables: list[dict[str, Any]] | None = spec.get("env")
        wanted = {"name": name, "value": value}
        if variables is None:
            spec["env"] = [wanted]
            self._record("add", (*container, "env"), [dict(wanted)])
            return
        at = max((i for i, v in enumerate(variables) if v.get("name") == name), default=None)
        if at is None:
            variables.append(wanted)
            self._record("add", (*container, "env", "-"), dict(wanted))
        elif variables[at] != wanted:
            variables[at] = wanted
            self._record("replace", (*container, "env", at), dict(wanted))

    def _record(self, op: str, path: Iterable[str | int], value: object) -> None:
        pointer = "".join(f"/{_escape(str(step))}" for step in path)
        self.operations.append({"op": op, "path": pointer, "value": value})


def _child(parent: Any, step: str | int) -> Any:  # noqa: ANN401 - raw JSON
    """What stands at one step; None where nothing does."""
    try:
        return parent[step]
    except KeyError:
        return None


def _nest(path: Path, value: object) -> object:
    for step in reversed(path):
        value = {step: value}
    return value


def _escape(step: str) -> str:
    """One step of a JSON pointer (RFC 6901)."""
    return step.replace("~", "~0").replace("/", "~1")
