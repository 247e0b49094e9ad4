"""The list of hooks says the same as NVIDIA's own headers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import pytest

import native
from tests.shim.not_hooked import MEASURED, NOT_HOOKED
from tests.support import cuda_headers
from tests.support.cuda_headers import Form

SOURCES = native.ROOT / native.SHIM
ROW = re.compile(r'^HAMI_(HOOK|CALL)\((\w+), (\w+),(?: "(\w*)", (\d+),)? \((.*)\)\)$', re.M)
PER_THREAD = ("_ptsz", "_ptds")
ONLY_EXPORTED = {"cuGetProcAddress_v2_ptsz"}
"""What headers know as an inline function and drivers export all the same."""
ODD_NAMES = {
    Form("cuGraphInstantiate", 12000): "cuGraphInstantiateWithFlags",
}
"""What is asked for by another name than its own."""

ALLOCATES_FREES_OR_SUBMITS = re.compile(
    r"cu(Mem\w*Alloc|MemFree|MemCreate|MemRelease|MemMap|MemUnmap|MemRetain|MemImport|MemPool"
    r"|MemHostRegister|MemHostUnregister|MemGetInfo|DeviceTotalMem|DeviceGetGraphMem"
    r"|DeviceGraphMemTrim|Launch|GraphLaunch|GraphInstantiate|GraphExecDestroy|GraphExecUpdate"
    r"|GraphAddMem|Array\w*Create|ArrayDestroy|MipmappedArray\w*(Create|Destroy)"
    r"|MipmappedArrayCreate|Multicast|Import|ExternalMemory|DestroyExternal|IpcOpen|IpcClose"
    r"|Ctx\w*Create|CtxDestroy|CtxFromGreenCtx|GreenCtx\w*(Create|Destroy)|DevicePrimaryCtxRe"
    r"|ModuleLoad|ModuleUnload|LibraryLoad|LibraryUnload|StreamBeginCapture|StreamEndCapture)\w*"
)


class Row(NamedTuple):
    hooked: bool
    library: str
    name: str
    symbol: str
    version: int
    parameters: str

    @property
    def form(self) -> Form:
        return Form(self.symbol, self.version, per_thread=self.name.endswith(PER_THREAD))


def rows() -> list[Row]:
    text = (SOURCES / "hooks.def").read_text()
    found = [
        Row(m[1] == "HOOK", m[2], m[3], m[4] or "", int(m[5] or 0), m[6])
        for m in ROW.finditer(text)
    ]
    assert len(found) == len(re.findall(r"^HAMI_(?:HOOK|CALL)\(\w+, ", text, re.M))
    return found


CUDA = [row for row in rows() if row.hooked and row.library == "CUDA"]
NVML = [row for row in rows() if row.library == "NVML"]
FORMS = cuda_headers.forms()


def ours(found: list[Row], directory: Path) -> dict[str, cuda_headers.Passed]:
    return cuda_headers.how_passed(
        {row.name: row.parameters for row in found},
        directory,
        prelude='#include "driver.h"',
        includes=[SOURCES],
    )


def test_headers_are_understood() -> None:
    assert len(FORMS) > 600
    assert Form("cuMemAlloc", 2000) in FORMS
    assert Form("cuLaunchKernel", 7000, per_thread=True) in FORMS
    assert "nvmlDeviceGetMemoryInfo_v2" in cuda_headers.nvml_functions()


@pytest.mark.parametrize("row", CUDA, ids=lambda row: row.name)
def test_row_is_a_form_that_can_be_asked_for(row: Row) -> None:
    if row.name in ONLY_EXPORTED:
        return
    assert row.form in FORMS, [form for form in FORMS if form.symbol == row.symbol]


@pytest.mark.parametrize("row", CUDA, ids=lambda row: row.name)
def test_name_of_a_row_is_that_of_its_form(row: Row) -> None:
    """The n-th form of a function is exported as NAME_vN, the first one as NAME."""
    if row.form in ODD_NAMES:
        assert row.name == ODD_NAMES[row.form]
        return
    exported = next((row.name[: -len(s)] for s in PER_THREAD if row.name.endswith(s)), row.name)
    match = re.fullmatch(r"(\w+?)(?:_v(\d))?", exported)
    assert match is not None
    assert match[1] == row.symbol
    if row.name in ONLY_EXPORTED:
        return
    legacy = cuda_headers.versions(row.symbol, FORMS)
    if row.form.per_thread:
        forms = sorted(f.version for f in FORMS if f.symbol == row.symbol and f.per_thread)
        place = len(legacy) - len(forms) + forms.index(row.version)
    else:
        place = legacy.index(row.version)
    assert int(match[2] or 1) == place + 1, legacy


def test_arguments_are_passed_as_the_driver_expects_them(tmp_path: Path) -> None:
    known = [row for row in CUDA if row.form in FORMS]
    theirs = cuda_headers.how_passed(
        {row.name: FORMS[row.form] for row in known},
        tmp_path,
        prelude="#define __CUDA_API_VERSION_INTERNAL\n#include <cuda.h>\n#include <cudaTypedefs.h>",
        includes=[cuda_headers.include("cudaTypedefs.h")],
    )

    assert ours(known, tmp_path) == theirs


def test_nvml_arguments_are_passed_as_the_driver_expects_them(tmp_path: Path) -> None:
    functions = cuda_headers.nvml_functions()
    theirs = cuda_headers.how_passed(
        {row.name: functions[row.name] for row in NVML},
        tmp_path,
        prelude="#define NVML_NO_UNVERSIONED_FUNC_DEFS\n#include <nvml.h>",
        includes=[cuda_headers.include("nvml.h")],
    )

    assert ours(NVML, tmp_path) == theirs


def test_every_form_of_a_hooked_function_is_hooked() -> None:
    hooked = {row.form for row in CUDA}
    symbols = {form.symbol for form in hooked}
    missing = {
        f for f in FORMS if f.symbol in symbols and f not in hooked and f.symbol not in NOT_HOOKED
    }

    assert sorted(missing) == []


def test_whatever_takes_memory_or_submits_work_is_hooked_or_has_a_reason_not_to_be() -> None:
    hooked = {row.symbol for row in CUDA}
    matters = {form.symbol for form in FORMS if ALLOCATES_FREES_OR_SUBMITS.fullmatch(form.symbol)}

    assert sorted(matters - hooked - NOT_HOOKED.keys() - MEASURED) == []
    assert sorted((NOT_HOOKED.keys() | MEASURED) & hooked) == [], "hooked, so no reason is needed"
    assert sorted(NOT_HOOKED.keys() - {form.symbol for form in FORMS}) == [], "no such function"
