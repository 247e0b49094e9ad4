"""What tests want to know about processes of this machine."""

from __future__ import annotations

import anyio


async def ended(pid: int) -> bool:
    """Whether nothing of the process runs any more; somebody may still have to collect its end."""
    try:
        stat = await anyio.Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True
    return stat.rpartition(")")[2].split()[0] == "Z"
