"""Causes inside an LSTM layer: order of gates, biases, formulas, and gradients that do not flow.

Pre-activations of the next timestep depend on c and h of this one, so a fault of c or h shows first
in the tensor of pre-activations. Each stage of the layer is therefore recomputed from a side's own
numbers, in the order of execution, until one of them does not follow on one side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import permutations

import numpy as np

from harness.compare.axes import GATES
from harness.explain.case import Array, Case, Cause, Side
from harness.explain.stage import (
    CELL,
    backward_cell,
    blocks,
    cell,
    product,
    sigmoid,
    stage,
    usual,
    weight,
)
from harness.explain.structure import Way, best_way
from harness.explain.trial import Guess, at, own, tell, wide

PARTS = {"forward": ("gates", "c", "h"), "backward": ("h", "c", "gates")}
ORDERS = tuple(permutations(range(4)))[1:]
TF1 = (0, 2, 1, 3)
Cell = Callable[[Array, Array, Array, Array, Array], Array]


def stages(case: Case, *parts: str) -> Iterator[Case]:
    """The case at each stage of its layer from the tensor on, that of `parts` alone, if it differs.

    A stage that agrees on both sides cannot be the one that is at fault.
    """
    found = CELL.fullmatch(case.tensor)
    if not found:
        return
    order = PARTS[found[1]]
    for part in order[order.index(found[3]) :]:
        here = at(case, f"{found[1]}/layer{found[2]}/{part}") if part in parts else None
        if here is not None and here.gap() > here.level:
            yield here


def first(causes: Iterator[Cause | None]) -> Cause | None:
    """The first cause that holds."""
    return next((cause for cause in causes if cause is not None), None)


def order_words(order: tuple[int, ...]) -> str:
    """Blocks by letter: "i,g,f,o"."""
    return ",".join(GATES[k] for k in order) + (" (TF1's i,j,f,o)" if order == TF1 else "")


def gate_order(case: Case) -> Cause | None:
    """Blocks of gates in another order, in a tensor or where the cell splits them."""
    if case.tensor.split("/")[-1] in ("gates", "w_i", "w_h", "b_i", "b_h"):
        found = best_way(case, "gate-order", _block_orders(case.b))
        if found:
            return found
    made = {
        "gates": [_ordered_gates(order) for order in (None, *ORDERS)],
        "c": [_split(case, order) for order in ((0, 1, 2, 3), *ORDERS)],
        "h": [_output(case, k) for k in (3, 0, 1, 2)],
    }
    if not case.tensor.startswith("forward/"):
        return None
    return first(
        tell(here, "gate-order", [g(here) for g in made[here.tensor.split("/")[-1]]])
        for here in stages(case, "gates", "c", "h")
    )


def _block_orders(b: Array) -> Iterator[Way]:
    if not b.ndim or b.shape[-1] % 4 or not b.size:
        return
    parts = np.split(b, 4, axis=-1)
    for order in ORDERS:
        value = np.concatenate([parts[k] for k in order], axis=-1)
        yield Way(f"with its gates in the order {order_words(order)} against i,f,g,o", value)


def _ordered_gates(order: tuple[int, ...] | None) -> Callable[[Case], Guess]:
    def make(case: Case) -> Guess:
        def value(side: Side, rows: slice) -> Array | None:
            z = usual(case, side, rows)
            if z is None or order is None:
                return z
            parts = blocks(z)
            return np.concatenate([parts[k] for k in order], axis=-1)

        words = "i,f,g,o" if order is None else order_words(order)
        return Guess(f"has its gates in the order {words}", value)

    return make


def _split(case: Case, order: tuple[int, ...]) -> Callable[[Case], Guess]:
    def make(here: Case) -> Guess:
        def formula(*z: Array) -> Array:
            i, f, g, _ = (z[k] for k in order)
            return np.asarray(sigmoid(f) * z[4] + sigmoid(i) * np.tanh(g))

        return cell_guess(here, f"reads the gates in the order {order_words(order)}", formula)

    return make


def _output(case: Case, block: int) -> Callable[[Case], Guess]:
    def make(here: Case) -> Guess:
        def formula(*z: Array) -> Array:
            return np.asarray(sigmoid(z[block]) * np.tanh(z[5]))

        return cell_guess(here, f"takes block {GATES[block]} for the output gate", formula)

    return make


def cell_guess(case: Case, words: str, formula: Callable[..., Array]) -> Guess:
    """A guess `formula(i, f, g, o, c before, c)` of pre-activations and cell states."""

    def value(side: Side, rows: slice) -> Array | None:
        z = cell(case, side, rows)
        return None if z is None else formula(*z)

    return Guess(words, value)


def forget_bias(case: Case) -> Cause | None:
    """A constant added to the forget gate, in its pre-activation or inside the cell."""
    return first(
        (_forget_bias_gates(here) if here.tensor.endswith("/gates") else _forget_bias_cell(here))
        for here in stages(case, "gates", "c")
    )


def _constant_words(values: Array) -> tuple[float, str]:
    """The constant that `values` scatter around, and how a sentence gives it."""
    finite = values[np.isfinite(values)]
    middle = float(np.median(finite)) if finite.size else 0.0
    if abs(middle - round(middle)) < 1e-3:
        middle = float(round(middle))
    return middle, f"adds {middle:.4g} to the forget gate"


def _forget_bias_gates(case: Case) -> Cause | None:
    """The constant is estimated on each side from what the products leave in block f."""
    for side in ("a", "b"):
        base = usual(case, side)
        if base is None:
            return None
        width = base.shape[-1] // 4
        block = slice(width, 2 * width)
        added, words = _constant_words((own(case, side) - base)[..., block])
        if not added:
            continue
        guesses = [_shifted_gates(case, 0.0, "adds nothing"), _shifted_gates(case, added, words)]
        found = tell(case, "forget-bias", guesses)
        if found:
            return found
    return None


def _shifted_gates(case: Case, added: float, words: str) -> Guess:
    def value(side: Side, rows: slice) -> Array | None:
        z = usual(case, side, rows)
        if z is None:
            return None
        z = z.copy()
        width = z.shape[-1] // 4
        z[..., width : 2 * width] += added
        return z

    return Guess(words, value)


def _forget_bias_cell(case: Case) -> Cause | None:
    """The constant from s(f + k) = (c - s(i) tanh(g)) / c_before, where c_before is not small."""
    for side in ("a", "b"):
        z = cell(case, side)
        if z is None:
            return None
        i, f, g, _, before, _ = z
        share = (own(case, side) - sigmoid(i) * np.tanh(g)) / np.where(before == 0, np.nan, before)
        share = np.where(np.abs(before) > 0.1 * np.abs(before).max(initial=0.0), share, np.nan)
        added, words = _constant_words(np.log(share / (1 - share)) - f)
        guesses = [
            cell_guess(
                case,
                says,
                lambda i, f, g, o, before, c, k=k: (
                    sigmoid(f + k) * before + sigmoid(i) * np.tanh(g)
                ),
            )
            for says, k in (("adds nothing", 0.0), (words, added))
        ]
        found = tell(case, "forget-bias", guesses) if added else None
        if found:
            return found
    return None


def bias_missing(case: Case) -> Cause | None:
    """A bias left out of pre-activations or logits."""
    return _biases(case, "bias-missing", "leaves out", -1)


def bias_twice(case: Case) -> Cause | None:
    """A bias counted twice in pre-activations or logits."""
    return _biases(case, "bias-twice", "counts twice", 1)


def _biases(case: Case, name: str, verb: str, sign: int) -> Cause | None:
    if case.tensor == "forward/logits":
        groups: list[tuple[str, ...]] = [("softmax_b",)]
    else:
        layer = case.tensor.split("/")[1]
        b_i, b_h = f"{layer}/b_i", f"{layer}/b_h"
        groups = [(b_i,), (b_h,), (b_i, b_h)]

    def guess(group: tuple[str, ...], words: str) -> Guess:
        def value(side: Side, rows: slice) -> Array | None:
            made = usual(case, side, rows)
            biases = [wide(weight(case, side, b)) for b in group]
            if made is None or any(b is None for b in biases):
                return None
            return made + sign * sum(b for b in biases if b is not None) if group else made

        return Guess(words, value)

    plain = guess((), "adds every bias once")
    return tell(case, name, [plain, *(guess(g, f"{verb} {' and '.join(g)}") for g in groups)])


def relu(x: Array) -> Array:
    """max(x, 0)."""
    return np.asarray(np.maximum(x, 0))


def keras_hard(x: Array) -> Array:
    """The hard sigmoid of Keras 1 and 2: clip(0.2 x + 0.5, 0, 1)."""
    return np.clip(0.2 * x + 0.5, 0, 1)


def torch_hard(x: Array) -> Array:
    """The hard sigmoid of torch and Keras 3: relu6(x + 3) / 6."""
    return np.clip(x / 6 + 0.5, 0, 1)


CELL_STATES: tuple[tuple[str, Cell], ...] = (
    ("computes s(f) c + s(i) tanh(g)", lambda i, f, g, o, c: _c(i, f, np.tanh(g), c)),
    (
        "has hard sigmoids clip(0.2 x + 0.5)",
        lambda i, f, g, o, c: _c(i, f, np.tanh(g), c, keras_hard),
    ),
    (
        "has hard sigmoids relu6(x + 3) / 6",
        lambda i, f, g, o, c: _c(i, f, np.tanh(g), c, torch_hard),
    ),
    ("leaves out the tanh of g", lambda i, f, g, o, c: _c(i, f, g, c)),
    ("has a sigmoid for the tanh of g", lambda i, f, g, o, c: _c(i, f, sigmoid(g), c)),
    ("has a ReLU for the tanh of g", lambda i, f, g, o, c: _c(i, f, relu(g), c)),
    ("couples the gates, i = 1 - f", lambda i, f, g, o, c: _c(-f, f, np.tanh(g), c)),
    ("couples the gates, f = 1 - i", lambda i, f, g, o, c: _c(i, -i, np.tanh(g), c)),
    ("has no forget gate", lambda i, f, g, o, c: c + sigmoid(i) * np.tanh(g)),
    ("has no input gate", lambda i, f, g, o, c: sigmoid(f) * c + np.tanh(g)),
    ("forgets the cell state", lambda i, f, g, o, c: sigmoid(i) * np.tanh(g)),
    ("leaves out the sigmoids", lambda i, f, g, o, c: f * c + i * np.tanh(g)),
)


def _c(i: Array, f: Array, g: Array, c: Array, gate: Callable[[Array], Array] = sigmoid) -> Array:
    return np.asarray(gate(f) * c + gate(i) * g)


HIDDEN_STATES: tuple[tuple[str, Callable[[Array, Array, Array], Array]], ...] = (
    ("computes s(o) tanh(c)", lambda o, before, c: sigmoid(o) * np.tanh(c)),
    ("has a hard sigmoid clip(0.2 o + 0.5)", lambda o, before, c: keras_hard(o) * np.tanh(c)),
    ("has a hard sigmoid relu6(o + 3) / 6", lambda o, before, c: torch_hard(o) * np.tanh(c)),
    ("leaves out the tanh of c", lambda o, before, c: sigmoid(o) * c),
    ("has a sigmoid for the tanh of c", lambda o, before, c: sigmoid(o) * sigmoid(c)),
    ("has a ReLU for the tanh of c", lambda o, before, c: sigmoid(o) * relu(c)),
    ("has no output gate", lambda o, before, c: np.tanh(c)),
    ("reads the cell state before the timestep", lambda o, before, c: sigmoid(o) * np.tanh(before)),
    ("leaves out the sigmoid of o", lambda o, before, c: o * np.tanh(c)),
)


def usual_cell(case: Case) -> Guess:
    """The usual formula of a cell state or hidden state."""
    if case.tensor.endswith("/c"):
        return cell_guess(case, "", lambda i, f, g, o, before, c: _c(i, f, np.tanh(g), before))
    return cell_guess(case, "", lambda i, f, g, o, before, c: sigmoid(o) * np.tanh(c))


def cell_formula(case: Case) -> Cause | None:
    """Another formula for the new cell state or hidden state."""

    def try_at(here: Case) -> Cause | None:
        if here.tensor.endswith("/c"):
            return tell(
                here,
                "cell-formula",
                [
                    cell_guess(
                        here,
                        words,
                        lambda i, f, g, o, before, c, formula=formula: formula(i, f, g, o, before),
                    )
                    for words, formula in CELL_STATES
                ],
            )
        return tell(
            here,
            "cell-formula",
            [
                cell_guess(
                    here,
                    words,
                    lambda i, f, g, o, before, c, formula=formula: formula(o, before, c),
                )
                for words, formula in HIDDEN_STATES
            ],
        )

    return first(try_at(here) for here in stages(case, "c", "h"))


def no_flow(case: Case) -> Cause | None:
    """A gradient that does not flow through time, or not from above, in the backward pass."""
    return first(
        tell(here, "zero-gradient", flows(here)) for here in stages(case, "h", "c", "gates")
    )


def flows(case: Case) -> list[Guess]:
    """The usual backward formula of a stage, and those with a path of the gradient cut."""
    if case.tensor.endswith("/h"):
        return [
            _without(case, "lets gradient flow through time", None),
            _without(case, "lets no gradient flow through time (h is detached)", 1),
            _without(case, "lets no gradient flow from above", 0),
        ]
    if case.tensor.endswith("/c"):
        direct: Callable[[dict[str, Array]], Array]
        direct = lambda p: p["dh"] * p["o"] * (1 - p["th"] ** 2)  # noqa: E731
        return [
            _backward(case, "lets gradient flow through time", lambda p: direct(p) + p["carried"]),
            _backward(case, "lets no gradient flow through time (c is detached)", direct),
            _backward(case, "lets no gradient flow from h to c", lambda p: p["carried"]),
        ]
    whole = [True] * 4
    cuts = [[k != gate for k in range(4)] for gate in range(4)]
    return [
        _backward(case, "has a gradient for every gate", lambda p: _dz(p, whole)),
        *(
            _backward(case, f"has no gradient for gate {GATES[k]}", lambda p, cut=cut: _dz(p, cut))
            for k, cut in enumerate(cuts)
        ),
    ]


def _without(case: Case, words: str, cut: int | None) -> Guess:
    def value(side: Side, rows: slice) -> Array | None:
        made = stage(case, side)
        if made is None:
            return None
        terms = [product(term, rows) for term in made.terms]
        return made.total([0 * t if k == cut else t for k, t in enumerate(terms)], rows)

    return Guess(words, value)


def _backward(case: Case, words: str, formula: Callable[..., Array]) -> Guess:
    def value(side: Side, rows: slice) -> Array | None:
        parts = backward_cell(case, side, rows)
        return None if parts is None else formula(parts)

    return Guess(words, value)


def _dz(p: dict[str, Array], kept: list[bool]) -> Array:
    """Gradients of the pre-activations i, f, g, o; zeros for those that are not kept."""
    i, f, g, o = p["i"], p["f"], p["g"], p["o"]
    parts = [
        p["dc"] * g * i * (1 - i),
        p["dc"] * p["before"] * f * (1 - f),
        p["dc"] * i * (1 - g**2),
        p["dh"] * p["th"] * o * (1 - o),
    ]
    return np.concatenate([x if k else 0 * x for x, k in zip(parts, kept, strict=True)], axis=-1)
