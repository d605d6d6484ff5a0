"""How large the gradients are, parameter by parameter and step by step, and where they stop.

The picture is that of the mean absolute gradient of each parameter: one near zero for several
steps is where the error signal is blocked.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

from harness.compare.diff import labels_of
from harness.errors import HarnessError
from harness.trace import Alignment, Step, TensorEntry, Trace, open_trace

Figure = Literal["mean |g|", "RMS"]
FAINT = 1e-4  # of the median of the parameters of a step
GRADIENT, SIGNAL, PARAMETER = "grads/", "backward/", "params/"


class Flow(msgspec.Struct, frozen=True):
    """The gradients of one side: `sizes` of each parameter, one a step (None: it has none there).

    `signal` has the same of the gradients with respect to activations, as the backward pass goes.
    `missing` are parameters without any gradient, `zero` those whose gradients are all zero,
    `faint` those below FAINT of the median at every step. `blocked` are pairs of activations: the
    one that the signal still reaches, and the next in the pass, which it never does. `complete` is
    whether the trace has gradients and the weights, so that one without a gradient is known.
    """

    label: str
    sizes: dict[str, list[float | None]]
    signal: dict[str, list[float | None]]
    missing: tuple[str, ...] = ()
    zero: tuple[str, ...] = ()
    faint: tuple[str, ...] = ()
    blocked: tuple[tuple[str, str], ...] = ()
    complete: bool = False

    def mark(self, name: str) -> str:
        """What is odd of a parameter, in words; "" where nothing is."""
        marks = {
            "no gradient": self.missing,
            "zero": self.zero,
            f"under {FAINT:g} of the median": self.faint,
        }
        return next((word for word, names in marks.items() if name in names), "")

    def layers(self) -> dict[str, list[float | None]]:
        """The mean over the parameters of each layer: of all whose names begin alike."""
        found: dict[str, list[list[float | None]]] = {}
        for name, sizes in self.sizes.items():
            found.setdefault(name.rpartition("/")[0] or name, []).append(sizes)
        return {
            name: [mean_of(column) for column in zip(*rows, strict=True)]
            for name, rows in found.items()
        }


class GradFlow(msgspec.Struct, frozen=True):
    """The gradients of one trace, or of two, at `steps`; `figure` is what `sizes` are.

    The mean absolute element where the traces keep all elements, else the root of the mean square.
    """

    steps: tuple[int, ...]
    figure: Figure
    flows: tuple[Flow, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """All parameters, in the order of the first side."""
        return tuple(dict.fromkeys(name for flow in self.flows for name in flow.sizes))


def gradflow(
    a: str | Path,
    b: str | Path | None = None,
    *,
    steps: tuple[int, int | None] = (1, None),
    roles: Sequence[str] = (),
    alignment: Alignment | str | Path | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> GradFlow:
    """The gradients of trace `a`, beside those of `b` where there is one.

    Args:
        a, b: traces of any program, of level full or stats.
        steps: the first and the last one to look at (None: all).
        roles, alignment: as for `harness.diff`.
        progress: called with (steps done, steps in all).
    Raises HarnessError for traces without gradients, without common steps, or of hashes alone.
    """
    traces = [open_trace(a, roles, alignment if b else None)]
    if b:
        traces.append(open_trace(b, roles, alignment, "b"))
    chosen = _chosen(traces, steps)
    whole = all(
        step.holds(entry)
        for trace in traces
        for step in (trace.step(chosen[0]),)
        for entry in step.entries
        if entry.name.startswith((GRADIENT, SIGNAL))
    )
    size = _mean_absolute if whole else _root_mean_square
    total = len(chosen) * len(traces)
    ticks = itertools.count(1)
    flows = [_flow(trace, chosen, size, lambda: progress(next(ticks), total)) for trace in traces]
    if len(flows) == 2:
        names = labels_of(flows[0].label, flows[1].label)
        flows = [msgspec.structs.replace(f, label=n) for f, n in zip(flows, names, strict=True)]
    return GradFlow(chosen, "mean |g|" if whole else "RMS", tuple(flows))


def _chosen(traces: Sequence[Trace], steps: tuple[int, int | None]) -> tuple[int, ...]:
    """The steps that all traces have, of those that are asked for."""
    first, last = steps
    common = set(traces[0].steps).intersection(*(t.steps for t in traces))
    found = tuple(n for n in sorted(common) if n >= first and (last is None or n <= last))
    if not found:
        have = "; ".join(
            f"{t.path} has steps {t.steps[0]} to {t.steps[-1]}" if t.steps else f"{t.path} has none"
            for t in traces
        )
        raise HarnessError(f"--steps {first}:{last or ''}: no such steps: {have}")
    return found


Size = Callable[[Step, TensorEntry], float | None]


def _mean_absolute(step: Step, entry: TensorEntry) -> float | None:
    values = step.view(entry) if step.holds(entry) else None
    if values is None:
        return _root_mean_square(step, entry)
    return float(np.abs(values, dtype=np.float64).mean()) if values.size else None


def _root_mean_square(step: Step, entry: TensorEntry) -> float | None:
    if entry.nan or entry.inf:
        return math.nan
    if entry.l2 is None:
        # A value too large for a double; a trace of hashes has no figures at all.
        return math.inf if entry.max is not None else None
    return entry.l2 / math.sqrt(entry.size) if entry.size else None


def _flow(trace: Trace, steps: Sequence[int], size: Size, tick: Callable[[], None]) -> Flow:
    """The gradients of one trace."""
    sizes: dict[str, list[float | None]] = {}
    signal: dict[str, list[float | None]] = {}
    parameters: dict[str, None] = {}
    known = False
    for place, number in enumerate(steps):
        step = trace.step(number)
        for entry in step.entries:
            phase, _, name = entry.name.partition("/")
            if phase + "/" == PARAMETER:
                parameters[name] = None
            found = {GRADIENT: sizes, SIGNAL: signal}.get(phase + "/")
            if found is not None:
                value = size(step, entry)
                known = known or value is not None
                row = found.setdefault(name, [None] * len(steps))
                row[place] = value
        tick()
    if not sizes and not signal:
        raise HarnessError(
            f"{trace.path}: no gradients (grads/*, backward/*) in it: trace them, or say which "
            "they are (--role 'GRAD/*=grads')"
        )
    if not known:
        raise HarnessError(f"{trace.path}: hashes alone say nothing of sizes: trace at level stats")
    missing = tuple(name for name in parameters if name not in sizes) if sizes else ()
    sizes |= {name: [None] * len(steps) for name in missing}
    told = bool(parameters) and bool(sizes)
    zero = tuple(n for n, row in sizes.items() if n not in missing and _all_zero(row))
    faint = tuple(n for n in _faint(sizes) if n not in zero)
    blocked = tuple(_blocked(signal))
    return Flow(trace.header.label, sizes, signal, missing, zero, faint, blocked, told)


def _all_zero(row: Sequence[float | None]) -> bool:
    return all(x in (0.0, None) for x in row) and any(x is not None for x in row)


def _faint(sizes: dict[str, list[float | None]]) -> Iterator[str]:
    """Parameters whose gradients are small at every step, beside those of the others."""
    columns = list(zip(*sizes.values(), strict=True))
    medians = [_median([x for x in column if x]) for column in columns]
    for name, row in sizes.items():
        pairs = [(x, m) for x, m in zip(row, medians, strict=True) if x is not None and m]
        if pairs and all(x < FAINT * m for x, m in pairs):
            yield name


def _median(values: Sequence[float]) -> float | None:
    finite = [x for x in values if math.isfinite(x)]
    return float(np.median(finite)) if finite else None


def mean_of(values: Sequence[float | None]) -> float | None:
    """The mean of those that are there."""
    known = [x for x in values if x is not None]
    return sum(known) / len(known) if known else None


def _blocked(signal: dict[str, list[float | None]]) -> Iterator[tuple[str, str]]:
    """Where the backward pass goes on with zeros alone, after an activation that it reaches."""
    before = None
    for name, row in signal.items():
        dead = _all_zero(row)
        if dead and before is not None:
            yield before, name
        before = None if dead else name
