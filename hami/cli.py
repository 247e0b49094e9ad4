"""The one command line. Each command imports its part only when it runs.

Daemons are nouns (``hami controller``, ``hami node-agent``), tools are verbs. Exit status: 0 done,
1 failed, 2 used wrongly. What programs read goes to stdout, what people read to stderr.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import typer

from hami import __version__
from hami.compat import flags as reference
from hami.errors import ConfigError, HamiError
from hami.loading import Loaded, Sources, resolve
from hami.output import Output
from hami.tools import commands as tools
from hami.tools import host

# Options and arguments that are wrong. The class has no public name, its child has.
_UsageError: Final[type[Exception]] = typer.BadParameter.__mro__[1]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Share GPUs and other AI accelerators between Kubernetes pods, with enforced limits.",
)
sandbox = typer.Typer(
    no_args_is_help=True,
    help="The whole system on this machine, without a cluster and without a GPU.",
)
app.add_typer(sandbox, name="sandbox")
app.add_typer(tools.explain, name="explain")
app.command("what-if")(tools.what_if)
app.command("resize")(tools.resize)
app.add_typer(host.region, name="region")
app.command("top")(host.top)
app.command("run", context_settings={"allow_interspersed_args": False})(host.run)

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", help="YAML file of settings; see docs/settings.md.", metavar="FILE"),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="One setting, e.g. controller.port=9443; repeatable."),
]
DirOption = Annotated[
    Path | None, typer.Option("--dir", help="State directory of the sandbox.", metavar="DIR")
]

_PASSED_ON: Final = {"allow_extra_args": True, "ignore_unknown_options": True}
"""For commands whose other flags are those of HAMi's scheduler."""


class Mode(StrEnum):
    """Placement modes; see docs/controller.md."""

    COOPERATIVE = "cooperative"
    EXCLUSIVE = "exclusive"


class Process(StrEnum):
    """The processes that have settings."""

    CONTROLLER = "controller"
    NODE_AGENT = "node-agent"

    @property
    def setting(self) -> Literal["controller", "node_agent"]:
        """Name of its group of settings."""
        return "controller" if self is Process.CONTROLLER else "node_agent"


def main() -> None:
    """Run the command line and exit; every error on purpose is one line on stderr."""
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # its C library writes past every handler
    try:
        sys.exit(app(prog_name="hami", standalone_mode=False))
    except HamiError as error:
        typer.echo(f"hami: {error}", err=True)
        sys.exit(2 if isinstance(error, ConfigError) else 1)
    except _UsageError as error:
        typer.echo(_usage(error), err=True)
        sys.exit(2)


def _usage(error: Any) -> str:  # noqa: ANN401 - the class has no public name
    """One line, or the help of a command that was called with nothing."""
    message = str(error.format_message()).replace("Value error, ", "")
    if error.ctx is None or not message or "\n" in message:
        return message
    return f"hami: {message.rstrip('.')}. See '{error.ctx.command_path} --help'."


def _load(
    file: Path | None,
    assignments: list[str] | None,
    *,
    process: Process,
    arguments: Sequence[str] = (),
) -> Loaded:
    """A process's settings, from all sources; ``arguments`` are flags of HAMi's scheduler."""
    import yaml

    flags: dict[str, Any] = {}
    for text in assignments or ():
        path, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"--set {text}: expected path=value")
        try:
            flags[path] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {text}: {' '.join(str(error).split())}") from error
    return resolve(
        Sources(
            process=process.setting,
            file=file,
            environment=os.environ,
            assignments=flags,
            reference=reference.parse(arguments),
        )
    )


def _run(main_task: Callable[[], Awaitable[None]]) -> None:
    """Run a process's root task; a failure below it is one clear line."""
    import anyio

    status = 0
    try:
        anyio.run(main_task, backend_options={"use_uvloop": _has_uvloop()})
    except* HamiError as group:
        errors = _leaves(group)
        for error in errors:
            typer.echo(f"hami: {error}", err=True)
        status = 2 if all(isinstance(error, ConfigError) for error in errors) else 1
    except* SystemExit:  # whoever read the output has gone
        status = 1
    except* KeyboardInterrupt:
        status = 130
    if status:
        sys.exit(status)


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    found: list[BaseException] = []
    for error in group.exceptions:
        found += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found


def _has_uvloop() -> bool:
    try:
        import uvloop  # noqa: F401 - only whether it is there counts
    except ImportError:
        return False
    return True


@app.command(context_settings=_PASSED_ON)
def controller(
    context: typer.Context, config_file: ConfigOption = None, set_: SetOption = None
) -> None:
    """Serve the webhook and the scheduler's extender; one beside each scheduler.

    The flags of HAMi's scheduler are understood, too: see docs/migrating-settings.md.
    """
    loaded = _load(config_file, set_, process=Process.CONTROLLER, arguments=context.args)
    from hami import logs
    from hami.controllers.app import run

    logs.configure(loaded.settings.log)

    _run(partial(run, loaded))


@app.command("node-agent")
def node_agent(config_file: ConfigOption = None, set_: SetOption = None) -> None:
    """Serve one node's devices to its kubelet and enforce their limits; one per node."""
    loaded = _load(config_file, set_, process=Process.NODE_AGENT)
    from hami import live, logs
    from hami.nodeagent.app import run

    logs.configure(loaded.settings.log)
    live.tell(loaded.notes)

    _run(partial(run, loaded.settings))


@app.command("check-config", context_settings=_PASSED_ON)
def check_config(
    context: typer.Context,
    config_file: ConfigOption = None,
    set_: SetOption = None,
    process: Annotated[
        Process, typer.Option("--for", help="Whose device configuration file is read.")
    ] = Process.CONTROLLER,
) -> None:
    """Validate the settings and print them as they would be used.

    Takes what 'hami controller' takes; what would have no effect is told on stderr.
    """
    loaded = _load(config_file, set_, process=process, arguments=context.args)
    import msgspec
    import yaml

    from hami import site

    site.check(loaded.settings)  # refuses what only goes wrong together
    for name, reason in loaded.notes.items():
        typer.echo(f"without effect: {name}: {reason}", err=True)
    typer.echo(yaml.safe_dump(msgspec.to_builtins(loaded.settings), sort_keys=False), nl=False)


@app.command("settings")
def settings_table(
    of_hami: Annotated[
        bool, typer.Option("--hami", help="Instead: what HAMi's flags and file keys are here.")
    ] = False,
) -> None:
    """Print every setting with its type and default, as a Markdown table."""
    from hami import pages

    for line in pages.migrating() if of_hami else pages.settings():
        typer.echo(line)


@app.command("certs")
def make_certs(
    out: Annotated[Path, typer.Option("--out", help="Directory for ca.crt, tls.crt, tls.key.")],
    host: Annotated[
        list[str], typer.Option("--host", help="Name or address of the webhook; repeatable.")
    ],
    days: Annotated[int, typer.Option(min=1, max=3650)] = 365,
    webhook_url: Annotated[
        str | None, typer.Option(help="Also print the webhook configuration with this URL.")
    ] = None,
) -> None:
    """Make certificates for the webhook, and its configuration for kubectl apply."""
    import yaml

    from hami import certs

    bundle = certs.create(out, host, now=datetime.now(UTC), days=days)
    typer.echo(f"wrote {bundle.ca_file}, {bundle.cert_file}, {bundle.key_file}", err=True)
    if webhook_url is not None:
        manifest = certs.webhook_configuration(ca_bundle=bundle.ca_bundle, url=webhook_url)
        typer.echo(yaml.safe_dump(manifest, sort_keys=False), nl=False)


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


@sandbox.command("up")
def sandbox_up(
    directory: DirOption = None,
    nodes: Annotated[int, typer.Option(min=1, max=1000, help="Number of equal nodes.")] = 2,
    gpus: Annotated[int, typer.Option(min=0, max=16, help="GPUs on each of them.")] = 8,
    model: Annotated[str, typer.Option(help="GPU model; see 'hami sandbox models'.")] = "A100-80GB",
    file: Annotated[
        Path | None, typer.Option("--file", "-f", help="YAML description of a mixed cluster.")
    ] = None,
    mode: Annotated[Mode, typer.Option(help="How the controller places pods.")] = Mode.COOPERATIVE,
    foreground: Annotated[bool, typer.Option(help="Stay in the foreground.")] = False,
) -> None:
    """Start the sandbox and print how to reach it."""
    from hami.sandbox import lifecycle, spec

    layout = spec.load(file) if file else spec.uniform(nodes=nodes, gpus=gpus, model=model)
    place = lifecycle.directory(directory)
    if foreground:
        from hami.sandbox import cluster

        _run(partial(cluster.run_foreground, place, layout, mode=mode.value))
        return
    from hami.sandbox import screen

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # undo what was begun, as on Ctrl-C
    with screen.starting(layout):
        lifecycle.start(place, layout, mode=mode.value)
    typer.echo(f"export KUBECONFIG={place / 'kubeconfig'}")


@sandbox.command("down")
def sandbox_down(directory: DirOption = None) -> None:
    """Stop the sandbox and every process it started."""
    from hami.sandbox import lifecycle

    lifecycle.stop(lifecycle.directory(directory))


@sandbox.command("status")
def sandbox_status(
    directory: DirOption = None,
    output: Annotated[
        Output, typer.Option("--output", "-o", help="A table for people, or json.")
    ] = Output.TABLE,
) -> None:
    """Show nodes, devices and pods of the running sandbox."""
    from hami.sandbox import lifecycle

    place = lifecycle.directory(directory)
    lifecycle.facts(place)
    import anyio

    from hami.sandbox import commands, screen

    state = anyio.run(commands.status, place)
    if output is Output.JSON:
        typer.echo(json.dumps(state, indent=2))
    else:
        screen.show(state)


@sandbox.command("apply")
def sandbox_apply(
    file: Annotated[Path, typer.Option("--file", "-f", help="Manifest with one or more objects.")],
    directory: DirOption = None,
) -> None:
    """Create or change the objects of a manifest."""
    import anyio

    from hami.sandbox import commands, lifecycle

    anyio.run(partial(commands.apply, lifecycle.directory(directory), file, say=typer.echo))


@sandbox.command("logs")
def sandbox_logs(
    name: Annotated[
        str,
        typer.Argument(
            help="POD or NAMESPACE/POD; else 'controller', a node's name, or 'sandbox'.",
            metavar="NAME",
        ),
    ],
    container: Annotated[
        str | None, typer.Option("--container", "-c", help="Which of the pod's containers.")
    ] = None,
    directory: DirOption = None,
) -> None:
    """Print the output of a pod, of the controller or of a node's agent."""
    import anyio

    from hami.sandbox import commands, lifecycle

    place = lifecycle.directory(directory)
    typer.echo(anyio.run(partial(commands.logs, place, name, container=container)), nl=False)


@sandbox.command("models")
def sandbox_models() -> None:
    """List the GPU models that simulated nodes can have."""
    from hami.sandbox import screen

    screen.show_models()


@sandbox.command("demo")
def sandbox_demo(
    directory: DirOption = None,
    once: Annotated[bool, typer.Option("--once", help="End after the story is told.")] = False,
) -> None:
    """Start two nodes of eight GPUs, run the README's pods, and tell what happens."""
    from hami.sandbox import demo, lifecycle

    _run(partial(demo.run, lifecycle.directory(directory), once=once))
