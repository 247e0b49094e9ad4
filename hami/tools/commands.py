"""Commands that ask: why pods wait, what would be, other amounts for a running pod."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

import typer

from hami.errors import ConfigError
from hami.output import Output

if TYPE_CHECKING:
    from hami.tools.reach import Answer, Target
    from hami.tools.resize import Resized

T = TypeVar("T")

ServerOption = Annotated[
    str | None,
    typer.Option("--server", help="The controller's health address; also $HAMI_SERVER.",
                 metavar="URL"),
]  # fmt: skip
ServiceOption = Annotated[
    str | None,
    typer.Option(
        "--service",
        help="The controller's Service, reached through the API server; also $HAMI_SERVICE.",
        metavar="NAMESPACE/NAME:PORT",
    ),
]
KubeconfigOption = Annotated[
    Path | None,
    typer.Option("--kubeconfig", help="How to reach that API server.", metavar="FILE"),
]
DirOption = Annotated[
    Path | None,
    typer.Option("--dir", help="State directory of a running sandbox.", metavar="DIR"),
]
OutputOption = Annotated[
    Output, typer.Option("--output", "-o", help="A table for people, or json.")
]

explain = typer.Typer(help="Say why pods wait for devices: all of them, or one.")

MAX_MANIFEST_BYTES: Final = 1024 * 1024


@explain.callback(invoke_without_command=True)
def explain_all(
    context: typer.Context,
    server: ServerOption = None,
    service: ServiceOption = None,
    kubeconfig: KubeconfigOption = None,
    directory: DirOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Say why pods wait for devices: all of them, or one."""
    if context.invoked_subcommand is not None:
        context.obj = (server, service, kubeconfig, directory, output)
        return
    answer = _ask(_target(server, service, kubeconfig, directory), "/v1/explain")
    from hami.controllers.answers import Explanations
    from hami.tools import screen

    _show(answer.decode(Explanations), output, screen.show_waiting)


@explain.command("pod")
def explain_pod(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="The pod.", metavar="NAME")],
    namespace: Annotated[
        str, typer.Option("--namespace", "-n", help="Its namespace.", metavar="NAMESPACE")
    ] = "default",
    server: ServerOption = None,
    service: ServiceOption = None,
    kubeconfig: KubeconfigOption = None,
    directory: DirOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Say why a pod waits, the nearest miss first."""
    from urllib.parse import quote

    outer = context.obj
    target = _target(
        server or outer[0], service or outer[1], kubeconfig or outer[2], directory or outer[3]
    )
    form = Output.JSON if Output.JSON in {output, outer[4]} else Output.TABLE
    path = f"/v1/explain/{quote(namespace, safe='')}/{quote(name, safe='')}"
    answer = _ask(target, path)
    from hami.controllers.answers import Explanation
    from hami.tools import screen

    problem = answer.problem() if answer.status == 404 else None
    if problem is not None and problem.state not in {"", "unknown"}:
        _show(problem, form, screen.show_not_waiting)
    else:
        _show(answer.decode(Explanation), form, screen.show_explanation)


def what_if(
    file: Annotated[Path, typer.Option("--file", "-f", help="Manifest of the pod, '-' for stdin.")],
    replicas: Annotated[
        int, typer.Option("--replicas", min=1, max=1000, help="How many copies of it.")
    ] = 1,
    server: ServerOption = None,
    service: ServiceOption = None,
    kubeconfig: KubeconfigOption = None,
    directory: DirOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Say where a pod would go, how many more would fit, and what is in the way."""
    import msgspec

    manifest = _read(file)
    body = msgspec.json.encode({"pod": manifest, "replicas": replicas})
    answer = _ask(_target(server, service, kubeconfig, directory), "/v1/what-if", body)
    from hami.controllers.answers import WhatIf
    from hami.tools import screen

    _show(answer.decode(WhatIf), output, screen.show_what_if)


def resize(
    name: Annotated[str, typer.Argument(help="The running pod.", metavar="POD")],
    memory: Annotated[
        int | None,
        typer.Option("--memory", min=1, max=2**31 - 1, help="MiB of each of its devices."),
    ] = None,
    cores: Annotated[
        int | None,
        typer.Option("--cores", min=0, max=100, help="Percent of each; 0: no limit."),
    ] = None,
    container: Annotated[
        str | None,
        typer.Option("--container", "-c", help="Which, if there are several.", metavar="NAME"),
    ] = None,
    namespace: Annotated[
        str, typer.Option("--namespace", "-n", help="Its namespace.", metavar="NAMESPACE")
    ] = "default",
    timeout: Annotated[
        float, typer.Option("--timeout", min=0.1, max=3600, help="Seconds to wait at most.")
    ] = 30.0,
    kubeconfig: KubeconfigOption = None,
    directory: DirOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Give a running pod more or less of its devices; nothing is restarted or killed."""
    import anyio

    from hami.core.codec_resize import Wanted
    from hami.tools.resize import Order, api
    from hami.tools.resize import resize as ask

    if memory is None and cores is None:
        raise typer.BadParameter("expected --memory, --cores or both")
    order = Order(
        namespace=namespace,
        name=name,
        container=container,
        wanted=Wanted(gpumem=memory, gpucores=cores),
        timeout_seconds=timeout,
    )

    async def run() -> Resized:
        async with api(kubeconfig, directory) as client:
            return await ask(client, order)

    _show(anyio.run(run), output, _say_resized)


def _say_resized(answer: Resized) -> None:
    share = f"{answer.gpucores} %" if answer.gpucores else "all"
    typer.echo(
        f"{answer.namespace}/{answer.pod} {answer.container}: {answer.gpumem} MiB and {share} of"
        " the compute of each device, in force"
    )
    if answer.blocked:
        typer.echo(
            f"{answer.blocked} MiB are in use beyond that: nothing more is granted, and nobody"
            " else gets them, until they are freed"
        )


def _target(
    server: str | None, service: str | None, kubeconfig: Path | None, directory: Path | None
) -> Target:
    from hami.tools.reach import Target

    return Target(server=server, service=service, kubeconfig=kubeconfig, sandbox=directory)


def _ask(target: Target, path: str, body: bytes | None = None) -> Answer:
    import anyio

    from hami.tools.reach import reach

    async def ask() -> Answer:
        async with reach(target) as controller:
            return await controller.ask(path, body)

    return anyio.run(ask)


def _show(answer: T, output: Output, show: Callable[[T], None]) -> None:
    if output is Output.JSON:
        import msgspec

        typer.echo(msgspec.json.format(msgspec.json.encode(answer), indent=2).decode())
    else:
        show(answer)


def _read(file: Path) -> Any:  # noqa: ANN401 - YAML
    """The one object of a manifest.

    Raises:
        ConfigError: It is none.
    """
    import sys

    import msgspec
    import yaml

    try:
        if str(file) == "-":
            text = sys.stdin.read(MAX_MANIFEST_BYTES + 1)
        else:
            with file.open(encoding="utf-8") as opened:
                text = opened.read(MAX_MANIFEST_BYTES + 1)
        if len(text) > MAX_MANIFEST_BYTES:
            raise ConfigError(f"manifest {file}: expected at most {MAX_MANIFEST_BYTES} characters")
        found = [document for document in yaml.safe_load_all(text) if document is not None]
        msgspec.json.encode(found)
    except OSError as error:
        raise ConfigError(f"manifest {file}: {error.strerror}") from error
    except (UnicodeDecodeError, yaml.YAMLError, TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"manifest {file}: {' '.join(str(error).split())}") from error
    if len(found) != 1 or not isinstance(found[0], dict):
        raise ConfigError(f"manifest {file}: expected one object, met {len(found)}")
    return found[0]
