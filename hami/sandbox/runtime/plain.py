"""Containers without namespaces: what stands in for their mounts. Pure but for ``link_mounts``.

The mounts become symbolic links in a directory of the container's own (its farm), laid out as they
would be below ``/``. A value of the environment that names a path which only the mounts would have
made is rewritten to that path in the farm, and ``/etc/ld.so.preload`` becomes ``LD_PRELOAD``.
Nothing is read-only, and paths in arguments or inside files are not rewritten.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Final

from hami.sandbox.runtime.spec import Mount, StartError

PRELOAD_FILE: Final = "/etc/ld.so.preload"


def link_mounts(mounts: Iterable[Mount], farm: Path) -> None:
    """Make the farm: one link a mount.

    Raises:
        StartError: A mount lies inside another one, or its source does not exist.
    """
    for mount in sorted(mounts, key=lambda mount: mount.container_path):
        link = _in_farm(farm, mount.container_path)
        if not Path(mount.host_path).exists():
            raise StartError(f"mount source {mount.host_path}: No such file or directory")
        if any(parent.is_symlink() for parent in link.parents if parent.is_relative_to(farm)):
            raise StartError(f"mount {mount.container_path} lies in another: needs namespaces")
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(mount.host_path)


def rewrite(env: Mapping[str, str], mounts: Iterable[Mount], farm: Path) -> dict[str, str]:
    """The environment as the container needs it where nothing is mounted.

    Raises:
        StartError: The list of libraries to preload cannot be read.
    """
    mounts = tuple(mounts)
    result = {name: _rewrite(value, mounts, farm) for name, value in env.items()}
    preload = next((mount for mount in mounts if mount.container_path == PRELOAD_FILE), None)
    if preload is not None:
        libraries = [_rewrite(path, mounts, farm) for path in _libraries(preload.host_path)]
        libraries += [result["LD_PRELOAD"]] if result.get("LD_PRELOAD") else []
        result["LD_PRELOAD"] = ":".join(libraries)
    return result


def _libraries(file: str) -> list[str]:
    try:
        text = Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise StartError(f"{PRELOAD_FILE} from {file}: {error}") from error
    lines = (line.partition("#")[0] for line in text.splitlines())
    return [path for line in lines for path in line.replace(":", " ").split()]


def _rewrite(value: str, mounts: tuple[Mount, ...], farm: Path) -> str:
    """Into the farm, if the mounts would have made this path."""
    if not value.startswith("/") or value == "/":
        return value
    path = PurePosixPath(value)
    below = any(path.is_relative_to(mount.container_path) for mount in mounts)
    above = any(PurePosixPath(mount.container_path).is_relative_to(path) for mount in mounts)
    if below or (above and not Path(value).exists()):
        return str(_in_farm(farm, value))
    return value


def _in_farm(farm: Path, container_path: str) -> Path:
    return farm / PurePosixPath(container_path).relative_to("/")
