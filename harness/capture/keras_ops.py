"""What TensorFlow's operations are in the terms of the graph: a rule for each, by its name.

A rule is given a call of an operation and returns how its result is made (a list where it has
several), or None where the graph has no op for it. Keras' functions are made of these.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np

from harness.capture.keras_calls import OpCall, Operand, is_number, made
from harness.capture.keras_shapes import SHAPES, reshaped
from harness.models.entries import Made

tf: Any = import_module("tensorflow")


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
        isinstance(last, int | float) and any(math.isclose(last, n, rel_tol=1e-6) for n in numbers)
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
    """What clip_by_global_norm multiplies with: limit min(1 / norm, 1 / limit)."""
    one, two = call.of(0), call.of(1)
    for least, limit in ((one, two), (two, one)):
        if _is(least, "tf_least") and is_number(limit):
            return made("tf_coefficient", least.operands[0], float(limit))
    return _mul(call)


def _add_finite(call: OpCall) -> Operand:
    one, two = call.of(0), call.of(1)
    if _is(one, "tf_coefficient") and isinstance(two, Made) and two.op == "add":
        return one
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
    """-log softmax(z)_y of each row: no op of the graph until it is summed or averaged."""
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
    **SHAPES,
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
    "Abs": _unary("absolute"),
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
    "Pack": _pack,
    "Identity": _same,
    "StopGradient": _stopped,
    "Cast": _cast,
    "SparseSoftmaxCrossEntropyWithLogits": _sparse_entropy,
    "SoftmaxCrossEntropyWithLogits": _dense_entropy,
}
