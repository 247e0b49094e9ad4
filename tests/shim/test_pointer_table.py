"""What each pointer was charged: the table says what a plain array says."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import native


@pytest.mark.parametrize("seed", range(8))
def test_the_table_says_what_an_array_says(compile_program: Callable[..., Path], seed: int) -> None:
    shim = native.ROOT / native.SHIM
    program = compile_program("pointer_table", f"-I{shim}", str(shim / "pointers.c"))

    done = subprocess.run(
        [program, str(seed), "200000"], capture_output=True, text=True, timeout=60, check=False
    )

    assert done.stdout == "same\n"
