"""Operations between layers as points of their own (depth "ops").

Formulas are recognised as they grow, so an operation is only known to be one, and no part of a
longer one, when something that has a name is made of it: then it is given its own.
"""

from __future__ import annotations

from typing import Any

from harness.capture.keras_tensors import is_eager, is_tensor
from harness.models.entries import Made
from harness.models.ops import OPS

PRODUCTS = ("linear", "conv")  # which have the name of the sum with their bias
NO_POINTS = ("causal_mask",)  # what is filled in is no number


class Operations:
    """The operations of one step that have made something, by the expressions of it."""

    def __init__(self, watch: Any) -> None:
        """None yet."""
        self._watch = watch
        self._seen: dict[int, tuple[Made, Any, str]] = {}

    def saw(self, made: Any, x: Any) -> None:
        """An operation has made a tensor so."""
        if isinstance(made, Made) and is_tensor(x) and x.dtype.is_floating:
            self._seen.setdefault(id(made), (made, x, self._where()))

    def spelled(self, made: Made) -> Made:
        """An expression of named operations."""
        bias = made.op in ("bias", "bias_channels")
        operands = (
            self.spelled(x) if bias and isinstance(x, Made) and x.op in PRODUCTS else self._named(x)
            for x in made.operands
        )
        return Made(made.op, tuple(operands), made.args)

    def _named(self, x: Any) -> Any:
        if not isinstance(x, Made):
            return x
        _, tensor, where = self._seen.get(id(x), (None, None, ""))
        known = self._watch.known.get(id(tensor), (None, None))[1]
        if isinstance(known, str):
            return known
        part = x.op not in OPS or x.op in NO_POINTS
        if tensor is None or part or not x.operands or not self._can_be_kept(tensor):
            return self.spelled(x)
        return self._kept(f"forward/{where}/{x.op}", tensor, x)

    def unknown(self, op: str, inputs: Any, x: Any) -> bool:
        """An operation that no rule knows: what it is made of is named; whether it is a point."""
        made = [self._watch.known.get(id(i), (None, None))[1] for i in inputs]
        if not self._can_be_kept(x) or not any(map(_of_forward, made)):
            return False
        for one in made:
            self._named(one)
        self._kept(f"forward/{self._where()}/{op}", x, None)
        return True

    def _kept(self, wanted: str, x: Any, made: Made | None) -> str:
        key: str = self._watch.keep(wanted, (x,), made)
        self._watch.know(x, key)
        self._watch.points.append((x, key))
        return key

    def _where(self) -> str:
        scope = self._watch.scope
        return scope[-1] if scope else "model"

    def _can_be_kept(self, x: Any) -> bool:
        """Whether a tensor has values, or is not of a loop or a branch."""
        return is_eager(x) or id(x.graph) in self._watch.graphs


def _of_forward(made: Any) -> bool:
    """Whether something is made in the forward pass, of inputs or of weights."""
    if isinstance(made, Made):
        return any(map(_of_forward, made.operands))
    return isinstance(made, str) and not made.startswith(("grads/", "update/", "inputs/constant"))
