"""HAMi's device configuration (``device-config.yaml``), each key with the setting that it changes.

One table, from which the file is read, the page for people who move over is written, and the tests
walk. Sections of vendors that are not served yet are read as strictly as the others and then left
alone. Unlike HAMi, which ignores what it does not know, an unknown key is an error at any depth.
Pure: the settings' own types judge the values that are taken over.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from hami.compat.values import nearest, shown
from hami.errors import ConfigError

Kind = Literal["text", "bool", "int", "number", "list of text", "list", "group"]

_TYPES: Final[Mapping[Kind, tuple[type, ...]]] = {
    "text": (str,),
    "bool": (bool,),
    "int": (int,),
    "number": (int, float),
    "list": (list,),
    "group": (dict,),
}
NOT_SERVED: Final = "devices of this vendor are not served yet"
LOG_LEVELS: Final = {"0": "error", "1": "warn", "3": "info", "4": "debug"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """One key."""

    kind: Kind = "text"
    setting: str = ""
    """Dotted path of the setting that has the value; none: the key has no effect."""
    note: str = ""
    """Why it has none; or how the value is taken over."""
    inner: Mapping[str, Key] = field(default_factory=dict)
    """Keys of the group, or of each item of the list."""
    least: int | None = None
    """What a smaller number means, as in HAMi."""
    words: Mapping[str, str] = field(default_factory=dict)
    """What the words of HAMi are called here; others are errors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a file says."""

    values: dict[str, tuple[object, str]] = field(default_factory=dict)
    """By dotted setting, with the key that says it."""
    notes: dict[str, str] = field(default_factory=dict)
    """Key or section that has no effect to why."""


def _names(*keys: str) -> dict[str, Key]:
    return dict.fromkeys(keys, Key())


_COUNT, _MEMORY, _CORES = "resourceCountName", "resourceMemoryName", "resourceCoreName"
_DRS: Final = Key(note="Enflame's slices (DRS) are not served yet")
_FACTOR: Final = "less than 1 means 1"

_NVIDIA: Final[dict[str, Key]] = {
    "resourceCountName": Key(setting="nvidia.count_name"),
    "resourceMemoryName": Key(setting="nvidia.memory_name"),
    "resourceMemoryPercentageName": Key(setting="nvidia.memory_percentage_name"),
    "resourceCoreName": Key(setting="nvidia.cores_name"),
    "resourcePriorityName": Key(setting="nvidia.priority_name"),
    "overwriteEnv": Key(kind="bool", setting="nvidia.overwrite_env"),
    "defaultMemory": Key(kind="int", setting="nvidia.default_memory"),
    "defaultCores": Key(kind="int", setting="nvidia.default_cores"),
    "defaultGPUNum": Key(kind="int", setting="nvidia.default_count"),
    "memoryFactor": Key(kind="int", setting="nvidia.memory_factor", least=1, note=_FACTOR),
    "disableCoreLimit": Key(kind="bool", setting="node_agent.disable_core_limit"),
    "gpuCorePolicy": Key(
        setting="nvidia.core_policy",
        words={"": "default", "default": "default", "force": "force", "disable": "disable"},
        note="empty means default",
    ),
    "runtimeClassName": Key(setting="nvidia.runtime_class_name"),
    "migProfileAllowlist": Key(
        kind="list",
        setting="nvidia.mig_profiles",
        inner={"models": Key(kind="list of text"), "profiles": Key(kind="list of text")},
    ),
    "deviceSplitCount": Key(kind="int", setting="node_agent.split_count"),
    "deviceMemoryScaling": Key(kind="number", setting="node_agent.memory_scaling"),
    "deviceCoreScaling": Key(kind="number", setting="node_agent.core_scaling"),
    "preConfiguredDeviceMemory": Key(kind="int", setting="node_agent.fallback_memory"),
    "libCudaLogLevel": Key(
        setting="node_agent.shim_log",
        words=LOG_LEVELS,
        note=", ".join(f"{number} is {word}" for number, word in LOG_LEVELS.items()),
    ),
    "enableNumaTopology": Key(
        kind="bool", note="the kubelet is always told the NUMA nodes of devices"
    ),
    "knownMigGeometries": Key(
        kind="list",
        note="replaced by migProfileAllowlist, in HAMi 2.10 as well",
        inner={
            "models": Key(kind="list of text"),
            "allowedGeometries": Key(kind="list"),
        },
    ),
}
_ASCEND_CHIP: Final[dict[str, Key]] = {
    **_names("chipName", "commonWord", "resourceName", _MEMORY, _CORES, "runtimeClassName"),
    **dict.fromkeys(
        ("memoryAllocatable", "memoryCapacity", "memoryFactor", "aiCore", "aiCPU"), Key(kind="int")
    ),
    "overwriteEnv": Key(kind="bool"),
    "superPod": Key(kind="bool"),
    "templates": Key(
        kind="list",
        inner={
            "name": Key(),
            **dict.fromkeys(("memory", "aiCore", "aiCPU"), Key(kind="int")),
        },
    ),
}


def _later(inner: Mapping[str, Key], *, kind: Kind = "group") -> Key:
    return Key(kind=kind, note=NOT_SERVED, inner=inner)


SECTIONS: Final[Mapping[str, Key]] = {
    "nvidia": Key(kind="group", inner=_NVIDIA),
    "hygon": Key(
        kind="group",
        inner={
            _COUNT: Key(setting="hygon.count_name"),
            _MEMORY: Key(setting="hygon.memory_name"),
            _CORES: Key(setting="hygon.cores_name"),
            "memoryFactor": Key(kind="int", setting="hygon.memory_factor", least=1, note=_FACTOR),
        },
    ),
    "enflame": Key(
        kind="group",
        inner={
            "resourceNameGCU": Key(setting="enflame.gcu_count_name"),
            "resourceNameDRSGCU": _DRS,
            "resourceNameGCUMemory": _DRS,
            "resourceNameGCUCore": _DRS,
            "resourceNameVGCU": _DRS,
            "resourceNameVGCUPercentage": _DRS,
        },
    ),
    "cambricon": _later(_names(_COUNT, _MEMORY, _CORES)),
    "mthreads": _later(_names(_COUNT, _MEMORY, _CORES)),
    "amd": _later(_names(_COUNT, _MEMORY, _CORES)),
    "metax": _later(
        {
            **_names(
                _COUNT, "resourceVCountName", "resourceVMemoryName", "resourceVCoreName"
            ),
            "sgpuTopologyAware": Key(kind="bool"),
        }
    ),
    "kunlun": _later(_names(_COUNT, "resourceVCountName", "resourceVMemoryName")),
    "awsneuron": _later(_names(_COUNT, _CORES)),
    "vastai": _later(_names(_COUNT)),
    "biren": _later(_names(_COUNT)),
    "iluvatars": _later(_names("chipName", "commonWord", _COUNT, _MEMORY, _CORES), kind="list"),
    "vnpus": _later(
        {"hamiVnpuCore": Key(kind="bool"), "configs": Key(kind="list", inner=_ASCEND_CHIP)}
    ),
}  # fmt: skip


def entries() -> Iterator[tuple[str, Key]]:
    """Every section and key by its dotted path, lists with ``[]``."""
    yield from _walk(SECTIONS, "")


def _walk(keys: Mapping[str, Key], path: str) -> Iterator[tuple[str, Key]]:
    for name, key in keys.items():
        yield f"{path}{name}", key
        yield from _walk(key.inner, f"{path}{name}{'[]' if key.kind == 'list' else ''}.")


def read(tree: object) -> Found:
    """What the (parsed) file says; keys without a value count as absent, as in HAMi.

    Raises:
        ConfigError: A key is unknown or its value has the wrong type, with the dotted path.
    """
    if tree is None:
        return Found()
    found = Found()
    for name, key, value in _members(tree, SECTIONS, ""):
        _check(value, key, name)
        if not key.note:
            _take(found, key, value, name)
        elif value:
            found.notes[name] = key.note
    return found


def _take(found: Found, section: Key, value: object, path: str) -> None:
    """Take over what a section of a served vendor says."""
    for name, key, inner in _members(value, section.inner, path):
        dotted = f"{path}.{name}"
        if not key.setting:
            found.notes[dotted] = key.note
            continue
        if key.words:
            inner = _word(str(inner), key.words, dotted)
        if key.least is not None and isinstance(inner, int):
            inner = max(inner, key.least)
        found.values[key.setting] = inner, dotted


def _word(text: str, words: Mapping[str, str], path: str) -> str:
    if text not in words:
        expected = ", ".join(word for word in words if word)
        raise ConfigError(f"{path}: expected one of {expected}, met {shown(text)!r}")
    return words[text]


def _check(value: object, key: Key, path: str) -> None:
    """Refuse what is not as the table says, here and further in."""
    if key.kind == "list of text":
        _check(value, Key(kind="list"), path)
        assert isinstance(value, list)
        for index, item in enumerate(value):
            _check(item, Key(), f"{path}[{index}]")
        return
    allowed = _TYPES[key.kind]
    is_number = isinstance(value, int) and not isinstance(value, bool)
    numeric_word = is_number and bool(key.words)
    if not (isinstance(value, allowed) or numeric_word) or (
        isinstance(value, bool) and key.kind != "bool"
    ):
        raise ConfigError(f"{path}: expected {_called(key.kind)}, met {_called_value(value)}")
    if key.kind == "group":
        for name, inner, item in _members(value, key.inner, path):
            _check(item, inner, f"{path}.{name}")
    elif key.kind == "list" and key.inner:
        assert isinstance(value, list)
        for index, item in enumerate(value):
            _check(item, Key(kind="group", inner=key.inner), f"{path}[{index}]")


def _members(
    value: object, keys: Mapping[str, Key], path: str
) -> Iterator[tuple[str, Key, object]]:
    """The keys of a group that have values; refuses unknown ones."""
    if not isinstance(value, Mapping):
        raise ConfigError(f"{path or 'file'}: expected a group, met {_called_value(value)}")
    for name, item in value.items():
        dotted = f"{path}.{shown(name)}" if path else shown(name)
        if not isinstance(name, str) or name not in keys:
            raise ConfigError(f"{dotted}: unknown key{nearest(str(name), keys, what='key')}")
        if item is not None:
            yield name, keys[name], item


def _called(kind: Kind) -> str:
    return {"int": "a whole number", "number": "a number", "bool": "true or false"}.get(
        kind, "text" if kind == "text" else f"a {kind}"
    )


def _called_value(value: object) -> str:
    names = {bool: "true or false", int: "a whole number", float: "a fraction", str: "text",
             list: "a list", dict: "a group", type(None): "nothing"}  # fmt: skip
    return names.get(type(value), type(value).__name__)
