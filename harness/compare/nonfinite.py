"""Where the first number of a trace that is not finite arose, and from what: by its index alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import msgspec
import numpy as np

from harness.models.graph import Graph, below, name_of
from harness.spec import CHECKPOINT
from harness.trace import StepEntry, TensorEntry, Trace, TraceError
from harness.trace.ranks import single
from harness.trace.schema import INDEX_FILE, LINE_LIMIT

# Slots that are made of the squares of gradients.
SQUARES = ("v", "square", "accumulator")
KEYS = (b'"nan":', b'"inf":')  # of an index's line
# What a step computes before its gradients starts from what the step before left.
EARLY = ("inputs/", "state/in/", "forward/")


class Magnitude(msgspec.Struct, frozen=True):
    """The largest absolute value of the finite elements of a tensor."""

    step: int
    tensor: str
    value: float


class Nonfinite(msgspec.Struct, frozen=True):
    """The first tensor, in execution order, with an element that is not finite.

    `what` is "Inf" where it has any, "NaN" where it has NaN alone; `nan`, `inf` and `size` count
    its elements. `before` is the tensor just before it (of this step, or of the one before),
    `largest` the one with the greatest magnitude of those it can have been made from; None where
    nothing is known of any. `why` says what overflows, where that is certain.
    """

    step: int
    tensor: str
    what: Literal["NaN", "Inf"]
    nan: int
    inf: int
    size: int
    before: str | None
    largest: Magnitude | None
    why: str | None = None

    def sentence(self, label: str) -> str:
        """All of that in a line, of the side `label`."""
        counts = f"{self.inf or self.nan} of {self.size} elements"
        counts += f", and {self.nan} NaN" if self.inf and self.nan else ""
        text = f"{label}: the first number that is not finite is {self.what} in {self.tensor} of "
        text += f"step {self.step} ({counts})"
        if self.largest:
            of = f" of step {self.largest.step}" if self.largest.step != self.step else ""
            text += f"; before it, the largest number is {self.largest.value:.3g} in "
            text += f"{self.largest.tensor}{of}"
        return text + (self.why or "")


def nonfinite_notes(a: Trace, b: Trace) -> list[str]:
    """A sentence for each of two traces that holds a number that is not finite."""
    alike = a.header.label == b.header.label
    notes = []
    for whole, (part, trace) in ((t, one) for t in (a, b) for one in single(t).items()):
        label = (str(whole.path) if alike else whole.header.label) + part
        try:
            found = first_nonfinite(trace)
        except TraceError as error:
            notes.append(f"{label}: not searched for NaN and Inf: {error}")
            continue
        notes += [found.sentence(label)] if found else []
    return notes


def first_nonfinite(trace: Trace) -> Nonfinite | None:
    """Where the first number that is not finite arose; None where none did, or at level "hash".

    Raises TraceError for a step that is damaged.
    """
    before: int | None = None
    for step, suspicious in _looked_through(trace):
        if suspicious:
            entry = trace.entry(step)
            for place, tensor in enumerate(entry.tensors):
                if tensor.nan or tensor.inf:
                    last = trace.entry(before) if before == step - 1 else None
                    return _found(entry, place, last, trace.graph)
        before = step
    return None


def _looked_through(trace: Trace) -> Iterator[tuple[int, bool]]:
    """Every step, and whether its line of the index may count NaN or Inf. No line is decoded."""
    path = trace.path / INDEX_FILE
    if not trace.steps:
        return
    try:
        with open(path, "rb") as lines:
            for step in trace.steps:
                line = lines.readline(LINE_LIMIT)
                # Counts of nothing are as many as counts: searches of fixed bytes, which are fast.
                yield step, any(line.count(key) != line.count(key + b"0") for key in KEYS)
    except OSError as error:
        raise TraceError(f"{path}: cannot be read: {error}") from None


def _found(entry: StepEntry, place: int, last: StepEntry | None, graph: Graph | None) -> Nonfinite:
    tensor, earlier = entry.tensors[place], entry.tensors[:place]
    known = [found for t in earlier for found in _magnitude(entry.step, t)]
    if last and tensor.name.startswith(EARLY):
        left = [t for t in last.tensors if t.name.startswith(CHECKPOINT)]
        known += [found for t in left for found in _magnitude(last.step, t)]
    largest = max(known, key=lambda found: found.value, default=None)
    before = earlier[-1].name if earlier else last.tensors[-1].name if last else None
    return Nonfinite(
        entry.step,
        tensor.name,
        "Inf" if tensor.inf else "NaN",
        tensor.nan or 0,
        tensor.inf or 0,
        tensor.size,
        before,
        largest,
        _why(tensor, earlier, largest, graph),
    )


def _magnitude(step: int, tensor: TensorEntry) -> Iterator[Magnitude]:
    """The magnitude of a floating-point tensor, if any of its elements is finite."""
    if tensor.dtype.startswith("float") and tensor.min is not None and tensor.max is not None:
        yield Magnitude(step, tensor.name, max(abs(tensor.min), abs(tensor.max)))


def _why(
    tensor: TensorEntry,
    earlier: Sequence[TensorEntry],
    largest: Magnitude | None,
    graph: Graph | None,
) -> str | None:
    """What cannot be held, as the end of the sentence; None where no overflow is certain."""
    if not tensor.dtype.startswith("float"):
        return None
    known = {found.tensor: found.value for t in earlier for found in _magnitude(0, t)}
    bound = float(np.finfo(tensor.dtype).max)
    holds = f"{tensor.dtype} cannot hold (largest {bound:.2g})"
    read = _read(tensor.name, known, graph)
    source = max(read, key=lambda name: known[name], default=None)
    if source is None:
        return None
    value, group = known[source], tensor.name.partition("/")[0]
    if tensor.name == "update/global_norm" or group == "optimizer":
        if value * value > bound:
            return _clause(source, value, f"whose square {holds}", largest)
        squares = sum((t.l2 or 0.0) * (t.l2 or 0.0) for t in earlier if t.name in read)
        if squares > bound and group != "optimizer":
            return f"; the squares of all of grads/* add up to {squares:.3g}, which {holds}"
    elif group == "params" and "update/learning_rate" in known:
        rate = known["update/learning_rate"]
        if value * rate > bound:
            product = f"whose product with the learning rate {rate:.3g} {holds}"
            return _clause(source, value, product, largest)
    elif tensor.name == "forward/loss":
        return _exponential(tensor, next(t for t in earlier if t.name == source), largest)
    return None


def _read(name: str, known: Iterable[str], graph: Graph | None) -> list[str]:
    """The tensors whose overflow would explain that a tensor is not finite, of those `known`.

    What the exponentials of a loss are of is known where the graph is.
    """
    known = list(known)
    group, _, rest = name.partition("/")
    parameter, _, slot = rest.rpartition("/")
    clipped = {"params": f"update/clipped/{rest}", "optimizer": f"update/clipped/{parameter}"}
    if name == "update/global_norm":
        return [n for n in known if n.startswith("grads/")]
    if name == "forward/loss":
        stage = graph.value(name) if graph else None
        losses = [x for x in below(stage) if x.op == "cross_entropy"] if stage else []
        return [n for n in known if any(n == name_of(x.inputs[0]) for x in losses)]
    if group == "optimizer" and slot not in SQUARES:
        return []
    # With slots, what is added to a parameter is not the gradient times the rate.
    if group == "params" and any(n.startswith(f"optimizer/{rest}/") for n in known):
        return []
    return [n for n in known if n == clipped.get(group)]


def _exponential(loss: TensorEntry, logits: TensorEntry, largest: Magnitude | None) -> str | None:
    """Whether the exponential of the logits overflows, and not the loss itself."""
    bound = float(np.finfo(loss.dtype).max)
    low, high = logits.min or 0.0, logits.max or 0.0
    if high <= math.log(bound) or (high - low) * logits.size > bound:
        return None
    text = f"whose exp {loss.dtype} cannot hold (of {math.log(bound):.1f} and less), unless the "
    return _clause(logits.name, high, f"{text}largest is taken off first", largest)


def _clause(source: str, value: float, text: str, largest: Magnitude | None) -> str:
    if largest and (largest.tensor, largest.value) == (source, value):
        return f", {text}"
    return f"; {source} reaches {value:.3g}, {text}"
