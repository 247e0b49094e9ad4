"""The flags of HAMi's scheduler, each with the settings that it changes here.

One table, from which the command line is read, the page for people who move over is written, and
the tests walk. A flag changes settings, or has no effect here and says why (told once at the
start), or is refused where leaving it out would change what the cluster does. Pure: the settings'
own types judge the values.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from hami.compat import values
from hami.compat.values import Reader
from hami.errors import ConfigError

TAKES: Final[Mapping[Reader, str]] = {
    values.truth: "bool",
    values.integer: "int",
    values.number: "float",
    values.duration: "duration",
    values.address: "host:port",
    values.labels: "k=v,k=v",
    values.verbosity: "int",
}
"""What people read about a reader; any text where it is not named."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Flag:
    """One flag."""

    name: str
    read: Reader = values.words
    settings: tuple[str, ...] = ()
    """Dotted paths, one for each value that ``read`` gives."""
    note: str = ""
    """Why the flag has no effect, or none where its text leaves the settings as they are."""
    refused: str = ""
    """Why ``true`` is an error."""
    below_file: bool = False
    """Whether the device configuration file has the last word, as it has in HAMi."""
    takes: str = "text"

    @property
    def is_switch(self) -> bool:
        """Whether the flag alone means true."""
        return self.takes == "bool"


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What a command line says, by dotted setting; with the flag that says it."""

    values: dict[str, tuple[object, str]] = field(default_factory=dict)
    below_file: dict[str, tuple[object, str]] = field(default_factory=dict)
    """Those that the device configuration file overrides."""
    notes: dict[str, str] = field(default_factory=dict)
    """Flag to why it has no effect."""


def _flag(name: str, read: Reader, *settings: str, note: str = "", takes: str = "") -> Flag:
    return Flag(
        name=name, read=read, settings=settings, note=note, takes=takes or TAKES.get(read, "text")
    )


def _idle(name: str, note: str, *, takes: str = "text") -> Flag:
    read = values.truth if takes == "bool" else values.nothing
    return Flag(name=name, read=read, note=note, takes=takes)


def _not_served(vendor: str, *names: str) -> Iterator[Flag]:
    for name in names:
        yield _idle(name, f"{vendor} devices are not served yet")


def _resource(name: str, setting: str) -> Flag:
    return Flag(name=name, settings=(setting,), below_file=True)


_LOGS: Final = "logs go to stderr, one format for all: see log.format"
_OWN: Final = "0 leaves this setting as it is; binds have a rate of their own"
_CLASSIC: Final = ("name", "memory", "cores")
_DRS: Final = "Enflame's slices (DRS) are not served yet"

_ROWS: Final = (
    _flag("http_bind", values.address, "controller.host", "controller.port"),
    _flag("cert_file", values.path, "controller.cert_file"),
    _flag("key_file", values.path, "controller.key_file"),
    _flag("scheduler-name", values.words, "controller.scheduler_name"),
    _flag("node-scheduler-policy", values.words, "controller.node_policy"),
    _flag("gpu-scheduler-policy", values.words, "controller.device_policy"),
    _flag(
        "metrics-bind-address",
        values.address,
        "controller.health_host",
        "controller.health_port",
    ),
    _flag("node-label-selector", values.labels, "controller.node_label_selector"),
    _flag("kube-qps", values.unless_zero(values.number), "kube.qps", note=_OWN, takes="float"),
    _flag("kube-burst", values.unless_zero(values.integer), "kube.burst", note=_OWN, takes="int"),
    _flag(
        "kube-timeout",
        values.unless_zero(values.integer),
        "kube.request_timeout_seconds",
        note="0 leaves this setting as it is: no request is without a deadline",
        takes="int",
    ),
    _idle("profiling", "there are no profiling endpoints", takes="bool"),
    _flag("node-lock-timeout", values.duration, "controller.node_lock_timeout_seconds"),
    _idle(
        "node-lock-retry-timeout",
        "a bind waits for its turn on the node, up to controller.bind_timeout_seconds",
        takes="duration",
    ),
    _flag(
        "force-overwrite-default-scheduler",
        values.truth,
        "controller.overwrite_default_scheduler",
    ),
    _flag("leader-elect", values.truth, "controller.leader_elect"),
    _flag("leader-elect-resource-name", values.words, "controller.scheduler_lease_name"),
    _flag("leader-elect-resource-namespace", values.words, "controller.scheduler_lease_namespace"),
    _flag("device-config-file", values.path, "controller.device_config_file"),
    _flag("legacy-metrics", values.truth, "controller.legacy_metrics"),
    _idle("debug", "it has none in HAMi either; see log.level", takes="bool"),
    Flag(
        name="enable-ascend",
        read=values.truth,
        refused="Ascend devices are not served yet",
        takes="bool",
    ),
    Flag(
        name="enable-iluvatar",
        read=values.truth,
        refused="Iluvatar devices are not served yet",
        takes="bool",
    ),
    *_not_served("Cambricon", *(f"cambricon-mlu-{name}" for name in _CLASSIC)),
    _resource("dcu-name", "hygon.count_name"),
    _resource("dcu-memory", "hygon.memory_name"),
    _resource("dcu-cores", "hygon.cores_name"),
    *_not_served("Mthreads", *(f"mthreads-{name}" for name in _CLASSIC)),
    *_not_served("MetaX", *(f"metax-{name}" for name in ("name", "vcount", "vcore", "vmemory"))),
    _idle("sgpu-topology-aware", "MetaX devices are not served yet", takes="bool"),
    *_not_served("Kunlun", *(f"kunlun-{name}" for name in ("name", "vcount", "vmemory"))),
    _resource("enflame-gcu-resource-name", "enflame.gcu_count_name"),
    _idle("enflame-drs-gcu-resource-name", _DRS),
    _idle("enflame-vgcu-resource-name", _DRS),
    _idle("enflame-gcu-memory-resource-name", _DRS),
    _idle("enflame-gcu-core-resource-name", _DRS),
    _idle("enflame-vgcu-legacy-resource-name", _DRS),
    _idle("enflame-vgcu-percentage-resource-name", _DRS),
    _flag(
        "v",
        values.verbosity,
        "log.level",
        note="below 5 it leaves log.level as it is; from 5 on it means debug",
    ),
    _idle("vmodule", "the level is one for all modules: see log.level"),
    *(
        _idle(name, _LOGS, takes="bool")
        for name in (
            "add_dir_header",
            "alsologtostderr",
            "logtostderr",
            "one_output",
            "skip_headers",
            "skip_log_headers",
        )
    ),
    *(
        _idle(name, _LOGS)
        for name in (
            "log_backtrace_at",
            "log_dir",
            "log_file",
            "log_file_max_size",
            "stderrthreshold",
        )
    ),
)

FLAGS: Final[Mapping[str, Flag]] = {row.name: row for row in _ROWS}
OURS: Final = ("--config", "--set", "--help")
"""Flags of our own on the same command line, for suggestions."""

ENVIRONMENT: Final[Mapping[str, Flag]] = {"HAMI_NODELOCK_EXPIRE": FLAGS["node-lock-timeout"]}
"""Variables of HAMi's scheduler; each counts unless its flag is given."""


def parse(arguments: Sequence[str]) -> Given:
    """What the flags say; of a flag that is repeated, the last counts.

    Raises:
        ConfigError: A flag is unknown, has no value or a wrong one, or is refused; or there is an
            argument that is no flag.
    """
    given = Given()
    labels = ""
    rest = iter(arguments)
    for argument in rest:
        flag, text = _split(argument)
        if text is None:
            text = "true" if flag.is_switch else next(rest, None)
        if text is None:
            raise ConfigError(f"{_spelt(flag)}: expected a value, met none")
        if flag.read is values.labels:  # a flag of that type adds up
            labels = text = ",".join(part for part in (labels, text) if part)
        _take(given, flag, text)
    return given


def read_variable(name: str, text: str) -> dict[str, object]:
    """What a variable of HAMi's says, by dotted setting.

    Raises:
        ConfigError: It cannot be read.
    """
    flag = ENVIRONMENT[name]
    try:
        return dict(zip(flag.settings, flag.read(text), strict=True))
    except ConfigError as error:
        raise ConfigError(f"environment variable {name}: {error}") from error


def _split(argument: str) -> tuple[Flag, str | None]:
    """The flag that an argument names, and the value if it has one."""
    bare = argument.removeprefix("-").removeprefix("-")
    if bare == argument or not bare:
        raise ConfigError(
            f"unexpected argument {values.shown(argument)!r}; "
            "the value of a switch is written --flag=value"
        )
    name, equals, text = bare.partition("=")
    if name not in FLAGS and name[:1] == "v" and name[1:].isdecimal() and not equals:
        return FLAGS["v"], name[1:]  # -v4
    if name not in FLAGS:
        known = (*map(_spelt, FLAGS.values()), *OURS)
        hint = values.nearest(f"--{name}", known, what="flag")
        raise ConfigError(f"--{values.shown(name)}: unknown flag{hint}")
    return FLAGS[name], text if equals else None


def _take(given: Given, flag: Flag, text: str) -> None:
    try:
        found = flag.read(text)
    except ConfigError as error:
        raise ConfigError(f"{_spelt(flag)}: {error}") from error
    if flag.refused and found == (True,):
        raise ConfigError(f"{_spelt(flag)}: {flag.refused}; leave the flag out")
    spelt = _spelt(flag)
    if flag.note and not (flag.settings and found) and found != (False,):
        given.notes[spelt] = flag.note
    target = given.below_file if flag.below_file else given.values
    for setting in flag.settings:
        target.pop(setting, None)  # the last one counts
    if flag.settings and found:
        given.notes.pop(spelt, None)
        target |= {
            setting: (value, f"flag {spelt}")
            for setting, value in zip(flag.settings, found, strict=True)
        }


def _spelt(flag: Flag) -> str:
    return f"-{flag.name}" if len(flag.name) == 1 else f"--{flag.name}"
