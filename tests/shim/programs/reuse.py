"""reuse.py CLIENT BYTES: in a pid namespace of its own, gives a killed process's pid to a stranger.

Prints what a third process gets that asks for the dead one's memory.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def start(program: str) -> subprocess.Popen[str]:
    client = subprocess.Popen(
        [program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    assert client.stdout is not None
    assert client.stdout.readline() == "ready\n"
    assert ask(client, "init 0") == ["0"]
    return client


def ask(client: subprocess.Popen[str], order: str) -> list[str]:
    assert client.stdin is not None
    assert client.stdout is not None
    client.stdin.write(order + "\n")
    return client.stdout.readline().split()


def stranger(pid: int, since: int) -> subprocess.Popen[bytes]:
    """A process of that pid that began at a later tick of the kernel's clock."""
    while True:
        Path("/proc/sys/kernel/ns_last_pid").write_text(str(pid - 1))
        found = subprocess.Popen(["sleep", "60"], env={})
        if found.pid == pid and started(pid) > since:
            return found
        found.kill()
        found.wait()


def started(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


def main() -> None:
    program, size = sys.argv[1:]
    heir, victim = start(program), start(program)
    assert ask(victim, f"alloc {size}")[0] == "0"
    since = started(victim.pid)
    victim.kill()
    victim.wait()
    other = stranger(victim.pid, since)
    print(os.getpid(), other.pid == victim.pid, *ask(heir, f"alloc {size}")[:1])
    heir.kill()
    other.kill()


if __name__ == "__main__":
    main()
