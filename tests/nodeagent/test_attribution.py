"""Whose process is it? As the kernel tells, in every spelling it has."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hami.nodeagent import region
from hami.nodeagent.governor.attribution import CHECK_NS, CONTROL_PLACE, REMEMBERED, Attribution
from hami.nodeagent.governor.tenants import Tenant
from tests.support.gpu import wait_for

UID = "0a1b2c3d-0000-4444-8888-0123456789ab"
ID = "f" * 64
SPELLINGS = (
    f"0::/kubepods/burstable/pod{UID}/{ID}\n",
    f"0::/kubepods.slice/kubepods-pod{UID.replace('-', '_')}.slice/cri-containerd-{ID}.scope\n",
    f"12:devices:/kubepods/pod{UID}/{ID}\n0::/\n",
    f"0::/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice/"
    f"kubelet-kubepods-besteffort-pod{UID.replace('-', '_')}.slice/crio-{ID}.scope\n",
)


class Proc:
    """A ``/proc`` of files."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(
        self, pid: int, *, start: int = 100, cgroup: str = "0::/\n", control: Path | None = None
    ) -> None:
        directory = self.path / str(pid)
        directory.mkdir(exist_ok=True)
        fields = " ".join(["S", *["0"] * 18, str(start), "0"])
        (directory / "stat").write_text(f"{pid} (a b) c) {fields}\n")
        (directory / "status").write_text(f"Name:\tx\nNSpid:\t{pid}\t7\n")
        (directory / "cgroup").write_text(cgroup)
        (directory / "ns").mkdir(exist_ok=True)
        (directory / "ns" / "pid").unlink(missing_ok=True)
        (directory / "ns" / "pid").symlink_to("pid:[4026531999]")
        if control is not None:
            place = directory / "root" / CONTROL_PLACE
            place.parent.mkdir(parents=True, exist_ok=True)
            place.unlink(missing_ok=True)
            place.hardlink_to(control)  # a bind mount shows the same inode


@pytest.fixture
def proc(tmp_path: Path) -> Proc:
    path = tmp_path / "proc"
    path.mkdir()
    return Proc(path)


@pytest.fixture
def tenants(tmp_path: Path) -> Iterator[list[Tenant]]:
    """Two containers of one pod, and one of another."""
    made = []
    for name, uid in (("one", UID), ("two", UID), ("other", UID.replace("0a1b", "ffff"))):
        directory = tmp_path / name
        directory.mkdir()
        owner = region.Owner(pod_uid=uid, container_name=name)
        region.create(directory, devices=[region.RegionDevice(uuid="GPU-a")], owner=owner)
        made.append(Tenant.open(directory))
    yield made
    for tenant in made:
        tenant.close()


def owner_of(proc: Proc, tenants: list[Tenant], pid: int, *, now_ns: int = 0) -> Tenant | None:
    found = Attribution(proc.path).find([pid], tenants, now_ns=now_ns)
    return found[pid][1] if pid in found else None


def test_control_file_in_its_root_tells(proc: Proc, tenants: list[Tenant]) -> None:
    proc.add(5, control=tenants[1].directory / region.CONTROL)

    assert owner_of(proc, tenants, 5) is tenants[1]


def test_file_of_the_same_content_elsewhere_tells_nothing(
    proc: Proc, tenants: list[Tenant], tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    copy.write_bytes((tenants[0].directory / region.CONTROL).read_bytes())
    proc.add(5, control=copy)

    assert owner_of(proc, tenants, 5) is None


def test_link_inside_a_container_leads_nowhere(proc: Proc, tenants: list[Tenant]) -> None:
    """Root in a container may put a link to another's region where its own stood."""
    proc.add(5)
    place = proc.path / "5" / "root" / CONTROL_PLACE
    place.parent.parent.mkdir(parents=True)
    place.parent.symlink_to(tenants[2].directory)

    assert owner_of(proc, tenants, 5) is None


def test_cgroup_counts_for_more_than_what_a_container_shows(
    proc: Proc, tenants: list[Tenant]
) -> None:
    proc.add(5, cgroup=SPELLINGS[0], control=tenants[2].directory / region.CONTROL)

    assert owner_of(proc, tenants[1:], 5) is tenants[1]


@pytest.mark.parametrize("cgroup", SPELLINGS)
def test_cgroup_tells_the_pod(proc: Proc, tenants: list[Tenant], cgroup: str) -> None:
    proc.add(5, cgroup=cgroup)

    assert owner_of(proc, tenants[1:], 5) is tenants[1]


@pytest.mark.parametrize("cgroup", SPELLINGS)
def test_cgroup_tells_the_container_where_the_pod_has_several(
    proc: Proc, tenants: list[Tenant], cgroup: str
) -> None:
    proc.add(5, cgroup=cgroup)
    assert owner_of(proc, tenants, 5) is None

    tenants[1].container_id = ID
    assert owner_of(proc, tenants, 5) is tenants[1]


def test_recycled_pid_is_somebody_else(proc: Proc, tenants: list[Tenant]) -> None:
    attribution = Attribution(proc.path)
    proc.add(5, control=tenants[0].directory / region.CONTROL)
    assert attribution.find([5], tenants, now_ns=0)[5][1] is tenants[0]

    proc.add(5, start=200, control=tenants[1].directory / region.CONTROL)

    assert attribution.find([5], tenants, now_ns=CHECK_NS)[5][1] is tenants[1]


def test_process_that_could_not_be_told_is_looked_at_again(
    proc: Proc, tenants: list[Tenant]
) -> None:
    attribution = Attribution(proc.path)
    proc.add(5)
    assert not attribution.find([5], tenants, now_ns=0)

    proc.add(5, control=tenants[0].directory / region.CONTROL)

    assert attribution.find([5], tenants, now_ns=CHECK_NS)[5][1] is tenants[0]


def test_process_knows_how_its_container_counts_it(proc: Proc, tenants: list[Tenant]) -> None:
    proc.add(5, control=tenants[0].directory / region.CONTROL)

    process, _ = Attribution(proc.path).find([5], tenants, now_ns=0)[5]

    assert (process.pid, process.inner_pid, process.start_ticks) == (5, 7, 100)
    assert process.namespace == 4026531999


def test_nobody_there_is_nobodys(proc: Proc, tenants: list[Tenant]) -> None:
    (proc.path / "6").mkdir()
    (proc.path / "6" / "stat").write_text("nonsense")

    assert not Attribution(proc.path).find([5, 6], tenants, now_ns=0)


def test_memory_is_bounded(proc: Proc, tenants: list[Tenant]) -> None:
    attribution = Attribution(proc.path)
    pids = range(1, REMEMBERED + 50)
    for pid in pids:
        proc.add(pid)

    attribution.find(pids, tenants, now_ns=0)

    assert len(attribution._known) == REMEMBERED


def test_outside_of_containers_what_it_has_mapped_tells(tenants: list[Tenant]) -> None:
    control = tenants[0].directory / region.CONTROL
    code = (
        "import mmap, sys; file = open(sys.argv[1], 'rb');"
        "mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ);"
        "print('ready', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(control)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"

        found = Attribution().find([process.pid, os.getpid()], tenants[:1], now_ns=0)

        assert found[process.pid][1] is tenants[0]
        process.communicate("")
    wait_for(lambda: not Attribution().find([process.pid], tenants, now_ns=0), "its end")
