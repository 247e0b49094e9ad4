"""Settings: which source wins, and errors that name the dotted path."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, settings
from hypothesis import given as forall
from hypothesis import strategies as st

from hami.config import Settings, describe
from hami.errors import ConfigError
from hami.loading import MAX_FILE_BYTES, load


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "hami.yaml"


def test_without_sources_the_defaults_hold() -> None:
    assert load() == Settings()


def test_later_sources_win(file: Path) -> None:
    file.write_text("controller: {port: 1, health_port: 1, mode: exclusive}\nlog: {level: debug}\n")

    loaded = load(
        file=file,
        environment={"HAMI_CONTROLLER__PORT": "2", "HAMI_CONTROLLER__HEALTH_PORT": "2"},
        flags={"controller.port": 3, "controller.mode": None},
    )

    assert loaded.controller.health_port == 2
    assert loaded.controller.port == 3
    assert loaded.controller.mode == "exclusive"
    assert loaded.log.level == "debug"
    assert loaded.kube == Settings().kube


def test_an_empty_file_changes_nothing(file: Path) -> None:
    file.write_text("# nothing yet\n")

    assert load(file=file) == Settings()


@pytest.mark.parametrize(
    ("name", "text", "path", "expected"),
    [
        pytest.param("HAMI_CONTROLLER__PORT", "80", "controller.port", 80, id="a_number"),
        pytest.param("HAMI_KUBE__QPS", "7.5", "kube.qps", 7.5, id="a_fraction"),
        pytest.param("HAMI_NVIDIA__OVERWRITE_ENV", "1", "nvidia.overwrite_env", True, id="truth"),
        pytest.param("HAMI_NODE_AGENT__NODE_NAME", "10", "node_agent.node_name", "10",
                     id="digits_for_a_name_stay_text"),
        pytest.param("HAMI_NODE_AGENT__NODE_NAME", "no", "node_agent.node_name", "no",
                     id="a_yaml_word_for_a_name_stays_text"),
        pytest.param("HAMI_CONTROLLER__HOST", "[", "controller.host", "[",
                     id="text_that_is_no_yaml_stays_text"),
        pytest.param("HAMI_KUBE__KUBECONFIG", "/k", "kube.kubeconfig", "/k", id="an_optional_path"),
    ],
)  # fmt: skip
def test_a_variable_is_read_in_its_settings_type(
    name: str, text: str, path: str, expected: object
) -> None:
    group, field = path.split(".")

    assert getattr(getattr(load(environment={name: text}), group), field) == expected


@pytest.mark.parametrize(
    "name", ["PATH", "HAMI_CONTROLLER", "HAMI_SERVICE_HOST", "HAMI__PORT", "XHAMI_KUBE__QPS"]
)
def test_other_variables_are_not_ours(name: str) -> None:
    assert load(environment={name: "x"}) == Settings()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        pytest.param("HAMI_CONTROLLER__PORT", "x",
                     r"controller\.port: .*from the environment variable HAMI_CONTROLLER__PORT",
                     id="a_word_for_a_number"),
        pytest.param("HAMI_CONTROLLER__PORT", "70000", r"controller\.port: .* 65535",
                     id="a_number_out_of_range"),
        pytest.param("HAMI_CONTROLLER__PROT", "1",
                     r"controller\.prot: unknown setting; the nearest known key is port",
                     id="an_unknown_key"),
        pytest.param("HAMI_CONTROLER__PORT", "1",
                     r"controler: unknown setting; the nearest known key is controller",
                     id="an_unknown_group"),
        pytest.param("HAMI_CONTROLLER__PORT__X", "1", r"controller\.port: ", id="a_path_too_long"),
    ],
)  # fmt: skip
def test_a_wrong_variable_is_named(name: str, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(environment={name: text})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("controller: {port: '80'}", r"controller\.port: Expected `int`, got `str`",
                     id="the_wrong_type"),
        pytest.param("controller: {mode: greedy}", r"controller\.mode: Invalid enum value 'greedy'",
                     id="no_such_choice"),
        pytest.param("kube: {qps: 0}", r"kube\.qps: Expected `float` > 0", id="out_of_range"),
        pytest.param("kube: {qps: .nan}", r"kube\.qps: ", id="not_a_number"),
        pytest.param("kube: {qsp: 1}", r"kube\.qsp: unknown setting; .* qps", id="an_unknown_key"),
        pytest.param("kube: {zzzzzz: 1}", r"kube\.zzzzzz: unknown setting$",
                     id="an_unknown_key_like_no_other"),
        pytest.param("nvidia: {mig_profiles: [{models: [a], profile: [1g.5gb]}]}",
                     r"nvidia\.mig_profiles\[0\]\.profile: unknown setting; .* profiles",
                     id="an_unknown_key_in_a_list"),
        pytest.param("nvidia: {mig_profiles: [{models: [a], profiles: [5gb]}]}",
                     r"nvidia\.mig_profiles\[0\]\.profiles\[0\]: ", id="no_profile"),
        pytest.param("controller: {device_policy: 'mutex,best'}",
                     r"controller\.device_policy: expected words of .*, met 'best'",
                     id="no_device_policy"),
        pytest.param("controller: {node_label_selector: 'a in b'}",
                     r"controller\.node_label_selector: .*'a in b'", id="no_selector"),
        pytest.param("1: {qps: 1}", "1: unknown setting", id="a_key_that_is_no_text"),
        pytest.param("kube: 5", "kube: expected a group, met int", id="a_value_for_a_group"),
        pytest.param("[1]", "expected a mapping, met list", id="a_list_of_settings"),
        pytest.param("a: [", "settings file", id="malformed_yaml"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_told_by_dotted_path(file: Path, text: str, message: str) -> None:
    file.write_text(text)

    with pytest.raises(ConfigError, match=message):
        load(file=file)


def test_a_file_that_cannot_be_read_is_named(file: Path) -> None:
    with pytest.raises(ConfigError, match=r"settings file .*hami\.yaml"):
        load(file=file)

    file.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"settings file .*hami\.yaml"):
        load(file=file)


def test_a_file_that_is_larger_than_any_in_earnest_is_refused(file: Path) -> None:
    file.write_text("#" * (MAX_FILE_BYTES + 1))

    with pytest.raises(ConfigError, match="at most"):
        load(file=file)


def test_a_flag_below_a_value_is_refused(file: Path) -> None:
    file.write_text("kube: 5")

    with pytest.raises(
        ConfigError, match=r"kube\.qps: kube is not a group \(from the command line\)"
    ):
        load(file=file, flags={"kube.qps": 1.0})


def test_an_unknown_flag_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"kube\.nonsense: unknown setting"):
        load(flags={"kube.nonsense": 1})


@forall(text=st.text(st.characters(codec="utf-8"), max_size=60))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_file_is_read_or_refused(file: Path, text: str) -> None:
    file.write_text(text, encoding="utf-8")

    try:
        loaded = load(file=file)
    except ConfigError:
        return

    assert isinstance(loaded, Settings)


_leaf = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
_key = st.sampled_from(
    sorted({part for row in describe() for part in row[0].split(".")} | {"models", "profiles"})
) | st.text(max_size=8)
_tree = st.recursive(
    _leaf,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_key | st.integers(), inner),
    max_leaves=12,
)


@forall(tree=_tree)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_tree_of_keys_is_read_or_refused(file: Path, tree: object) -> None:
    file.write_text(yaml.safe_dump(tree))

    try:
        loaded = load(file=file)
    except ConfigError:
        return

    assert isinstance(loaded, Settings)


def test_every_setting_is_described_by_path_type_and_default() -> None:
    rows = {row[0]: row[1:3] for row in describe()}

    assert rows["controller.port"] == ("int", "9443")
    assert rows["controller.mode"] == ("cooperative | exclusive", "'cooperative'")
    assert rows["kube.kubeconfig"] == ("str | None", "None")
    assert rows["kube.qps"] == ("float", "250.0")
