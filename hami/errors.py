"""The exception tree: what can fail, by what the catcher can do about it.

::

    HamiError
    ├── ConfigError            a setting is wrong; the message names its dotted path
    ├── CodecError             an annotation, file or message is not what its format says
    │   └── QuantityError      a resource quantity is malformed, out of range or not whole
    ├── AdmissionError         the pod must be refused; the message is for its author
    ├── StaleSnapshotError     the node changed and the decision no longer holds: decide again
    ├── NotLeaderError         another process decides now; the message says which
    ├── BusyError              more waits already than can be done in time: come again
    ├── UnfitError             nothing can hold the request now; the message says why
    │   └── QuotaExceededError     its namespace's quota leaves no room for it
    ├── DeviceError            the driver or NVML refused or broke
    ├── AllocateError          the kubelet's request cannot be answered
    ├── InquiryError           the controller refused a question; the message is its own
    ├── SandboxError           the sandbox cannot start or do what was asked
    └── KubeError(status)      the API server's answer
        ├── ConflictError      409: somebody else wrote first
        ├── NotFoundError      404
        ├── GoneError          410: the resourceVersion is too old, list again
        ├── ThrottledError     429: come back later
        └── UnavailableError   5xx, time-out or no connection: worth another try

Every message names the object, what was expected and what was met. Not fitting is a value, not an
exception (see ``hami.core.verdict``); UnfitError is for the one caller that had to have a place.
"""

from __future__ import annotations


class HamiError(Exception):
    """Anything this project raises on purpose."""


class ConfigError(HamiError):
    """A setting is missing, unknown or out of range."""


class CodecError(HamiError):
    """Bytes or text from outside do not follow their format."""


class QuantityError(CodecError):
    """A Kubernetes resource quantity is malformed, out of range or not whole."""


class AdmissionError(HamiError):
    """The pod must be refused; the message tells its author what to change."""


class StaleSnapshotError(HamiError):
    """A node changed after the decision was made and the decision no longer holds."""


class NotLeaderError(HamiError):
    """This process may not decide, or no longer: another one leads, or nobody does yet."""


class BusyError(HamiError):
    """More waits already than can be done in time; told at once, so that nobody waits in vain."""


class UnfitError(HamiError):
    """The request fits nowhere it was asked to fit."""


class ResizeError(UnfitError):
    """A running pod cannot have what it asks for; the message says why."""


class QuotaExceededError(UnfitError):
    """The pod's namespace has no room for it; the message names the quota and what is left."""


class DeviceError(HamiError):
    """The driver or its management library refused or broke."""


class AllocateError(HamiError):
    """A kubelet request cannot be answered."""


class InquiryError(HamiError):
    """The controller refused a question, in the words of the message."""


class SandboxError(HamiError):
    """The sandbox cannot start or do what was asked."""


class KubeError(HamiError):
    """The API server refused; ``status`` is the HTTP status, 0 where there was no answer."""

    def __init__(self, message: str, *, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class ConflictError(KubeError):
    """409: the object changed since it was read, or already exists."""


class NotFoundError(KubeError):
    """404: no such object."""


class GoneError(KubeError):
    """410: the resourceVersion is too old to watch or continue from."""


class ThrottledError(KubeError):
    """429: the server asks for patience; ``retry_after_seconds`` when it said how much."""

    def __init__(
        self, message: str, *, status: int = 429, retry_after_seconds: float | None = None
    ) -> None:
        super().__init__(message, status=status)
        self.retry_after_seconds = retry_after_seconds


class UnavailableError(KubeError):
    """5xx, a time-out or no connection: the same request may succeed later."""
