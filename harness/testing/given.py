"""What a test hands over to be compared: a trace in any form, or arrays that are made one."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from harness.capture import Recorder
from harness.errors import HarnessError
from harness.trace import Trace, TraceWriter, open_trace
from harness.trace.accept import accept
from harness.trace.dtypes import is_float, largest

VALUE = "value"  # the name of an array that was given without one


class Arrays(NamedTuple):
    """Arrays by name, none of them a trace yet."""

    tensors: Mapping[str, Any]
    dtype: str


def is_trace(given: Any) -> bool:
    """Whether what was given is a trace, or was meant as one."""
    return isinstance(given, str | os.PathLike | Recorder | TraceWriter | Trace)


def opened(given: Any, roles: Sequence[str] = ()) -> Trace:
    """The trace that was given, if it can be a proof of anything.

    Raises HarnessError for one that there is not, or that is not complete: its recorder may still
    be open.
    """
    if isinstance(given, Recorder):
        path = Path(given.run.trace)
        if not path.exists():
            raise HarnessError(
                f"{path}: nothing was recorded: put every step into `with rec.step(..)`, inside of "
                "`with harness.record(..) as rec`, and compare after that block"
            )
        remedy = "compare after the block `with harness.record(..) as rec` has ended"
    else:
        path = Path(given.path if isinstance(given, Trace | TraceWriter) else given)
        remedy = "its writer is still open, or its run was stopped; compare what came to its end"
    trace = open_trace(path, roles)
    if not trace.header.complete:
        raise HarnessError(f"{path} is not complete ({len(trace.steps)} steps so far): {remedy}")
    return trace


def arrays(a: Any, b: Any) -> tuple[Arrays, Arrays]:
    """Arrays, numbers, or mappings of them, as those of two traces.

    Raises HarnessError for what is no array of numbers.
    """
    given: list[dict[str, Any]] = [dict(_flat(x)) for x in (a, b)]
    found: list[dict[str, Any]] = [{}, {}]
    for name in {**given[0], **given[1]}:
        for mine, own, other in zip(found, given, given[::-1], strict=True):
            if name in own:
                mine[name] = _array(name, own[name], other.get(name))
    one, two = (Arrays(tensors, _dtype(tensors)) for tensors in found)
    return one, two


def unlike_all(a: Arrays, b: Arrays) -> list[str]:
    """Why no array of one side can be compared with one of the other; empty where any can."""
    lines = []
    for side, own, other in (("a", a, b), ("b", b, a)):
        missing = [name for name in other.tensors if name not in own.tensors]
        lines += [f"not in {side}: {', '.join(missing)}"] if missing else []
    for name in (name for name in a.tensors if name in b.tensors):
        x, y = (np.asarray(side.tensors[name]) for side in (a, b))
        if x.shape != y.shape:
            lines.append(f"another shape: {name} {list(x.shape)} | {list(y.shape)}")
        elif x.dtype != y.dtype and not (is_float(str(x.dtype)) and is_float(str(y.dtype))):
            lines.append(f"another dtype: {name} {x.dtype} | {y.dtype}")
        else:
            return []
    return lines


def write(given: Arrays, path: Path, label: str) -> Path:
    """Arrays as a trace of one step."""
    with TraceWriter(path, label=label, dtype=given.dtype) as trace:
        trace.write(1, given.tensors)
    return path


def _flat(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested mappings, by their paths."""
    if not isinstance(tree, Mapping):
        yield prefix or VALUE, tree
        return
    for key, value in tree.items():
        yield from _flat(value, f"{prefix}/{key}" if prefix else str(key))


def _array(name: str, value: Any, other: Any) -> Any:
    """An array as a trace takes it; a number of Python's own has the dtype of the other side.

    Only where that can hold it: 0.5 is no integer.
    """
    try:
        if not _is_number(value):
            return accept(value, "float64")
        if other is None or _is_number(other):
            return np.array(value, float if float in (type(value), type(other)) else None)
        dtype = str(getattr(accept(other, "float64"), "dtype", "float64"))
        if is_float(dtype):
            return accept(float(value), dtype if abs(value) <= largest(dtype) else "float64")
        own = np.array(value)
        with np.errstate(all="ignore"):
            cast = own.astype(dtype)
        return cast if cast == own else own
    except (ValueError, OverflowError) as error:
        raise HarnessError(f"{name}: {error}") from None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool | np.generic)


def _dtype(tensors: Mapping[str, Any]) -> str:
    """The dtype of a trace of these: that of the first of them that are floats."""
    found = (str(tensor.dtype) for tensor in tensors.values() if hasattr(tensor, "dtype"))
    return next(filter(is_float, found), "float64")
