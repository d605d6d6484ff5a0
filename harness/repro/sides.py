"""What each side's stage is at a place, what it was given, and what should have come of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness.compare import DiffResult
from harness.errors import HarnessError
from harness.explain.case import Side, distance
from harness.explain.evidence import SIBLINGS
from harness.explain.trial import FAILURES
from harness.models.evaluate import MissingError, Values
from harness.models.graph import Graph, Node, is_ref, name_of
from harness.models.ops import OPS, parameters
from harness.repro.script import Own, dialect_for, own_of
from harness.spec import STATE
from harness.trace import Alignment, Trace, open_trace
from harness.trace.aligned import ALONE
from harness.trace.alignment import Rule
from harness.trace.chain import MisfitError
from harness.trace.dtypes import epsilon

Array = NDArray[Any]
SIDES: tuple[Side, Side] = ("a", "b")
OTHER: dict[Side, Side] = {"a": "b", "b": "a"}


class Given(Values):
    """Expressions over tensors as they are traced, in their own dtype."""

    def tensor(self, back: int, name: str) -> Array | None:
        """A traced tensor."""
        return self._read(back, name)


class Sided(NamedTuple):
    """One side at a place, by its own names and in its own layout.

    `at` is the index of the reported element; `value` the stage, None where none is known, `own`
    the same in the terms of its framework, and `inputs` what that reads. `answer` is the stage in
    float64, and `off` how far the traced tensor is from it, in machine epsilons.
    """

    side: Side
    label: str
    trace: Trace
    name: str
    at: tuple[int, ...]
    traced: Array
    dialect: Any
    value: Node | None = None
    own: Own | None = None
    inputs: dict[Node, Array] = {}  # noqa: RUF012
    shape_of: Callable[[Node], tuple[int, ...]] | None = None
    answer: Array | None = None
    off: float | None = None
    why: str = ""

    @property
    def dtype(self) -> str:
        """The dtype of the tensor."""
        return str(self.traced.dtype)

    @property
    def stage(self) -> str:
        """The stage in short."""
        return said(self.value) if self.value is not None else ""


class Reader:
    """Reads what one side's stage was given: its own tensors, or those of whom it followed."""

    def __init__(self, found: DiffResult, side: Side, follower: Side | None, tensor: str) -> None:
        """`tensor` is the place, by the side's own name."""
        paths, roles = {"a": found.a, "b": found.b}, dict(zip(SIDES, found.roles, strict=True))
        self.trace = open_trace(paths[side], roles[side])
        self._leader: Trace | None = None
        if side == follower:
            leader, alignment = OTHER[side], found.alignment
            if alignment is not None and side == "a":
                alignment = alignment.turned
            self._leader = open_trace(paths[leader], roles[leader], alignment)
        self._siblings = next((p for p in SIBLINGS if tensor.startswith(p)), None)

    def read(self, step: int, back: int, name: str) -> Array | None:
        """A tensor `back` steps before a step; None where it is not there."""
        own = not back and self._siblings is not None and name.startswith(self._siblings)
        if back and not name.startswith(STATE):
            own = True
        if self._leader is not None and not own:
            found = _read(self._leader, step - back, name)
            if found is not None:
                return found
        return _read(self.trace, step - back, name)


def _read(trace: Trace, number: int, name: str) -> Array | None:
    if number not in trace.steps:
        return None
    step = trace.step(number)
    if name not in step.names():
        return None
    entry = step.find(name)
    return step.read(entry) if step.holds(entry) else None


def sided(
    found: DiffResult,
    side: Side,
    step: int,
    tensor: str,
    at: tuple[int, ...],
    follower: Side | None,
) -> Sided:
    """One side at a place. Raises HarnessError where it holds no such tensor."""
    paths, roles = {"a": found.a, "b": found.b}, dict(zip(SIDES, found.roles, strict=True))
    trace = open_trace(paths[side], roles[side])
    name, index = own_place(trace, side, step, tensor, at, found.alignment)
    reader = Reader(found, side, follower, name)
    traced = _read(trace, step, name)
    label = found.labels[0 if side == "a" else 1]
    if found.labels[0] == found.labels[1]:
        label = f"{label}-{side}"
    if traced is None:
        raise HarnessError(
            f"{trace.path}: {name} of step {step} is not kept (level {trace.header.level}): trace "
            "that step in full, as with --level full --include"
        )
    made = Sided(side, label, trace, name, index, traced, dialect_for(trace.header.framework))
    graph = trace.graph
    value = graph.value(name) if graph else None
    if graph is None or value is None or value.op == "given":
        return made._replace(why=f"{label} does not say how {name} is made")
    return _computed(made._replace(value=value), graph, reader, step)


def _computed(made: Sided, graph: Graph, reader: Reader, step: int) -> Sided:
    """The side with its stage recomputed and all that its program reads."""

    def read(back: int, name: str) -> Array | None:
        return reader.read(step, back, name)

    wide, given = Values(read, step, graph), Given(read, step, graph)
    assert made.value is not None
    own = own_of(graph, made.name, made.dialect, not _declares(made.trace, made.name))
    try:
        with np.errstate(all="ignore"):
            answer = np.asarray(wide.value(made.value))
    except MissingError as error:
        why = f"the stage of {made.name} reads {error}, which {made.trace.path} does not hold"
        return made._replace(why=why)
    except FAILURES as error:
        return made._replace(why=f"the stage of {made.name} does not fit its inputs: {error}")
    inputs: dict[Node, Array] = {}
    for kind in (Own(made.value), own):
        try:
            inputs |= {x: np.asarray(given.value(x)) for x in kind.leaves(step)}
        except MissingError:
            own = Own(made.value)  # an optimizer's step reads more than the stage itself
    eps = epsilon(made.traced.dtype)
    fits = eps and answer.shape == made.traced.shape
    off = distance(made.traced, answer, eps or 1.0, 0.0) if fits else None

    def shape_of(x: Node) -> tuple[int, ...]:
        return np.shape(wide.value(x))

    return made._replace(own=own, inputs=inputs, shape_of=shape_of, answer=answer, off=off)


def said(x: Node) -> str:
    """An expression in short, with the numbers in it: "layer_norm(x, g, b, epsilon=1e-05)"."""
    if is_ref(x):
        first = x.arg("first")
        return f"{name_of(x)} (before)" if x.arg("back") or first else name_of(x)
    if x.op == "const":
        name = x.arg("name")
        return (f"{name}=" if name else "") + f"{x.arg('value'):g}"
    defaults = parameters(x.op).defaults if x.op in OPS else {}
    args = [f"{k}={v}" for k, v in x.args if k not in defaults or defaults[k] != v]
    return f"{x.op}({', '.join([*map(said, x.inputs), *args])})"


def _declares(trace: Trace, name: str) -> bool:
    """Whether the program itself said how a tensor is made."""
    steps = trace.steps[:2]
    return any(e.op for step in steps for e in trace.entry(step).tensors if e.name == name)


def own_place(
    trace: Trace,
    side: Side,
    step: int,
    tensor: str,
    at: tuple[int, ...],
    alignment: Alignment | None,
) -> tuple[str, tuple[int, ...]]:
    """The side's own name of a tensor, and the index of an element in its own layout.

    Of several tensors that are one of the other side, the one that holds the element.
    """
    shapes = {e.name: e.shape for e in trace.entry(step).tensors}
    rule: Rule | None = None
    if alignment is not None:
        rules = alignment.rules(tuple(shapes), side)
        rule = next((r for r in rules if tensor in r.targets), None)
    if rule is None:
        return tensor.removesuffix(ALONE), at
    if rule.renames:
        return rule.sources[0], at
    sizes = [int(np.prod(shapes[name])) for name in rule.sources]
    starts = np.cumsum([0, *sizes])
    numbers = [
        np.arange(start, start + size).reshape(shapes[name])
        for name, start, size in zip(rule.sources, starts, sizes, strict=False)
    ]
    try:
        made = rule.chain.arrays(numbers, rule.same)[rule.targets.index(tensor)]
        one = int(made[at])
    except (MisfitError, IndexError):
        return rule.sources[0], (0,) * len(shapes[rule.sources[0]])
    which = int(np.searchsorted(starts, min(one, int(starts[-1]) - 1), "right")) - 1
    name = rule.sources[which]
    flat = (one - int(starts[which])) % sizes[which]
    return name, tuple(int(k) for k in np.unravel_index(flat, shapes[name]))
