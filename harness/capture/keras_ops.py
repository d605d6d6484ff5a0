"""What TensorFlow's operations are in the terms of the graph: a rule for each, by its name.

A rule is given a call of an operation and returns how its result is made (a list where it has
several), or None where the graph has no op for it. Keras' functions are made of these.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np

from harness.models.entries import Made

tf: Any = import_module("tensorflow")

Operand = Any  # str | float | Made | Pending


class Pending(NamedTuple):
    """A tensor that nothing is known of: kept as a constant if it is ever read."""

    tensor: Any


class OpCall:
    """An operation: its tensors and attributes, and how the tensors were made."""

    def __init__(
        self, name: str, inputs: Any, attrs: Any, outputs: Any, of: Callable[[Any], Operand]
    ) -> None:
        """`attrs` are names and values in turn."""
        self.name, self.inputs, self.outputs = name, list(inputs), list(outputs)
        pairs = list(attrs or ())
        self._attrs = dict(zip(map(_text, pairs[::2]), pairs[1::2], strict=False))
        self._of = of

    def attr(self, name: str, default: Any = None) -> Any:
        """An attribute; words as text."""
        found = self._attrs.get(name, default)
        if hasattr(found, "WhichOneof"):  # of an operation in a graph
            kind = found.WhichOneof("value")
            found = getattr(found, kind) if kind else default
            found = list(found.i) if kind == "list" else found
        return _text(found)

    def of(self, place: int) -> Operand:
        """An input as an operand."""
        return self._of(self.inputs[place])

    def shape(self, place: int) -> tuple[int | None, ...]:
        """The shape of an input, as far as it is known."""
        return tuple(self.inputs[place].shape)

    def out(self, place: int = 0) -> tuple[int | None, ...]:
        """The shape of a result, as far as it is known."""
        return tuple(self.outputs[place].shape)

    def constant(self, place: int) -> Any:
        """An input as an array, where it is a constant."""
        x = self.inputs[place]
        found = x.numpy() if hasattr(x, "numpy") else tf.get_static_value(x)
        return None if found is None else np.asarray(found)

    def axes(self, place: int) -> list[int] | None:
        """An input that names axes of the first one."""
        found = self.constant(place)
        if found is None:
            return None
        count = len(self.shape(0))
        return sorted(int(a) % count for a in found.reshape(-1))


def _text(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value


def made(op: str, *operands: Operand, **args: Any) -> Made:
    """An op of operands, not checked: the tests check every rule against harness.stage."""
    return Made(op, operands, args)


def is_number(x: Operand) -> bool:
    """Whether an operand is a number."""
    return isinstance(x, int | float)


def _unary(op: str) -> Callable[[OpCall], Made]:
    return lambda call: made(op, call.of(0))


def added(one: Operand, two: Operand, same: bool) -> Operand:
    """The sum of two operands, of one shape or not."""
    if is_number(one):
        one, two = two, one
    if is_number(one):
        return one + two
    return made("add" if same else "broadcast_add", one, two)


def _add(call: OpCall) -> Operand:
    return added(call.of(0), call.of(1), call.shape(0) == call.shape(1))


def negated(x: Operand) -> Operand:
    """An operand with another sign."""
    return -x if is_number(x) else made("negate", x)


def _sub(call: OpCall) -> Operand:
    return added(call.of(0), negated(call.of(1)), call.shape(0) == call.shape(1))


def _mul(call: OpCall) -> Operand | None:
    one, two = call.of(0), call.of(1)
    if is_number(one) and is_number(two):
        return one * two
    if is_number(one):
        one, two = two, one
    found = _gelu(one, two) or _norm_of(one, two)
    if found is not None:
        return found
    if is_number(two):
        return made("scale", one, two)
    same = call.shape(0) == call.shape(1)
    if not same and () in (call.shape(0), call.shape(1)):
        clipped = _clipped(one, two) or _clipped(two, one)
        if clipped is not None:
            return clipped
        return made("scale", *((one, two) if call.shape(1) == () else (two, one)))
    return made("multiply" if same else "broadcast_multiply", one, two)


def _is(x: Operand, op: str, *numbers: float) -> bool:
    """Whether an operand is an op, whose last operand is one of the numbers (if any)."""
    if not isinstance(x, Made) or x.op != op:
        return False
    last = x.operands[-1] if x.operands else None
    return not numbers or (
        isinstance(last, int | float)
        and any(math.isclose(last, n, rel_tol=1e-6) for n in numbers)
    )


def _gelu(one: Operand, two: Operand) -> Made | None:
    """tf.nn.gelu: x / 2 times erfc(-x / sqrt 2), or times 1 + tanh(..)."""
    for half, rest in ((one, two), (two, one)):
        if not _is(half, "scale", 0.5):
            continue
        x = half.operands[0]
        if _is(rest, "tf_Erfc"):
            inner = rest.operands[0]
            if _is(inner, "scale", math.sqrt(0.5)) and inner.operands[0] == made("negate", x):
                return made("gelu", x)
        if _is(rest, "broadcast_add", 1.0) and _is(rest.operands[0], "tanh"):
            inner = rest.operands[0].operands[0]
            if _is(inner, "scale", math.sqrt(2 / math.pi)) and inner.operands[0] == _cubic(x):
                return made("gelu_tanh", x)
    return None


def _cubic(x: Operand) -> Made:
    return made("add", x, made("scale", made("tf_Pow3", x), float(np.float32(0.044715))))


def _norm_of(one: Operand, two: Operand) -> Made | None:
    """Twice the sum of halved squares, as tf.linalg.global_norm takes it."""
    if two == 2 and isinstance(one, Made) and one.op == "tf_halves":
        return made("tf_squares", *one.operands)
    return None


def _clipped(g: Operand, by: Operand) -> Made | None:
    """A gradient times what tf.clip_by_global_norm makes of its limit."""
    if isinstance(by, Made) and by.op == "tf_coefficient":
        return made("clip_by_norm", g, *by.operands)
    return None


def _halves(call: OpCall) -> Made:
    return made("tf_half", call.of(0))


def _pack(call: OpCall) -> Made | None:
    parts = [call.of(i) for i in range(len(call.inputs))]
    if parts and all(_is(p, "tf_half") for p in parts):
        return made("tf_halves", *(p.operands[0] for p in parts))
    if not call.inputs or None in call.out():
        return None
    axis = int(call.attr("axis", 0)) % len(call.out())
    shape = list(call.out())
    shape[axis] = 1
    return made("concat", *(made("reshape", p, shape=shape) for p in parts), axis=axis)


def _root(call: OpCall) -> Made:
    x = call.of(0)
    return made("global_norm", *x.operands) if _is(x, "tf_squares") else made("root", x)


def _divide(call: OpCall) -> Operand | None:
    one, two = call.of(0), call.of(1)
    if is_number(two):
        if is_number(one):
            return one / two if two else None
        return made("scale", one, 1 / two) if two else None
    if is_number(one) and one == 1 and str(two).startswith("update/global_norm"):
        return made("tf_over", two)
    if call.shape(0) == call.shape(1):
        return made("divide", one, two)
    if call.shape(1) == ():
        return made("scale", one, made("reciprocal", two))
    return None


def _minimum(call: OpCall) -> Made | None:
    one, two = call.of(0), call.of(1)
    if _is(one, "tf_over") and is_number(two) and two:
        return made("tf_least", *one.operands, 1 / two)
    return None


def _scale_of_norm(call: OpCall) -> Operand | None:
    """What clip_by_global_norm multiplies with: limit min(1 / norm, 1 / limit), plus norm - norm."""
    one, two = call.of(0), call.of(1)
    for least, limit in ((one, two), (two, one)):
        if _is(least, "tf_least") and is_number(limit):
            return made("tf_coefficient", least.operands[0], float(limit))
    return _mul(call)


def _add_finite(call: OpCall) -> Operand:
    one, two = call.of(0), call.of(1)
    if _is(one, "tf_coefficient") and isinstance(two, Made) and two.op == "add":
        return one  # type: ignore[no-any-return]
    return _add(call)


def _maximum(call: OpCall) -> Made | None:
    one, two = call.of(0), call.of(1)
    one, two = (two, one) if is_number(one) else (one, two)
    return made("relu", one) if two == 0 and not isinstance(two, bool) else None


def _power(call: OpCall) -> Made | None:
    x, power = call.of(0), call.of(1)
    if power == 3:
        return made("tf_Pow3", x)
    if power == 2:
        return made("square", x)
    return made("root", x) if power == 0.5 else None


def _difference(call: OpCall) -> Made:
    return made("square", _sub(call))


def _erfc(call: OpCall) -> Made:
    return made("tf_Erfc", call.of(0))


def _leaky(call: OpCall) -> Made:
    return made("leaky_relu", call.of(0), float(call.attr("alpha", 0.2)))


def _elu(call: OpCall) -> Made:
    return made("elu", call.of(0), 1.0)


def _last_axis(op: str) -> Callable[[OpCall], Made]:
    return lambda call: made(op, call.of(0), axis=-1)


def _matmul(call: OpCall) -> Made:
    x, y = call.of(0), call.of(1)
    if call.attr("transpose_a"):
        x = made("swap_last", x)
    if call.attr("transpose_b"):
        y = made("swap_last", y)
    return made("linear", x, y)


def _batched(call: OpCall) -> Made | None:
    if call.shape(0)[:-2] != call.shape(1)[:-2] or len(call.shape(0)) != len(call.shape(1)):
        return None
    x = made("swap_last", call.of(0)) if call.attr("adj_x") else call.of(0)
    y = made("swap_last", call.of(1)) if call.attr("adj_y") else call.of(1)
    return made("matmul", x, y)


def _bias(call: OpCall) -> Made:
    if call.attr("data_format") == "NCHW":
        return made("bias_channels", call.of(0), call.of(1), axis=1)
    return made("bias", call.of(0), call.of(1))


def _plain(values: Any) -> Any:
    """A number for each axis as one number where they are the same, else as a list."""
    found = [int(v) for v in values]
    return found[0] if len(set(found)) == 1 else found


def _window(call: OpCall, *names: str) -> dict[str, Any] | None:
    """Attributes of a window over spatial axes, channels last."""
    padding = str(call.attr("padding")).lower()
    if call.attr("data_format", "NHWC") not in ("NHWC", "NDHWC") or padding == "explicit":
        return None
    found: dict[str, Any] = {"padding": "same" if padding == "same" else 0, "layout": "last"}
    for name, attribute in zip(names[::2], names[1::2], strict=True):
        found[name] = _plain((call.attr(attribute) or [1, 1, 1, 1])[1:-1])
    return found


def _conv(call: OpCall) -> Made | None:
    args = _window(call, "stride", "strides", "dilation", "dilations")
    if args is None or call.shape(0)[-1] != call.shape(1)[-2]:
        return None
    return made("conv", call.of(0), call.of(1), **args)


def _pool(op: str) -> Callable[[OpCall], Made | None]:
    def rule(call: OpCall) -> Made | None:
        args = _window(call, "size", "ksize", "stride", "strides")
        if args is None:
            return None
        more = {"padded": False} if op == "average_pool" else {}
        return made(op, call.of(0), **args, **more)

    return rule


def _over(op: str) -> Callable[[OpCall], Operand | None]:
    def rule(call: OpCall) -> Operand | None:
        x, axes = call.of(0), call.axes(1)
        if _is(x, "tf_halves"):
            return x
        if axes is None:
            return None
        if not axes:
            return made("add", x)
        found = made(op, x, axis=axes)
        if call.attr("keep_dims"):
            return reshaped(found, call.out())
        return found

    return rule


def reshaped(x: Operand, shape: tuple[int | None, ...]) -> Made | None:
    """x in another shape, of which one length at most is not known."""
    if sum(n is None for n in shape) > 1:
        return None
    return made("reshape", x, shape=[-1 if n is None else int(n) for n in shape])


def _reshape(call: OpCall) -> Made | None:
    return reshaped(call.of(0), call.out())


def _transpose(call: OpCall) -> Made | None:
    order = call.constant(1)
    return None if order is None else made("permute", call.of(0), axes=[int(a) for a in order])


def _concat(call: OpCall) -> Made | None:
    axis = call.constant(len(call.inputs) - 1)
    if axis is None:
        return None
    parts = [call.of(i) for i in range(len(call.inputs) - 1)]
    return made("concat", *parts, axis=int(axis) % len(call.out()))


def _pieces(call: OpCall, x: Operand, axis: int) -> list[Operand | None]:
    found: list[Operand | None] = []
    at = 0
    for i in range(len(call.outputs)):
        length = call.out(i)[axis]
        if length is None:
            return [None] * len(call.outputs)
        found.append(made("cut", x, axis=axis, start=at, stop=at + length))
        at += length
    return found


def _split(call: OpCall) -> list[Operand | None] | None:
    axis = call.constant(0)
    return None if axis is None else _pieces(call, call.of(1), int(axis) % len(call.out()))


def _split_sizes(call: OpCall) -> list[Operand | None] | None:
    axis = call.constant(2)
    return None if axis is None else _pieces(call, call.of(0), int(axis) % len(call.out()))


def _unpacked(call: OpCall) -> list[Operand | None]:
    axis = int(call.attr("axis", 0)) % len(call.shape(0))
    return [
        reshaped(made("cut", call.of(0), axis=axis, start=i, stop=i + 1), call.out(i))
        for i in range(len(call.outputs))
    ]


def _strided(call: OpCall) -> Made | None:
    """x[..]: slices with a step of one and numbers."""
    begin, end, by = (call.constant(i) for i in (1, 2, 3))
    if begin is None or end is None or by is None or call.attr("ellipsis_mask"):
        return _strided_with_ellipsis(call, begin, end, by)
    return _cuts(call, [*range(len(begin))], begin, end, by)


def _strided_with_ellipsis(call: OpCall, begin: Any, end: Any, by: Any) -> Made | None:
    if begin is None or end is None or by is None:
        return None
    at = int(call.attr("ellipsis_mask")).bit_length() - 1
    new = int(call.attr("new_axis_mask") or 0)
    after = sum(1 for i in range(at + 1, len(begin)) if not new >> i & 1)
    places = [*range(at), *[None] * (len(call.shape(0)) - after - _named(at, new))]
    return _cuts(call, [*places, *range(at + 1, len(begin))], begin, end, by)


def _named(until: int, new: int) -> int:
    return sum(1 for i in range(until) if not new >> i & 1)


def _cuts(call: OpCall, places: list[int | None], begin: Any, end: Any, by: Any) -> Made | None:
    found, axis = call.of(0), 0
    masks = {n: int(call.attr(f"{n}_mask") or 0) for n in ("begin", "end", "new_axis", "shrink_axis")}
    for i in places:
        if i is not None and masks["new_axis"] >> i & 1:
            continue
        size = call.shape(0)[axis]
        if i is not None and not (masks["begin"] >> i & 1 and masks["end"] >> i & 1 and by[i] == 1):
            if size is None:
                return None
            first = None if masks["begin"] >> i & 1 else int(begin[i])
            last = None if masks["end"] >> i & 1 else int(end[i])
            if masks["shrink_axis"] >> i & 1:
                start = int(begin[i]) % size
                stop, step = start + 1, 1
            else:
                start, stop, step = slice(first, last, int(by[i])).indices(size)
            if step != 1:
                return None
            if (start, stop) != (0, size):
                found = made("cut", found, axis=axis, start=start, stop=stop)
        axis += 1
    return reshaped(found, call.out())


def _sliced(call: OpCall) -> Made | None:
    begin, size = call.constant(1), call.constant(2)
    if begin is None or size is None:
        return None
    found = call.of(0)
    for axis, (start, length) in enumerate(zip(begin, size, strict=True)):
        whole = call.shape(0)[axis]
        if whole is None:
            return None
        stop = whole if length < 0 else int(start) + int(length)
        if (int(start), stop) != (0, whole):
            found = made("cut", found, axis=axis, start=int(start), stop=stop)
    return made("add", found)


def _gather(call: OpCall) -> Made | None:
    axis = call.constant(2)
    if axis is None or int(axis) != 0 or call.attr("batch_dims") or len(call.shape(0)) != 2:
        return None
    return made("embed", call.of(0), call.of(1))


def _same(call: OpCall) -> Operand:
    return call.of(0)


def _stopped(call: OpCall) -> Made:
    return made("stop_gradient", call.of(0))


def _cast(call: OpCall) -> Operand | None:
    x, result = call.inputs[0].dtype, call.outputs[0].dtype
    return cast(call.of(0), x, result)


def cast(x: Operand, old: Any, new: Any) -> Operand | None:
    """What is cast to another dtype: rounded where that is a narrower one of floats."""
    if not new.is_floating or old == new or not old.is_floating:
        return x
    return x if _epsilon(new) <= _epsilon(old) else made("rounded", x, to=str(new.name))


def _epsilon(dtype: Any) -> float:
    return 2**-7 if dtype == tf.bfloat16 else float(np.finfo(dtype.as_numpy_dtype).eps)


def _sparse_entropy(call: OpCall) -> list[Operand]:
    """-log softmax(z)_y of each row: the mean over classes of what is one row, times their number."""
    return [made("tf_entropy", made("log_softmax", call.of(0)), call.of(1)), None]


def _dense_entropy(call: OpCall) -> list[Operand]:
    each = made("multiply", made("log_softmax", call.of(0)), call.of(1))
    return [made("negate", made("sum_over", each, axis=[1])), None]


def _reduced(op: str) -> Callable[[OpCall], Operand | None]:
    """A sum or mean, which makes one number of the losses of all rows."""
    plain = _over(op)

    def rule(call: OpCall) -> Operand | None:
        x, axes = call.of(0), call.axes(1)
        x = x.operands[0] if _is(x, "reshape") and _is(x.operands[0], "tf_entropy") else x
        if _is(x, "tf_entropy") and axes == list(range(len(call.shape(0)))):
            return made("nll_loss", *x.operands, reduce="mean" if op == "mean_over" else "sum")
        return plain(call)

    return rule


RULES: dict[str, Callable[[OpCall], Any]] = {
    "AddV2": _add_finite,
    "Add": _add,
    "AddN": lambda call: made("add", *(call.of(i) for i in range(len(call.inputs)))),
    "Sub": _sub,
    "Mul": _scale_of_norm,
    "RealDiv": _divide,
    "Div": _divide,
    "DivNoNan": _divide,
    "Neg": _unary("negate"),
    "Square": _unary("square"),
    "SquaredDifference": _difference,
    "Pow": _power,
    "Sqrt": _root,
    "Exp": _unary("exp"),
    "Log": _unary("log"),
    "Relu": _unary("relu"),
    "Maximum": _maximum,
    "Minimum": _minimum,
    "LeakyRelu": _leaky,
    "Elu": _elu,
    "Sigmoid": _unary("sigmoid"),
    "Tanh": _unary("tanh"),
    "Softplus": _unary("softplus"),
    "Softmax": _last_axis("softmax"),
    "LogSoftmax": _last_axis("log_softmax"),
    "Erfc": _erfc,
    "L2Loss": _halves,
    "MatMul": _matmul,
    "BatchMatMulV2": _batched,
    "BiasAdd": _bias,
    "Conv2D": _conv,
    "MaxPool": _pool("max_pool"),
    "AvgPool": _pool("average_pool"),
    "Mean": _reduced("mean_over"),
    "Sum": _reduced("sum_over"),
    "Reshape": _reshape,
    "ExpandDims": _reshape,
    "Squeeze": _reshape,
    "Transpose": _transpose,
    "ConcatV2": _concat,
    "Pack": _pack,
    "Split": _split,
    "SplitV": _split_sizes,
    "Unpack": _unpacked,
    "StridedSlice": _strided,
    "Slice": _sliced,
    "GatherV2": _gather,
    "Identity": _same,
    "StopGradient": _stopped,
    "Cast": _cast,
    "SparseSoftmaxCrossEntropyWithLogits": _sparse_entropy,
    "SoftmaxCrossEntropyWithLogits": _dense_entropy,
}
