"""The trace points of one step: what each stage made, and what the next is given."""

import numpy as np

from harness.trace import Rows, Timesteps


class Points:
    """The trace points of one step in execution order.

    Every stage hands what it made to `see` and goes on with what comes back: the same array,
    unless an intervention (harness.trace.Intervention) puts another in its place. Stages of
    back-propagation do so as well, under names "backward/...".
    """

    def __init__(self, intervention=None, watch=True):
        """`watch`: whether to keep the points; an intervention acts either way."""
        self.intervention = intervention
        self.watch = watch or intervention is not None
        self.seen = {}
        self.gone_on = {}

    def see(self, name, value, t=None):
        """What goes on in place of `value`, which is kept; at timestep `t` if there is one."""
        own = onward = value
        if self.intervention is not None:
            own, onward = self._replaced(name, value, t)
        if name.startswith("forward/"):
            # Back-propagation reads it, watched or not: derivatives hold where the step went on.
            _keep(self.gone_on, name, onward, t)
        if self.watch:
            _keep(self.seen, name, own, t)
        return onward

    def within(self, prefix):
        """`see` for the stages of a part of the model, named from there."""
        return lambda name, value, t: self.see(f"{prefix}/{name}", value, t)

    def _replaced(self, name, value, t):
        array = to_numpy(value)
        own = self.intervention.own(name, t, array)
        onward = self.intervention.onward(name, t, own)
        if onward is array:
            return value, value
        return like(value, own), like(value, onward)


def _keep(points, name, value, t):
    if t is None:
        points[name] = value
    else:
        over_time = points.setdefault(name, [])
        # Back-propagation comes to the last timestep first.
        over_time.insert(0 if name.startswith("backward/") else len(over_time), value)


def to_numpy(point):
    """A trace point as an array: a list over time is stacked to [B, T, ...], Rows are filled up."""
    kept = to_trace(point)
    return kept.dense() if isinstance(kept, Rows | Timesteps) else kept


def to_trace(point):
    """A trace point as a trace takes it: arrays that share the memory of the tensors."""
    if isinstance(point, list):
        return Timesteps([array(part) for part in point])
    if isinstance(point, Rows):
        return Rows(array(point.rows), array(point.values), point.shape)
    return array(point)


def like(point, array):
    """An array in place of a trace point: in the rows that the point has, if it is Rows."""
    if not isinstance(point, Rows):
        return to_tensor(array)
    kept = to_trace(point).of(array)
    if not isinstance(kept, Rows):
        return to_tensor(kept)
    return Rows(point.rows, to_tensor(kept.values), point.shape)


def array(tensor):
    """A tensor as an array; on the CPU it shares the tensor's memory."""
    return np.asarray(tensor)


def to_tensor(array):
    """An array as a tensor on the run's device; the tensor does not share its memory."""
    return np.array(array)
