"""Recording JAX: what functions and modules compute inside of compiled steps, and what they leave.

What a script trains with is what it would train with unwatched: names are put into the functions
that JAX traces (harness.capture.jax_marks), which changes no letter of the program that XLA is
given. What is inside of a compiled function is computed by a second one, of the same equations with
more results (jax_walk.twin), so a recorded step computes everything twice, and up to four times
where XLA rounds the twin otherwise. Compiled functions are
forgotten when a block begins and when it ends (jax.clear_caches), so they compile anew.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from typing import Any

import jax
import numpy as np

from harness.capture import jax_marks as marks
from harness.capture import jax_trees as trees
from harness.capture.adapter import Adapter, Array, Tensors
from harness.capture.jax_calls import Calls, intercept
from harness.capture.jax_expressions import decimal
from harness.capture.jax_modules import watch_modules
from harness.capture.jax_trees import Held, Leaf, is_array, is_of
from harness.capture.step import Step
from harness.errors import HarnessError
from harness.models.entries import Made

STATE = ("params/", "buffers/", "optimizer/")
PACKAGES = ("jax", "jaxlib", "flax", "optax", "equinox")


def adapter(objects: Sequence[Any]) -> Adapter:
    """The adapter of a script in JAX."""
    return JAX(objects)


class JAX(Adapter):
    """Recording of JAX functions, flax and equinox modules, and optax's optimizers."""

    def __init__(self, objects: Sequence[Any]) -> None:
        """`objects`: parameters or modules, optimizers and their state, functions.

        Raises HarnessError for what is none of these.
        """
        self.models: list[Any] = []
        self.optimizers: list[Any] = []
        self._trees: list[tuple[str, Any]] = []
        for thing in objects:
            self._take(thing)
        self._tracing = marks.Tracing()
        self._calls: Calls | None = None
        self._twins: dict[Any, Any] = {}
        self._now: dict[str, Any] = {}  # by name, the state that is no object's
        self._logged: dict[str, Any] = {}
        self._counts: dict[int, Any] = {}
        self._first: dict[str, str] = {}  # by name, what a slot is before the first step
        self._inputs: dict[str, Any] = {}
        self._wanted: str | None = None
        self._loaded: tuple[Mapping[str, Array], int] = ({}, 0)
        self._apart = 0
        for kind, tree in self._trees:
            self._keep(self._leaves(kind, tree)[0])

    def _take(self, thing: Any) -> None:
        if is_of(thing, "flax.nnx", "Optimizer"):
            self.optimizers.append(thing)
        elif is_of(thing, "flax.nnx", "Module"):
            self.models.append(thing)
        elif is_of(thing, "optax", "GradientTransformation") or is_of(
            thing, "flax.linen", "Module"
        ):
            return  # they hold no numbers
        elif trees.is_whole(thing):
            self._trees.append(("whole", thing))
        elif trees.has_slots(thing):
            self._trees.append(("opt_state", thing))
        elif any(is_array(x) for x in jax.tree_util.tree_leaves(thing)):
            self._trees.insert(sum(kind == "params" for kind, _ in self._trees), ("params", thing))
            if is_of(thing, "equinox", "Module"):
                self.models.append(thing)
        elif not callable(thing):
            raise HarnessError(
                f"record: a {type(thing).__name__} holds no arrays of floats: give the parameters, "
                "or the module, and the optimizer or its state"
            )

    # What the state is.

    def _held(self) -> list[Held]:
        """The tensors that objects of the script hold."""
        nnx = [m for m in self.models if is_of(m, "flax.nnx", "Module")]
        found: list[Held] = []
        for k, model in enumerate(nnx):
            found += trees.held_by(model, f"model{k}/" if len(nnx) > 1 else "")
        shapes = _shapes({h.name: h.get() for h in found})
        for optimizer in self.optimizers:
            found += trees.held_by_optimizer(optimizer, shapes)
        return found

    def _leaves(self, kind: str, tree: Any) -> tuple[list[Leaf], Any]:
        if kind == "whole":
            return trees.whole(tree)
        if kind == "opt_state":
            return trees.slots(tree, _shapes(self._now))
        return trees.buffers(tree) if kind == "buffers" else trees.weights(tree)

    def _kind(self, name: str, value: Any) -> str | None:
        """What part of the state a thing is that the script hands or logs; None for none."""
        if isinstance(value, jax.Array | np.ndarray | int | float | str):
            alone = name == "params" and is_array(value)
            return "params" if alone else None
        if name in trees.BUFFERS:
            return "buffers"
        if trees.is_whole(value):
            return "whole"
        if trees.has_slots(value) or name == "opt_state":
            return "opt_state"
        if is_of(value, "flax.nnx", "Module") or is_of(value, "flax.nnx", "Object"):
            return None
        found = {leaf.name for leaf in trees.weights(value)[0] if leaf.name}
        known = {n for n in self._now if not n.startswith("optimizer/")}
        return (
            "params"
            if found and (name in ("params", "variables", "model") or found == known)
            else None
        )

    def _keep(self, leaves: Sequence[Leaf]) -> dict[str, Any]:
        found = {leaf.name: leaf.value for leaf in leaves if leaf.name.startswith(STATE)}
        self._now |= found
        counts = [leaf.value for leaf in leaves if leaf.name == trees.COUNT]
        self._counts |= {id(value): value for value in counts}
        return found

    def _tensors(self) -> dict[str, Any]:
        """Parameters, buffers and slots as they are, by name."""
        held = {h.name: h.get() for h in self._held() if h.name != trees.COUNT}
        return {**self._now, **held}

    # The recorder's calls.

    def begin(self, dtype: str | None) -> None:
        """Put hooks in place; bring what objects hold to `dtype`."""
        self._wanted = dtype
        if dtype == "float64" and not jax.config.read("jax_enable_x64"):
            print(
                "harness: float64 was asked for, and JAX is told to make float32 of it: set "
                "JAX_ENABLE_X64=1 before the script starts",
                file=sys.stderr,
            )
        elif dtype:
            for held in self._held():
                if held.name != trees.COUNT:
                    held.put(jax.numpy.asarray(held.get(), dtype))
        self._tracing.begin()
        watch_modules(self._tracing, self.models)
        intercept(lambda: self._calls, self._tracing)

    def end(self) -> None:
        """Take every hook away."""
        self._calls = None
        self._tracing.end()
        self._twins.clear()
        if self._apart:
            what = "activations" if self._apart == 1 else "activations and gradients"
            print(
                "harness: XLA rounds what is inside of a compiled function otherwise where it also "
                f"hands it out: the {what} that were recorded are those of a second function",
                file=sys.stderr,
            )
            self._apart = 0

    def versions(self) -> dict[str, str]:
        """JAX's, and those of the libraries that the script has imported."""
        return {name: metadata.version(name) for name in PACKAGES if trees.module_of(name)}

    def dtype(self) -> str:
        """That of most parameters."""
        params = [x for n, x in self._tensors().items() if n.startswith("params/")]
        kinds = [str(np.dtype(x.dtype).name) for x in params]
        return max(set(kinds), key=kinds.count) if kinds else "float32"

    def narrower(self) -> list[str]:
        """Parameters that are not of the dtype that was asked for."""
        if not self._wanted:
            return []
        epsilon = marks.epsilon(self._wanted)
        return [
            name
            for name, x in self._tensors().items()
            if name.startswith("params/") and marks.epsilon(x.dtype) > epsilon
        ]

    def state(self) -> Tensors:
        """Parameters, buffers and slots, copied."""
        return {name: np.array(x) for name, x in self._tensors().items()}

    def load(self, tensors: Mapping[str, Array], step: int) -> None:
        """Put what objects hold in place; what the script hands through rec.step follows there."""
        if not tensors:
            return
        slots = any(name.startswith("optimizer/") for name in tensors)
        for held in self._held():
            if held.name in tensors:
                held.put(_like(held.get(), tensors[held.name], held.name))
            elif held.name == trees.COUNT and slots:
                held.put(jax.numpy.asarray(step, held.get().dtype))
        self._loaded = tensors, step

    def given(self, name: str, value: Any, instead: Array | None, dtype: str | None) -> Any:
        """An input in the run's dtype; a part of the state with what was loaded in its place."""
        kind = self._kind(name, value)
        if kind is None:
            value = _cast(_instead(value, instead), dtype)
            self._inputs |= dict(_named(f"inputs/{name}", value))
            return value
        leaves, form = self._leaves(kind, value)
        tensors, step = self._loaded
        slots = any(n.startswith("optimizer/") for n in tensors)
        new = []
        for leaf in leaves:
            x = leaf.value
            if leaf.name in tensors:
                x = _like(x, tensors[leaf.name], leaf.name)
            elif leaf.name == trees.COUNT and slots:
                x = jax.numpy.asarray(step, x.dtype)
            new.append(Leaf(leaf.name, _cast(x, dtype) if leaf.name.startswith(STATE) else x))
        self._loaded = {n: x for n, x in tensors.items() if n not in {y.name for y in leaves}}, step
        self._keep(new)
        return jax.tree_util.tree_unflatten(form, [leaf.value for leaf in new])

    def inputs(self, name: str, value: Any) -> Tensors:
        """What of an input is traced: the arrays in it, but for those of the state."""
        if self._kind(name, value) is not None:
            return {}
        return {n: self.owned(x) for n, x in _named(f"inputs/{name}", value)}

    def takes(self, name: str, value: Any) -> bool:
        """A logged value that is a part of the state after the step."""
        kind = self._kind(name, value)
        if kind is not None:
            self._logged |= self._keep(self._leaves(kind, value)[0])
        return kind is not None

    def owned(self, value: Any) -> Any:
        """A copy, for JAX may write a new array where the script gave one away."""
        return np.array(value) if isinstance(value, jax.Array | np.ndarray) else value

    def made(self, value: Any) -> Made | str | None:
        """How a logged array was made, or the number that was taken from what is minimised."""
        if self._calls is None:
            return None
        if isinstance(value, float):
            points = self._calls.step.points
            same = [
                n for n in ("forward/objective",) if n in points and float(points[n].array) == value
            ]
            return same[0] if same else None
        return self._calls.origin(value)

    def call(self, value: Any, name: str) -> None:
        """A logged array is known by this name to what is made of it."""
        if self._calls and isinstance(value, jax.Array):
            self._calls.name(value, name)

    def tap(self, step: Step | None, name: str, value: Any) -> Any:
        """A value by a name of the script's own, inside of compiled functions too."""
        return self._tracing.point(name, value, marks.TAP)

    @contextmanager
    def watch(self, step: Step) -> Iterator[None]:
        """While one step runs, every call of JAX comes here."""
        self._tracing.deep = step.deep
        calls = Calls(step, self._twins)
        held = self._held()
        state = {**self._now, **{h.name: h.get() for h in held if h.name != trees.COUNT}}
        self._must_be_loaded(held)
        calls.handed(self._inputs)
        calls.state = {n: x for n, x in state.items() if not _is_gone(x)}
        for name, value in state.items():
            calls.name(value, self._before(name, value, step.number))
        counts = [*self._counts.values(), *(h.get() for h in held if h.name == trees.COUNT)]
        for count in counts:
            if not _is_gone(count):
                calls.name(count, Made("_count", (), {"value": int(count)}))
        self._calls, self._logged = calls, {}
        try:
            yield
        except BaseException:
            self._calls = None
            raise
        calls.busy += 1

    def _must_be_loaded(self, held: Sequence[Held]) -> None:
        """Raise HarnessError where a state was handed over and the script keeps its own."""
        names = {h.name for h in held}
        left = [n for n in self._loaded[0] if n in self._now and n not in names]
        self._loaded = {}, 0
        if left:
            raise HarnessError(
                f"{left[0]} is handed over, and only the script can take it: hand what it trains "
                "through the step, as in `with rec.step(x=x, params=params, opt_state=opt_state) "
                "as (x, params, opt_state)`"
            )

    def _before(self, name: str, value: Any, number: int) -> str:
        """A parameter, buffer or slot as it is before the step, as a stage reads it."""
        if not name.startswith("optimizer/"):
            return f"{name}@step-1|inputs/{name}"
        if name not in self._first:
            array = np.asarray(value, np.float64)
            alike = number == 1 and array.size > 0 and bool((array == array.flat[0]).all())
            start = (
                f"all {decimal(np.asarray(value).flat[0])}" if alike and array.flat[0] else "zeros"
            )
            self._first[name] = f"|{start}" if alike else ""
        return f"{name}@step-1{self._first[name]}"

    def finish(self, step: Step) -> None:
        """What the step left: slots, parameters and buffers, with how each was made."""
        calls, self._calls = self._calls, None
        if calls is None:
            return
        found = {**calls.made_under(STATE), **self._logged}
        self._counts = {id(x): x for x in calls.counts()} or self._counts
        held = {h.name: h.get() for h in self._held() if h.name != trees.COUNT}
        self._now |= {n: x for n, x in found.items() if n in self._now}
        for name, value in {**{n: self._now[n] for n in self._now if n in found}, **held}.items():
            if _is_gone(value):
                continue
            step.see(name, np.array(value), self._settled(step, calls, name, value))
        self._apart = max(self._apart, calls.differ)
        self._inputs = {}

    def _settled(self, step: Step, calls: Calls, name: str, value: Any) -> Made | None:
        """How a part of the state was made: as was found for it, if it is what was found."""
        known = calls.origin(value)
        if known == name:
            return calls.later.get(name)
        if isinstance(known, str) and known.partition("@")[0] == name:
            return Made("add", (known,), {})  # as it was
        return known if isinstance(known, Made) else None


def _is_gone(value: Any) -> bool:
    """Whether the script gave an array away."""
    return isinstance(value, jax.Array) and value.is_deleted()


def _shapes(tensors: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The shapes of parameters by their names."""
    return {
        n.removeprefix("params/"): tuple(np.shape(x))
        for n, x in tensors.items()
        if n.startswith("params/")
    }


def _named(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The arrays and numbers of an input, by name."""
    leaves, _ = trees.paths(value)
    for path, leaf in leaves:
        shown = isinstance(leaf, jax.Array | np.ndarray | np.generic | int | float)
        if isinstance(leaf, jax.Array) and jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            continue
        if shown:
            yield "/".join((name, *path)), leaf


def _instead(value: Any, instead: Array | None) -> Any:
    if instead is None:
        return value
    if isinstance(value, jax.Array):
        return jax.numpy.asarray(instead, value.dtype)
    return instead.astype(value.dtype) if isinstance(value, np.ndarray) else instead


def _cast(value: Any, dtype: str | None) -> Any:
    """Arrays of floats in the run's dtype."""
    if dtype is None:
        return value

    def one(x: Any) -> Any:
        if not is_array(x) or str(x.dtype) == dtype:
            return x
        return jax.numpy.asarray(x, dtype) if isinstance(x, jax.Array) else x.astype(dtype)

    return one(value) if is_array(value) else jax.tree_util.tree_map(one, value)


def _like(own: Any, array: Array, name: str) -> Any:
    """An array in place of one of the script's. Raises HarnessError for another shape."""
    if np.shape(own) != array.shape:
        raise HarnessError(
            f"{name}: handed over as {list(array.shape)}, and the script has "
            f"{list(np.shape(own))}: the two models differ"
        )
    return jax.numpy.asarray(array, own.dtype)


__all__ = ["JAX", "Callable", "adapter"]
