"""The scheduler extender's JSON (v1), between bytes and values. Pure.

Its Go types carry no JSON tags: keys are the Go names, any letter case is accepted, the exact names
are written, and what is unset is null. Source: ``k8s.io/kube-scheduler/extender/v1``.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sized
from functools import lru_cache
from typing import Final, TypeVar

import msgspec

from hami.core.objects import Pod
from hami.errors import CodecError

T = TypeVar("T")


class Args(msgspec.Struct, frozen=True, kw_only=True):
    """What filter and prioritize are asked: a pod, and nodes by name or as whole objects."""

    pod: Pod
    names: tuple[str, ...]
    objects: dict[str, msgspec.Raw] | None
    """The nodes' own JSON by name, where the caller sent objects and wants objects back."""


class BindArgs(msgspec.Struct, frozen=True, kw_only=True):
    """What bind is asked."""

    name: str
    namespace: str
    uid: str
    node: str

    @property
    def pod(self) -> str:
        """``namespace/name``."""
        return f"{self.namespace}/{self.name}"


class MetaVictims(msgspec.Struct, frozen=True, kw_only=True):
    """Pods of one node that would have to go, the most important first."""

    uids: tuple[str, ...]
    violations: int
    """How many evictions the disruption budgets do not allow."""


class PreemptArgs(msgspec.Struct, frozen=True, kw_only=True):
    """What preempt is asked: a pod, and the victims that were chosen for it, node by node."""

    pod: Pod
    nodes: dict[str, MetaVictims]


class _NodeList(msgspec.Struct, frozen=True, kw_only=True):
    items: tuple[msgspec.Raw, ...] = ()


class _Meta(msgspec.Struct, frozen=True, kw_only=True):
    name: str


class _Named(msgspec.Struct, frozen=True, kw_only=True):
    metadata: _Meta


class _ResultList(msgspec.Struct, frozen=True, kw_only=True):
    metadata: dict[str, str] = {}
    items: tuple[msgspec.Raw, ...]


class _FilterResult(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    nodes: _ResultList | None = None
    node_names: Iterable[str] | None = None
    failed_nodes: Mapping[str, str] | None = None
    failed_and_unresolvable_nodes: Mapping[str, str] | None = None
    error: str = ""


NAMES_KEPT: Final = 4
"""Lists of names that are known again; several schedulers, or samples of one, may take turns."""
MAX_NODES: Final = 50_000
"""In one question; ten times what Kubernetes is made for, and a bound on what is kept of it."""

_BIND_KEYS: Final = ("PodName", "PodNamespace", "PodUID", "Node")
_BIND_VALUE: Final = re.compile(r"[A-Za-z0-9]([-.A-Za-z0-9]{0,251}[A-Za-z0-9])?")
"""Names and uids of objects; whatever else, they must not bend the path of a request."""
_TOP = msgspec.json.Decoder(dict[str, msgspec.Raw])
_DECODE_ERRORS: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
_ENCODER = msgspec.json.Encoder()


class ArgsDecoder:
    """Decodes the arguments of filter and prioritize.

    Schedulers send the same thousands of names again and again: equal text gives the very tuple of
    the time before, by which those who work on the names may know them again.
    """

    def __init__(self) -> None:
        self._names: deque[tuple[bytes, tuple[str, ...]]] = deque(maxlen=NAMES_KEPT)

    def decode(self, body: bytes) -> Args:
        """The arguments.

        Raises:
            CodecError: The body is not what the protocol says, or names too many nodes.
        """
        fields = _fields(body, "ExtenderArgs")
        pod = _part(fields, "Pod", Pod)
        if pod is None:
            raise CodecError("ExtenderArgs: expected a Pod, met none")
        names = self._decode_names(fields)
        if names is not None:
            return Args(pod=pod, names=names, objects=None)
        nodes = _part(fields, "Nodes", _NodeList)
        if nodes is None:
            raise CodecError("ExtenderArgs: expected NodeNames or Nodes, met neither")
        _check_number(nodes.items)
        objects = {_name(raw): raw for raw in nodes.items}
        return Args(pod=pod, names=tuple(objects), objects=objects)

    def _decode_names(self, fields: Mapping[str, msgspec.Raw]) -> tuple[str, ...] | None:
        text = bytes(fields.get("nodenames", b"null"))
        for known, names in self._names:
            if known == text:
                return names
        decoded = _part(fields, "NodeNames", tuple[str, ...])
        if decoded is not None:
            _check_number(decoded)
            self._names.append((text, decoded))
        return decoded


def decode_bind(body: bytes) -> BindArgs:
    """The arguments of bind.

    Raises:
        CodecError: The body is not what the protocol says, leaves something empty, or names what
            cannot be the name of anything.
    """
    fields = _fields(body, "ExtenderBindingArgs")
    found = {key: _part(fields, key, str) or "" for key in _BIND_KEYS}
    missing = [key for key, value in found.items() if not value]
    if missing:
        raise CodecError(f"ExtenderBindingArgs: expected {', '.join(missing)}, met none")
    for key, value in found.items():
        if _BIND_VALUE.fullmatch(value) is None:
            raise CodecError(f"ExtenderBindingArgs: {key}: expected a name, met {value[:60]!r}")
    name, namespace, uid, node = found.values()
    return BindArgs(name=name, namespace=namespace, uid=uid, node=node)


def decode_preempt(body: bytes) -> PreemptArgs:
    """The arguments of preempt; of victims that come as whole pods the uids are taken.

    Raises:
        CodecError: The body is not what the protocol says, or names too many nodes.
    """
    what = "ExtenderPreemptionArgs"
    fields = _fields(body, what)
    pod = _part(fields, "Pod", Pod)
    if pod is None:
        raise CodecError(f"{what}: expected a Pod, met none")
    named = _part(fields, "NodeNameToMetaVictims", dict[str, msgspec.Raw])
    whole = _part(fields, "NodeNameToVictims", dict[str, msgspec.Raw])
    nodes = named or whole or {}
    _check_number(nodes)
    read = _meta_uid if named else _pod_uid
    return PreemptArgs(pod=pod, nodes={name: _victims(raw, read) for name, raw in nodes.items()})


def _victims(raw: msgspec.Raw, read: Callable[[msgspec.Raw], str]) -> MetaVictims:
    text = bytes(raw)
    fields = {} if text == b"null" else _fields(text, "Victims")
    pods = _part(fields, "Pods", tuple[msgspec.Raw, ...]) or ()
    violations = _part(fields, "NumPDBViolations", int) or 0
    return MetaVictims(uids=tuple(map(read, pods)), violations=violations)


def _meta_uid(raw: msgspec.Raw) -> str:
    uid = _part(_fields(bytes(raw), "MetaPod"), "UID", str)
    if not uid:
        raise CodecError("MetaPod: expected a UID, met none")
    return uid


def _pod_uid(raw: msgspec.Raw) -> str:
    try:
        return msgspec.json.decode(raw, type=Pod).metadata.uid
    except _DECODE_ERRORS as error:
        raise CodecError(f"Victims: Pods: {error}") from error


def encode_preempt(nodes: Mapping[str, MetaVictims]) -> bytes:
    """The answer of preempt: nodes that are left out are of no use to the pod."""
    victims = {
        name: {
            "Pods": [{"UID": uid} for uid in each.uids],
            "NumPDBViolations": each.violations,
        }
        for name, each in nodes.items()
    }
    return _ENCODER.encode({"NodeNameToMetaVictims": victims})


def encode_filter(args: Args, feasible: Iterable[str], failed: Mapping[str, str] | None) -> bytes:
    """The answer of filter, in the form of the question: names, or whole objects."""
    if args.objects is None:
        return _ENCODER.encode(_FilterResult(node_names=feasible, failed_nodes=failed))
    items = tuple(args.objects[name] for name in feasible)
    return _ENCODER.encode(_FilterResult(nodes=_ResultList(items=items), failed_nodes=failed))


def encode_filter_error(message: str) -> bytes:
    """The answer of a filter that could not be made."""
    return _ENCODER.encode(_FilterResult(error=message))


def encode_priorities(scores: Mapping[str, int]) -> bytes:
    """The answer of prioritize."""
    return b"[%b]" % b",".join([_host(host) % score for host, score in scores.items()])


@lru_cache(maxsize=MAX_NODES)
def _host(name: str) -> bytes:
    """One entry of that answer, but for the score: the same names come again and again."""
    return b'{"Host":%b,"Score":%%d}' % _ENCODER.encode(name).replace(b"%", b"%%")


def encode_bind(message: str) -> bytes:
    """The answer of bind: empty where the pod is bound, else why not."""
    return _ENCODER.encode({"Error": message})


def _fields(body: bytes, what: str) -> dict[str, msgspec.Raw]:
    """The top-level members by lower-cased key."""
    try:
        return {key.lower(): raw for key, raw in _TOP.decode(body).items()}
    except _DECODE_ERRORS as error:
        raise CodecError(f"{what}: {error}") from error


def _part(fields: Mapping[str, msgspec.Raw], key: str, shape: type[T]) -> T | None:
    """One member; None where it is missing or null."""
    raw = fields.get(key.lower())
    if raw is None or bytes(memoryview(raw)[:4]) == b"null":
        return None
    try:
        return msgspec.json.decode(raw, type=shape)
    except _DECODE_ERRORS as error:
        raise CodecError(f"{key}: {error}") from error


def _check_number(nodes: Sized) -> None:
    if len(nodes) > MAX_NODES:
        raise CodecError(f"ExtenderArgs: expected at most {MAX_NODES} nodes, met {len(nodes)}")


def _name(raw: msgspec.Raw) -> str:
    try:
        return msgspec.json.decode(raw, type=_Named).metadata.name
    except _DECODE_ERRORS as error:
        raise CodecError(f"Nodes: {error}") from error
