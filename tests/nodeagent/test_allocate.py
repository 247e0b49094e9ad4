from __future__ import annotations

from pathlib import Path

import pytest

from hami.config import NodeAgentSettings, NvidiaSettings, Settings
from hami.core.device import DeviceUuid
from hami.core.objects import Container, VolumeMount
from hami.core.vendors.nvidia import NVIDIA
from hami.errors import AllocateError
from hami.nodeagent import allocate
from hami.nodeagent.allocate import Grant, Limits, Shim
from tests.support.builders import given, make_container

REGION = Path("/host/containers/uid_main")
SHIM = Shim(library=Path("/host/libvgpu.so.1-abc"), preload=Path("/host/ld.so.preload"))
DEVICES = (given("GPU-b", memory=3000, cores=30), given("GPU-a", memory=8000, cores=50))


def grant_for(**settings: object) -> Grant:
    return allocate.grant(
        DEVICES,
        region=REGION,
        shim=SHIM,
        settings=NodeAgentSettings(**settings),  # type: ignore[arg-type] # the test's own values
    )


def limits_for(container: Container | None = None, settings: Settings | None = None) -> Limits:
    return allocate.limits(
        DEVICES,
        container=container or make_container(),
        vendor=NVIDIA,
        settings=settings or Settings(),
    )


def test_environment_names_devices_and_limits_in_the_order_of_the_allocation() -> None:
    envs = grant_for().envs

    assert envs == {
        "NVIDIA_VISIBLE_DEVICES": "GPU-b,GPU-a",
        "CUDA_DEVICE_MEMORY_LIMIT_0": "3000m",
        "CUDA_DEVICE_MEMORY_LIMIT_1": "8000m",
        "CUDA_DEVICE_SM_LIMIT": "30",
        "HAMI_REGION_DIR": str(REGION),
    }


def test_environment_tells_of_oversubscription_lifted_core_limits_and_logs() -> None:
    envs = grant_for(memory_scaling=1.5, disable_core_limit=True, shim_log="info").envs

    assert envs["HAMI_SHIM_LOG"] == "info"
    assert envs["CUDA_OVERSUBSCRIBE"] == "true"
    assert envs["GPU_CORE_UTILIZATION_POLICY"] == "disable"


def test_node_that_fails_open_says_so_where_the_container_cannot_change_it() -> None:
    agent = NodeAgentSettings(fail_open=True)
    shim = Shim(library=SHIM.library, preload=SHIM.preload, inside=allocate.FAIL_OPEN_PATH)

    given = allocate.grant(DEVICES, region=REGION, shim=shim, settings=agent)

    assert limits_for(settings=Settings(node_agent=agent)).fail_open
    assert not limits_for().fail_open
    library = "/usr/local/vgpu/fail-open/libvgpu.so"
    assert [m.host_path for m in given.mounts if m.container_path == library] == [str(SHIM.library)]
    assert "/usr/local/vgpu/libvgpu.so" not in {m.container_path for m in given.mounts}


def test_only_the_usage_file_can_be_written_by_the_container() -> None:
    mounts = {mount.container_path: mount for mount in grant_for().mounts}

    assert {path: mount.host_path for path, mount in mounts.items()} == {
        "/usr/local/vgpu/control": f"{REGION}/control",
        "/usr/local/vgpu/usage": f"{REGION}/usage",
        "/usr/local/vgpu/libvgpu.so": str(SHIM.library),
        "/etc/ld.so.preload": str(SHIM.preload),
    }
    writable = [path for path, mount in mounts.items() if not mount.read_only]
    assert writable == ["/usr/local/vgpu/usage"]


def test_limits_are_bytes_and_permille_of_each_device() -> None:
    limits = limits_for()

    assert [(d.uuid, d.memory_bytes, d.core_permille) for d in limits.devices] == [
        ("GPU-b", 3000 * 2**20, 300),
        ("GPU-a", 8000 * 2**20, 500),
    ]


@pytest.mark.parametrize(("scaling", "allowed"), [(1.0, False), (1.5, True), (0.5, False)])
def test_oversubscription_is_allowed_where_more_is_offered_than_there_is(
    scaling: float, allowed: bool
) -> None:
    settings = Settings(node_agent=NodeAgentSettings(memory_scaling=scaling))

    limits = allocate.limits(
        DEVICES,
        container=make_container(),
        vendor=NVIDIA,
        settings=settings,
        physical={DeviceUuid("GPU-a"): 6000 * 2**20},
    )

    assert limits.oversubscribe is allowed
    assert [device.physical_bytes for device in limits.devices] == [0, 6000 * 2**20]


def test_whole_device_has_no_core_limit() -> None:
    (device,) = allocate.limits(
        [given("GPU-a", cores=100)],
        container=make_container(),
        vendor=NVIDIA,
        settings=Settings(),
    ).devices

    assert device.core_permille == 0


@pytest.mark.parametrize(
    ("asked", "priority"), [(None, 1), (0, 0), ("1", 1), ("-1", 1), ("many", 1), (2**40, 1)]
)
def test_priority_is_what_was_asked_for_else_low(asked: str | int | None, priority: int) -> None:
    limits = {} if asked is None else {"nvidia.com/priority": asked}

    assert limits_for(make_container(limits=limits)).priority == priority


def test_disabled_core_limits_win_over_the_policy_for_pods() -> None:
    forced = NvidiaSettings(core_policy="force")

    assert limits_for(settings=Settings(nvidia=forced)).policy == "force"
    lifted = Settings(nvidia=forced, node_agent=NodeAgentSettings(disable_core_limit=True))
    assert limits_for(settings=lifted).policy == "disable"


@pytest.mark.parametrize(
    "path",
    [
        "/etc/ld.so.preload",
        "/usr/local/vgpu",
        "/usr/local/vgpu/control",
        "//usr//local/bin/../vgpu/usage/",
        "usr/local/vgpu/libvgpu.so",
    ],
)
def test_volume_that_would_hide_the_limits_is_refused_by_name(path: str) -> None:
    container = Container(name="c", volume_mounts=[VolumeMount(mount_path=path)])

    with pytest.raises(AllocateError, match=path):
        allocate.check_mounts(container)


@pytest.mark.parametrize("path", ["/etc", "/usr/local", "/usr/local/vgpu2", "/data", ""])
def test_volume_elsewhere_is_none_of_our_business(path: str) -> None:
    allocate.check_mounts(Container(name="c", volume_mounts=[VolumeMount(mount_path=path)]))
