"""The simulated driver alone: graphs, stream capture and its errors."""

from __future__ import annotations

import pytest

from tests.support import cuda
from tests.support.gpu import Machine

UNSUPPORTED, INVALIDATED, MERGE, UNMATCHED, UNJOINED, ISOLATION, IMPLICIT, CAPTURED, WRONG = range(
    900, 909
)

GRAPH = """
kernel = function(1000)
graph = made("cuGraphCreate", 0)
first = node(graph, kernel)
second = node(graph, kernel, first, blocks=1)
last = node(graph, kernel, first, second)
where = stream()

def took(executable):
    begin = record(where)
    cu("cuGraphLaunch", executable, where)
    return elapsed(begin, record(where))

def size(graph):
    count = c_size_t()
    cu("cuGraphGetNodes", graph, None, by(count))
    return count.value
"""
CAPTURE = (
    GRAPH
    + """
other = stream()
result = c_void_p()
def begin(mode=0, stream=None):
    cu("cuStreamBeginCapture_v2", stream or where, mode)
def end(stream=None):
    return code("cuStreamEndCapture", stream or where, by(result))
def status():
    value = c_int()
    cu("cuStreamIsCapturing", where, by(value))
    return value.value
def fork(mark=None):
    mark = mark or event()
    cu("cuEventRecord", mark, where)
    cu("cuStreamWaitEvent", other, mark, 0)
def join():
    mark = event()
    cu("cuEventRecord", mark, other)
    cu("cuStreamWaitEvent", where, mark, 0)
"""
)


def test_graph_takes_the_time_of_all_its_kernels(machine: Machine) -> None:
    (took,) = cuda.run(
        machine,
        GRAPH + "print(took(made('cuGraphInstantiateWithFlags', graph, 0)))",
    )

    assert float(took) >= 3


@pytest.mark.parametrize(
    "call",
    [
        "made('cuGraphInstantiate', graph, None, None, 0)",
        "made('cuGraphInstantiate_v2', graph, None, None, 0)",
        "made('cuGraphInstantiateWithFlags', graph, 1)",
        "made('cuGraphInstantiateWithParams', graph, (c_uint64 * 4)())",
        "made('cuGraphInstantiateWithParams_ptsz', graph, (c_uint64 * 4)())",
    ],
)
def test_graph_is_instantiated_in_every_way(machine: Machine, call: str) -> None:
    (took,) = cuda.run(machine, GRAPH + f"print(took({call}))")

    assert float(took) >= 3


def test_executable_graph_does_not_follow_its_graph(machine: Machine) -> None:
    script = """
executable = made("cuGraphInstantiateWithFlags", graph, 0)
cu("cuGraphDestroy", graph)
print(took(executable) >= 3)
cu("cuGraphExecDestroy", executable)
"""
    assert cuda.run(machine, GRAPH + script) == ["True"]


def test_executable_graph_is_updated_from_one_of_the_same_shape(machine: Machine) -> None:
    script = """
executable = made("cuGraphInstantiateWithFlags", graph, 0)
slow = function(20000, "slow")
copy = made("cuGraphClone", graph)
node_of = made("cuGraphNodeFindInClone", second, copy)
cu("cuGraphKernelNodeSetParams_v2", node_of, by(Kernel.of(slow)))
outcome = c_int(9)
cu("cuGraphExecUpdate", executable, copy, None, by(outcome))
print(outcome.value, took(executable) >= 22)
cu("cuGraphExecKernelNodeSetParams_v2", executable, second, by(Kernel.of(kernel)))
print(took(executable) < 22)
node(copy, kernel)
info = (c_uint64 * 3)()
print(code("cuGraphExecUpdate_v2", executable, copy, info), info[0])
"""
    assert cuda.run(machine, GRAPH + script) == ["0 True", "True", "910 2"]


def test_nodes_and_edges_are_told(machine: Machine) -> None:
    script = """
def edges(graph):
    count = c_size_t()
    cu("cuGraphGetEdges", graph, None, None, by(count))
    return count.value

roots, count = (c_void_p * 2)(), c_size_t(2)
cu("cuGraphGetRootNodes", graph, roots, by(count))
print(size(graph), edges(graph), count.value, roots[0] == first)
cu("cuGraphRemoveDependencies", graph, by(c_void_p(second)), by(c_void_p(last)), 1)
print(edges(graph))
params = Kernel()
cu("cuGraphKernelNodeGetParams_v2", first, by(params))
print(params.func == kernel, list(params.block))
kind = c_int(9)
cu("cuGraphNodeGetType", first, by(kind))
cu("cuGraphDestroyNode", first)
print(kind.value, size(graph), edges(graph))
cu("cuGraphAddDependencies", graph, (c_void_p * 2)(second, last), (c_void_p * 2)(last, second), 2)
print(code("cuGraphInstantiateWithFlags", by(c_void_p()), graph, 0))
"""
    assert cuda.run(machine, GRAPH + script) == [
        *("3 3 1 True", "2", "True [32, 1, 1]", "0 2 0", "1"),
    ]


def test_graph_moves_bytes_and_calls_the_host(machine: Machine) -> None:
    script = """
class Fill(ctypes.Structure):
    _fields_ = [("dst", c_uint64), ("pitch", c_size_t), ("value", c_uint), ("size", c_uint),
                ("width", c_size_t), ("height", c_size_t)]

address = made("cuMemAlloc_v2", 64)
seen = []

@ctypes.CFUNCTYPE(None, c_void_p)
def call(argument):
    seen.append(argument)

whole = made("cuGraphCreate", 0)
fill = made("cuGraphAddMemsetNode", whole, None, 0, by(Fill(address, 0, 0x61, 1, 64, 1)), context)
child = made("cuGraphAddChildGraphNode", whole, (c_void_p * 1)(fill), 1, graph)
made("cuGraphAddHostNode", whole, (c_void_p * 1)(child), 1,
     (c_void_p * 2)(ctypes.cast(call, c_void_p).value, 7))
executable = made("cuGraphInstantiateWithFlags", whole, 0)
print(took(executable) >= 3, seen)
back = ctypes.create_string_buffer(64)
cu("cuMemcpyDtoH_v2", back, address, 64)
print(back.raw == b"a" * 64)
"""
    assert cuda.run(machine, GRAPH + script) == ["True [7]", "True"]


def test_captured_work_does_not_run_until_its_graph_is_launched(machine: Machine) -> None:
    script = """
address = made("cuMemAlloc_v2", 4)
cu("cuMemsetD8_v2", address, 0, 4)
back = ctypes.create_string_buffer(4)
print(status())
begin()
launch(kernel, where)
fork()
launch(kernel, other)
cu("cuMemsetD8Async", address, 1, 4, other)
join()
launch(kernel, where)
print(status())
print(end(), size(result), status())
cu("cuMemcpyDtoH_v2", back, address, 4)
print(back.raw)
print(took(made("cuGraphInstantiateWithFlags", result, 0)) >= 3)
cu("cuMemcpyDtoH_v2", back, address, 4)
print(back.raw)
"""
    assert cuda.run(machine, CAPTURE + script) == [
        *("0", "1", "0 4 0", str(bytes(4)), "True", str(b"\1" * 4)),
    ]


def test_capture_into_a_graph_of_the_programs(machine: Machine) -> None:
    script = """
cu("cuStreamBeginCaptureToGraph", where, graph, (c_void_p * 1)(last), None, 1, 0)
launch(kernel, where)
print(end(), result.value == graph, size(graph))
print(took(made("cuGraphInstantiateWithFlags", graph, 0)) >= 4)
"""
    assert cuda.run(machine, CAPTURE + script) == ["0 True 4", "True"]


ERRORS = [
    pytest.param("code('cuStreamSynchronize', where)", UNSUPPORTED, id="wait for the stream"),
    pytest.param("code('cuStreamQuery', where)", UNSUPPORTED, id="query the stream"),
    pytest.param("code('cuMemAlloc_v2', by(result), 8)", UNSUPPORTED, id="allocate"),
    pytest.param("code('cuEventQuery', event())", UNSUPPORTED, id="query an event"),
    pytest.param("code('cuStreamWaitEvent', where, outside, 0)", ISOLATION, id="outside work"),
]


@pytest.mark.parametrize(("call", "error"), ERRORS)
def test_what_capture_forbids_invalidates_it(machine: Machine, call: str, error: int) -> None:
    script = f"""
outside = record(other)
begin()
print({call}, status())
print(launch(kernel, where), end(), result.value, status())
"""
    assert cuda.run(machine, CAPTURE + script) == [
        f"{error} 2",
        f"{INVALIDATED} {INVALIDATED} None 0",
    ]


@pytest.mark.parametrize("call", ["cuEventQuery", "cuEventSynchronize"])
@pytest.mark.parametrize(
    ("mode", "thread_mode", "error"),
    [(0, 0, UNSUPPORTED), (0, 2, 0), (0, 1, 0), (1, 0, 0), (2, 0, 0)],
)
def test_event_asked_for_by_another_thread_ends_a_global_capture_alone(
    machine: Machine, call: str, mode: int, thread_mode: int, error: int
) -> None:
    script = f"""
mark = record(other)
cu("cuStreamSynchronize", other)
begin({mode})

def ask():
    cu("cuThreadExchangeStreamCaptureMode", by(c_int({thread_mode})))
    print(code("{call}", mark))

in_thread(ask)
print(end())
"""
    assert cuda.run(machine, CAPTURE + script) == [str(error), str(INVALIDATED if error else 0)]


def test_legacy_stream_would_wait_for_a_captured_blocking_stream(machine: Machine) -> None:
    script = """
blocking = stream(0)
begin(stream=blocking)
print(launch(kernel), end(blocking))
begin(2, where)
print(launch(kernel), end())
print(code("cuStreamBeginCapture_v2", 0, 0))
"""
    assert cuda.run(machine, CAPTURE + script) == [
        f"{IMPLICIT} {INVALIDATED}",
        "0 0",
        str(UNSUPPORTED),
    ]


def test_captures_must_not_meet_and_must_be_joined(machine: Machine) -> None:
    script = """
begin(); fork(); launch(kernel, other)
print(end(other), end())
begin(); fork(); launch(kernel, other)
print(end())
begin(); begin(stream=other)
mark = event()
cu("cuEventRecord", mark, where)
print(code("cuStreamWaitEvent", other, mark, 0), end(other), end())
print(code("cuEventSynchronize", mark))
begin()
in_thread(lambda: print(end()))
print(end())
"""
    assert cuda.run(machine, CAPTURE + script) == [
        f"{UNMATCHED} {INVALIDATED}",
        str(UNJOINED),
        f"{MERGE} {INVALIDATED} 0",
        str(CAPTURED),
        str(WRONG),
        "0",
    ]


def test_graphs_and_captures_are_the_same_under_the_shim(machine: Machine) -> None:
    script = """
begin()
launch(kernel, where)
fork()
launch(kernel, other)
join()
print(end(), size(result), took(made("cuGraphInstantiateWithFlags", result, 0)) >= 2)
begin()
print(code("cuStreamSynchronize", where), end())
"""
    container = machine.container(2**30)

    assert cuda.run(machine, CAPTURE + script, container=container) == [
        "0 2 True",
        f"{UNSUPPORTED} {INVALIDATED}",
    ]
