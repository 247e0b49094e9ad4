"""What NVIDIA's own headers say of the driver API and of NVML: names, versions, how arguments go.

The headers come from PyPI. How an argument is passed is asked of the compiler: its size, and
whether it is a pointer, an integer, a floating-point number or a structure.
"""

from __future__ import annotations

import re
import subprocess
import sysconfig
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import native

Key = TypeVar("Key")
Passed = tuple[tuple[int, int], ...]
"""For each argument its size and the compiler's number of its class."""

SITE = Path(sysconfig.get_paths()["purelib"])
_FUNCTION_POINTER = re.compile(
    r"typedef CUresult\s*\(CUDAAPI \*PFN_(\w+)_v(\d+)(_ptsz|_ptds)?\)\((.*?)\);", re.S
)
_NVML_PROTOTYPE = re.compile(r"^nvmlReturn_t DECLDIR (\w+)\s*\((.*?)\);", re.S | re.M)


@dataclass(frozen=True, order=True)
class Form:
    """One form of a function, as cuGetProcAddress is asked for it."""

    symbol: str
    version: int
    per_thread: bool = False


def include(header: str) -> Path:
    """The directory that the header is in."""
    return next(SITE.glob(f"nvidia/**/include/{header}")).parent


def forms() -> dict[Form, str]:
    """Every form of every function of the driver API, with its parameters."""
    text = (include("cudaTypedefs.h") / "cudaTypedefs.h").read_text()
    return {
        Form(symbol, int(version), bool(suffix)): parameters
        for symbol, version, suffix, parameters in _FUNCTION_POINTER.findall(text)
    }


def nvml_functions() -> dict[str, str]:
    """Every function of NVML, with its parameters."""
    return dict(_NVML_PROTOTYPE.findall((include("nvml.h") / "nvml.h").read_text()))


def versions(symbol: str, known: Iterable[Form]) -> list[int]:
    """In which versions of CUDA the symbol got another form."""
    return sorted({form.version for form in known if form.symbol == symbol and not form.per_thread})


def types(parameters: str) -> list[str]:
    """The types of a parameter list; every parameter has a name."""
    if parameters.strip() in ("", "void"):
        return []
    found = []
    for part in re.split(r",(?![^(]*\))", " ".join(parameters.split())):
        match = re.fullmatch(r"\s*(.*?)(\w+)\s*(\[\w*\])?\s*", part)
        assert match is not None, part
        found.append(match[1].strip() + ("*" if match[3] else ""))
    return found


def how_passed(
    parameters: Mapping[Key, str], directory: Path, *, prelude: str, includes: Iterable[Path]
) -> dict[Key, Passed]:
    """Ask the compiler; ``prelude`` declares the types."""
    lines = []
    for text in parameters.values():
        shown = "".join(
            f'printf("%zu %d ", sizeof({one}), __builtin_classify_type(*({one} *)&somewhere));'
            for one in types(text)
        )
        lines.append(f'{shown} puts("");')
    source, program = directory / "passed.c", directory / "passed"
    body = "\n".join(lines)
    source.write_text(
        f"#include <stdio.h>\n{prelude}\nstatic char somewhere[4096];\n"
        f"int main(void) {{\n(void)somewhere;\n{body}\nreturn 0; }}\n"
    )
    words = ["-std=gnu11", "-w", *(f"-I{path}" for path in includes)]
    native.run_compiler([*words, "-o", str(program), str(source)])
    said = subprocess.run([program], capture_output=True, text=True, check=True).stdout
    answers = [[int(word) for word in line.split()] for line in said.splitlines()]
    return {
        key: tuple(zip(answer[::2], answer[1::2], strict=True))
        for key, answer in zip(parameters, answers, strict=True)
    }
