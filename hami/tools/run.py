"""``hami run``: limits a program of this host without Kubernetes, then becomes it.

This process makes the region, starts a warden (see ``warden``) that outlives it, and is replaced by
the program: pid, terminal, job control, signals and exit status are the program's own, for nothing
stands between it and whoever started it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

import anyio
import typer

from hami import logs
from hami.config import LogSettings, NodeAgentSettings
from hami.core.device import Device
from hami.errors import ConfigError, DeviceError
from hami.nodeagent import region
from hami.nodeagent.nvml import Nvml
from hami.tools import isolation, rundir, runlimits
from hami.tools.isolation import Isolation

WARDEN_LOG: Final = "warden.log"
_NOT_EXECUTABLE: Final = 126
_NOT_FOUND: Final = 127
_NAME_BYTES: Final = 63
_WARDEN_SECONDS: Final = 20.0
# Lets go of whoever started it: no child of the program's, of another session, and of no terminal.
_DETACH: Final = (
    "import os, sys; os.fork() and os._exit(0); os.setsid(); os.execv(sys.executable, sys.argv[1:])"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What the user asks for."""

    command: tuple[str, ...]
    gpus: tuple[str, ...]
    memory: str | None
    cores: int
    policy: region.Policy
    priority: int
    isolation: Isolation


def run(request: Request, environment: Mapping[str, str]) -> NoReturn:
    """Become the program.

    Raises:
        ConfigError: Something that was asked for cannot be had.
    """
    isolation.check(environment)
    devices = runlimits.devices(
        request.gpus, _present(), memory=request.memory, cores=request.cores
    )
    place = _make(request, devices, environment)
    try:
        way = isolation.choose(request.isolation, place.directory, environment, uid=os.geteuid())
        _start_warden(place.directory)
    except BaseException:
        place.remove()
        raise
    visible = {"CUDA_VISIBLE_DEVICES": ",".join(device.uuid for device in devices)}
    command = [*way.prefix, *request.command]
    try:
        os.execvpe(command[0], command, {**way.environment, **visible})
    except OSError as error:
        place.remove()
        typer.echo(f"hami: {command[0]}: {error.strerror}", err=True)
        missing = isinstance(error, FileNotFoundError)
        sys.exit(_NOT_FOUND if missing else _NOT_EXECUTABLE)


def _present() -> tuple[Device, ...]:
    """The devices that the driver shows now, whole."""
    logs.configure(LogSettings(level="error", format="console"))
    try:
        reading = anyio.run(Nvml(NodeAgentSettings()).read)
    except DeviceError as error:
        raise ConfigError(f"expected a GPU driver on this machine, met none: {error}") from error
    if not reading.devices:
        raise ConfigError("expected a GPU in this machine, met none")
    return reading.devices


def _make(
    request: Request, devices: Sequence[region.RegionDevice], environment: Mapping[str, str]
) -> rundir.Run:
    root = rundir.open_root(rundir.root(environment, os.geteuid()))
    rundir.clean(root)
    try:
        making = rundir.Making(root, request.command)
        region.create(
            making.directory,
            devices=devices,
            owner=region.Owner(container_name=_name(request.command[0])),
            policy=request.policy,
            priority=request.priority,
            usage_mode=0o600,
        )
        return making.done()
    except OSError as error:
        raise ConfigError(f"directory of runs {root}: {error.strerror}") from error


def _name(command: str) -> str:
    """What the region's owner is called: the program, as far as its field reaches."""
    return Path(command).name.encode(errors="replace")[:_NAME_BYTES].decode(errors="ignore")


def _start_warden(directory: Path) -> None:
    """In a process that nobody waits for."""
    command = [sys.executable, "-P", "-m", "hami.tools.warden", str(directory)]
    with (directory / WARDEN_LOG).open("wb") as log:
        try:
            subprocess.run(
                [sys.executable, "-I", "-S", "-c", _DETACH, *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env=_environment_of_warden(),
                timeout=_WARDEN_SECONDS,
                check=True,
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise ConfigError(f"expected a process that governs, met none: {error}") from error


def _environment_of_warden() -> dict[str, str]:
    """This process's, with the way to this very package."""
    package = str(Path(__file__).resolve().parents[2])
    others = os.environ.get("PYTHONPATH", "")
    return {**os.environ, "PYTHONPATH": f"{package}:{others}" if others else package}
