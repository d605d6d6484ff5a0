"""What functions of PyTorch are in the terms of the graph: a rule for each, by its name.

A rule is given the operands of a call as `Call` has them and returns how its result is made, or
None where the graph has no op for it (with these arguments). Formulas: the documentation of
torch.nn.functional, and harness.models.ops, whose tests hold them against PyTorch.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.overrides import resolve_name

from harness.capture import pytorch_shapes as shapes
from harness.capture.pytorch_call import Call, Rule, made
from harness.models.entries import Made


def _unary(op: str, *numbers: float) -> Rule:
    return lambda call: made(op, call.operand(0, "input"), *numbers)


def _shape(x: Any) -> tuple[int, ...] | None:
    return tuple(x.shape) if isinstance(x, torch.Tensor) else None


def _add(call: Call) -> Made:
    x, y = call.arg(0, "input"), call.arg(1, "other")
    return _sum(call, x, y, call.kwargs.get("alpha", 1))


def _sum(call: Call, x: Any, y: Any, times: float) -> Made:
    one, two = call.of(x), call.of(y)
    if times != 1:
        two = made("scale", two, times) if not isinstance(two, int | float) else two * times
    same = _shape(x) == _shape(y)
    return made("add" if same else "broadcast_add", one, two)


def _sub(call: Call) -> Made:
    x, y = call.arg(0, "input"), call.arg(1, "other")
    return _sum(call, x, y, -call.kwargs.get("alpha", 1))


def _rsub(call: Call) -> Made:
    return _sum(call, call.arg(1, "other"), call.arg(0, "input"), -1)


def _mul(call: Call) -> Made:
    x, y = call.arg(0, "input"), call.arg(1, "other")
    if not isinstance(x, torch.Tensor):
        x, y = y, x
    one, two = call.of(x), call.of(y)
    if isinstance(two, int | float):
        return made("scale", one, two)
    return made("multiply" if _shape(x) == _shape(y) else "broadcast_multiply", one, two)


def _div(call: Call) -> Made | None:
    x, y = call.arg(0, "input"), call.arg(1, "other")
    one, two = call.of(x), call.of(y)
    if call.kwargs.get("rounding_mode"):
        return None
    if isinstance(two, int | float):
        return made("scale", one, 1 / two) if two else None
    return made("divide", one, two) if _shape(x) == _shape(y) else None


def _rdiv(call: Call) -> Made:
    return made("divide", call.of(call.arg(1, "other")), call.operand(0, "input"))


def _pow(call: Call) -> Made | None:
    power = call.arg(1, "exponent")
    if power == 2:
        return made("square", call.operand(0, "input"))
    return made("root", call.operand(0, "input")) if power == 0.5 else None


def _matmul(call: Call) -> Made | None:
    x, y = call.arg(0, "input"), call.arg(1, "other")
    if y.dim() == 2 and x.dim() >= 2:
        return made("linear", call.of(x), call.of(y))
    return made("matmul", call.of(x), call.of(y)) if x.dim() == y.dim() else None


def _linear(call: Call) -> Made:
    product = made("linear", call.operand(0, "input"), made("transpose", call.operand(1, "weight")))
    return _with_bias(call, product, call.arg(2, "bias"))


def _addmm(call: Call) -> Made:
    product = made("linear", call.operand(1, "mat1"), call.operand(2, "mat2"))
    return _with_bias(call, product, call.arg(0, "input"))


def _with_bias(call: Call, product: Made, b: Any) -> Made:
    return product if b is None else made("bias", product, call.of(b))


def _plain(value: Any) -> Any:
    """A number for each axis as one number where they are the same, else as a list."""
    if isinstance(value, int | str):
        return value
    found = [int(v) for v in value]
    return found[0] if len(set(found)) == 1 else found


def _conv(call: Call) -> Made | None:
    if call.arg(6, "groups", 1) != 1:
        return None
    args = {
        "stride": _plain(call.arg(3, "stride", 1)),
        "padding": _plain(call.arg(4, "padding", 0)),
        "dilation": _plain(call.arg(5, "dilation", 1)),
    }
    product = made("conv", call.operand(0, "input"), call.operand(1, "weight"), **args)
    b = call.arg(2, "bias")
    return product if b is None else made("bias_channels", product, call.of(b))


def _max_pool(call: Call) -> Made | None:
    if call.arg(4, "dilation", 1) not in (1, (1, 1), [1, 1]) or call.arg(5, "ceil_mode", False):
        return None
    stride = call.arg(2, "stride")
    return made(
        "max_pool",
        call.operand(0, "input"),
        size=_plain(call.arg(1, "kernel_size")),
        stride=None if stride in (None, [], ()) else _plain(stride),
        padding=_plain(call.arg(3, "padding", 0)),
    )


def _average_pool(call: Call) -> Made | None:
    if call.arg(4, "ceil_mode", False) or call.arg(6, "divisor_override") is not None:
        return None
    stride = call.arg(2, "stride")
    return made(
        "average_pool",
        call.operand(0, "input"),
        size=_plain(call.arg(1, "kernel_size")),
        stride=None if stride in (None, [], ()) else _plain(stride),
        padding=_plain(call.arg(3, "padding", 0)),
        padded=bool(call.arg(5, "count_include_pad", True)),
    )


def _adaptive(call: Call) -> Made | None:
    """Adaptive pooling to one place an axis is a mean over all of them."""
    x, size = call.arg(0, "input"), call.arg(1, "output_size")
    if any(n != 1 for n in (size if isinstance(size, tuple | list) else [size])):
        return None
    axes = list(range(2, x.dim()))
    mean = made("mean_over", call.of(x), axis=axes)
    return made("reshape", mean, shape=[*x.shape[:2], *(1 for _ in axes)])


def _batch_norm(call: Call) -> Made | None:
    x, training = call.arg(0, "input"), call.arg(5, "training", False)
    gain, offset = call.arg(3, "weight"), call.arg(4, "bias")
    mean, variance = call.arg(1, "running_mean"), call.arg(2, "running_var")
    if not training or gain is None or offset is None:
        return None
    momentum = call.arg(6, "momentum", 0.1)
    for kind, buffer in (("running_mean", mean), ("running_variance", variance)):
        if isinstance(buffer, torch.Tensor) and momentum is not None:
            call.keep("buffer", buffer, made(kind, call.of(buffer), call.of(x), momentum))
    epsilon = call.arg(7, "eps", 1e-5)
    return made("batch_norm", call.of(x), call.of(gain), call.of(offset), epsilon)


def _layer_norm(call: Call) -> Made | None:
    gain, offset = call.arg(2, "weight"), call.arg(3, "bias")
    shape = call.arg(1, "normalized_shape")
    if gain is None or len(tuple(shape)) != 1:
        return None
    zeros = 0.0 if offset is None else call.of(offset)
    epsilon = call.arg(4, "eps", 1e-5)
    return made("layer_norm", call.operand(0, "input"), call.of(gain), zeros, epsilon)


def _rms_norm(call: Call) -> Made | None:
    gain, epsilon = call.arg(2, "weight"), call.arg(3, "eps")
    if gain is None or epsilon is None or len(tuple(call.arg(1, "normalized_shape"))) != 1:
        return None
    return made("rms_norm", call.operand(0, "input"), call.of(gain), epsilon)


def _embedding(call: Call) -> Made | None:
    if call.arg(3, "max_norm") is not None or call.arg(5, "scale_grad_by_freq", False):
        return None
    operands = call.operand(1, "weight"), call.operand(0, "input")
    padding = call.arg(2, "padding_idx")
    if padding is None or padding < 0:
        return made("embed", *operands)
    return made("embed_padded", *operands, padding=int(padding))


def _gelu(call: Call) -> Made:
    exact = call.arg(1, "approximate", "none") == "none"
    return made("gelu" if exact else "gelu_tanh", call.operand(0, "input"))


def _leaky(call: Call) -> Made:
    return made("leaky_relu", call.operand(0, "input"), call.arg(1, "negative_slope", 0.01))


def _softmax(op: str) -> Rule:
    def rule(call: Call) -> Made | None:
        axis = call.arg(1, "dim")
        return None if axis is None else made(op, call.operand(0, "input"), axis=int(axis))

    return rule


def _dropout(call: Call) -> Made | None:
    x, rate = call.arg(0, "input"), call.arg(1, "p", 0.5)
    if not call.arg(2, "training", True) or rate == 0:
        return made("add", call.of(x))
    if rate >= 1:
        return None
    mask = call.keep("mask", call.kept(), None)
    return made("dropout", call.of(x), mask, float(rate))


def _attention(call: Call) -> Made | None:
    q, k, v = (call.operand(i, name) for i, name in enumerate(("query", "key", "value")))
    plain = call.arg(3, "attn_mask") is None and not call.arg(4, "dropout_p", 0.0)
    width = call.arg(0, "query").shape[-1]
    scale = call.kwargs.get("scale")
    if not plain or (scale is not None and not math.isclose(scale, width**-0.5)):
        return None
    if call.kwargs.get("enable_gqa"):
        return None
    return made("attention", q, k, v, causal=bool(call.arg(5, "is_causal", False)))


def _heads(call: Call) -> Made | None:
    """torch.nn.functional.multi_head_attention_forward, of x to itself, time first."""
    x, key, value, _, heads, weight, b = call.args[:7]
    given = call.kwargs
    masked, causal = given.get("attn_mask") is not None, bool(given.get("is_causal"))
    late = masked and _hides_later(given["attn_mask"])
    odd = given.get("use_separate_proj_weight") or given.get("key_padding_mask") is not None
    dropped = call.args[10] and given.get("training", True) if len(call.args) > 10 else False
    if key is not x or value is not x or odd or dropped or (masked and not late):
        return None
    product = made("linear", call.of(x), made("transpose", call.of(weight)))
    joined = _with_bias(call, product, b)
    q, k, v = (
        made("permute", made("block", joined, index=i, of=3), axes=[1, 0, 2]) for i in range(3)
    )
    mixed = made("attention", q, k, v, heads=int(heads), causal=causal or late)
    back = made("permute", mixed, axes=[1, 0, 2])
    out = made("linear", back, made("transpose", call.of(call.args[11])))
    return _with_bias(call, out, call.args[12])


def _hides_later(mask: torch.Tensor) -> bool:
    """Whether a mask hides from each query the keys after its place, and nothing else."""
    if mask.dim() != 2:
        return False
    hidden = mask if mask.dtype == torch.bool else mask != 0
    later = torch.triu(torch.ones_like(hidden, dtype=torch.bool), 1)
    return bool((hidden == later).all())


def _masked_fill(call: Call) -> Made | None:
    """Scores whose later keys are hidden: the causal mask."""
    x, mask, value = call.arg(0, "input"), call.arg(1, "mask"), call.arg(2, "value")
    if isinstance(value, torch.Tensor):
        value = value.item()
    if value > -1e4 or mask.dim() < 2 or mask.numel() != math.prod(x.shape[-2:]):
        return None
    if not _hides_later(mask.reshape(x.shape[-2:])):
        return None
    return made("causal_mask", call.of(x), fill=max(float(value), -1e30))


def _cross_entropy(call: Call) -> Made | None:
    z, y = call.arg(0, "input"), call.arg(1, "target")
    plain = call.arg(2, "weight") is None and not call.kwargs.get("label_smoothing", 0.0)
    reduction = call.kwargs.get("reduction", "mean")
    if not plain or y.is_floating_point() or reduction == "none" or z.dim() != y.dim() + 1:
        return None
    if bool((y == call.kwargs.get("ignore_index", -100)).any()):
        return None
    logits = call.of(z)
    if z.dim() > 2:
        logits = made("permute", logits, axes=[0, *range(2, z.dim()), 1])
    return made("nll_loss", made("log_softmax", logits), call.of(y), reduce=reduction)


def _nll(call: Call) -> Made | None:
    p, reduction = call.arg(0, "input"), call.kwargs.get("reduction", "mean")
    if call.arg(2, "weight") is not None or reduction == "none" or p.dim() != 2:
        return None
    return made("nll_loss", call.of(p), call.operand(1, "target"), reduce=reduction)


def _error(op: str) -> Rule:
    def rule(call: Call) -> Made | None:
        reduction = call.kwargs.get("reduction", "mean")
        odd = call.kwargs.get("weight") is not None or call.kwargs.get("pos_weight") is not None
        if odd or reduction == "none":
            return None
        return made(op, call.operand(0, "input"), call.operand(1, "target"), reduce=reduction)

    return rule


def _clamp(call: Call) -> Made | None:
    low, high = call.arg(1, "min"), call.arg(2, "max")
    if low == 0 and high is None:
        return made("relu", call.operand(0, "input"))
    if isinstance(high, int | float) and low == -high:
        return made("clip_elements", call.operand(0, "input"), 0.0, float(high))
    return None


RULES: dict[str, Any] = {
    "add": _add,
    "sub": _sub,
    "subtract": _sub,
    "rsub": _rsub,
    "mul": _mul,
    "multiply": _mul,
    "div": _div,
    "divide": _div,
    "true_divide": _div,
    "truediv": _div,
    "rtruediv": _rdiv,
    "pow": _pow,
    "square": _unary("square"),
    "neg": _unary("negate"),
    "negative": _unary("negate"),
    "exp": _unary("exp"),
    "log": _unary("log"),
    "sqrt": _unary("root"),
    "relu": _unary("relu"),
    "sigmoid": _unary("sigmoid"),
    "tanh": _unary("tanh"),
    "silu": _unary("silu"),
    "gelu": _gelu,
    "leaky_relu": _leaky,
    "softmax": _softmax("softmax"),
    "log_softmax": _softmax("log_softmax"),
    "matmul": _matmul,
    "mm": _matmul,
    "bmm": _matmul,
    "addmm": _addmm,
    "linear": _linear,
    "conv1d": _conv,
    "conv2d": _conv,
    "conv3d": _conv,
    "max_pool1d": _max_pool,
    "max_pool2d": _max_pool,
    "boolean_dispatch": _max_pool,
    "avg_pool1d": _average_pool,
    "avg_pool2d": _average_pool,
    "adaptive_avg_pool1d": _adaptive,
    "adaptive_avg_pool2d": _adaptive,
    "batch_norm": _batch_norm,
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
    "embedding": _embedding,
    "dropout": _dropout,
    "dropout1d": None,
    "scaled_dot_product_attention": _attention,
    "multi_head_attention_forward": _heads,
    "masked_fill": _masked_fill,
    "reshape": shapes.reshape,
    "reshape_as": shapes.reshape,
    "view": shapes.reshape,
    "view_as": shapes.reshape,
    "flatten": shapes.reshape,
    "unflatten": shapes.reshape,
    "squeeze": shapes.reshape,
    "unsqueeze": shapes.reshape,
    "permute": shapes.permute,
    "transpose": shapes.transpose,
    "swapaxes": shapes.transpose,
    "swapdims": shapes.transpose,
    "T": shapes.turned,
    "t": shapes.turned,
    "mT": shapes.last_turned,
    "movedim": shapes.moved_axes,
    "cat": shapes.concat,
    "concat": shapes.concat,
    "concatenate": shapes.concat,
    "chunk": shapes.parts,
    "split": shapes.parts,
    "tensor_split": shapes.parts,
    "unbind": shapes.unbound,
    "getitem": shapes.item,
    "mean": shapes.over("mean_over"),
    "sum": shapes.over("sum_over"),
    "to": shapes.cast,
    "type": shapes.cast,
    "type_as": shapes.cast,
    "float": shapes.cast,
    "double": shapes.cast,
    "half": shapes.cast,
    "bfloat16": shapes.cast,
    "contiguous": shapes.same,
    "clone": shapes.same,
    "detach": _unary("stop_gradient"),
    "data": _unary("stop_gradient"),
    "cross_entropy": _cross_entropy,
    "nll_loss": _nll,
    "mse_loss": _error("squared_error"),
    "l1_loss": _error("absolute_error"),
    "binary_cross_entropy_with_logits": _error("logistic_loss"),
    "clamp": _clamp,
    "clip": _clamp,
}
# What autocast computes in the narrower format (torch.amp's list for the CPU and CUDA).
LOWERED = frozenset(
    {
        *("linear", "matmul", "mm", "bmm", "addmm", "conv1d", "conv2d", "conv3d"),
        *("scaled_dot_product_attention", "multi_head_attention_forward"),
    }
)


def plain_name(name: str) -> str:
    """A function's name as the table has it: without the marks of methods and of in-place ones."""
    name = name.removesuffix(".__get__").rpartition(".")[2]
    if name.startswith("__") and name.endswith("__"):
        name = name.strip("_")
        base = name[1:] if name[:1] in "ir" and name[1:] in RULES and name not in RULES else name
        if name[:1] == "r" and base in ("add", "mul"):
            return base
        return {
            "radd": "add",
            "rmul": "mul",
            "iadd": "add",
            "imul": "mul",
            "isub": "sub",
            "itruediv": "div",
        }.get(name, base if name[:1] == "i" else name)
    return name.removesuffix("_")


@cache
def function_name(func: Any) -> str:
    """What a function is called in the table of rules."""
    found = resolve_name(func) or getattr(func, "__name__", "") or "unknown"
    return plain_name(found)


@cache
def in_place(func: Any) -> bool:
    """Whether a function writes to its first operand."""
    name = (resolve_name(func) or getattr(func, "__name__", "")).rpartition(".")[2]
    inside = name.startswith("__i") and name.endswith("__")
    return inside or (name.endswith("_") and not name.endswith("__"))


def lowered(name: str, args: Any) -> str | None:
    """The format to which autocast brings the operands of a call."""
    if name not in LOWERED or not args or not isinstance(args[0], Tensor):
        return None
    device = args[0].device.type
    if not torch.is_autocast_enabled(device):
        return None
    return str(torch.get_autocast_dtype(device)).removeprefix("torch.")
