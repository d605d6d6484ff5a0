"""What is put in place of a run's own numbers: another side's (following), or a disturbance.

Bytes are moved here, never computed: what a stage makes of what it is given is the twin's own.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.spec import RunSpec
from harness.trace.aligned import open_trace
from harness.trace.dtypes import is_float
from harness.trace.reader import Step, Trace
from harness.trace.schema import TraceError

Array = NDArray[Any]


class Intervention:
    """The interventions of one run; `begin` is called before each step."""

    def __init__(self, run: RunSpec) -> None:
        """Raises TraceError where the trace to follow cannot serve this run."""
        self.disturb, self.follow, self.dtype = run.disturb, run.follow, run.train.dtype
        self._trace = open_trace(run.follow.trace) if run.follow else None
        if self._trace and (self._trace.header.dtype, self.dtype) == ("float64", "float32"):
            raise TraceError(
                f"{self._trace.path}: a float32 run cannot follow a float64 trace: run both in "
                "float64, or trace the other side in float32"
            )
        self._step = 0
        self._now: _Fed | None = None
        self._before: _Fed | None = None

    @classmethod
    def of(cls, run: RunSpec) -> Intervention | None:
        """The interventions of `run`; None where it has none."""
        return cls(run) if run.follow or run.disturb else None

    @property
    def within(self) -> Intervention | None:
        """Itself where something is put in place inside a step; None where only steps start so."""
        stages = self.follow is not None and self.follow.level == "stage"
        return self if stages or self.disturb else None

    def begin(self, step: int) -> None:
        """Go to `step`. Raises TraceError if the trace to follow does not hold it."""
        if self._trace:
            self._before = self._now if self._now and step == self._step + 1 else None
            if self._before is None and step > 1:
                self._before = _Fed(self._trace, step - 1)
            self._now = _Fed(self._trace, step)
        self._step = step

    def restart(self, group: str, names: Iterable[str]) -> dict[str, Array] | None:
        """What the step before left of `group` ("params", "state/out") in the trace to follow.

        None where nothing is followed, or the step is the first. Raises TraceError for tensors that
        are not traced.
        """
        if self._before is None:
            return None
        found = {name: self._before.get(f"{group}/{name}", self.dtype) for name in names}
        missing = [f"{group}/{name}" for name, array in found.items() if array is None]
        if missing and self._trace:
            raise TraceError(
                f"{self._trace.path}: no {missing[0]} in step {self._step - 1}: a trace to follow "
                "must hold every step, and all of params/*, optimizer/* and state/out/*"
            )
        return {name: array for name, array in found.items() if array is not None}

    def own(self, name: str, t: int | None, array: Array) -> Array:
        """What is traced of a point: `array`, disturbed if this is the place.

        `array` is [B, T, ...], or [B, ...] of timestep `t`.
        """
        d = self.disturb
        if d is None or d.tensor != name or d.step != self._step:
            return array
        index = list(d.index)
        if t is not None and index.pop(1) not in (None, t):
            return array
        changed = np.array(array)  # a copy; of a scalar too, which has no element to assign
        # A scalar takes an empty index; slice(None) is all of an axis.
        changed[tuple(slice(None) if i is None else i for i in index)] *= 1 + d.size
        return changed

    def onward(self, name: str, t: int | None, array: Array) -> Array:
        """What the next stage is given: `array`, or the other side's value when stages follow."""
        if self._now is None or not self.follow or self.follow.level != "stage":
            return array
        fed = self._now.get(name, self.dtype)
        if fed is None:
            return array
        if t is not None:
            fed = fed[:, t] if fed.ndim > 1 and t < fed.shape[1] else fed
        # Of another shape it cannot go on; the diff reports that as structure.
        return fed if fed.shape == array.shape else array


class _Fed:
    """The tensors of one step of the trace that is followed, each read once."""

    def __init__(self, trace: Trace, step: int) -> None:
        self._step: Step = trace.step(step)
        self._entries = {entry.name: entry for entry in self._step.entries}
        self._read: dict[str, Array] = {}

    def get(self, name: str, dtype: str) -> Array | None:
        """A tensor, floating-point ones in `dtype`; None where it is not traced."""
        if name not in self._read:
            if name not in self._entries:
                return None
            array = self._step.read(self._entries[name])
            self._read[name] = array.astype(dtype) if is_float(array.dtype) else array
        return self._read[name]
