"""What every backend must do, and which one a container gets."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from hami.config import NodeAgentSettings
from hami.core.codec_enforcement import (
    ENFORCEMENT_STATUS_KEY,
    decode_enforcement_status,
    encode_enforcement_status,
)
from hami.core.device import DeviceUuid
from hami.core.objects import Container, EnvFrom, EnvVar
from hami.errors import CodecError
from hami.nodeagent import claims, enforcement
from hami.nodeagent.allocate import DeviceLimit, Limits, Shim
from hami.nodeagent.claims import Claim
from hami.nodeagent.counters import AgentMetrics
from hami.nodeagent.enforcement import BACKENDS, Backend
from hami.nodeagent.nvml import DeviceUse
from hami.nodeagent.regions import Regions
from hami.sandbox.gpu import catalogue
from hami.sandbox.gpu.node import PROBE
from tests.support.agent import bound_pod, open_agent, running_agent
from tests.support.builders import given, make_device
from tests.support.gpu import MIB, SHIM, Machine

SETTINGS = NodeAgentSettings()


@pytest.fixture(params=sorted(BACKENDS))
def backend(request: pytest.FixtureRequest) -> Backend:
    return BACKENDS[request.param]


@pytest.fixture
def machine(tmp_path: Path) -> Any:
    machine = Machine.create(tmp_path, [catalogue.get("a100-40gb")])
    yield machine
    machine.stop()


def limits_of(uuid: str, mib: int, *, permille: int = 0) -> Limits:
    return Limits(
        devices=(
            DeviceLimit(uuid=DeviceUuid(uuid), memory_bytes=mib * MIB, core_permille=permille),
        ),
        priority=1,
        policy="default",
    )


def claim_of(backend: Backend, uuid: str, *, pod: str = "a") -> Claim:
    return Claim(
        ids=(f"{uuid}-0",),
        uid=f"uid-{pod}",
        namespace="team",
        pod=pod,
        container="main",
        index=0,
        init=False,
        devices=(uuid,),
        backend=backend.name,
        whole=not backend.keeps_region,
    )


def prepared(backend: Backend, machine: Machine, mib: int = 1000) -> Path:
    (uuid,) = machine.uuids
    directory = machine.path / "container"
    directory.mkdir(exist_ok=True)
    backend.prepare(directory, claim_of(backend, uuid), limits_of(uuid, mib))
    return directory


def start(backend: Backend, machine: Machine, directory: Path, *words: str) -> Any:
    """A process that has just what the backend grants; mounts are paths outside of a sandbox."""
    shim = Shim(library=SHIM, preload=SHIM)
    grant = backend.grant(
        [given(machine.uuids[0], memory=1000)], directory=directory, shim=shim, settings=SETTINGS
    )
    environment = machine.environment() | dict(grant.envs)
    if any(mount.container_path == "/etc/ld.so.preload" for mount in grant.mounts):
        environment["LD_PRELOAD"] = str(SHIM)
    process = subprocess.Popen(
        [str(PROBE), *words], env=environment, stdout=subprocess.PIPE, text=True
    )
    machine.started.append(process)
    return process


def report(process: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(process.stdout.readline())
    return found["devices"][0]  # type: ignore[no-any-return] # one device each


def keeps_promise(backend: Backend, machine: Machine, found: dict[str, Any], mib: int) -> bool:
    """Whether a container had just what the backend says, of a limit of so many MiB."""
    if backend.guarantee.memory == "limit":
        return bool(found["fill"]["bytes"] == mib * MIB)
    bare = subprocess.run(
        [str(PROBE), "--fill"], env=machine.environment(), capture_output=True, check=True
    )
    alone = json.loads(bare.stdout)["devices"][0]
    return bool(found["fill"] == alone["fill"] and found["cuda"] == alone["cuda"])


def test_process_meets_exactly_what_is_promised(backend: Backend, machine: Machine) -> None:
    directory = prepared(backend, machine, 1000)

    process = start(backend, machine, directory, "--check", "--fill")
    found = report(process)
    process.wait()

    assert keeps_promise(backend, machine, found, 1000)
    assert found["fill"]["one_more_byte"] == 2


def test_limits_take_effect_where_that_is_promised(backend: Backend, machine: Machine) -> None:
    directory = prepared(backend, machine, 1000)
    (uuid,) = machine.uuids

    for mib in (3000, 500):
        changed = backend.limit(directory, limits_of(uuid, mib, permille=300))

        assert changed is backend.guarantee.resizes
        assert not backend.limit(directory, limits_of(uuid, mib, permille=300))
        process = start(backend, machine, directory, "--fill")
        found = report(process)
        process.wait()
        assert keeps_promise(backend, machine, found, mib)


def test_measure_agrees_with_the_driver(backend: Backend, machine: Machine) -> None:
    directory = prepared(backend, machine, 1000)
    (uuid,) = machine.uuids
    report(start(backend, machine, directory, "--allocate", "300", "--hold", "0"))
    device = make_device(uuid=uuid)

    use = {uuid: DeviceUse(device=device, memory_used_bytes=machine.used_bytes())}
    (sample,) = backend.measure(directory, claim_of(backend, uuid), use)

    assert sample.uuid == uuid
    assert sample.used_bytes == machine.used_bytes() >= 300 * MIB


def test_release_leaves_nothing_and_may_be_repeated(backend: Backend, machine: Machine) -> None:
    directory = prepared(backend, machine)

    backend.release(directory)
    backend.release(directory)

    assert not directory.exists()


async def test_prepared_twice_is_one_directory_that_a_restart_knows(
    backend: Backend, tmp_path: Path
) -> None:
    regions = Regions(tmp_path, metrics=AgentMetrics(CollectorRegistry()))
    claim = claim_of(backend, "GPU-a")

    first = await regions.prepare(claim, limits_of("GPU-a", 1000))
    second = await regions.prepare(claim, limits_of("GPU-a", 1000))

    assert first == second
    assert os.listdir(tmp_path) == [first.name]
    after = Regions(tmp_path, metrics=AgentMetrics(CollectorRegistry()))
    await after.load()
    assert after.claims == {first: claim}
    assert (first in after.kept) is backend.keeps_region
    await after.remove(first)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("other", sorted(BACKENDS))
async def test_directory_of_one_backend_becomes_anothers(
    backend: Backend, other: str, tmp_path: Path
) -> None:
    regions = Regions(tmp_path, metrics=AgentMetrics(CollectorRegistry()))
    path = await regions.prepare(claim_of(BACKENDS[other], "GPU-a"), limits_of("GPU-a", 1000))

    await regions.hand_over(path, claim_of(backend, "GPU-a"), limits_of("GPU-a", 1000))

    assert (path / "control").exists() is backend.keeps_region
    assert (path / "usage").exists() is backend.keeps_region


def test_claim_of_an_earlier_version_reads_as_shim(tmp_path: Path) -> None:
    claims.write(tmp_path, claim_of(BACKENDS["none"], "GPU-a"))
    file = tmp_path / claims.FILE
    text = json.loads(file.read_text())
    del text["backend"], text["whole"]
    file.write_text(json.dumps(text))

    claim = claims.read(tmp_path)

    assert (claim.backend, claim.whole) == ("shim", False)


async def test_claim_of_an_unknown_backend_is_left_alone(tmp_path: Path) -> None:
    directory = tmp_path / "uid_main"
    directory.mkdir()
    text = json.dumps(
        json.loads(b'{"ids":[],"uid":"u","namespace":"n","pod":"p","container":"c","index":0,'
                   b'"init":false,"devices":[],"backend":"later"}')
    )  # fmt: skip
    (directory / claims.FILE).write_text(text)
    regions = Regions(tmp_path, metrics=AgentMetrics(CollectorRegistry()))

    await regions.load()

    assert regions.claims == {}
    assert directory.exists()


# -- the choice ----------------------------------------------------------------------------------

WHOLE = given("GPU-a", memory=1000, cores=100)
OFFERED = {DeviceUuid("GPU-a"): make_device(uuid="GPU-a", memory=1000)}


def chosen(
    device: Any = WHOLE, *, wanted: str = "", container: Container | None = None, **settings: Any
) -> str:
    return enforcement.choose(
        [device],
        container or Container(name="main"),
        NodeAgentSettings(**settings),
        offered=OFFERED,
        wanted=wanted,
    )


@pytest.mark.parametrize(
    ("device", "backend"),
    [
        pytest.param(WHOLE, "none", id="all of it"),
        pytest.param(given("GPU-a", memory=999, cores=100), "shim", id="one MiB is another's"),
        pytest.param(given("GPU-a", memory=1000, cores=99), "shim", id="not all cores"),
        pytest.param(given("GPU-b", memory=1000, cores=100), "shim", id="a device not known"),
    ],
)
def test_whole_devices_need_no_shim(device: Any, backend: str) -> None:
    assert chosen(device) == backend


def test_pod_may_ask_for_the_shim_on_whole_devices() -> None:
    assert chosen(wanted="shim") == "shim"


def test_pod_may_do_without_only_where_the_site_lets_it() -> None:
    share = given("GPU-a", memory=10)

    assert chosen(share, wanted="none") == "shim"
    assert chosen(share, wanted="none", allow_disable_control=True) == "none"
    assert chosen(share, wanted="perhaps", allow_disable_control=True) == "shim"


def test_more_memory_than_there_is_needs_the_shim() -> None:
    assert chosen(memory_scaling=1.5) == "shim"


@pytest.mark.parametrize(
    "container",
    [
        Container(name="main", env=[EnvVar(name="NVIDIA_VISIBLE_DEVICES", value="all")]),
        Container(name="main", env=[EnvVar(name="NVIDIA_VISIBLE_DEVICES", value=None)]),
        Container(name="main", env_from=[EnvFrom()]),
    ],
)
def test_container_that_may_see_more_than_it_was_given_has_the_shim(container: Container) -> None:
    assert chosen(container=container) == "shim"


@pytest.mark.parametrize(
    ("value", "allowed", "backend"),
    [
        pytest.param("true", False, "shim", id="a container cannot opt out by itself"),
        pytest.param("true", True, "none", id="a container opts out where the site lets it"),
        pytest.param("1", True, "none", id="any spelling of true will do"),
        pytest.param("false", True, "shim", id="false is no opt-out"),
        pytest.param("perhaps", True, "shim", id="what is no truth value is no opt-out"),
        pytest.param(None, True, "shim", id="a value from a reference is not followed"),
    ],
)
def test_shim_is_loaded_unless_the_site_lets_containers_opt_out(
    value: str | None, allowed: bool, backend: str
) -> None:
    container = Container(name="main", env=[EnvVar(name="CUDA_DISABLE_CONTROL", value=value)])
    share = given("GPU-a", memory=10)

    assert chosen(share, container=container, allow_disable_control=allowed) == backend


# -- on a node -----------------------------------------------------------------------------------


def whole_pod(bench: Any, name: str, *, run: str = "env; sleep 1000", **annotations: Any) -> Any:
    (device, *_) = bench.registered_devices()
    pod = bound_pod(name, [[(device.uuid, device.memory)]], run=run, annotations=annotations)
    written = pod["metadata"]["annotations"]
    for key, value in written.items():
        if value.startswith(device.uuid):
            written[key] = value.replace(f"{device.memory},0:", f"{device.memory},100:")
    return pod


async def test_whole_card_starts_without_anything_of_ours_and_says_so() -> None:
    async with open_agent() as bench:
        await bench.node.create(whole_pod(bench, "a"))

        await bench.node.phase("a", "Running")

        log = await bench.node.logged("a", "NVIDIA_VISIBLE_DEVICES", "c0")
        assert "HAMI_REGION_DIR" not in log
        assert "LD_PRELOAD" not in log
        assert bench.annotation("a", ENFORCEMENT_STATUS_KEY) == '{"c0":"none"}'
        (directory,) = bench.regions.iterdir()
        assert [path.name for path in directory.iterdir()] == [claims.FILE]
        _, metrics = await bench.get("/metrics")
        assert 'hami_container_enforcement{backend="none",container="c0"' in metrics
        async with running_agent(bench.node, bench.gpus, bench.settings) as again:
            assert again.agent.regions.claims == bench.agent.regions.claims
        await bench.node.delete("a")
        await bench.node.gone("a")


async def test_each_container_of_a_pod_is_told_with_its_backend_in_the_consuming_write() -> None:
    async with open_agent() as bench:
        first, second, _ = bench.gpus.uuids

        await bench.node.create(bound_pod("a", [[(first, 100)], [(second, 200)]]))

        await bench.node.phase("a", "Running")
        assert bench.annotation("a", ENFORCEMENT_STATUS_KEY) == '{"c0":"shim","c1":"shim"}'


def test_status_is_one_text_for_one_meaning() -> None:
    text = encode_enforcement_status({"b": "none", "a": "shim"})

    assert text == '{"a":"shim","b":"none"}'
    assert decode_enforcement_status(text) == {"a": "shim", "b": "none"}
    assert decode_enforcement_status("") == {}
    with pytest.raises(CodecError):
        decode_enforcement_status("[]")
