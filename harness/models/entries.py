"""Stages as a trace's entries declare them: an op, what it is made from, and arguments.

An operand is a reference as `graph.parse` reads it, a number, or an op in its turn. A number is
named after the operand of the op that it stands for ("epsilon"), which is the setting that it is.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from harness.errors import HarnessError
from harness.models.derive import backward
from harness.models.graph import (
    REFERENCE,
    Graph,
    Node,
    Stage,
    Tensor,
    below,
    const,
    is_ref,
    name_of,
    node,
    parse,
    references,
)
from harness.models.ops import OPS, find, parameters

LOSS = "forward/loss"
OBJECTIVE = "forward/objective"  # what a script minimises, where that is not the loss
STEP = "step"  # the number of the step: an op of no operands
DEPTH, COUNT, TEXT, NUMBER, BACK = 16, 256, 600, 1 << 31, 1 << 10

Json = Any  # what JSON has


class Entry(Protocol):
    """An entry of a trace, as far as it says how its tensor is made (harness.trace)."""

    @property
    def name(self) -> str:
        """The tensor."""

    @property
    def op(self) -> str | None:
        """The op; None where none is declared."""

    @property
    def operands(self) -> Sequence[Json]:
        """Its operands."""

    @property
    def args(self) -> Mapping[str, Json]:
        """Its arguments."""


class Declared(NamedTuple):
    """What an entry says of how its tensor is made; its fields are those of an entry."""

    name: str
    op: str | None = None
    operands: tuple[Json, ...] = ()
    args: dict[str, Json] = {}  # noqa: RUF012
    source: str | None = None

    @classmethod
    def of(cls, name: str, made: Any, source: str | None = None) -> Declared:
        """A tensor's, from what `stage` made, if anything, and the line that made it."""
        if not isinstance(made, Made):
            return cls(name, source=source)
        return cls(name, made.op, tuple(made.written().get("from", [])), made.args, source)


class Made(NamedTuple):
    """How a tensor is made: what `stage` gives."""

    op: str
    operands: tuple[Any, ...]
    args: dict[str, Any]

    def written(self) -> dict[str, Json]:
        """The same as an entry has it."""
        made: dict[str, Json] = {"op": self.op}
        if self.operands:
            made["from"] = [x.written() if isinstance(x, Made) else x for x in self.operands]
        return made | ({"args": self.args} if self.args else {})


def stage(op: str, *operands: str | float | Made, **args: Any) -> Made:
    """How a traced tensor is made: an op of harness.models.ops, its operands and arguments.

    An operand is the name of a traced tensor; NAME@t-1|FIRST, it at the timestep before (FIRST at
    the first one); NAME@step-1|FIRST, it after the step before (FIRST at the first step); a number;
    or another `stage`. The op "step" is the number of the step. Raises HarnessError for an op that
    there is not, and for operands or arguments that it does not take.

    Example:
        weights = harness.stage("transpose", "params/w@step-1|inputs/params/w")
        trace.write(step, tensors, stages={
            "forward/z": harness.stage("linear", "inputs/x", weights),
            "forward/y": harness.stage("leaky_relu", "forward/z", 0.01),
        })

    """
    if op not in OPS and op != STEP:
        near = difflib.get_close_matches(str(op), OPS, 3, 0.4) or sorted(OPS)
        raise HarnessError(f"no op named {op!r}; the nearest are: {', '.join(near)}")
    made = Made(op, operands, args)
    wrong = why_not(op, made.written().get("from", []), args) or _misfit(op, len(operands), args)
    if wrong:
        raise HarnessError(f"stage {op}: {wrong}")
    return made


def _misfit(op: str, count: int, args: Mapping[str, Any]) -> str | None:
    """Why an op does not take so many operands, or these arguments."""
    if op == STEP:
        return "takes neither operands nor arguments" if count or args else None
    takes = parameters(op)
    if count < len(takes.operands) or (count > len(takes.operands) and not takes.more):
        wanted = ", ".join(takes.operands) or "any number"
        return f"{count} operands; it takes {wanted}{' and more' if takes.more else ''}"
    allowed = [*takes.needed, *takes.defaults]
    for name in args:
        if name not in allowed:
            return f"no argument {name!r}; there are: {', '.join(allowed) or 'none'}"
    for name in takes.needed:
        if name not in args:
            return f"the argument {name!r} is missing"
    return None


def why_not(op: Json, operands: Json, args: Json) -> str | None:
    """What no entry may say of how its tensor is made; None where all is well formed.

    Whether there is such an op does not matter: a later version may have it.
    """
    left = [COUNT]

    def inner(op: Json, operands: Json, args: Json, depth: int) -> str | None:
        left[0] -= 1
        if depth > DEPTH or left[0] < 0:
            return f"ops nest over {DEPTH} deep, or are over {COUNT}"
        if not isinstance(op, str) or not op.isidentifier() or len(op) > TEXT:
            return "its op is no name"
        if not isinstance(operands, list | tuple) or len(operands) > COUNT:
            return f"what it is made from is no list of up to {COUNT} operands"
        wrong = _wrong_arguments(args)
        for operand in operands:
            wrong = wrong or one(operand, depth)
        return wrong

    def one(x: Json, depth: int) -> str | None:
        if isinstance(x, str):
            return _wrong_reference(x)
        if isinstance(x, dict):
            if "op" not in x or not x.keys() <= {"op", "from", "args"}:
                return "an operand is neither a reference, a number nor an op"
            return inner(x["op"], x.get("from", []), x.get("args", {}), depth + 1)
        return None if _is_number(x) else "an operand is neither a reference, a number nor an op"

    return inner(op, operands, args, 0)


def _is_number(x: Json) -> bool:
    if isinstance(x, int):  # a boolean too, which is refused; math.isfinite takes no huge integer
        return not isinstance(x, bool) and abs(x) <= NUMBER
    return isinstance(x, float) and math.isfinite(x)


def _wrong_reference(text: str) -> str | None:
    found = REFERENCE.fullmatch(text) if len(text) <= TEXT and text.isprintable() else None
    if not found:
        return "a reference is none: NAME, NAME@t-1|FIRST or NAME@step-1|FIRST"
    reach = max(abs(int(found["time"] or 0)), -int(found["back"] or 0))
    return None if reach <= BACK else f"a reference reaches over {BACK} back"


def _wrong_arguments(args: Json) -> str | None:
    if not isinstance(args, dict) or len(args) > 16:
        return "its arguments are no object of up to 16"
    for name, value in args.items():
        plain = value if isinstance(value, list | tuple) else [value]
        if not isinstance(name, str) or not name.isidentifier() or len(plain) > 64:
            return "an argument is neither a number, a word nor a list of up to 64"
        for x in plain:
            word = isinstance(x, str) and len(x) <= 64 and x.isprintable()
            if not (word or x is None or isinstance(x, bool) or _is_number(x)):
                return "an argument is neither a number, a word nor a list of up to 64"
    return None


def misplaced(entries: Iterable[Entry]) -> str | None:
    """The first entry made from one that comes after it, or from itself, if any: in words."""
    given = list(entries)
    order = {entry.name: k for k, entry in enumerate(given)}
    for k, entry in enumerate(given):
        for text in _texts(entry.operands) if entry.op else ():
            x = parse(text)
            if not x.arg("time") and not x.arg("back") and order.get(name_of(x), -1) >= k:
                return f"{entry.name} is made from {name_of(x)}, which does not come before it"
    return None


def declared(
    names: Iterable[str], stages: Mapping[str, Made], sources: Mapping[str, str] | None = None
) -> dict[str, Declared]:
    """What the entries of tensors, in execution order, say of how they are made, and where.

    Raises HarnessError for a stage of none of them, or of what comes after it.
    """
    lines = sources or {}
    found = {name: Declared.of(name, stages.get(name), lines.get(name)) for name in names}
    for name, made in stages.items():
        if name not in found or not isinstance(made, Made):
            what = "no tensor of the step" if name not in found else "no harness.stage(..)"
            raise HarnessError(f"stages: {name!r} is {what}")
    wrong = misplaced(found.values()) if stages else None
    if wrong:
        raise HarnessError(f"{wrong}: give tensors in the order in which they run")
    return found


def _texts(operands: Sequence[Json]) -> Iterable[str]:
    """The references among operands, and among those of the ops among them."""
    for x in operands:
        if isinstance(x, str):
            yield x
        elif isinstance(x, dict):
            yield from _texts(x.get("from", []))


def graph_from(entries: Iterable[Entry], derive: bool = False) -> Graph:
    """The stages that the entries of a step declare, in their order.

    An op that there is not, or that takes other operands or arguments, makes no stage: a later
    version wrote the trace. With `derive`, the stages of back-propagation are added for the tensors
    that have none, as the twins name them (backward/.., grads/..), where the entries say of every
    forward tensor that forward/loss depends on how it is made. Raises HarnessError for what is no
    stage of any version.
    """
    given = list(entries)
    for entry in given:
        wrong = why_not(entry.op, entry.operands, entry.args) if entry.op is not None else None
        if wrong:
            raise HarnessError(f"{entry.name}: {wrong}")
    wrong = misplaced(given)
    if wrong:
        raise HarnessError(wrong)
    stages = {}
    for entry in given:
        value = _node(entry.op, entry.operands, entry.args) if entry.op is not None else None
        if value is not None:
            stages[entry.name] = Stage(Tensor(entry.name), value)
    names = [entry.name for entry in given]
    derived = {s.out.name: s for s in _derived(stages, names)} if derive else {}
    return Graph({**stages, **{k: s for k, s in derived.items() if k not in stages}})


def _node(op: str, operands: Sequence[Json], args: Mapping[str, Json]) -> Node | None:
    """The expression that is written so; None for one that this version has no op for."""
    if op == STEP:
        return node(STEP) if not operands and not args else None
    if op not in OPS or _misfit(op, len(operands), args):
        return None
    takes = parameters(op)
    made: list[Node] = []
    for k, x in enumerate(operands):
        if isinstance(x, str):
            found: Node | None = parse(x)
        elif isinstance(x, dict):
            found = _node(x["op"], x.get("from", []), x.get("args", {}))
        else:
            found = const(x, takes.operands[k] if k < len(takes.operands) else None)
        if found is None:
            return None
        made.append(found)
    given = {**takes.defaults, **args}
    return node(op, *made, **{k: _hashable(v) for k, v in given.items()})


def _hashable(value: Json) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _derived(stages: Mapping[str, Stage], known: Sequence[str]) -> list[Stage]:
    """Back-propagation through declared stages; nothing unless the loss is declared all through.

    A gradient is a sum over all that is made of a tensor. Where one forward tensor on the way to
    the loss says not how it is made, or by an op whose derivative is not known, any tensor before
    it may have a term more.
    """
    forward: dict[str, Stage] = {}
    if f"{OBJECTIVE}:2" in known:
        return []  # gradients of several are added up
    loss = OBJECTIVE if OBJECTIVE in known else LOSS
    todo = [loss]
    while todo:
        name = todo.pop()
        if name in forward:
            continue
        if name not in stages or not _differentiable(stages[name].value):
            return []
        forward[name] = stages[name]
        todo += [name_of(x) for x in references(stages[name].value) if _is_forward(x)]
    ordered = [stages[name] for name in stages if name in forward]
    params = {
        name_of(x): None for s in ordered for x in references(s.value) if _is_param(name_of(x))
    }
    names = [Tensor(name.removeprefix("params/")) for name in params]
    return backward(ordered, loss, names)


def _is_forward(x: Node) -> bool:
    return name_of(x).startswith("forward/")


def _is_param(name: str) -> bool:
    return name.startswith("params/")


def _differentiable(value: Node) -> bool:
    """Whether every op of an expression has a derivative."""
    return all(is_ref(x) or not x.inputs or find(x.op).derivative is not None for x in below(value))
