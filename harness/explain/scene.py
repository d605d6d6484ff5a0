"""What edits are made in, and what they are made of."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from harness.models.graph import Graph, Node, name_of, node, rebuilt, ref
from harness.models.ops.op import Kin

LAYER = re.compile(r"layer\d+")
MOST_OTHERS = 24  # other tensors that are tried in an operand's place


class Edit(NamedTuple):
    """One way to compute a tensor: `words` say it after a side's name.

    `name` is the kind of cause; `free` the constants that were fitted to the difference; `format`
    the narrower number format of an edit that is one of precision.
    """

    name: str
    words: str
    value: Node
    bits: float
    free: int = 0
    format: str | None = None


class Scene(NamedTuple):
    """What edits are made in: the tensor, its expression, and what else was traced.

    `shapes` are those of the tensors of this step; `settings` the numbers of the run by name, those
    of both sides; `axes` what the tensor's own axes count; `used` names the settings that some
    stage of the run reads.
    """

    tensor: str
    base: Node
    graph: Graph | None
    shapes: Mapping[str, tuple[int, ...]]
    settings: Mapping[str, tuple[float, ...]]
    shape: tuple[int, ...]
    axes: tuple[Any, ...]
    step: int
    used: frozenset[str] = frozenset()


Made = Callable[..., Edit]


def put(scene: Scene, old: Node, new: Node) -> Node:
    """The expression with `new` in the place of `old`."""
    return rebuilt(scene.base, lambda x: new if x is old else None)


def earlier(scene: Scene) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The tensors that are there when this one is made: of later ones, those like it alone."""
    seen = False
    kind = scene.tensor.partition("/")[0]
    for name, shape in scene.shapes.items():
        seen = seen or name == scene.tensor
        if not seen or name.partition("/")[0] == kind:
            yield name, shape


def distance(one: str, two: str) -> int | None:
    """How far apart two names are: 0 of other layers, 1 of another part, 2 of another kind.

    None for tensors that nothing has in common.
    """
    if LAYER.sub("", one) == LAYER.sub("", two):
        return 0
    a, b = one.split("/"), two.split("/")
    if a[0] == b[0] and len(a) == len(b):
        return 1
    return 2 if a[-1] == b[-1] or a[1:] == b[1:] else None


def weights_at(x: Node, back: int) -> Node:
    """A parameter as it was `back` steps before."""
    first = x.arg("first") or f"inputs/{name_of(x)}"
    return ref(name_of(x), x.arg("time"), back, first if back else None)


def nearest_names(scene: Scene, name: str, shape: tuple[int, ...] | None) -> list[tuple[int, str]]:
    """Other tensors of a shape that may have been taken by mistake, those nearest in name first."""
    found = []
    for other, size in earlier(scene):
        far = distance(name, other)
        if other not in (name, scene.tensor) and size == shape and far is not None:
            found.append((far, other))
    return sorted(found)[:MOST_OTHERS]


def kin_of(x: Node, kin: Kin) -> Node:
    """A node with a member of its op's family in its place."""
    return node("kin", *x.inputs, of=x.op, does=kin.does, **dict(x.args))
