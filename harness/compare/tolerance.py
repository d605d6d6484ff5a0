"""How far apart two tensors may be: NumPy's rule, or the default that scales with the tensor.

The rule is always |a - b| <= atol + rtol |b|, element by element, b being the reference. By default
rtol = K eps and atol = K eps max|b|, with eps the machine epsilon of the tensor's dtype and K from
the table below: an element may be off by K roundings of itself and of the tensor's largest element,
because sums round at the size of their largest terms, whatever is left after cancellation. How the
table was calibrated stands in docs/decisions.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Literal

import msgspec

from harness.errors import HarnessError
from harness.kernels.floats import standard_floats
from harness.models.graph import Graph
from harness.models.rounding import floor as rounding_floor
from harness.trace.dtypes import epsilon, smallest_normal
from harness.trace.schema import TensorEntry

# The first row whose glob matches the tensor's name decides. K = 0: equal, as 0 and -0 are.
DEFAULT_TABLE: tuple[tuple[str, float], ...] = (
    ("inputs/*", 0),  # handed to both sides, computed by neither
    ("forward/loss", 16),  # one number each, made of so many terms that roundings average out
    ("update/global_norm", 16),
    ("*", 64),
)

# For what one stage makes of the very inputs of the other side's (following): nothing has added up.
LOCAL_TABLE: tuple[tuple[str, float], ...] = (
    ("inputs/*", 0),
    ("forward/loss", 16),
    ("update/global_norm", 16),
    ("*", 32),
)

# numpy.allclose's own defaults, for the one of rtol and atol that is not given.
NUMPY_RTOL, NUMPY_ATOL = 1e-5, 1e-8


class Allowance(msgspec.Struct, frozen=True):
    """The tolerance for one tensor as two numbers.

    Where the table gave them, `factor` is its K and `scale` the max|b| it was applied with (or the
    larger floor of a local tolerance); a factor of 0 asks for equality.
    """

    rtol: float
    atol: float
    factor: float | None = None
    scale: float = 0.0


class Tolerance(msgspec.Struct, frozen=True):
    """A table of this module ("default", "local"), or NumPy's rule with two fixed numbers."""

    rule: Literal["default", "local", "numpy"] = "default"
    rtol: float | None = None
    atol: float | None = None
    table: tuple[tuple[str, float], ...] | None = DEFAULT_TABLE

    @classmethod
    def given(
        cls, rtol: float | None, atol: float | None, factor: float | None = None
    ) -> Tolerance:
        """The tolerance of a command: numpy.allclose's defaults fill in for one that is missing.

        `factor` is the K of all tensors but `inputs/*`, in place of the table's. Raises
        HarnessError for numbers that are negative or not finite, for a factor beside others.
        """
        for name, value in (("rtol", rtol), ("atol", atol), ("factor", factor)):
            if value is not None and not (0 <= value < float("inf")):
                raise HarnessError(f"{name}={value}: a tolerance is a number from 0 up")
        if factor is not None:
            if rtol is not None or atol is not None:
                raise HarnessError(
                    f"factor={factor} beside rtol={rtol}, atol={atol}: a factor scales the default "
                    "rule, rtol and atol are another: give the one or the others"
                )
            return cls(table=(DEFAULT_TABLE[0], ("*", factor)))
        if rtol is None and atol is None:
            return cls()
        return cls(
            "numpy",
            NUMPY_RTOL if rtol is None else rtol,
            NUMPY_ATOL if atol is None else atol,
            None,
        )

    @classmethod
    def local(cls) -> Tolerance:
        """For stages that were given the other side's inputs (`LOCAL_TABLE`)."""
        return cls("local", table=LOCAL_TABLE)

    @standard_floats()
    def allowance(
        self,
        reference: TensorEntry,
        step: Mapping[str, TensorEntry] | None = None,
        other: str | None = None,
        graph: Graph | None = None,
    ) -> Allowance:
        """The numbers for one tensor, from the index entry of the reference side.

        A stage may round at the size of numbers larger than its result: the derivatives of a
        saturated gate are 1 - s with s near 1, so rounded at the size of what they are multiplied
        with. A local tolerance takes that from the `graph` (harness.models.rounding), and the sizes
        from `step`, the entries of its step by name.
        `other` is the dtype on the other side: what counts is the eps of the narrower.
        """
        if self.rtol is not None and self.atol is not None:
            return Allowance(self.rtol, self.atol)
        table = self.table or DEFAULT_TABLE
        rows = (k for glob, k in table if fnmatchcase(reference.name, glob))
        factor = next(rows, None)
        if factor is None:
            raise HarnessError(
                f"no row of the tolerance table matches {reference.name}: end with *"
            )
        dtypes = (reference.dtype, other or reference.dtype)
        eps = epsilon(*dtypes)
        if eps is None:
            return Allowance(0.0, 0.0, 0.0)  # integers and booleans do not round
        largest = _largest(reference)
        if self.rule == "local":
            # Under the smallest normal number some programs flush to zero and others do not: there
            # an epsilon of anything smaller than this is no number that both can hold.
            floor = smallest_normal(*dtypes) / eps
            largest = max(largest, floor, _rounding(reference.name, step or {}, graph))
        return Allowance(factor * eps, factor * eps * largest, factor, largest)


def _largest(entry: TensorEntry) -> float:
    return max(abs(entry.min or 0.0), abs(entry.max or 0.0))


def _rounding(name: str, step: Mapping[str, TensorEntry], graph: Graph | None) -> float:
    """The size that a stage rounds at beside its result; 0 where it is not known."""
    stage = graph.value(name) if graph else None
    if stage is None:
        return 0.0
    return rounding_floor(
        stage,
        lambda other: _largest(step[other]) if other in step else None,
        lambda other: step[other].shape if other in step else None,
    )
