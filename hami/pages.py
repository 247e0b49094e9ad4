"""The reference pages on settings, as lines of Markdown, from the tables in the code."""

from __future__ import annotations

from collections.abc import Iterator

from hami import config, live
from hami.compat import devicefile, flags


def settings() -> Iterator[str]:
    """Every setting, and whether a changed file changes it in a running controller."""
    yield from _head("setting", "type", "default", "live", "meaning")
    for path, kind, default, meaning in config.describe():
        is_live = "yes" if path in live.LIVE else ""
        yield _row(f"`{path}`", kind, f"`{default}`", is_live, meaning)


def migrating() -> Iterator[str]:
    """What the flags, variables and file of HAMi are here."""
    yield "## Flags of the scheduler"
    yield ""
    yield from _head("flag", "takes", "setting here", "remark")
    for flag in flags.FLAGS.values():
        dashes = "-" if len(flag.name) == 1 else "--"
        yield _row(f"`{dashes}{flag.name}`", flag.takes, _codes(flag.settings), _remark(flag))
    yield ""
    yield "## Variables of the scheduler"
    yield ""
    yield from _head("variable", "takes", "setting here", "remark")
    for name, flag in flags.ENVIRONMENT.items():
        remark = f"counts unless `--{flag.name}` is given"
        yield _row(f"`{name}`", flag.takes, _codes(flag.settings), remark)
    yield ""
    yield "## Keys of `device-config.yaml`"
    yield ""
    yield from _head("key", "takes", "setting here", "remark")
    for path, key in devicefile.entries():
        words = ", ".join(word for word in key.words if word)
        yield _row(f"`{path}`", words or key.kind, _codes((key.setting,)), key.note)


def _remark(flag: flags.Flag) -> str:
    if flag.refused:
        return f"true is refused: {flag.refused}"
    if flag.below_file:
        return "the device configuration file has the last word"
    if flag.settings:
        return flag.note
    return f"no effect: {flag.note}"


def _codes(paths: tuple[str, ...]) -> str:
    return ", ".join(f"`{path}`" for path in paths if path)


def _head(*cells: str) -> Iterator[str]:
    yield _row(*cells)
    yield f"|{'---|' * len(cells)}"


def _row(*cells: str) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
