"""How HAMi writes values: Go's numbers, truth values, durations and addresses.

A reader takes the text of a flag and gives the values of the settings that it changes, in their
order; none of them means that the text leaves the settings as they are. Pure.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable
from typing import Final

from hami.errors import ConfigError

Reader = Callable[[str], tuple[object, ...]]

_TRUE: Final = frozenset({"1", "t", "T", "true", "TRUE", "True"})
_FALSE: Final = frozenset({"0", "f", "F", "false", "FALSE", "False"})
_UNITS: Final = {
    "h": 3600.0,
    "m": 60.0,
    "s": 1.0,
    "ms": 1e-3,
    "us": 1e-6,
    "µs": 1e-6,
    "μs": 1e-6,
    "ns": 1e-9,
}
_PART: Final = re.compile(r"(\d+\.?\d*|\.\d+)(h|ms|us|µs|μs|ns|m|s)", re.ASCII)
_DURATION: Final = re.compile(rf"[-+]?({_PART.pattern})+", re.ASCII)
_INTEGER: Final = re.compile(r"[-+]?\d{1,18}", re.ASCII)
_NUMBER: Final = re.compile(r"[-+]?(\d{1,18}\.?\d{0,18}|\.\d{1,18})(e[-+]?\d{1,2})?", re.I | re.A)
_ADDRESS: Final = re.compile(r"(?P<host>\[[0-9A-Fa-f:.%\w]*\]|[^:\[\]]*):(?P<port>\d{1,5})", re.A)
_SHOWN: Final = 60
"""Characters of a wrong value that an error repeats."""
_DEBUG_FROM: Final = 5
"""The charts' own ``-v=4`` is not meant to be verbose."""


def truth(text: str) -> tuple[bool]:
    """As ``strconv.ParseBool`` reads it."""
    if text in _TRUE:
        return (True,)
    if text in _FALSE:
        return (False,)
    raise _wrong("true or false", text)


def integer(text: str) -> tuple[int]:
    """A decimal number."""
    if not _INTEGER.fullmatch(text):
        raise _wrong("a whole number", text)
    return (int(text),)


def number(text: str) -> tuple[float]:
    """A decimal number, perhaps with a fraction."""
    if not _NUMBER.fullmatch(text):
        raise _wrong("a number", text)
    return (float(text),)


def duration(text: str) -> tuple[float]:
    """Seconds, as ``time.ParseDuration`` reads them: ``5m``, ``1h30m``, ``28s``, ``0``."""
    if text == "0":
        return (0.0,)
    if not _DURATION.fullmatch(text):
        raise _wrong("a duration such as 5m or 28s", text)
    seconds = sum(float(amount) * _UNITS[unit] for amount, unit in _PART.findall(text))
    return (-seconds if text.startswith("-") else seconds,)


def words(text: str) -> tuple[str]:
    """The text as it is."""
    return (text,)


def path(text: str) -> tuple[str | None]:
    """A file's path; an empty one is none."""
    return (text or None,)


def address(text: str) -> tuple[str, int]:
    """Host and port of ``host:port``; without a host it is every address of this machine."""
    found = _ADDRESS.fullmatch(text)
    if found is None:
        raise _wrong("host:port", text)
    return found["host"].strip("[]") or "0.0.0.0", int(found["port"])


def labels(text: str) -> tuple[str]:
    """Labels as pflag reads them: ``k=v,k=v``; of a key that comes again, the last counts."""
    found: dict[str, str] = {}
    for term in text.split(",") if text else ():
        key, equals, value = term.partition("=")
        if not equals:
            raise _wrong("k=v,k=v", text)
        found[key.strip()] = value.strip()
    return (",".join(f"{key}={value}" for key, value in found.items()),)


def nothing(_: str) -> tuple[()]:
    """Any text, for a flag that changes no setting."""
    return ()


def verbosity(text: str) -> tuple[str, ...]:
    """The level of klog: from 5 on it asks for debugging."""
    (level,) = integer(text)
    return ("debug",) if level >= _DEBUG_FROM else ()


def unless_zero(reader: Reader) -> Reader:
    """Zero means "your own default" to the reference's libraries, and leaves the setting here."""

    def read(text: str) -> tuple[object, ...]:
        values = reader(text)
        return () if values == (0,) else values

    return read


def nearest(key: str, known: Iterable[str], *, what: str) -> str:
    """The end of an error about an unknown key; empty where nothing known resembles it."""
    close = difflib.get_close_matches(key[:200], list(known), n=1)
    return f"; the nearest known {what} is {close[0]}" if close else ""


def shown(text: object) -> str:
    """A value or key from outside, short enough for an error."""
    short = str(text)[: _SHOWN + 1]
    return short if len(short) <= _SHOWN else f"{short[:_SHOWN]}…"


def _wrong(expected: str, text: str) -> ConfigError:
    return ConfigError(f"expected {expected}, met {shown(text)!r}")
