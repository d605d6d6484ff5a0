"""Back-propagation, derived: the gradient of every tensor is a sum over what is made of it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from harness.models.graph import (
    Graph,
    Node,
    Stage,
    Tensor,
    below,
    const,
    is_ref,
    name_of,
    ref,
    shifted,
    total,
)
from harness.models.ops import find

FORWARD, BACKWARD = "forward/", "backward/"
ONE = const(1.0)


def backward(forward: Sequence[Stage], loss: str, params: Sequence[Tensor]) -> list[Stage]:
    """The stages of back-propagation, last tensor first, and then those of `grads/*`.

    backward/x is the derivative of `loss` by forward/x: the sum over the stages that read it, each
    at the values that the step went on with. What a stage reads of the timestep before sends its
    gradient one timestep back. No gradient flows into what is no forward tensor or weight.
    """
    terms: dict[str, list[Node]] = defaultdict(list)
    for stage in reversed(forward):
        name = stage.out.name
        seed = ONE if name == loss else ref(BACKWARD + name.removeprefix(FORWARD))
        for leaf, gradient in adjoints(stage.value, seed):
            if name_of(leaf).startswith((FORWARD, "params/")):
                terms[name_of(leaf)].append(shifted(gradient, -leaf.arg("time")))
    points = [
        Stage(Tensor(BACKWARD + s.out.name.removeprefix(FORWARD), s.out.axes), total(found))
        for s in reversed(forward)
        if (found := terms.get(s.out.name))  # none: the loss does not depend on it
    ]
    grads = [
        Stage(Tensor(f"grads/{p.name}", p.axes), total(found))
        for p in params
        if (found := terms.get(f"params/{p.name}"))
    ]
    return points + grads


def adjoints(root: Node, seed: Node) -> list[tuple[Node, Node]]:
    """Each reference of an expression, and the gradient by it, given that of the expression."""
    terms: dict[Node, list[Node]] = defaultdict(list)
    terms[root].append(seed)
    made = []
    for x in reversed(below(root)):
        if x not in terms:
            continue
        gradient = total(terms[x])
        if is_ref(x):
            made.append((x, gradient))
        elif x.inputs:
            rule = find(x.op).derivative
            parts = rule(x, gradient) if rule else (None,) * len(x.inputs)
            for operand, part in zip(x.inputs, parts, strict=True):
                if part is not None:
                    terms[operand].append(part)
    return made


def whole(stages: Sequence[Stage]) -> Graph:
    """A graph of these stages."""
    return Graph({stage.out.name: stage for stage in stages})
