"""What a line of the index may say: checked before anything else is made of it."""

from __future__ import annotations

import re
from collections.abc import Container

import numpy as np

from harness.models.entries import misplaced, why_not
from harness.spec import Level
from harness.trace.dtypes import is_float
from harness.trace.schema import (
    AXES_LIMIT,
    DTYPES,
    NAME_LIMIT,
    ROWS_LIMIT,
    SKETCH_BYTES,
    StepEntry,
    TensorEntry,
    TraceError,
    check_name,
    quote,
)

HASH_TEXT = re.compile("[0-9a-f]{32}")
COUNTS = ("nan", "inf", "zero")


def check_step(
    entry: StepEntry, step: int, level: Level, steps: Container[int], where: str
) -> None:
    """Raise TraceError unless this line of the index can be true of `step`."""
    if entry.step != step:
        raise TraceError(f"{where}: says step {entry.step}: the index changed while it was read")
    seen: dict[str, TensorEntry] = {}
    for tensor in entry.tensors:
        wrong = check_name(tensor.name)
        if wrong:
            raise TraceError(f"{where}: {quote(tensor.name)} cannot name a tensor: it {wrong}")
        if tensor.name in seen:
            raise TraceError(f"{where}: {tensor.name} stands there twice")
        wrong = _wrong(tensor, level) or _misplaced(tensor, step, steps, seen)
        if wrong:
            raise TraceError(f"{where}: {tensor.name}: {wrong}")
        if tensor.own and not entry.bytes:
            raise TraceError(f"{where}: {tensor.name} is kept in a file of 0 bytes")
        seen[tensor.name] = tensor
    wrong = misplaced(entry.tensors)
    if wrong:
        raise TraceError(f"{where}: {wrong}")


def _wrong(tensor: TensorEntry, level: Level) -> str | None:
    """What an entry says that is true of no tensor in a trace of this level."""
    dtype, shape = tensor.dtype, tensor.shape
    if dtype not in DTYPES or len(shape) > AXES_LIMIT or min(shape, default=0) < 0:
        return f"{quote(dtype)} {quote(list(shape))} is no dtype and shape of a tensor"
    if not HASH_TEXT.fullmatch(tensor.hash):
        return f"{quote(tensor.hash)} is no hash"
    known = [getattr(tensor, name) is not None for name in COUNTS]
    if any(known) != (level != "hash") or (level != "hash" and not all(known)):
        return f'its counts of NaN, Inf and zero are not those of level "{level}"'
    if len(tensor.sketch or b"") != (SKETCH_BYTES if level == "stats" else 0):
        return f'a sketch of {len(tensor.sketch or b"")} bytes in a trace of level "{level}"'
    if level == "full" and tensor.stored is None:
        return 'its elements are not kept in a trace of level "full"'
    if tensor.op is not None or tensor.operands or tensor.args:
        wrong = why_not(tensor.op, tensor.operands, tensor.args)
        if wrong:
            return wrong
    if tensor.source is not None and not _is_line(tensor.source):
        return f"{quote(tensor.source)} is no line of a program"
    if tensor.stored == "rows":
        large = tensor.size * np.dtype(dtype).itemsize > ROWS_LIMIT
        if large or len(shape) != 2 or not is_float(dtype):
            return f"{dtype} {quote(list(shape))} is not stored as rows"
    return None


def _is_line(source: str) -> bool:
    return 0 < len(source) <= NAME_LIMIT and source.isprintable()


def _misplaced(
    tensor: TensorEntry, step: int, steps: Container[int], seen: dict[str, TensorEntry]
) -> str | None:
    """Why the elements cannot lie where an entry says they do, as far as one line tells."""
    place = tensor.same_as
    if place is None:
        return None
    named = f"it lies at {quote(place.name)} of step {place.step}"
    if tensor.stored is None:
        return f"{named}, and is not stored"
    if place.step > step or place.step not in steps:
        return f"{named}, which is no earlier step of this trace"
    if place.step == step and not (place.name in seen and same_place(seen[place.name], tensor)):
        return f"{named}, where no such tensor comes before it"
    return None


def same_place(origin: TensorEntry, entry: TensorEntry) -> bool:
    """Whether the elements of `entry` can be those that `origin` keeps in its own place."""
    return origin.own and (origin.identity, origin.stored) == (entry.identity, entry.stored)


def possible(entry: TensorEntry) -> bool:
    """Whether a tensor of this size can have these statistics."""
    counts = [getattr(entry, name) or 0 for name in COUNTS]
    low, high = entry.min, entry.max
    ordered = (low is None) == (high is None) and (low or 0) <= (high or 0)
    return min(counts) >= 0 and sum(counts) <= entry.size and ordered and (entry.l2 or 0) >= 0
