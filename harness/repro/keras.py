"""Code for Keras 3 over TensorFlow: keras.ops, GradientTape and keras.optimizers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from harness.repro.code import Call, Code, a_list, along, axes_but, is_number, listed
from harness.repro.padding import each, pairs
from harness.repro.updates import Update, is_new
from harness.repro.writer import Dys, Writer

KERAS, TF = "import keras", "import tensorflow as tf"


class Keras:
    """Keras as far as code is written for it."""

    name, np, package = "Keras", "ops", "keras"

    def __init__(self) -> None:
        """The tables of this module."""
        self.calls, self.patterns = CALLS, ()

    def begin(self, w: Writer) -> None:
        """What stands before everything else."""
        w.needs("from keras import ops")

    def load(self, text: str, dtype: str) -> str:
        """An array of the file as a tensor."""
        made = f"ops.convert_to_tensor({text})"
        return f'ops.cast({made}, "bfloat16")' if dtype == "bfloat16" else made

    def array(self, w: Writer, x: Code) -> str:
        """A tensor as a NumPy array."""
        found = f'ops.cast({x}, "float32")' if w.dtype == "bfloat16" else x.text
        return f"ops.convert_to_numpy({found})"

    def tensor(self, w: Writer, text: str) -> str:
        """An array as a tensor."""
        return f"ops.convert_to_tensor({text})"

    def ones(self, w: Writer, shape: tuple[int, ...]) -> str:
        """A tensor of ones."""
        return f'ops.ones({shape}, "{w.dtype}")'

    def gradient(self, w: Writer, x: Code, forward: Callable[[], list[Code]], dy: Dys) -> Code:
        """tf.GradientTape."""
        w.needs(TF)
        with w.block("with tf.GradientTape() as tape:"):
            w.add(f"tape.watch({x})")
            made = forward()
        given = [g for g in dy if g is not None]
        more = f", output_gradients={listed(given)}" if given else ""
        text = f"tape.gradient({listed(made)}, {x}{more})"
        return w.let("grad", f"ops.convert_to_tensor({text})", x.shape)

    def update(self, w: Writer, update: Update) -> Code | None:
        """One step of an optimizer of keras.optimizers; None where it has none such."""
        made = _optimizer(w, update)
        if made is None:
            return None
        w.needs(KERAS)
        if w.dtype != "float32":
            w.add(f'keras.config.set_floatx("{w.dtype}")')
        p, g = w.value(update.p), w.value(update.g)
        if update.l2:
            g = w.let("grad", f"{g} + {update.l2!r} * {p}", p.shape)
        w.add(f'{p} = keras.Variable({p}, dtype="{w.dtype}")')
        w.add(f"optimizer = keras.optimizers.{made[0]}({', '.join(made[1])})")
        w.add(f"optimizer.build([{p}])")
        if not is_new(update, w.step):
            if update.kind == "adam":
                w.add(f"optimizer.iterations.assign({w.step - 1 + update.numbers['more']})")
            for k, x in enumerate(update.before.values()):
                w.add(f"optimizer.{SLOTS[update.kind][k]}[0].assign({w.value(x)})")
        w.add(f"optimizer.apply([{g}])")
        if update.wanted == "params":
            return p
        slot = SLOTS[update.kind][list(update.before).index(update.wanted)]
        return w.let("out", f"optimizer.{slot}[0]", p.shape)


SLOTS = {
    "sgd": (),
    "momentum": ("momentums",),
    "adam": ("_momentums", "_velocities"),
    "rmsprop": ("_velocities",),
    "adagrad": ("_accumulators",),
}
RULES = ("descend", "along_velocity_keras", "nesterov_keras", "adam_keras", "over_root_inside")


def _optimizer(w: Writer, update: Update) -> tuple[str, list[str]] | None:
    """The class and its arguments."""
    numbers, kind = update.numbers, update.kind
    if update.rule not in RULES:
        return None
    names = {"sgd": "SGD", "momentum": "SGD", "rmsprop": "RMSprop", "adagrad": "Adagrad"}
    args = [f"learning_rate={w.value(update.lr)}"]
    if kind == "momentum":
        args.append(f"momentum={numbers['momentum']!r}")
        args += ["nesterov=True"] * numbers["nesterov"]
    if kind == "adam":
        args += [f"beta_1={numbers['beta1']!r}", f"beta_2={numbers['beta2']!r}"]
    if kind == "rmsprop":
        args.append(f"rho={numbers['rho']!r}")
    if "epsilon" in numbers:
        args.append(f"epsilon={numbers['epsilon']!r}")
    args += [f"weight_decay={update.decay!r}"] * bool(update.decay)
    return names.get(kind, "Adam"), args


def _conv(
    w: Writer, x: Code, k: Code, stride: Any, padding: Any, dilation: Any, layout: str
) -> str | None:
    axes = x.ndim - 2
    if max(each(stride, axes)) > 1 and max(each(dilation, axes)) > 1:
        return None
    text, kernel = x.text, k.text
    shape, size = x.shape[1:-1], k.shape[:-2]
    if layout == "first":
        text = f"ops.moveaxis({x}, 1, -1)"
        kernel = f"ops.transpose({k}, {(*range(2, axes + 2), 1, 0)})"
        shape, size = x.shape[2:], k.shape[2:]
    if not isinstance(padding, str) or padding == "even":
        around = pairs(shape, size, stride, padding, dilation)
        if any(map(any, around)):
            text = w.let("padded", f"ops.pad({text}, {((0, 0), *around, (0, 0))})").text
        padding = "valid"
    args = [text, kernel, f'padding="{padding}"', 'data_format="channels_last"']
    args += [f"strides={stride}"] * (stride != 1) + [f"dilation_rate={dilation}"] * (dilation != 1)
    made = f"ops.conv({', '.join(args)})"
    return f"ops.moveaxis({made}, -1, 1)" if layout == "first" else made


def _pool(kind: str) -> Callable[..., str | None]:
    def code(
        w: Writer, x: Code, size: Any, stride: Any, padding: Any, layout: str, padded: bool = True
    ) -> str | None:
        axes = x.ndim - 2
        plain = padding in (0, "valid") or padding == (0,) * axes
        if not plain and (padding != "same" or (kind == "average" and padded)):
            return None
        text = f"ops.moveaxis({x}, 1, -1)" if layout == "first" else x.text
        args = [text, str(size)]
        args += [f"strides={each(stride, axes)}"] * (stride not in (None, size))
        args += [f'padding="{"valid" if plain else padding}"', 'data_format="channels_last"']
        made = f"ops.{kind}_pool({', '.join(args)})"
        return f"ops.moveaxis({made}, -1, 1)" if layout == "first" else made

    return code


def _attention(w: Writer, q: Code, k: Code, v: Code, heads: int, causal: bool) -> str | None:
    more = ", is_causal=True" if causal else ""
    call = f"ops.dot_product_attention({{}}, {{}}, {{}}{more}, flash_attention=False)"
    if q.ndim == 4 and heads == 1:
        turned = [f"ops.swapaxes({x}, 1, 2)" for x in (q, k, v)]
        return f"ops.swapaxes({call.format(*turned)}, 1, 2)"
    if q.ndim != 3:
        return None
    parts = []
    for name, x in zip(("q", "k", "v"), (q, k, v), strict=True):
        shape = (*x.shape[:2], heads, x.shape[-1] // heads)
        parts.append(w.let(name, f"ops.reshape({x}, {shape})").text)
    return f"ops.reshape({call.format(*parts)}, {(*q.shape[:2], v.shape[-1])})"


def _layer_norm(w: Writer, x: Code, gain: Code, offset: Code, epsilon: Code) -> str:
    b = "None" if is_number(offset) else offset.text
    return f"ops.layer_normalization({x}, {gain}, {b}, epsilon={epsilon})"


def _batch_norm(w: Writer, x: Code, gain: Code, offset: Code, epsilon: Code, axis: int) -> str:
    w.add(f"mean, variance = ops.moments({x}, axes={axes_but(x.ndim, axis)})")
    b = "None" if is_number(offset) else offset.text
    more = f"offset={b}, scale={gain}, epsilon={epsilon}"
    return f"ops.batch_normalization({x}, mean, variance, axis={axis}, {more})"


def _running(which: str) -> Callable[..., str]:
    def code(w: Writer, old: Code, x: Code, momentum: Code, axis: int) -> str:
        w.needs(KERAS)
        made = f'axis={axis}, momentum={momentum}, dtype="{w.dtype}"'
        layer = w.let("layer", f"keras.layers.BatchNormalization({made})").text
        w.add(f"{layer}.build({x}.shape)")
        w.add(f"{layer}.{which}.assign({old})")
        w.add(f"{layer}({x}, training=True)")
        return f"{layer}.{which}"

    return code


def _loss(text: str) -> Callable[..., str]:
    """A loss whose terms are means over the last axis."""

    def code(w: Writer, x: Code, y: Code, reduce: str) -> str:
        w.needs(KERAS)
        made = f"keras.losses.{text.format(y, x)}"
        if reduce == "mean":
            return f"ops.mean({made})"
        width = f"ops.sum({made}) * {x.shape[-1]}"
        return width if reduce == "sum" else f"{width} / {x.shape[0]}"

    return code


def _nll(w: Writer, p: Code, y: Code, reduce: str) -> str:
    y = Code(f'ops.cast({y}, "int32")')
    picked = f"-ops.take_along_axis({p}, ops.expand_dims({y}, -1), axis=-1)"
    return f"ops.{reduce}({picked})" if reduce != "batch" else f"ops.sum({picked}) / {p.shape[0]}"


def _cross_entropy(w: Writer, z: Code, y: Code, time: str) -> str:
    w.needs(KERAS)
    each = f"keras.losses.sparse_categorical_crossentropy({y}, {z}, from_logits=True)"
    return f"ops.mean({each})" if time == "mean" else f"ops.sum({each}) / {z.shape[0]}"


def _tf(text: str) -> Call:
    def code(w: Writer, *operands: Code, **args: Any) -> str:
        w.needs(TF)
        return text.format(*operands, **args)

    return code


def _norm_of_all(w: Writer, *gradients: Code) -> str:
    w.needs(TF)
    return f"tf.linalg.global_norm({a_list(gradients)})"


def _bias_channels(w: Writer, x: Code, b: Code, axis: int) -> str:
    return f"{x:p} + {along(b, x.ndim, axis)}"


def _outer(w: Writer, x: Code, dy: Code) -> str:
    flat = (y.text if y.ndim == 2 else f"ops.reshape({y}, (-1, {y.shape[-1]}))" for y in (x, dy))
    return "ops.transpose({}) @ {}".format(*flat)


def _place_block(w: Writer, x: Code, index: int, of: int) -> str:
    size = x.shape[-1]
    around = ((0, 0),) * (x.ndim - 1) + ((index * size, (of - 1 - index) * size),)
    return f"ops.pad({x}, {around})"


CALLS: dict[str, Call] = {
    "embed": "ops.take({table}, {x}, axis=0)",
    "transpose": "ops.transpose({w})",
    "outer": _outer,
    "sigmoid": "ops.sigmoid({x})",
    "tanh": "ops.tanh({x})",
    "relu": "ops.relu({x})",
    "leaky_relu": "ops.leaky_relu({x}, {slope})",
    "elu": "ops.elu({x}, {alpha})",
    "silu": "ops.silu({x})",
    "gelu": "ops.gelu({x}, approximate=False)",
    "gelu_tanh": "ops.gelu({x}, approximate=True)",
    "softplus": "ops.softplus({x})",
    "softmax": "ops.softmax({x}, axis={axis})",
    "log_softmax": "ops.log_softmax({x}, axis={axis})",
    "attention": _attention,
    "conv": _conv,
    "max_pool": _pool("max"),
    "average_pool": _pool("average"),
    "layer_norm": _layer_norm,
    "rms_norm": "ops.rms_normalization({x}, {gain}, epsilon={epsilon})",
    "batch_norm": _batch_norm,
    "running_mean_keras": _running("moving_mean"),
    "running_variance_keras": _running("moving_variance"),
    "l2_normalize_keras": _tf("tf.math.l2_normalize({0}, {axis}, {1})"),
    "squared_error": _loss("mean_squared_error({}, {})"),
    "absolute_error": _loss("mean_absolute_error({}, {})"),
    "logistic_loss": _loss("binary_crossentropy({}, {}, from_logits=True)"),
    "nll_loss": _nll,
    "cross_entropy": _cross_entropy,
    "dropout": lambda w, x, mask, rate: f"{x:p} * ops.cast({mask}, {x:p}.dtype) / (1 - {rate})",
    "bias_channels": _bias_channels,
    "place_block": _place_block,
    "global_norm": _norm_of_all,
    "clip_by_norm": _tf("tf.clip_by_global_norm([{0}], {2}, {1})[0][0]"),
    "clip_elements": "ops.clip({g}, -{limit}, {limit})",
    "clip_tensor": _tf("tf.clip_by_norm({0}, {2})"),
    "clip_torch": "{g:p} * ops.minimum(1.0, {limit} / ({norm} + 1e-6))",
    "l2_normalize": (
        "{x:p} / ops.maximum(ops.sqrt(ops.sum(ops.square({x}), axis={axis}, keepdims=True)), "
        "{epsilon})"
    ),
    "stop_gradient": "ops.stop_gradient({x})",
    "rounded": lambda w, x, to, cut: (
        None if cut or to == "tf32" else f'ops.cast(ops.cast({x}, "{to}"), "{w.dtype}")'
    ),
    "causal_mask": lambda w, x, fill, more: (
        f'ops.where(ops.tri({x.shape[-2]}, {x.shape[-1]}, {more}, dtype="bool"), {x}, {fill})'
    ),
}
