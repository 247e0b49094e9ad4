"""The rules that an object must keep to be stored, as far as this project depends on them.

Pure: an object of a checked shape (and on update the old one) in, field errors out.
"""

from __future__ import annotations

import base64
import binascii
import copy
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from typing import Any, Final

from hami.core.quantity import parse_quantity
from hami.errors import QuantityError
from hami.sandbox.apiserver import selectors
from hami.sandbox.apiserver.answers import FieldError, StatusError
from hami.sandbox.apiserver.defaults import containers_of
from hami.sandbox.apiserver.kinds import Kind
from hami.sandbox.apiserver.names import (
    check_metadata,
    dns_label_error,
    dns_subdomain_error,
    forbidden,
    invalid_value,
    qualified_name_error,
    required,
)
from hami.sandbox.apiserver.records import Object

_MUTABLE_POD_FIELDS: Final = (
    "`spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,"
    "`spec.tolerations` (only additions to existing tolerations)"
)
_NATIVE: Final = frozenset(("cpu", "memory", "ephemeral-storage", "storage"))


def validate(kind: Kind, obj: Object, old: Object | None) -> list[FieldError]:
    """Everything that is wrong with the object; empty if it may be stored."""
    errors = check_metadata(kind, obj["metadata"])
    errors += _RULES.get(kind.plural, _no_rules)(obj)
    if kind.plural == "pods" and old is not None:
        errors += _check_pod_update(obj["spec"], old.get("spec") or {})
    return errors


def is_extended(resource: str) -> bool:
    """Whether a resource name is neither Kubernetes' own nor a quota's."""
    return "/" in resource and "kubernetes.io/" not in resource


def _validate_pod(pod: Object) -> list[FieldError]:
    spec = pod["spec"]
    errors = [] if spec.get("containers") else [required("spec.containers")]
    volumes = {volume.get("name") for volume in spec.get("volumes") or ()}
    names: set[str] = set()
    for path, container in containers_of(spec):
        errors += _check_container(path, container, names)
        for index, mount in enumerate(container.get("volumeMounts") or ()):
            errors += _check_mount(f"{path}.volumeMounts[{index}]", mount, volumes)
    if spec.get("restartPolicy") not in ("Always", "OnFailure", "Never"):
        errors.append(_unsupported("spec.restartPolicy", spec.get("restartPolicy")))
    if spec.get("terminationGracePeriodSeconds", 0) < 0:
        value = spec["terminationGracePeriodSeconds"]
        errors.append(
            invalid_value(
                "spec.terminationGracePeriodSeconds", value, "must be greater than or equal to 0"
            )
        )
    if spec.get("nodeName") and (why := dns_subdomain_error(spec["nodeName"])):
        errors.append(invalid_value("spec.nodeName", spec["nodeName"], why))
    return errors


def _check_container(path: str, container: Object, names: set[str]) -> Iterator[FieldError]:
    name = container.get("name") or ""
    if not name:
        yield required(f"{path}.name")
    elif why := dns_label_error(name):
        yield invalid_value(f"{path}.name", name, why)
    elif name in names:
        message = f'Duplicate value: "{name}"'
        yield FieldError(reason="FieldValueDuplicate", field=f"{path}.name", message=message)
    names.add(name)
    if not container.get("image"):
        yield required(f"{path}.image")
    for index, variable in enumerate(container.get("env") or ()):
        if not variable.get("name"):
            yield required(f"{path}.env[{index}].name")
    yield from _check_resources(f"{path}.resources", container.get("resources") or {})


def _check_mount(path: str, mount: Object, volumes: set[Any]) -> Iterator[FieldError]:
    if not mount.get("mountPath"):
        yield required(f"{path}.mountPath")
    if mount.get("name") not in volumes:
        message = f'Not found: "{mount.get("name", "")}"'
        yield FieldError(reason="FieldValueNotFound", field=f"{path}.name", message=message)


def _check_resources(path: str, resources: Object) -> Iterator[FieldError]:
    limits, requests = resources.get("limits") or {}, resources.get("requests") or {}
    for name, value in limits.items():
        yield from _check_quantity(f"{path}.limits[{name}]", name, value)
    for name, value in requests.items():
        field = f"{path}.requests[{name}]"
        errors = list(_check_quantity(field, name, value))
        yield from errors
        if not errors:
            yield from _check_overcommit(path, name, value, limits)


def _check_quantity(field: str, name: str, value: object) -> Iterator[FieldError]:
    if why := qualified_name_error(name):
        yield invalid_value(field, name, why)
        return
    if "/" not in name and name not in _NATIVE and not name.startswith("hugepages-"):
        yield invalid_value(field, name, "must be a standard resource for containers")
        return
    exact = _parse(value)
    if exact is None:
        why = "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*)$'"
        yield invalid_value(field, value, why)
    elif exact < 0:
        yield invalid_value(field, value, "must be greater than or equal to 0")
    elif is_extended(name) and exact.denominator != 1:
        yield invalid_value(field, value, "must be an integer")


def _check_overcommit(
    path: str, name: str, request: object, limits: Mapping[str, Any]
) -> Iterator[FieldError]:
    field = f"{path}.requests"
    limit = limits.get(name)
    asked, allowed = _parse(request), _parse(limit)
    if limit is None and is_extended(name):
        yield required(f"{path}.limits", "Limit must be set for non overcommitable resources")
    elif asked is None or allowed is None:
        return
    elif is_extended(name) and asked != allowed:
        yield invalid_value(field, request, f"must be equal to {name} limit of {limit}")
    elif asked > allowed:
        why = f"must be less than or equal to {name} limit of {limit}"
        yield invalid_value(field, request, why)


def _check_pod_update(spec: Object, old: Object) -> list[FieldError]:
    comparable = copy.deepcopy(spec)
    for name in ("containers", "initContainers"):
        news, olds = comparable.get(name) or [], old.get(name) or []
        for new, previous in zip(news, olds, strict=False):
            new["image"] = previous.get("image")
    _pretend(comparable, old, "activeDeadlineSeconds")
    if _keeps_all(old.get("tolerations"), spec.get("tolerations")):
        _pretend(comparable, old, "tolerations")
    if _keeps_all(spec.get("schedulingGates"), old.get("schedulingGates")):
        _pretend(comparable, old, "schedulingGates")
    if comparable == old:
        return []
    return [
        forbidden("spec", f"pod updates may not change fields other than {_MUTABLE_POD_FIELDS}")
    ]


def _pretend(comparable: Object, old: Object, name: str) -> None:
    comparable.pop(name, None)
    if name in old:
        comparable[name] = old[name]


def _keeps_all(fewer: list[Any] | None, more: list[Any] | None) -> bool:
    return all(item in (more or ()) for item in fewer or ())


def _validate_quota(quota: Object) -> list[FieldError]:
    spec = quota.get("spec") or {}
    hard = spec.get("hard") or {}
    errors = [
        invalid_value(f"spec.hard[{name}]", value, "must be greater than or equal to 0")
        for name, value in hard.items()
        if (exact := _parse(value)) is None or exact < 0
    ]
    why = "this server does not implement scopes"
    scopes = (name for name in ("scopes", "scopeSelector") if spec.get(name))
    return errors + [forbidden(f"spec.{name}", why) for name in scopes]


def _validate_priority_class(priority_class: Object) -> list[FieldError]:
    value = priority_class.get("value", 0)
    if isinstance(value, int) and not isinstance(value, bool):
        return []
    return [invalid_value("value", value, "must be an integer")]


def _validate_webhooks(configuration: Object) -> list[FieldError]:
    return [
        error
        for index, webhook in enumerate(configuration.get("webhooks") or ())
        for error in _check_webhook(f"webhooks[{index}]", webhook)
    ]


def _check_webhook(path: str, webhook: Object) -> Iterator[FieldError]:
    name = webhook.get("name") or ""
    if dns_subdomain_error(name) or name.count(".") < 2:
        why = "should be a domain with at least three segments separated by dots"
        yield invalid_value(f"{path}.name", name, why)
    if not set(webhook.get("admissionReviewVersions") or ()) & {"v1", "v1beta1"}:
        yield required(
            f"{path}.admissionReviewVersions", "must include at least one of v1, v1beta1"
        )
    if webhook.get("sideEffects") not in ("None", "NoneOnDryRun"):
        yield _unsupported(f"{path}.sideEffects", webhook.get("sideEffects"))
    if webhook.get("failurePolicy") not in ("Ignore", "Fail"):
        yield _unsupported(f"{path}.failurePolicy", webhook.get("failurePolicy"))
    if not 1 <= webhook.get("timeoutSeconds", 10) <= 30:
        why = "the timeout value must be between 1 and 30 seconds"
        yield invalid_value(f"{path}.timeoutSeconds", webhook["timeoutSeconds"], why)
    if webhook.get("matchConditions"):
        yield forbidden(f"{path}.matchConditions", "this server evaluates no CEL expressions")
    for field in ("namespaceSelector", "objectSelector"):
        try:
            selectors.from_object(webhook.get(field))
        except StatusError as error:
            yield invalid_value(f"{path}.{field}", str(webhook[field]), error.message)
    yield from _check_client(f"{path}.clientConfig", webhook.get("clientConfig") or {})


def _check_client(path: str, client: Object) -> Iterator[FieldError]:
    url, service = client.get("url"), client.get("service")
    if bool(url) == bool(service):
        yield required(path, "exactly one of url or service is required")
    if url and not str(url).startswith("https://"):
        why = "'https' is the only allowed URL scheme"
        yield invalid_value(f"{path}.url", url, why)
    if service and not (service.get("name") and service.get("namespace")):
        yield required(f"{path}.service", "name and namespace")
    try:
        base64.b64decode(client.get("caBundle") or "", validate=True)
    except (binascii.Error, ValueError, TypeError):
        yield invalid_value(f"{path}.caBundle", "", "must be PEM in base64")


def _no_rules(_: Object) -> list[FieldError]:
    return []


_RULES: Final[Mapping[str, Callable[[Object], list[FieldError]]]] = {
    "pods": _validate_pod,
    "resourcequotas": _validate_quota,
    "priorityclasses": _validate_priority_class,
    "mutatingwebhookconfigurations": _validate_webhooks,
    "validatingwebhookconfigurations": _validate_webhooks,
}


def _unsupported(field: str, value: object) -> FieldError:
    message = f'Unsupported value: "{value or ""}"'
    return FieldError(reason="FieldValueNotSupported", field=field, message=message)


def _parse(value: object) -> Fraction | None:
    try:
        return parse_quantity(value)
    except QuantityError:
        return None
