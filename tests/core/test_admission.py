"""What admission makes of pods: table cases, and laws over pods that anybody might write."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import jsonpatch
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hami.core.admission import Rules, admit
from hami.core.objects import Pod
from hami.core.request import Defaults
from hami.core.vendor import Vendor, table
from hami.core.vendors.nvidia import NVIDIA
from hami.errors import AdmissionError
from tests.support.builders import OTHER

GPU, MEM, PERCENT, CORES, PRIORITY = NVIDIA.resources.all()
OURS = "hami-scheduler"


def rules(*vendors: Vendor, scheduler_name: str = OURS, overwrite: bool = True) -> Rules:
    return Rules(
        vendors=table(vendors or (NVIDIA,)),
        defaults=Defaults(),
        scheduler_name=scheduler_name,
        overwrite_default_scheduler=overwrite,
    )


def container(name: str = "main", /, **fields: Any) -> dict[str, Any]:
    """A container; ``limits`` becomes its resources."""
    limits = fields.pop("limits", None)
    resources = {"resources": {"limits": limits}} if limits is not None else {}
    return {"name": name, **resources, **fields}


def pod(*containers: dict[str, Any], **spec: Any) -> dict[str, Any]:
    metadata = {"name": "p", "namespace": "default", **spec.pop("metadata", {})}
    full = {"schedulerName": "default-scheduler", "containers": list(containers), **spec}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": full}


def admitted(raw: dict[str, Any], site: Rules | None = None) -> dict[str, Any]:
    """The pod after admission."""
    patch = admit(msgspec.convert(raw, Pod), raw, site or rules())
    written = msgspec.json.encode(patch).decode()
    return dict(jsonpatch.JsonPatch.from_string(written).apply(raw))


def limits_of(raw: dict[str, Any], index: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = raw["spec"]["containers"][index]["resources"]["limits"]
    return found


def env_of(raw: dict[str, Any], index: int = 0, *, where: str = "containers") -> list[Any]:
    found: list[Any] = raw["spec"][where][index].get("env") or []
    return found


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        pytest.param({GPU: 1}, {GPU: 1, CORES: "100"}, id="count alone is a whole device"),
        pytest.param({GPU: 2, MEM: 3000}, {GPU: 2, MEM: 3000}, id="memory makes it shared"),
        pytest.param({MEM: 3000}, {MEM: 3000, GPU: "1"}, id="memory alone is for one device"),
        pytest.param({CORES: 30}, {CORES: 30, GPU: "1"}, id="cores alone are for one device"),
        pytest.param({GPU: 1, PERCENT: 50}, {GPU: 1, PERCENT: 50}, id="half the memory is shared"),
        pytest.param(
            {PERCENT: 100},
            {PERCENT: 100, GPU: "1", CORES: "100"},
            id="all the memory is a whole device",
        ),
        pytest.param({GPU: 1, PERCENT: 0}, {GPU: 1, PERCENT: 0}, id="percentage 0 is not 100"),
        pytest.param({GPU: 1, CORES: 0}, {GPU: 1, CORES: 0}, id="explicit cores stand"),
        pytest.param({GPU: 0}, {GPU: 0}, id="no devices need no cores"),
        pytest.param({GPU: "2", MEM: "4k"}, {GPU: "2", MEM: "4k"}, id="quantities have suffixes"),
    ],
)
def test_unsaid_limits_are_filled_in(asked: dict[str, Any], expected: dict[str, Any]) -> None:
    assert limits_of(admitted(pod(container(limits=asked)))) == expected


def test_default_count_zero_leaves_memory_without_count_alone() -> None:
    site = rules(replace(NVIDIA, default_count=0))
    raw = pod(container(limits={MEM: 3000}))

    assert admitted(raw, site) == raw


def test_requests_without_limits_are_understood() -> None:
    raw = pod({"name": "main", "resources": {"requests": {MEM: "3000"}}})

    assert admitted(raw)["spec"]["containers"][0]["resources"] == {
        "requests": {MEM: "3000"},
        "limits": {GPU: "1"},
    }


def test_pod_with_devices_is_given_to_our_scheduler_and_runtime_class() -> None:
    site = rules(replace(NVIDIA, runtime_class_name="nvidia"))

    spec = admitted(pod(container(limits={GPU: 1})), site)["spec"]

    assert (spec["schedulerName"], spec["runtimeClassName"]) == (OURS, "nvidia")


def test_runtime_class_of_the_author_stands() -> None:
    site = rules(replace(NVIDIA, runtime_class_name="nvidia"))

    spec = admitted(pod(container(limits={GPU: 1}), runtimeClassName="kata"), site)["spec"]

    assert spec["runtimeClassName"] == "kata"


def test_pod_without_devices_is_left_alone() -> None:
    raw = pod(container(limits={"cpu": "1"}), container("other"))

    assert admit(msgspec.convert(raw, Pod), raw, rules()) == ()


@pytest.mark.parametrize(
    ("scheduler", "overwrite", "ours"),
    [
        ("default-scheduler", True, True),
        ("default-scheduler", False, False),
        ("somebody-elses", True, False),
        (OURS, False, True),
        ("", False, True),
    ],
)
def test_only_pods_of_nobody_else_are_taken_over(
    scheduler: str, overwrite: bool, ours: bool
) -> None:
    raw = pod(container(limits={GPU: 1}), schedulerName=scheduler)

    changed = admitted(raw, rules(overwrite=overwrite))

    assert changed["spec"]["schedulerName"] == (OURS if ours else scheduler)
    assert limits_of(changed) == ({GPU: 1, CORES: "100"} if ours else {GPU: 1})


def test_priority_and_core_policy_become_environment_of_containers_with_devices_only() -> None:
    site = rules(replace(NVIDIA, core_policy="force"))
    raw = pod(
        container("gpu", limits={GPU: 1, PRIORITY: 1}, env=[{"name": "A", "value": "b"}]),
        container("cpu"),
    )

    changed = admitted(raw, site)

    assert env_of(changed) == [
        {"name": "A", "value": "b"},
        {"name": "CUDA_TASK_PRIORITY", "value": "1"},
        {"name": "GPU_CORE_UTILIZATION_POLICY", "value": "force"},
    ]
    assert env_of(changed, 1) == []


def test_variable_that_is_there_is_set_and_not_repeated() -> None:
    env = [{"name": "CUDA_TASK_PRIORITY", "value": "7"}]
    raw = pod(container(limits={GPU: 1, MEM: 1, PRIORITY: 0}, env=env))

    assert env_of(admitted(raw)) == [{"name": "CUDA_TASK_PRIORITY", "value": "0"}]


def test_devices_are_hidden_from_containers_without_request_where_configured() -> None:
    site = rules(replace(NVIDIA, overwrite_env=True))
    raw = pod(
        container("cpu"),
        container("gpu", limits={GPU: 1}),
        initContainers=[container("setup")],
    )

    changed = admitted(raw, site)

    hidden = [{"name": "NVIDIA_VISIBLE_DEVICES", "value": "none"}]
    assert env_of(changed, 0) == hidden
    assert env_of(changed, 1) == []
    assert env_of(changed, 0, where="initContainers") == hidden


def test_init_containers_are_completed_as_well() -> None:
    raw = pod(container("cpu"), initContainers=[container("train", limits={GPU: 1})])

    changed = admitted(raw)

    assert changed["spec"]["initContainers"][0]["resources"]["limits"][CORES] == "100"
    assert changed["spec"]["schedulerName"] == OURS


def test_every_vendor_completes_its_own_part() -> None:
    raw = pod(container(limits={MEM: 1000, "other.com/npumem": 2000}))

    limits = limits_of(admitted(raw, rules(NVIDIA, OTHER)))

    assert (limits[GPU], limits["other.com/npu"]) == ("1", "1")


@pytest.mark.parametrize(
    ("asked", "word"),
    [
        pytest.param({GPU: -1}, GPU, id="negative count"),
        pytest.param({GPU: "1.5"}, GPU, id="fractional count"),
        pytest.param({GPU: "500m"}, GPU, id="thousandths of a device"),
        pytest.param({GPU: "many"}, GPU, id="a word"),
        pytest.param({GPU: 5000}, GPU, id="more devices than any node has"),
        pytest.param({GPU: 1, MEM: "8Ei"}, MEM, id="more memory than 32 bits hold"),
        pytest.param({GPU: 1, MEM: -5}, MEM, id="negative memory"),
        pytest.param({GPU: 1, MEM: ""}, MEM, id="empty memory"),
        pytest.param({GPU: 1, PERCENT: 101}, PERCENT, id="more than all of the memory"),
        pytest.param({GPU: 1, PERCENT: -1}, PERCENT, id="less than none of the memory"),
        pytest.param({GPU: 1, CORES: "x"}, CORES, id="cores in letters"),
        pytest.param({GPU: 1, PRIORITY: "-1"}, PRIORITY, id="negative priority"),
        pytest.param({MEM: 10, PERCENT: 10}, PERCENT, id="memory twice"),
    ],
)
def test_bad_quantity_is_refused_naming_container_and_resource(
    asked: dict[str, Any], word: str
) -> None:
    raw = pod(container("fine"), container("trainer", limits=asked))

    with pytest.raises(AdmissionError, match="'trainer'") as refusal:
        admitted(raw)

    assert word in str(refusal.value)


def test_memory_factor_counts_in_the_range() -> None:
    site = rules(replace(NVIDIA, memory_factor=1024))

    with pytest.raises(AdmissionError, match=MEM):
        admitted(pod(container(limits={GPU: 1, MEM: 3_000_000})), site)


@pytest.mark.parametrize(
    ("raw", "word"),
    [
        pytest.param(pod(), "no containers", id="no containers"),
        pytest.param(
            pod(
                container(limits={GPU: 1}),
                container("root", securityContext={"privileged": True}),
            ),
            "'root' is privileged",
            id="another container is privileged",
        ),
        pytest.param(pod(container(limits={GPU: 1}), nodeName="n1"), "node 'n1'", id="bound"),
        pytest.param(
            pod(
                container(limits={GPU: 1}),
                metadata={"annotations": {"hami.io/device-scoring-weights": "slot=1"}},
            ),
            "device-scoring-weights",
            id="weights that filter would refuse",
        ),
    ],
)
def test_pod_that_could_not_be_served_is_refused(raw: dict[str, Any], word: str) -> None:
    with pytest.raises(AdmissionError, match=word):
        admitted(raw)


def test_privileged_pod_without_devices_is_fine() -> None:
    raw = pod(container(securityContext={"privileged": True}), nodeName="n1")

    assert admitted(raw) == raw


def test_fields_of_later_api_versions_survive() -> None:
    raw = pod(container(limits={GPU: 1}, futureField={"a": [1]}), futureSpec=None)

    changed = admitted(raw)

    assert changed["spec"]["containers"][0]["futureField"] == {"a": [1]}
    assert "futureSpec" in changed["spec"]


# -- laws ---------------------------------------------------------------------------------------

quantities = st.one_of(
    st.integers(-2, 120),
    st.sampled_from(["1", "2", "0", "100", "1k", "1.5", "", "NaN", "1e400", "9" * 40, "-0"]),
    st.text(max_size=4),
)
limits = st.dictionaries(
    st.sampled_from([GPU, MEM, PERCENT, CORES, PRIORITY, "cpu", "other.com/npu"]), quantities
)
variables = st.lists(
    st.fixed_dictionaries(
        {"name": st.sampled_from(["A", "CUDA_TASK_PRIORITY", "NVIDIA_VISIBLE_DEVICES"])},
        optional={"value": st.sampled_from(["0", "1", "none"])},
    ),
    max_size=3,
)
containers = st.fixed_dictionaries(
    {"name": st.sampled_from(["a", "b/c", "~"])},
    optional={
        "resources": st.none()
        | st.fixed_dictionaries({}, optional={"limits": st.none() | limits, "requests": limits}),
        "env": st.none() | variables,
        "securityContext": st.fixed_dictionaries({"privileged": st.booleans()}),
    },
)
pods = st.builds(
    lambda app, init, scheduler: pod(*app, initContainers=init, schedulerName=scheduler),
    st.lists(containers, min_size=1, max_size=3),
    st.none() | st.lists(containers, max_size=2),
    st.sampled_from(["default-scheduler", OURS, "", None]),
)
sites = st.builds(
    lambda count, hide, policy, runtime: rules(
        replace(
            NVIDIA,
            default_count=count,
            overwrite_env=hide,
            core_policy=policy,
            runtime_class_name=runtime,
        ),
        OTHER,
    ),
    st.integers(0, 2),
    st.booleans(),
    st.sampled_from(["default", "force"]),
    st.sampled_from(["", "nvidia"]),
)


@given(pods, sites)
def test_admission_refuses_or_settles_at_once(raw: dict[str, Any], site: Rules) -> None:
    """Whatever the pod: a refusal, or a patch after which nothing is left to do."""
    before = copy.deepcopy(raw)
    try:
        changed = admitted(raw, site)
    except AdmissionError:
        return

    assert raw == before, "the pod given is not touched"
    assert admit(msgspec.convert(changed, Pod), changed, site) == ()


@given(pods, sites)
def test_admission_only_adds_or_sets_what_it_owns(raw: dict[str, Any], site: Rules) -> None:
    try:
        changed = admitted(raw, site)
    except AdmissionError:
        return
    owned = {"schedulerName", "runtimeClassName", "containers", "initContainers"}

    assert changed["metadata"] == raw["metadata"]
    assert {k: v for k, v in changed["spec"].items() if k not in owned} == {
        k: v for k, v in raw["spec"].items() if k not in owned
    }
    for where in ("containers", "initContainers"):
        for old, new in zip(
            raw["spec"].get(where) or (), changed["spec"].get(where) or (), strict=True
        ):
            assert new.keys() - old.keys() <= {"resources", "env"}
            had = (old.get("resources") or {}).get("limits") or {}
            assert had.items() <= ((new.get("resources") or {}).get("limits") or {}).items()
