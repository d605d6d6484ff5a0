"""A step of a model's graph, stage by stage, by the formulas of harness.models.ops.

Stages that feed one another through time are run together, timestep by timestep; what in them does
not wait for the timestep before is made for all timesteps at once.
"""

import numpy as np

from harness.models.evaluate import apply, shift
from harness.models.graph import TIME, below, is_ref, name_of, references
from harness.models.ops import find


class Execution:
    """One step: what it was given, and what its stages have made so far."""

    def __init__(self, graph, given, before, step):
        """Nothing is made yet.

        Args:
            graph: the Graph of the model.
            given: arrays of this step by the names under which they are traced.
            before: those of the step before.
            step: the step, from 1.

        """
        self.graph, self.step, self.made, self.before = graph, step, dict(given), before
        self._values = {}

    def run(self, stages, see):
        """Run stages in order; see(name, value, t) returns what goes on in a value's place."""
        for group in groups(stages):
            if len(group) == 1 and not _own(group):
                name = group[0].out.name
                self.made[name] = see(name, np.asarray(self.value(group[0].value)), None)
            else:
                self._over_time(group, see)

    def value(self, root):
        """An expression over what has been made."""
        for x in below(root):
            if x not in self._values:
                inputs = [self._values[i] for i in x.inputs]
                self._values[x] = self._read(x) if is_ref(x) else apply(x, inputs, self.step)
        return self._values[root]

    def _read(self, x):
        name, time, first = name_of(x), x.arg("time"), x.arg("first")
        if x.arg("back"):
            return self.before[name]
        found = self.made[name]
        return shift(found, time, self.made[first] if first else None) if time else found

    def _over_time(self, group, see):
        """Run stages that feed one another, from the first timestep or from the last."""
        names = {stage.out.name for stage in group}
        waits = {x for s in group for x in below(s.value) if _waits(x, names)}
        steps = range(self._length(group, waits))
        made = {name: {} for name in names}
        for t in reversed(steps) if any(x.arg("time") > 0 for x in _own(group)) else steps:
            values = {}
            for stage in group:
                for x in below(stage.value):
                    if x not in values:
                        values[x] = self._at(x, t, values, waits, made)
                name = stage.out.name
                made[name][t] = see(name, np.asarray(values[stage.value]), t)
        for name in names:
            self.made[name] = np.stack([made[name][t] for t in steps], axis=1)  # [B, T, ..]

    def _length(self, group, waits):
        """How many timesteps there are: those of what the stages read."""
        read = [x for s in group for x in below(s.value) if x not in waits and self._timed(x)]
        return max(self.value(x).shape[1] for x in read)

    def _at(self, x, t, values, waits, made):
        """A node at timestep `t`."""
        if x not in waits:
            whole = self.value(x)
            if not self._timed(x):
                return whole
            return whole[:, t if whole.shape[1] > 1 else 0]
        if not is_ref(x):
            return apply(x, [values[i] for i in x.inputs], self.step)
        name, there, first = name_of(x), t + x.arg("time"), x.arg("first")
        if there in made[name]:
            return made[name][there]
        if first:
            return self.made[first]
        # Nothing comes back from after the last timestep.
        return np.zeros_like(self.made[name.replace("backward/", "forward/", 1)][:, t])

    def _timed(self, x):
        """Whether a node has an axis of timesteps."""
        if is_ref(x):
            return TIME in self.graph.axes(name_of(x))[1:2]
        if x.op in ("const", "step") or find(x.op).over_time:
            return False
        return any(self._timed(i) for i in x.inputs)


def groups(stages):
    """Lists of the stages in their order, those in one that feed one another through time."""
    at, found, start = {stage.out.name: i for i, stage in enumerate(stages)}, [], 0
    while start < len(stages):
        end = i = start
        while i <= end:
            reads = [at.get(name_of(x), -1) for x in references(stages[i].value) if x.arg("time")]
            end, i = max([end, *reads]), i + 1
        found.append(list(stages[start : end + 1]))
        start = end + 1
    return found


def _own(group):
    """The references of a group to itself, at another timestep."""
    names = {stage.out.name for stage in group}
    return [
        x
        for stage in group
        for x in references(stage.value)
        if name_of(x) in names and x.arg("time")
    ]


def _waits(x, names):
    """Whether a node is made of any of these tensors."""
    return any(name_of(y) in names for y in references(x))
