"""Every stage that a trace declares, computed again in float64 from the trace alone."""

import numpy as np

import harness
from harness.models.evaluate import Values
from harness.models.graph import Graph
from harness.trace.dtypes import epsilon

MADE = ("forward/", "backward/", "grads/", "params/", "optimizer/")


def read_all(path):
    """The tensors of every step: arrays, and their dtypes."""
    trace = harness.open_trace(path)
    steps = {number: trace.step(number) for number in trace.steps}
    arrays = {n: {e.name: step.read(e) for e in step.entries} for n, step in steps.items()}
    return trace, arrays, {e.name: e.dtype for step in steps.values() for e in step.entries}


def evaluated(path):
    """Of every step: its number, the stages, the tensors, and what the stages make of them."""
    trace, steps, _ = read_all(path)
    graph = trace.graph or Graph({})
    for number, tensors in steps.items():

        def read(back, name, number=number):
            return steps.get(number - back, {}).get(name)

        yield number, graph, tensors, Values(read, number, graph)


def disagreeing(path, most=64.0, updates=None, noise=0.0, without=(), nan=False):
    """What is not what its stage makes of it: (step, tensor, eps); and the names of what is.

    `updates`: the units of epsilon that are allowed of parameters; `noise`: what is so small is
    zero but for rounding; `without`: ends of names that are left out; `nan`: so is what has NaN.
    """
    wrong, right = [], []
    dtypes = read_all(path)[2]
    for number, graph, tensors, values in evaluated(path):
        for name, stage in graph.stages.items():
            if name not in tensors or name.endswith(without or ("nothing",)):
                continue
            mine = np.asarray(tensors[name], np.float64)
            try:
                made = np.asarray(values.value(stage.value), np.float64)
            except Exception as error:
                wrong.append((number, name, repr(error)))
                continue
            if nan and (np.isnan(mine).any() or np.isnan(made).any()):
                continue
            if made.shape != mine.shape:
                wrong.append((number, name, f"{made.shape} for {mine.shape}"))
                continue
            scale = float(np.abs(mine).max(initial=0.0))
            apart = float(np.abs(made - mine).max(initial=0.0))
            eps = apart / (scale or 1e-300) / epsilon(dtypes[name])
            allowed = updates if updates and name.startswith("params/") else most
            if eps <= allowed or (scale < noise and apart <= noise):
                right.append(name)
            else:
                wrong.append((number, name, eps))
    return wrong, right


def without_stage(path, prefixes=MADE):
    """The tensors of a late step of which it is not known how they are made."""
    trace, steps, _ = read_all(path)
    names = list(steps[trace.steps[-1]])
    return [n for n in names if n.startswith(prefixes) and n not in trace.graph.stages]
