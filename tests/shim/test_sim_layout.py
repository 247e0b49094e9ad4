"""The Python mirror of the simulated node's state is laid out as the C header is."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

import native
from hami.sandbox.gpu import layout

STRUCTURES = {
    "sim_gpu": layout.Gpu,
    "sim_sample": layout.Sample,
    "sim_row": layout.Row,
    "sim_clock": layout.Clock,
    "sim_point": layout.Point,
    "sim_timeline": layout.Timeline,
    "sim_managed": layout.Managed,
    "sim_process": layout.Process,
    "sim_event": layout.Event,
    "sim_node": layout.Node,
}


def test_mirror_has_the_places_and_sizes_of_the_header(tmp_path: Path) -> None:
    lines = [
        f'printf("{name}.{field[0]} %zu %zu\\n", offsetof(struct {name}, {field[0]}), '
        f"sizeof ((struct {name} *)0)->{field[0]});"
        for name, structure in STRUCTURES.items()
        for field in structure._fields_
    ]
    source = tmp_path / "layout.c"
    source.write_text(
        '#include <stddef.h>\n#include <stdio.h>\n#include "sim_node.h"\n'
        "int main(void)\n{\n" + "\n".join(lines) + "\nreturn 0;\n}\n"
    )
    native.compile_c(tmp_path / "layout", [source], [f"-I{native.ROOT / native.GPU}"])
    told = subprocess.run([tmp_path / "layout"], capture_output=True, text=True, check=True).stdout

    assert told.splitlines() == [
        f"{name}.{field[0]} {place.offset} {place.size}"
        for name, structure in STRUCTURES.items()
        for field in structure._fields_
        for place in [getattr(structure, field[0])]
    ]
    assert ctypes.sizeof(layout.Node) == layout.Node.processes.offset + layout.Node.processes.size
