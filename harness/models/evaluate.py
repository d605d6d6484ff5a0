"""The value of an expression in float64, from what a trace holds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.models.graph import Graph, Node, below, is_ref, name_of
from harness.models.ops import find

Array = NDArray[Any]
# (steps before this one, name) to a tensor; None where the trace has none.
Read = Callable[[int, str], Array | None]


FILL = "all "  # a reference's `first` that begins so is one number in every element


class MissingError(Exception):
    """A tensor that an expression needs is not traced, and cannot be computed from what is."""


class Values:
    """Expressions of one step of one side, each computed once.

    What is not traced is computed from the graph where that has a stage for it. `change` makes
    other numbers of every tensor that is read, to tell expressions apart.
    """

    def __init__(
        self,
        read: Read,
        step: int,
        graph: Graph | None = None,
        other: Array | None = None,
        change: Callable[[str, Array], Array] | None = None,
    ) -> None:
        """Nothing is read yet. `other` is what the node "other" stands for."""
        self.step, self._read, self._graph = step, read, graph
        self._other, self._change = other, change
        self._made: dict[Node, Any] = {}
        self._kept: set[Node] | None = None
        self._open: set[str] = set()

    def keep(self, root: Node) -> None:
        """From now on keep the values of this expression's nodes alone: edits of it are many."""
        self._kept = {*(self._kept or ()), *below(root)}

    def value(self, root: Node) -> Any:
        """An expression's value. Raises MissingError, and what formulas raise for bad shapes."""
        if root in self._made:
            return self._made[root]
        passing: dict[Node, Any] = {}
        for x in below(root):
            if x in self._made or x in passing:
                continue
            inputs = [self._made[i] if i in self._made else passing[i] for i in x.inputs]
            kept = self._kept is None or x in self._kept or is_ref(x)
            (self._made if kept else passing)[x] = self._one(x, inputs)
        return self._made[root] if root in self._made else passing[root]

    def tensor(self, back: int, name: str) -> Array | None:
        """A traced tensor, floats in float64."""
        found = self._read(back, name)
        if found is None:
            return None
        found = found.astype(np.float64) if found.dtype.kind not in "iub" else found
        return self._change(name, found) if self._change else found

    def _one(self, x: Node, inputs: list[Any]) -> Any:
        if is_ref(x):
            return self._reference(x)
        if x.op == "const" and x.arg("name") and self._change:
            # As a tensor, so that what a setting's value makes alike by chance is told apart.
            value = np.full(1, float(x.arg("value")))
            return float(self._change(f"setting {x.arg('name')}", value)[0])
        if x.op == "other":
            if self._other is None:
                raise MissingError("the other side's tensor")
            return self._other
        with np.errstate(all="ignore"):
            return apply(x, inputs, self.step)

    def _reference(self, x: Node) -> Array:
        name, time, back, first = name_of(x), x.arg("time"), x.arg("back"), x.arg("first")
        if back and back >= self.step and not time:
            found = self._before_all(name, first)
        else:
            found = self.tensor(back, name)
        if found is None and not back:
            found = self._computed(name)
        if found is None:
            raise MissingError(name)
        if time:
            found = shift(found, time, self.tensor(back, first) if first else None)
        return found

    def _before_all(self, name: str, first: str | None) -> Array | None:
        if first == "zeros" or (first or "").startswith(FILL):
            now = self.tensor(0, name)
            value = 0.0 if first == "zeros" else float(str(first)[len(FILL) :])
            if now is None:
                return None
            began = np.full_like(now, value)
            # As numbers of their own: what only the first step has equal is not one function.
            return self._change(f"{first} for {name}", began + 1) if self._change else began
        return self.tensor(self.step - 1, first) if first else None

    def _computed(self, name: str) -> Array | None:
        """A tensor that is not traced, from the stage that makes it."""
        made = self._graph.value(name) if self._graph else None
        if made is None or made.op == "given" or name in self._open:
            return None
        self._open.add(name)
        try:
            return np.asarray(self.value(made))
        except MissingError:
            return None
        finally:
            self._open.discard(name)


def apply(x: Node, inputs: list[Any], step: int) -> Any:
    """The value of a node from those of its operands, in their dtype."""
    if x.op == "const":
        return x.arg("value")
    if x.op == "step":
        return step + x.arg("more", 0)
    return _formula(x)(*inputs, **_arguments(x))


def _formula(x: Node) -> Callable[..., Any]:
    """The formula of a node's op, or of the member of its family that stands in its place."""
    if x.op != "kin":
        return find(x.op).formula
    return next(k.formula for k in find(x.arg("of")).kin if k.does == x.arg("does"))


def _arguments(x: Node) -> dict[str, Any]:
    return {k: v for k, v in x.args if x.op != "kin" or k not in ("of", "does")}


def shift(x: Array, by: int, first: Array | None = None) -> Array:
    """x [B, T, ..] as it is `by` timesteps later; `first` [B, ..] (or zeros) comes in at the end.

    by = -1 gives the timestep before: first, x[0], x[1], ...
    """
    made = np.zeros_like(x)
    length = x.shape[1] - abs(by)
    if by < 0:
        made[:, -by:] = x[:, :length]
        if first is not None:
            made[:, :-by] = first[:, None]
    else:
        made[:, :length] = x[:, by:]
    return made
