"""The trace points of one step: what each stage made, and what the next is given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numpy.typing import NDArray

from harness.side.backend import Backend
from harness.trace import Intervention, Rows, Timesteps

Point = Any  # a tensor of the framework, Rows of tensors, or a list of T tensors [B, ...]
Array = NDArray[Any]


class Points:
    """The trace points of one step in execution order.

    Every stage hands what it made to `see` and goes on with what comes back: the same tensor,
    unless an intervention (harness.trace.Intervention) puts another in its place. Stages of
    back-propagation do so as well, under names "backward/...". Where the framework differentiates
    (`autograd`), it is made to go on with what is put in place there.
    """

    def __init__(
        self, backend: Backend, intervention: Intervention | None = None, watch: bool = True
    ) -> None:
        """`watch`: whether to keep the points; an intervention acts either way."""
        self.backend = backend
        self.intervention = intervention
        self.watch = watch or intervention is not None
        self.autograd = False
        self.seen: dict[str, Point] = {}
        self.gone_on: dict[str, Point] = {}

    def see(self, name: str, value: Point, t: int | None = None) -> Point:
        """What goes on in place of `value`, which is kept; at timestep `t` if there is one."""
        own = onward = value
        if self.intervention is not None:
            own, onward = self._replaced(self.intervention, name, value, t)
        if name.startswith("forward/"):
            onward = self._forward(name, value, onward, t)
            # Back-propagation reads it, watched or not: derivatives hold where the step went on.
            _keep(self.gone_on, name, onward, t)
        if self.watch:
            _keep(self.seen, name, own, t)
        return onward

    def within(self, prefix: str) -> Callable[[str, Point, int | None], Point]:
        """`see` for the stages of a part of the model, named from there."""
        return lambda name, value, t: self.see(f"{prefix}/{name}", value, t)

    def differentiate(self) -> None:
        """From now on the framework differentiates: it is to go on with what is put in place."""
        self.autograd = True

    def see_gradients(self, found: dict[str, Point]) -> None:
        """Keep the gradients of the forward points (structured as `gone_on`), last stage first."""
        for name, gradient in reversed(found.items()):
            point = name.replace("forward/", "backward/", 1)
            if isinstance(gradient, list):
                over_time = [self._disturbed(point, g, t) for t, g in enumerate(gradient)]
                self.seen[point] = over_time
            else:
                self.seen[point] = self._disturbed(point, gradient, None)

    def _replaced(
        self, intervention: Intervention, name: str, value: Point, t: int | None
    ) -> tuple[Point, Point]:
        array = to_array(self.backend, value)
        own = intervention.own(name, t, array)
        onward = intervention.onward(name, t, own)
        if onward is array:
            return value, value
        return like(self.backend, value, own), like(self.backend, value, onward)

    def _disturbed(self, name: str, value: Point, t: int | None) -> Point:
        if self.intervention is None:
            return value
        array = to_array(self.backend, value)
        return self.backend.to_tensor(self.intervention.own(name, t, array))

    def _forward(self, name: str, value: Point, onward: Point, t: int | None) -> Point:
        """A stage that back-propagation passes: its gradient is replaced on the way as well."""
        intervention = self.intervention
        if intervention is None or not self.autograd:
            return onward
        point = name.replace("forward/", "backward/", 1)
        return self.backend.swap(
            value, onward, lambda gradient: self._replaced(intervention, point, gradient, t)[1]
        )


def _keep(points: dict[str, Point], name: str, value: Point, t: int | None) -> None:
    if t is None:
        points[name] = value
    else:
        over_time = points.setdefault(name, [])
        # Back-propagation comes to the last timestep first.
        over_time.insert(0 if name.startswith("backward/") else len(over_time), value)


def to_array(backend: Backend, point: Point) -> Array:
    """A trace point as an array: a list over time is stacked to [B, T, ...], Rows are filled up."""
    kept = to_trace(backend, point)
    return kept.dense() if isinstance(kept, Rows | Timesteps) else kept


def to_trace(backend: Backend, point: Point) -> Array | Rows | Timesteps:
    """A trace point as a trace takes it: arrays that share the memory of the tensors."""
    if isinstance(point, list):
        return Timesteps([backend.to_array(part) for part in point])
    if isinstance(point, Rows):
        rows, values = backend.to_array(point.rows), backend.to_array(point.values)
        return Rows(rows, values, point.shape)
    return backend.to_array(point)


def like(backend: Backend, point: Point, array: Array) -> Point:
    """An array in place of a trace point: in the rows that the point has, if it is Rows."""
    if not isinstance(point, Rows):
        return backend.to_tensor(array)
    trace = to_trace(backend, point)
    kept = trace.of(array) if isinstance(trace, Rows) else array
    if not isinstance(kept, Rows):
        return backend.to_tensor(kept)
    return Rows(point.rows, backend.to_tensor(kept.values), point.shape)
