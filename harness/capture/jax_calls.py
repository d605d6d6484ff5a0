"""What one step of a JAX script computes: the calls that it makes, and what is known of arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax._src import core, pjit

from harness.capture import jax_marks as marks
from harness.capture.jax_expressions import UNKNOWN, Known, Operand
from harness.capture.jax_optim import (
    FACTOR,
    RATE,
    clipped,
    decayed,
    moved,
    norm_of,
    running,
    slot_of,
)
from harness.capture.jax_patterns import public
from harness.capture.jax_walk import SMALL, Thing, Walk, twin
from harness.capture.step import Step
from harness.models.entries import Made

NORM = "update/global_norm"
MASK = "inputs/mask/mask"


class Calls:
    """Watches one step: points, how they were made, and what is put in place."""

    def __init__(self, step: Step, twins: dict[Any, Any]) -> None:
        """`twins` are compiled functions by what they are of, kept from step to step."""
        self.step, self.busy = step, 0
        self.state: dict[str, Any] = {}  # by name: parameters, buffers and slots before the step
        self.later: dict[str, Made] = {}  # by name: how the end of the step is made
        self.differ = 0  # 1: values inside are rounded otherwise; 2: those of the update too
        self._twins = twins
        self._known: dict[int, tuple[Any, Operand]] = {}
        self._inputs: dict[str, Any] = {}
        self._eager = Walk(self)
        self._walk: Walk | None = None
        self._waiting: list[tuple[str, Thing, Made | None, float]] = []
        self._gradients = False
        self._factors: dict[str, Thing] = {}
        self._rates: dict[Any, str] = {}

    # What is known.

    def name(self, value: Any, name: Operand) -> None:
        """An array goes by this name from now on."""
        self._known[id(value)] = value, name

    def handed(self, inputs: Mapping[str, Any]) -> None:
        """What the step was given, by name."""
        self._inputs = dict(inputs)
        for name, value in inputs.items():
            self.name(value, name)

    def origin(self, value: Any) -> Made | str | None:
        """How an array was made; its name where it has one."""
        found = self._known.get(id(value))
        if found is None:
            return None
        made = found[1]
        if isinstance(made, Made):
            plain = public(made, getattr(value, "shape", ()))
            return plain if isinstance(plain, Made) and self._settled(plain) else None
        return made if isinstance(made, str) else None

    def thing(self, value: Any) -> Thing:
        """An array, or a number, with how it was made."""
        shape, dtype = np.shape(value), getattr(value, "dtype", None)
        found = self._known.get(id(value))
        if found is None:
            found = value, self._constant(value)
            self._known[id(value)] = found
        return Thing(shape, dtype, found[1], value)

    def _constant(self, value: Any) -> Operand:
        """An array of nothing that was seen: an input under another identity, or a constant."""
        if isinstance(value, int | float | bool):
            return Known(np.asarray(value))
        dtype = getattr(value, "dtype", None)
        if (
            dtype is None
            or np.size(value) > SMALL
            or jax.numpy.issubdtype(dtype, jax.dtypes.prng_key)
        ):
            return UNKNOWN
        array = np.asarray(value)
        if array.dtype.kind not in "fiub":
            return UNKNOWN
        for name, given in self._inputs.items():
            if array.ndim and np.shape(given) == array.shape and _equal(given, array):
                return name
        same = [name for name, held in self.state.items() if array.ndim and _equal(held, array)]
        if same:  # a copy of a part of the state: which one, if only one has these elements
            return self._known[id(self.state[same[0]])][1] if len(same) == 1 else UNKNOWN
        return Known(np.array(array), fixed=False)

    # What a walk finds.

    def point(self, wanted: str, thing: Thing, asked: bool = False) -> str:
        """A value gets a name of its own, if it has none or the script `asked` for it."""
        if not asked and isinstance(thing.expr, str) and thing.expr.startswith("forward/"):
            return thing.expr
        match thing.expr:
            case Made("dropout", (x, str() as mask, rate)) if mask.startswith(MASK):
                site = self.step.name(f"inputs/mask/{wanted.removeprefix('forward/')}")
                self._rename(mask, site)
                thing.expr = Made("dropout", (x, site, rate), {})
        name = self.step.name(wanted)
        self._see(name, thing, thing.expr)
        return name

    def back(self, name: str, thing: Thing) -> None:
        """The gradient by a point."""
        self._see(name.replace("forward/", "backward/", 1), thing)

    def objective(self, thing: Thing) -> str:
        """What is differentiated: a number."""
        name = self.step.name("forward/objective")
        self._see(name, thing, thing.expr)
        return name

    def gradient(self, by: Operand, thing: Thing) -> Operand:
        """The gradient of a parameter; of anything else it has no name."""
        while isinstance(by, Made) and len(by.operands) == 1:
            by = by.operands[0]
        if not isinstance(by, str) or not by.startswith("params/"):
            return UNKNOWN
        self._gradients = True
        name = self.step.name("grads/" + by.partition("@")[0].removeprefix("params/"))
        self._see(name, thing)
        return name

    def keep(self, kind: str, thing: Thing) -> str:
        """A mask becomes a point."""
        name = self.step.name(f"inputs/{kind}/{kind}")
        self._see(name, thing)
        return name

    def factor(self, thing: Thing) -> str:
        """A number that the step makes for its update: perhaps the learning rate."""
        name = self.step.name(FACTOR)
        self._see(name, thing)
        self._factors[name] = thing
        return name

    @property
    def deep(self) -> bool:
        """Whether every operation is a point."""
        return self.step.deep

    @property
    def updating(self) -> bool:
        """Whether gradients have been made: what comes now is the update."""
        return self._gradients

    def settle(self, out: Thing) -> None:
        """Name what is the clipped gradient, the slot or the new value of a parameter."""
        if not self._gradients:
            found = running(out.expr)
            if found:
                self.later[found.name] = found.made
                out.expr = found.name
            return
        cut = clipped(out.expr)
        if cut:
            name = self.step.name(cut.name)
            self._see(name, out, cut.made)
            out.expr = name
            return
        out.expr = decayed(out.expr) or out.expr
        found = slot_of(out.expr) or moved(out.expr, self.step.number, self.later, self._rate)
        if found:
            self.later[found.name] = found.made
            out.expr = found.name

    def _rate(self, factor: Any) -> str | None:
        """The learning rate as a point, from minus it."""
        if isinstance(factor, str) and factor in self._factors:
            thing = self._factors[factor]
            if factor not in self._rates:
                self._forget(factor)
                self._rates[factor] = self.step.name(RATE)
                self._see(self._rates[factor], thing, None, -1.0)
            return self._rates[factor]
        if not isinstance(factor, float):
            return None
        if factor not in self._rates:
            self._rates[factor] = self.step.name(RATE)
            self.step.see(self._rates[factor], -factor)
        return self._rates[factor]

    def _rename(self, old: str, new: str) -> None:
        self._waiting = [(new if w[0] == old else w[0], *w[1:]) for w in self._waiting]
        if old in self.step.points:
            self.step.rename(old, new)

    def _forget(self, name: str) -> None:
        self._waiting = [w for w in self._waiting if w[0] != name]
        self.step.points.pop(name, None)

    def reduced(self, thing: Thing) -> None:
        """The root of a sum of squares: the global norm, where it is of gradients."""
        gradients = norm_of(thing.expr)
        if gradients:
            name = self.step.name(NORM)
            self._see(name, thing, Made("global_norm", tuple(gradients), {}))
            thing.expr = name

    def _see(self, name: str, thing: Thing, expr: Operand = None, times: float = 1.0) -> None:
        plain = public(expr, thing.shape) if isinstance(expr, Made) else None
        if isinstance(expr, str):
            plain = Made("add", (expr,), {})
        made = self._settled(plain) if isinstance(plain, Made) else None
        if isinstance(thing.value, int) and self._walk is not None:
            self._waiting.append((name, thing, made, times))
            return
        self.step.see(name, _shown(thing, thing.value, times), made)

    def _settled(self, made: Made) -> Made | None:
        """The same, with arrays of nothing known as numbers or as points."""
        operands: list[Any] = []
        for x in made.operands:
            if isinstance(x, Made):
                x = self._settled(x)
            elif isinstance(x, Known):
                x = self._of_constant(x)
            if x is None or (isinstance(x, float) and not np.isfinite(x)):
                return None
            operands.append(x)
        return Made(made.op, tuple(operands), made.args)

    def _of_constant(self, x: Known) -> Operand:
        array = x.array
        alike = array.size and array.dtype.kind in "fiub" and bool((array == array.flat[0]).all())
        if alike and (x.fixed or not array.ndim):
            return array.flat[0].item()
        if array.dtype.kind not in "fiub":
            return None
        name = self.step.name("inputs/constant")
        self.step.see(name, array)
        return name

    # The calls of the script.

    def primitive(
        self, original: Callable[..., Any], primitive: Any, args: Any, params: Any
    ) -> Any:
        """One primitive of the script's own, outside of compiled functions."""
        if primitive.name in ("jit", "pjit"):
            jaxpr = params["jaxpr"]
            return self.compiled(jaxpr, args, params, lambda: original(primitive, args, params))
        self.busy += 1
        try:
            made = original(primitive, args, params)
        finally:
            self.busy -= 1
        values = list(made) if primitive.multiple_results else [made]
        ins = [self.thing(x) for x in args]
        outs = [Thing(np.shape(v), getattr(v, "dtype", None), UNKNOWN, v) for v in values]
        if primitive is marks.mark_p:
            fed = self._mark(params, ins[0], outs[0])
            if fed is not None:
                values = [fed]
        else:
            self.busy += 1
            try:
                self._eager.apply(primitive, params, ins, outs)
            finally:
                self.busy -= 1
        for value, out in zip(values, outs, strict=True):
            if not any(value is a for a in args) or primitive is marks.mark_p:
                self.name(value, out.expr)
        return values if primitive.multiple_results else values[0]

    def _mark(self, params: Mapping[str, Any], value: Thing, out: Thing) -> Any:
        """A mark outside of a compiled function; what the step goes on with."""
        before = dict.fromkeys(self.step.points)
        out.value = value.value
        self._eager.apply(marks.mark_p, params, [value], [out])
        named = [n for n in self.step.points if n not in before]
        if not named or not self.step.fed:
            # A value of its own, for the one that is marked keeps the name that it has.
            return None
        fed = self.step.onward(named[-1], out.shape)
        return None if fed is None else jax.numpy.asarray(fed, out.dtype)

    def compiled(
        self, jaxpr: Any, args: Sequence[Any], params: Mapping[str, Any], run: Callable[[], Any]
    ) -> Any:
        """A compiled function that the script calls: as it is, and its twin for what is inside."""
        self.busy += 1
        try:
            ins = [self.thing(x) for x in args]
            donated = params.get("donated_invars") or (False,) * len(args)
            kept = [_kept(x) if gone else x for x, gone in zip(args, donated, strict=True)]
            self._walk = Walk(self, self._eager)
            try:
                outs = self._walk.closed(jaxpr, ins)
            finally:
                waiting, self._waiting = self._waiting, []
                self._walk = None
            waiting = self._needed(waiting)
            fed = self._fed(waiting)
            made = None if fed else run()
            inside = self._inside(jaxpr, kept, waiting, fed, made)
            made = inside if made is None else made
        finally:
            self.busy -= 1
        for value, out in zip(made, outs, strict=True):
            if not any(value is a for a in args):
                self.name(value, out.expr)
        return made

    def counts(self) -> list[Any]:
        """The numbers of steps that optimizers keep."""
        exprs = self._known.values()
        return [x for x, made in exprs if isinstance(made, Made) and made.op == "_count"]

    def made_under(self, prefixes: tuple[str, ...]) -> dict[str, Any]:
        """By name, the arrays that the step made as new parameters and slots."""
        return {
            name: value
            for value, name in self._known.values()
            if isinstance(name, str) and name.startswith(prefixes) and "@" not in name
        }

    def _needed(self, waiting: list[Any]) -> list[Any]:
        """All but numbers that turned out to be no learning rate, and that nothing is made of."""
        used = {x for made in self.later.values() for x in _names(made)}
        used |= {x for _, _, made, _ in waiting if made for x in _names(made)}
        return [w for w in waiting if not w[0].startswith(FACTOR) or w[0] in used]

    def _fed(self, waiting: Sequence[Any]) -> dict[int, Any]:
        found = {}
        for name, thing, _, times in waiting if self.step.fed else ():
            if times != 1.0:
                continue
            fed = self.step.onward(name, thing.shape)
            if fed is not None:
                back = None if thing.axes is None else np.argsort(thing.axes)
                found[thing.value] = fed if back is None else np.transpose(fed, back)
        return found

    def _inside(
        self, jaxpr: Any, args: Any, waiting: Any, fed: Mapping[int, Any], made: Any
    ) -> Any:
        """Run the twin for the points that are waiting; its results."""
        if not waiting and made is not None:
            return made
        values, outs = self._values(jaxpr, args, waiting, fed)
        if made is not None and not _same(outs, made):
            # What the update is made of has to be what the script's own update was made of: the
            # gradients are asked for alone, which leaves the rest of the program as it was, and
            # what is made of them with these in their place.
            found, again = self._values(jaxpr, args, _of(waiting, "grads/"), fed)
            later, _ = self._values(jaxpr, args, _of(waiting, "update/"), {**found, **fed})
            values |= {**found, **later}
            self.differ = max(self.differ, 1 if _same(again, made) else 2)
        for name, thing, how, times in waiting:
            self.step.see(name, _shown(thing, values[thing.value], times), how)
        return outs

    def _values(
        self, jaxpr: Any, args: Any, waiting: Sequence[Any], fed: Mapping[int, Any]
    ) -> tuple[dict[int, Any], Any]:
        """Values inside of a compiled function by their numbers, and its results."""
        wanted = tuple(dict.fromkeys(thing.value for _, thing, _, _ in waiting))
        key = id(jaxpr), wanted, tuple(fed)
        if key not in self._twins:
            self._twins[key] = jaxpr, twin(jaxpr, wanted, tuple(fed))
        outs, values = self._twins[key][1](args, list(fed.values()))
        return dict(zip(wanted, values, strict=True)), outs


def _shown(thing: Thing, value: Any, times: float) -> Any:
    """A value as a trace has it: an array that nothing changes any more."""
    array = np.array(value if thing.axes is None else np.transpose(value, thing.axes))
    return array if times == 1.0 else array * times


def _kept(value: Any) -> Any:
    """What a call that gives its argument away leaves of it."""
    return jax.numpy.array(value, copy=True) if isinstance(value, jax.Array) else value


def _names(made: Made) -> list[str]:
    """The tensors that an expression reads."""
    found = []
    for x in made.operands:
        found += _names(x) if isinstance(x, Made) else [x] if isinstance(x, str) else []
    return found


def _equal(given: Any, array: Any) -> bool:
    try:
        return bool(np.array_equal(np.asarray(given), array))
    except TypeError:
        return False


def _of(waiting: Sequence[Any], prefix: str) -> list[Any]:
    return [w for w in waiting if w[0].startswith(prefix)]


def _same(one: Sequence[Any], other: Sequence[Any]) -> bool:
    """Whether results are the same bits."""
    return all(
        np.asarray(a).tobytes() == np.asarray(b).tobytes()
        for a, b in zip(one, other, strict=True)
        if marks.is_float(a)
    )


def intercept(calls: Callable[[], Calls | None], tracing: marks.Tracing) -> None:
    """While a block records, let every call of the script come to `calls`."""
    evaluate: Any = core.EvalTrace.process_primitive
    python: Any = pjit._run_python_pjit

    def process(trace: Any, primitive: Any, args: Any, params: Any) -> Any:
        now = calls()
        if now is None or now.busy:
            return evaluate(trace, primitive, args, params)
        return now.primitive(lambda p, a, k: evaluate(trace, p, a, k), primitive, args, params)

    def run(p: Any, args: Any, fun: Any, a: Any, k: Any) -> Any:
        now = calls()
        if now is None or now.busy or not core.trace_state_clean():
            return python(p, args, fun, a, k)
        outs = now.compiled(
            p.params["jaxpr"], args, p.params, lambda: python(p, args, fun, a, k)[1]
        )
        tree = p.out_tree
        made = jax.tree_util.tree_unflatten(tree, outs)
        return made, outs, tree, args, p.params["jaxpr"], None, None, []

    tracing.put(core.EvalTrace, "process_primitive", process)
    tracing.put(pjit, "_run_python_pjit", run)
    tracing.put(pjit, "_get_fastpath_data", lambda *args, **options: None)
