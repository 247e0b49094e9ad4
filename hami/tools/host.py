"""Commands of this host, without Kubernetes: ``hami run``, ``hami top``, ``hami region dump``.

Each imports its part lazily.
"""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from hami.output import Output

OutputOption = Annotated[
    Output, typer.Option("--output", "-o", help="A table for people, or json.")
]

region = typer.Typer(
    no_args_is_help=True, help="The files in which a container's limits and usage stand."
)


@region.command("dump")
def region_dump(
    path: Annotated[
        Path, typer.Argument(help="A control or usage file, or a directory with both.")
    ],
    output: OutputOption = Output.TABLE,
) -> None:
    """Explain a region: whose it is, what it grants, who uses it, and all that is odd about it.

    Exit status 1: the shim would grant no memory on it.
    """
    from hami.tools import dump, dump_screen

    found = dump.dump(path)
    if output is Output.JSON:
        import msgspec

        typer.echo(msgspec.json.format(msgspec.json.encode(found), indent=2).decode())
    else:
        dump_screen.show(found)
    if found.unusable:
        sys.exit(1)


class Policy(StrEnum):
    """When the core limit applies."""

    DEFAULT = "default"
    FORCE = "force"
    DISABLE = "disable"


class Isolation(StrEnum):
    """How strictly the program is held."""

    AUTO = "auto"
    ENVIRONMENT = "environment"
    NAMESPACE = "namespace"


def run(
    command: Annotated[
        list[str], typer.Argument(help="The program and its arguments.", metavar="COMMAND...")
    ],
    gpu: Annotated[
        list[str] | None,
        typer.Option("--gpu", help="Index or UUID; repeatable. By default the first one."),
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(help="Of each GPU: MiB such as 3000, a size such as 3Gi, or 25%."),
    ] = None,
    cores: Annotated[
        int, typer.Option(min=0, max=100, help="Percent of each GPU's time; 0: no limit.")
    ] = 0,
    policy: Annotated[Policy, typer.Option(help="When the limit of cores applies.")] = (
        Policy.DEFAULT
    ),
    priority: Annotated[
        int, typer.Option(min=0, max=1, help="0 goes first where a GPU is contended.")
    ] = 1,
    isolation: Annotated[
        Isolation, typer.Option(help="How strictly the program is held; see docs/run.md.")
    ] = Isolation.AUTO,
) -> None:
    """Run a program of this host within limits, without Kubernetes.

    Pid, terminal, signals and exit status are the program's own.
    """
    from hami.nodeagent.region import Policy as RegionPolicy
    from hami.tools import run as running
    from hami.tools.isolation import Isolation as Way

    running.run(
        running.Request(
            command=tuple(command),
            gpus=tuple(gpu or ["0"]),
            memory=memory,
            cores=cores,
            policy=RegionPolicy[policy.name],
            priority=priority,
            isolation=Way(isolation.value),
        ),
        os.environ,
    )


def top(
    interval: Annotated[
        float, typer.Option(min=0.1, max=3600, help="Seconds between two looks.")
    ] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Look once and end.")] = False,
    host_dir: Annotated[
        Path, typer.Option(help="The node agent's directory.", metavar="DIR")
    ] = Path("/usr/local/vgpu"),
    output: OutputOption = Output.TABLE,
) -> None:
    """Show devices, containers and processes of this host, until Ctrl-C.

    As JSON: one document with --once, else one a line.
    """
    import anyio

    from hami.tools import top as looking

    async def show() -> None:
        await looking.show(
            host_dir, os.environ, interval_seconds=interval, once=once, output=output
        )

    try:
        anyio.run(show)
    except KeyboardInterrupt:
        return
    except BrokenPipeError:  # whoever read it has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
