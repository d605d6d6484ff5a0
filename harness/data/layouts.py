"""Weights from the layouts of other programs (harness.models.layouts), and back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.errors import HarnessError
from harness.models.layouts import CANONICAL, LAYOUTS, Layout
from harness.models.table import fitting, parameters
from harness.spec import ModelSpec, build

Arrays = Mapping[str, NDArray[Any]]
Shapes = Mapping[str, tuple[int, ...]]


def recognise(names: Iterable[str]) -> Layout:
    """The layout that most of `names` belong to. Raises HarnessError if none of them does."""
    given = set(names)
    layers = len(given)
    best = max(LAYOUTS.values(), key=lambda row: len(given.intersection(row.names(layers))))
    if not given.intersection(best.names(layers)):
        firsts = {row.name: row.names(1)[:2] for row in LAYOUTS.values()}
        known = "; ".join(f"{name}: {', '.join(first)}" for name, first in firsts.items())
        raise HarnessError(
            f"no known layout of weights (found {_listed(given)}). Known layouts and their first "
            f"names: {known}"
        )
    return best


def infer_model(shapes: Shapes, layout: Layout, model: ModelSpec | None) -> ModelSpec:
    """The model that arrays of these shapes describe, or `model` itself if they fit it.

    Raises HarnessError that names every missing, extra or misshaped array.
    """
    if layout is CANONICAL:
        model = model or fitting(shapes)
    if model is None:
        layers = 0
        while any(name in shapes for name in layout.layer_names(layers)):
            layers += 1
        _check_names(shapes, layout.names(max(layers, 1)))
        embedding, softmax_b = shapes[layout.embedding], shapes[layout.softmax_b]
        bias = shapes[layout.b_i.format(k=0)]
        if len(embedding) != 2 or len(softmax_b) != 1 or len(bias) != 1 or bias[0] % 4:
            raise HarnessError(
                f"{layout.embedding} {list(embedding)}, {layout.b_i.format(k=0)} {list(bias)} and "
                f"{layout.softmax_b} {list(softmax_b)} are not [V, E], [4H] and [V]"
            )
        model = build(
            ModelSpec,
            vocab_size=embedding[0],
            embed_size=embedding[1],
            hidden_size=bias[0] // 4,
            num_layers=layers,
        )
    else:
        _check_names(shapes, list(_shapes(model, layout)))
    expected = _shapes(model, layout)
    wrong = [
        f"{name} has shape {list(shapes[name])}, expected {list(shape)}"
        for name, shape in expected.items()
        if tuple(shapes[name]) != shape
    ]
    if wrong:
        sizes = f"V={model.vocab_size}, E={model.embed_size}, H={model.hidden_size}"
        raise HarnessError(f"{'; '.join(wrong)} (model: {sizes}, {model.num_layers} layers)")
    return model


def from_layout(arrays: Arrays, layout: Layout, model: ModelSpec) -> dict[str, NDArray[Any]]:
    """Canonical arrays from those of a file whose shapes were checked by `infer_model`."""
    if layout is CANONICAL:
        return {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    turn = _turn(layout)
    weights = {CANONICAL.embedding: arrays[layout.embedding]}
    for k in range(model.num_layers):
        w_i = _regate(turn(arrays[layout.w_i.format(k=k)]), layout.gates, "ifgo")
        if layout.w_h is None:
            inputs = w_i.shape[0] - model.hidden_size
            w_i, w_h = w_i[:inputs], w_i[inputs:]
        else:
            w_h = _regate(turn(arrays[layout.w_h.format(k=k)]), layout.gates, "ifgo")
        b_i = _regate(arrays[layout.b_i.format(k=k)], layout.gates, "ifgo")
        b_h = (
            np.zeros_like(b_i)
            if layout.b_h is None
            else _regate(arrays[layout.b_h.format(k=k)], layout.gates, "ifgo")
        )
        if layout.forget_bias:
            b_h[_gate("f", model.hidden_size)] += layout.forget_bias
        weights |= zip(CANONICAL.layer_names(k), (w_i, w_h, b_i, b_h), strict=True)
    weights[CANONICAL.softmax_w] = turn(arrays[layout.softmax_w])
    weights[CANONICAL.softmax_b] = arrays[layout.softmax_b]
    return {name: np.ascontiguousarray(array) for name, array in weights.items()}


def to_layout(weights: Arrays, layout: Layout) -> dict[str, NDArray[Any]]:
    """The arrays of a file in `layout` from canonical ones. Raises HarnessError if it has none."""
    if layout is CANONICAL:
        return {name: np.ascontiguousarray(array) for name, array in weights.items()}
    _check_lstm(fitting({name: array.shape for name, array in weights.items()}), layout)
    turn = _turn(layout)
    arrays = {layout.embedding: weights[CANONICAL.embedding]}
    layers = sum(CANONICAL.b_i.format(k=k) in weights for k in range(len(weights)))
    for k in range(layers):
        w_i, w_h, b_i, b_h = (
            _regate(weights[name], "ifgo", layout.gates) for name in CANONICAL.layer_names(k)
        )
        if layout.w_h is None:
            arrays[layout.w_i.format(k=k)] = turn(np.concatenate([w_i, w_h]))
        else:
            arrays[layout.w_i.format(k=k)] = turn(w_i)
            arrays[layout.w_h.format(k=k)] = turn(w_h)
        if layout.forget_bias:
            b_i = b_i.copy()
            hidden = b_i.shape[0] // 4
            b_i[_gate("f", hidden, layout.gates)] -= layout.forget_bias
        if layout.b_h is None:
            arrays[layout.b_i.format(k=k)] = b_i + b_h
        else:
            arrays[layout.b_i.format(k=k)] = b_i
            arrays[layout.b_h.format(k=k)] = b_h
    arrays[layout.softmax_w] = turn(weights[CANONICAL.softmax_w])
    arrays[layout.softmax_b] = weights[CANONICAL.softmax_b]
    return {name: np.ascontiguousarray(array) for name, array in arrays.items()}


def _turn(layout: Layout) -> Any:
    return np.transpose if layout.transposed else np.asarray


def _gate(gate: str, hidden: int, order: str = "ifgo") -> slice:
    start = order.index(gate) * hidden
    return slice(start, start + hidden)


def _regate(array: NDArray[Any], have: str, want: str) -> NDArray[Any]:
    """The four blocks of the last axis brought from order `have` into order `want`."""
    hidden = array.shape[-1] // 4
    return np.concatenate([array[..., _gate(gate, hidden, have)] for gate in want], axis=-1)


def _shapes(model: ModelSpec, layout: Layout) -> dict[str, tuple[int, ...]]:
    """Name and shape of every array of a file in `layout`."""
    canonical = {p.name: p.shape for p in parameters(model)}
    if layout is CANONICAL:
        return canonical
    _check_lstm(model, layout)
    step = -1 if layout.transposed else 1
    shapes = {layout.embedding: canonical[CANONICAL.embedding]}
    for k in range(model.num_layers):
        w_i, w_h, b_i, _ = (canonical[name] for name in CANONICAL.layer_names(k))
        if layout.w_h is None:
            w_i = (w_i[0] + w_h[0], w_i[1])
        else:
            shapes[layout.w_h.format(k=k)] = w_h[::step]
        shapes[layout.w_i.format(k=k)] = w_i[::step]
        for bias in filter(None, (layout.b_i, layout.b_h)):
            shapes[bias.format(k=k)] = b_i
    shapes[layout.softmax_w] = canonical[CANONICAL.softmax_w][::step]
    shapes[layout.softmax_b] = canonical[CANONICAL.softmax_b]
    return shapes


def _check_lstm(model: ModelSpec | None, layout: Layout) -> None:
    if model and (model.network != "lstm" or model.tied):
        kind = f"{model.network}{', tied' if model.tied else ''}"
        raise HarnessError(
            f"the layout {layout.name} is of LSTMs whose weights are not tied, and the model is "
            f"{kind}: use canonical"
        )


def _check_names(names: Iterable[str], expected: list[str]) -> None:
    have = set(names)
    missing, extra = [n for n in expected if n not in have], have.difference(expected)
    if missing or extra:
        parts = [f"missing {_listed(missing)}"] if missing else []
        parts += [f"extra {_listed(extra)}"] if extra else []
        raise HarnessError("; ".join(parts))


def _listed(names: Iterable[str], most: int = 12) -> str:
    names = sorted(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
