"""A traced function of JAX equation by equation: how its values are made, and what they are.

`Walk` goes through a jaxpr with how its arguments were made and finds that of all else. `twin` is
the same function with more results: the values that the walk wants to see. The script's own
function is run untouched beside it: handing out more may have XLA fuse, and so round, otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from jax._src import core, source_info_util

from harness.capture import jax_marks as marks
from harness.capture.jax_expressions import permuted, whole
from harness.capture.jax_ops import (
    CALLED,
    FOLDED,
    RULES,
    UNKNOWN,
    Call,
    Known,
    Operand,
    number,
    size_of,
)
from harness.capture.jax_patterns import public
from harness.models.entries import Made

# How many ops an expression may have, and how deep they may nest, before it gets a name: where it
# ends in an op that is whole, and anywhere. A trace takes no more than 16 (harness.models.entries).
LONG, TOO_LONG = (24, 7), (128, 13)
WHOLE = frozenset(
    {
        *("linear", "matmul", "conv", "softmax", "log_softmax", "layer_norm", "rms_norm", "add"),
        *("batch_norm", "gelu", "gelu_tanh", "relu", "silu", "dropout", "concat", "max_pool"),
    }
)
SMALL = 1 << 20  # elements of a constant that is computed at once
INLINED = ("jit", "pjit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call")
NOT_PUBLIC = "_"  # what the names of ops begin with that stand for a part of one


class Thing:
    """A value on the way: its shape and dtype, how it was made, and where it is to be had.

    `value` is the array itself, or the number that a walk gave it; `of` the primitive and the
    operands that made it, where no rule could say how.
    """

    __slots__ = ("axes", "dtype", "expr", "of", "shape", "value")

    def __init__(
        self, shape: Sequence[int], dtype: Any, expr: Operand, value: Any, axes: Any = None
    ) -> None:
        """A value; `axes` are those of `value` in the order in which it is to be read."""
        self.shape, self.dtype, self.expr, self.value = tuple(shape), dtype, expr, value
        self.axes = axes
        self.of: tuple[str, tuple[Thing, ...]] = ("", ())


class Sink(Protocol):
    """What is done with what a walk finds."""

    def thing(self, value: Any) -> Thing:
        """An array, with what is known of it."""

    def point(self, wanted: str, thing: Thing, asked: bool = False) -> str:
        """A value gets a name of its own, if it has none or the script `asked` for it; which."""

    def back(self, name: str, thing: Thing) -> None:
        """The gradient by a point."""

    def objective(self, thing: Thing) -> str:
        """What is differentiated."""

    def gradient(self, by: Operand, thing: Thing) -> Operand:
        """A gradient of what was differentiated."""

    def keep(self, kind: str, thing: Thing) -> str:
        """A mask or a number that nothing is known of becomes a point."""

    def settle(self, out: Thing) -> None:
        """Something was made that may be a step of the update."""

    @property
    def deep(self) -> bool:
        """Whether every operation is a point."""

    @property
    def updating(self) -> bool:
        """Whether gradients have been made."""

    def factor(self, thing: Thing) -> str:
        """A number of the update that nothing is known of becomes a point."""

    def reduced(self, thing: Thing) -> None:
        """A number that was made of all elements of tensors: perhaps a norm."""


PRODUCTS = ("linear", "conv")
# What of an expression is a point of its own in a function that has no modules.
RECOGNISED = frozenset(
    {
        *("layer_norm", "rms_norm", "batch_norm", "softmax", "add", "dropout", "max_pool"),
        *("gelu", "gelu_tanh", "silu", "relu", "leaky_relu", "elu", "average_pool"),
    }
)

NONE = ("", "sign")  # primitives that are none, or whose result nothing is made of


class Marked:
    """A value that is perhaps a point: its expression, where it is, its name once it has one."""

    __slots__ = ("expr", "found", "thing", "where")

    def __init__(self, expr: Operand, thing: Thing, where: str) -> None:
        """No point yet."""
        self.expr, self.thing, self.where = expr, thing, where
        self.found: str | None = None


Open = dict[int, list[tuple[str | Marked, tuple[int, ...]]]]


class Walk:
    """One pass over equations, in the order in which they run."""

    def __init__(self, sink: Sink, before: Walk | None = None) -> None:
        """`before`: a walk of the same step, whose marks this one's stand for the way back of."""
        self.sink = sink
        self.count = 0
        # Names and shapes by the key of their mark, for the way back.
        self._open: Open = before._open if before else {}
        self._by: dict[tuple[int, int], tuple[Operand, Any]] = before._by if before else {}
        self._several = False
        # Products that have a name to give, by their expressions: to the sum with their bias.
        self._products: dict[int, tuple[Thing, str, int]] = {}
        self._marks: dict[int, Marked] = {}  # by the identity of their expressions
        self._whole: Any = None  # the outermost function

    def closed(self, jaxpr: Any, args: Sequence[Thing], on_way_back: bool = False) -> list[Thing]:
        """The results of a function of these arguments."""
        env: dict[Any, Thing] = {}
        inner = jaxpr.jaxpr
        self._whole = self._whole or jaxpr
        for var, const in zip(inner.constvars, jaxpr.consts, strict=True):
            env[var] = self.constant(const)
        env.update(zip(inner.invars, args, strict=True))
        for eqn in inner.eqns:
            ins = [self._read(env, v) for v in eqn.invars]
            outs = self._equation(eqn, ins, on_way_back or _is_back(eqn))
            env.update(zip(eqn.outvars, outs, strict=True))
        found = [self._read(env, v) for v in inner.outvars]
        for thing in found if jaxpr is self._whole else ():
            self._name_product(thing)
        return found

    def constant(self, value: Any) -> Thing:
        """A value that the function has of its own."""
        dtype = getattr(value, "dtype", None)
        array = value if isinstance(value, jax.Array) else np.asarray(value, dtype)
        known = array.size <= SMALL and not isinstance(array, core.Tracer)
        if isinstance(array, jax.Array) and known:
            return self.sink.thing(array)
        return Thing(array.shape, array.dtype, Known(array) if known else UNKNOWN, array)

    def _read(self, env: Mapping[Any, Thing], var: Any) -> Thing:
        return self.constant(var.val) if isinstance(var, core.Literal) else env[var]

    def _equation(self, eqn: Any, ins: list[Thing], on_way_back: bool) -> list[Thing]:
        inner = inlined(eqn)
        if inner is None:
            outs = [self._new(v.aval) for v in eqn.outvars]
            self.apply(eqn.primitive, eqn.params, ins, outs, on_way_back, eqn)
            return outs
        found = self.closed(inner, ins, on_way_back)
        rule = CALLED.get(str(eqn.params.get("name", "")).rpartition(".")[2])
        if rule and not on_way_back and len(found) >= 1:
            made = rule(Call(eqn.params, ins, found, self.sink.keep))
            if made is not None:
                first = found[0]
                found[0] = Thing(first.shape, first.dtype, made, first.value)
        return found

    def _new(self, aval: Any) -> Thing:
        self.count += 1
        shape, dtype = getattr(aval, "shape", ()), getattr(aval, "dtype", None)
        return Thing(shape, dtype, UNKNOWN, self.count - 1)

    def apply(
        self,
        primitive: Any,
        params: Mapping[str, Any],
        ins: list[Thing],
        outs: list[Thing],
        on_way_back: bool = False,
        eqn: Any = None,
    ) -> None:
        """Find how the results of one primitive are made."""
        if primitive is marks.mark_p:
            if id(ins[0].expr) in self._products and params["kind"] != marks.OPERATION:
                self._name_product(ins[0])
            self._marked(params, ins[0], outs[0])
            return
        if on_way_back:
            return
        if any(id(x.expr) in self._products for x in ins):
            if primitive.name == "add" and self._with_bias(params, ins, outs):
                return
            for x in ins:
                self._name_product(x)
        if self._folded(primitive, params, ins, outs, eqn):
            return
        rule = RULES.get(primitive.name)
        if rule is None:
            self._unknown(primitive, ins, outs)
            return
        if self.sink.updating:
            self._scalars(primitive.name, ins, outs[0])
        try:
            made = rule(Call(params, ins, outs, self.sink.keep))
        except (IndexError, TypeError, ValueError, AttributeError, KeyError):
            made = None  # called in a way that the rule does not know
        several = made if isinstance(made, list) else [made]
        for out, one in zip(outs, several, strict=False):
            out.expr = UNKNOWN if one is None else one
            if out.expr is UNKNOWN:
                self._unknown(primitive, ins, [out])
            if isinstance(one, Made):
                self.sink.settle(out)
                self._bound(out, eqn)
        if primitive.name == "sqrt" and outs[0].shape == ():
            self.sink.reduced(outs[0])

    def _unknown(self, primitive: Any, ins: list[Thing], outs: Sequence[Thing]) -> None:
        """Keep what made values that no rule knows, where it is made of something known."""
        if any(x.expr is not UNKNOWN and isinstance(x.expr, Made | str) and x.shape for x in ins):
            for out in outs:
                out.of = primitive.name, tuple(ins)

    def _scalars(self, primitive: str, ins: list[Thing], out: Thing) -> None:
        """Numbers of the update that a tensor is about to be multiplied with get names."""
        if primitive not in ("mul", "broadcast_in_dim", "convert_element_type"):
            return
        for thing in ins:
            if thing.shape != () or not marks.is_float_dtype(thing.dtype):
                continue
            if number(thing.expr) is not None or isinstance(thing.expr, str):
                continue
            meets = out.shape != () or primitive == "convert_element_type"
            if meets and not _of_norm(thing.expr):
                thing.expr = self.sink.factor(thing)

    def _bound(self, out: Thing, eqn: Any) -> None:
        """A point of its own for what has become long."""
        made = out.expr
        if not isinstance(made, Made) or made.op.startswith(NOT_PUBLIC) or self.sink.updating:
            return
        count, depth = size_of(made)
        most_ops, deepest = LONG if made.op in WHOLE else TOO_LONG
        if count > most_ops or depth > deepest:
            out.expr = self._point(f"forward/{_function(eqn)}/{made.op}", out)

    def _marked(self, params: Mapping[str, Any], value: Thing, out: Thing) -> None:
        kind, key, name = params["kind"], params["key"], params["name"]
        out.expr = value.expr
        axes = marks.order(len(out.shape), params["axes"])
        plain = axes == sorted(axes) and isinstance(out.expr, Made)
        if kind == marks.POINT and plain and out.expr.op in PRODUCTS:
            self._products[id(out.expr)] = out, name, key
        elif kind in (marks.POINT, marks.TAP):
            found = self._point(name, _turned(out, axes), kind == marks.TAP)
            self._open.setdefault(key, []).append((found, out.shape))
            out.expr = permuted(found, [axes.index(k) for k in range(len(axes))])
        elif kind == marks.OPERATION:
            mark = Marked(out.expr, out, name)
            if axes == sorted(axes) and isinstance(out.expr, Made) and out.expr is not UNKNOWN:
                self._marks.setdefault(id(out.expr), mark)
            elif value.of[0] not in NONE and out.expr is UNKNOWN and not self.sink.updating:
                for x in value.of[1]:
                    self._named(x.expr)
                mark.found = out.expr = self._point(f"{name}/{value.of[0]}", out)
            self._open.setdefault(key, []).append((mark, out.shape))
        elif kind == marks.BACK and self._open.get(key):
            point, shape = self._open[key].pop()
            named = point.found if isinstance(point, Marked) else point
            if named and shape == out.shape and not self._several:
                self.sink.back(named, _turned(out, axes))
        elif kind == marks.OBJECTIVE:
            self._several = out.shape != ()  # a loss for each example, each with its own gradients
            out.expr = self._spelled(value.expr)
            out.expr = value.expr if self._several else self.sink.objective(out)
        elif kind == marks.BY:
            self._by[key, name] = value.expr, value.shape
        elif kind == marks.GRADIENT:
            by, shape = self._by.get((key, name), (UNKNOWN, None))
            known = shape == out.shape and not self._several
            out.expr = self.sink.gradient(by, out) if known else UNKNOWN

    def _with_bias(self, params: Any, ins: list[Thing], outs: list[Thing]) -> bool:
        """The sum of a product and its bias has the product's name, as in other frameworks."""
        made = RULES["add"](Call(params, ins, outs, self.sink.keep))
        if not isinstance(made, Made) or made.op not in ("bias", "bias_channels"):
            return False
        waiting = self._products.pop(id(made.operands[0]), None)
        if waiting is None:
            return False
        _, name, key = waiting
        outs[0].expr = made
        found = self._point(name, outs[0])
        self._open.setdefault(key, []).append((found, outs[0].shape))
        outs[0].expr = found
        return True

    def _point(self, name: str, thing: Thing, asked: bool = False) -> str:
        """A value gets a name, and so do the operations that it is made of."""
        before = thing.expr
        thing.expr = self._spelled(before)
        found = self.sink.point(name, thing, asked)
        if id(before) in self._marks:
            self._marks[id(before)].found = found
        return found

    def _spelled(self, x: Operand) -> Operand:
        """An expression of named operations, where those are points of their own."""
        if not isinstance(x, Made):
            return x
        bias = x.op in ("bias", "bias_channels")
        inner = tuple(
            self._spelled(y)
            if bias and isinstance(y, Made) and y.op in PRODUCTS
            else self._named(y)
            for y in x.operands
        )
        return Made(x.op, inner, x.args) if any(map(_differ, inner, x.operands)) else x

    def _named(self, x: Operand) -> Operand:
        """The name of an operation that is a point of its own; else its expression."""
        mark = self._marks.get(id(x))
        if mark is None:
            return self._spelled(x)
        thing = mark.thing
        if mark.found is None:
            plain = public(x, thing.shape)
            if not isinstance(plain, Made) or plain.op == "causal_mask":
                return self._spelled(x)
            if not self.sink.deep and plain.op not in RECOGNISED:
                return self._spelled(x)
            new = Thing(thing.shape, thing.dtype, self._spelled(x), thing.value)
            mark.found = self.sink.point(f"{mark.where}/{plain.op}", new)
        return mark.found

    def _name_product(self, thing: Thing) -> None:
        """A product that something else reads has its name itself."""
        waiting = self._products.pop(id(thing.expr), None)
        if waiting is not None:
            product, name, key = waiting
            found = self._point(name, product)
            self._open.setdefault(key, []).append((found, product.shape))
            product.expr = thing.expr = found

    def _folded(
        self, primitive: Any, params: Any, ins: list[Thing], outs: list[Thing], eqn: Any
    ) -> bool:
        """What is made of constants alone is computed: masks, tables of places."""
        if primitive.name not in FOLDED or len(outs) != 1:
            return False
        size = int(np.prod(outs[0].shape, dtype=np.int64))
        given = [x.expr for x in ins]
        fixed = [x.array for x in given if isinstance(x, Known) and x.fixed]
        if size > SMALL or len(fixed) != len(given):
            return False
        with jax.ensure_compile_time_eval():
            out = primitive.bind(*fixed, **params)
        outs[0].expr = Known(np.asarray(out))
        return True


def _differ(one: Operand, other: Operand) -> bool:
    return one is not other


def _of_norm(x: Operand) -> bool:
    """Whether a number is made of gradients, or corrects an average: it has a meaning already."""
    if isinstance(x, Made):
        return x.op in ("_correction", "_power") or any(map(_of_norm, x.operands))
    return isinstance(x, str) and x.startswith(("update/global_norm", "grads/"))


def _turned(thing: Thing, axes: list[int]) -> Thing:
    """A value with its axes in another order."""
    if axes == sorted(axes):
        return thing
    shape = [thing.shape[k] for k in axes]
    expr = permuted(whole(thing.expr, thing.shape), axes)
    return Thing(shape, thing.dtype, expr, thing.value, axes)


def _is_back(eqn: Any) -> bool:
    """Whether an equation belongs to the way back."""
    return "transpose(" in str(eqn.source_info.name_stack)


def _function(eqn: Any) -> str:
    """The script's function that an equation is in."""
    frame = source_info_util.user_frame(eqn.source_info.traceback) if eqn is not None else None
    name = "".join(c for c in getattr(frame, "function_name", "") if c.isalnum() or c in "_.")
    return name.rpartition(".")[2] or "model"


def inlined(eqn: Any) -> Any:
    """The function that an equation calls, where it is gone into; None where it is one op."""
    if eqn.primitive.name in INLINED:
        found = next(
            (eqn.params[k] for k in ("jaxpr", "call_jaxpr", "fun_jaxpr") if k in eqn.params), None
        )
        return found if isinstance(found, core.ClosedJaxpr) else None
    if eqn.primitive.name in ("checkpoint", "remat2") and not eqn.params.get("differentiated"):
        return core.ClosedJaxpr(eqn.params["jaxpr"], ())
    return None


def twin(jaxpr: Any, wanted: Sequence[int], fed: Sequence[int]) -> Callable[..., Any]:
    """A compiled function: the results of `jaxpr`, and the values that a walk gave these numbers.

    It takes the arguments, and what to put in place of the values `fed`.
    """
    places, puts = frozenset(wanted), {place: k for k, place in enumerate(fed)}

    def run(args: Sequence[Any], instead: Sequence[Any]) -> Any:
        seen: dict[int, Any] = {}
        numbers = iter(range(1 << 62))
        outs = _run(jaxpr, args, numbers, seen, places, {p: instead[k] for p, k in puts.items()})
        return outs, [seen[place] for place in wanted]

    run.__name__ = run.__qualname__ = "harness_twin"
    compiled: Callable[..., Any] = jax.jit(run)
    return compiled


def _run(
    jaxpr: Any,
    args: Sequence[Any],
    numbers: Iterator[int],
    seen: dict[int, Any],
    places: frozenset[int],
    instead: Mapping[int, Any],
) -> list[Any]:
    """The results, with values counted as a walk counts them."""
    env: dict[Any, Any] = {}
    inner = jaxpr.jaxpr
    env.update(zip(inner.constvars, jaxpr.consts, strict=True))
    env.update(zip(inner.invars, args, strict=True))

    def read(var: Any) -> Any:
        return var.val if isinstance(var, core.Literal) else env[var]

    for eqn in inner.eqns:
        ins = [read(v) for v in eqn.invars]
        called = inlined(eqn)
        if called is not None:
            env.update(
                zip(eqn.outvars, _run(called, ins, numbers, seen, places, instead), strict=True)
            )
            continue
        if eqn.effects and not eqn.outvars:
            continue  # the script's own run of it prints what is to be printed
        params = eqn.primitive.get_bind_params(eqn.params)
        made = eqn.primitive.bind(*ins, **params)
        outs = made if eqn.primitive.multiple_results else [made]
        for var, out in zip(eqn.outvars, outs, strict=True):
            number = next(numbers)
            if number in places:
                seen[number] = out
            env[var] = instead[number].astype(out.dtype) if number in instead else out
    return [read(v) for v in inner.outvars]
