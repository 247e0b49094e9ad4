"""Starts containers, at the level of isolation that this machine allows.

Owns the helper's command line. Starting costs milliseconds of this thread: the process must be a
child of it, and creating it is the cost.
"""

from __future__ import annotations

import posixpath
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import anyio
from prometheus_client import CollectorRegistry, Histogram

from hami.errors import SandboxError
from hami.logs import get_logger
from hami.sandbox.runtime import plain
from hami.sandbox.runtime.container import Container
from hami.sandbox.runtime.spec import ContainerSpec, Isolation, StartError

log = get_logger(__name__)

HELPER: Final = Path(__file__).parent / "lib" / "sandbox-run"
"""Built from ``sandbox-run.c`` by ``native.py``."""
LOG_BYTES: Final = 10 * 1024 * 1024
"""As the kubelet's default: a log file is turned over at this size; two of them are kept."""
PROBE_SECONDS: Final = 10.0
START_SECONDS: Final = 30.0


class Runtime:
    """Starts containers on this machine."""

    def __init__(
        self,
        *,
        isolation: Isolation | None = None,
        helper: Path = HELPER,
        log_bytes: int = LOG_BYTES,
        registry: CollectorRegistry | None = None,
    ) -> None:
        """Find out what this machine allows.

        Args:
            isolation: Use this level; None takes namespaces where they work.
            helper: The monitor's program.
            log_bytes: Size at which a container's log is turned over.
            registry: Where the time that starts take is counted.

        Raises:
            SandboxError: The helper is not built, or namespaces were asked for and do not work.
        """
        if not helper.is_file():
            raise SandboxError(f"{helper} is missing: build it with `{sys.executable} native.py`")
        self._helper = str(helper)
        self._log_bytes = log_bytes
        refusal = self._refusal() if isolation is not Isolation.PLAIN else ""
        if refusal and isolation is Isolation.NAMESPACES:
            raise SandboxError(f"mount namespaces do not work on this machine: {refusal}")
        chosen = Isolation.PLAIN if refusal else Isolation.NAMESPACES
        self.isolation: Final = isolation or chosen
        self.refusal: Final = refusal
        """Why namespaces are not used, where they were wanted."""
        self._starts = Histogram(
            "hami_sandbox_container_start_seconds",
            "From the order to start a container to its command running",
            registry=registry or CollectorRegistry(),
            buckets=(0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 5),
        )
        log.info("container_runtime_ready", isolation=self.isolation.value, error=refusal)

    def _refusal(self) -> str:
        """What keeps this machine from making namespaces; empty where nothing does."""
        try:
            probe = subprocess.run(
                [self._helper, "--probe"], capture_output=True, timeout=PROBE_SECONDS, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error)
        if probe.returncode == 0:
            return ""
        return probe.stderr.decode(errors="replace").strip() or f"exit code {probe.returncode}"

    async def start(self, spec: ContainerSpec) -> Container:
        """Start the container and return once its command runs.

        The container ends with the sandbox, whatever ends that.

        Raises:
            StartError: There is no command, it cannot be run, or a mount cannot be made.
        """
        if not spec.command:
            raise StartError(
                "no command specified: the sandbox runs no images, `command` must say what to run"
            )
        began = time.monotonic()
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        try:
            arguments = self._arguments(spec, control=theirs.fileno())
            monitor = subprocess.Popen(  # noqa: ASYNC220 - see the module's docstring
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={},
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            ours.close()
            raise StartError(f"cannot start: {error}") from error
        except StartError:
            ours.close()
            raise
        finally:
            theirs.close()
        container = Container(spec.name, monitor, ours)
        await self._await_start(container)
        seconds = time.monotonic() - began
        self._starts.observe(seconds)
        log.debug("container_started", container=spec.name, pid=container.pid, seconds=seconds)
        return container

    async def _await_start(self, container: Container) -> None:
        try:
            with anyio.fail_after(START_SECONDS):
                await container.started()
        except TimeoutError as error:
            container.abandon()
            raise StartError(f"not running after {START_SECONDS:.0f} s") from error
        except anyio.get_cancelled_exc_class():
            container.abandon()
            raise

    def _arguments(self, spec: ContainerSpec, *, control: int) -> Sequence[str]:
        env = spec.env
        options = [
            *("--socket", str(control)),
            *("--log", str(spec.log_path), "--log-bytes", str(self._log_bytes)),
            *("--cwd", spec.working_dir or "/"),
        ]
        if self.isolation is Isolation.NAMESPACES:
            options += ["--namespaces", "--root", str(spec.scratch)]
            for mount in spec.mounts:
                flag = "--mount-ro" if mount.read_only else "--mount-rw"
                options += [flag, mount.host_path, _normal(mount.container_path)]
        elif spec.mounts:
            plain.link_mounts(spec.mounts, spec.scratch)
            env = plain.rewrite(env, spec.mounts, spec.scratch)
        if spec.privileged:
            options.append("--keep-capabilities")
        for name, value in env.items():
            options += ["--env", f"{name}={value}"]
        return [self._helper, *options, "--", *spec.command]


def _normal(path: str) -> str:
    """The path without doubled and trailing slashes and dots; a relative one stays relative."""
    return posixpath.normpath(f"/{path.lstrip('/')}" if path.startswith("/") else path)
