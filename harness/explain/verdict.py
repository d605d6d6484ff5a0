"""Rounding or a bug: one function over what the diffs found.

The principle: rounding scales with machine epsilon, a bug does not. Measured in units of the run's
own epsilon, rounding is as large in float64 as in float32; a bug, the same in absolute terms, is
5e8 times more epsilons there. Following removes what rounding has grown to: every stage is given
the very inputs of the other side's, so what is left is made in that stage.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Sequence
from glob import escape as glob_escape
from shlex import quote

import msgspec
import numpy as np

from harness.compare import DiffResult, diff
from harness.compare.diff import Difference
from harness.errors import DEBUG, HarnessError
from harness.explain.advice import what_next
from harness.explain.case import Case, Cause, Side
from harness.explain.causes import explain
from harness.explain.evidence import (
    Evidence,
    Finding,
    Following,
    Label,
    Pair,
    Repeat,
    Vote,
    gap_of,
)
from harness.explain.following import follow, stages
from harness.explain.precisions import FAR, Walk, unheard
from harness.explain.start import unlike
from harness.explain.trial import SIDES, Trial
from harness.models.graph import name_of
from harness.models.ops import OPS
from harness.trace.dtypes import epsilon

TO_REPORT = "; to report it: harness repro "
ELSEWHERE = 8  # other places at which a cause is tried before it is called certain


class Also(msgspec.Struct, frozen=True):
    """Another part of the step that differs by itself, and why; `side` as in a verdict."""

    where: Difference
    side: str | None
    causes: tuple[Cause, ...]


class Verdict(msgspec.Struct, frozen=True):
    """What a pair of runs was judged to be, where it shows, why, and what to do next.

    `where` is the place that decides, `places` all that differ by more than rounding of their own
    (the first step of each tensor), `side` the label of the side that is wrong, where it can be
    told. `also` are other parts of the step with certain causes of their own. `doublings` is how
    often rounding doubled per step in the free runs. `traces` are those that show the place, where
    it is one to report, and `follower` which of them was given the other's inputs, if one was.
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
    traces: tuple[str, str] | None = None
    follower: Side | None = None
    also: tuple[Also, ...] = ()

    def exit_code(self, strict: bool = False) -> int:
        """0 identical, close, rounding (1 where `strict`); 1 for all else."""
        fine = ("identical", "close") if strict else ("identical", "close", "rounding")
        return 0 if self.label in fine else 1


Referee = Callable[[Following, Difference], Vote | None]


def judge(evidence: Evidence, referee: Referee | None = None) -> Verdict:
    """The verdict over what is known. `referee` is asked about the place that decides."""
    free = evidence.free
    labels = free.labels
    restless = [repeat for repeat in evidence.repeats if not (repeat.fresh or repeat.close)]
    if restless:
        return _unrepeatable(evidence, restless[0])
    finding = _find(evidence)
    case = _case(finding, labels)
    vote = recomputed(case) if case else None
    if vote is None and referee and finding.shown and finding.shown.follower and finding.place:
        vote = referee(finding.shown, finding.place)
    side = vote.against(labels) if vote else None
    causes, failed = _causes(case, finding, free, side)
    label, shown = _with_cause(finding.label, causes), finding.shown
    if case and label == "undecided" and not failed:
        # What explains one place decides, also where other places show that it is not always so.
        label = _with_cause(label, explain(case))
    doublings = amplification(free.distances)
    who = f"{side} has another" if side else f"{labels[0]} and {labels[1]} have different"
    lines = [repeat.words() for repeat in evidence.repeats]
    lines += [*_first_words(free), *(line.replace("{other}", who) for line in finding.proof)]
    if vote:
        lines.append(_voice(vote, labels, side))
    lines += [
        line for line in (_token(finding), _parted(finding, free), _growth(doublings, free)) if line
    ]
    lines += [*evidence.lacking, *failed]
    return Verdict(
        label=label,
        sentence=_sentence(label, finding, labels, side),
        where=finding.place,
        side=side,
        evidence=tuple(lines),
        causes=tuple(causes),
        places=finding.places,
        doublings=doublings,
        next=what_next(label, finding, evidence, side)
        + (_to_report(label, case, shown) if case else ""),
        traces=(shown.found.a, shown.found.b) if shown and finding.place else None,
        follower=shown.follower if shown else None,
        also=tuple(_also(finding, free, causes)) if label == "bug" else (),
    )


def _also(finding: Finding, free: DiffResult, causes: Sequence[Cause]) -> Iterable[Also]:
    """Causes of other parts of the step, where they are certain, and others than those found."""
    told = {cause.claim for cause in causes}
    for place, shown in finding.others:
        own = finding._replace(place=place, shown=shown)
        case = _case(own, free.labels)
        vote = recomputed(case) if case else None
        side = vote.against(free.labels) if vote else None
        found, _ = _causes(case, own, free, side)
        if found and found[0].sure == "certain" and found[0].claim not in told:
            told.add(found[0].claim)
            yield Also(place, side, tuple(found))


def _to_report(label: Label, case: Case, shown: Following | None) -> str:
    """The command that writes the stage of a place as programs, where scripts say what it is."""
    known = case.graph.value(case.tensor) if case.graph else None
    if label not in ("bug", "precision") or shown is None or known is None:
        return ""
    headers = [trace.header for trace in shown.found.opened()]
    if not any(header.program and header.program.kind == "script" for header in headers):
        return ""
    who = f" --follower {shown.follower}" if shown.follower else ""
    return (
        f"{TO_REPORT}{shown.found.a} {shown.found.b} --step {case.step} "
        f"--tensor {quote(case.tensor)}{who}"
    )


def _unrepeatable(evidence: Evidence, repeat: Repeat) -> Verdict:
    """Of a side that does not repeat itself nothing else can be said."""
    side, at = repeat.label, f"step {repeat.step}, {repeat.tensor}"
    trace = evidence.free.a if repeat.side == "a" else evidence.free.b
    lines = [one.words() for one in evidence.repeats]
    return Verdict(
        "bug",
        f"{side} does not repeat itself, first at {at}",
        side=side,
        evidence=(*lines, *_first_words(evidence.free), *evidence.lacking),
        causes=(Cause("not-repeatable", repeat.words(), math.inf, claim=f"{side} varies"),),
        next=(
            f"give {side} a seed for whatever it draws in {repeat.tensor}, and run again; its "
            f"values: harness show {trace} {repeat.tensor} --step {repeat.step}"
        ),
    )


def _with_cause(label: Label, causes: Sequence[Cause]) -> Label:
    """The label once causes are known: a narrower format is no bug, and a certain one decides."""
    if not causes:
        return label
    cause = causes[0]
    if cause.format and (label == "bug" or (label == "undecided" and cause.sure == "certain")):
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
    if evidence.wide or evidence.narrow:
        start, hit = unlike(free), follow(evidence)
        if start is None:
            return hit or _followed(evidence)
        if hit:
            return hit._replace(proof=(start.line, *hit.proof))
        at = _place(free, start.place.step, start.first) or start.place
        lines = (start.line, *stages(evidence))
        return Finding("undecided", at, Following(None, free), lines, (at,))
    if free.status == "diverged":
        return _free(evidence)
    if evidence.free64 is not None and not evidence.free64.equivalent:
        return _both(free, evidence.free64) or Finding(free.status, None, None, _agreement(free))
    return Finding(free.status, None, None, _agreement(free))


def _followed(evidence: Evidence) -> Finding:
    """What is left where no stage differs by more than its own rounding."""
    free = evidence.free
    if free.status in ("identical", "close"):
        return Finding(free.status, None, None, stages(evidence))
    return Finding("rounding", free.first_divergence, None, (*_shrunk(evidence), *stages(evidence)))


def _free(evidence: Evidence) -> Finding:
    """Free runs that diverge, and nothing that was followed."""
    free, place = evidence.free, evidence.free.first_divergence
    assert place is not None
    start = unlike(free)
    if start and evidence.scripts:
        at = _place(free, start.place.step, start.first) or start.place
        return Finding("undecided", at, Following(None, free), (start.line,), (at,))
    if place.tensor.startswith("inputs/"):
        line = f"the sides were given different {place.tensor} at step {place.step}"
        return Finding("bug", place, Following(None, free), (line,), (place,))
    found = _both(free, evidence.free64) if evidence.free64 else None
    if found:
        return found
    lines = (_path(free, place), *unheard(free, place))
    return Finding("undecided", place, Following(None, free), lines, (place,))


def _path(free: DiffResult, place: Difference) -> str:
    """How far apart the sides are at a place, and were before."""
    needed, before = gap_of(place).needed, free.tightest
    apart = f"{needed:.3g} eps of the largest element apart"
    if not math.isfinite(needed):
        apart = f"apart in {place.mismatches:,} of {place.size:,} elements"
    if before is None or before.needed is None:
        return f"the sides are {apart} there, and nothing before it differed"
    return (
        f"the sides are {apart} there, and were at most {before.needed:.3g} eps before "
        f"({before.tensor} of step {before.step})"
    )


def _both(free: DiffResult, free64: DiffResult) -> Finding | None:
    """What the free runs of both precisions say; None where all that differs is below float32."""
    ruling = Walk(free, free64).ruling()
    if ruling is None:
        return None
    shown = Following(None, free64 if ruling.wide else free)
    place = _place(shown.found, ruling.step, ruling.tensor) or free.first_divergence
    if ruling.kind == "rounding":
        return Finding("rounding", place, None, ruling.proof)
    return Finding(ruling.kind, place, shown, ruling.proof, (place,) if place else ())


def _token(finding: Finding) -> str | None:
    """The token that was looked up at the place, where the place is one of embedded tokens."""
    place = finding.place
    if not place or not finding.shown or not place.index:
        return None
    pair = Pair(finding.shown.found, finding.shown.found.labels)
    graph = pair.traces["b"].graph
    stage = graph.value(place.tensor) if graph else None
    if stage is None or stage.op != "embed":
        return None
    x = pair.read("b", place.step, name_of(stage.inputs[1]))
    if x is None or x.ndim != len(place.index) - 1:
        return None
    return f"the token looked up there is {int(x[place.index[:-1]])}"


def _place(found: DiffResult, step: int, tensor: str) -> Difference | None:
    """One tensor of a diff that may have stopped before it; None where it is not apart."""
    first = found.first_divergence
    if first and (first.step, first.tensor) == (step, tensor):
        return first
    again = diff(*found.opened(), include=(glob_escape(tensor),), steps=(step, step))
    return again.first_divergence or again.onset


def _shrunk(evidence: Evidence) -> tuple[str, ...]:
    """How the gap of the free runs shrinks with epsilon, if it does."""
    place, free64 = evidence.free.first_divergence, evidence.free64
    if not place or not free64:
        return ()
    if place.nonfinite_mismatches:
        return (
            f"at {place.tensor} of step {place.step} the free runs leave the range of "
            f"{place.dtype}: whether a sum of such numbers is Inf or NaN depends on its order",
        )
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
        if any(
            words in note
            for words in ("settings differ", "ranks differ", "different", "is not finite")
        ):
            yield note


def _case(finding: Finding, labels: tuple[str, str]) -> Case | None:
    """The tensor at the place that decides, on both sides; None for what is no fault."""
    if finding.place is None or finding.shown is None:
        return None
    pair = Pair(finding.shown.found, labels, finding.shown.follower)
    return pair.case(finding.place.step, finding.place.tensor)


def recomputed(case: Case) -> Vote | None:
    """How far each side is from its own stage, computed in float64 from what it was given.

    None where no stage is known, or its inputs are not traced.
    """
    stage = case.graph.value(case.tensor) if case.graph else None
    if stage is None or stage.op == "given" or (stage.op in OPS and OPS[stage.op].either):
        return None
    if case.as_told is not None or case.borrowed:
        return None  # which of two settings was meant no third can say
    trial = Trial(case)
    if any(trial.value(side, stage) is None for side in SIDES):
        return None
    return Vote("the stage, in float64", trial.left("a", stage), trial.left("b", stage))


def _causes(
    case: Case | None, finding: Finding, free: DiffResult, side: str | None
) -> tuple[list[Cause], list[str]]:
    """Why the tensor at the place differs; nothing for what is no fault.

    An error of our own must not cost the verdict: it is told of, and raised where DEBUG is set.
    """
    if case is None or finding.shown is None:
        return [], []
    pair = Pair(finding.shown.found, free.labels, finding.shown.follower)
    off: Side | None = None if side is None else ("a" if side == free.labels[0] else "b")
    try:
        return explain(case._replace(off=off), pair.elsewhere(case, ELSEWHERE)), []
    except HarnessError:
        raise
    except Exception as error:
        if os.environ.get(DEBUG):
            raise
        what = f"{type(error).__name__}: {error}"
        return [], [f"causes could not be looked for ({what}): --debug shows where"]


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
    start = unlike(finding.shown.found) if finding.shown else None
    if label == "undecided" and start:
        return f"{a} and {b} do not start from the same {start.words}"
    at = f"step {place.step}, {place.tensor}" if place else ""
    # What is told of beside it may come before it in the step.
    first = "" if finding.others and finding.places[0].tensor != at.partition(", ")[2] else "first "
    return {
        "identical": f"{a} and {b} agree bit for bit",
        "close": f"{a} and {b} agree within the tolerance at every tensor of every step",
        "rounding": f"{a} and {b} compute the same; what parts them is rounding that grew",
        "precision": f"{side or 'one side'} computes {at} in less precision",
        "bug": f"{a} and {b} compute different things, {first}at {at}",
        "structure": f"{a} and {b} do not hold the same tensors",
        "undecided": f"the evidence on {a} and {b} does not decide",
    }[label]


def _parted(finding: Finding, free: DiffResult) -> str | None:
    """Where the free runs part, if that is not the place that decides."""
    place, parted = finding.place, free.first_divergence
    if not place or not parted or (place.step, place.tensor) == (parted.step, parted.tensor):
        return None
    return (
        f"the free runs leave the tolerance at step {parted.step}, {parted.tensor}: what the place "
        "above makes wrong shows there, or rounding that grew"
    )


def _eps(value: float | None) -> str:
    return "not to be measured" if value is None else f"{value:.3g} eps"


def _divide(x: float, y: float) -> float:
    """x / y, where rounding to less than an epsilon counts as one."""
    return max(x, 1.0) / max(y, 1.0)
