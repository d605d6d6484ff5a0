"""Why a tensor differs: what the search finds, weighed by chance and refuted at other places.

A cause holds only if a side agrees, to rounding, with an edit of its stage recomputed from its own
inputs. What fits by chance too easily, or is contradicted elsewhere, is not called certain; of two
edits that fit everywhere and are not one function, neither is. None is better than a wrong one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from msgspec.structs import replace

from harness.explain.alike import same_everywhere
from harness.explain.case import Case, Cause
from harness.explain.confined import hints
from harness.explain.formats import nothing_but
from harness.explain.refute import Record, transported
from harness.explain.say import eps_words
from harness.explain.search import search
from harness.explain.told import detached
from harness.explain.trial import Fit, Trial, origin
from harness.models.graph import Node, node, rebuilt
from harness.models.ops.changes import FORMATS

# log10: a certain claim is one of which at most a millionth would fit an unrelated difference, over
# all that were tried; where more than one in twenty would, nothing is claimed.
CHANCE, NO_CLAIM = -6.0, -1.3
UNNAMED = -30.0  # the chance from which a number that is none of the run's own is one
ANY_NUMBER = 18.0  # bits of an edit with such a number
LEAST_CLAIMS = 20
SHORTER = 6.0  # bits by which an edit must be shorter than another that fits as well
UNMOVED = "does not update this parameter"
SMALL = 4  # elements; of so few, what other steps say is evidence as well
MOST = 5  # causes that are told of one tensor
TRIED = 12  # fits that are held against other places
SURE = ("certain", "likely", "hint")


def explain(case: Case, others: Sequence[Case] = ()) -> list[Cause]:
    """What may explain the difference of a case, best first; empty where nothing does.

    `others` are other places where its stage ran, at which what seems certain is tried as well.
    """
    if case.a.shape != case.b.shape or case.a.dtype != case.b.dtype or not case.b.size:
        return []
    if case.b.dtype.kind not in "fiub" or not case.gap() > case.level:
        return []
    trial = Trial(case)
    causes = _ruled(trial, others)
    if not any(cause.sure == "certain" for cause in causes):
        causes = _shown_elsewhere(case, others) or causes
    if not any(cause.sure == "certain" or cause.format for cause in causes):
        narrow = nothing_but(case)
        causes += [narrow] if narrow else []
    causes += hints(trial)
    causes.sort(key=lambda cause: SURE.index(cause.sure))
    if any(cause.sure == "certain" for cause in causes):
        causes = [cause for cause in causes if cause.sure == "certain"]
    return causes[:MOST]


def _ruled(trial: Trial, others: Sequence[Case]) -> list[Cause]:
    """The fits as causes, each as sure as chance, other places and the other fits leave it."""
    fits = search(trial)
    if not fits:
        source = origin(trial)
        if source is not None:
            return _ruled(source, ())
    tried = math.log10(max(trial.tried, LEAST_CLAIMS))
    places = [Trial(other._replace(off=trial.case.off)) for other in others]
    kept: list[tuple[Fit, Cause]] = []
    small = trial.case.b.size <= SMALL
    for fit in fits[: TRIED * 2 if small else TRIED]:
        chance = tried + trial.case.chance(fit.edit.free, fit.edit.name == "constant")
        record = None
        if places and (small or chance <= CHANCE):
            record = _tried_at(fit, trial, places)
            chance += record.votes
        cause = _weighed(fit, trial.case, chance)
        if cause is not None and record is not None and (small or cause.sure == "certain"):
            cause = record.rule(cause)
        if cause is not None:
            kept.append((fit, cause))
    return _unambiguous(trial, kept)


def _weighed(fit: Fit, case: Case, chance: float) -> Cause | None:
    """A fit as a cause, as sure as it may be by chance; None where it would fit nearly anything."""
    if chance > NO_CLAIM:
        return None
    sure = chance <= CHANCE
    # One number of which side is off nobody knows may be off for any reason.
    sure = sure and not (fit.base.op == "other" and case.b.size == 1 and case.off is None)
    if fit.edit.free and fit.edit.bits >= ANY_NUMBER:
        sure = sure and chance <= UNNAMED
    label, other = case.labels if fit.side == "a" else case.labels[::-1]
    known = fit.base.op != "other"
    return Cause(
        fit.edit.name,
        _sentence(fit, case, label, other),
        fit.left,
        "certain" if sure else "likely",
        fit.edit.format,
        f"{label} {fit.edit.words}",
        label if known or case.off else None,
    )


def _sentence(fit: Fit, case: Case, label: str, other: str) -> str:
    words = fit.edit.words.replace("what it should", other)
    if words == UNMOVED:
        graphs = case.other_graph, case.graph
        mine, theirs = graphs if fit.side == "a" else graphs[::-1]
        why = detached(theirs, mine, case.tensor)
        words = f"{why}, and {words}" if why else words
    if fit.base.op == "other":
        return f"{case.tensor}: {label} {words}, held against {other} ({eps_words(fit.left)})"
    said = f"{label} {words}: recomputed so, {case.tensor} agrees {eps_words(fit.left)}"
    a, b = case.settings_a, case.settings_b
    differ = [
        f"{key} is {a[key]} in {case.labels[0]}, {b[key]} in {case.labels[1]}"
        for key in sorted(a.keys() & b.keys())
        if a[key] != b[key] and key not in ("label", "trace", "final", "faults")
    ]
    return f"{said}; the settings differ: {'; '.join(differ[:3])}" if differ else said


def _tried_at(fit: Fit, trial: Trial, places: Sequence[Trial]) -> Record:
    """What other places say of a fit: whether it holds there with the same numbers."""
    record = Record(trial.case if trial.case.b.size <= SMALL else None)
    for place in places:
        there = _base_there(fit, trial.case, place.case)
        moved = None if there is None else _moved(fit, trial.case, place.case, there)
        if there is None or moved is None or place.value(fit.side, moved) is None:
            continue
        known = there.op != "other"
        sound = not known or place.fits("b" if fit.side == "a" else "a", there)
        plain = known and place.fits(fit.side, there)
        holds = place.left(fit.side, moved) <= place.case.level
        record.add(place.case, holds, sound, plain, trial.case.tensor, known)
    return record


def _base_there(fit: Fit, here: Case, there: Case) -> Node | None:
    """The stage of another place that corresponds to that of a fit."""
    if fit.base.op == "other":
        return fit.base
    stage = there.graph.value(there.tensor) if there.graph else None
    if stage is None or stage.op == "given":
        return None
    if fit.base.op == "kin":
        named = {k: v for k, v in fit.base.args if k in ("of", "does")}
        return node("kin", *stage.inputs, **named, **dict(stage.args))
    return stage


def _moved(fit: Fit, here: Case, there: Case, base: Node) -> Node | None:
    if here.tensor == there.tensor and base is fit.base:
        return fit.edit.value
    return transported(fit, base, {here.tensor: there.tensor})


def _unambiguous(trial: Trial, kept: list[tuple[Fit, Cause]]) -> list[Cause]:
    """The causes; of two that fit, are not one function and about as short, neither is certain."""
    certain = [fit for fit, cause in kept if cause.sure == "certain"]
    if not certain:
        return [cause for _, cause in kept]
    shortest = min(certain, key=lambda fit: fit.edit.bits)
    rivals = [
        fit
        for fit in certain
        if fit is not shortest
        and not same_bits(trial, fit, shortest)
        and fit.edit.bits < shortest.edit.bits + SHORTER
        and not same_everywhere(trial, fit, shortest)
    ]
    if not rivals:
        alike = [
            f.edit.format for f in certain if f is not shortest and same_bits(trial, f, shortest)
        ]
        also = f" (or to {alike[0]}, which has as many bits)" if alike else ""
        return [
            replace(cause, sentence=cause.sentence + also) if fit is shortest else cause
            for fit, cause in kept
            if fit is shortest or cause.sure != "certain"
        ]
    return [
        replace(cause, sure="likely", sentence=f"{cause.sentence} (others fit these numbers too)")
        if cause.sure == "certain"
        else cause
        for _, cause in kept
    ]


def same_bits(trial: Trial, one: Fit, two: Fit) -> bool:
    """Whether two fits round the same to formats with as many bits, as float16 and TF32."""
    a, b = one.edit.format, two.edit.format
    if a is None or b is None or FORMATS[a] != FORMATS[b]:
        return False
    renamed = one.edit._replace(value=_in_format(one.edit.value, b))
    return same_everywhere(trial, one._replace(edit=renamed), two)


def _in_format(value: Node, to: str) -> Node:
    """An expression with another format for those that it rounds to."""

    def change(x: Node) -> Node | None:
        if x.op != "rounded":
            return None
        return node("rounded", _in_format(x.inputs[0], to), to=to, cut=bool(x.arg("cut")))

    return rebuilt(value, change)


def _shown_elsewhere(case: Case, others: Sequence[Case]) -> list[Cause]:
    """What explains the difference at a later step without doubt, and fits this place as well.

    Several causes may leave the same numbers at one place: a clip that no element reaches is none.
    """
    here = [other for other in others if other.tensor == case.tensor and other.gap() > other.level]
    for place in here if case.fed or case.graph else ():
        place = place._replace(off=case.off)
        rest = [case, *(other for other in others if other is not place)]
        certain = [c for c in _ruled(Trial(place), rest) if c.sure == "certain"]
        if certain:
            return [
                replace(cause, sentence=f"as step {place.step} shows: {cause.sentence}")
                for cause in certain
            ]
    return []
