from __future__ import annotations

import mmap
from pathlib import Path

import pytest

from hami import __version__
from hami.errors import ConfigError
from hami.nodeagent.install import install, prune


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "build" / "libvgpu.so"
    path.parent.mkdir()
    path.write_bytes(b"first build")
    return path


def test_library_and_preload_stand_ready_for_containers(source: Path, tmp_path: Path) -> None:
    shim = install(source, tmp_path / "host" / "vgpu")

    assert shim.library.read_bytes() == b"first build"
    assert shim.library.name.startswith(f"libvgpu.so.{__version__}-")
    assert shim.preload.read_text() == "/usr/local/vgpu/libvgpu.so\n"
    assert shim.library.stat().st_mode & 0o777 == 0o755
    assert shim.preload.stat().st_mode & 0o777 == 0o644


def test_each_place_in_a_container_has_a_preload_file_of_its_own(
    source: Path, tmp_path: Path
) -> None:
    closed = install(source, tmp_path)
    opened = install(source, tmp_path, fail_open=True)

    assert opened.library == closed.library
    assert closed.preload.read_text() == f"{closed.inside}\n" == "/usr/local/vgpu/libvgpu.so\n"
    assert opened.preload.read_text() == f"{opened.inside}\n"
    assert opened.inside == "/usr/local/vgpu/fail-open/libvgpu.so"


def test_installing_again_changes_no_file(source: Path, tmp_path: Path) -> None:
    shim = install(source, tmp_path)
    before = shim.library.stat(), shim.preload.stat()

    assert install(source, tmp_path) == shim
    assert (shim.library.stat(), shim.preload.stat()) == before


def test_other_build_of_the_same_version_leaves_mapped_bytes_alone(
    source: Path, tmp_path: Path
) -> None:
    first = install(source, tmp_path)
    with first.library.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    source.write_bytes(b"other build")

    second = install(source, tmp_path)

    assert second.library != first.library
    assert second.library.read_bytes() == b"other build"
    assert mapped[:] == b"first build"
    mapped.close()


def test_damaged_installation_is_repaired(source: Path, tmp_path: Path) -> None:
    shim = install(source, tmp_path)
    shim.library.write_bytes(b"")

    assert install(source, tmp_path).library.read_bytes() == b"first build"


def test_old_builds_stay_while_a_container_was_prepared_with_them(
    source: Path, tmp_path: Path
) -> None:
    builds = []
    for content in (b"one", b"two", b"three"):
        source.write_bytes(content)
        builds.append(install(source, tmp_path))
    one, two, three = builds

    assert prune(three, in_use={str(one.library)}) == 1

    assert one.library.exists()
    assert not two.library.exists()
    assert three.library.exists()
    assert three.preload.exists()


def test_missing_library_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"libvgpu\.so"):
        install(tmp_path / "libvgpu.so", tmp_path / "host")
