"""What explain and what-if print, for people in narrow and wide windows and for programs."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import msgspec
import pytest

from hami import cli
from hami.controllers.answers import (
    Explanation,
    Explanations,
    Given,
    Lack,
    Move,
    Near,
    Problem,
    Reason,
    Refusal,
    Replica,
    WhatIf,
)

UUID = "GPU-2cac81b6-af3a-465c-99e4-84056ee909eb"

NEAR = Near(
    node="node-3",
    container="main",
    line=f"node-3: {UUID} lacks 1200 MiB",
    needed=1,
    fitting=0,
    total=8,
    lacks=(Lack(uuid=UUID, reason="CardInsufficientMemory", needed=3000, free=1800, unit="MiB"),),
    would_fit="would fit if pod team-a/x ended",
    pods=("team-a/x",),
)
WAITS = Explanation(
    pod="team-a/train-0",
    uid="u",
    state="unfit",
    message="no available node, 5000 do not fit: …",
    priority=100,
    decided_at="2026-01-02T03:04:05+00:00",
    asked_nodes=5000,
    reasons=(
        Reason(word="CardInsufficientMemory", nodes=3000),
        Reason(word="CardNotHealth", nodes=2000),
    ),
    nearest=(NEAR,),
    notes=("gang team-a/train: 3 of 8 are there",),
)
ODD = Explanation(
    pod="team-a/[bold]", uid="v", state="newer", message="[red]words[/] of \\[a] newer one"
)


class Answers:
    """What the next request gets, and the last one's path and body."""

    def __init__(self) -> None:
        self.status, self.body = 200, b""
        self.path, self.asked = "", b""

    def say(self, answer: msgspec.Struct, status: int = 200) -> None:
        self.status, self.body = status, msgspec.json.encode(answer)


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Iterator[Answers]:
    """A server that answers as it is told, where ``$HAMI_SERVER`` points."""
    made = Answers()

    class Handler(BaseHTTPRequestHandler):
        def handle_any(self) -> None:
            made.path = self.path
            made.asked = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(made.status)
            self.send_header("Content-Length", str(len(made.body)))
            self.end_headers()
            self.wfile.write(made.body)

        do_GET = do_POST = handle_any  # noqa: N815 - names of the library

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setenv("HAMI_SERVER", f"http://127.0.0.1:{server.server_port}")
        yield made
        server.shutdown()
        thread.join()


@pytest.fixture
def run(
    answers: Answers, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str, str]]:
    def command(*arguments: str, columns: int = 80) -> tuple[int, str, str]:
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.setattr(sys, "argv", ["hami", *arguments])
        with pytest.raises(SystemExit) as exited:
            cli.main()
        output = capsys.readouterr()
        return int(exited.value.code or 0), output.out, output.err

    return command


Run = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize("columns", [80, 120])
def test_all_that_wait_are_a_table_that_fits_the_window(
    run: Run, answers: Answers, columns: int
) -> None:
    answers.say(Explanations(pods=(WAITS, ODD), left_off=3))

    code, out, err = run("explain", columns=columns)

    assert (code, err, answers.path) == (0, "", "/v1/explain")
    assert max(map(len, out.splitlines())) <= columns
    told = " ".join(out.split())
    for part in ("team-a/train-0", "100", "fits nowhere", "GPU-2cac81b6", "1200 MiB", "3000 x"):
        assert part in told
    assert UUID not in out, "cut, for tables"
    assert "[bold]" in out
    assert "[red]words[/]" in told
    assert "and 3 more pods" in out


def test_nobody_waits(run: Run, answers: Answers) -> None:
    answers.say(Explanations(pods=()))

    assert run("explain")[:2] == (0, "no pod waits for devices\n")


def test_one_pod_is_explained_nearest_miss_first(run: Run, answers: Answers) -> None:
    answers.say(WAITS)

    code, out, _ = run("explain", "pod", "train-0", "-n", "team-a")

    assert (code, answers.path) == (0, "/v1/explain/team-a/train-0")
    assert out.splitlines() == [
        "team-a/train-0: fits nowhere",
        f"  node-3: {UUID} lacks 1200 MiB; would fit if pod team-a/x ended",
        "of 5000 nodes asked about: 3000 x CardInsufficientMemory, 2000 x CardNotHealth",
        "gang team-a/train: 3 of 8 are there",
        "decided at 2026-01-02T03:04:05+00:00, priority 100",
    ]


def test_name_cannot_bend_the_path(run: Run, answers: Answers) -> None:
    answers.say(WAITS)

    run("explain", "pod", "../x?y")

    assert answers.path == "/v1/explain/default/..%2Fx%3Fy"


def test_pod_that_does_not_wait_is_no_error(run: Run, answers: Answers) -> None:
    given = Given(container="main", uuid=UUID, vendor="NVIDIA", memory=3000, cores=30)
    answers.say(
        Problem(error="pod a/b: is bound", state="bound", node="n", devices=(given,)), status=404
    )

    code, out, err = run("explain", "pod", "b", "-n", "a")

    assert (code, err) == (0, "")
    assert "pod a/b: is bound" in out
    assert f"main       {UUID}  3000   30 %" in out


def test_unknown_pod_is_an_error(run: Run, answers: Answers) -> None:
    answers.say(Problem(error="pod a/b: there is no such pod", state="unknown"), status=404)

    assert run("explain", "pod", "b", "-n", "a") == (1, "", "hami: pod a/b: there is no such pod\n")


@pytest.mark.parametrize(
    "arguments", [["explain", "-o", "json", "pod", "x"], ["explain", "pod", "x", "-o", "json"]]
)
def test_json_is_the_servers(run: Run, answers: Answers, arguments: list[str]) -> None:
    answers.say(WAITS)

    code, out, _ = run(*arguments)

    assert code == 0
    assert msgspec.json.decode(out, type=Explanation) == WAITS


MOVE = Move(node="node-3", pods=("a/x", "b/y"))


def replica(number: int, node: str = "node-1") -> Replica:
    given = Given(container="main", uuid=f"GPU-{number}", vendor="NVIDIA", memory=3000, cores=0)
    return Replica(node=node, devices=(given,))


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        pytest.param(
            WhatIf(pod="a/p", asked=1, placed=(replica(0),), more=7),
            ["node-1", "GPU-0", "a/p: it would fit, and 7 more"],
            id="one",
        ),
        pytest.param(
            WhatIf(
                pod="a/p",
                asked=30,
                placed=tuple(map(replica, range(30))),
                more=9,
                more_is_bound=True,
            ),
            ["and 10 more copies: 10 on node-1", "all 30 would fit, and at least 9 more"],
            id="many",
        ),
        pytest.param(
            WhatIf(
                pod="a/p",
                asked=2,
                placed=(replica(0),),
                refusal=Refusal(message="none", reasons=WAITS.reasons, nearest=(NEAR,), move=MOVE),
                notes=("a note",),
            ),
            [
                "a/p: 1 of 2 would fit; the next one nowhere: 3000 x CardInsufficientMemory",
                "lacks 1200 MiB; would fit if pod team-a/x ended",
                "least to move for one more, on node-3: a/x, b/y",
                "a note",
            ],
            id="not all",
        ),
        pytest.param(
            WhatIf(pod="a/p", asked=2, placed=(), refusal=Refusal(message="there are no nodes")),
            [
                "0 of 2 would fit; the next one nowhere: there are no nodes",
                "no pod that ended would make room",
            ],
            id="none",
        ),
    ],
)
def test_what_would_be_is_told(
    run: Run, answers: Answers, tmp_path: Path, answer: WhatIf, told: list[str]
) -> None:
    answers.say(answer)
    file = tmp_path / "pod.yaml"
    file.write_text("kind: Pod\nspec: {}\n")

    code, out, _ = run("what-if", "-f", str(file), "--replicas", "2")

    assert code == 0
    assert answers.path == "/v1/what-if"
    assert json.loads(answers.asked) == {"pod": {"kind": "Pod", "spec": {}}, "replicas": 2}
    for part in told:
        assert part in out


def test_manifest_may_come_from_stdin(
    run: Run, answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers.say(WhatIf(pod="a/p", asked=1, placed=(replica(0),)))
    monkeypatch.setattr(sys, "stdin", io.StringIO("kind: Pod"))

    assert run("what-if", "-f", "-")[0] == 0
    assert json.loads(answers.asked)["pod"] == {"kind": "Pod"}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        pytest.param("", "met 0", id="nothing"),
        pytest.param("a: 1\n---\nb: 2", "met 2", id="two"),
        pytest.param("- a", "one object", id="a list"),
        pytest.param("a: &a [*a]", "manifest", id="recursive"),
        pytest.param("{", "manifest", id="no YAML"),
        pytest.param("a: \xff", "manifest", id="no utf-8"),
        pytest.param("# " + "x" * 2**21, "at most", id="large"),
        pytest.param(None, "No such file", id="no file"),
    ],
)
def test_manifest_that_is_none_is_a_wrong_use(
    run: Run, tmp_path: Path, text: Any, told: str
) -> None:
    file = tmp_path / "pod.yaml"
    if text is not None:
        file.write_bytes(text.encode("latin-1"))

    code, _, err = run("what-if", "-f", str(file))

    assert code == 2
    assert told in err
    assert len(err.splitlines()) == 1
