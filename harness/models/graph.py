"""What a step computes, as data: stages, each a traced tensor and the expression that makes it.

An expression is a tree of nodes. Its leaves are constants and references to tensors of a trace, of
this timestep and step or of the one before; every other node is an op (harness.models.ops) over
others. Nodes are interned: equal expressions are one object, so what stands in two places is
computed once, and an edit of an expression makes anew only what lies above the edit.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

from harness.errors import HarnessError

REFERENCE = re.compile(
    r"(?P<name>[^@|]+)(@t(?P<time>[+-]\d+))?(@step(?P<back>-\d+))?(\|(?P<first>.+))?"
)


class Blocks(NamedTuple):
    """An axis that is several blocks of equal length, as "ifgo" of H units each."""

    word: str
    names: tuple[str, ...]
    of: str = "unit"


Axis = str | Blocks
BATCH, TIME = "batch row", "timestep"


class Tensor(NamedTuple):
    """A traced tensor: its name and what its axes count (() where that is not known)."""

    name: str
    axes: tuple[Axis, ...] = ()


class Node:
    """An op and its operands; a leaf has none. Made by `node`, compared by identity."""

    __slots__ = ("__weakref__", "args", "inputs", "op")

    def __init__(
        self, op: str, inputs: tuple[Node, ...], args: tuple[tuple[str, Any], ...]
    ) -> None:
        """Not to be called: `node` makes one object of equal expressions."""
        self.op, self.inputs, self.args = op, inputs, args

    def arg(self, name: str, default: Any = None) -> Any:
        """One argument."""
        return dict(self.args).get(name, default)

    def __repr__(self) -> str:
        """The expression in words."""
        return words(self)


_NODES: WeakValueDictionary[Any, Node] = WeakValueDictionary()


def node(op: str, *inputs: Node, **args: Any) -> Node:
    """The node of this op, operands and arguments (hashable values)."""
    key = (op, inputs, tuple(sorted(args.items())))
    made = _NODES.get(key)
    if made is None:
        made = _NODES[key] = Node(op, inputs, key[2])
    return made


def ref(name: str, time: int = 0, back: int = 0, first: str | None = None) -> Node:
    """A traced tensor `time` timesteps later and `back` steps before.

    `first` stands in its place at the timestep (or step) that has none before it; without one that
    is zeros along time, and nothing along steps.
    """
    return node("ref", name=name, time=time, back=back, first=first)


def const(value: float, name: str | None = None) -> Node:
    """A number, with the name of the setting that it comes from."""
    return node("const", value=value, name=name)


def is_ref(x: Node) -> bool:
    """Whether a node is a tensor of the trace."""
    return x.op == "ref"


def name_of(x: Node) -> str:
    """The tensor that a reference is to."""
    return str(x.arg("name"))


def parse(text: str) -> Node:
    """The reference that a trace's entry writes: NAME, NAME@t-1|FIRST, NAME@step-1|FIRST.

    Raises HarnessError that shows the grammar.
    """
    found = REFERENCE.fullmatch(text)
    if not found:
        raise HarnessError(
            f"{text!r} is no reference to a tensor: NAME, or NAME@t-1|FIRST (the timestep before; "
            "FIRST at the first one), or NAME@step-1|FIRST (the step before)"
        )
    time, back = int(found["time"] or 0), -int(found["back"] or 0)
    return ref(found["name"], time, back, found["first"])


def written(x: Node) -> str:
    """A reference as an entry writes it: what `parse` reads."""
    time, back, first = x.arg("time"), x.arg("back"), x.arg("first")
    text = name_of(x) + (f"@t{time:+d}" if time else "") + (f"@step-{back}" if back else "")
    return text + (f"|{first}" if first else "")


def words(x: Node) -> str:
    """An expression in short: "add(linear(forward/embedding, w), b)"."""
    if is_ref(x):
        return written(x)
    if x.op == "const":
        return str(x.arg("name") or f"{x.arg('value'):g}")
    inside = [words(i) for i in x.inputs] + [f"{k}={v}" for k, v in x.args]
    return f"{x.op}({', '.join(inside)})"


class Stage(NamedTuple):
    """A traced tensor and the expression that makes it."""

    out: Tensor
    value: Node


class Graph(NamedTuple):
    """The stages of a step by the name of what they make, in the order in which they run."""

    stages: Mapping[str, Stage]

    def value(self, name: str) -> Node | None:
        """The expression that makes a tensor; None where none is known."""
        stage = self.stages.get(name)
        return stage.value if stage else None

    def renamed(self, new: Callable[[str], str]) -> Graph:
        """The same stages of tensors that have other names."""

        def change(x: Node) -> Node | None:
            if not is_ref(x):
                return None
            first = x.arg("first")
            kept = {"first": first and new(first), "name": new(name_of(x))}
            return node("ref", **{**dict(x.args), **kept})

        stages = [
            Stage(s.out._replace(name=new(s.out.name)), rebuilt(s.value, change))
            for s in self.stages.values()
        ]
        return Graph({stage.out.name: stage for stage in stages})

    def axes(self, name: str) -> tuple[Axis, ...]:
        """What the axes of a tensor count; () where that is not known."""
        stage = self.stages.get(name)
        return stage.out.axes if stage else ()


def below(root: Node) -> list[Node]:
    """Every node of an expression once, operands before what is made of them."""
    order: dict[Node, None] = {}
    stack: list[tuple[Node, bool]] = [(root, False)]
    while stack:
        x, ready = stack.pop()
        if ready:
            order.setdefault(x)
        elif x not in order:
            stack.append((x, True))
            stack += [(i, False) for i in reversed(x.inputs)]
    return list(order)


def references(root: Node) -> Iterator[Node]:
    """The tensors that an expression is made of."""
    return (x for x in below(root) if is_ref(x))


def rebuilt(root: Node, change: Callable[[Node], Node | None]) -> Node:
    """The expression with change(node) in place of every node for which that is not None."""
    made: dict[Node, Node] = {}
    for x in below(root):
        new = change(x)
        if new is None:
            inputs = tuple(made[i] for i in x.inputs)
            new = x if inputs == x.inputs else node(x.op, *inputs, **dict(x.args))
        made[x] = new
    return made[root]


def shifted(root: Node, by: int) -> Node:
    """The expression `by` timesteps later: every tensor in it that runs along time.

    What `first` stands for is kept where a reference ends up at the timestep before.
    """

    def change(x: Node) -> Node | None:
        name = name_of(x) if is_ref(x) else ""
        if not name.startswith(("forward/", "backward/")):
            return None
        time = x.arg("time") + by
        return ref(name, time, x.arg("back"), x.arg("first") if time < 0 else None)

    return rebuilt(root, change) if by else root


def total(terms: Iterable[Node]) -> Node:
    """The sum of some expressions, which is the one itself where there is one."""
    given: list[Node] = []
    for term in terms:
        given += term.inputs if term.op == "add" else [term]
    return given[0] if len(given) == 1 else node("add", *given)


def scaled(slope: Node, by: Node) -> Node:
    """A tensor times a scalar, which is the tensor itself where that is the number 1."""
    return slope if by.op == "const" and by.arg("value") == 1.0 else node("scale", slope, by)
