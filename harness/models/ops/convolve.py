"""Convolution and pooling over any number of spatial axes.

`layout` is "first" for channels before the spatial axes (torch: [N, C, H, W], kernels
[out, in, h, w]), "last" for channels after them (Keras: [N, H, W, C], kernels [h, w, in, out]).
`stride` and `dilation` are a number, or one for each spatial axis; `padding` as well, with as many
zeros on both sides; or "same" as TensorFlow has it: as many results as places / stride, and the
zero that is left over after them; or "even": half of the kernel's length on both sides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from harness.models.graph import Node, node
from harness.models.ops.basic import product_size
from harness.models.ops.op import Array, kin, op

Number = int | tuple[int, ...]
Formula = Callable[..., Array]
MOST = 1 << 28  # elements of a padded tensor; more is no model's, but a damaged trace's


class Window(NamedTuple):
    """Where a kernel lies: by spatial axis its length, stride, dilation, zeros before and after.

    `out` are the numbers of places.
    """

    size: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    out: tuple[int, ...]

    def places(self) -> Iterator[tuple[Any, Any]]:
        """For each element of the kernel, the index of it in [out, in, ..] and of what it meets
        in a padded [N, C, ..].
        """
        for at in product(*map(range, self.size)):
            parts = zip(at, self.stride, self.dilation, self.out, strict=True)
            found = [slice(k * d, k * d + s * (n - 1) + 1, s) for k, s, d, n in parts]
            yield (slice(None), slice(None), *at), (slice(None), slice(None), *found)

    def padded(self, x: Array, value: float = 0.0) -> Array:
        """x [N, C, ..] with `value` around its spatial axes."""
        around = ((0, 0), (0, 0), *zip(self.before, self.after, strict=True))
        count = x.shape[0] * x.shape[1]
        for n, (a, b) in zip(x.shape[2:], around[2:], strict=True):
            count *= n + a + b
        if count > MOST:
            raise ValueError(f"{count} elements with the padding: too many")
        return np.pad(x, around, constant_values=value)

    def cut(self, x: Array) -> Array:
        """A padded tensor without what was put around it."""
        ends = zip(x.shape[2:], self.before, self.after, strict=True)
        return np.asarray(x[(slice(None), slice(None), *(slice(a, n - b) for n, a, b in ends))])


def _each(value: Any, axes: int) -> tuple[int, ...]:
    found = tuple(value) if isinstance(value, tuple | list) else (value,) * axes
    if len(found) != axes or any(not isinstance(k, int) or k < 0 for k in found):
        raise ValueError(f"{value!r} for {axes} spatial axes")
    return found


def _window(
    shape: tuple[int, ...],
    size: tuple[int, ...],
    stride: Any,
    padding: Any,
    dilation: Any = 1,
) -> Window:
    """The window over spatial axes of these lengths."""
    axes = len(shape)
    step, spread = _each(stride, axes), _each(dilation, axes)
    if not axes or min((*step, *spread, *size)) < 1:
        raise ValueError("a window of no length")
    reach = tuple((k - 1) * d + 1 for k, d in zip(size, spread, strict=True))
    before = after = (0,) * axes
    if padding == "same":
        lengths = zip(shape, step, reach, strict=True)
        total = [max((-(-n // s) - 1) * s + k - n, 0) for n, s, k in lengths]
        before = tuple(t // 2 for t in total)
        after = tuple(t - t // 2 for t in total)
    elif padding == "even":
        before = after = tuple((k - 1) // 2 for k in reach)
    elif padding != "valid":
        before = after = _each(padding, axes)
    ends = zip(shape, before, after, reach, step, strict=True)
    out = tuple((n + a + b - k) // s + 1 for n, a, b, k, s in ends)
    if min(out) < 1:
        raise ValueError("a kernel longer than what it goes over")
    return Window(size, step, spread, before, after, out)


def _first(x: Array, layout: str) -> Array:
    """[N, .., C] as [N, C, ..]."""
    return x if layout == "first" else np.moveaxis(x, -1, 1)


def _given(x: Array, layout: str) -> Array:
    """[N, C, ..] in the layout of the program."""
    return x if layout == "first" else np.moveaxis(x, 1, -1)


def _kernel(w: Array, layout: str) -> Array:
    """A kernel as [out, in, ..]."""
    return w if layout == "first" else np.moveaxis(w, (-1, -2), (0, 1))


def _given_kernel(w: Array, layout: str) -> Array:
    return w if layout == "first" else np.moveaxis(w, (0, 1), (-1, -2))


def _conv_rule(n: Node, dy: Node) -> tuple[Node | None, ...]:
    args = dict(n.args)
    return node("conv_backward", *n.inputs, dy, **args), node("conv_kernel", *n.inputs, dy, **args)


@op(_conv_rule, size=product_size, cancels=True, says="the convolution")
def conv(
    x: Array,
    w: Array,
    stride: Number = 1,
    padding: Number | str = 0,
    dilation: Number = 1,
    layout: str = "first",
) -> Array:
    """The cross-correlation of x [N, in, ..] with kernels w [out, in, ..], without a bias."""
    x, w = _first(x, layout), _kernel(w, layout)
    window = _window(x.shape[2:], w.shape[2:], stride, padding, dilation)
    x = window.padded(x)
    made = np.zeros((w.shape[0], x.shape[0], *window.out), np.result_type(x, w))
    for at, met in window.places():
        made += np.tensordot(w[at], x[met], (1, 1))
    return _given(np.moveaxis(made, 0, 1), layout)


@op(
    size=lambda x, w, dy: product_size(w, dy),
    cancels=True,
    says="the gradient of the convolution",
)
def conv_backward(
    x: Array,
    w: Array,
    dy: Array,
    stride: Number = 1,
    padding: Number | str = 0,
    dilation: Number = 1,
    layout: str = "first",
) -> Array:
    """The gradient by x: dy spread by the kernels."""
    x, w, dy = _first(x, layout), _kernel(w, layout), _first(dy, layout)
    window = _window(x.shape[2:], w.shape[2:], stride, padding, dilation)
    made = np.zeros_like(window.padded(x), dtype=dy.dtype)
    for at, met in window.places():
        part = np.tensordot(w[at], dy, (0, 1))
        made[met] += np.moveaxis(part, 0, 1)
    return _given(window.cut(made), layout)


@op(
    size=lambda x, w, dy: product_size(x, dy),
    over_time=True,
    cancels=True,
    says="the gradient of the kernel",
)
def conv_kernel(
    x: Array,
    w: Array,
    dy: Array,
    stride: Number = 1,
    padding: Number | str = 0,
    dilation: Number = 1,
    layout: str = "first",
) -> Array:
    """The gradient by w: dy and x, summed over batch and places; of w the shape alone is read."""
    x, w, dy = _first(x, layout), _kernel(w, layout), _first(dy, layout)
    window = _window(x.shape[2:], w.shape[2:], stride, padding, dilation)
    x = window.padded(x)
    made = np.zeros(w.shape, np.result_type(x, dy))
    over = (0, *range(2, x.ndim))
    for at, met in window.places():
        made[at] = np.tensordot(dy, x[met], (over, over))
    return _given_kernel(made, layout)


@op(
    lambda n, dy: (dy, node("sum_channels", dy, **dict(n.args))),
    size=lambda x, b: None if x is None or b is None else max(x, b),
    says="the sum",
)
def bias_channels(x: Array, b: Array, axis: int = 1) -> Array:
    """x plus a number for each channel, which axis `axis` counts."""
    return np.asarray(x + np.reshape(b, [-1 if k == axis % x.ndim else 1 for k in range(x.ndim)]))


def _swapped(w: Array, layout: str) -> Array:
    """A kernel with its last two spatial axes swapped, which must be as long."""
    first = _kernel(w, layout)
    if first.ndim < 4 or first.shape[-1] != first.shape[-2]:
        raise ValueError("no two spatial axes of one length")
    return _given_kernel(np.swapaxes(first, -1, -2), layout)


def _flipped(w: Array, layout: str) -> Array:
    """A kernel reversed along its spatial axes."""
    first = _kernel(w, layout)
    return _given_kernel(np.flip(first, tuple(range(2, first.ndim))), layout)


def _put_convolutions() -> None:
    """What programs make of a convolution: in its result, and in its gradient by x."""
    changes: dict[str, Callable[[Array, str], Array]] = {
        "flips the kernel (a convolution, not a cross-correlation)": _flipped,
        "swaps the two spatial axes of the kernel": _swapped,
    }
    for does, change in changes.items():
        kin("conv", does)(
            lambda x, w, layout="first", f=change, **args: conv(
                x, f(w, layout), layout=layout, **args
            )
        )
        kin("conv_backward", does)(
            lambda x, w, dy, layout="first", f=change, **args: conv_backward(
                x, f(w, layout), dy, layout=layout, **args
            )
        )
        kin("conv_kernel", does)(
            lambda x, w, dy, layout="first", f=change, **args: f(
                conv_kernel(x, w, dy, layout=layout, **args), layout
            )
        )
    for name, formula in (
        ("conv", conv),
        ("conv_backward", conv_backward),
        ("conv_kernel", conv_kernel),
    ):
        kin(name, "pads as much before as after (as torch does), not more after")(
            _padded_as(formula, "even")
        )
        kin(name, "pads as TensorFlow does, more after than before")(_padded_as(formula, "same"))
    kin("conv_kernel", "averages the gradient of the kernel over the batch")(
        lambda x, w, dy, **args: np.asarray(conv_kernel(x, w, dy, **args) / x.shape[0])
    )


def _padded_as(formula: Formula, wanted: str) -> Formula:
    """The formula with another padding that gives as many results."""

    def other(*x: Array, padding: Any = 0, **args: Any) -> Array:
        if (padding == "same") == (wanted == "same"):
            raise ValueError("padded that way already")
        return formula(*x, padding=wanted, **args)

    return other


_put_convolutions()


def _pool_rule(name: str) -> Callable[[Node, Node], tuple[Node | None, ...]]:
    return lambda n, dy: (node(name, *n.inputs, dy, **dict(n.args)),)


def _pooling(x: Array, size: Any, stride: Any, padding: Any, layout: str) -> tuple[Array, Window]:
    """x as [N, C, ..], and the window of a pooling; its stride is its size, if not given."""
    x = _first(x, layout)
    each = _each(size, x.ndim - 2)
    return x, _window(x.shape[2:], each, each if stride is None else stride, padding)


@op(_pool_rule("max_pool_backward"), size=lambda x: x, says="the maximum of a window")
def max_pool(
    x: Array,
    size: Number = 2,
    stride: Number | None = None,
    padding: Number | str = 0,
    layout: str = "first",
) -> Array:
    """The largest element of every window; what is padded is never the largest."""
    x, window = _pooling(x, size, stride, padding, layout)
    x = window.padded(x, -np.inf)
    made = np.full((*x.shape[:2], *window.out), -np.inf, x.dtype)
    for _, met in window.places():
        made = np.maximum(made, x[met])
    return _given(made, layout)


@op(size=lambda x, dy: dy, says="the gradient of the maximum")
def max_pool_backward(
    x: Array,
    dy: Array,
    size: Number = 2,
    stride: Number | None = None,
    padding: Number | str = 0,
    layout: str = "first",
) -> Array:
    """dy at the first largest element of every window."""
    x, window = _pooling(x, size, stride, padding, layout)
    dy, x = _first(dy, layout), window.padded(x, -np.inf)
    first = np.argmax(np.stack([x[met] for _, met in window.places()]), axis=0)
    made = np.zeros(x.shape, dy.dtype)
    for k, (_, met) in enumerate(window.places()):
        made[met] += dy * (first == k)
    return _given(window.cut(made), layout)


def _counts(shape: tuple[int, ...], window: Window, padded: bool, dtype: Any) -> Array:
    """How many elements each window averages: all, or those that are no padding."""
    if padded:
        return np.asarray(np.prod(window.size), dtype)
    ones = window.padded(np.ones((1, 1, *shape[2:]), dtype))
    made = np.zeros((1, 1, *window.out), dtype)
    for _, met in window.places():
        made += ones[met]
    return made


@op(_pool_rule("average_pool_backward"), size=lambda x: x, cancels=True, says="the average")
def average_pool(
    x: Array,
    size: Number = 2,
    stride: Number | None = None,
    padding: Number | str = 0,
    layout: str = "first",
    padded: bool = True,
) -> Array:
    """The mean of every window; `padded`: zeros of the padding count (torch), or not (Keras)."""
    x, window = _pooling(x, size, stride, padding, layout)
    count = _counts(x.shape, window, padded, x.dtype)
    x = window.padded(x)
    made = np.zeros((*x.shape[:2], *window.out), x.dtype)
    for _, met in window.places():
        made += x[met]
    return _given(made / count, layout)


@op(size=lambda x, dy: dy, cancels=True, says="the gradient of the average")
def average_pool_backward(
    x: Array,
    dy: Array,
    size: Number = 2,
    stride: Number | None = None,
    padding: Number | str = 0,
    layout: str = "first",
    padded: bool = True,
) -> Array:
    """dy shared out over every window."""
    x, window = _pooling(x, size, stride, padding, layout)
    share = _first(dy, layout) / _counts(x.shape, window, padded, dy.dtype)
    made = np.zeros(window.padded(x).shape, dy.dtype)
    for _, met in window.places():
        made[met] += share
    return _given(window.cut(made), layout)


def _elements(x: Array, size: Any) -> int:
    """How many elements a window has."""
    return int(np.prod(_each(size, x.ndim - 2)))


@kin("max_pool", "takes the average of a window, not its maximum")
def _average_for_max(x: Array, **args: Any) -> Array:
    return average_pool(x, **args)


@kin("max_pool", "takes the smallest of a window, not its largest")
def _smallest(x: Array, **args: Any) -> Array:
    return np.asarray(-max_pool(-x, **args))


@kin("max_pool", "pads with zeros, which can be the largest")
def _zeros_in_max(x: Array, **args: Any) -> Array:
    inside = average_pool(np.ones_like(x), **args)  # under 1 where a window meets the padding
    made = max_pool(x, **args)
    return np.where(inside < 1, np.maximum(made, 0), made)


@kin("max_pool_backward", "shares the gradient out over the whole window")
def _shared_out(x: Array, dy: Array, **args: Any) -> Array:
    return average_pool_backward(x, dy, **args)


@kin("average_pool", "takes the maximum of a window, not its average")
def _max_for_average(x: Array, padded: bool = True, **args: Any) -> Array:
    return max_pool(x, **args)


@kin("average_pool", "takes the sum of a window, not its average")
def _sum_for_average(x: Array, padded: bool = True, **args: Any) -> Array:
    return np.asarray(average_pool(x, **args) * x.dtype.type(_elements(x, args.get("size", 2))))


def _put_counts() -> None:
    for name, formula in (
        ("average_pool", average_pool),
        ("average_pool_backward", average_pool_backward),
    ):
        for padded, words in ((True, "counts"), (False, "does not count")):

            def other(
                *x: Array,
                padded: bool = True,
                wanted: bool = padded,
                f: Any = formula,
                **args: Any,
            ) -> Array:
                if padded == wanted:
                    raise ValueError("counted that way already")
                return np.asarray(f(*x, padded=wanted, **args))

            kin(name, f"{words} the zeros of the padding in an average")(other)


_put_counts()


@kin("average_pool_backward", "gives every element of a window the whole gradient")
def _whole_gradient(x: Array, dy: Array, padded: bool = True, **args: Any) -> Array:
    return average_pool_backward(x, dy * dy.dtype.type(_elements(x, args.get("size", 2))), **args)
