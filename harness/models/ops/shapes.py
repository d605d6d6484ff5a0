"""Tensors read in another shape, joined, cut, and averaged over axes; rows with a padding row."""

from __future__ import annotations

import numpy as np

from harness.models.graph import Node, node
from harness.models.ops.basic import embed, embed_backward, largest
from harness.models.ops.op import Array, kin, op

Axes = int | tuple[int, ...]


@op(
    lambda n, dy: (node("reshape_like", n.inputs[0], dy),),
    size=lambda x: x,
    says="the other shape",
)
def reshape(x: Array, shape: tuple[int, ...]) -> Array:
    """x in another shape, one length of which may be -1."""
    return np.reshape(x, shape)


@op(
    lambda n, dy: (node("reshape_like", n.inputs[0], dy),),
    size=lambda x: x,
    says="the flat tensor",
)
def flatten(x: Array, start: int = 1) -> Array:
    """x with the axes from `start` on as one (torch.nn.Flatten, keras.layers.Flatten)."""
    return np.reshape(x, (*x.shape[:start], -1))


@op(size=lambda x, dy: dy, says="the other shape")
def reshape_like(x: Array, dy: Array) -> Array:
    """dy in the shape of x, of which nothing else is read."""
    return np.reshape(dy, x.shape)


@kin("flatten", "reads channels last: it moves the second axis to the end before it flattens")
def _channels_last(x: Array, start: int = 1) -> Array:
    return flatten(np.moveaxis(x, 1, -1), start)


@kin("flatten", "reads channels first: it moves the last axis to the second place before it")
def _channels_first(x: Array, start: int = 1) -> Array:
    return flatten(np.moveaxis(x, -1, 1), start)


@op(
    lambda n, dy: (node("permute", dy, axes=tuple(int(k) for k in np.argsort(n.arg("axes")))),),
    size=lambda x: x,
    says="the tensor with its axes in another order",
)
def permute(x: Array, axes: tuple[int, ...]) -> Array:
    """x with its axes in this order (torch.permute, tf.transpose)."""
    return np.transpose(x, axes)


@kin("permute", "reads the memory in the new shape, without moving anything")
def _reshaped(x: Array, axes: tuple[int, ...]) -> Array:
    return np.reshape(x, [x.shape[k] for k in axes])


def _concat_rule(n: Node, dy: Node) -> tuple[Node | None, ...]:
    args = dict(n.args)
    return tuple(node("concat_part", dy, *n.inputs, index=k, **args) for k in range(len(n.inputs)))


@op(_concat_rule, size=largest, says="the joined tensor")
def concat(*parts: Array, axis: int = -1) -> Array:
    """Tensors one after the other along an axis."""
    return np.concatenate(parts, axis)


@op(size=lambda dy, *parts: dy, says="the part")
def concat_part(dy: Array, *parts: Array, index: int, axis: int = -1) -> Array:
    """What `concat` of `parts` took from part `index`, cut out of dy."""
    ends = np.cumsum([0, *(p.shape[axis] for p in parts)])
    at = [slice(None)] * dy.ndim
    at[axis] = slice(int(ends[index]), int(ends[index + 1]))
    return np.asarray(dy[tuple(at)])


@kin("concat", "joins them in reverse order")
def _reversed(*parts: Array, axis: int = -1) -> Array:
    return np.concatenate(parts[::-1], axis)


@op(
    lambda n, dy: (node("spread_mean", n.inputs[0], dy, **dict(n.args)),),
    size=lambda x: x,
    over_time=True,
    cancels=True,
    says="the mean",
)
def mean_over(x: Array, axis: Axes) -> Array:
    """The mean over axes, which go (global average pooling over the spatial ones)."""
    return np.asarray(x.mean(axis=axis))


@op(
    lambda n, dy: (node("spread_sum", n.inputs[0], dy, **dict(n.args)),),
    size=lambda x: x,
    over_time=True,
    cancels=True,
    says="the sum",
)
def sum_over(x: Array, axis: Axes) -> Array:
    """The sum over axes, which go."""
    return np.asarray(x.sum(axis=axis))


@op(size=lambda x, dy: dy, says="the gradient of the mean")
def spread_mean(x: Array, dy: Array, axis: Axes) -> Array:
    """dy / n for each of the n elements of x that a mean was taken of."""
    count = x.size // np.size(dy)
    return np.asarray(spread_sum(x, dy, axis) / x.dtype.type(count))


@op(size=lambda x, dy: dy, says="the gradient of the sum")
def spread_sum(x: Array, dy: Array, axis: Axes) -> Array:
    """dy for each of the elements of x that a sum was taken of."""
    return np.array(np.broadcast_to(np.expand_dims(dy, axis), x.shape))


@kin("mean_over", "takes the sum, not the mean")
def _sum_for_mean(x: Array, axis: Axes) -> Array:
    return sum_over(x, axis)


@kin("mean_over", "takes the maximum, not the mean")
def _max_for_mean(x: Array, axis: Axes) -> Array:
    return np.asarray(x.max(axis=axis))


@kin("sum_over", "takes the mean, not the sum")
def _mean_for_sum(x: Array, axis: Axes) -> Array:
    return mean_over(x, axis)


@kin("spread_mean", "does not divide by the number of elements")
def _undivided(x: Array, dy: Array, axis: Axes) -> Array:
    return spread_sum(x, dy, axis)


@kin("spread_sum", "divides by the number of elements")
def _divided(x: Array, dy: Array, axis: Axes) -> Array:
    return spread_mean(x, dy, axis)


@op(
    lambda n, dy: (node("embed_padded_backward", *n.inputs, dy, **dict(n.args)), None),
    size=lambda table, x: table,
    says="the lookup",
)
def embed_padded(table: Array, x: Array, padding: int) -> Array:
    """The rows of `table` that tokens name; row `padding` gets no gradient (torch.nn.Embedding)."""
    return embed(table, x)


@op(
    size=lambda table, x, dy: dy,
    over_time=True,
    cancels=True,
    says="the sum over a token's places",
)
def embed_padded_backward(table: Array, x: Array, dy: Array, padding: int) -> Array:
    """Row v is the sum of dy wherever x is v; row `padding` is 0."""
    made = embed_backward(table, x, dy)
    made[padding] = 0
    return made


@kin("embed_padded", "takes zeros for the padding row")
def _zero_row(table: Array, x: Array, padding: int) -> Array:
    made = np.array(embed(table, x))
    made[np.asarray(x) == padding % len(table)] = 0
    return made


@kin("embed_padded_backward", "gives the padding row a gradient")
def _padding_too(table: Array, x: Array, dy: Array, padding: int) -> Array:
    return embed_backward(table, x, dy)


@op(
    lambda n, dy: (node("cut_backward", n.inputs[0], dy, **dict(n.args)),),
    size=lambda x: x,
    says="the part",
)
def cut(x: Array, axis: int, start: int, stop: int) -> Array:
    """The elements from `start` up to `stop` along an axis."""
    at = [slice(None)] * x.ndim
    at[axis] = slice(start, stop)
    return np.asarray(x[tuple(at)])


@op(size=lambda x, dy: dy, says="the gradient of the part")
def cut_backward(x: Array, dy: Array, axis: int, start: int, stop: int) -> Array:
    """dy where `cut` took its part from, and zeros elsewhere; x gives the shape."""
    made = np.zeros(x.shape, dy.dtype)
    at = [slice(None)] * x.ndim
    at[axis] = slice(start, stop)
    made[tuple(at)] = dy
    return made


@kin("cut", "takes the part that comes after it")
def _part_after(x: Array, axis: int, start: int, stop: int) -> Array:
    return cut(x, axis, stop, 2 * stop - start)


@kin("cut", "takes the part that comes before it")
def _part_before(x: Array, axis: int, start: int, stop: int) -> Array:
    if 2 * start < stop:
        raise ValueError("nothing comes before the first part")
    return cut(x, axis, 2 * start - stop, start)


@op(lambda n, dy: (None,), size=lambda x: x, says="the tensor, out of the gradient's way")
def stop_gradient(x: Array) -> Array:
    """x, through which no gradient flows (torch's detach, tf.stop_gradient)."""
    return np.asarray(x)
