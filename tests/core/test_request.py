"""What a pod's resources and annotations mean: every row of the request rules."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given as forall
from hypothesis import strategies as st

from hami.core.device import (
    DevicePolicy,
    DeviceRequest,
    NodePolicy,
    Role,
    Selection,
    Weights,
)
from hami.core.objects import Container, Pod
from hami.core.quantity import MAX_INT32, MiB, Percent
from hami.core.request import (
    MAX_CONTAINERS,
    MAX_DEVICES_PER_CONTAINER,
    MAX_LISTED,
    Defaults,
    asks_for,
    read_container,
    read_request,
    roles_of,
)
from hami.core.vendor import Vendor, table
from hami.core.vendors.nvidia import NVIDIA
from hami.errors import CodecError, QuantityError
from tests.support.builders import (
    OTHER,
    VENDORS,
    make_container,
    make_demand,
    make_pod,
)
from tests.support.strategies import any_text

BOTH = table([NVIDIA, OTHER])


@pytest.mark.parametrize(
    ("container", "expected"),
    [
        pytest.param(make_container(), None, id="no_resources_ask_for_nothing"),
        pytest.param(Container(name="bare"), None, id="no_resource_block_asks_for_nothing"),
        pytest.param(
            make_container(memory=3000, cores=30),
            None,
            id="memory_without_a_count_asks_for_nothing",
        ),
        pytest.param(make_container(gpus=0, memory=1), None, id="a_count_of_zero_asks_for_nothing"),
        pytest.param(
            make_container(gpus=1),
            make_demand(percent=100),
            id="a_count_alone_takes_all_the_memory",
        ),
        pytest.param(
            make_container(gpus=2, memory="3000"),
            make_demand(2, memory=3000),
            id="memory_without_cores_is_shareable",
        ),
        pytest.param(
            make_container(gpus="1", memory="3k", cores="30"),
            make_demand(memory=3000, cores=30),
            id="suffixes_multiply",
        ),
        pytest.param(
            make_container(gpus=1, percent=40), make_demand(percent=40), id="percent_of_memory"
        ),
        pytest.param(
            make_container(gpus=1, percent=150),
            make_demand(percent=100),
            id="more_than_all_the_memory_is_all_of_it",
        ),
        pytest.param(
            make_container(gpus=1, percent=0),
            make_demand(percent=100),
            id="zero_percent_counts_as_not_given",
        ),
        pytest.param(
            make_container(gpus=1, memory=0),
            make_demand(percent=100),
            id="zero_memory_counts_as_not_given",
        ),
        pytest.param(
            make_container(gpus=1, memory=0, percent=20),
            make_demand(percent=20),
            id="zero_memory_leaves_the_percentage_in_force",
        ),
        pytest.param(
            make_container(gpus=1, memory=500, percent=20),
            make_demand(memory=500),
            id="memory_wins_over_a_percentage",
        ),
        pytest.param(
            make_container(gpus=1, memory=1, cores=150),
            make_demand(memory=1, cores=100),
            id="more_cores_than_a_device_has_are_all_of_them",
        ),
        pytest.param(
            make_container(gpus=1, memory=1, cores=0),
            make_demand(memory=1),
            id="zero_cores_are_zero",
        ),
        pytest.param(
            make_container(requests={"nvidia.com/gpu": 1, "nvidia.com/gpumem": 7}),
            make_demand(memory=7),
            id="requests_count_where_there_is_no_limit",
        ),
        pytest.param(
            make_container(
                gpus=2, memory=5, requests={"nvidia.com/gpu": 1, "nvidia.com/gpumem": 7}
            ),
            make_demand(2, memory=5),
            id="limits_win_over_requests",
        ),
        pytest.param(
            make_container(gpus=1, memory=MAX_INT32),
            make_demand(memory=MAX_INT32),
            id="the_largest_memory_is_allowed",
        ),
        pytest.param(
            make_container(limits={"cpu": "500m", "memory": "1Gi"}),
            None,
            id="other_resources_are_not_ours",
        ),
    ],
)
def test_a_containers_demand_is_read(container: Container, expected: DeviceRequest | None) -> None:
    assert read_container(container, NVIDIA) == expected
    assert asks_for(container, NVIDIA) == (expected is not None)


@pytest.mark.parametrize(
    ("container", "message"),
    [
        pytest.param(
            make_container(gpus="two"), "nvidia.com/gpu: expected a quantity", id="a_word"
        ),
        pytest.param(make_container(gpus="0.5"), "nvidia.com/gpu: .* whole", id="half_a_device"),
        pytest.param(make_container(gpus=-1), "nvidia.com/gpu: expected 0 to", id="less_than_none"),
        pytest.param(
            make_container(gpus=MAX_DEVICES_PER_CONTAINER + 1),
            f"nvidia.com/gpu: expected 0 to {MAX_DEVICES_PER_CONTAINER}",
            id="more_devices_than_any_node_has",
        ),
        pytest.param(
            make_container(gpus=1, memory=-5), "gpumem: expected 0 to", id="memory_below_0"
        ),
        pytest.param(
            make_container(gpus=1, memory=MAX_INT32 + 1),
            "gpumem: expected 0",
            id="memory_over_32_bits",
        ),
        pytest.param(make_container(gpus=1, memory="1.5"), "gpumem: .* whole", id="half_a_mib"),
        pytest.param(
            make_container(gpus=1, percent=-1),
            "gpumem-percentage: expected 0",
            id="negative_percent",
        ),
        pytest.param(
            make_container(gpus=1, cores="x"), "gpucores: expected a quantity", id="cores_in_words"
        ),
        pytest.param(
            make_container(gpus=1, memory="x" * 10**6),
            "gpumem: expected",
            id="a_megabyte_of_memory",
        ),
    ],
)
def test_a_demand_that_cannot_be_read_names_container_and_resource(
    container: Container, message: str
) -> None:
    with pytest.raises(QuantityError, match=message) as caught:
        read_request(make_pod(containers=[container]), VENDORS, Defaults())

    assert "'main'" in str(caught.value)
    assert len(str(caught.value)) < 300
    assert not asks_for(container, NVIDIA)


@pytest.mark.parametrize(
    ("pod", "message"),
    [
        pytest.param(
            make_pod(
                init_containers=[make_container(f"i{i}", gpus=1) for i in range(MAX_CONTAINERS)]
            ),
            f"at most {MAX_CONTAINERS} containers",
            id="containers",
        ),
        pytest.param(
            make_pod(annotations={"nvidia.com/use-gputype": "A," * (MAX_LISTED + 1)}),
            f"use-gputype: expected at most {MAX_LISTED} items",
            id="models",
        ),
        pytest.param(
            make_pod(annotations={"nvidia.com/nouse-gpuuuid": "A," * (MAX_LISTED + 1)}),
            f"nouse-gpuuuid: expected at most {MAX_LISTED} items",
            id="devices",
        ),
    ],
)
def test_a_pod_that_would_keep_the_engine_busy_is_refused(pod: Pod, message: str) -> None:
    with pytest.raises(CodecError, match=message):
        read_request(pod, VENDORS, Defaults())


def test_any_number_of_containers_may_ask_for_nothing() -> None:
    many = [make_container(f"c{i}") for i in range(MAX_CONTAINERS + 1)]

    assert read_request(make_pod(containers=many), VENDORS, Defaults()).empty


@pytest.mark.parametrize(
    ("container", "row", "expected"),
    [
        pytest.param(
            make_container(gpus=1),
            replace(NVIDIA, default_memory=MiB(2000)),
            make_demand(memory=2000),
            id="default_memory_replaces_the_whole_device",
        ),
        pytest.param(
            make_container(gpus=1),
            replace(NVIDIA, default_memory=MiB(2000), memory_factor=10),
            make_demand(memory=2000),
            id="default_memory_is_not_multiplied",
        ),
        pytest.param(
            make_container(gpus=1, percent=30),
            replace(NVIDIA, default_memory=MiB(2000)),
            make_demand(percent=30),
            id="a_percentage_wins_over_the_default",
        ),
        pytest.param(
            make_container(gpus=1, memory=3),
            replace(NVIDIA, memory_factor=1024),
            make_demand(memory=3072),
            id="memory_is_multiplied_by_its_factor",
        ),
        pytest.param(
            make_container(gpus=1, memory=1),
            replace(NVIDIA, default_cores=Percent(25)),
            make_demand(memory=1, cores=25),
            id="default_cores_apply_where_none_are_named",
        ),
        pytest.param(
            make_container(gpus=1, memory=1, cores=0),
            replace(NVIDIA, default_cores=Percent(25)),
            make_demand(memory=1),
            id="explicit_zero_cores_win_over_the_default",
        ),
    ],
)
def test_site_defaults_fill_what_is_missing(
    container: Container, row: Vendor, expected: DeviceRequest
) -> None:
    assert read_container(container, row) == expected


def test_memory_that_its_factor_takes_beyond_32_bits_is_refused() -> None:
    row = replace(NVIDIA, memory_factor=1024)

    with pytest.raises(QuantityError, match="expected 0 to 2097151"):
        read_container(make_container(gpus=1, memory=MAX_INT32 // 1024 + 1), row)


def test_containers_come_in_order_with_their_roles() -> None:
    pod = make_pod(
        init_containers=[
            make_container("init", gpus=1, memory=1),
            make_container("mesh", restart_policy="Always"),
        ],
        containers=[make_container("app", gpus=2, memory=2), make_container("log")],
    )

    request = read_request(pod, VENDORS, Defaults())

    assert [(c.name, c.role) for c in request.containers] == [
        ("init", Role.INIT),
        ("mesh", Role.SIDECAR),
        ("app", Role.APP),
        ("log", Role.APP),
    ]
    assert [c.requests for c in request.containers] == [
        (make_demand(memory=1),),
        (),
        (make_demand(2, memory=2),),
        (),
    ]
    assert roles_of(pod) == (Role.INIT, Role.SIDECAR, Role.APP, Role.APP)


def test_an_app_container_is_no_sidecar_whatever_its_restart_policy() -> None:
    pod = make_pod(containers=[make_container(gpus=1, restart_policy="Always")])

    assert roles_of(pod) == (Role.APP,)


def test_names_of_pod_and_containers_do_not_change_the_signature() -> None:
    def pod_named(name: str) -> object:
        containers = [make_container(name, gpus=1, memory=5)]
        return read_request(make_pod(name, containers=containers), VENDORS, Defaults())

    assert pod_named("a") == pod_named("b")
    assert hash(pod_named("a")) == hash(pod_named("b"))


def test_a_pod_without_devices_asks_for_nothing_whatever_its_annotations() -> None:
    pod = make_pod(gpus=None, annotations={"hami.io/device-scoring-weights": "nonsense"})

    request = read_request(pod, VENDORS, Defaults())

    assert request.empty


def test_a_container_may_ask_for_several_vendors_devices() -> None:
    pod = make_pod(
        containers=[
            make_container("a", limits={"other.com/npu": 1}),
            make_container("b", limits={"other.com/npu": 1, "nvidia.com/gpu": 1}),
        ]
    )

    request = read_request(pod, BOTH, Defaults())

    assert [[r.vendor for r in c.requests] for c in request.containers] == [
        [OTHER.name],
        [NVIDIA.name, OTHER.name],
    ]
    assert not request.empty


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(None, NodePolicy.SPREAD, id="absent_takes_the_default"),
        pytest.param("binpack", NodePolicy.BINPACK, id="binpack"),
        pytest.param("spread", NodePolicy.SPREAD, id="spread"),
        pytest.param("", NodePolicy.BINPACK, id="empty_replaces_the_default_by_binpack"),
        pytest.param("random", NodePolicy.BINPACK, id="unknown_is_binpack"),
    ],
)
def test_node_policy_annotation_is_read(text: str | None, expected: NodePolicy) -> None:
    annotations = {} if text is None else {"hami.io/node-scheduler-policy": text}

    request = read_request(
        make_pod(annotations=annotations), VENDORS, Defaults(node_policy=NodePolicy.SPREAD)
    )

    assert request.node_policy is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(None, DevicePolicy.BINPACK, id="absent_takes_the_default"),
        pytest.param("binpack", DevicePolicy.BINPACK, id="binpack"),
        pytest.param("spread", DevicePolicy.SPREAD, id="spread"),
        pytest.param(" mutex ", DevicePolicy.MUTEX, id="mutex_trimmed"),
        pytest.param("", DevicePolicy.SPREAD, id="empty_replaces_the_default_by_spread"),
        pytest.param("topology-aware", DevicePolicy.TOPOLOGY, id="topology_aware"),
        pytest.param("fastest", DevicePolicy.SPREAD, id="unknown_is_spread"),
    ],
)
def test_device_policy_annotation_is_read(text: str | None, expected: DevicePolicy) -> None:
    annotations = {} if text is None else {"hami.io/gpu-scheduler-policy": text}

    request = read_request(
        make_pod(annotations=annotations), VENDORS, Defaults(device_policy=DevicePolicy.BINPACK)
    )

    assert request.device_policy == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(None, Weights(), id="absent_is_one_each"),
        pytest.param("memory = 3, slot = 1, core = 0", Weights(slots=1, cores=0, memory=3),
                     id="any_order_with_spaces"),
        pytest.param("slot=0,core=0,memory=1", Weights(slots=0, cores=0), id="one_is_enough"),
    ],
)  # fmt: skip
def test_weights_annotation_is_read(text: str | None, expected: Weights) -> None:
    annotations = {} if text is None else {"hami.io/device-scoring-weights": text}

    assert read_request(make_pod(annotations=annotations), VENDORS, Defaults()).weights == expected


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param("slot=1,memory=3", id="one_missing"),
        pytest.param("slot=1,core=1,memory=1,x=1", id="one_too_many"),
        pytest.param("slot=1,slot=1,core=1,memory=1", id="one_twice"),
        pytest.param("slot=0,core=0,memory=0", id="all_zero"),
        pytest.param("slot=-1,core=1,memory=1", id="a_negative_weight"),
        pytest.param("slot=1.5,core=1,memory=1", id="a_fraction"),
        pytest.param("slot=²,core=1,memory=1", id="a_digit_of_another_kind"),
        pytest.param("slot=1000000000000000000000,core=1,memory=1", id="a_number_beyond_64_bits"),
        pytest.param("Slot=1,core=1,memory=1", id="another_letter_case"),
        pytest.param("slot,core=1,memory=1", id="no_number"),
    ],
)
def test_malformed_weights_are_refused_by_name(text: str) -> None:
    pod = make_pod(annotations={"hami.io/device-scoring-weights": text})

    with pytest.raises(CodecError, match=r"hami\.io/device-scoring-weights: expected slot=<n>"):
        read_request(pod, VENDORS, Defaults())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("true", True, id="a_word_for_true"),
        pytest.param("1", True, id="one"),
        pytest.param("false", False, id="a_word_for_false"),
        pytest.param("yes please", False, id="anything_else_is_false"),
    ],
)
def test_numa_bind_annotation_is_read(text: str, expected: bool) -> None:
    pod = make_pod(annotations={"nvidia.com/numa-bind": text})

    assert read_request(pod, VENDORS, Defaults()).selection(NVIDIA.name).numa_bind is expected


def test_selection_annotations_are_read() -> None:
    pod = make_pod(
        annotations={
            "nvidia.com/use-gputype": " a100 , v100,",
            "nvidia.com/nouse-gputype": "T4",
            "nvidia.com/use-gpuuuid": "GPU-a, GPU-b",
            "nvidia.com/nouse-gpuuuid": "GPU-c",
            "nvidia.com/vgpu-mode": " hami-core,mig ",
        }
    )

    request = read_request(pod, VENDORS, Defaults())

    assert request.selection(NVIDIA.name) == Selection(
        use_types=("A100", "V100"),
        avoid_types=("T4",),
        use_uuids=frozenset({"GPU-a", "GPU-b"}),
        avoid_uuids=frozenset({"GPU-c"}),
        modes="hami-core,mig",
    )
    assert request.selection(OTHER.name) == Selection()


def test_blank_selection_annotations_accept_any_device() -> None:
    pod = make_pod(
        annotations={
            "nvidia.com/use-gputype": " ",
            "nvidia.com/use-gpuuuid": "",
            "nvidia.com/vgpu-mode": "",
        }
    )

    assert read_request(pod, VENDORS, Defaults()).selections == ()


@forall(
    annotations=st.dictionaries(
        st.sampled_from(
            ["hami.io/node-scheduler-policy", "hami.io/gpu-scheduler-policy",
             "hami.io/device-scoring-weights", "nvidia.com/numa-bind", "nvidia.com/use-gputype",
             "nvidia.com/use-gpuuuid", "nvidia.com/vgpu-mode"]
        ),
        any_text,
    ),
    quantities=st.tuples(*[st.none() | any_text | st.integers() | st.floats()] * 4),
)  # fmt: skip
def test_any_pod_is_read_or_refused_as_malformed(
    annotations: dict[str, str], quantities: tuple[str | int | float | None, ...]
) -> None:
    gpus, memory, percent, cores = quantities
    pod = make_pod(annotations=annotations, gpus=gpus, memory=memory, percent=percent, cores=cores)

    try:
        request = read_request(pod, VENDORS, Defaults())
    except CodecError:
        return

    for asked in request.containers[0].requests:
        assert 1 <= asked.count <= MAX_DEVICES_PER_CONTAINER
        assert 0 <= asked.memory <= MAX_INT32
        assert 0 <= asked.memory_percent <= 100
        assert (asked.memory == 0) != (asked.memory_percent == 0)
        assert 0 <= asked.cores <= 100
