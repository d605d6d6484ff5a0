"""What Keras' layers and losses are in the terms of the graph: a rule for each class.

A rule is given a layer, its call and its result, and returns how that is made, or None where the
graph has no op for it. Constants are the exact ones, also where Keras rounds them to float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np

from harness.capture.keras_calls import Operand, made
from harness.capture.keras_ops import cast
from harness.capture.keras_shapes import reshaped
from harness.capture.keras_tensors import is_tensor, logits_of
from harness.capture.keras_watch import UNKNOWN, Watch
from harness.models.entries import Made

tf: Any = import_module("tensorflow")
keras: Any = import_module("keras")
Layers: Any = keras.layers

ACTIVATIONS = {
    "linear": None,
    "relu": ("relu",),
    "sigmoid": ("sigmoid",),
    "tanh": ("tanh",),
    "silu": ("silu",),
    "swish": ("silu",),
    "gelu": ("gelu",),
    "elu": ("elu", 1.0),
    "leaky_relu": ("leaky_relu", 0.2),
    "softplus": ("softplus",),
    "exponential": ("exp",),
    "softmax": ("softmax",),
    "log_softmax": ("log_softmax",),
}


class LayerCall(NamedTuple):
    """A call of a layer: what it is, with what it was called, and what came of it."""

    layer: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    result: Any
    watch: Watch
    training: bool

    def of(self, value: Any) -> Operand:
        """A tensor that the layer is called with, in the dtype in which it computes."""
        found = self.watch.of(value)
        compute = tf.as_dtype(self.layer.compute_dtype)
        old = getattr(value, "dtype", None)
        if old is None or not self.layer.autocast or isinstance(found, int | float):
            return found
        return cast(found, tf.as_dtype(old), compute)

    def weight(self, variable: Any) -> Operand:
        """A weight, in the dtype in which the layer computes."""
        found = self.watch.of(variable)
        if not self.layer.autocast:
            return found
        return cast(found, tf.as_dtype(variable.dtype), tf.as_dtype(self.layer.compute_dtype))

    @property
    def x(self) -> Any:
        """The first argument."""
        return self.args[0] if self.args else next(iter(self.kwargs.values()))


Rule = Callable[[LayerCall], Made | None]


def activated(call: LayerCall, x: Operand, activation: Any) -> Made | None:
    """What an activation makes of an expression; logits that a loss may read are known too."""
    name = getattr(activation, "__name__", "")
    if activation is None or activation is keras.activations.linear:
        return x if isinstance(x, Made) else made("add", x)
    if name not in ACTIVATIONS or getattr(keras.activations, name, None) is not activation:
        return None
    op, *numbers = ACTIVATIONS[name] or ("add",)
    logits = logits_of(call.result) if is_tensor(call.result) else None
    if logits is not None and name in ("softmax", "sigmoid"):
        call.watch.know(logits, x)
    return made(op, x, *numbers)


def _plain(value: Any) -> Any:
    """A number for each axis as one number where they are the same, else as a list."""
    found = [int(v) for v in (value if isinstance(value, tuple | list) else [value])]
    return found[0] if len(set(found)) == 1 else found


def _dense(call: LayerCall) -> Made | None:
    layer = call.layer
    if layer.quantization_mode or layer.lora_enabled:
        return None
    x = made("linear", call.of(call.x), call.weight(layer.kernel))
    if layer.bias is not None:
        x = made("bias", x, call.weight(layer.bias))
    return activated(call, x, layer.activation)


def _conv(call: LayerCall) -> Made | None:
    layer = call.layer
    if layer.groups != 1 or layer.padding not in ("same", "valid") or layer.lora_enabled:
        return None
    last = layer.data_format == "channels_last"
    if not last:
        return None  # kernels are not those of the layout "first"
    args: dict[str, Any] = {
        "stride": _plain(layer.strides),
        "padding": "same" if layer.padding == "same" else 0,
        "dilation": _plain(layer.dilation_rate),
        "layout": "last",
    }
    x = made("conv", call.of(call.x), call.weight(layer.kernel), **args)
    if layer.use_bias:
        x = made("bias_channels", x, call.weight(layer.bias), axis=-1)
    return activated(call, x, layer.activation)


def _einsum_dense(call: LayerCall) -> Made | None:
    """A product over the last axes of x, as attention has it: heads are an axis of their own."""
    layer = call.layer
    inputs, rest = layer.equation.split(",")
    kernel, result = rest.split("->")
    summed = "".join(c for c in inputs if c not in result)
    free = inputs[: len(inputs) - len(summed)]
    new = kernel[len(summed) :]
    if not summed or inputs != free + summed or kernel != summed + new or result != free + new:
        return None
    shape = tuple(layer.kernel.shape)
    inner, outer = math.prod(shape[: len(summed)]), math.prod(shape[len(summed) :])
    x, w = call.of(call.x), call.weight(layer.kernel)
    if len(summed) > 1:
        x = reshaped(x, (*call.x.shape[: len(free)], inner))
    if x is None:
        return None
    if shape != (inner, outer):
        w = made("reshape", w, shape=[inner, outer])
    product = made("linear", x, w)
    if layer.bias is not None:
        b = call.weight(layer.bias)
        if len(layer.bias.shape) > 1:
            b = made("reshape", b, shape=[outer])
        product = made("bias", product, b)
    whole = reshaped(product, tuple(call.result.shape)) if len(new) > 1 else product
    return None if whole is None else activated(call, whole, layer.activation)


def _batch_norm(call: LayerCall) -> Made | None:
    layer = call.layer
    mask = call.kwargs.get("mask") is not None or getattr(call.x, "_keras_mask", None) is not None
    if not (call.training and layer.trainable):
        return _batch_norm_fixed(call)
    axis = layer.axis - len(call.x.shape) if layer.axis > 0 else layer.axis
    axis = -1 if axis == -1 else layer.axis
    names = call.watch.names
    x = call.of(call.x)
    odd = mask or getattr(layer, "renorm", False) or getattr(layer, "synchronized", False)
    for buffer, kind in (("moving_mean", "mean"), ("moving_variance", "variance")):
        variable = getattr(layer, buffer)
        name = names.get(id(variable._value.handle))
        if name is not None:
            old, momentum = call.watch.of(variable), float(layer.momentum)
            rule = made(f"running_{kind}_keras", old, x, momentum, axis=axis)
            call.watch.keep(name, (), UNKNOWN if odd else rule, kind="later")
    if odd:
        return None
    return made("batch_norm", x, *_gain_and_offset(call, axis), float(layer.epsilon), axis=axis)


def _gain_and_offset(call: LayerCall, axis: int) -> list[Operand]:
    """Gamma and beta; ones and zeros of a layer that has none."""
    count = int(call.x.shape[axis])
    found = []
    for variable, value in ((call.layer.gamma, 1.0), (call.layer.beta, 0.0)):
        own = call.watch.of(variable) if variable is not None else None
        if own is None:
            array = np.full(count, value, call.layer.compute_dtype)
            own = call.watch.constant(array) if tf.executing_eagerly() else None
            own = own if own is not None else call.watch.of(tf.constant(array))
        found.append(own)
    return found


def _batch_norm_fixed(call: LayerCall) -> Made | None:
    """With the running statistics: (x - mean) gain / sqrt(variance + epsilon) + offset."""
    return None


def _layer_norm(call: LayerCall) -> Made | None:
    layer = call.layer
    axes = layer.axis if isinstance(layer.axis, list | tuple) else [layer.axis]
    rank = len(call.x.shape)
    if [int(a) % rank for a in axes] != [rank - 1] or layer.rms_scaling:
        return None
    gain, offset = _gain_and_offset(call, -1)
    return made("layer_norm", call.of(call.x), gain, offset, float(layer.epsilon))


def _rms_norm(call: LayerCall) -> Made | None:
    layer = call.layer
    axes = layer.axis if isinstance(layer.axis, list | tuple) else [layer.axis]
    if [int(a) % len(call.x.shape) for a in axes] != [len(call.x.shape) - 1]:
        return None
    return made("rms_norm", call.of(call.x), call.watch.of(layer.scale), float(layer.epsilon))


def _embedding(call: LayerCall) -> Made | None:
    layer = call.layer
    if layer.quantization_mode or layer.lora_enabled:
        return None
    table = call.watch.of(layer._embeddings)
    found = made("embed", table, call.watch.of(call.x))
    old, new = tf.as_dtype(layer._embeddings.dtype), tf.as_dtype(layer.compute_dtype)
    changed = cast(found, old, new)
    return changed if isinstance(changed, Made) else None


def _dropout(call: LayerCall) -> Made | None:
    layer, x = call.layer, call.of(call.x)
    if not call.training or layer.rate == 0:
        return made("add", x)
    if layer.rate >= 1:
        return None
    mask = call.watch.chosen
    if mask is None or len(mask.shape) != len(call.result.shape):
        return None
    path = call.watch.scope[-1] if call.watch.scope else "dropout"
    name = call.watch.keep(f"inputs/mask/{path}", (mask,))
    return made("dropout", x, name, float(layer.rate))


def _pool(op: str) -> Rule:
    def rule(call: LayerCall) -> Made | None:
        layer = call.layer
        if layer.data_format != "channels_last":
            return None
        args: dict[str, Any] = {
            "size": _plain(layer.pool_size),
            "stride": _plain(layer.strides),
            "padding": "same" if layer.padding == "same" else 0,
            "layout": "last",
        }
        if op == "average_pool":
            args["padded"] = False
        return made(op, call.of(call.x), **args)

    return rule


def _global_average(call: LayerCall) -> Made | None:
    layer, rank = call.layer, len(call.x.shape)
    if call.kwargs.get("mask") is not None or getattr(call.x, "_keras_mask", None) is not None:
        return None
    last = layer.data_format == "channels_last"
    axes = list(range(1, rank - 1)) if last else list(range(2, rank))
    mean = made("mean_over", call.of(call.x), axis=axes)
    return reshaped(mean, tuple(call.result.shape)) if layer.keepdims else mean


def _reshape(call: LayerCall) -> Made | None:
    return reshaped(call.of(call.x), tuple(call.result.shape))


def _flatten(call: LayerCall) -> Made | None:
    if call.layer.data_format == "channels_first" and len(call.x.shape) > 2:
        return None
    return _reshape(call) if len(call.x.shape) < 2 else made("flatten", call.of(call.x))


def _permute(call: LayerCall) -> Made:
    return made("permute", call.of(call.x), axes=[0, *(int(d) for d in call.layer.dims)])


def _many(call: LayerCall) -> list[Any] | None:
    found = list(call.x)
    return found if len({tuple(x.shape) for x in found}) == 1 else None


def _merged(op: str) -> Rule:
    def rule(call: LayerCall) -> Made | None:
        xs = _many(call)
        return None if xs is None else made(op, *map(call.of, xs))

    return rule


def _subtract(call: LayerCall) -> Made | None:
    xs = _many(call)
    return None if xs is None else made("add", call.of(xs[0]), made("negate", call.of(xs[1])))


def _average(call: LayerCall) -> Made | None:
    xs = _many(call)
    return None if xs is None else made("scale", made("add", *map(call.of, xs)), 1 / len(xs))


def _concatenate(call: LayerCall) -> Made:
    axis = int(call.layer.axis) % len(call.result.shape)
    return made("concat", *map(call.of, call.x), axis=axis)


def _activation(call: LayerCall) -> Made | None:
    return activated(call, call.of(call.x), call.layer.activation)


def _relu(call: LayerCall) -> Made | None:
    layer = call.layer
    if layer.max_value is not None or layer.threshold:
        return None
    slope = float(layer.negative_slope or 0.0)
    x = call.of(call.x)
    return made("leaky_relu", x, slope) if slope else made("relu", x)


def _leaky(call: LayerCall) -> Made:
    return made("leaky_relu", call.of(call.x), float(call.layer.negative_slope))


def _elu(call: LayerCall) -> Made:
    return made("elu", call.of(call.x), float(call.layer.alpha))


def _softmax(call: LayerCall) -> Made | None:
    if call.kwargs.get("mask") is not None or not isinstance(call.layer.axis, int):
        return None
    logits = logits_of(call.result)
    if logits is not None:
        call.watch.know(logits, call.of(call.x))
    return made("softmax", call.of(call.x), axis=int(call.layer.axis))


def attention(call: LayerCall, parts: list[Any]) -> Made | None:
    """What goes into the last product of an attention: heads as blocks of the last axis."""
    layer, kwargs = call.layer, call.kwargs
    masks = ("attention_mask", "query_mask", "value_mask", "key_mask", "return_attention_scores")
    if any(kwargs.get(name) not in (None, False) for name in masks) or len(parts) != 3:
        return None
    if any(getattr(x, "_keras_mask", None) is not None for x in call.args):
        return None
    odd = getattr(layer, "_sliding_window", None) is not None or getattr(layer, "_use_gate", False)
    if odd or (layer._dropout and call.training) or tuple(layer._attention_axes or (1,)) != (1,):
        return None
    if not math.isclose(layer._inverse_sqrt_key_dim, layer._key_dim**-0.5):
        return None
    flat = []
    for x in parts:
        shape = tuple(x.shape)
        heads = reshaped(call.watch.of(x), (*shape[:2], shape[2] * shape[3]))
        if heads is None or len(shape) != 4:
            return None
        flat.append(heads)
    causal = bool(kwargs.get("use_causal_mask"))
    return made("attention", *flat, heads=int(layer._num_heads), causal=causal)


def loss_rule(loss: Any, y: Any, x: Any, weights: Any, watch: Watch) -> Made | None:
    """How a loss object of Keras is made; None where operations tell more."""
    reduce = {"sum_over_batch_size": "mean", "mean": "mean", "mean_with_sample_weight": "mean"}
    way = reduce.get(loss.reduction, loss.reduction)
    if weights is not None or way not in ("mean", "sum") or not is_tensor(x):
        return None
    if getattr(x, "_keras_mask", None) is not None or not hasattr(y, "shape"):
        return None
    given = getattr(loss, "_fn_kwargs", {})
    kind = type(loss).__name__
    name = getattr(getattr(loss, "fn", None), "__name__", "")
    if type(loss).__module__.partition(".")[0] != "keras" or given.get("label_smoothing"):
        return None
    if name == "sparse_categorical_crossentropy":
        return _entropy(y, x, given, way, watch)
    if name in ("mean_squared_error", "mean_absolute_error") and kind != "MeanMetricWrapper":
        op = "squared_error" if name == "mean_squared_error" else "absolute_error"
        return _error(op, y, x, watch.of(x), way, watch)
    if name == "binary_crossentropy":
        z = logits_of(x) if logits_of(x) is not None else x if given.get("from_logits") else None
        return None if z is None else _error("logistic_loss", y, z, watch.of(z), way, watch)
    return None


def _error(op: str, y: Any, x: Any, operand: Operand, way: str, watch: Watch) -> Made | None:
    """An error of elements; Keras averages it over the last axis in either way."""
    shape, other = tuple(x.shape), tuple(y.shape)
    target = watch.of(y)
    if len(shape) == len(other) + 1 and shape[-1] == 1:
        operand = made("reshape", operand, shape=[-1])
        if len(other) != 1:
            return None
        return made(op, operand, target, reduce="mean") if way == "mean" else None
    if len(other) == len(shape) + 1 and other[-1] == 1 and len(shape) == 1:
        target = made("reshape", target, shape=[-1])
    elif len(other) != len(shape):
        return None
    if way == "sum":
        return None if shape[-1] != 1 else made(op, operand, target, reduce="sum")
    return made(op, operand, target, reduce="mean")


def _entropy(y: Any, x: Any, given: Any, way: str, watch: Watch) -> Made | None:
    z = logits_of(x)
    z = x if z is None and given.get("from_logits") else z
    if z is None or given.get("ignore_class") is not None or given.get("axis", -1) != -1:
        return None
    target = watch.of(y)
    if len(y.shape) == len(x.shape) and y.shape[-1] == 1:
        target = reshaped(target, tuple(x.shape[:-1]))
    elif len(y.shape) != len(x.shape) - 1:
        return None
    return made("nll_loss", made("log_softmax", watch.of(z)), target, reduce=way)


RULES: dict[Any, Rule] = {
    Layers.Dense: _dense,
    Layers.EinsumDense: _einsum_dense,
    Layers.Conv1D: _conv,
    Layers.Conv2D: _conv,
    Layers.Conv3D: _conv,
    Layers.BatchNormalization: _batch_norm,
    Layers.LayerNormalization: _layer_norm,
    Layers.RMSNormalization: _rms_norm,
    Layers.Embedding: _embedding,
    Layers.Dropout: _dropout,
    Layers.SpatialDropout1D: _dropout,
    Layers.SpatialDropout2D: _dropout,
    Layers.MaxPooling1D: _pool("max_pool"),
    Layers.MaxPooling2D: _pool("max_pool"),
    Layers.AveragePooling1D: _pool("average_pool"),
    Layers.AveragePooling2D: _pool("average_pool"),
    Layers.GlobalAveragePooling1D: _global_average,
    Layers.GlobalAveragePooling2D: _global_average,
    Layers.Flatten: _flatten,
    Layers.Reshape: _reshape,
    Layers.Permute: _permute,
    Layers.Add: _merged("add"),
    Layers.Multiply: _merged("multiply"),
    Layers.Subtract: _subtract,
    Layers.Average: _average,
    Layers.Concatenate: _concatenate,
    Layers.Activation: _activation,
    Layers.ReLU: _relu,
    Layers.LeakyReLU: _leaky,
    Layers.ELU: _elu,
    Layers.Softmax: _softmax,
}
