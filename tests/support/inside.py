"""Commands where a container's files are mounted as the node agent asks for it."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.support.gpu import Container

FIXED = "/usr/local/vgpu/libvgpu.so"
FAIL_OPEN = "/usr/local/vgpu/fail-open/libvgpu.so"
PROGRAM = "/usr/local/program"

_SETUP = """
mount -t tmpfs none /usr/local && cd /usr/local
mkdir -p vgpu/fail-open driver etc copies && chmod 777 copies && touch node program
mount --bind "$1" node && mount --bind "$2" driver && mount --bind "$3" program
touch "$4" && mount --bind "$5" "$4" && mount -o remount,bind,ro "$4"
for file in $6; do
    touch vgpu/$file && mount --bind "$7/$file" vgpu/$file
    [ $file = usage ] || mount -o remount,bind,ro vgpu/$file
done
cp "$5" copies/copy.so && ln -s "$4" copies/link.so
cp -a /etc/. etc && echo "$4" > etc/ld.so.preload && mount --bind etc /etc
shift 7 && cd / && exec env "$@"
"""


@dataclass
class Inside:
    """One container: its library, its program, and which of its files there are."""

    container: Container
    program: Path
    """Stands at PROGRAM."""
    library: str = FIXED
    """Where the shim is mounted; /etc/ld.so.preload names it."""
    files: Sequence[str] = ("control", "usage")
    build: Path | None = None
    """The shim to mount; None: the machine's."""
    env: dict[str, str] = field(default_factory=dict)

    def run(self, *command: object, **env: str) -> subprocess.CompletedProcess[str]:
        """What the command said; it has no environment but the machine's and the given one."""
        machine = self.container.machine
        given = {
            "PATH": "/usr/bin:/bin:/usr/sbin:/sbin",
            "HAMI_SIM_NODE": "/usr/local/node",
            "LD_LIBRARY_PATH": "/usr/local/driver",
            "NVIDIA_VISIBLE_DEVICES": ",".join(self.container.uuids),
            **self.env,
            **env,
        }
        sources = (machine.state, machine.libraries, self.program, self.library)
        words = [*sources, self.build or machine.shim, " ".join(self.files)]
        assigned = [f"{name}={value}" for name, value in given.items()]
        words += [self.container.directory, "-i", *assigned, *command]
        return subprocess.run(
            ["unshare", "--mount", "sh", "-ec", _SETUP, "sh", *map(str, words)],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )


def need_namespaces(*kinds: str) -> None:
    """Skip the test where the kernel lets nobody make these namespaces."""
    done = subprocess.run(["unshare", *kinds, "true"], check=False, capture_output=True)
    if done.returncode != 0:
        pytest.skip(f"this machine lets nobody unshare {' '.join(kinds)}")
