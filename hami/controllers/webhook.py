"""AdmissionReviews: the API server's question about a new pod, and the answer.

Every body gets an answer that the API server understands, whatever it is; what cannot be read is
refused with the reason. Versions v1 and v1beta1 are the same here. Knows no HTTP and no rule about
pods (see ``hami.core.admission``).
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any, Final, Literal

import msgspec

from hami.core.admission import Rules, admit
from hami.core.objects import Pod
from hami.errors import AdmissionError

GROUP: Final = "admission.k8s.io/"
VERSIONS: Final = ("v1", "v1beta1")

Result = Literal["patched", "unchanged", "denied", "malformed"]


class _Kind(msgspec.Struct, frozen=True):
    kind: str = ""


class _Request(msgspec.Struct, frozen=True, rename="camel"):
    uid: str = ""
    kind: _Kind = _Kind()
    sub_resource: str = ""
    namespace: str = ""
    operation: str = ""
    object: msgspec.Raw = msgspec.Raw()  # None is no alternative: Raw takes null too


class _Review(msgspec.Struct, frozen=True, rename="camel"):
    api_version: str = ""
    kind: str = ""
    request: _Request | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What to send, and what to count and log."""

    body: bytes
    result: Result
    pod: str = ""
    """``namespace/name``, as far as it is known."""
    message: str = ""


_REVIEW = msgspec.json.Decoder(_Review)
_ENCODER = msgspec.json.Encoder()
_DECODE_ERRORS = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


def review(body: bytes, rules: Rules) -> Answer:
    """The answer to an AdmissionReview. Never raises."""
    try:
        asked = _REVIEW.decode(body)
    except _DECODE_ERRORS as error:
        return refuse(_Review(), 400, f"expected an AdmissionReview, met {error}")
    group, _, version = asked.api_version.rpartition("/")
    if asked.kind != "AdmissionReview" or asked.request is None:
        return refuse(asked, 400, "expected an AdmissionReview with a request")
    if asked.api_version and (f"{group}/" != GROUP or version not in VERSIONS):
        return refuse(asked, 400, f"expected admission.k8s.io/v1, met {asked.api_version[:60]!r}")
    return _answer(asked, asked.request, rules)


def refuse(asked: _Review | None, code: int, message: str) -> Answer:
    """Refuse what cannot be judged."""
    status = {"metadata": {}, "status": "Failure", "message": message, "code": code}
    return Answer(
        body=_encode(asked or _Review(), {"allowed": False, "status": status}),
        result="malformed",
        message=message,
    )


def _answer(asked: _Review, request: _Request, rules: Rules) -> Answer:
    if request.kind.kind not in {"", "Pod"} or request.sub_resource or not _is_creation(request):
        return _allow(asked, request, "", ())
    if not request.object or bytes(request.object) == b"null":
        return refuse(asked, 400, "expected a pod in request.object, met nothing")
    try:
        pod = msgspec.json.decode(request.object, type=Pod)
        raw = msgspec.json.decode(request.object, type=dict[str, Any])
    except _DECODE_ERRORS as error:
        return refuse(asked, 400, f"request.object: expected a pod, met {error}")
    meta = pod.metadata
    namespace = request.namespace or meta.namespace
    name = f"{namespace}/{meta.name or meta.generate_name}"
    try:
        return _allow(asked, request, name, admit(pod, raw, rules, namespace=namespace))
    except AdmissionError as error:
        return _deny(asked, name, str(error))
    except RecursionError:  # no pod of an API server; too deep to be copied
        return refuse(asked, 400, "request.object: expected a pod, met one nested too deeply")


def _is_creation(request: _Request) -> bool:
    return request.operation in {"", "CREATE"}


def _allow(
    asked: _Review, request: _Request, pod: str, patch: tuple[dict[str, Any], ...]
) -> Answer:
    response: dict[str, Any] = {"allowed": True}
    if patch:
        response["patchType"] = "JSONPatch"
        response["patch"] = base64.b64encode(_ENCODER.encode(patch)).decode()
    response["status"] = {"metadata": {}, "code": 200}
    return Answer(
        body=_encode(asked, response), result="patched" if patch else "unchanged", pod=pod
    )


def _deny(asked: _Review, pod: str, message: str) -> Answer:
    status = {
        "metadata": {},
        "status": "Failure",
        "message": message,
        "reason": "Forbidden",
        "code": 403,
    }
    body = _encode(asked, {"allowed": False, "status": status})
    return Answer(body=body, result="denied", pod=pod, message=message)


def _encode(asked: _Review, response: dict[str, Any]) -> bytes:
    known = {GROUP + version for version in VERSIONS}
    return _ENCODER.encode(
        {
            "apiVersion": asked.api_version if asked.api_version in known else f"{GROUP}v1",
            "kind": "AdmissionReview",
            "response": {"uid": asked.request.uid if asked.request else "", **response},
        }
    )
