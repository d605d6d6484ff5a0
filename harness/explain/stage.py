"""The stages of the model, recomputed in float64 from what a side traced.

A stage that is made of products is a `Stage`: a sum of matrix products whose operands a cause may
round, mask or permute before they are multiplied. z = x w_i + b_i + h w_h + b_h, blocks i, f, g, o
of H units; c' = s(f) c + s(i) tanh(g); h' = s(o) tanh(c') (Zaremba et al. 2014, arXiv 1409.2329,
section 3.1); the backward formulas are their derivatives. Rows are those of the first axis: batch
rows of an activation, inputs of a weight's gradient.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from harness.explain.case import Array, Case, Side
from harness.explain.trial import ALL, MOST_LAYERS, number, remembered, wide

Change = Callable[[Array], Array]
CELL = re.compile(r"(forward|backward)/layer(\d+)/(gates|c|h)")


class Term(NamedTuple):
    """left [R, .., K] @ right [K, N], times `scale` (a mask with its factor) where there is one.

    Operands keep the dtype of the trace, so that rounding them again rounds what the run rounded.
    """

    left: Array
    right: Array
    scale: Array | None = None


class Stage(NamedTuple):
    """A sum of products plus an offset, reshaped to `shape` (its rows are the first axis)."""

    terms: tuple[Term, ...]
    offset: Array | float
    shape: tuple[int, ...]

    def value(self, rows: slice = ALL, change: Change | None = None) -> Array:
        """The stage in float64; `change` is applied to the operands of every product."""
        return self.total([product(term, rows, change) for term in self.terms], rows)

    def total(self, products: list[Array], rows: slice = ALL) -> Array:
        """The stage from its products."""
        total = sum(products[1:], products[0]) + self.offset
        if len(self.shape) < 2:
            return np.reshape(total, self.shape)
        return np.reshape(total, (-1, *self.shape[1:]))


def part(of: Stage, rows: Array, columns: Array) -> Stage:
    """The stage at some rows and some of its last axis alone (of one axis: at those columns)."""
    terms = tuple(
        Term(
            t.left[rows] if len(of.shape) > 1 else t.left,
            t.right[:, columns],
            None if t.scale is None else t.scale[rows][..., columns],
        )
        for t in of.terms
    )
    offset = of.offset[columns] if isinstance(of.offset, np.ndarray) else of.offset
    ends = (len(rows), *of.shape[1:-1]) if len(of.shape) > 1 else ()
    return Stage(terms, offset, (*ends, len(columns)))


def product(term: Term, rows: slice = ALL, change: Change | None = None) -> Array:
    """One product of a stage in float64."""
    left, right = term.left[rows], term.right
    if change is not None:
        left, right = change(left), change(right)
    left, right = np.asarray(left, np.float64), np.asarray(right, np.float64)
    made = left.reshape(-1, left.shape[-1]) @ right
    made = made.reshape(*left.shape[:-1], right.shape[-1])
    return made if term.scale is None else made * term.scale[rows]


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)), without overflow."""
    return 0.5 * (np.tanh(0.5 * x) + 1)


def blocks(z: Array) -> list[Array]:
    """The gates i, f, g, o of pre-activations [.., 4H], in float64."""
    return np.split(np.asarray(z, np.float64), 4, axis=-1)


def keep_probability(case: Case) -> float | None:
    """1 - dropout; None where nothing is dropped or the rate is not known."""
    rate = number(case, "dropout")
    return 1 - rate if rate and 0 < rate < 1 else None


def dropped(case: Case, side: Side, site: str, x: Array) -> Array:
    """`x` [B, T, width] as dropout at `site` leaves it, in the dtype of the trace."""
    mask, keep = case.get(f"inputs/mask/{site}", side), keep_probability(case)
    if mask is None or keep is None or mask.shape != x.shape:
        return x
    return np.asarray(x * mask.astype(x.dtype) / x.dtype.type(keep))


def site_of(layer: int) -> str:
    """The dropout site whose output layer `layer` (or the softmax, after the last) reads."""
    return f"layer{layer - 1}" if layer else "embedding"


def source(case: Case, side: Side, layer: int) -> Array | None:
    """What layer `layer` reads, before dropout: [B, T, E or H]."""
    below = f"forward/layer{layer - 1}/h" if layer else "forward/embedding"
    return case.get(below, side)


def layers(case: Case) -> int:
    """How many layers the trace has."""
    numbers = range(MOST_LAYERS)
    return next((k for k in numbers if case.get(f"forward/layer{k}/h") is None), MOST_LAYERS)


def layer_input(case: Case, side: Side, layer: int) -> Array | None:
    """What layer `layer` multiplies with its weights: [B, T, E or H]."""
    x = source(case, side, layer)
    return None if x is None else dropped(case, side, site_of(layer), x)


def previous(case: Case, side: Side, layer: int, part: str) -> Array | None:
    """h or c one timestep earlier, the state that came in first: [B, T, H]."""
    now = case.get(f"forward/layer{layer}/{part}", side)
    first = case.get(f"state/in/layer{layer}/{part}", side)
    if now is None or first is None:
        return None
    return np.concatenate([first[:, None], now[:, :-1]], axis=1)


def later(x: Array) -> Array:
    """x [B, T, ..] one timestep later; zeros after the last."""
    return np.concatenate([x[:, 1:], np.zeros_like(x[:, :1])], axis=1)


def weight(case: Case, side: Side, name: str, back: int = 0) -> Array | None:
    """A parameter as the forward pass of this step, or of `back` steps before, used it."""
    return case._replace(step=case.step - back).before(name, side)


def stage(case: Case, side: Side, back: int = 0) -> Stage | None:
    """The products that the tensor of the case is made of; None where it is made of none.

    `back` takes the weights of that many steps before.
    """
    key = ("stage", case.tensor, side, back)
    return remembered(case, key, lambda: _stage(case, side, back))


def usual(case: Case, side: Side, rows: slice = ALL) -> Array | None:
    """The tensor of the case, recomputed as the products say; not to be changed in place."""
    made = stage(case, side)
    if made is None:
        return None
    key = ("value", case.tensor, side, rows.start, rows.stop)
    return remembered(case, key, lambda: made.value(rows))


def _stage(case: Case, side: Side, back: int) -> Stage | None:
    name, shape = case.tensor, case.b.shape
    cell = CELL.fullmatch(name)
    if name == "forward/logits" or (cell and cell[1] == "forward" and cell[3] == "gates"):
        return _forward(case, side, int(cell[2]) if cell else None, back)
    if name == "backward/embedding" or (cell and cell[1] == "backward" and cell[3] == "h"):
        return _backward(case, side, int(cell[2]) if cell else -1)
    if name.startswith("grads/"):
        made = _gradient(case, side, name.removeprefix("grads/"))
        return made and made._replace(shape=shape)
    return None


def _forward(case: Case, side: Side, layer: int | None, back: int) -> Stage | None:
    """Pre-activations of a layer, or logits (`layer` None)."""
    x = layer_input(case, side, layers(case) if layer is None else layer)
    if layer is None:
        w, bias = (weight(case, side, f"softmax_{part}", back) for part in "wb")
        if x is None or w is None or bias is None:
            return None
        return Stage((Term(x, w),), wide(bias), case.b.shape)  # type: ignore[arg-type]
    w_i, w_h, b_i, b_h = (
        weight(case, side, f"layer{layer}/{part}", back) for part in ("w_i", "w_h", "b_i", "b_h")
    )
    h = previous(case, side, layer, "h")
    if x is None or h is None or w_i is None or w_h is None or b_i is None or b_h is None:
        return None
    offset = np.asarray(b_i, np.float64) + b_h
    return Stage((Term(x, w_i), Term(h, w_h)), offset, case.b.shape)


def _backward(case: Case, side: Side, layer: int) -> Stage | None:
    """dLoss/dh of a layer, or of the embedding's output (`layer` -1).

    What comes from above, through dropout, and what comes back from the next timestep's gates.
    """
    top = layer == layers(case) - 1
    above = "backward/logits" if top else f"backward/layer{layer + 1}/gates"
    dz = case.get(above, side)
    w = weight(case, side, "softmax_w" if top else f"layer{layer + 1}/w_i")
    if dz is None or w is None:
        return None
    ones = np.ones(case.b.shape, dtype=case.b.dtype)
    mask = np.asarray(dropped(case, side, site_of(layer + 1), ones), np.float64)
    terms = [Term(dz, w.T, mask)]
    if layer >= 0:
        dz, w = (
            case.get(f"backward/layer{layer}/gates", side),
            weight(case, side, f"layer{layer}/w_h"),
        )
        if dz is None or w is None:
            return None
        terms.append(Term(later(dz), w.T))
    return Stage(tuple(terms), 0.0, case.b.shape)


def _gradient(case: Case, side: Side, name: str) -> Stage | None:
    """The gradient of a weight (inputs^T dz over all tokens) or of a bias (the sum of dz)."""
    found = re.fullmatch(r"(?:layer(\d+)/|softmax_)(w_i|w_h|b_i|b_h|w|b)", name)
    if not found:
        return None
    top, part = found[1] is None, found[2]
    layer = layers(case) if top else int(found[1])
    dz = case.get("backward/logits" if top else f"backward/layer{layer}/gates", side)
    if dz is None:
        return None
    dz = dz.reshape(-1, dz.shape[-1])
    if part[:1] == "b":
        x: Array | None = np.ones((len(dz), 1), dz.dtype)
    elif part == "w_h":
        x = previous(case, side, layer, "h")
    else:
        x = layer_input(case, side, layer)
    if x is None:
        return None
    return Stage((Term(x.reshape(-1, x.shape[-1]).T, dz),), 0.0, ())


def cell(case: Case, side: Side, rows: slice = ALL) -> list[Array] | None:
    """Pre-activations i, f, g, o, c before and c after a layer's cell, float64 [B, T, H] each."""
    found = CELL.fullmatch(case.tensor)
    if not found:
        return None
    layer = int(found[2])
    z, c = (case.get(f"forward/layer{layer}/{part}", side) for part in ("gates", "c"))
    before = previous(case, side, layer, "c")
    if z is None or c is None or before is None:
        return None
    return [*blocks(z[rows]), np.asarray(before[rows], np.float64), np.asarray(c[rows], np.float64)]


def backward_cell(case: Case, side: Side, rows: slice = ALL) -> dict[str, Array] | None:
    """What the backward pass of a cell is made of, float64 [B, T, H] each.

    i, f, g, o after their functions, `before` and `c` the cell state, `th` its tanh; dh and dc, and
    `carried` = dc_(t+1) f_(t+1).
    """
    made = cell(case, side, rows)
    layer = case.tensor.split("/")[1]
    dh, dc = (case.get(f"backward/{layer}/{part}", side) for part in "hc")
    if made is None or dh is None or dc is None:
        return None
    i, f, o = (sigmoid(made[k]) for k in (0, 1, 3))
    dc = np.asarray(dc[rows], np.float64)
    return dict(
        i=i,
        f=f,
        g=np.tanh(made[2]),
        o=o,
        before=made[4],
        c=made[5],
        th=np.tanh(made[5]),
        dh=np.asarray(dh[rows], np.float64),
        dc=dc,
        carried=later(dc * f),
    )


def token_losses(logits: Array, targets: Array) -> Array:
    """Negative log-likelihood of each target: logits [B, T, V], targets [B, T] -> [B, T]."""
    z = np.asarray(logits, np.float64)
    top = z.max(axis=-1, keepdims=True)
    log_sum = np.log(np.exp(z - top).sum(axis=-1)) + top[..., 0]
    picked = np.take_along_axis(z, np.asarray(targets, np.int64)[..., None], axis=-1)[..., 0]
    return np.asarray(log_sum - picked)
