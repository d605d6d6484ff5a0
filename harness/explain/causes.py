"""The table of causes: what is tried on the first divergent tensor, and in which order.

A cause is one function and one row. It holds only if the sides agree to rounding once it is applied
to one of them; rows of rank HINT alone say where a difference lies, not why. None is better than a
wrong one.
"""

from __future__ import annotations

from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import NamedTuple

import numpy as np

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
from harness.explain.trial import Memory

MOST = 5  # causes that are told of one tensor
SURE = ("certain", "likely", "hint")
EXACT, SPECIFIC, PLAIN, GENERIC, HINT = range(5)
# A certain cause that leaves LESSER times what another leaves, and CLEAR eps more, is not kept.
LESSER, CLEAR = 8.0, 4.0

CELLS = "*ward/layer*/*"
FORWARD = ("forward/layer*/*", "forward/logits")
GRADIENTS = ("backward/*", "grads/*", "update/clipped/*")
SLOTS = ("optimizer/*", "params/*")


class Row(NamedTuple):
    """A cause: its name, the tensors it is tried on, its function, and how specific it is.

    `settings` are those whose difference between the sides would bring it about.
    """

    name: str
    globs: tuple[str, ...]
    function: Callable[[Case], Cause | list[Cause] | None]
    rank: int
    settings: tuple[str, ...] = ()


CAUSES: tuple[Row, ...] = (
    Row("state-not-carried", ("state/in/*",), structure.state_not_carried, EXACT),
    Row("state-not-reset", ("state/in/*",), structure.state_not_reset, EXACT),
    Row("clip-elementwise", ("update/clipped/*",), clipping.clip_elementwise, EXACT, ("clip",)),
    Row(
        "norm-duplicates",
        ("update/global_norm", "update/clipped/*"),
        clipping.norm_duplicates,
        EXACT,
    ),
    Row(
        "loss-formula", ("forward/loss", "backward/logits"), network.loss_formula, EXACT, ("loss",)
    ),
    Row("forget-bias", ("forward/layer*/*",), cells.forget_bias, EXACT),
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
    ),
    Row("clip-per-tensor", ("update/clipped/*",), clipping.clip_per_tensor, SPECIFIC, ("clip",)),
    Row(
        "clip-one-side",
        ("update/clipped/*",),
        clipping.clip_one_side,
        SPECIFIC,
        ("clip", "clip_limit"),
    ),
    Row("norm-parts", ("update/global_norm", "update/clipped/*"), clipping.norm_parts, SPECIFIC),
    Row("embedding-duplicates", ("grads/embedding",), network.embedding_duplicates, SPECIFIC),
    Row(
        "learning-rate",
        ("update/learning_rate",),
        scale.learning_rate,
        SPECIFIC,
        ("lr", "lr_decay", "flat_epochs", "schedule"),
    ),
    Row(
        "optimizer-formula",
        SLOTS,
        optimizer.optimizer_formula,
        SPECIFIC,
        ("optimizer", "momentum", "beta1", "beta2", "rho"),
    ),
    Row("zero-gradient", GRADIENTS, region.zero_gradient, SPECIFIC),
    Row("state-swapped", ("state/*",), structure.state_swapped, SPECIFIC),
    Row("stale", ("*",), structure.stale, PLAIN),
    Row("accumulated", GRADIENTS, structure.accumulated, EXACT),
    Row("shift", ("*",), structure.shift, PLAIN),
    Row("transposed", ("*",), structure.transposed, PLAIN),
    Row("sign", ("*",), scale.sign, PLAIN),
    Row("factor", ("*",), scale.factor, PLAIN, ("lr", "loss", "dropout", "bptt", "batch_size")),
    Row("reduced-precision", ("*",), precision.reduced_precision, PLAIN, ("dtype",)),
    Row("zero", ("inputs/*", "state/*", "forward/*", "optimizer/*"), region.zero, GENERIC),
    Row("constant", ("*",), scale.constant, GENERIC),
    Row("missing-term", (*GRADIENTS, "params/*"), region.missing_term, GENERIC),
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


def explain(case: Case) -> list[Cause]:
    """What may explain the difference of a case, best first; empty where nothing does."""
    if case.a.shape != case.b.shape or case.a.dtype != case.b.dtype or not case.b.size:
        return []
    if case.b.dtype.kind not in "fiub":
        return []
    if not case.gap() > case.level:
        return []
    case = case._replace(lookup=Memory(case.lookup))
    found: list[Cause] = []
    for row in CAUSES:
        if any(fnmatchcase(case.tensor, glob) for glob in row.globs):
            found += [_with_settings(case, row, cause) for cause in _try(row, case)]
    return _best(found)


def _try(row: Row, case: Case) -> list[Cause]:
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
    sentence = f"{cause.sentence}; the settings differ: {'; '.join(words)}"
    return Cause(cause.name, sentence, cause.residual_eps, cause.sure, cause.format)


def _best(found: list[Cause]) -> list[Cause]:
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
