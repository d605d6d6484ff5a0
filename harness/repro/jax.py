"""Code for JAX: jax.nn, jax.numpy, jax.vjp and optax."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from harness.repro.code import Call, Code, a_list, listed
from harness.repro.padding import each, pairs
from harness.repro.updates import Update, is_new
from harness.repro.writer import Dys, Writer

JAX, OPTAX = "import jax", "import optax"


class Jax:
    """JAX as far as code is written for it."""

    name, np, package = "JAX", "jnp", "jax"

    def __init__(self) -> None:
        """The tables of this module."""
        self.calls, self.patterns = CALLS, ()

    def begin(self, w: Writer) -> None:
        """What stands before everything else."""
        w.needs("import jax.numpy as jnp")
        if w.dtype == "float64":
            w.needs(JAX)
            w.add('jax.config.update("jax_enable_x64", True)')

    def load(self, text: str, dtype: str) -> str:
        """An array of the file as a tensor."""
        more = ", jnp.bfloat16" if dtype == "bfloat16" else ""
        return f"jnp.asarray({text}{more})"

    def array(self, w: Writer, x: Code) -> str:
        """A tensor as a NumPy array."""
        return f"np.asarray({x}{', np.float32' if w.dtype == 'bfloat16' else ''})"

    def tensor(self, w: Writer, text: str) -> str:
        """An array as a tensor."""
        return f"jnp.asarray({text})"

    def ones(self, w: Writer, shape: tuple[int, ...]) -> str:
        """A tensor of ones."""
        return f'jnp.ones({shape}, "{w.dtype}")'

    def gradient(self, w: Writer, x: Code, forward: Callable[[], list[Code]], dy: Dys) -> Code:
        """jax.vjp, or jax.grad of a loss."""
        w.needs(JAX)
        name = w.name("forward")
        w.blank()
        with w.block(f"def {name}({x}):"):
            w.add(f"return {listed(forward(), '()')}")
        w.blank()
        if dy[0] is None:
            return w.let("grad", f"jax.grad({name})({x})", x.shape)
        back = w.name("pullback")
        w.add(f"_, {back} = jax.vjp({name}, {x})")
        given = listed([g for g in dy if g is not None], "()")
        return w.let("grad", f"{back}({given})[0]", x.shape)

    def update(self, w: Writer, update: Update) -> Code | None:
        """One step of an optimizer of optax; None where it has none such."""
        made = _optimizer(w, update)
        if made is None:
            return None
        w.needs(OPTAX)
        p, g = w.value(update.p), w.value(update.g)
        if update.l2:
            g = w.let("grad", f"{g} + {update.l2!r} * {p}", p.shape)
        w.add(f"optimizer = optax.{made}")
        w.add(f"state = optimizer.init({p})")
        names = SLOTS[update.kind]
        if not is_new(update, w.step):
            slots = zip(names, update.before.values(), strict=True)
            fields = [f"{name}={w.value(x)}" for name, x in slots]
            if update.kind == "adam":
                count = w.step - 1 + update.numbers["more"]
                fields.insert(0, f"count=jnp.asarray({count})")
            w.add(f"state = (state[0]._replace({', '.join(fields)}), *state[1:])")
        w.add(f"updates, state = optimizer.update({g}, state, {p})")
        if update.wanted != "params":
            slot = names[list(update.before).index(update.wanted)]
            return w.let("out", f"state[0].{slot}", p.shape)
        return w.let("out", f"optax.apply_updates({p}, updates)", p.shape)


SLOTS = {
    "sgd": (),
    "momentum": ("trace",),
    "adam": ("mu", "nu"),
    "rmsprop": ("nu",),
    "adagrad": ("sum_of_squares",),
}


def _optimizer(w: Writer, update: Update) -> str | None:
    """The call that makes the optimizer."""
    n, kind, lr = update.numbers, update.kind, w.value(update.lr)
    if update.decay and kind != "adam":
        return None
    if update.rule == "descend":
        return f"sgd({lr})"
    if update.rule in ("along_velocity", "nesterov"):
        more = ", nesterov=True" if n["nesterov"] else ""
        return f"sgd({lr}, momentum={n['momentum']!r}{more})"
    if update.rule == "adam":
        more = f", weight_decay={update.decay!r}" if update.decay else ""
        name = "adamw" if update.decay else "adam"
        return f"{name}({lr}, b1={n['beta1']!r}, b2={n['beta2']!r}, eps={n['epsilon']!r}{more})"
    if kind == "rmsprop" and update.rule.startswith("over_root"):
        inside = update.rule == "over_root_inside"
        return f"rmsprop({lr}, decay={n['rho']!r}, eps={n['epsilon']!r}, eps_in_sqrt={inside})"
    if kind == "adagrad" and update.rule == "over_root_inside":
        return f"adagrad({lr}, eps={n['epsilon']!r})"
    return None


def _conv(
    w: Writer, x: Code, k: Code, stride: Any, padding: Any, dilation: Any, layout: str
) -> str:
    w.needs("from jax import lax")
    axes = x.ndim - 2
    last = layout == "last"
    shape, size = (x.shape[1:-1], k.shape[:-2]) if last else (x.shape[2:], k.shape[2:])
    around = f'"{str(padding).upper()}"'
    if padding not in ("same", "valid"):
        around = repr(pairs(shape, size, stride, padding, dilation))
    letters = "DHW"[-axes:] if axes > 1 else "W"
    names = (f"N{letters}C", f"{letters}IO") if last else (f"NC{letters}", f"OI{letters}")
    args = [x.text, k.text, str(each(stride, axes)), around]
    args += [f"rhs_dilation={each(dilation, axes)}"] * (dilation != 1)
    args.append(f"dimension_numbers={(*names, names[0])}")
    return f"lax.conv_general_dilated({', '.join(args)})"


def _pool(kind: str) -> Callable[..., str]:
    def code(
        w: Writer, x: Code, size: Any, stride: Any, padding: Any, layout: str, padded: bool = True
    ) -> str:
        w.needs("from jax import lax")
        axes = x.ndim - 2
        shape = x.shape[1:-1] if layout == "last" else x.shape[2:]
        one, step = each(size, axes), each(size if stride is None else stride, axes)
        put: Callable[[Any, Any], tuple[Any, ...]] = lambda v, rest: (  # noqa: E731
            (rest, *v, rest) if layout == "last" else (rest, rest, *v)
        )
        around = put(pairs(shape, one, step, padding), (0, 0))
        window = f"{put(one, 1)}, {put(step, 1)}, {around}"
        if kind == "max":
            return f"lax.reduce_window({x}, -jnp.inf, lax.max, {window})"
        total = f"lax.reduce_window({x}, 0.0, lax.add, {window})"
        if padded:
            count = 1
            for n in one:
                count *= n
            return f"{total} / {count}"
        return f"{total} / lax.reduce_window(jnp.ones_like({x}), 0.0, lax.add, {window})"

    return code


def _attention(w: Writer, q: Code, k: Code, v: Code, heads: int, causal: bool) -> str | None:
    w.needs(JAX)
    more = ", is_causal=True" if causal else ""
    call = f"jax.nn.dot_product_attention({{}}, {{}}, {{}}{more})"
    if q.ndim == 4 and heads == 1:
        return call.format(*(f"{x:p}.swapaxes(1, 2)" for x in (q, k, v))) + ".swapaxes(1, 2)"
    if q.ndim != 3:
        return None
    parts = []
    for name, x in zip(("q", "k", "v"), (q, k, v), strict=True):
        shape = (*x.shape[:2], heads, x.shape[-1] // heads)
        parts.append(w.let(name, f"{x:p}.reshape{shape}").text)
    return f"{call.format(*parts)}.reshape{(*q.shape[:2], v.shape[-1])}"


def _nn(text: str) -> Call:
    """A call of jax.nn, as a format string over operands in their order."""

    def code(w: Writer, *operands: Code, **args: Any) -> str:
        w.needs(JAX)
        return f"jax.nn.{text.format(*operands, **args)}"

    return code


def _nll(w: Writer, p: Code, y: Code, reduce: str) -> str:
    picked = f"jnp.take_along_axis({p}, {y:p}[..., None], axis=-1)"
    if reduce == "batch":
        return f"-jnp.sum({picked}) / {p.shape[0]}"
    return f"-jnp.{reduce}({picked})"


def _cross_entropy(w: Writer, z: Code, y: Code, time: str) -> str:
    w.needs(OPTAX)
    each = f"optax.softmax_cross_entropy_with_integer_labels({z}, {y})"
    return f"{each}.mean()" if time == "mean" else f"{each}.sum() / {z.shape[0]}"


def _logistic(w: Writer, x: Code, y: Code, reduce: str) -> str:
    w.needs(OPTAX)
    each = f"optax.sigmoid_binary_cross_entropy({x}, {y})"
    return f"{each}.sum() / {x.shape[0]}" if reduce == "batch" else f"{each}.{reduce}()"


def _norm_of_all(w: Writer, *gradients: Code) -> str:
    w.needs(OPTAX)
    return f"optax.global_norm({a_list(gradients)})"


def _place_block(w: Writer, x: Code, index: int, of: int) -> str:
    size = x.shape[-1]
    around = ((0, 0),) * (x.ndim - 1) + ((index * size, (of - 1 - index) * size),)
    return f"jnp.pad({x}, {around})"


def _stopped(w: Writer, x: Code) -> str:
    w.needs(JAX)
    return f"jax.lax.stop_gradient({x})"


CALLS: dict[str, Call] = {
    "embed": "{table:p}[{x}]",
    "reshape": "{x:p}.reshape{shape}",
    "sigmoid": _nn("sigmoid({0})"),
    "relu": _nn("relu({0})"),
    "leaky_relu": _nn("leaky_relu({0}, {1})"),
    "elu": _nn("elu({0}, {1})"),
    "silu": _nn("silu({0})"),
    "gelu": _nn("gelu({0}, approximate=False)"),
    "gelu_tanh": _nn("gelu({0}, approximate=True)"),
    "softplus": _nn("softplus({0})"),
    "softmax": _nn("softmax({0}, axis={axis})"),
    "log_softmax": _nn("log_softmax({0}, axis={axis})"),
    "attention": _attention,
    "conv": _conv,
    "max_pool": _pool("max"),
    "average_pool": _pool("average"),
    "nll_loss": _nll,
    "cross_entropy": _cross_entropy,
    "logistic_loss": _logistic,
    "global_norm": _norm_of_all,
    "place_block": _place_block,
    "stop_gradient": _stopped,
    "rounded": lambda w, x, to, cut: (
        None if cut or to == "tf32" else f"{x:p}.astype(jnp.{to}).astype(jnp.{w.dtype})"
    ),
    "causal_mask": lambda w, x, fill, more: (
        f"jnp.where(jnp.tri({x.shape[-2]}, {x.shape[-1]}, {more}, dtype=bool), {x}, {fill})"
    ),
}
