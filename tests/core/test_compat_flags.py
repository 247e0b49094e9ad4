"""The flags of HAMi's scheduler: every one is accepted, and does what the table says."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given as forall
from hypothesis import strategies as st

from hami.compat.flags import FLAGS, parse
from hami.config import Settings
from hami.errors import ConfigError
from hami.loading import Loaded, Sources, resolve

CHANGING: list[tuple[str, str, dict[str, Any]]] = [
    ("http_bind", "127.0.0.1:8080", {"controller.host": "127.0.0.1", "controller.port": 8080}),
    ("cert_file", "/tls/tls.crt", {"controller.cert_file": "/tls/tls.crt"}),
    ("key_file", "/tls/tls.key", {"controller.key_file": "/tls/tls.key"}),
    ("scheduler-name", "ours", {"controller.scheduler_name": "ours"}),
    ("node-scheduler-policy", "spread", {"controller.node_policy": "spread"}),
    ("gpu-scheduler-policy", "mutex,numa", {"controller.device_policy": "mutex,numa"}),
    ("metrics-bind-address", ":1", {"controller.health_port": 1}),
    ("node-label-selector", "a=b,c/d=e", {"controller.node_label_selector": "a=b,c/d=e"}),
    ("kube-qps", "7.5", {"kube.qps": 7.5}),
    ("kube-burst", "11", {"kube.burst": 11}),
    ("kube-timeout", "30", {"kube.request_timeout_seconds": 30.0}),
    ("node-lock-timeout", "1h2m3s", {"controller.node_lock_timeout_seconds": 3723.0}),
    (
        "force-overwrite-default-scheduler",
        "false",
        {"controller.overwrite_default_scheduler": False},
    ),
    ("leader-elect", "true", {"controller.leader_elect": True}),
    ("leader-elect-resource-name", "lease", {"controller.scheduler_lease_name": "lease"}),
    ("leader-elect-resource-namespace", "ns", {"controller.scheduler_lease_namespace": "ns"}),
    ("legacy-metrics", "true", {"controller.legacy_metrics": True}),
    ("dcu-name", "x.y/count", {"hygon.count_name": "x.y/count"}),
    ("dcu-memory", "x.y/memory", {"hygon.memory_name": "x.y/memory"}),
    ("dcu-cores", "x.y/cores", {"hygon.cores_name": "x.y/cores"}),
    ("enflame-gcu-resource-name", "x.y/gcu", {"enflame.gcu_count_name": "x.y/gcu"}),
    ("legacy-metrics", "true", {"controller.legacy_metrics": True}),
    ("v", "5", {"log.level": "debug"}),
]
IDLE: dict[str, str] = {
    "profiling": "true",
    "node-lock-retry-timeout": "28s",
    "debug": "true",
    "cambricon-mlu-name": "cambricon.com/mlu",
    "cambricon-mlu-memory": "cambricon.com/mlu.smlu.vmemory",
    "cambricon-mlu-cores": "cambricon.com/mlu.smlu.vcore",
    "mthreads-name": "mthreads.com/vgpu",
    "mthreads-memory": "mthreads.com/sgpu-memory",
    "mthreads-cores": "mthreads.com/sgpu-core",
    "metax-name": "metax-tech.com/gpu",
    "metax-vcount": "metax-tech.com/sgpu",
    "metax-vcore": "metax-tech.com/vcore",
    "metax-vmemory": "metax-tech.com/vmemory",
    "sgpu-topology-aware": "true",
    "kunlun-name": "kunlunxin.com/xpu",
    "kunlun-vcount": "kunlunxin.com/vxpu",
    "kunlun-vmemory": "kunlunxin.com/vxpu-memory",
    "enflame-drs-gcu-resource-name": "enflame.com/drs-gcu",
    "enflame-vgcu-resource-name": "enflame.com/drs-gcu",
    "enflame-gcu-memory-resource-name": "enflame.com/gcu-memory",
    "enflame-gcu-core-resource-name": "enflame.com/gcu-core",
    "enflame-vgcu-legacy-resource-name": "enflame.com/vgcu",
    "enflame-vgcu-percentage-resource-name": "enflame.com/vgcu-percentage",
    "vmodule": "scheduler=5",
    "add_dir_header": "true",
    "alsologtostderr": "true",
    "logtostderr": "true",
    "one_output": "true",
    "skip_headers": "true",
    "skip_log_headers": "true",
    "log_backtrace_at": ":0",
    "log_dir": "/logs",
    "log_file": "/logs/a",
    "log_file_max_size": "1800",
    "stderrthreshold": "2",
}
KUBE = Settings().kube
REFUSED = ("enable-ascend", "enable-iluvatar")
READS_A_FILE = "device-config-file"
"""Tested with the file's keys."""


def given(*arguments: str, environment: dict[str, str] | None = None) -> Loaded:
    return resolve(Sources(reference=parse(arguments), environment=environment or {}))


def value(settings: Settings, dotted: str) -> object:
    group, name = dotted.split(".")
    return getattr(getattr(settings, group), name)


def test_every_flag_of_the_reference_is_known_and_no_other() -> None:
    assert set(FLAGS) == {name for name, _, _ in CHANGING} | set(IDLE) | {*REFUSED, READS_A_FILE}


FORMS = ("--{name}={text}", "--{name} {text}", "-{name}={text}")


@pytest.mark.parametrize(
    ("name", "text", "expected", "form"),
    [
        pytest.param(*row, form, id=form.format(name=row[0], text="VALUE"))
        for row in CHANGING
        for form in FORMS
        if not (FLAGS[row[0]].is_switch and " " in form)  # a switch takes no separate value
    ],
)
def test_a_flag_changes_its_settings(
    name: str, text: str, expected: dict[str, Any], form: str
) -> None:
    loaded = given(*form.format(name=name, text=text).split(" "))

    assert set(expected) <= set(FLAGS[name].settings)
    assert {path: value(loaded.settings, path) for path in expected} == expected
    assert all(value(Settings(), path) != new for path, new in expected.items())
    assert loaded.notes == {}


@pytest.mark.parametrize(("name", "text"), IDLE.items(), ids=list(IDLE))
def test_a_flag_without_effect_is_accepted_and_named(name: str, text: str) -> None:
    loaded = given(f"--{name}={text}")

    assert loaded.settings == Settings()
    assert loaded.notes == {f"--{name}": FLAGS[name].note}
    assert FLAGS[name].note


@pytest.mark.parametrize("name", REFUSED)
def test_a_vendor_that_is_not_served_cannot_be_enabled(name: str) -> None:
    with pytest.raises(ConfigError, match=f"--{name}: .* not served yet; leave the flag out"):
        given(f"--{name}")

    assert given(f"--{name}=false").settings == Settings()


@pytest.mark.parametrize(
    ("arguments", "path", "expected"),
    [
        pytest.param(["-v=4"], "log.level", "info", id="the_charts_verbosity"),
        pytest.param(["-v4"], "log.level", "info", id="the_same_shorter"),
        pytest.param(["-v", "9"], "log.level", "debug", id="verbose"),
        pytest.param(["--v=5", "-v=1"], "log.level", "info", id="the_last_verbosity_counts"),
        pytest.param(["--kube-qps=0"], "kube.qps", KUBE.qps, id="no_rate"),
        pytest.param(["--kube-burst", "0"], "kube.burst", KUBE.burst, id="no_burst"),
        pytest.param(["--kube-timeout=0"], "kube.request_timeout_seconds",
                     KUBE.request_timeout_seconds, id="no_deadline"),
        pytest.param(["--kube-qps=1", "--kube-qps=2"], "kube.qps", 2.0, id="the_last_counts"),
        pytest.param(["--leader-elect"], "controller.leader_elect", True, id="a_switch_alone"),
        pytest.param(["--leader-elect=F"], "controller.leader_elect", False, id="a_short_false"),
        pytest.param(["--http_bind=:443"], "controller.host", "0.0.0.0", id="every_address"),
        pytest.param(["--http_bind=[::1]:443"], "controller.host", "::1", id="an_ipv6_address"),
        pytest.param(["--cert_file="], "controller.cert_file", None, id="no_file"),
        pytest.param(["--node-lock-timeout=1.5m"], "controller.node_lock_timeout_seconds", 90.0,
                     id="a_fraction_of_a_minute"),
        pytest.param(["--node-lock-timeout=500ms"], "controller.node_lock_timeout_seconds", 0.5,
                     id="milliseconds"),
        pytest.param(["--node-label-selector=a=1,b=2", "--node-label-selector", "b=3"],
                     "controller.node_label_selector", "a=1,b=3", id="selectors_add_up"),
    ],
)  # fmt: skip
def test_forms_of_values(arguments: list[str], path: str, expected: object) -> None:
    assert value(given(*arguments).settings, path) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["--scheduler_name=x"], "--scheduler_name: unknown flag; the nearest known "
                     "flag is --scheduler-name", id="an_underscore"),
        pytest.param(["--confg=x"], "--confg: .* --config", id="a_flag_of_our_own"),
        pytest.param(["--zzzzzzzzz"], "--zzzzzzzzz: unknown flag$", id="like_no_other"),
        pytest.param(["serve"], "unexpected argument 'serve'", id="no_flag"),
        pytest.param(["--leader-elect", "false"], "unexpected argument 'false'; .*--flag=value",
                     id="a_switch_with_a_separate_value"),
        pytest.param(["--"], "unexpected argument", id="dashes_alone"),
        pytest.param(["--kube-qps"], "--kube-qps: expected a value, met none", id="no_value"),
        pytest.param(["--kube-qps=fast"], "--kube-qps: expected a number, met 'fast'",
                     id="a_word_for_a_number"),
        pytest.param(["--kube-qps=nan"], "--kube-qps: expected a number", id="no_number"),
        pytest.param(["--kube-qps=-1"], r"kube\.qps: .* \(from the flag --kube-qps\)",
                     id="without_a_limit"),
        pytest.param(["--kube-burst=1.5"], "--kube-burst: expected a whole number", id="half"),
        pytest.param(["--node-lock-timeout=300"], "--node-lock-timeout: expected a duration",
                     id="a_duration_without_a_unit"),
        pytest.param(["--node-lock-timeout=-1s"], r"controller\.node_lock_timeout_seconds: ",
                     id="a_time_past"),
        pytest.param(["--leader-elect=yes"], "--leader-elect: expected true or false, met 'yes'",
                     id="not_a_truth_value_of_go"),
        pytest.param(["--http_bind=443"], "--http_bind: expected host:port", id="a_port_alone"),
        pytest.param(["--http_bind=:70000"], r"controller\.port: .* 65535", id="no_such_port"),
        pytest.param(["--node-scheduler-policy=best"], r"controller\.node_policy: .*'best'",
                     id="no_such_node_policy"),
        pytest.param(["--gpu-scheduler-policy=spread,best"], r"controller\.device_policy: .*'best'",
                     id="no_such_device_policy"),
        pytest.param(["--node-label-selector=a"], "--node-label-selector: expected k=v",
                     id="a_label_without_a_value"),
        pytest.param(["--node-label-selector=a=b c"], r"controller\.node_label_selector: ",
                     id="no_label"),
        pytest.param(["--node-lock-retry-timeout"], "expected a value", id="idle_without_value"),
    ],
)  # fmt: skip
def test_a_wrong_flag_is_named(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        given(*arguments)


def test_the_variable_of_the_chart_counts_unless_the_flag_is_given() -> None:
    environment = {"HAMI_NODELOCK_EXPIRE": "10m"}
    path = "controller.node_lock_timeout_seconds"
    ours = {"HAMI_CONTROLLER__NODE_LOCK_TIMEOUT_SECONDS": "7"}

    assert value(given(environment=environment).settings, path) == 600.0
    assert value(given("--node-lock-timeout=9s", environment=environment).settings, path) == 9.0
    assert value(given(environment=environment | ours).settings, path) == 7.0
    with pytest.raises(ConfigError, match="variable HAMI_NODELOCK_EXPIRE: expected a duration"):
        given(environment={"HAMI_NODELOCK_EXPIRE": "5 minutes"})


@forall(arguments=st.lists(st.text(max_size=12) | st.sampled_from([f"--{n}" for n in FLAGS])))
def test_any_command_line_is_read_or_refused(arguments: list[str]) -> None:
    try:
        given(*(a for a in arguments if "device-config-file" not in a))
    except ConfigError:
        return


@forall(name=st.sampled_from(sorted(set(FLAGS) - {READS_A_FILE})), text=st.text(max_size=30))
def test_any_value_of_a_flag_is_read_or_refused(name: str, text: str) -> None:
    try:
        given(f"--{name}={text}")
    except ConfigError:
        return
