"""Rounding or a bug: one function over what the diffs found.

The principle: rounding scales with machine epsilon, a bug does not. Measured in units of the run's
own epsilon, rounding is as large in float64 as in float32; a bug, the same in absolute terms, is
5e8 times more epsilons there. Following removes what rounding has grown to: every stage is given
the very inputs of the other side's, so what is left is made in that stage.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple

import msgspec
import numpy as np

from harness.compare import DiffResult
from harness.compare.diff import Difference
from harness.explain.case import Cause
from harness.explain.causes import explain
from harness.explain.evidence import Evidence, Following, Pair, Vote, gap_of
from harness.trace.dtypes import epsilon

Label = Literal["identical", "close", "rounding", "precision", "bug", "structure", "undecided"]

# Between the precisions a distance in epsilons is the same for rounding, and 5.4e8 times larger in
# float64 for a bug (the ratio of the epsilons). Half way in orders of magnitude, and what lies
# within a factor 20 counts as the same.
FAR, SAME = 1e4, 20.0
JUMP = 1e3  # how much further apart than anything before it a place must be to be a jump
NARROWER = 2.0**-7  # a relative difference that no format of 8 bits and more explains
LESS_PRECISE = 128.0  # eps; a format with fewer bits than float32's is thousands of eps away


class Verdict(msgspec.Struct, frozen=True):
    """What a pair of runs was judged to be, where it shows, why, and what to do next.

    `where` is the place that decides, `places` all that differ by more than rounding of their own
    (the first step of each tensor), `side` the label of the side that is wrong, where it can be
    told. `doublings` is how often rounding doubled per step in the free runs.
    """

    label: Label
    sentence: str
    where: Difference | None = None
    side: str | None = None
    evidence: tuple[str, ...] = ()
    causes: tuple[Cause, ...] = ()
    places: tuple[Difference, ...] = ()
    doublings: float | None = None
    next: str = ""


class Finding(NamedTuple):
    """A verdict's label and place, the diff that shows it, and the sentences that prove it."""

    label: Label
    place: Difference | None
    shown: Following | None
    proof: tuple[str, ...]
    places: tuple[Difference, ...] = ()


Referee = Callable[[Following, Difference], Vote | None]


def judge(evidence: Evidence, referee: Referee | None = None) -> Verdict:
    """The verdict over what is known. `referee` is asked about the place that decides."""
    free = evidence.free
    labels = free.labels
    finding = _find(evidence)
    vote = (
        referee(finding.shown, finding.place)
        if referee and finding.shown and finding.shown.follower and finding.place
        else None
    )
    causes = _causes(finding, free)
    label = _with_cause(finding.label, causes[0]) if causes else finding.label
    side = vote.against(labels) if vote else None
    doublings = amplification(free.distances)
    lines = [*_first_words(free), *finding.proof]
    if vote:
        lines.append(_voice(vote, labels, side))
    lines += [line for line in [_growth(doublings, free)] if line]
    lines += evidence.lacking
    return Verdict(
        label=label,
        sentence=_sentence(label, finding, labels, side),
        where=finding.place,
        side=side,
        evidence=tuple(lines),
        causes=tuple(causes),
        places=finding.places,
        doublings=doublings,
        next=_next(label, finding, free, side),
    )


def _with_cause(label: Label, cause: Cause) -> Label:
    """The label once a cause is known: a narrower format is no bug, and a certain cause decides."""
    if cause.format and label in ("bug", "undecided"):
        return "precision"
    return "bug" if label == "undecided" and cause.sure == "certain" else label


def _find(evidence: Evidence) -> Finding:
    """Label and place: structure first, then following, then the free runs of both precisions."""
    free = evidence.free
    if free.status == "structure":
        found = free.structure[0]
        what = f"{found.kind} {found.tensor or ''}".strip()
        line = f"{what} at step {found.step}: {found.a} | {found.b}"
        return Finding("structure", free.first_divergence, None, (line,))
    if free.status in ("identical", "close") and not (evidence.wide or evidence.narrow):
        return Finding(free.status, None, None, _agreement(free))
    if evidence.wide or evidence.narrow:
        return _follow(evidence)
    return _compare_precisions(evidence)


def _follow(evidence: Evidence) -> Finding:
    """What following shows: hits in float64 are bugs, those in float32 alone are of precision."""
    wide = [hit for hit in _hits(evidence.wide) if not _scales(hit, evidence.narrow)]
    narrow = [hit for hit in _hits(evidence.narrow) if not _scales(hit, evidence.wide)]
    if evidence.wide:
        narrow = [hit for hit in narrow if gap_of(hit.place).needed >= LESS_PRECISE]
    if wide:
        return _hit("bug", wide, evidence)
    overflown = [hit for hit in narrow if hit.place.nonfinite_mismatches]
    if overflown and overflown[0] is narrow[0]:
        return _hit("bug", narrow, evidence)  # no narrower format: a formula that overflows
    if narrow and evidence.wide:
        return _hit("precision", narrow, evidence)
    if narrow:
        place = narrow[0].place
        large = gap_of(place).rel_l2 > NARROWER or place.tensor.startswith("inputs/")
        return _hit("bug" if large else "undecided", narrow, evidence)
    if evidence.free.status in ("identical", "close"):
        return Finding(evidence.free.status, None, None, _stages(evidence))
    shrunk = _shrunk(evidence)
    return Finding("rounding", evidence.free.first_divergence, None, (*shrunk, *_stages(evidence)))


class _Hit(NamedTuple):
    place: Difference
    shown: Following
    order: tuple[int, int]


def _hits(runs: Sequence[Following]) -> list[_Hit]:
    """Every stage that differs by more than its own rounding, in the order of the run."""
    hits = []
    for run in runs:
        orders: dict[int, dict[str, int]] = {}
        trace = Pair(run.found, run.found.labels).traces["b"] if run.found.divergences else None
        for place in run.found.divergences:
            if trace and place.step not in orders:
                names = [entry.name for entry in trace.step(place.step).entries]
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
    first = hits[0]
    places = list({hit.place.tensor: hit.place for hit in reversed(hits)}.values())[::-1]
    a, b = evidence.free.labels
    follower, followed = (a, b) if first.shown.follower == "a" else (b, a)
    steps = sorted({hit.place.step for hit in hits if hit.place.tensor == first.place.tensor})
    place = first.place
    proof = [
        f"given the very inputs of {followed}, stage by stage, {follower} makes another "
        f"{place.tensor} of step {place.step}: {_eps(place.rel_l2_eps)} away in {place.dtype} "
        f"({_times(steps)}), where rounding of one stage stays under {place.factor or 0:g}"
    ]
    if label == "bug" and place.dtype == "float64":
        proof.append(_ratio(place, evidence.narrow))
    elif label == "precision":
        proof.append(
            "in float64 every stage agrees: the programs compute the same, and one of them "
            "computes this in less than float32"
        )
    return Finding(label, place, first.shown, tuple(proof), tuple(places))


def _ratio(place: Difference, narrow: Sequence[Following]) -> str:
    """The same place in both precisions: a gap that stays the same is no rounding."""
    gap = gap_of(place)
    same = [
        found
        for run in narrow
        for found in run.found.divergences
        if (found.step, found.tensor) == (place.step, place.tensor)
    ]
    if same:
        return (
            f"that gap is {gap.rel_l2:.3g} of the tensor (relative L2) in float64 and "
            f"{gap_of(same[0]).rel_l2:.3g} in float32: rounding would be 5e8 times smaller in "
            "float64, a bug is as large"
        )
    return (
        f"that gap is {gap.rel_l2:.3g} of the tensor (relative L2): far over the rounding of "
        "float64, and not to be seen beside that of float32"
    )


def _stages(evidence: Evidence) -> tuple[str, ...]:
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


def _shrunk(evidence: Evidence) -> tuple[str, ...]:
    """How the gap of the free runs shrinks with epsilon, if it does."""
    place, free64 = evidence.free.first_divergence, evidence.free64
    if not place or not free64:
        return ()
    gap = Pair(free64, free64.labels).gap(place.step, place.tensor)
    if gap is None or not math.isfinite(gap.rel_l2):
        return ()
    return (
        f"where the {place.dtype} runs part ({place.tensor} of step {place.step}, relative L2 "
        f"{gap_of(place).rel_l2:.3g} = {_eps(place.rel_l2_eps)}), the float64 runs are "
        f"{gap.rel_l2:.3g} = {_eps(gap.rel_l2_eps)} apart: "
        + (
            "the gap scales with epsilon"
            if _divide(gap.rel_l2_eps, gap_of(place).rel_l2_eps) < FAR
            else "they have grown apart too, so what decides is how far each stage is off by itself"
        ),
    )


def _compare_precisions(evidence: Evidence) -> Finding:
    """Without following: do the runs part in a jump, and does the gap scale with epsilon?"""
    free, free64 = evidence.free, evidence.free64
    place = free.first_divergence
    if place is None:
        return Finding("undecided", None, None, ())
    if place.tensor.startswith("inputs/"):
        line = f"the sides were given different {place.tensor} at step {place.step}"
        return Finding("bug", place, Following(None, free), (line,), (place,))
    shown = Following(None, free)
    if free64 is None:
        return Finding("undecided", place, shown, (_path(free, place),), (place,))
    return _against_epsilon(free, free64, place)


def _against_epsilon(free: DiffResult, free64: DiffResult, place: Difference) -> Finding:
    sharp = free64.first_divergence
    first, shown = (sharp, Following(None, free64)) if sharp else (place, Following(None, free))
    pair, pair64 = Pair(free, free.labels), Pair(free64, free64.labels)
    gap, gap64 = pair.gap(first.step, first.tensor), pair64.gap(first.step, first.tensor)
    if not gap or not gap64:
        line = f"{first.tensor} of step {first.step} is not in both pairs of traces"
        return Finding("undecided", first, shown, (line,), (first,))
    ratio = _divide(gap64.needed, gap.needed)
    jump = _jump(free64, first) if sharp else _jump(free, first)
    words = (
        f"at {first.tensor} of step {first.step} the sides are {_eps(gap.rel_l2_eps)} apart in "
        f"{place.dtype} (relative L2 {gap.rel_l2:.3g}) and {_eps(gap64.rel_l2_eps)} in float64 "
        f"({gap64.rel_l2:.3g})"
    )
    path = _path(free64 if sharp else free, first)
    if ratio >= FAR and jump:
        proof = (f"{words}: the gap does not scale with epsilon, so it is no rounding", path)
        return Finding("bug", first, shown, proof, (first,))
    if ratio >= FAR:
        return Finding("undecided", first, shown, (words, path), (first,))
    if _divide(gap.needed, gap64.needed) >= FAR / SAME and _jump(free, place):
        return _narrower(free, free64, place, words)
    if jump and ratio > SAME:
        return Finding("undecided", first, shown, (words, path), (first,))
    return Finding("rounding", place, None, (f"{words}: the gap scales with epsilon", path))


def _narrower(free: DiffResult, free64: DiffResult, place: Difference, words: str) -> Finding:
    """One side's float32 run far from its own float64 run, where the other's is not."""
    pair, pair64 = Pair(free, free.labels), Pair(free64, free64.labels)
    own = []
    for side in ("a", "b"):
        low, high = (p.read(side, place.step, place.tensor) for p in (pair, pair64))
        if low is None or high is None or low.shape != high.shape:
            return Finding("undecided", place, Following(None, free), (words,), (place,))
        own.append(float(np.linalg.norm((low - high).ravel())))
    far = max(own) / max(min(own), 1e-300)
    guilty = free.labels[own.index(max(own))]
    line = (
        f"{words}: the programs agree in float64, and {guilty}'s {place.dtype} run is {far:.3g} "
        "times further from its own float64 run than the other's"
    )
    label: Label = "precision" if far >= 8 else "undecided"
    return Finding(label, place, Following(None, free), (line,), (place,))


def _jump(found: DiffResult, place: Difference) -> bool:
    """Whether a place is far further apart than everything before it."""
    if found.first_divergence is None or found.first_divergence.tensor != place.tensor:
        return False
    before = found.tightest.needed if found.tightest and found.tightest.needed else 1.0
    return gap_of(place).needed >= JUMP * max(before, 1.0)


def _path(found: DiffResult, place: Difference) -> str:
    """How the distance came about: at once or little by little."""
    before = found.tightest
    if before is None or before.needed is None:
        return "nothing before it differed"
    how = "at once" if _jump(found, place) else "little by little"
    return (
        f"the distance came {how}: {gap_of(place).needed:.3g} eps of the largest element there, at "
        f"most {before.needed:.3g} before ({before.tensor} of step {before.step})"
    )


def _agreement(free: DiffResult) -> tuple[str, ...]:
    if free.status == "identical":
        return ("every tensor of every step has the same bits",)
    tight = free.tightest
    if tight is None:
        return ()
    return (
        f"every tensor of {free.steps_compared} steps is within the tolerance; the tightest, "
        f"{tight.tensor} of step {tight.step}, used {tight.used:.0%} of it",
    )


def _first_words(free: DiffResult) -> Iterable[str]:
    """What must be said before any number: NaN or infinity on one side, other settings."""
    first = free.first_divergence
    if first and first.nonfinite_mismatches:
        yield (
            f"NaN or infinity on one side alone: {first.nonfinite_mismatches:,} elements of "
            f"{first.tensor} at step {first.step}"
        )
    for note in free.notes:
        if "settings differ" in note or "different" in note:
            yield note


def _causes(finding: Finding, free: DiffResult) -> list[Cause]:
    """Why the tensor at the place differs; nothing for what is no fault."""
    if finding.place is None or finding.shown is None:
        return []
    pair = Pair(finding.shown.found, free.labels, finding.shown.follower)
    case = pair.case(finding.place)
    return explain(case) if case else []


def amplification(distances: Sequence[tuple[int, float]]) -> float | None:
    """Doublings per step of the distance between free runs: the slope of log2 over the steps.

    None for less than four steps. Steps where the distance is over a hundredth of the largest that
    a distance can have (it stops growing there) are left out.
    """
    rows = [(step, eps) for step, eps in distances if 0 < eps < 1e-2 / np.finfo(np.float32).eps]
    if len(rows) < 4:
        return None
    steps, eps = np.array(rows).T
    return float(np.polyfit(steps, np.log2(eps), 1)[0])


def _growth(doublings: float | None, free: DiffResult) -> str | None:
    """What the amplification means for runs like these."""
    if doublings is None or not free.distances:
        return None
    if doublings < 0.05:
        return "rounding does not grow from step to step here"
    step, eps = free.distances[-1]
    dtype = free.first_divergence.dtype if free.first_divergence else "float32"
    left = math.log2(1 / (epsilon(dtype) or 2.0**-52)) - math.log2(max(eps, 1.0))
    return (
        f"what parts the free runs doubles {doublings:.2g} times a step: at that rate {dtype} "
        f"traces have nothing in common from about step {step + max(0, round(left / doublings))} on"
    )


def _voice(vote: Vote, labels: tuple[str, str], side: str | None) -> str:
    said = (
        f"the referee ({vote.referee}), given the same inputs, is {vote.distance_a:.3g} eps from "
        f"{labels[0]} and {vote.distance_b:.3g} from {labels[1]}"
    )
    return f"{said}: {side} is the one that is off" if side else said


def _sentence(label: Label, finding: Finding, labels: tuple[str, str], side: str | None) -> str:
    a, b = labels
    place = finding.place
    at = f"step {place.step}, {place.tensor}" if place else ""
    return {
        "identical": f"{a} and {b} agree bit for bit",
        "close": f"{a} and {b} agree within the tolerance at every tensor of every step",
        "rounding": f"{a} and {b} compute the same; what parts them is rounding that grew",
        "precision": f"{side or 'one side'} computes {at} in less precision",
        "bug": f"{a} and {b} compute different things, first at {at}",
        "structure": f"{a} and {b} do not hold the same tensors",
        "undecided": f"the evidence on {a} and {b} does not decide",
    }[label]


def _next(label: Label, finding: Finding, free: DiffResult, side: str | None) -> str:
    """The one thing to do next."""
    place, found = finding.place, finding.shown.found if finding.shown else free
    if label in ("bug", "precision") and place:
        return (
            f"read what makes {place.tensor}{f' in {side}' * bool(side)}; its values: harness show "
            f"{found.b} {place.tensor} --step {place.step}"
        )
    if label == "rounding":
        return "nothing to mend; to compare the steps after this one, run with --follow=stage"
    if label == "structure":
        return f"trace the same names and shapes on both sides: harness show {free.a}; {free.b}"
    if label == "undecided":
        return (
            "run both sides in float64 too: harness explain A B --referee-a A64 --referee-b B64; "
            "what decides is following: harness run --follow=stage"
        )
    return "nothing"


def _eps(value: float | None) -> str:
    return "- eps" if value is None else f"{value:.3g} eps"


def _times(steps: list[int]) -> str:
    if len(steps) == 1:
        return f"at step {steps[0]} alone"
    return f"at {len(steps)} steps: {', '.join(map(str, steps[:6]))}{', ...' * (len(steps) > 6)}"


def _divide(x: float, y: float) -> float:
    """x / y, where rounding to less than an epsilon counts as one."""
    return max(x, 1.0) / max(y, 1.0)
