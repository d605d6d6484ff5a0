"""Code for PyTorch: torch.nn.functional, autograd and torch.optim."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from harness.models.graph import Node
from harness.repro.code import Call, Code, a_list, axes_but, is_number, listed
from harness.repro.padding import each, same_padding
from harness.repro.updates import Update, is_new
from harness.repro.writer import Dys, Writer

F = "import torch.nn.functional as F"


class Torch:
    """PyTorch as far as code is written for it."""

    name, np, package = "PyTorch", "torch", "torch"

    def __init__(self) -> None:
        """The tables of this module."""
        self.calls, self.patterns = CALLS, (_linear, _conv_with_bias, _cross_entropy)

    def begin(self, w: Writer) -> None:
        """What stands before everything else."""
        w.needs("import torch")

    def load(self, text: str, dtype: str) -> str:
        """An array of the file as a tensor."""
        whole = dtype.startswith(("int", "uint")) and dtype != "int64"  # losses take no other
        more = ".bfloat16()" if dtype == "bfloat16" else ".long()" if whole else ""
        return f"torch.tensor({text}){more}"

    def array(self, w: Writer, x: Code) -> str:
        """A tensor as a NumPy array."""
        wide = ".float()" if w.dtype == "bfloat16" else ""
        return f"{x:p}.detach(){wide}.numpy()"

    def tensor(self, w: Writer, text: str) -> str:
        """An array as a tensor."""
        return f"torch.tensor({text})"

    def ones(self, w: Writer, shape: tuple[int, ...]) -> str:
        """A tensor of ones."""
        return f"torch.ones({shape}, dtype=torch.{w.dtype})"

    def gradient(self, w: Writer, x: Code, forward: Callable[[], list[Code]], dy: Dys) -> Code:
        """torch.autograd.grad."""
        w.add(f"{x}.requires_grad_()")
        made = forward()
        dys = [g for g in dy if g is not None]
        outputs, given = listed(made), f", {listed(dys)}" if dys else ""
        return w.let("grad", f"torch.autograd.grad({outputs}, {x}{given})[0]", x.shape)

    def update(self, w: Writer, update: Update) -> Code | None:
        """One step of an optimizer of torch.optim; None where it has none such."""
        made = _optimizer(w, update)
        if made is None:
            return None
        p, g = w.value(update.p), w.value(update.g)
        w.add(f"{p} = torch.nn.Parameter({p})")
        w.add(f"{p}.grad = {g}")
        w.add(f"optimizer = torch.optim.{made[0]}([{p}], {', '.join(made[1])})")
        if update.before and not is_new(update, w.step):
            slots = ", ".join(
                f'"{SLOTS[update.kind][k]}": {w.value(x)}'
                for k, x in enumerate(update.before.values())
            )
            count = float(w.step - 1 + update.numbers.get("more", 0))
            step = "" if update.kind == "momentum" else f'"step": torch.tensor({count}), '
            w.add(f"optimizer.state[{p}] = {{{step}{slots}}}")
        w.add("optimizer.step()")
        if update.wanted == "params":
            return p
        slot = SLOTS[update.kind][list(update.before).index(update.wanted)]
        return w.let("out", f'optimizer.state[{p}]["{slot}"]', p.shape)


SLOTS = {
    "sgd": (),
    "momentum": ("momentum_buffer",),
    "adam": ("exp_avg", "exp_avg_sq"),
    "rmsprop": ("square_avg",),
    "adagrad": ("sum",),
}


def _optimizer(w: Writer, update: Update) -> tuple[str, list[str]] | None:
    """The class and its arguments."""
    numbers, kind = update.numbers, update.kind
    if update.rule not in ("descend", "along_velocity", "nesterov", "adam", "over_root"):
        return None
    args = [f"lr={w.value(update.lr)}"]
    name = {"sgd": "SGD", "momentum": "SGD", "rmsprop": "RMSprop", "adagrad": "Adagrad"}.get(kind)
    if kind == "momentum":
        args.append(f"momentum={numbers['momentum']!r}")
        args += ["nesterov=True"] * numbers["nesterov"]
    if kind == "adam":
        name = "AdamW" if update.decay else "Adam"
        args.append(f"betas=({numbers['beta1']!r}, {numbers['beta2']!r})")
    if kind == "rmsprop":
        args.append(f"alpha={numbers['rho']!r}")
    if "epsilon" in numbers:
        args.append(f"eps={numbers['epsilon']!r}")
    if update.decay and (kind != "adam" or update.l2):
        return None
    decay = update.decay or update.l2
    args += [f"weight_decay={decay!r}"] * bool(decay or name == "AdamW")
    return str(name), args


def _weights(w: Writer, x: Node) -> str | None:
    """The code of weights as torch.nn.functional.linear takes them."""
    if x.op == "transpose":
        return w.value(x.inputs[0]).text
    return None


def _linear(w: Writer, x: Node) -> Code | None:
    """linear of transposed weights, with a bias or without one."""
    product, b = (x.inputs[0], x.inputs[1]) if x.op == "bias" else (x, None)
    if product.op != "linear" or product.inputs[1].op != "transpose":
        return None
    if b is not None and w.used_again(product):
        return None
    w.needs(F)
    operands = [w.value(product.inputs[0]).text, _weights(w, product.inputs[1])]
    operands += [w.value(b).text] if b is not None else []
    return Code(f"F.linear({', '.join(map(str, operands))})", w.shape(x))


def _conv_with_bias(w: Writer, x: Node) -> Code | None:
    if x.op != "bias_channels" or x.arg("axis") != 1 or x.inputs[0].op != "conv":
        return None
    conv = x.inputs[0]
    if conv.arg("layout") != "first" or w.used_again(conv):
        return None
    of, kernel, b = (w.value(i) for i in (*conv.inputs, x.inputs[1]))
    return Code(_conv(w, of, kernel, **dict(conv.args), b=b), w.shape(x))


def _cross_entropy(w: Writer, x: Node) -> Code | None:
    """nll_loss of a log-softmax."""
    if x.op != "nll_loss" or x.inputs[0].op != "log_softmax" or x.arg("reduce") == "batch":
        return None
    inner = x.inputs[0]
    z, y = w.value(inner.inputs[0]), w.value(x.inputs[1])
    if inner.arg("axis") not in (-1, z.ndim - 1) or z.ndim != 2:
        return None
    w.needs(F)
    how = "" if x.arg("reduce") == "mean" else f', reduction="{x.arg("reduce")}"'
    return Code(f"F.cross_entropy({z}, {y}{how})", ())


def _f(text: str) -> Callable[..., str]:
    """A call of torch.nn.functional, as a format string over operands in their order."""

    def code(w: Writer, *operands: Code, **args: Any) -> str:
        w.needs(F)
        return text.format(*operands, **args)

    return code


def _conv(
    w: Writer,
    x: Code,
    k: Code,
    stride: Any,
    padding: Any,
    dilation: Any,
    layout: str,
    b: Code | None = None,
) -> str:
    w.needs(F)
    axes, x_text, k_text = x.ndim - 2, x.text, k.text
    shape, size = x.shape[2:], k.shape[2:]
    if layout == "last":
        order = (0, x.ndim - 1, *range(1, x.ndim - 1))
        x_text = f"torch.permute({x}, {order})"
        k_text = f"torch.permute({k}, {(axes + 1, axes, *range(axes))})"
        shape, size = x.shape[1:-1], k.shape[:-2]
    x_text, padding = _padded(w, x_text, shape, size, stride, padding, dilation)
    args = [x_text, k_text] + ([b.text] if b is not None else [])
    for name, value, default in (
        ("stride", stride, 1),
        ("padding", padding, 0),
        ("dilation", dilation, 1),
    ):
        args += [f"{name}={value}"] if value != default else []
    made = f"F.conv{axes}d({', '.join(args)})"
    return f"torch.movedim({made}, 1, -1)" if layout == "last" else made


def _padded(
    w: Writer,
    x: str,
    shape: Any,
    size: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    fill: Any = 0,
) -> tuple[str, Any]:
    """A tensor that is padded as TensorFlow does, where torch has no such padding."""
    if padding == "valid":
        return x, 0
    if padding != "same":
        return x, padding
    pairs = same_padding(shape, size, stride, dilation)
    if all(before == after for before, after in pairs) and not fill:
        return x, tuple(before for before, _ in pairs)
    flat = tuple(n for pair in reversed(pairs) for n in pair)
    more = f", value={fill}" if fill else ""
    return w.let("padded", f"F.pad({x}, {flat}{more})").text, 0


def _pool(kind: str) -> Callable[..., str | None]:
    def code(
        w: Writer, x: Code, size: Any, stride: Any, padding: Any, layout: str, padded: bool = True
    ) -> str | None:
        axes = x.ndim - 2
        if kind == "avg" and padding == "same" and not padded:
            return None
        w.needs(F)
        text, shape = x.text, x.shape[2:]
        if layout == "last":
            text = f"torch.movedim({x}, -1, 1)"
            shape = x.shape[1:-1]
        each_size = each(size, axes)
        step = each_size if stride is None else stride
        fill = 'float("-inf")' if kind == "max" else 0
        text, padding = _padded(w, text, shape, each_size, step, padding, 1, fill)
        args = [text, str(size)]
        args += [f"stride={stride}"] if stride not in (None, size) else []
        args += [f"padding={padding}"] if padding else []
        args += ["count_include_pad=False"] if not padded and padding else []
        made = f"F.{kind}_pool{axes}d({', '.join(args)})"
        return f"torch.movedim({made}, 1, -1)" if layout == "last" else made

    return code


def _attention(w: Writer, q: Code, k: Code, v: Code, heads: int, causal: bool) -> str:
    w.needs(F)
    operands = [x.text for x in (q, k, v)]
    if heads > 1:
        operands = [f"{x:p}.unflatten(-1, ({heads}, -1)).transpose(-3, -2)" for x in (q, k, v)]
        names = ("q", "k", "v")
        pairs = zip(names, operands, strict=True)
        operands = [w.let(name, text).text for name, text in pairs]
    more = ", is_causal=True" if causal else ""
    made = f"F.scaled_dot_product_attention({', '.join(operands)}{more})"
    return f"{made}.transpose(-3, -2).flatten(-2)" if heads > 1 else made


def _batch_norm(
    w: Writer, x: Code, gain: Code, offset: Code, epsilon: Code, axis: int
) -> str | None:
    if axis % x.ndim != 1:
        return None
    w.needs(F)
    b = "None" if is_number(offset) else offset.text
    return f"F.batch_norm({x}, None, None, {gain}, {b}, training=True, eps={epsilon})"


def _running(which: int) -> Callable[..., str | None]:
    def code(w: Writer, old: Code, x: Code, momentum: Code, axis: int) -> str | None:
        if axis % x.ndim != 1:
            return None
        w.needs(F)
        kept = w.let("running", f"{old:p}.clone()").text
        given = [f"torch.zeros_like({old})", f"torch.ones_like({old})"]
        given[which] = kept
        w.add(f"F.batch_norm({x}, {', '.join(given)}, training=True, momentum={momentum})")
        return kept

    return code


def _biased(w: Writer, old: Code, x: Code, momentum: Code, axis: int) -> str:
    found = f"torch.var({x}, dim={axes_but(x.ndim, axis)}, correction=0)"
    return f"{momentum} * {old:p} + (1 - {momentum}) * {found}"


def _norm_of_all(w: Writer, *gradients: Code) -> str:
    return f"torch.nn.utils.get_total_norm({a_list(gradients)})"


def _clipped(w: Writer, g: Code, norm: Code, limit: Code) -> str:
    p = w.let("p", f"torch.zeros_like({g})").text
    w.add(f"{p}.grad = {g:p}.clone()")
    w.add(f"torch.nn.utils.clip_grads_with_norm_([{p}], {limit}, {norm})")
    return f"{p}.grad"


def _embed(w: Writer, table: Code, x: Code, padding: int | None = None) -> str:
    w.needs(F)
    tokens = x.text if w.is_integer(x) else f"{x:p}.long()"
    more = "" if padding is None else f", padding_idx={padding}"
    return f"F.embedding({tokens}, {table}{more})"


def _loss(name: str) -> Callable[..., str]:
    def code(w: Writer, x: Code, y: Code, reduce: str) -> str:
        w.needs(F)
        how = {"mean": "", "sum": ', reduction="sum"', "batch": ', reduction="sum"'}[reduce]
        return f"F.{name}({x}, {y}{how})" + (f" / {x.shape[0]}" if reduce == "batch" else "")

    return code


def _nll(w: Writer, p: Code, y: Code, reduce: str) -> str:
    flat = (p, y)
    if p.ndim != 2:
        flat = (Code(f"{p:p}.flatten(0, -2)"), Code(f"{y:p}.flatten()"))
    made = _loss("nll_loss")(w, *flat, reduce=reduce.replace("batch", "sum"))
    return f"{made} / {p.shape[0]}" if reduce == "batch" else made


def _sequences(w: Writer, z: Code, y: Code, time: str) -> str:
    w.needs(F)
    flat = f"F.cross_entropy({z:p}.flatten(0, -2), {y:p}.flatten()"
    return f'{flat}, reduction="sum") / {z.shape[0]}' if time == "sum" else f"{flat})"


def _sizes(text: str) -> Callable[..., str]:
    """A normalisation over the last axis."""

    def code(w: Writer, x: Code, gain: Code, *rest: Code) -> str:
        w.needs(F)
        given = ["None" if is_number(r) and k < len(rest) - 1 else r for k, r in enumerate(rest)]
        return text.format(x, (x.shape[-1],), gain, *given)

    return code


CALLS: dict[str, Call] = {
    "embed": _embed,
    "embed_padded": _embed,
    "permute": "{x:p}.permute{axes}",
    "reshape": lambda w, x, shape: f"{x:p}.reshape({', '.join(map(str, shape))})",
    "sigmoid": "torch.sigmoid({x})",
    "relu": _f("F.relu({0})"),
    "leaky_relu": _f("F.leaky_relu({0}, {1})"),
    "elu": _f("F.elu({0}, {1})"),
    "silu": _f("F.silu({0})"),
    "gelu": _f("F.gelu({0})"),
    "gelu_tanh": _f('F.gelu({0}, approximate="tanh")'),
    "softplus": _f("F.softplus({0})"),
    "softmax": _f("F.softmax({0}, dim={axis})"),
    "log_softmax": _f("F.log_softmax({0}, dim={axis})"),
    "attention": _attention,
    "conv": _conv,
    "max_pool": _pool("max"),
    "average_pool": _pool("avg"),
    "layer_norm": _sizes("F.layer_norm({0}, {1}, {2}, {3}, eps={4})"),
    "rms_norm": _sizes("F.rms_norm({0}, {1}, {2}, eps={3})"),
    "batch_norm": _batch_norm,
    "running_mean": _running(0),
    "running_variance": _running(1),
    "running_variance_keras": _biased,
    "l2_normalize": _f("F.normalize({0}, dim={axis}, eps={1})"),
    "squared_error": _loss("mse_loss"),
    "absolute_error": _loss("l1_loss"),
    "logistic_loss": _loss("binary_cross_entropy_with_logits"),
    "nll_loss": _nll,
    "cross_entropy": _sequences,
    "global_norm": _norm_of_all,
    "clip_torch": _clipped,
    "clip_elements": "torch.clamp({g}, -{limit}, {limit})",
    "stop_gradient": "{x:p}.detach()",
    "rounded": lambda w, x, to, cut: (
        None if cut or to == "tf32" else f"{x:p}.to(torch.{to}).to(torch.{w.dtype})"
    ),
    "causal_mask": lambda w, x, fill, more: (
        f"{x:p}.masked_fill(~torch.ones({x.shape[-2]}, {x.shape[-1]}, dtype=torch.bool)"
        f".tril({more or ''}), {fill})"
    ),
    "place_block": lambda w, x, index, of: (
        f"torch.nn.functional.pad({x}, ({index * x.shape[-1]}, {(of - 1 - index) * x.shape[-1]}))"
    ),
}
