"""Convolutions and pooling: where JAX has windows, in the terms of the graph."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from harness.capture.jax_expressions import Operand, made, permuted


def _padding(pairs: Any, shape: Any, window: Any, stride: Any, dilation: Any) -> Any:
    """Zeros before and after each axis as the ops have them; None for what they have not."""
    if all(before == after for before, after in pairs):
        return _plain([before for before, _ in pairs])
    same = []
    for n, k, s, d in zip(shape, window, stride, dilation, strict=True):
        total = max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0)
        same.append((total // 2, total - total // 2))
    return "same" if [tuple(map(int, p)) for p in pairs] == same else None


def _plain(numbers: Sequence[Any]) -> Any:
    found = [int(n) for n in numbers]
    return found[0] if len(set(found)) == 1 else found


def conv(call: Any) -> Operand | None:
    """A convolution; none with groups or with zeros between elements of its input."""
    p, spec = call.params, call.params["dimension_numbers"]
    if p["feature_group_count"] != 1 or p["batch_group_count"] != 1 or set(p["lhs_dilation"]) - {1}:
        return None
    rank = len(call.out)
    first, last = tuple(range(rank)), (0, rank - 1, *range(1, rank - 1))
    kernels = {"first": first, "last": (rank - 1, rank - 2, *range(rank - 2))}
    layout = next((n for n, s in (("first", first), ("last", last)) if spec.lhs_spec == s), None)
    if layout is None or spec.out_spec != spec.lhs_spec:
        return None
    w = call.of(1)
    if tuple(spec.rhs_spec) != kernels[layout]:
        order = [spec.rhs_spec[kernels[layout].index(k)] for k in range(rank)]
        w = permuted(w, [int(k) for k in order])
    window = [call.shape(1)[k] for k in spec.rhs_spec[2:]]
    shape = [call.shape(0)[k] for k in spec.lhs_spec[2:]]
    padding = _padding(p["padding"], shape, window, p["window_strides"], p["rhs_dilation"])
    if padding is None:
        return None
    return made(
        "conv",
        call.of(0),
        w,
        stride=_plain(p["window_strides"]),
        padding=padding,
        dilation=_plain(p["rhs_dilation"]),
        layout=layout,
    )


def _pool(call: Any) -> Operand | None:
    p = call.params
    window, stride = list(p["window_dimensions"]), list(p["window_strides"])
    if set(p["base_dilation"]) - {1} or set(p["window_dilation"]) - {1}:
        return None
    if window[0] != 1 or not (window[1] == 1 or window[-1] == 1):
        return None
    layout = "last" if window[-1] == 1 else "first"
    at = slice(1, -1) if layout == "last" else slice(2, None)
    shape = call.shape(0)
    ones = [1] * len(shape[at])
    padding = _padding(p["padding"][at], shape[at], window[at], stride[at], ones)
    return None if padding is None else _window(call, window[at], stride[at], padding, layout)


def _window(call: Any, window: Any, stride: Any, padding: Any, layout: str) -> Any:
    return {
        "size": _plain(window),
        "stride": _plain(stride),
        "padding": padding,
        "layout": layout,
    }


def max_pool(call: Any) -> Operand | None:
    """The largest element of every window."""
    args: Any = _pool(call)
    return None if args is None else made("max_pool", call.of(0), **args)


def sum_pool(call: Any) -> Operand | None:
    """The sum of every window, as its mean times the number of its elements."""
    args: Any = _pool(call)
    if args is None:
        return None
    mean = made("average_pool", call.of(0), **args)
    return made("scale", mean, float(math.prod(call.params["window_dimensions"])))
