"""The command line: one line for every error, and an exit status that says whose fault it was."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import yaml

from hami import __version__, cli
from hami.errors import ConfigError, SandboxError


def hami(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "hami", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def run(
    arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> tuple[int, str, str]:
    """The command in this process: exit status, stdout, stderr."""
    monkeypatch.setattr(sys, "argv", ["hami", *arguments])
    with pytest.raises(SystemExit) as exited:
        cli.main()
    output = capsys.readouterr()
    code = exited.value.code
    return (0 if code is None else int(code)), output.out, output.err


def test_version_is_printed_for_programs() -> None:
    result = hami("version")

    assert (result.returncode, result.stdout, result.stderr) == (0, f"{__version__}\n", "")


def test_help_is_asked_for_without_an_error() -> None:
    result = hami("sandbox", "--help")

    assert result.returncode == 0
    for command in ("up", "down", "status", "apply", "logs", "models", "demo"):
        assert command in result.stdout


def test_command_called_with_nothing_shows_its_help_as_a_mistake(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, err = run(["sandbox"], capsys, monkeypatch)

    assert code == 2
    assert "Usage" in out + err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        pytest.param(["nonsense"], "nonsense", id="unknown command"),
        pytest.param(["version", "--loud"], "--loud", id="unknown option"),
        pytest.param(["sandbox", "up", "--nodes", "0"], "--nodes", id="number out of range"),
        pytest.param(["sandbox", "up", "--nodes", "x"], "--nodes", id="no number"),
        pytest.param(["sandbox", "up", "--mode", "x"], "cooperative", id="unknown mode"),
        pytest.param(["sandbox", "up", "--model", "x"], "a100-80gb", id="unknown model"),
        pytest.param(["sandbox", "up", "--file", "/nowhere"], "/nowhere", id="no cluster file"),
        pytest.param(["sandbox", "status", "-o", "x"], "json", id="unknown output"),
        pytest.param(["sandbox", "logs"], "NAME", id="missing argument"),
        pytest.param(["certs", "--out", "/tmp"], "--host", id="missing option"),
        pytest.param(["check-config", "--set", "x"], "path=value", id="no assignment"),
        pytest.param(["check-config", "--set", "log.level=["], "--set", id="no YAML"),
        pytest.param(["check-config", "--set", "x.y=1"], "x", id="unknown setting"),
        pytest.param(["check-config", "--config", "/nowhere"], "/nowhere", id="no settings"),
        pytest.param(["check-config", "--confg=x"], "--config", id="unknown flag"),
        pytest.param(["check-config", "--kube-qps", "x"], "a number", id="wrong value of a flag"),
        pytest.param(["controller", "--enable-ascend"], "not served yet", id="refused flag"),
        pytest.param(["controller", "serve"], "serve", id="argument without a flag"),
    ],
)
def test_wrong_use_is_one_line_and_status_2(
    arguments: list[str],
    told: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    code, out, err = run(arguments, capsys, monkeypatch)

    assert (code, out) == (2, "")
    assert err.startswith("hami: ")
    assert err.count("\n") == 1
    assert told in err
    assert "Errno" not in err
    assert "Value error" not in err


@pytest.mark.parametrize(
    "arguments",
    [["status"], ["down"], ["logs", "x"], ["apply", "-f", "/nowhere"], ["status", "-o", "json"]],
    ids=" ".join,
)
def test_failure_is_one_line_and_status_1(
    arguments: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command = ["sandbox", *arguments, "--dir", str(tmp_path)]
    code, out, err = run(command, capsys, monkeypatch)

    assert (code, out) == (1, "")
    assert err.startswith("hami: ")
    assert err.count("\n") == 1


def failing(*errors: BaseException) -> Callable[[], Awaitable[None]]:
    async def main() -> None:
        raise BaseExceptionGroup("tasks", [BaseExceptionGroup("more", list(errors))])

    return main


@pytest.mark.parametrize(
    ("errors", "status", "lines"),
    [
        ((SandboxError("one"), SandboxError("two")), 1, ["hami: one", "hami: two"]),
        ((SandboxError("one"), SystemExit(1)), 1, ["hami: one"]),
        ((ConfigError("one"),), 2, ["hami: one"]),
        ((ConfigError("one"), SandboxError("two")), 1, ["hami: one", "hami: two"]),
        ((SystemExit(1),), 1, []),
        ((KeyboardInterrupt(),), 130, []),
    ],
    ids=[
        "two failures",
        "failure and lost output",
        "wrong setting",
        "wrong setting and failure",
        "lost output",
        "interrupt",
    ],
)
def test_errors_of_all_tasks_are_told_and_the_process_ends(
    errors: tuple[BaseException, ...],
    status: int,
    lines: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as exited:
        cli._run(failing(*errors))

    assert exited.value.code == status
    assert capsys.readouterr().err.splitlines() == lines


def test_mistake_in_this_program_is_not_dressed_up_as_a_message() -> None:
    with pytest.raises(BaseExceptionGroup) as error:
        cli._run(failing(ZeroDivisionError()))

    assert error.value.subgroup(ZeroDivisionError) is not None


def test_settings_are_checked_and_printed_as_they_would_be_used() -> None:
    result = hami("check-config", "--set", "controller.port=9999", "--set", "log.level=debug")

    assert result.returncode == 0
    settings = yaml.safe_load(result.stdout)
    assert settings["controller"]["port"] == 9999
    assert settings["log"]["level"] == "debug"


def test_the_command_line_and_the_file_of_hami_are_checked(tmp_path: Path) -> None:
    file = tmp_path / "device-config.yaml"
    file.write_text("nvidia: {deviceSplitCount: 4}\nmetax: {resourceCountName: a/b}\n")

    result = hami(
        "check-config", "--http_bind", "0.0.0.0:443", "--debug", "-v=4", "--leader-elect=true",
        f"--device-config-file={file}", "--set", "controller.mode=exclusive",
    )  # fmt: skip

    assert result.returncode == 0
    settings = yaml.safe_load(result.stdout)
    assert settings["controller"]["port"] == 443
    assert settings["controller"]["leader_elect"]
    assert settings["controller"]["mode"] == "exclusive"
    assert settings["node_agent"]["split_count"] == 4
    assert [line.split(": ")[1] for line in result.stderr.splitlines()] == [
        "--debug", "-v", f"metax in {file}",
    ]  # fmt: skip


def test_the_device_file_of_the_node_agent_is_checked(tmp_path: Path) -> None:
    file = tmp_path / "device-config.yaml"
    file.write_text("nvidia: {deviceSplitCont: 4}\n")

    result = hami(
        "check-config", "--for", "node-agent", "--set", f"node_agent.device_config_file={file}"
    )

    assert result.returncode == 2
    assert "nvidia.deviceSplitCont: unknown key" in result.stderr


def test_certs_are_made_and_the_manifest_is_all_that_stdout_gets(tmp_path: Path) -> None:
    result = hami(
        "certs", "--out", str(tmp_path), "--host", "10.0.0.1",
        "--webhook-url", "https://10.0.0.1:9443/webhook",
    )  # fmt: skip

    assert result.returncode == 0
    assert str(tmp_path / "tls.key") in result.stderr
    manifest = yaml.safe_load(result.stdout)
    assert manifest["kind"] == "MutatingWebhookConfiguration"


def test_models_are_listed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, _ = run(["sandbox", "models"], capsys, monkeypatch)

    assert code == 0
    for model in ("t4", "v100", "a10", "a100-40gb", "a100-80gb", "l40s", "h100", "h200", "b200"):
        assert model in out


def test_errors_of_wrong_use_are_the_command_line_librarys_own() -> None:
    assert cli._UsageError.__name__ == "UsageError"
    assert not issubclass(ConfigError, cli._UsageError)
