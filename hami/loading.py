"""From files, environment and flags to settings: which source wins, and errors that name it.

Later wins: the defaults, HAMi's device configuration file, our YAML file, environment variables,
flags. ``resolve`` reads files only through the function it is given, so that whoever watches them
sees the same content. What HAMi's own flags and file are called here stands in ``hami.compat``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, get_args

import msgspec
import yaml

from hami.compat import devicefile
from hami.compat.flags import ENVIRONMENT, Given, read_variable
from hami.compat.values import nearest, shown
from hami.config import Settings
from hami.core import selectors
from hami.errors import CodecError, ConfigError

ENV_PREFIX: Final = "HAMI_"
"""``HAMI_CONTROLLER__PORT=9443`` sets ``controller.port``: two underscores for each dot."""
MAX_FILE_BYTES: Final = 4 * 1024 * 1024
"""More than a ConfigMap can hold."""
DEVICE_POLICIES: Final = ("binpack", "spread", "mutex", "numa", "topology-aware")

Process = Literal["controller", "node_agent"]
Reader = Callable[[Path], str]
_Tree = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """Where a process takes its settings from."""

    process: Process = "controller"
    """Whose setting names the device configuration file."""
    file: Path | None = None
    """YAML document with the groups of settings as its top-level keys."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables; ``HAMI_<GROUP>__<FIELD>`` and those of HAMi's scheduler count."""
    assignments: Mapping[str, Any] = field(default_factory=dict)
    """Dotted path to value, from flags; None values are flags that were not given."""
    reference: Given = field(default_factory=Given)
    """Flags of HAMi's scheduler."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """What the sources make together."""

    settings: Settings
    notes: Mapping[str, str] = field(default_factory=dict)
    """Flags and keys of HAMi's that have no effect, to why."""
    sources: Sources = Sources()
    files: Mapping[Path, str] = field(default_factory=dict)
    """What stood in the files that were read."""


def read_file(path: Path) -> str:
    """A file's text.

    Raises:
        ConfigError: It cannot be read, or is larger than any in earnest.
    """
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_FILE_BYTES + 1)
        text = content.decode("utf-8")
    except OSError as error:
        raise ConfigError(f"settings file {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"settings file {path}: {error}") from error
    if len(content) > MAX_FILE_BYTES:
        raise ConfigError(f"settings file {path}: expected at most {MAX_FILE_BYTES} bytes")
    return text


def load(
    *,
    file: Path | None = None,
    environment: Mapping[str, str] | None = None,
    flags: Mapping[str, Any] | None = None,
) -> Settings:
    """The controller's settings from these sources alone; see ``resolve``."""
    sources = Sources(file=file, environment=environment or {}, assignments=flags or {})
    return resolve(sources).settings


def resolve(sources: Sources, *, read: Reader = read_file) -> Loaded:
    """Merge the sources, later ones winning, and validate the result.

    Raises:
        ConfigError: A key is unknown, or a value has the wrong type or range.
    """
    files: dict[Path, str] = {}

    def keep(path: Path) -> str:
        files[path] = text = read(path)
        return text

    upper = _from_sources(sources, keep)
    _refuse_unknown(upper, Settings, "")
    notes = dict(sources.reference.notes)
    lower: _Tree = {}
    for dotted, (value, source) in sources.reference.below_file.items():
        _put_checked(lower, dotted, value, source=source)
    path = _device_file(upper, sources.process)
    if path is not None:
        found = _read_devices(path, keep)
        notes |= {f"{key} in {path}": why for key, why in found.notes.items()}
        for dotted, (value, key) in found.values.items():
            _put_checked(lower, dotted, value, source=f"key {key} of {path}")
    for group, fields in upper.items():
        lower.setdefault(group, {}).update(fields)
    settings = _validate(lower)
    return Loaded(settings=settings, notes=notes, sources=sources, files=files)


def _from_sources(sources: Sources, read: Reader) -> _Tree:
    """Everything but the device configuration file."""
    tree = _read_tree(sources.file, read) if sources.file is not None else {}
    for name in ENVIRONMENT:
        if name in sources.environment:
            for dotted, value in read_variable(name, sources.environment[name]).items():
                _put_checked(tree, dotted, value, source=f"environment variable {name}")
    for name, text in sorted(sources.environment.items()):
        path = name.removeprefix(ENV_PREFIX).lower().split("__")
        if name.startswith(ENV_PREFIX) and len(path) > 1:
            source = f"environment variable {name}"
            _put(tree, path, _from_text(text, path, source=source), source=source)
    for dotted, (given, source) in sources.reference.values.items():
        _put_checked(tree, dotted, given, source=source)
    for dotted, flag in sources.assignments.items():
        if flag is not None:
            _put(tree, dotted.split("."), flag, source="command line")
    return tree


def _validate(tree: _Tree) -> Settings:
    try:
        settings = msgspec.convert(tree, Settings)
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at `$")
        path_text = where.rstrip("`").lstrip(".") or "settings"
        raise ConfigError(f"{path_text}: {what}") from error
    own = settings.controller
    try:
        selectors.parse(own.node_label_selector)
    except CodecError as error:
        raise ConfigError(f"controller.node_label_selector: {error}") from error
    for word in own.device_policy.split(","):
        if word.strip() not in DEVICE_POLICIES:
            raise ConfigError(
                "controller.device_policy: expected words of "
                f"{', '.join(DEVICE_POLICIES)}, met {shown(word)!r}"
            )
    return settings


def _device_file(tree: _Tree, process: Process) -> Path | None:
    """The device configuration file that the process is to read."""
    text = tree.get(process, {}).get("device_config_file")
    return Path(text) if isinstance(text, str) and text else None  # else refused with the rest


def _read_devices(path: Path, read: Reader) -> devicefile.Found:
    tree = _parse(path, read)
    try:
        return devicefile.read(tree)
    except ConfigError as error:
        raise ConfigError(f"device config file {path}: {error}") from error


def _read_tree(file: Path, read: Reader) -> _Tree:
    tree = _parse(file, read)
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"settings file {file}: expected a mapping, met {type(tree).__name__}")
    return tree


def _parse(file: Path, read: Reader) -> object:
    try:
        return yaml.safe_load(read(file))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"settings file {file}: {' '.join(str(error).split())}") from error


def _put(tree: _Tree, path: list[str], value: object, *, source: str) -> None:
    for key in path[:-1]:
        child = tree.setdefault(key, {})
        if not isinstance(child, dict):
            raise ConfigError(f"{'.'.join(path)}: {key} is not a group (from the {source})")
        tree = child
    tree[path[-1]] = value


def _put_checked(tree: _Tree, dotted: str, value: object, *, source: str) -> None:
    """Put a value of HAMi's in; wrong ones are told by the name that it has there, too."""
    path = dotted.split(".")
    wanted = type_of(path)
    assert wanted is not None, dotted
    try:
        msgspec.convert(value, wanted)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{dotted}: {error} (from the {source})") from error
    _put(tree, path, value, source=source)


def _from_text(text: str, path: list[str], *, source: str) -> object:
    """A variable's value in the type of its setting; as it is where there is no such setting."""
    wanted = type_of(path)
    if wanted is None or _is_group(wanted):
        return text
    try:
        return msgspec.convert(text, wanted, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{'.'.join(path)}: {error} (from the {source})") from error


def type_of(path: list[str]) -> Any | None:  # noqa: ANN401 - a type expression has no narrower type
    """The type of a setting or group; None where there is none of that path."""
    wanted: Any = Settings
    for key in path:
        fields = msgspec.structs.fields(wanted) if _is_group(wanted) else ()
        wanted = next((field.type for field in fields if field.name == key), None)
    return wanted


def _is_group(wanted: object) -> bool:
    return isinstance(wanted, type) and issubclass(wanted, msgspec.Struct)


def _refuse_unknown(tree: Mapping[str, Any], group: type, path: str) -> None:
    known = {field.name: field.type for field in msgspec.structs.fields(group)}
    for key, value in tree.items():
        dotted = f"{path}.{shown(key)}" if path else shown(key)
        if key not in known:
            raise ConfigError(f"{dotted}: unknown setting{nearest(str(key), known, what='key')}")
        inner = known[key]
        if _is_group(inner):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{dotted}: expected a group, met {type(value).__name__}")
            _refuse_unknown(value, inner, dotted)
        elif isinstance(value, list):
            (item, *_) = get_args(inner) or (None,)
            for index, each in enumerate(value):
                if item is not None and _is_group(item) and isinstance(each, Mapping):
                    _refuse_unknown(each, item, f"{dotted}[{index}]")
