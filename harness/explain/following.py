"""What following shows: the stages that differ though each was given the other side's inputs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from harness.compare.diff import Difference
from harness.explain.evidence import Evidence, Finding, Following, Label, Pair, gap_of
from harness.explain.precisions import SAME

NARROWER = 2.0**-7  # a relative difference that no format of 8 bits and more explains
RATE, STATISTICS = "update/learning_rate", "buffers/"
MOST_STATISTICS = 6  # running statistics whose own causes are looked for
FAINT = 1e-5  # a relative difference that float32 hardly shows
# What belongs together: a mistake of the forward pass shows in its derivatives, one of a slot in
# the weights.
PARTS = (
    ("inputs/",),
    ("forward/", "backward/", "grads/", "state/", "log/"),
    ("update/",),
    ("optimizer/", "params/"),
    ("buffers/",),
)
LESS_PRECISE = 128.0  # eps; a format with fewer bits than float32's is thousands of eps away


class _Hit(NamedTuple):
    place: Difference
    shown: Following
    order: tuple[int, int]


def follow(evidence: Evidence) -> Finding | None:
    """Hits in float64 are bugs, those in float32 alone are of precision; None without any."""
    wide = [hit for hit in _hits(evidence.wide) if not _scales(hit, evidence.narrow)]
    narrow = [hit for hit in _hits(evidence.narrow) if not _scales(hit, evidence.wide)]
    if evidence.wide:
        narrow = [hit for hit in narrow if gap_of(hit.place).needed >= LESS_PRECISE]
    if wide:
        return _hit("bug", wide, evidence)
    if not narrow:
        return None
    if narrow[0].place.nonfinite_mismatches:
        return _hit("bug", narrow, evidence)  # no narrower format: a formula that overflows
    if evidence.wide:
        return _hit("precision", narrow, evidence)
    place = narrow[0].place
    large = gap_of(place).rel_l2 > NARROWER or place.tensor.startswith("inputs/")
    return _hit("bug" if large else "undecided", narrow, evidence)


def _hits(runs: Sequence[Following]) -> list[_Hit]:
    """Every stage that differs by more than its own rounding, in the order of the run."""
    hits = []
    for run in runs:
        orders: dict[int, dict[str, int]] = {}
        pair = Pair(run.found, run.found.labels) if run.found.divergences else None
        for place in run.found.divergences:
            if pair and place.nonfinite_mismatches and pair.overflown(place.step, place.tensor):
                continue
            if pair and place.step not in orders:
                names = pair.names(place.step)
                orders[place.step] = {name: i for i, name in enumerate(names)}
            hits.append(_Hit(place, run, (place.step, orders[place.step][place.tensor])))
    return sorted(hits, key=lambda hit: hit.order)


def _scales(hit: _Hit, others: Sequence[Following]) -> bool:
    """Whether the other precision shows the same distance at that tensor, in its own epsilons."""
    needed = gap_of(hit.place).needed
    far = [
        gap_of(place).needed
        for run in others
        for place in run.found.divergences
        if place.tensor == hit.place.tensor
    ]
    return any(one <= needed * SAME and needed <= one * SAME for one in far if math.isfinite(one))


def _hit(label: Label, hits: list[_Hit], evidence: Evidence) -> Finding:
    first = _first(hits)
    places = list({hit.place.tensor: hit.place for hit in reversed(hits)}.values())[::-1]
    steps = sorted({hit.place.step for hit in hits if hit.place.tensor == first.place.tensor})
    place = first.place
    apart = f"{place.rel_l2_eps:.3g} eps" if place.rel_l2_eps is not None else "not to be measured"
    proof = [
        f"given the same inputs, stage by stage, {{other}} {place.tensor} of step {place.step}: "
        f"{apart} apart in {place.dtype} ({_times(steps)}), where rounding of one stage stays "
        f"under {place.factor or 0:g}"
    ]
    if label == "bug" and place.dtype == "float64":
        proof.append(_ratio(place, evidence.narrow))
    elif label == "precision":
        proof.append(
            "in float64 every stage agrees: the programs compute the same, and one of them "
            "computes this in less than float32"
        )
    others = tuple(_others(hits, place))
    return Finding(label, place, first.shown, tuple(proof), tuple(places), others)


def _others(hits: Sequence[_Hit], place: Difference) -> Iterator[tuple[Difference, Following]]:
    """The first hit of each other part of the step, and some of the running statistics.

    Those of one layer are no consequence of another's.
    """
    known: set[str | int] = {
        part_of(place.tensor),
        *([part_of("params/")] * place.tensor.startswith(RATE)),
    }
    buffers = 0
    for hit in hits:
        tensor = hit.place.tensor
        part = tensor if tensor.startswith(STATISTICS) else part_of(tensor)
        if part in known or tensor == place.tensor:
            continue
        known.add(part)
        buffers += tensor.startswith(STATISTICS)
        if buffers <= MOST_STATISTICS or not tensor.startswith(STATISTICS):
            yield hit.place, hit.shown


def part_of(tensor: str) -> int:
    """The part of a step that a tensor belongs to, as a number."""
    return next((k for k, part in enumerate(PARTS) if tensor.startswith(part)), len(PARTS))


def _first(hits: Sequence[_Hit]) -> _Hit:
    """The hit that decides: the first that parts what is trained, if there is one.

    Frameworks clip by formulas that differ by a millionth, and keep running statistics by others
    that no step of a training reads. Both are told of, after what does.
    """
    parting = (
        hit
        for hit in hits
        if not hit.place.tensor.startswith(STATISTICS)
        and not (hit.place.tensor.startswith("update/") and gap_of(hit.place).rel_l2 < FAINT)
    )
    return next(parting, hits[0])


def _ratio(place: Difference, narrow: Sequence[Following]) -> str:
    """The same place in both precisions: a gap that stays the same is no rounding."""
    gap = gap_of(place)
    same = [
        found
        for run in narrow
        for found in run.found.divergences
        if (found.step, found.tensor) == (place.step, place.tensor)
    ]
    if not math.isfinite(gap.rel_l2):
        what = "not finite" if place.nonfinite_mismatches else "zero all over, and the other is not"
        return f"in float64 one side is {what}: that is no rounding"
    if same and math.isfinite(gap_of(same[0]).rel_l2):
        return (
            f"that gap is {gap.rel_l2:.3g} of the tensor (relative L2) in float64 and "
            f"{gap_of(same[0]).rel_l2:.3g} in float32: rounding would be 5e8 times smaller in "
            "float64, a bug is as large"
        )
    return (
        f"that gap is {gap.rel_l2:.3g} of the tensor (relative L2): far over the rounding of "
        "float64, and not to be seen beside that of float32"
    )


def stages(evidence: Evidence) -> tuple[str, ...]:
    """How close the stages are when each is given the other side's inputs."""
    lines = []
    for runs, dtype in ((evidence.narrow, "float32"), (evidence.wide, "float64")):
        tight = [run.found.tightest for run in runs if run.found.tightest]
        if tight:
            worst = max(tight, key=lambda t: t.needed or 0)
            steps = runs[0].found.steps_compared
            lines.append(
                f"given the same inputs, no stage of {steps} steps differs in {dtype} by more than "
                f"{worst.needed or 0:.3g} eps ({worst.tensor} of step {worst.step}; allowed: 32)"
            )
    return tuple(lines)


def _times(steps: list[int]) -> str:
    if len(steps) == 1:
        return f"at step {steps[0]} alone"
    return f"at {len(steps)} steps: {', '.join(map(str, steps[:6]))}{', ...' * (len(steps) > 6)}"
