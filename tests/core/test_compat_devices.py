"""HAMi's device configuration file: every key is accepted, and does what the table says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, settings
from hypothesis import given as forall
from hypothesis import strategies as st

from hami.compat.devicefile import NOT_SERVED, SECTIONS, entries
from hami.compat.flags import parse
from hami.config import MigProfiles, Settings
from hami.errors import ConfigError
from hami.loading import Loaded, Sources, resolve

PROFILES = [{"models": ["A30"], "profiles": ["1g.6gb", "2g.12gb"]}]
CHANGING: list[tuple[str, object, str, object]] = [
    ("nvidia.resourceCountName", "x.y/z", "nvidia.count_name", "x.y/z"),
    ("nvidia.resourceMemoryName", "x.y/z", "nvidia.memory_name", "x.y/z"),
    ("nvidia.resourceMemoryPercentageName", "x.y/z", "nvidia.memory_percentage_name", "x.y/z"),
    ("nvidia.resourceCoreName", "x.y/z", "nvidia.cores_name", "x.y/z"),
    ("nvidia.resourcePriorityName", "x.y/z", "nvidia.priority_name", "x.y/z"),
    ("nvidia.overwriteEnv", True, "nvidia.overwrite_env", True),
    ("nvidia.defaultMemory", 1000, "nvidia.default_memory", 1000),
    ("nvidia.defaultCores", 30, "nvidia.default_cores", 30),
    ("nvidia.defaultGPUNum", 0, "nvidia.default_count", 0),
    ("nvidia.memoryFactor", 10, "nvidia.memory_factor", 10),
    ("nvidia.disableCoreLimit", True, "node_agent.disable_core_limit", True),
    ("nvidia.gpuCorePolicy", "force", "nvidia.core_policy", "force"),
    ("nvidia.runtimeClassName", "nvidia", "nvidia.runtime_class_name", "nvidia"),
    (
        "nvidia.migProfileAllowlist",
        PROFILES,
        "nvidia.mig_profiles",
        (MigProfiles(models=("A30",), profiles=("1g.6gb", "2g.12gb")),),
    ),
    ("nvidia.deviceSplitCount", 4, "node_agent.split_count", 4),
    ("nvidia.deviceMemoryScaling", 2, "node_agent.memory_scaling", 2.0),
    ("nvidia.deviceCoreScaling", 1.5, "node_agent.core_scaling", 1.5),
    ("nvidia.preConfiguredDeviceMemory", 128000, "node_agent.fallback_memory", 128000),
    ("nvidia.libCudaLogLevel", "4", "node_agent.shim_log", "debug"),
    ("hygon.resourceCountName", "x.y/z", "hygon.count_name", "x.y/z"),
    ("hygon.resourceMemoryName", "x.y/z", "hygon.memory_name", "x.y/z"),
    ("hygon.resourceCoreName", "x.y/z", "hygon.cores_name", "x.y/z"),
    ("hygon.memoryFactor", 1024, "hygon.memory_factor", 1024),
    ("enflame.resourceNameGCU", "x.y/z", "enflame.gcu_count_name", "x.y/z"),
]
IDLE: dict[str, object] = {
    "nvidia.enableNumaTopology": True,
    "nvidia.knownMigGeometries": [{"models": ["A30"], "allowedGeometries": [[{"name": "1g.6gb"}]]}],
    "enflame.resourceNameDRSGCU": "enflame.com/drs-gcu",
    "enflame.resourceNameGCUMemory": "enflame.com/gcu-memory",
    "enflame.resourceNameGCUCore": "enflame.com/gcu-core",
    "enflame.resourceNameVGCU": "enflame.com/vgcu",
    "enflame.resourceNameVGCUPercentage": "enflame.com/vgcu-percentage",
}
_CLASSIC = {"resourceCountName": "a/b", "resourceMemoryName": "a/c", "resourceCoreName": "a/d"}
_NUMBERS = dict.fromkeys(["memoryAllocatable", "memoryCapacity", "memoryFactor", "aiCore"], 1)
LATER: dict[str, Any] = {
    "cambricon": _CLASSIC,
    "mthreads": _CLASSIC,
    "amd": _CLASSIC,
    "metax": {
        "resourceCountName": "a/b",
        "resourceVCountName": "a/c",
        "resourceVMemoryName": "a/d",
        "resourceVCoreName": "a/e",
        "sgpuTopologyAware": True,
    },
    "kunlun": {
        "resourceCountName": "a/b",
        "resourceVCountName": "a/c",
        "resourceVMemoryName": "a/d",
    },
    "awsneuron": {"resourceCountName": "a/b", "resourceCoreName": "a/c"},
    "vastai": {"resourceCountName": "a/b"},
    "biren": {"resourceCountName": "a/b"},
    "iluvatars": [{"chipName": "MR-V100", "commonWord": "MR-V100", **_CLASSIC}],
    "vnpus": {
        "hamiVnpuCore": False,
        "configs": [
            {
                "chipName": "910B",
                "commonWord": "Ascend910A",
                "resourceName": "a/b",
                "resourceMemoryName": "a/c",
                "resourceCoreName": "a/d",
                **_NUMBERS,
                "aiCPU": 7,
                "runtimeClassName": "ascend",
                "overwriteEnv": False,
                "superPod": False,
                "templates": [{"name": "vir02", "memory": 2184, "aiCore": 2, "aiCPU": 1}],
            }
        ],
    },
}
"""Every key of every section that is not served yet."""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "device-config.yaml"


def read(file: Path, tree: object, **more: Any) -> Loaded:
    file.write_text(tree if isinstance(tree, str) else yaml.safe_dump(tree))
    assignments = {"controller.device_config_file": str(file), **more}
    return resolve(Sources(assignments=assignments))


def value(settings: Settings, dotted: str) -> object:
    group, name = dotted.split(".")
    return getattr(getattr(settings, group), name)


def keys_of(tree: object, path: str) -> set[str]:
    """The dotted paths of a section's keys, as the table writes them."""
    if isinstance(tree, list):
        return {key for item in tree for key in keys_of(item, f"{path}[]")}
    if not isinstance(tree, dict):
        return set()
    inner = {f"{path}.{name}" for name in tree}
    return inner.union(*(keys_of(item, f"{path}.{name}") for name, item in tree.items()))


def test_every_key_of_the_reference_is_known_and_no_other() -> None:
    tested = {path for path, *_ in CHANGING} | set(IDLE) | set(SECTIONS)
    tested |= {key.removeprefix(".") for key in keys_of(LATER, "")}
    tested |= {
        f"nvidia.{name}"
        for name in (
            "migProfileAllowlist[].models",
            "migProfileAllowlist[].profiles",
            "knownMigGeometries[].models",
            "knownMigGeometries[].allowedGeometries",
        )
    }

    assert {path for path, _ in entries()} == tested


@pytest.mark.parametrize(("path", "given", "setting", "expected"), CHANGING)
def test_a_key_changes_its_setting(
    file: Path, path: str, given: object, setting: str, expected: object
) -> None:
    section, key = path.split(".")
    loaded = read(file, {section: {key: given}})

    assert value(loaded.settings, setting) == expected
    assert value(Settings(), setting) != expected
    assert loaded.notes == {}


@pytest.mark.parametrize(("path", "given"), IDLE.items(), ids=list(IDLE))
def test_a_key_without_effect_is_named(file: Path, path: str, given: object) -> None:
    section, key = path.split(".")
    loaded = read(file, {section: {key: given}})

    assert list(loaded.notes) == [f"{path} in {file}"]
    assert loaded.settings == read(file, {}).settings


@pytest.mark.parametrize(("section", "given"), LATER.items(), ids=list(LATER))
def test_a_section_that_is_not_served_yet_is_read_and_named(
    file: Path, section: str, given: object
) -> None:
    loaded = read(file, {section: given})

    assert loaded.notes == {f"{section} in {file}": NOT_SERVED}
    assert loaded.settings == read(file, {}).settings


@pytest.mark.parametrize(
    ("text", "setting", "expected"),
    [
        pytest.param("", "nvidia.count_name", "nvidia.com/gpu", id="an_empty_file"),
        pytest.param("nvidia:\nmetax:\n", "nvidia.count_name", "nvidia.com/gpu",
                     id="empty_sections"),
        pytest.param("nvidia: {defaultCores: }", "nvidia.default_cores", 0, id="no_value"),
        pytest.param("nvidia: {memoryFactor: 0}", "nvidia.memory_factor", 1, id="a_factor_unset"),
        pytest.param("nvidia: {gpuCorePolicy: ''}", "nvidia.core_policy", "default",
                     id="no_policy"),
        pytest.param("nvidia: {libCudaLogLevel: 1}", "node_agent.shim_log", "warn",
                     id="a_level_as_a_number"),
        pytest.param("hygon: {resourceMemoryName: ''}", "hygon.memory_name", "", id="no_name"),
    ],
)  # fmt: skip
def test_forms_of_values(file: Path, text: str, setting: str, expected: object) -> None:
    assert value(read(file, text).settings, setting) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("nvidea: {}", "nvidea: unknown key; the nearest known key is nvidia",
                     id="no_section"),
        pytest.param("nvidia: {resourceCountname: a}",
                     r"nvidia\.resourceCountname: unknown key; .* resourceCountName", id="no_key"),
        pytest.param("nvidia: {migProfileAllowlist: [{model: [a]}]}",
                     r"nvidia\.migProfileAllowlist\[0\]\.model: unknown key; .* models",
                     id="no_key_of_a_row"),
        pytest.param("vnpus: {configs: [{}, {templates: [{nam: a}]}]}",
                     r"vnpus\.configs\[1\]\.templates\[0\]\.nam: unknown key; .* name",
                     id="no_key_deep_in_a_section_that_is_not_served"),
        pytest.param("iluvatars: [{chip: a}]", r"iluvatars\[0\]\.chip: unknown key",
                     id="no_key_of_a_list_of_vendors"),
        pytest.param("metax: {1: a}", r"metax\.1: unknown key", id="a_key_that_is_no_text"),
        pytest.param("nvidia: 5", "nvidia: expected a group, met a whole number", id="no_group"),
        pytest.param("[]", "file: expected a group, met a list", id="a_list_of_sections"),
        pytest.param("iluvatars: {}", "iluvatars: expected a list, met a group", id="no_list"),
        pytest.param("iluvatars: [a]", r"iluvatars\[0\]: expected a group, met text", id="no_row"),
        pytest.param("amd: {resourceCountName: 5}",
                     r"amd\.resourceCountName: expected text, met a whole number", id="no_text"),
        pytest.param("nvidia: {overwriteEnv: 1}",
                     r"nvidia\.overwriteEnv: expected true or false, met a whole number",
                     id="no_truth_value"),
        pytest.param("nvidia: {deviceSplitCount: true}",
                     r"nvidia\.deviceSplitCount: expected a whole number, met true or false",
                     id="no_number"),
        pytest.param("nvidia: {deviceSplitCount: 1.5}",
                     r"nvidia\.deviceSplitCount: expected a whole number, met a fraction",
                     id="no_whole_number"),
        pytest.param("nvidia: {deviceSplitCount: 0}",
                     r"node_agent\.split_count: .* \(from the key nvidia\.deviceSplitCount of ",
                     id="out_of_range"),
        pytest.param("nvidia: {gpuCorePolicy: forced}",
                     r"nvidia\.gpuCorePolicy: expected one of default, .*, met 'forced'",
                     id="no_policy"),
        pytest.param("nvidia: {libCudaLogLevel: 2}", r"nvidia\.libCudaLogLevel: expected one of",
                     id="no_level"),
        pytest.param("nvidia: {migProfileAllowlist: [{models: [a], profiles: [1x.5gb]}]}",
                     r"nvidia\.mig_profiles: .*\[0\]\.profiles\[0\].*nvidia\.migProfileAllowlist",
                     id="no_profile"),
        pytest.param("nvidia: {migProfileAllowlist: [{models: [a], profiles: [g.5gb]}]}",
                     r"nvidia\.mig_profiles: ", id="a_profile_without_slices"),
        pytest.param("nvidia: {migProfileAllowlist: [{models: [], profiles: [1g.5gb]}]}",
                     r"nvidia\.mig_profiles: ", id="no_models"),
        pytest.param("nvidia: {migProfileAllowlist: [{models: [a]}]}",
                     r"nvidia\.mig_profiles: .*profiles", id="profiles_missing"),
        pytest.param("nvidia: {migProfileAllowlist: [{models: a}]}",
                     r"nvidia\.migProfileAllowlist\[0\]\.models: expected a list, met text",
                     id="a_model_alone"),
        pytest.param("nvidia: {", "device-config.yaml: ", id="malformed_yaml"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_told_by_dotted_path(file: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read(file, text)


def test_our_own_file_wins_over_it_and_it_wins_over_the_defaults(
    file: Path, tmp_path: Path
) -> None:
    own = tmp_path / "hami.yaml"
    own.write_text("nvidia: {count_name: own/gpu}")
    file.write_text("nvidia: {resourceCountName: their/gpu, resourceCoreName: their/cores}")
    sources = Sources(file=own, assignments={"controller.device_config_file": str(file)})

    settings = resolve(sources).settings

    assert settings.nvidia.count_name == "own/gpu"
    assert settings.nvidia.cores_name == "their/cores"
    assert settings.nvidia.memory_name == "nvidia.com/gpumem"


def test_it_wins_over_the_resource_flags_as_in_hami(file: Path) -> None:
    file.write_text("hygon: {resourceCountName: their/dcu}")
    sources = Sources(
        reference=parse(
            [f"--device-config-file={file}", "--dcu-name=flag/dcu", "--dcu-cores=flag/cores"]
        )
    )

    settings = resolve(sources).settings

    assert settings.hygon.count_name == "their/dcu"
    assert settings.hygon.cores_name == "flag/cores"


def test_each_process_reads_the_file_of_its_own_setting(file: Path) -> None:
    file.write_text("nvidia: {deviceSplitCount: 3}")
    assignments = {"node_agent.device_config_file": str(file)}

    agent = resolve(Sources(process="node_agent", assignments=assignments))
    controller = resolve(Sources(process="controller", assignments=assignments))

    assert agent.settings.node_agent.split_count == 3
    assert controller.settings.node_agent.split_count == 10


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    assignments = {"controller.device_config_file": str(tmp_path / "nowhere")}

    with pytest.raises(ConfigError, match="nowhere"):
        resolve(Sources(assignments=assignments))


_leaf = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
_key = st.sampled_from(
    sorted({part.removesuffix("[]") for path, _ in entries() for part in path.split(".")})
) | st.text(max_size=8)
_tree = st.recursive(
    _leaf,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_key | st.integers(), inner),
    max_leaves=12,
)


@forall(tree=_tree)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_tree_is_read_or_refused(file: Path, tree: object) -> None:
    try:
        loaded = read(file, tree)
    except ConfigError:
        return

    assert isinstance(loaded.settings, Settings)


@pytest.mark.parametrize("opening", ["[", "{a: ", "- "])
def test_a_file_nested_too_deeply_is_refused(file: Path, opening: str) -> None:
    with pytest.raises(ConfigError):
        read(file, opening * 5000)
