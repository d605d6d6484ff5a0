"""Arithmetic of tensors that broadcast, batched products, and what hand-written attention needs."""

from __future__ import annotations

import numpy as np

from harness.models.graph import node
from harness.models.ops.basic import largest, product_size
from harness.models.ops.op import Array, kin, op


@op(
    lambda n, dy: tuple(node("sum_to", x, dy) for x in n.inputs),
    size=largest,
    says="the sum",
)
def broadcast_add(x: Array, y: Array) -> Array:
    """x + y, where axes that one has not, or has of length 1, are repeated."""
    return np.asarray(x + y)


@op(
    lambda n, dy: (
        node("sum_to", n.inputs[0], node("broadcast_multiply", dy, n.inputs[1])),
        node("sum_to", n.inputs[1], node("broadcast_multiply", dy, n.inputs[0])),
    ),
    size=product_size,
    says="the product",
)
def broadcast_multiply(x: Array, y: Array) -> Array:
    """x y, where axes that one has not, or has of length 1, are repeated."""
    return np.asarray(x * y)


@op(size=lambda x, dy: dy, over_time=True, cancels=True, says="the sum over what is repeated")
def sum_to(x: Array, dy: Array) -> Array:
    """dy summed over the axes along which x was repeated, in the shape of x."""
    dy = np.asarray(dy)
    more = dy.ndim - x.ndim
    found = dy.sum(axis=tuple(range(more))) if more else dy
    once = tuple(k for k in range(x.ndim) if x.shape[k] == 1)
    return np.asarray(found.sum(axis=once, keepdims=True) if once else found)


@kin("sum_to", "takes the mean, not the sum, over what is repeated")
def _mean_to(x: Array, dy: Array) -> Array:
    return np.asarray(sum_to(x, dy) * (x.size / dy.size))


@op(
    lambda n, dy: (
        node("matmul", dy, node("swap_last", n.inputs[1])),
        node("matmul", node("swap_last", n.inputs[0]), dy),
    ),
    size=product_size,
    cancels=True,
    says="the product",
)
def matmul(x: Array, y: Array) -> Array:
    """x y for each index of the axes before the last two: [.., T, D], [.., D, S] -> [.., T, S]."""
    if x.ndim != y.ndim or x.shape[:-2] != y.shape[:-2]:  # else the gradient would need a sum
        raise ValueError("axes before the last two that differ")
    return np.asarray(x @ y)


@op(lambda n, dy: (node("swap_last", dy),), size=lambda x: x, says="the transposed tensor")
def swap_last(x: Array) -> Array:
    """x with its last two axes swapped."""
    return np.swapaxes(x, -1, -2)


@kin("swap_last", "reads the memory in the new shape, without moving anything")
def _read_anew(x: Array) -> Array:
    return np.reshape(x, (*x.shape[:-2], x.shape[-1], x.shape[-2]))


@op(
    lambda n, dy: (node("causal_mask", dy, fill=0.0, more=n.arg("more", 0)),),
    size=lambda x: x,
    says="the causal mask",
)
def causal_mask(x: Array, fill: float = -1e30, more: int = 0) -> Array:
    """Scores [.., T, S] with `fill`, which no softmax sees, for keys after a query's place."""
    return np.where(np.tri(x.shape[-2], x.shape[-1], more, dtype=bool), x, x.dtype.type(fill))


@kin("causal_mask", "masks nothing")
def _unmasked(x: Array, fill: float = -1e30, more: int = 0) -> Array:
    return np.asarray(x)


@kin("causal_mask", "masks a query's own place too")
def _own_place(x: Array, fill: float = -1e30, more: int = 0) -> Array:
    return causal_mask(x, fill, more - 1)


@kin("causal_mask", "lets a query see one key after its place")
def _one_ahead(x: Array, fill: float = -1e30, more: int = 0) -> Array:
    return causal_mask(x, fill, more + 1)


@kin("causal_mask", "masks keys before a query's place, not after it")
def _other_side(x: Array, fill: float = -1e30, more: int = 0) -> Array:
    return np.swapaxes(causal_mask(np.swapaxes(x, -1, -2), fill, more), -1, -2)


@op(lambda n, dy: (node("multiply", dy, node("exp", *n.inputs)),), says="the exponential")
def exp(x: Array) -> Array:
    """e^x."""
    return np.asarray(np.exp(x))


@op(lambda n, dy: (node("divide", dy, *n.inputs),), says="the logarithm")
def log(x: Array) -> Array:
    """The natural logarithm."""
    return np.asarray(np.log(x))


@kin("log", "takes logarithms to the base of 2")
def _bits(x: Array) -> Array:
    return np.asarray(np.log2(x))


@kin("log", "takes log(1 + x)")
def _of_one_more(x: Array) -> Array:
    return np.asarray(np.log1p(x))


@op(
    lambda n, dy: (
        node("divide", dy, n.inputs[1]),
        node(
            "negate", node("multiply", dy, node("divide", node("divide", *n.inputs), n.inputs[1]))
        ),
    ),
    says="the quotient",
)
def divide(x: Array, y: Array) -> Array:
    """x / y, of one shape."""
    return np.asarray(x / y)


@kin("divide", "divides the second by the first")
def _swapped(x: Array, y: Array) -> Array:
    return np.asarray(y / x)


@op(
    lambda n, dy: (node("multiply", dy, node("sigmoid", *n.inputs)),),
    says="the softplus",
)
def softplus(x: Array) -> Array:
    """log(1 + e^x)."""
    return np.asarray(np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x))))
