"""Checks of memory: addresses of hooks, truth of what is charged, limits to the byte, agreement."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator

from hami.nodeagent import region
from tests.gpu.card import MIB, Card, Finding, hooks, said

LIMITS = (3000 * MIB, 1_234_567_890)
_LATEST = 13000
_SMI_FIELD = "memory.total"


def addresses(card: Card) -> Iterator[Finding]:
    """Whatever a program asks for, it gets the hook of what the driver would have given."""
    questions = [
        (symbol, asked, flags)
        for symbol, version in hooks()
        for asked in sorted({version, _LATEST})
        for flags in (0, 1, 2)
    ]
    file = card.directory / "questions.json"
    file.write_text(json.dumps(questions))
    plain = card.worker("addresses", file)
    shim = card.worker("addresses", file, place=card.region(None))
    codes = [(q, p["code"], s["code"]) for q, p, s in zip(questions, plain, shim, strict=True)]
    differing = [entry for entry in codes if entry[1] != entry[2]]
    yield Finding(
        check="addresses", what="answers whose result code is another", measured=len(differing),
        expected=0, ok=not differing, note=str(differing[:3]) if differing else "",
    )  # fmt: skip
    given = [
        (question, p, s)
        for question, p, s in zip(questions, plain, shim, strict=True)
        if p["code"] == 0 and p["library"]
    ]
    bypassing = [question for question, _, s in given if s["library"] != "libvgpu.so"]
    yield Finding(
        check="addresses", what="functions that bypass the shim", measured=len(bypassing),
        expected=0, ok=not bypassing, note=str(bypassing[:3]) if bypassing else "",
    )  # fmt: skip
    named = [(question, p, s) for question, p, s in given if p["name"]]
    wrong = [q for q, p, s in named if s["name"] and s["name"] != p["name"]]
    yield Finding(
        check="addresses", what="hooks of another version or stream", measured=len(wrong),
        expected=0, ok=not wrong,
        note=str(wrong[:3]) if wrong else f"{len(named)} of {len(given)} have a name",
    )  # fmt: skip


def truth(card: Card) -> Iterator[Finding]:
    """What is charged, beside what the driver says: the difference is what a governor measures."""
    place = card.region(None)
    process = card.start_worker("steps", place=place)
    assert process.stdin is not None
    earlier = (0, 0)
    while line := process.stdout.readline() if process.stdout else "":
        step = json.loads(line)
        if "error" in step:
            yield Finding(check="truth", what=step["error"], measured=step["code"], ok=False)
            break
        use = region.read_usage(place)
        now = (use.used_bytes(0), card.measured_bytes(process.pid))
        yield Finding(
            check="truth", what=step["step"],
            measured={"charged": now[0] - earlier[0], "driver": now[1] - earlier[1],
                      "untracked": now[1] - now[0]},
            ok=None if step["result"] == 0 else False,
            note="" if step["result"] == 0 else f"CUresult {step['result']}",
        )  # fmt: skip
        earlier = now
        process.stdin.write("\n")
        process.stdin.flush()
    card.stop()


def limits(card: Card) -> Iterator[Finding]:
    """The last byte is granted, one more is out of memory, and everybody says the same total."""
    for limit in LIMITS:
        place = card.region(limit)
        (filled,) = card.worker("fill", place=place)
        yield Finding(
            check="limits", what=f"{limit} bytes, then one more",
            measured=[filled.get("bytes"), filled.get("filled"), filled.get("one_more")],
            expected=[limit, 0, 2], ok=[filled.get("bytes"), filled.get("filled"),
                                        filled.get("one_more")] == [limit, 0, 2],
        )  # fmt: skip
        (info,) = card.worker("info", place=card.region(limit))
        totals = {info["device_total"], info["total"], info["nvml_total"]}
        yield Finding(
            check="limits", what="totals of CUDA and of NVML", measured=sorted(totals),
            expected=[limit], ok=totals == {limit},
        )  # fmt: skip
    yield _smi(card)


def _smi(card: Card) -> Finding:
    """What nvidia-smi shows inside."""
    found = Finding(check="limits", what="nvidia-smi's total, MiB", measured=None)
    program = shutil.which("nvidia-smi")
    if program is None or card.simulated:
        note = "needs a real GPU: nvidia-smi comes with its driver"
        return Finding(check=found.check, what=found.what, measured=None, note=note)
    done = subprocess.run(
        [program, f"--query-gpu={_SMI_FIELD}", "--format=csv,noheader,nounits"],
        env=card.environment(card.region(LIMITS[0])), capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    totals = [int(word) for word in re.findall(r"\d+", done.stdout)]
    return Finding(
        check=found.check, what=found.what, measured=totals, expected=LIMITS[0] // MIB,
        ok=LIMITS[0] // MIB in totals,
    )  # fmt: skip


def soak(card: Card, *, seconds: float) -> Iterator[Finding]:
    """Processes come, allocate and are killed; in the end nothing is charged that nobody holds."""
    place = card.region(3000 * MIB)
    began, killed = time.monotonic(), 0
    while time.monotonic() - began < seconds:
        batch = [card.start_worker("hold", 100 + 50 * number, place=place) for number in range(4)]
        for number, process in enumerate(batch):
            if number % 2 == 0:
                said(process)  # it holds; the others are killed wherever they are
            process.send_signal(signal.SIGKILL)
            killed += 1
        card.stop()
    (filled,) = card.worker("fill", place=place)
    yield Finding(
        check="soak", what=f"{killed} killed in {seconds:.0f} s; then all of the limit is free",
        measured=[filled.get("bytes"), filled.get("filled")], expected=[3000 * MIB, 0],
        ok=[filled.get("bytes"), filled.get("filled")] == [3000 * MIB, 0],
    )  # fmt: skip
