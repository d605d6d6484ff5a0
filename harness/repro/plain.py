"""Ops as arithmetic of arrays, in names that NumPy, JAX, Keras and PyTorch have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from harness.models.ops import OPS
from harness.repro.code import Call, Code, a_list, along, axes_but, slices, str_of

if TYPE_CHECKING:
    from harness.repro.writer import Writer


def _sum_to(w: Writer, x: Code, dy: Code) -> str:
    more = dy.ndim - x.ndim
    found, np = dy.text, w.dialect.np
    if more:
        found = f"{np}.sum({found}, axis={tuple(range(more))})"
    once = tuple(k for k in range(x.ndim) if x.shape[k] == 1 and dy.shape[k + more] != 1)
    return f"{np}.sum({found}, axis={once}, keepdims=True)" if once else found


def _block(w: Writer, x: Code, index: int, of: int) -> str:
    size = x.shape[-1] // of
    at = slices(x.ndim, -1, index * size, (index + 1) * size, x.shape[-1])
    return f"{x:p}[{at}]"


def _part(w: Writer, x: Code, start: int, stop: int) -> str:
    return f"{x:p}[:, {start or ''}:{stop or ''}]"


def _cut(w: Writer, x: Code, axis: int, start: int, stop: int) -> str:
    return f"{x:p}[{slices(x.ndim, axis, start, stop, x.shape[axis])}]"


def _concat_part(w: Writer, dy: Code, *parts: Code, index: int, axis: int) -> str:
    start = sum(p.shape[axis] for p in parts[:index])
    return _cut(w, dy, axis, start, start + parts[index].shape[axis])


def _flat(w: Writer, x: Code) -> str:
    if x.ndim == 2:
        return x.text
    return f"{w.dialect.np}.reshape({x}, (-1, {x.shape[-1]}))"


def _outer(w: Writer, x: Code, dy: Code) -> str:
    return f"{Code(_flat(w, x)):p}.T @ {Code(_flat(w, dy)):p}"


def _norm(w: Writer, *gradients: Code) -> str:
    np = w.dialect.np
    return f"{np}.sqrt(sum({np}.sum(g * g) for g in {a_list(gradients)}))"


def _flatten(w: Writer, x: Code, start: int) -> str:
    return f"{w.dialect.np}.reshape({x}, {(*x.shape[:start], -1)})"


def _bias_channels(w: Writer, x: Code, b: Code, axis: int) -> str:
    return f"{x:p} + {along(b, x.ndim, axis)}"


def _batch_norm(w: Writer, x: Code, gain: Code, offset: Code, epsilon: Code, axis: int) -> str:
    np, over = w.dialect.np, axes_but(x.ndim, axis)
    x = w.variable(x)
    mean = w.let("mean", f"{np}.mean({x}, axis={over}, keepdims=True)")
    variance = w.let("variance", f"{np}.mean(({x} - {mean}) ** 2, axis={over}, keepdims=True)")
    normal = f"({x} - {mean}) / {np}.sqrt({variance} + {epsilon})"
    return f"{normal} * {along(gain, x.ndim, axis)} + {along(offset, x.ndim, axis)}"


def _layer_norm(w: Writer, x: Code, gain: Code, offset: Code, epsilon: Code) -> str:
    np, x = w.dialect.np, w.variable(x)
    mean = w.let("mean", f"{np}.mean({x}, axis=-1, keepdims=True)")
    variance = w.let("variance", f"{np}.mean(({x} - {mean}) ** 2, axis=-1, keepdims=True)")
    return f"({x} - {mean}) / {np}.sqrt({variance} + {epsilon}) * {gain:p} + {offset:p}"


def _rms_norm(w: Writer, x: Code, gain: Code, epsilon: Code) -> str:
    np, x = w.dialect.np, w.variable(x)
    return f"{x} / {np}.sqrt({np}.mean({x} * {x}, axis=-1, keepdims=True) + {epsilon}) * {gain:p}"


def _running(what: str, keras: bool) -> Callable[..., str]:
    def code(w: Writer, old: Code, x: Code, momentum: Code, axis: int) -> str:
        np, over, x = w.dialect.np, axes_but(x.ndim, axis), w.variable(x)
        found = f"{np}.{'mean' if what == 'mean' else 'var'}({x}, axis={over})"
        if what == "unbiased":
            count = 1
            for k, size in enumerate(x.shape):
                count *= 1 if k == axis % x.ndim else size
            found += f" * {count} / {count - 1}"
        if keras:
            return f"{momentum} * {old:p} + (1 - {momentum}) * {found}"
        return f"(1 - {momentum}) * {old:p} + {momentum} * {found}"

    return code


def _adam(keras: bool) -> Callable[..., str]:
    def code(w: Writer, p: Code, m: Code, v: Code, lr: Code, *numbers: Code) -> str:
        beta1, beta2, epsilon, step = numbers
        np = w.dialect.np
        one, two = f"(1 - {beta1:p} ** {step:p})", f"(1 - {beta2:p} ** {step:p})"
        if keras:
            rate = w.let("rate", f"{lr:p} * {two} ** 0.5 / {one}")
            return f"{p:p} - {rate} * {m:p} / ({np}.sqrt({v}) + {epsilon})"
        return f"{p:p} - {lr:p} * ({m:p} / {one}) / ({np}.sqrt({v:p} / {two}) + {epsilon})"

    return code


def _reduced(what: str) -> Callable[..., str]:
    def code(w: Writer, x: Code, y: Code, reduce: str) -> str:
        np = w.dialect.np
        terms = what.format(np=np, x=w.variable(x), y=w.variable(y, "y"))
        if reduce == "batch":
            return f"{np}.sum({terms}) / {x.shape[0]}"
        return f"{np}.{reduce}({terms})"

    return code


# Operators of arrays: what any program would write.
PLAIN: dict[str, Call] = {
    "add": lambda w, *terms: " + ".join(t.text for t in terms),
    "multiply": lambda w, *terms: " * ".join(f"{t:p}" for t in terms),
    "scale": "{x:p} * {s:p}",
    "complement": "1 - {x:p}",
    "negate": "-{x:p}",
    "bias": "{x} + {b:p}",
    "bias_channels": _bias_channels,
    "broadcast_add": "{x} + {y:p}",
    "broadcast_multiply": "{x:p} * {y:p}",
    "divide": "{x:p} / {y:p}",
    "linear": "{x:p} @ {w:p}",
    "matmul": "{x:p} @ {y:p}",
    "outer": _outer,
    "transpose": "{w:p}.T",
    "swap_last": "{np}.swapaxes({x}, -1, -2)",
    "sum_rows": lambda w, dy: f"{w.dialect.np}.sum({dy}, axis={axes_but(dy.ndim, -1)})",
    "sum_channels": lambda w, dy, axis: f"{w.dialect.np}.sum({dy}, axis={axes_but(dy.ndim, axis)})",
    "sum_to": _sum_to,
    "block": _block,
    "part": _part,
    "cut": _cut,
    "concat_part": _concat_part,
    "last": "{x:p}[:, -1]",
    "reshape": "{np}.reshape({x}, {shape})",
    "reshape_like": lambda w, x, dy: f"{w.dialect.np}.reshape({dy}, {x.shape})",
    "flatten": _flatten,
    "permute": "{np}.transpose({x}, {axes})",
    "concat": lambda w, *x, axis: (
        f"{w.dialect.np}.concatenate([{', '.join(map(str_of, x))}], axis={axis})"
    ),
    "mean_over": "{np}.mean({x}, axis={axis})",
    "sum_over": "{np}.sum({x}, axis={axis})",
    "exp": "{np}.exp({x})",
    "log": "{np}.log({x})",
    "root": "{np}.sqrt({x})",
    "square": "{np}.square({x})",
    "absolute": "{np}.abs({x})",
    "tanh": "{np}.tanh({x})",
    "dropout": "{x:p} * {mask:p} / (1 - {rate})",
    "mean_square": "{np}.mean({np}.square({x}))",
    "squares": "{np}.sum({np}.square({g}))",
    "norm_of_one": "{np}.sqrt({np}.sum({np}.square({g})))",
    "descend": "{p:p} - {lr:p} * {g:p}",
    "average": "{beta} * {old:p} + (1 - {beta}) * {new:p}",
    "velocity": "{momentum} * {old:p} + {g:p}",
    "velocity_keras": "{momentum} * {old:p} - {lr:p} * {g:p}",
    "along_velocity": "{p:p} - {lr:p} * {v:p}",
    "along_velocity_keras": "{p:p} + {v:p}",
    "nesterov": "{p:p} - {lr:p} * ({g:p} + {momentum} * {v:p})",
    "nesterov_keras": "{p:p} + {momentum} * {v:p} - {lr:p} * {g:p}",
    "adam": _adam(False),
    "adam_keras": _adam(True),
    "over_root": "{p:p} - {lr:p} * {g:p} / ({np}.sqrt({s}) + {epsilon})",
    "over_root_inside": "{p:p} - {lr:p} * {g:p} / {np}.sqrt({s} + {epsilon})",
    "decay_gradient": "{g} + {weight_decay} * {p:p}",
    "decay_weights": "{new} - {lr:p} * {weight_decay} * {p:p}",
    **dict.fromkeys(("identity", "carried", "no_root"), "{x}"),
    "unclipped": "{g}",
    "undecayed_gradient": "{g}",
    "undecayed_weights": "{new}",
}

# Formulas of ops for which a framework may have no call.
WRITTEN_OUT: dict[str, Call] = {
    "sigmoid": "1 / (1 + {np}.exp(-{x:p}))",
    "softplus": "{np}.log1p({np}.exp({x}))",
    "relu": "{np}.where({x:p} > 0, {x}, 0.0)",
    "global_norm": _norm,
    "clip_by_norm": "{g:p} * ({limit} / {np}.clip({norm}, {limit}, None))",
    "clip_elements": "{np}.clip({g}, -{limit}, {limit})",
    "clip_torch": "{g:p} * {np}.clip({limit} / ({norm} + 1e-6), None, 1.0)",
    "batch_norm": _batch_norm,
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
    "running_mean": _running("mean", False),
    "running_mean_keras": _running("mean", True),
    "running_variance": _running("unbiased", False),
    "running_variance_keras": _running("biased", True),
    "l2_normalize": (
        "{x:p} / {np}.clip({np}.sqrt({np}.sum({np}.square({x}), axis={axis}, keepdims=True)), "
        "{epsilon}, None)"
    ),
    "l2_normalize_keras": (
        "{x:p} / {np}.sqrt({np}.clip({np}.sum({np}.square({x}), axis={axis}, keepdims=True), "
        "{epsilon}, None))"
    ),
    "squared_error": _reduced("{np}.square({x} - {y})"),
    "absolute_error": _reduced("{np}.abs({x} - {y})"),
}
assert OPS.keys() >= PLAIN.keys() | WRITTEN_OUT.keys()
