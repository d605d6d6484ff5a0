"""Every stage that a trace declares, computed again in float64 from the trace alone."""

import numpy as np

import harness
from harness.models.evaluate import Values
from harness.trace.dtypes import epsilon


def disagreeing(path, most=64.0):
    """What is not what its stage makes of its operands: (step, tensor, eps); and how many are."""
    trace = harness.open_trace(path)
    opened = {number: trace.step(number) for number in trace.steps}
    entries = {n: {e.name: e for e in step.entries} for n, step in opened.items()}

    def read(number, back, name):
        known = entries.get(number - back, {})
        return opened[number - back].read(known[name]) if name in known else None

    wrong, right = [], 0
    for number in trace.steps:
        values = Values(lambda back, name, n=number: read(n, back, name), number, trace.graph)
        for name, stage in trace.graph.stages.items():
            if name not in entries[number]:
                continue
            mine = np.asarray(read(number, 0, name), np.float64)
            try:
                made = np.asarray(values.value(stage.value), np.float64)
            except Exception as error:
                wrong.append((number, name, repr(error)))
                continue
            if made.shape != mine.shape:
                wrong.append((number, name, f"{made.shape} for {mine.shape}"))
                continue
            eps = epsilon(entries[number][name].dtype)
            scale = float(np.abs(mine).max(initial=0.0)) or 1e-300
            apart = float(np.abs(made - mine).max(initial=0.0)) / scale / eps
            if apart <= most:
                right += 1
            else:
                wrong.append((number, name, apart))
    return wrong, right


def without_stage(path, prefixes=("forward/", "backward/", "grads/", "params/", "optimizer/")):
    """The tensors of a late step of which it is not known how they are made."""
    trace = harness.open_trace(path)
    names = [e.name for e in trace.entry(trace.steps[-1]).tensors]
    return [n for n in names if n.startswith(prefixes) and n not in trace.graph.stages]
