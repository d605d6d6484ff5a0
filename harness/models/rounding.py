"""At what size a stage rounds, beside the size of its result."""

from __future__ import annotations

import math
from collections.abc import Callable

from harness.models.graph import Node, is_ref, name_of
from harness.models.ops import OPS

# Of a traced tensor's name: its largest absolute number; None where it is not known.
Largest = Callable[[str], float | None]


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


def floor(x: Node, largest: Largest) -> float:
    """The size that a stage rounds at where its terms cancel: 1 - s rounds at 1, a sum of products
    at the largest of them. 0 where it rounds at the size of its result alone.
    """
    op = OPS.get(x.op)
    if op is None or not x.inputs:
        return 0.0
    below = [floor(i, largest) for i in x.inputs]
    if x.op == "multiply":
        sizes = [size(i, largest) for i in x.inputs]
        found = 0.0
        for k, own in enumerate(below):
            others = [s for i, s in enumerate(sizes) if i != k]
            if own and all(s is not None for s in others):
                found = max(found, own * math.prod(s for s in others if s is not None))
        return found
    terms = size(x, largest) if op.cancels else None
    return max([terms or 0.0, *below])
