"""The formats of names, labels and annotations."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from hami.sandbox.apiserver.answers import FieldError
from hami.sandbox.apiserver.kinds import Kind

_LABEL_PATTERN: Final = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_DNS_LABEL: Final = re.compile(_LABEL_PATTERN)
_DNS_SUBDOMAIN: Final = re.compile(rf"{_LABEL_PATTERN}(\.{_LABEL_PATTERN})*")
_SERVICE_NAME: Final = re.compile("[a-z]([-a-z0-9]*[a-z0-9])?")
_PATH_SEGMENT: Final = re.compile(r"(?!\.\.?$)[^/%]+")
_QUALIFIED_PART: Final = re.compile("([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]")
_LABEL_VALUE: Final = re.compile("(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?")

MAX_ANNOTATION_BYTES: Final = 256 * 1024
_MAX_LABEL: Final = 63
_MAX_SUBDOMAIN: Final = 253

_SUBDOMAIN_RULE: Final = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or "
    "'.', and must start and end with an alphanumeric character"
)
_LABEL_RULE: Final = (
    "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and "
    "must start and end with an alphanumeric character"
)
_QUALIFIED_RULE: Final = (
    "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end "
    "with an alphanumeric character"
)
_VALUE_RULE: Final = (
    "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or "
    "'.', and must start and end with an alphanumeric character"
)


def check_metadata(kind: Kind, metadata: Mapping[str, Any]) -> list[FieldError]:
    """What is wrong with an object's name, labels, annotations and finalizers."""
    errors = _check_name(kind, metadata["name"])
    for key, value in (metadata.get("labels") or {}).items():
        errors += _check_key("metadata.labels", key)
        if why := label_value_error(value):
            errors.append(invalid_value("metadata.labels", value, why))
    size = 0
    for key, value in (metadata.get("annotations") or {}).items():
        errors += _check_key("metadata.annotations", key.lower())
        size += len(key.encode()) + len(value.encode())
    if size > MAX_ANNOTATION_BYTES:
        message = f"Too long: may not be more than {MAX_ANNOTATION_BYTES} bytes"
        errors.append(
            FieldError(reason="FieldValueTooLong", field="metadata.annotations", message=message)
        )
    for finalizer in metadata.get("finalizers") or ():
        if why := qualified_name_error(finalizer):
            errors.append(invalid_value("metadata.finalizers", finalizer, why))
    return errors


def dns_label_error(value: str) -> str:
    """Why the value is no DNS label; empty if it is one."""
    return _error(value, _DNS_LABEL, _LABEL_RULE, longest=_MAX_LABEL)


def dns_subdomain_error(value: str) -> str:
    """Why the value is no DNS subdomain; empty if it is one."""
    return _error(value, _DNS_SUBDOMAIN, _SUBDOMAIN_RULE, longest=_MAX_SUBDOMAIN)


def label_value_error(value: str) -> str:
    """Why the value is no label's value; empty if it is one."""
    return _error(value, _LABEL_VALUE, _VALUE_RULE, longest=_MAX_LABEL)


def qualified_name_error(value: str) -> str:
    """Why the value is no ``prefix/name`` or ``name``; empty if it is one."""
    prefix, slash, name = value.rpartition("/")
    if slash and (why := dns_subdomain_error(prefix)):
        return f"prefix part {why}"
    return _error(name, _QUALIFIED_PART, _QUALIFIED_RULE, longest=_MAX_LABEL)


def invalid_value(field: str, value: object, why: str) -> FieldError:
    """The error of a value that breaks a rule."""
    shown = f'"{value}"' if isinstance(value, str) else str(value)
    if len(shown) > 256:
        shown = f'{shown[:256]}..."'
    return FieldError(
        reason="FieldValueInvalid", field=field, message=f"Invalid value: {shown}: {why}"
    )


def required(field: str, why: str = "") -> FieldError:
    """The error of a value that is missing."""
    message = f"Required value: {why}" if why else "Required value"
    return FieldError(reason="FieldValueRequired", field=field, message=message)


def forbidden(field: str, why: str) -> FieldError:
    """The error of a value that must not be there, or not change."""
    return FieldError(reason="FieldValueForbidden", field=field, message=f"Forbidden: {why}")


def _check_name(kind: Kind, name: str) -> list[FieldError]:
    if kind.plural == "namespaces":
        why = dns_label_error(name)
    elif kind.plural == "services":
        why = _error(name, _SERVICE_NAME, "a DNS-1035 label", longest=_MAX_LABEL)
    elif kind.group == "rbac.authorization.k8s.io":
        why = _error(name, _PATH_SEGMENT, "may not contain '/' or '%'", longest=_MAX_SUBDOMAIN)
    else:
        why = dns_subdomain_error(name)
    return [invalid_value("metadata.name", name, why)] if why else []


def _check_key(field: str, key: str) -> list[FieldError]:
    why = qualified_name_error(key)
    return [invalid_value(field, key, why)] if why else []


def _error(value: str, pattern: re.Pattern[str], rule: str, *, longest: int) -> str:
    if len(value) > longest:
        return f"must be no more than {longest} bytes"
    if not pattern.fullmatch(value):
        return f"{rule} (regex used for validation is '{pattern.pattern}')"
    return ""
