"""A sandbox's layout: what a cluster file may say, and how a slip in it is answered."""

from __future__ import annotations

from pathlib import Path

import pytest

from hami.errors import ConfigError
from hami.sandbox import spec


def write(directory: Path, text: str) -> Path:
    file = directory / "cluster.yaml"
    file.write_text(text)
    return file


def test_equal_nodes_are_numbered_from_one() -> None:
    layout = spec.uniform(nodes=3, gpus=8, model="H100")

    assert [name for name, _ in layout.names()] == ["node-1", "node-2", "node-3"]
    assert layout.nodes[0].gpus == (spec.GpuGroup(model="H100", count=8),)


def test_one_node_has_a_number_too_and_nodes_may_be_without_gpus() -> None:
    layout = spec.uniform(nodes=1, gpus=0, model="T4")

    assert [(name, group.gpus) for name, group in layout.names()] == [("node-1", ())]


def test_mixed_cluster_is_read_from_a_file(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        """
        nodes:
          - name: old
            count: 2
            gpus: [{model: T4, count: 4}]
            labels: {pool: cheap, example.org/tier: ""}
            annotations: {hami.io/node-dcu-register: "{node}-A,4,1,1,K,0,true:"}
            devices: {enflame.com/gcu: 8}
          - name: fast
            gpus: [{model: H100}, {model: b200, count: 2}]
            cpu: 96
            memory: 1Ti
            split_count: 4
            memory_scaling: 1.5
          - name: cpu-only
        """,
    )

    layout = spec.load(file)

    assert [name for name, _ in layout.names()] == ["old-1", "old-2", "fast", "cpu-only"]
    assert layout.nodes[0].devices == {"enflame.com/gcu": 8}
    fast = layout.nodes[1]
    assert (fast.cpu, fast.memory, fast.split_count, fast.memory_scaling) == (96, "1Ti", 4, 1.5)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        pytest.param("", "null", id="nothing"),
        pytest.param("nodes: []", "1 to 1000 nodes, met 0", id="no nodes"),
        pytest.param("nodes: [{name: n, count: 1001}]", r"1000.*nodes\[0\].count", id="too many"),
        pytest.param(
            "nodes: [{name: a, count: 600}, {name: b, count: 600}]",
            "met 1200",
            id="too many in all",
        ),
        pytest.param("nodes: [{name: n, gpu: []}]", "unknown field `gpu`", id="unknown field"),
        pytest.param("nodes: [{name: Node_1}]", "met 'Node_1'", id="bad name"),
        pytest.param(f"nodes: [{{name: {'n' * 41}}}]", "at most 40", id="long name"),
        pytest.param("nodes: [{name: sandbox}]", "taken", id="name of a log of the sandbox"),
        pytest.param(
            "nodes: [{name: n, count: 2}, {name: n-2}]", "'n-2' 2 times", id="same name twice"
        ),
        pytest.param("nodes: [{name: n, gpus: [{model: t9}]}]", "met 't9'", id="unknown model"),
        pytest.param(
            "nodes: [{name: n, gpus: [{model: t4, count: 9}, {model: a10, count: 8}]}]",
            "at most 16 GPUs, met 17",
            id="too many GPUs of two models",
        ),
        pytest.param("nodes: [{name: n, memory: lots}]", "met 'lots'", id="no quantity"),
        pytest.param("nodes: [{name: n, cpu: 0}]", "at least one CPU", id="no CPU"),
        pytest.param("nodes: [{name: n, labels: {'a b': c}}]", "'a b'", id="bad label"),
        pytest.param("nodes: [{name: n, labels: {a: 'c d'}}]", "'c d'", id="bad label value"),
        pytest.param("nodes: [{name: n, devices: {'a b': 1}}]", "'a b'", id="bad resource"),
        pytest.param(
            "nodes: [{name: n, devices: {a: -1}}]", r"devices\[...\]", id="less than none"
        ),
        pytest.param("nodes: [{name: n", "expected ',' or '}'", id="no YAML"),
        pytest.param("nodes: &a [*a]", r"nodes\[0\]", id="recursive"),
    ],
)
def test_slip_in_a_cluster_file_is_one_line_that_names_it(
    tmp_path: Path, text: str, told: str
) -> None:
    file = write(tmp_path, text)

    with pytest.raises(ConfigError, match=told) as error:
        spec.load(file)

    assert str(error.value).startswith(f"cluster file {file}: ")
    assert "\n" not in str(error.value)


def test_cluster_file_that_is_not_there_or_not_text_is_said_so(tmp_path: Path) -> None:
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe\x00")

    with pytest.raises(ConfigError, match="No such file"):
        spec.load(tmp_path / "absent")
    with pytest.raises(ConfigError, match="utf-8"):
        spec.load(binary)


def test_unknown_model_of_equal_nodes_is_told_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"expected one of t4, .*, met 'geforce'"):
        spec.uniform(nodes=1, gpus=1, model="geforce")
