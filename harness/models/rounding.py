"""At what size a stage rounds, beside the size of its result."""

from __future__ import annotations

import math
from collections.abc import Callable

from harness.models.graph import Node, is_ref, name_of
from harness.models.ops import OPS

# Of a traced tensor's name: its largest absolute number; None where it is not known.
Largest = Callable[[str], float | None]
Shape = Callable[[str], tuple[int, ...] | None]
USUAL = 256  # terms of a sum, up to which a tolerance needs no more


def size(x: Node, largest: Largest) -> float | None:
    """About the largest absolute number that a node can have; None where that is not known."""
    if is_ref(x):
        return largest(name_of(x)) if not x.arg("back") else _before(x, largest)
    if x.op == "const":
        return abs(float(x.arg("value")))
    op = OPS.get(x.op)
    if op is None or op.size is None:
        return None
    return op.size(*(size(i, largest) for i in x.inputs))


def _before(x: Node, largest: Largest) -> float | None:
    """A tensor of the step before is about as large as this step's."""
    found = largest(name_of(x))
    first = x.arg("first")
    return found if found is not None or not first else largest(str(first))


def floor(x: Node, largest: Largest, shape: Shape) -> float:
    """The size that a stage rounds at where its terms cancel: 1 - s rounds at 1, a sum of products
    at the largest of them. 0 where it rounds at the size of its result alone.

    The roundings of a sum of n terms are a random walk, as large as the root of n (Higham and Mary
    2019, A new approach to probabilistic rounding error analysis); a tolerance is made for a few
    hundred terms, and what more there are is counted here.
    """
    op = OPS.get(x.op)
    if op is None or not x.inputs:
        return 0.0
    below = [floor(i, largest, shape) for i in x.inputs]
    if x.op == "multiply":
        sizes = [size(i, largest) for i in x.inputs]
        found = 0.0
        for k, own in enumerate(below):
            others = [s for i, s in enumerate(sizes) if i != k]
            if own and all(s is not None for s in others):
                found = max(found, own * math.prod(s for s in others if s is not None))
        return found
    terms = size(x, largest) if op.cancels else None
    walk = max(1.0, math.sqrt(_terms(x, shape) / USUAL))
    return max([(terms or 0.0) * walk, *below])


def _terms(x: Node, shape: Shape) -> int:
    """How many terms a sum has; 1 where that is not known."""
    source = x.inputs[0] if x.op == "linear" else x.inputs[-1]
    while not is_ref(source) and source.inputs:
        source = source.inputs[0]
    known = shape(name_of(source)) if is_ref(source) else None
    if not known:
        return 1
    return known[-1] if x.op == "linear" else math.prod(known[:-1])
