"""How a program of ``hami run`` gets the shim: by its environment, or by files at fixed places.

*Environment*: ``LD_PRELOAD`` and ``HAMI_REGION_DIR``; a program that clears them is not limited.
*Namespace*: the files stand where they do in a container, ``/usr/local/vgpu`` and
``/etc/ld.so.preload``, in a mount namespace of the program's own; variables change nothing.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from hami.errors import ConfigError
from hami.nodeagent import region

_PACKAGE: Final = Path(__file__).resolve().parent.parent
HELPER: Final = _PACKAGE / "sandbox" / "runtime" / "lib" / "run-isolated"
SHIM: Final = _PACKAGE / "shim" / "lib" / "libvgpu.so"
DIRECTORY_ENV: Final = "HAMI_REGION_DIR"
PRELOAD_FILE: Final = Path("/etc/ld.so.preload")
FIXED: Final = Path("/usr/local/vgpu")
"""Where containers have them, too; the module that says so for those is slow to load."""
_PROBE_SECONDS: Final = 20.0


class Isolation(StrEnum):
    """How strictly a program is held."""

    AUTO = "auto"
    ENVIRONMENT = "environment"
    NAMESPACE = "namespace"


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """How to start a program: what comes before it, and its environment."""

    prefix: tuple[str, ...]
    environment: Mapping[str, str]


def check(environment: Mapping[str, str]) -> None:
    """See that the shim is there, and that nothing else limits this process already.

    Raises:
        ConfigError: It is not, or something does.
    """
    if not SHIM.is_file():
        raise ConfigError(
            f"{SHIM}: expected the shim, met no such file; `python native.py` builds it"
        )
    outer = environment.get(DIRECTORY_ENV)
    for control in (FIXED / region.CONTROL, Path(outer or FIXED) / region.CONTROL):
        if control.exists():
            raise ConfigError(
                f"{control}: this process is limited already, as a container is; expected a "
                "process of the host"
            )


def choose(wanted: Isolation, directory: Path, environment: Mapping[str, str], *, uid: int) -> Way:
    """How the program of a run is started.

    Args:
        wanted: What the user asks for.
        directory: The run's: with ``control`` and ``usage``.
        environment: Of this process.
        uid: The effective user.

    Raises:
        ConfigError: Namespaces were asked for and do not work here.
    """
    if wanted is Isolation.NAMESPACE or (wanted is Isolation.AUTO and _changes_nothing_else(uid)):
        try:
            return _by_namespace(directory, environment)
        except ConfigError:
            if wanted is Isolation.NAMESPACE:
                raise
    return _by_environment(directory, environment)


def _changes_nothing_else(uid: int) -> bool:
    """Whether a namespace would show the program the files, and change nothing besides.

    Without root it takes a user namespace, in which other users' files are nobody's; where a place
    is missing, its directory is shown in memory, and what is written into that is lost.
    """
    return uid == 0 and FIXED.is_dir() and PRELOAD_FILE.is_file()


def _by_environment(directory: Path, environment: Mapping[str, str]) -> Way:
    others = environment.get("LD_PRELOAD", "")
    return Way(
        prefix=(),
        environment={
            **environment,
            "LD_PRELOAD": f"{SHIM}:{others}" if others else str(SHIM),
            DIRECTORY_ENV: str(directory),
        },
    )


def _by_namespace(directory: Path, environment: Mapping[str, str]) -> Way:
    library, preload = directory / SHIM.name, directory / PRELOAD_FILE.name
    library.touch()
    earlier = PRELOAD_FILE.read_text(encoding="utf-8") if PRELOAD_FILE.is_file() else ""
    preload.write_text(f"{earlier.rstrip()}\n{FIXED / SHIM.name}\n".lstrip())
    binds = (
        "--mount-ro", str(directory), str(FIXED),
        "--mount-rw", str(directory / region.USAGE), str(FIXED / region.USAGE),
        "--mount-ro", str(SHIM), str(FIXED / SHIM.name),
        "--mount-ro", str(preload), str(PRELOAD_FILE),
    )  # fmt: skip
    try:
        tried = subprocess.run(
            [HELPER, "--probe", *binds],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_PROBE_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError(f"--isolation namespace: {HELPER}: {error}") from error
    if tried.returncode != 0:
        raise ConfigError(f"--isolation namespace: not possible here: {tried.stderr.strip()}")
    kept = {name: value for name, value in environment.items() if name != DIRECTORY_ENV}
    return Way(prefix=(os.fspath(HELPER), *binds, "--"), environment=kept)
