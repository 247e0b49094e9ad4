"""Commands of this host, without Kubernetes: ``hami region dump``. Each imports its part lazily."""

from __future__ import annotations

import sys
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
