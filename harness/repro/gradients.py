"""Gradients that are what back-propagation makes of the stages that read a tensor."""

from __future__ import annotations

from typing import NamedTuple

from harness.models.entries import LOSS, OBJECTIVE
from harness.models.graph import Graph, Node, name_of, ref, references

BACKWARD, FORWARD, GRADS, PARAMS = "backward/", "forward/", "grads/", "params/"


class Reader(NamedTuple):
    """A stage that reads a tensor; `dy` is the gradient of its result, None of the loss's."""

    name: str
    value: Node
    dy: Node | None


class Derived(NamedTuple):
    """A gradient by `by`, through all that reads it."""

    by: Node
    readers: tuple[Reader, ...]


def derived(graph: Graph, tensor: str) -> Derived | None:
    """By what, and through what stages, a gradient is; None where its formula alone says it."""
    value = graph.value(tensor)
    if value is None or not tensor.startswith((BACKWARD, GRADS)):
        return None
    wanted = FORWARD + tensor.removeprefix(BACKWARD)
    if tensor.startswith(GRADS):
        wanted = PARAMS + tensor.removeprefix(GRADS)
    read = {name_of(x) for x in references(value)}
    loss = OBJECTIVE if OBJECTIVE in graph.stages else LOSS
    readers, leaves = [], set()
    for name, stage in graph.stages.items():
        back = BACKWARD + name.removeprefix(FORWARD)
        leaf = {x for x in references(stage.value) if name_of(x) == wanted}
        if not name.startswith(FORWARD) or not leaf or not (name == loss or back in read):
            continue
        leaves |= leaf
        dy = None if name == loss else ref(back)
        readers.append(Reader(name, stage.value, dy))
        if any(x.arg("time") for x in references(stage.value)):
            return None
    if len(leaves) != 1 or (len(readers) > 1 and any(r.dy is None for r in readers)):
        return None
    return Derived(leaves.pop(), tuple(readers))
