"""What was to be handed over to a script, and did not reach it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from harness.capture.replay import Replay
from harness.spec import AnyRun, HandOver, ScriptSpec
from harness.trace import open_trace

START, WEIGHTS = "inputs/", ("params/", "buffers/")
DRAWN = ("mask/", "constant")  # which are no inputs of a step
SHOWN = 3  # names in a line


def unreached(runs: Sequence[AnyRun]) -> list[str]:
    """Lines on what of each run, which has ended, stayed the script's own without being meant to.

    The reference is the last of the runs.
    """
    leader = runs[-1].label
    scripts = [run for run in runs[:-1] if isinstance(run, ScriptSpec)]
    return [
        line
        for run in scripts
        for hand in run.replay
        if hand.trace
        for line in _lines(run, hand, leader)
    ]


def _lines(run: ScriptSpec, hand: HandOver, leader: str) -> Iterator[str]:
    trace = open_trace(run.trace)
    if 1 not in trace.steps:
        return
    replay = Replay(run)
    there = {e.name.removeprefix(START) for e in trace.entry(1).tensors if e.name.startswith(START)}
    own = {
        "weights": [name for name in there if name.startswith(WEIGHTS)],
        "inputs": [name for name in there if not name.startswith((*WEIGHTS, *DRAWN))],
    }
    for what in hand.what:
        if what == "masks":
            continue
        if what == "weights" and not trace.header.framework:
            yield (
                f"--hand-over weights: {run.label} records no model of a framework, into which "
                "they could be put: it starts from its own"
            )
            continue
        given = {n for n in there if replay.input(1, n) is not None}
        found = replay.weights() if what == "weights" else given
        missed = sorted(name for name in own[what] if name not in found)
        if missed:
            count = f"{len(missed)} of {len(own[what])} tensors of {run.label}"
            shown = ", ".join(missed[:SHOWN]) + (", .." if len(missed) > SHOWN else "")
            yield (
                f"--hand-over {what}: {count} have no partner in {leader} and stay the script's "
                f"own: {shown}"
            )
