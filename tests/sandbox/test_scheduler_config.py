"""The scheduler stand-in reads the files that kube-scheduler reads, and refuses what it would."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from hami.errors import ConfigError
from hami.sandbox.scheduler import load_config

EXTENDER: dict[str, Any] = {
    "urlPrefix": "https://127.0.0.1:443",
    "filterVerb": "filter",
    "bindVerb": "bind",
    "enableHTTPS": True,
    "nodeCacheCapable": True,
    "weight": 1,
    "httpTimeout": "30s",
    "tlsConfig": {"insecure": True},
    "managedResources": [{"name": "nvidia.com/gpu", "ignoredByScheduler": True}],
}


def text(**fields: Any) -> str:
    whole = {
        "apiVersion": "kubescheduler.config.k8s.io/v1",
        "kind": "KubeSchedulerConfiguration",
        "leaderElection": {"leaderElect": False},
        "profiles": [{"schedulerName": "hami-scheduler"}],
        "extenders": [EXTENDER],
    }
    return yaml.safe_dump(whole | fields)


def test_a_configuration_as_the_chart_writes_it_is_read(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(text())
    config = load_config(file)
    assert config == load_config(text())
    extender = config.extenders[0]
    assert extender.timeout_seconds == 30
    assert extender.enable_https
    assert config.ignored_resources == {"nvidia.com/gpu"}
    assert config.profiles[0].scheduler_name == "hami-scheduler"


def test_defaults_are_those_of_kube_scheduler() -> None:
    config = load_config(text(profiles=[{}], extenders=[{"urlPrefix": "http://x"}]))
    assert config.profiles[0].scheduler_name == "default-scheduler"
    assert config.extenders[0].timeout_seconds == 5
    assert (config.pod_initial_backoff_seconds, config.pod_max_backoff_seconds) == (1, 10)


@pytest.mark.parametrize(
    ("duration", "seconds"), [("100ms", 0.1), ("1m30s", 90), ("1.5s", 1.5), ("0", 5), ("0s", 5)]
)
def test_durations_are_gos(duration: str, seconds: float) -> None:
    config = load_config(text(extenders=[{**EXTENDER, "httpTimeout": duration}]))
    assert config.extenders[0].timeout_seconds == seconds


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        pytest.param({"kind": "Policy"}, "kind", id="another kind"),
        pytest.param({"apiVersion": "v1"}, "apiVersion", id="another group"),
        pytest.param({"profile": []}, "profile", id="unknown field"),
        pytest.param({"profiles": []}, "profiles", id="no profile"),
        pytest.param({"profiles": [{}, {}]}, "twice", id="a name twice"),
        pytest.param({"profiles": [{"plugins": {"score": {}}}]}, "plugins", id="plugins"),
        pytest.param(
            {"extenders": [EXTENDER, {**EXTENDER, "managedResources": []}]},
            "only one may have a bindVerb",
            id="two binders",
        ),
        pytest.param(
            {"extenders": [{**EXTENDER, "prioritizeVerb": "p", "weight": 0}]},
            "weight",
            id="scores without weight",
        ),
        pytest.param({"extenders": [{**EXTENDER, "urlPrefix": "x"}]}, "urlPrefix", id="no URL"),
        pytest.param(
            {"extenders": [{**EXTENDER, "httpTimeout": "soon"}]}, "httpTimeout", id="no duration"
        ),
        pytest.param(
            {"extenders": [{**EXTENDER, "tlsConfig": {"insecure": True, "caFile": "x"}}]},
            "exclude each other",
            id="insecure with a CA",
        ),
        pytest.param(
            {"extenders": [{**EXTENDER, "tlsConfig": {"certFile": "x"}}]},
            "belong together",
            id="certificate without key",
        ),
        pytest.param({"podInitialBackoffSeconds": 20}, "podMaxBackoffSeconds", id="back-off"),
    ],
)
def test_what_kube_scheduler_refuses_is_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_config(text(**fields))


@pytest.mark.parametrize("content", ["", "[", "- a", "apiVersion: v1"])
def test_what_is_no_configuration_is_refused(content: str) -> None:
    with pytest.raises(ConfigError):
        load_config(content)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing\.yaml"):
        load_config(tmp_path / "missing.yaml")
