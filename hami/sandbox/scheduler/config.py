"""``KubeSchedulerConfiguration``, as far as the stand-in has what it configures.

Unknown fields are errors, as for kube-scheduler. What kube-scheduler has and the stand-in has not
is refused where it would change decisions (plugins), and ignored where it would not (leader
election, tuning).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

import msgspec
import yaml

from hami.errors import ConfigError

KIND: Final = "KubeSchedulerConfiguration"
GROUP: Final = "kubescheduler.config.k8s.io/"
DEFAULT_TIMEOUT_SECONDS: Final = 5.0

_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|us|µs|ns|h|m|s)")
_UNITS: Final = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


class _Config(
    msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True
):
    """camelCase in the file; unknown fields are errors."""


class TlsConfig(_Config, frozen=True, kw_only=True):
    """How to trust an extender, and how to be trusted by it; data is base64 of PEM."""

    insecure: bool = False
    server_name: str = ""
    cert_file: str = ""
    key_file: str = ""
    ca_file: str = ""
    cert_data: bytes = b""
    key_data: bytes = b""
    ca_data: bytes = b""


class ManagedResource(_Config, frozen=True, kw_only=True):
    """A resource that the extender decides about."""

    name: str
    ignored_by_scheduler: bool = False


class ExtenderConfig(_Config, frozen=True, kw_only=True):
    """One extender."""

    url_prefix: str
    filter_verb: str = ""
    preempt_verb: str = ""
    prioritize_verb: str = ""
    weight: int = 0
    bind_verb: str = ""
    enable_https: bool = msgspec.field(default=False, name="enableHTTPS")
    tls_config: TlsConfig | None = None
    http_timeout: str | None = None
    node_cache_capable: bool = False
    managed_resources: tuple[ManagedResource, ...] = ()
    ignorable: bool = False

    @property
    def timeout_seconds(self) -> float:
        """Deadline of one call."""
        return _seconds(self.http_timeout or "0") or DEFAULT_TIMEOUT_SECONDS


class Profile(_Config, frozen=True, kw_only=True):
    """One name under which pods may ask to be scheduled."""

    scheduler_name: str = "default-scheduler"
    percentage_of_nodes_to_score: int | None = None
    plugins: dict[str, Any] | None = None
    plugin_config: list[Any] | None = None


class SchedulerConfig(_Config, frozen=True, kw_only=True):
    """The whole file."""

    api_version: str
    kind: str
    profiles: tuple[Profile, ...] = (Profile(),)
    extenders: tuple[ExtenderConfig, ...] = ()
    percentage_of_nodes_to_score: int | None = None
    pod_initial_backoff_seconds: float = 1.0
    pod_max_backoff_seconds: float = 10.0
    # read and without effect here
    leader_election: dict[str, Any] | None = None
    client_connection: dict[str, Any] | None = None
    parallelism: int | None = None
    enable_profiling: bool | None = None
    enable_contention_profiling: bool | None = None
    delay_cache_until_active: bool | None = None

    @property
    def ignored_resources(self) -> frozenset[str]:
        """What the stand-in's own filter leaves to extenders."""
        return frozenset(
            resource.name
            for extender in self.extenders
            for resource in extender.managed_resources
            if resource.ignored_by_scheduler
        )


def load_config(source: Path | str) -> SchedulerConfig:
    """Read a configuration: from a file, or from the text of one.

    Raises:
        ConfigError: It cannot be read, or kube-scheduler or the stand-in would refuse it.
    """
    try:
        text = source.read_text(encoding="utf-8") if isinstance(source, Path) else source
        tree = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"scheduler configuration: {error}") from error
    try:
        config = msgspec.convert(tree, SchedulerConfig)
    except msgspec.ValidationError as error:
        raise ConfigError(f"scheduler configuration: {error}") from error
    _check(config)
    return config


def _check(config: SchedulerConfig) -> None:
    _require(config.kind == KIND, f"kind: expected {KIND}, met {config.kind!r}")
    _require(
        config.api_version.startswith(GROUP),
        f"apiVersion: expected {GROUP}v1, met {config.api_version!r}",
    )
    _require(bool(config.profiles), "profiles: expected at least one")
    names = [profile.scheduler_name for profile in config.profiles]
    _require(len(set(names)) == len(names), f"profiles: a schedulerName occurs twice in {names}")
    for profile in config.profiles:
        _require(
            not profile.plugins and not profile.plugin_config,
            f"profiles: plugins of {profile.scheduler_name!r} cannot be configured in the sandbox",
        )
    _require(
        0 < config.pod_initial_backoff_seconds <= config.pod_max_backoff_seconds,
        "podInitialBackoffSeconds: expected more than 0 and at most podMaxBackoffSeconds",
    )
    for index, extender in enumerate(config.extenders):
        _check_extender(extender, f"extenders[{index}]")
    binders = sum(bool(extender.bind_verb) for extender in config.extenders)
    _require(binders <= 1, f"extenders: only one may have a bindVerb, met {binders}")
    managed = [each.name for extender in config.extenders for each in extender.managed_resources]
    twice = sorted({name for name in managed if managed.count(name) > 1})
    _require(not twice, f"extenders: managedResources occur twice: {twice}")


def _check_extender(extender: ExtenderConfig, where: str) -> None:
    _require(
        extender.url_prefix.startswith(("http://", "https://")),
        f"{where}.urlPrefix: expected an http(s) URL, met {extender.url_prefix!r}",
    )
    _require(
        not extender.prioritize_verb or extender.weight > 0,
        f"{where}.weight: must be positive where there is a prioritizeVerb",
    )
    _seconds(extender.http_timeout or "0", where=f"{where}.httpTimeout")
    tls = extender.tls_config
    if tls is not None:
        _require(
            not (tls.insecure and (tls.ca_file or tls.ca_data)),
            f"{where}.tlsConfig: a CA and insecure exclude each other",
        )
        _require(
            bool(tls.cert_file or tls.cert_data) == bool(tls.key_file or tls.key_data),
            f"{where}.tlsConfig: a certificate and its key belong together",
        )


def _seconds(text: str, *, where: str = "httpTimeout") -> float:
    """A Go duration such as ``30s`` or ``1m30s``."""
    if text == "0":
        return 0.0
    parts = _DURATION.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ConfigError(f"{where}: expected a duration such as 30s, met {text!r}")
    return sum(float(number) * _UNITS[unit] for number, unit in parts)


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ConfigError(f"scheduler configuration: {message}")
