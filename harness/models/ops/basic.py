"""Products, sums, and functions of single elements."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from harness.models.graph import Node, node
from harness.models.ops.op import Array, kin, op, rows


def product_size(*sizes: float | None) -> float | None:
    """A product of numbers is as large as the product of their sizes."""
    return None if any(s is None for s in sizes) else math.prod(s for s in sizes if s is not None)


def largest(*sizes: float | None) -> float | None:
    """A sum rounds at its largest term, as far as the terms' sizes are known."""
    return max((s for s in sizes if s is not None), default=None)


def one(*sizes: float | None) -> float:
    """What is made of 1 - s rounds at 1, however near s is to 1."""
    return 1.0


@op(
    lambda n, dy: (node("embed_backward", *n.inputs, dy), None),
    size=lambda table, x: table,
    says="the lookup",
)
def embed(table: Array, x: Array) -> Array:
    """The rows of `table` [V, E] that tokens x [B, T] name: [B, T, E]."""
    return np.asarray(table[np.asarray(x, np.int64)])


@kin("embed", "reads the row of the next token")
def _next_row(table: Array, x: Array) -> Array:
    return np.asarray(table[(np.asarray(x, np.int64) + 1) % len(table)])


@kin("embed", "reads the row of the token before")
def _row_before(table: Array, x: Array) -> Array:
    return np.asarray(table[np.asarray(x, np.int64) - 1])


def _put_rows_of_one_token() -> None:
    """Some row for that of a token: all tokens that are not known may have one."""
    for row, words in ((0, "first"), (1, "second"), (2, "third"), (-1, "last")):
        kin("embed", f"reads the {words} row of the table, whatever the token", rare=True)(
            lambda table, x, row=row: np.broadcast_to(table[row], (*x.shape, table.shape[1]))
        )


_put_rows_of_one_token()


@op(
    size=lambda table, x, dy: dy, over_time=True, cancels=True, says="the sum over a token's places"
)
def embed_backward(table: Array, x: Array, dy: Array) -> Array:
    """Row v is the sum of dy [B, T, E] wherever x [B, T] is v: [V, E]."""
    made = np.zeros(table.shape, dy.dtype)
    np.add.at(made, np.asarray(x, np.int64).reshape(-1), rows(dy))
    return made


@kin("embed_backward", "keeps the last of a token's gradients, not their sum")
def _last_wins(table: Array, x: Array, dy: Array) -> Array:
    made = np.zeros(table.shape, dy.dtype)
    made[np.asarray(x, np.int64).reshape(-1)] = rows(dy)
    return made


@kin("embed_backward", "keeps the first of a token's gradients, not their sum")
def _first_wins(table: Array, x: Array, dy: Array) -> Array:
    made = np.zeros(table.shape, dy.dtype)
    made[np.asarray(x, np.int64).reshape(-1)[::-1]] = rows(dy)[::-1]
    return made


@kin("embed_backward", "averages the gradients of a token, in place of their sum")
def _averaged(table: Array, x: Array, dy: Array) -> Array:
    count = np.bincount(np.asarray(x, np.int64).reshape(-1), minlength=len(table))
    return np.asarray(embed_backward(table, x, dy) / np.maximum(count, 1)[:, None])


@op(
    lambda n, dy: (
        node("linear", dy, node("transpose", n.inputs[1])),
        node("outer", n.inputs[0], dy),
    ),
    size=product_size,
    cancels=True,
    says="the product",
)
def linear(x: Array, w: Array) -> Array:
    """x @ w along the last axis: [.., in], [in, out] -> [.., out]."""
    return np.reshape(rows(x) @ w, (*x.shape[:-1], w.shape[-1]))


@op(size=product_size, over_time=True, cancels=True, says="the sum over batch and time")
def outer(x: Array, dy: Array) -> Array:
    """x^T dy summed over all but the last axes: the gradient of w where y = x w, [in, out]."""
    return np.asarray(rows(x).T @ rows(dy))


@op(lambda n, dy: (node("transpose", dy),), size=lambda w: w, says="the transposed weights")
def transpose(w: Array) -> Array:
    """[in, out] -> [out, in]."""
    return w.T


@op(
    lambda n, dy: (dy, node("sum_rows", dy)),
    size=largest,
    says="the sum",
)
def bias(x: Array, b: Array) -> Array:
    """x + b along the last axis: [.., out], [out]."""
    return np.asarray(x + b)


@op(size=lambda dy: dy, over_time=True, cancels=True, says="the sum over batch and time")
def sum_rows(dy: Array) -> Array:
    """The sum over all but the last axis: [.., out] -> [out]."""
    return np.asarray(rows(dy).sum(axis=0))


@op(lambda n, dy: (dy,) * len(n.inputs), size=largest, says="the sum")
def add(*terms: Array) -> Array:
    """The sum of tensors of one shape."""
    made = terms[0]
    for term in terms[1:]:
        made = made + term
    return np.asarray(made)


def _multiply_backward(n: Node, dy: Node) -> tuple[Node, ...]:
    found = []
    for place in range(len(n.inputs)):
        others = [x for i, x in enumerate(n.inputs) if i != place]
        found.append(node("multiply", dy, *others))
    return tuple(found)


@op(_multiply_backward, size=product_size, says="the product")
def multiply(*factors: Array) -> Array:
    """The product of tensors of one shape, element by element."""
    made = factors[0]
    for factor in factors[1:]:
        made = made * factor
    return np.asarray(made)


@op(
    lambda n, dy: (node("scale", dy, n.inputs[1]), None),
    size=product_size,
    says="the factor",
)
def scale(x: Array, s: Array) -> Array:
    """A tensor times a scalar."""
    x = np.asarray(x)  # the gradient of a loss is a number
    return np.asarray(x * np.asarray(s, x.dtype))


@op(lambda n, dy: (node("negate", dy),), size=one, cancels=True, says="1 - x")
def complement(x: Array) -> Array:
    """1 - x."""
    return np.asarray(1 - x)


@op(lambda n, dy: (node("negate", dy),), size=lambda x: x, says="the sign")
def negate(x: Array) -> Array:
    """-x."""
    return np.asarray(-x)


@op(
    lambda n, dy: (node("place_block", dy, **dict(n.args)),),
    size=lambda x: x,
    says="the block",
)
def block(x: Array, index: int, of: int) -> Array:
    """Block `index` of the `of` equal ones along the last axis."""
    size = x.shape[-1] // of
    return np.asarray(x[..., index * size : (index + 1) * size])


@op(lambda n, dy: (node("block", dy, **dict(n.args)),), size=lambda x: x, says="the block")
def place_block(x: Array, index: int, of: int) -> Array:
    """Zeros of `of` times the length along the last axis, with x for block `index`."""
    size = x.shape[-1]
    made = np.zeros((*x.shape[:-1], of * size), x.dtype)
    made[..., index * size : (index + 1) * size] = x
    return made


@op(
    lambda n, dy: (node("multiply", dy, node("sigmoid_slope", *n.inputs)),),
    size=one,
    says="the sigmoid",
)
def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)), without overflow, and exact where it is small."""
    e = np.exp(-np.abs(x))
    return np.asarray(np.where(np.signbit(x), e, 1) / (1 + e))


@op(size=one, cancels=True, says="the slope of the sigmoid")
def sigmoid_slope(x: Array) -> Array:
    """s (1 - s), the derivative of the sigmoid s."""
    s = sigmoid(x)
    return np.asarray(s * (1 - s))


@op(
    lambda n, dy: (node("multiply", dy, node("tanh_slope", *n.inputs)),),
    size=lambda x: 1.0 if x is None else min(1.0, x),
    says="the tanh",
)
def tanh(x: Array) -> Array:
    """The hyperbolic tangent."""
    return np.asarray(np.tanh(x))


@op(size=one, cancels=True, says="the slope of the tanh")
def tanh_slope(x: Array) -> Array:
    """1 - tanh^2, the derivative of the tanh."""
    y = np.tanh(x)
    return np.asarray(1 - y * y)


@kin("sigmoid", "has the hard sigmoid clip(0.2 x + 0.5, 0, 1) for the sigmoid (as Keras 2 does)")
def _hard_sigmoid(x: Array) -> Array:
    return np.asarray(np.clip(0.2 * x + 0.5, 0, 1))


@kin("sigmoid", "has the hard sigmoid clip(x / 6 + 0.5, 0, 1) for the sigmoid (as torch does)")
def _torch_hard_sigmoid(x: Array) -> Array:
    return np.asarray(np.clip(x / 6 + 0.5, 0, 1))


@kin("sigmoid", "has a tanh for the sigmoid")
def _tanh_for_sigmoid(x: Array) -> Array:
    return np.asarray(np.tanh(x))


@kin("tanh", "has a sigmoid for the tanh")
def _sigmoid_for_tanh(x: Array) -> Array:
    return sigmoid(x)


@kin("tanh", "has a hard tanh, clip(x, -1, 1), for the tanh", rare=True)
def _hard_tanh(x: Array) -> Array:
    return np.asarray(np.clip(x, -1, 1))


@kin("tanh", "has a ReLU for the tanh")
def _relu_for_tanh(x: Array) -> Array:
    return np.asarray(np.maximum(x, 0))


@kin("tanh", "has LeCun's 1.7159 tanh(2 x / 3) for the tanh", rare=True)
def _lecun_tanh(x: Array) -> Array:
    return np.asarray(1.7159 * np.tanh(2 * x / 3))


@kin("tanh", "has x / (1 + |x|) for the tanh", rare=True)
def _softsign(x: Array) -> Array:
    return np.asarray(x / (1 + np.abs(x)))


@kin("sigmoid_slope", "multiplies with s where the slope of the sigmoid, s (1 - s), belongs")
def _only_s(x: Array) -> Array:
    return sigmoid(x)


@kin("sigmoid_slope", "multiplies with 1 - s where the slope of the sigmoid, s (1 - s), belongs")
def _only_the_rest(x: Array) -> Array:
    return np.asarray(1 - sigmoid(x))


@kin("sigmoid_slope", "multiplies with s^2 where the slope of the sigmoid, s (1 - s), belongs")
def _squared_s(x: Array) -> Array:
    return np.asarray(sigmoid(x) ** 2)


@kin("sigmoid_slope", "takes s (1 + s) for the slope of the sigmoid, s (1 - s)")
def _one_plus_s(x: Array) -> Array:
    s = sigmoid(x)
    return np.asarray(s * (1 + s))


@kin("sigmoid_slope", "takes x (1 - x) of what goes into the sigmoid for its slope, s (1 - s)")
def _of_no_sigmoid(x: Array) -> Array:
    return np.asarray(x * (1 - x))


@kin("sigmoid_slope", "takes the slope of the tanh for that of the sigmoid")
def _tanh_slope_for_it(x: Array) -> Array:
    return tanh_slope(x)


@kin("tanh_slope", "takes 1 + tanh^2 for the slope of the tanh, 1 - tanh^2")
def _plus_for_minus(x: Array) -> Array:
    return np.asarray(1 + np.tanh(x) ** 2)


@kin("tanh_slope", "takes 1 - |tanh| for the slope of the tanh, 1 - tanh^2")
def _not_squared(x: Array) -> Array:
    return np.asarray(1 - np.abs(np.tanh(x)))


@kin("tanh_slope", "takes 1 - tanh for the slope of the tanh, 1 - tanh^2")
def _not_squared_signed(x: Array) -> Array:
    return np.asarray(1 - np.tanh(x))


@kin("tanh_slope", "takes 1 - x^2 of what goes into the tanh for its slope, 1 - tanh^2")
def _of_the_input(x: Array) -> Array:
    return np.asarray(1 - x * x)


@kin("tanh_slope", "takes y (1 - y) of the tanh y for its slope, 1 - y^2, as of a sigmoid")
def _as_of_a_sigmoid(x: Array) -> Array:
    y = np.tanh(x)
    return np.asarray(y * (1 - y))


@kin("tanh_slope", "multiplies with tanh where its slope, 1 - tanh^2, belongs")
def _only_tanh(x: Array) -> Array:
    return np.asarray(np.tanh(x))


@kin("tanh_slope", "takes the slope of the sigmoid for that of the tanh")
def _sigmoid_slope_for_it(x: Array) -> Array:
    return sigmoid_slope(x)


@op(
    lambda n, dy: (node("dropout", dy, *n.inputs[1:]), None, None),
    size=lambda x, mask, rate: x,
    says="dropout",
)
def dropout(x: Array, mask: Array, rate: Array) -> Array:
    """x / (1 - rate) where `mask` keeps it, else 0; the mask may have axes of length one."""
    kept = np.asarray(mask).astype(x.dtype)
    return np.asarray(x * kept / np.asarray(1 - rate, x.dtype))


@kin("dropout", "does not scale what dropout keeps")
def _unscaled(x: Array, mask: Array, rate: Any) -> Array:
    return np.asarray(x * np.asarray(mask))


@kin("dropout", "drops nothing")
def _nothing_dropped(x: Array, mask: Array, rate: Any) -> Array:
    return np.asarray(x)


@kin("dropout", "scales what dropout keeps by 1 / rate, not 1 / (1 - rate)")
def _keep_for_drop(x: Array, mask: Array, rate: Any) -> Array:
    return np.asarray(x * np.asarray(mask) / rate)


@kin("dropout", "scales what dropout keeps by 1 - rate, not 1 / (1 - rate)")
def _scaled_down(x: Array, mask: Array, rate: Any) -> Array:
    return np.asarray(x * np.asarray(mask) * (1 - rate))


@kin("dropout", "scales by 1 - rate and drops nothing, as in evaluation")
def _evaluation(x: Array, mask: Array, rate: Any) -> Array:
    return np.asarray(x * (1 - rate))


@kin("dropout", "scales by 1 / (1 - rate) and drops nothing")
def _only_scaled(x: Array, mask: Array, rate: Any) -> Array:
    return np.asarray(x / (1 - rate))


@kin("dropout", "drops what the mask keeps and keeps what it drops")
def _inverted(x: Array, mask: Array, rate: Any) -> Array:
    return np.asarray(x * (1 - np.asarray(mask, x.dtype)) / (1 - rate))


@kin("dropout", "applies the mask of dropout twice, with its scale")
def _twice(x: Array, mask: Array, rate: Any) -> Array:
    return np.asarray(x * np.asarray(mask) / (1 - rate) ** 2)


@kin("dropout", "applies the mask of a sequence's first timestep to all of them")
def _one_mask(x: Array, mask: Array, rate: Any) -> Array:
    kept = np.asarray(mask)
    if kept.ndim != 3 or kept.shape[1] < 2:
        raise ValueError("a mask that has no timesteps")
    return np.asarray(x * kept[:, :1] / (1 - rate))


@kin("dropout", "applies the mask of the first batch row to all of them")
def _one_row(x: Array, mask: Array, rate: Any) -> Array:
    kept = np.asarray(mask)
    if kept.ndim != 3 or kept.shape[0] < 2:
        raise ValueError("a mask that has no batch")
    return np.asarray(x * kept[:1] / (1 - rate))


@op(
    lambda n, dy: (node("part_backward", n.inputs[0], dy, **dict(n.args)),),
    size=lambda x: x,
    over_time=True,
    says="the part of the timesteps",
)
def part(x: Array, start: int, stop: int) -> Array:
    """Timesteps from `start` to T + `stop`: [B, T, ..] -> [B, T + stop - start, ..]."""
    return np.asarray(x[:, start : x.shape[1] + stop])


@op(size=lambda x, dy: dy, says="the part of the timesteps")
def part_backward(x: Array, dy: Array, start: int, stop: int) -> Array:
    """dy at the timesteps that `part` took, and zeros at the others; x gives the shape."""
    made = np.zeros(x.shape, dy.dtype)
    made[:, start : x.shape[1] + stop] = dy
    return made


@op(either=True, size=lambda x: x, says="the state that is carried")
def carried(x: Array) -> Array:
    """What the step before left; an epoch may begin with it, or with zeros."""
    return np.asarray(x)


@kin("carried", "starts from zeros")
def _from_zeros(x: Array) -> Array:
    return np.zeros_like(x)


@kin("carried", "starts from ones", rare=True)
def _from_ones(x: Array) -> Array:
    return np.ones_like(x)


@op(
    lambda n, dy: (node("last_backward", *n.inputs, dy),),
    size=lambda x: x,
    over_time=True,
    says="the last timestep",
)
def last(x: Array) -> Array:
    """The last timestep: [B, T, ..] -> [B, ..]."""
    return np.asarray(x[:, -1])


@op(size=lambda x, dy: dy, says="the gradient of the last timestep")
def last_backward(x: Array, dy: Array) -> Array:
    """dy at the last timestep, and zeros at the others; x gives the shape."""
    made = np.zeros(x.shape, dy.dtype)
    made[:, -1] = dy
    return made


@kin("last", "keeps what the first timestep left")
def _first_timestep(x: Array) -> Array:
    return np.asarray(x[:, 0])


@kin("last", "keeps zeros")
def _zeros(x: Array) -> Array:
    return np.zeros_like(x[:, 0])
