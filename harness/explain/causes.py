"""The table of causes: what is tried on the first divergent tensor, and in which order.

A cause is one function and one row. It holds only if the sides agree to rounding once it is applied
to one of them; rows of rank HINT alone say where a difference lies, not why. None is better than a
wrong one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

import numpy as np
from msgspec.structs import replace

from harness.explain import (
    cells,
    clipping,
    network,
    optimizer,
    precision,
    region,
    scale,
    structure,
)
from harness.explain.case import Case, Cause
from harness.explain.refute import Record
from harness.explain.trial import Memory, same_claim

# log10: a certain claim is one of which at most a millionth would fit an unrelated difference, over
# all that were tried; where more than one in twenty would, nothing is claimed.
CHANCE, NO_CLAIM = -6.0, -1.3
LEAST_CLAIMS = 20
MOST = 5  # causes that are told of one tensor
SURE = ("certain", "likely", "hint")
EXACT, SPECIFIC, PLAIN, GENERIC, HINT = range(5)
# A certain cause that leaves LESSER times what another leaves, and CLEAR eps more, is not kept.
LESSER, CLEAR = 8.0, 4.0

CELLS = "*ward/layer*/*"
FORWARD = ("forward/layer*/*", "forward/logits")
GRADIENTS = ("backward/*", "grads/*", "update/clipped/*")
SLOTS = ("optimizer/*", "params/*")


def no(case: Case) -> bool:
    """Agreement speaks against a cause, unless its row knows better."""
    return False


class Row(NamedTuple):
    """A cause: its name, the tensors it is tried on, its function, and how specific it is.

    `settings` are those whose difference between the sides would bring it about. `free` is how many
    constants are fitted to the difference, `same` that all elements are said to differ alike.
    `silent` says of a place at which the sides agree whether they would there with this cause as
    well (as they do where the tensor is zero).
    """

    name: str
    globs: tuple[str, ...]
    function: Callable[[Case], Cause | list[Cause] | None]
    rank: int
    settings: tuple[str, ...] = ()
    free: int = 0
    same: bool = False
    silent: Callable[[Case], bool] = no


CAUSES: tuple[Row, ...] = (
    Row("state-not-carried", ("state/in/*",), structure.state_not_carried, EXACT),
    Row("state-not-reset", ("state/in/*",), structure.state_not_reset, EXACT),
    Row(
        "clip-elementwise",
        ("update/clipped/*",),
        clipping.clip_elementwise,
        EXACT,
        ("clip",),
        silent=clipping.idle,
    ),
    Row(
        "norm-duplicates",
        ("update/global_norm", "update/clipped/*"),
        clipping.norm_duplicates,
        EXACT,
    ),
    Row(
        "loss-formula", ("forward/loss", "backward/logits"), network.loss_formula, EXACT, ("loss",)
    ),
    Row("forget-bias", ("forward/layer*/*",), cells.forget_bias, EXACT, free=1),
    Row("bias-missing", FORWARD, cells.bias_missing, EXACT),
    Row("bias-twice", FORWARD, cells.bias_twice, EXACT),
    Row("cell-formula", ("forward/layer*/*",), cells.cell_formula, EXACT),
    Row("gate-order", ("*",), cells.gate_order, EXACT),
    Row(
        "dropout",
        (*FORWARD, "backward/layer*/h", "backward/embedding", "evaluate/loss"),
        network.dropout,
        EXACT,
        ("dropout",),
    ),
    Row("epsilon", ("params/*",), optimizer.epsilon, EXACT, ("epsilon",)),
    Row("bias-correction", ("params/*",), optimizer.bias_correction, EXACT),
    Row(
        "momentum-convention",
        ("optimizer/*/velocity", "params/*"),
        optimizer.momentum_convention,
        EXACT,
    ),
    Row("initial-accumulator", ("optimizer/*",), optimizer.initial_accumulator, EXACT),
    Row(
        "weight-decay",
        (*SLOTS, "grads/*", "update/clipped/*"),
        optimizer.weight_decay,
        EXACT,
        ("weight_decay", "decoupled"),
        free=1,
    ),
    Row(
        "clip-per-tensor",
        ("update/clipped/*",),
        clipping.clip_per_tensor,
        SPECIFIC,
        ("clip",),
        silent=clipping.idle,
    ),
    Row(
        "clip-one-side",
        ("update/clipped/*",),
        clipping.clip_one_side,
        SPECIFIC,
        ("clip", "clip_limit"),
        free=1,
        silent=clipping.idle,
    ),
    Row("norm-parts", ("update/global_norm", "update/clipped/*"), clipping.norm_parts, SPECIFIC),
    Row("embedding-duplicates", ("grads/embedding",), network.embedding_duplicates, SPECIFIC),
    Row(
        "learning-rate",
        ("update/learning_rate",),
        scale.learning_rate,
        SPECIFIC,
        ("lr", "lr_decay", "flat_epochs", "schedule"),
        silent=lambda case: True,  # a schedule need not differ in every epoch
    ),
    Row(
        "optimizer-formula",
        SLOTS,
        optimizer.optimizer_formula,
        SPECIFIC,
        ("optimizer", "momentum", "beta1", "beta2", "rho"),
    ),
    Row("zero-gradient", GRADIENTS, region.zero_gradient, SPECIFIC, silent=region.of_tokens),
    Row("state-swapped", ("state/*",), structure.state_swapped, SPECIFIC),
    Row("stale", ("*",), structure.stale, PLAIN, silent=structure.still),
    Row("accumulated", GRADIENTS, structure.accumulated, EXACT, silent=structure.first_step),
    Row("shift", ("*",), structure.shift, PLAIN),
    Row("transposed", ("*",), structure.transposed, PLAIN),
    Row("sign", ("*",), scale.sign, PLAIN),
    Row(
        "factor",
        ("*",),
        scale.factor,
        PLAIN,
        ("lr", "loss", "dropout", "bptt", "batch_size"),
        silent=clipping.idle,
    ),
    Row("reduced-precision", ("*",), precision.reduced_precision, PLAIN, ("dtype",)),
    Row("zero", ("inputs/*", "state/*", "forward/*", "optimizer/*"), region.zero, GENERIC),
    Row("constant", ("*",), scale.constant, GENERIC, free=1, same=True),
    Row("missing-term", (*GRADIENTS, "params/*"), region.missing_term, GENERIC, free=1),
    Row("permuted-rows", ("*",), structure.permuted_rows, GENERIC),
    Row("nonfinite", ("*",), region.nonfinite, GENERIC),
    Row("confined", ("*",), region.confined, HINT),
)
ROWS = {row.name: row for row in CAUSES}

# What a certain cause says already: the same difference in other and poorer words.
IMPLIED: dict[str, frozenset[str]] = {
    "state-not-carried": frozenset({"stale", "zero"}),
    "state-not-reset": frozenset({"stale", "zero"}),
    "clip-elementwise": frozenset({"clip-one-side", "factor"}),
    "clip-per-tensor": frozenset({"clip-one-side", "factor"}),
    "clip-one-side": frozenset({"factor"}),
    "norm-duplicates": frozenset({"clip-one-side", "norm-parts", "factor"}),
    "norm-parts": frozenset({"clip-one-side", "factor"}),
    "loss-formula": frozenset({"factor", "constant", "zero-gradient"}),
    "learning-rate": frozenset({"factor", "stale"}),
    "forget-bias": frozenset({"constant"}),
    "stale": frozenset({"missing-term"}),
    "accumulated": frozenset({"zero-gradient"}),
    "sign": frozenset({"factor", "missing-term"}),
    "factor": frozenset({"missing-term"}),
    "gate-order": frozenset({"permuted-rows", "transposed"}),
    "shift": frozenset({"permuted-rows"}),
    "transposed": frozenset({"permuted-rows"}),
    "momentum-convention": frozenset({"factor", "sign", "optimizer-formula", "missing-term"}),
    "bias-correction": frozenset({"factor", "optimizer-formula", "missing-term"}),
    "epsilon": frozenset({"factor", "missing-term"}),
    "initial-accumulator": frozenset({"constant", "zero"}),
    "constant": frozenset({"zero"}),
    "weight-decay": frozenset({"missing-term", "optimizer-formula"}),
    "dropout": frozenset({"factor"}),
    "optimizer-formula": frozenset({"missing-term"}),
}


class Fit(NamedTuple):
    """A cause that fits at its place, and the row that found it."""

    row: Row
    cause: Cause


def explain(case: Case, others: Sequence[Case] = ()) -> list[Cause]:
    """What may explain the difference of a case, best first; empty where nothing does.

    `others` are other places where its stage ran, at which what seems certain is tried as well.
    """
    found = fitting(case)
    return best(refuted(case, found, others) if others else [fit.cause for fit in found])


def fitting(case: Case) -> list[Fit]:
    """All that fits a case; a claim that says too little for its certainty is only likely."""
    if case.a.shape != case.b.shape or case.a.dtype != case.b.dtype or not case.b.size:
        return []
    if case.b.dtype.kind not in "fiub" or not case.gap() > case.level:
        return []
    # The subject of a sentence is side a: so that is the side which is off, where that is known.
    case = case.turned() if case.off == "b" else case
    memory = Memory(case.lookup)
    case = case._replace(lookup=memory)
    found: list[Fit] = []
    for row in CAUSES:
        if any(fnmatchcase(case.tensor, glob) for glob in row.globs):
            found += [Fit(row, cause) for cause in try_row(row, case)]
    tried = math.log10(max(memory.claims, LEAST_CLAIMS))
    kept = []
    for row, cause in found:
        if case.off and cause.side not in (None, case.labels[0]):
            continue  # the referee is against the other side
        weighed = _weighed(cause, tried + case.chance(row.free, row.same))
        if weighed:
            kept.append(Fit(row, _with_settings(case, row, weighed)))
    return kept


def _weighed(cause: Cause, chance: float) -> Cause | None:
    """A cause as sure as it may be where 10^chance claims of an unrelated difference would fit."""
    cause = replace(cause, claim=cause.claim or cause.name)
    if cause.sure == "hint" or chance <= CHANCE:
        return cause
    return replace(cause, sure="likely") if chance <= NO_CLAIM else None


def try_row(row: Row, case: Case) -> list[Cause]:
    """What a row finds. A stranger's trace may hold anything under a name that we know."""
    try:
        with np.errstate(all="ignore"):
            found = row.function(case)
    except (ValueError, IndexError, TypeError, ArithmeticError):
        return []
    return found if isinstance(found, list) else [found] if found else []


def _with_settings(case: Case, row: Row, cause: Cause) -> Cause:
    """The cause with the settings that bring it about, where the sides differ in them."""
    a, b = case.settings_a, case.settings_b
    words = [
        f"{key} is {a[key]} in {case.labels[0]}, {b[key]} in {case.labels[1]}"
        for key in row.settings
        if key in a and key in b and a[key] != b[key]
    ]
    if not words:
        return cause
    return replace(cause, sentence=f"{cause.sentence}; the settings differ: {'; '.join(words)}")


def best(found: list[Cause]) -> list[Cause]:
    """The causes best first, without those that a better one implies or fits far better than."""
    certain = [cause.residual_eps for cause in found if cause.sure == "certain"]
    least = min(certain, default=0.0)
    if certain:
        found = [
            cause
            for cause in found
            if cause.sure == "certain" and cause.residual_eps <= LESSER * least + CLEAR
        ]
    # Residuals are rounding: under an eps they say nothing of which is better.
    found.sort(key=lambda c: (SURE.index(c.sure), ROWS[c.name].rank, c.residual_eps // 1, c.name))
    kept: list[Cause] = []
    for cause in found:
        if not any(cause.name in IMPLIED.get(better.name, ()) for better in kept):
            kept.append(cause)
    return kept[:MOST]


def refuted(case: Case, found: Sequence[Fit], others: Sequence[Case]) -> list[Cause]:
    """The causes, each as sure as other places leave it; without those that they contradict."""
    places = [other._replace(off=case.off) for other in others]
    places = [place.turned() if case.off == "b" else place for place in places]
    places = [place._replace(lookup=Memory(place.lookup)) for place in places]
    kept = []
    for row, cause in found:
        if cause.sure != "certain":
            kept.append(cause)
            continue
        record = Record()
        for place in places:
            if any(fnmatchcase(place.tensor, glob) for glob in row.globs):
                place = place._replace(asked=cause.claim)
                again = try_row(row, place)
                holds = any(same_claim(one.claim or one.name, cause.claim) for one in again)
                silent = row.silent(place) or not (place.a.any() or place.b.any())
                record.add(place, holds, silent, case.tensor)
        ruled = record.rule(cause)
        kept += [ruled] if ruled else []
    return kept


def shown_elsewhere(case: Case, others: Sequence[Case]) -> list[Cause]:
    """What explains the difference at a later step without doubt, and fits this place as well.

    Several causes may leave the same numbers at one place: a clip that no element reaches is none.
    """
    here = [other for other in others if other.tensor == case.tensor and other.gap() > other.level]
    for place in here if case.fed else ():
        found = [fit for fit in fitting(place._replace(off=case.off)) if _sure(fit)]
        rest = [case, *(other for other in others if other is not place)]
        told = [
            replace(cause, sentence=f"as step {place.step} shows: {cause.sentence}")
            for cause in refuted(place._replace(off=case.off), found, rest)
            if cause.sure == "certain"
        ]
        if told:
            return told
    return []


def _sure(fit: Fit) -> bool:
    return fit.cause.sure == "certain"
