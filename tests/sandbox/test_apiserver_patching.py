"""JSON patch, merge patch and strategic merge patch; the last against kubectl's own."""

from __future__ import annotations

import copy
import json
import subprocess
from pathlib import Path
from typing import Any

import jsonpatch
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from hami.sandbox.apiserver.patching import (
    PatchError,
    apply_json_patch,
    apply_merge_patch,
    equal,
)
from hami.sandbox.apiserver.strategic import apply_strategic_patch
from tests.support.kubectl import KUBECTL

SCALARS = st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from(["", "a", "b~/"])
DOCUMENTS = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["a", "b", "c~d/e", "0"]), inner, max_size=3)
    ),
    max_leaves=8,
)
OBJECTS = st.dictionaries(st.sampled_from("abc"), DOCUMENTS, max_size=3)


@given(source=OBJECTS, target=OBJECTS)
def test_json_patch_does_what_another_implementation_does(source: Any, target: Any) -> None:
    patch = jsonpatch.make_patch(source, target)
    operations = json.loads(patch.to_string())

    assert apply_json_patch(copy.deepcopy(source), operations) == patch.apply(source)


@pytest.mark.parametrize(
    ("document", "operations", "expected"),
    [
        ({"a": [1, 2]}, [{"op": "add", "path": "/a/-", "value": 3}], {"a": [1, 2, 3]}),
        ({"a": [1, 2]}, [{"op": "add", "path": "/a/0", "value": 0}], {"a": [0, 1, 2]}),
        ({"a/b~": 1}, [{"op": "remove", "path": "/a~1b~0"}], {}),
        ({"a": 1}, [{"op": "move", "from": "/a", "path": "/b"}], {"b": 1}),
        ({"a": {}}, [{"op": "copy", "from": "/a", "path": "/a/b"}], {"a": {"b": {}}}),
        ({"a": 1}, [{"op": "replace", "path": "", "value": {"b": 2}}], {"b": 2}),
        ({"a": 1}, [{"op": "test", "path": "/none", "value": None}], {"a": 1}),
    ],
)
def test_json_patch_operations(document: Any, operations: Any, expected: Any) -> None:
    assert apply_json_patch(document, operations) == expected


@pytest.mark.parametrize(
    "operations",
    [
        {},
        [7],
        [{"op": "add", "path": "/a"}],
        [{"op": "add", "path": "a", "value": 1}],
        [{"op": "add", "path": "/x/y", "value": 1}],
        [{"op": "add", "path": "/list/9", "value": 1}],
        [{"op": "add", "path": "/list/01", "value": 1}],
        [{"op": "add", "path": "/text/0", "value": 1}],
        [{"op": "remove", "path": "/x"}],
        [{"op": "remove", "path": "/list/-"}],
        [{"op": "remove", "path": ""}],
        [{"op": "replace", "path": "/x", "value": 1}],
        [{"op": "move", "from": "/obj", "path": "/obj/inner"}],
        [{"op": "copy", "path": "/x"}],
        [{"op": "test", "path": "/truth", "value": 1}],
        [{"op": "explode", "path": "/text"}],
        [{"op": "test", "path": "/text", "value": "text"}] * 10_001,
    ],
)
def test_json_patch_that_does_not_fit_is_an_error(operations: Any) -> None:
    document = {"list": [1], "text": "text", "truth": True, "obj": {}}

    with pytest.raises(PatchError):
        apply_json_patch(document, operations)


@given(document=DOCUMENTS, patch=DOCUMENTS)
def test_merge_patch_does_what_rfc_7386_says(document: Any, patch: Any) -> None:
    def merge(target: Any, change: Any) -> Any:
        if not isinstance(change, dict):
            return change
        target = dict(target) if isinstance(target, dict) else {}
        for name in change:
            if change[name] is None:
                target.pop(name, None)
            else:
                target[name] = merge(target.get(name), change[name])
        return target

    merged = apply_merge_patch(copy.deepcopy(document), patch)

    assert equal(merged, merge(document, patch))


@given(document=DOCUMENTS, patch=DOCUMENTS)
def test_merge_patch_applied_twice_changes_nothing_more(document: Any, patch: Any) -> None:
    once = apply_merge_patch(document, patch)

    assert equal(apply_merge_patch(once, patch), once)


POD = """
apiVersion: v1
kind: Pod
metadata:
  name: web
  namespace: default
  labels: {app: web, tier: front}
  finalizers: [example.com/a, example.com/b]
  ownerReferences:
  - {apiVersion: v1, kind: Job, name: one, uid: u1}
spec:
  nodeSelector: {disk: ssd, zone: a}
  tolerations: [{key: a}, {key: b}]
  volumes:
  - {name: data, emptyDir: {}}
  - {name: conf, configMap: {name: c}}
  containers:
  - name: main
    image: main:1
    args: [x, y]
    env: [{name: A, value: "1"}, {name: B, value: "2"}, {name: C, value: "3"}]
    ports: [{containerPort: 80, name: http}, {containerPort: 90}]
    resources: {limits: {cpu: "1", memory: 1Gi}}
    volumeMounts: [{name: data, mountPath: /data}]
  - name: side
    image: side:1
  - name: third
    image: third:1
status:
  phase: Running
  conditions:
  - {type: Ready, status: "True"}
  - {type: PodScheduled, status: "True"}
"""
PATCHES = {
    "a label is changed, one added, one removed": """
metadata: {labels: {app: x, new: y, tier: null}}""",
    "containers merge by name": "spec: {containers: [{name: side, image: side:2}]}",
    "a new container goes first": "spec: {containers: [{name: new, image: new:1}]}",
    "variables merge by name": """
spec: {containers: [{name: main, env: [{name: B, value: x}, {name: D, value: "4"}]}]}""",
    "an order is set": """
spec:
  $setElementOrder/containers: [{name: third}, {name: main}]
  containers:
  - {name: third, image: third:2}
  - name: main
    $setElementOrder/env: [{name: C}, {name: N}, {name: A}]
    env: [{name: N, value: n}]""",
    "an order is set and nothing else": """
spec: {$setElementOrder/containers: [{name: third}, {name: side}, {name: main}]}""",
    "a container is deleted": "spec: {containers: [{$patch: delete, name: side}]}",
    "a container is deleted and one is changed": """
spec: {containers: [{$patch: delete, name: main}, {name: third, image: third:9}]}""",
    "the containers are replaced": """
spec: {containers: [{$patch: replace}, {name: only, image: only:1}]}""",
    "a container is replaced": """
spec: {containers: [{name: main, image: main:2, $patch: replace}]}""",
    "a map is replaced": "spec: {nodeSelector: {$patch: replace, zone: b}}",
    "a map is emptied": "spec: {nodeSelector: {$patch: delete}}",
    "a map keeps some keys": """
spec: {volumes: [{name: data, $retainKeys: [name, hostPath], hostPath: {path: /x}}]}""",
    "volumes merge by name": """
spec: {volumes: [{name: conf, configMap: {name: d}}, {name: new, emptyDir: {}}]}""",
    "tolerations are replaced as a whole": "spec: {tolerations: [{key: c}]}",
    "arguments are replaced as a whole": "spec: {containers: [{name: main, args: [z]}]}",
    "limits are removed": "spec: {containers: [{name: main, resources: {limits: {cpu: null}}}]}",
    "ports merge by number": """
spec: {containers: [{name: main, ports: [{containerPort: 90, name: q}, {containerPort: 70}]}]}""",
    "mounts merge by path": """
spec: {containers: [{name: main, volumeMounts: [{mountPath: /data, readOnly: true}]}]}""",
    "conditions merge by type": """
status: {conditions: [{type: Ready, status: "False", reason: why}, {type: New, status: "True"}]}""",
    "conditions come in an order": """
status:
  $setElementOrder/conditions: [{type: PodScheduled}, {type: Ready}]
  conditions: [{type: Ready, status: "False"}]""",
    "finalizers are a set": "metadata: {finalizers: [example.com/c, example.com/a]}",
    "a finalizer is removed": """
metadata: {$deleteFromPrimitiveList/finalizers: [example.com/a]}""",
    "finalizers are removed and ordered": """
metadata:
  $deleteFromPrimitiveList/finalizers: [example.com/b]
  $setElementOrder/finalizers: [example.com/z, example.com/a]
  finalizers: [example.com/z]""",
    "owners merge by uid": """
metadata:
  ownerReferences:
  - {uid: u2, apiVersion: v1, kind: Job, name: two}
  - {uid: u1, controller: true}""",
    "a list is removed": "spec: {containers: [{name: main, env: null}]}",
    "a new list comes without its nulls": """
spec: {initContainers: [{name: init, image: i, env: [{name: A, value: null}]}]}""",
}


@pytest.mark.parametrize("name", PATCHES)
def test_strategic_merge_patch_does_what_kubectl_does(name: str, tmp_path: Path) -> None:
    patch = yaml.safe_load(PATCHES[name])
    manifest = tmp_path / "pod.json"
    manifest.write_text(json.dumps(yaml.safe_load(POD)))

    ours = apply_strategic_patch(yaml.safe_load(POD), patch, plural="pods")

    command = [KUBECTL, "patch", "--local", "-f", str(manifest), "--type", "strategic"]
    done = subprocess.run(
        [*command, "-p", json.dumps(patch), "-o", "json"],
        check=True,
        capture_output=True,
        timeout=20,
    )
    assert ours == json.loads(done.stdout)


@pytest.mark.parametrize(
    "patch",
    [
        [],
        {"spec": {"containers": [{"image": "no-name"}]}},
        {"spec": {"containers": [{"$patch": "delete"}]}},
        {"spec": {"containers": [{"$patch": "sideways", "name": "main"}]}},
        {"spec": {"$patch": "sideways"}},
        {"spec": {"containers": ["text"]}},
        {"spec": {"$setElementOrder/containers": 7}},
        {"spec": {"$setElementOrder/containers": [], "containers": [{"name": "main"}]}},
        {"spec": {"nodeSelector": {"$retainKeys": ["a"], "b": "c"}}},
    ],
)
def test_strategic_merge_patch_that_does_not_fit_is_an_error(patch: Any) -> None:
    with pytest.raises(PatchError):
        apply_strategic_patch(yaml.safe_load(POD), patch, plural="pods")


def test_strategic_merge_patch_of_nodes_merges_addresses_and_conditions() -> None:
    node = {
        "metadata": {"name": "n"},
        "spec": {"taints": [{"key": "a"}]},
        "status": {"conditions": [{"type": "Ready", "status": "True"}]},
    }
    patch = {
        "spec": {"taints": [{"key": "b"}]},
        "status": {"conditions": [{"type": "Ready", "status": "False"}]},
    }

    patched = apply_strategic_patch(node, patch, plural="nodes")

    assert patched["spec"]["taints"] == [{"key": "b"}]
    assert patched["status"]["conditions"] == [{"type": "Ready", "status": "False"}]
