"""The dtypes of a trace's tensors: NumPy's own, and the narrow floats that ml_dtypes gives it.

The narrow ones are no floats to NumPy (`dtype.kind`, `numpy.finfo`): what has to know asks here.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import ml_dtypes  # after this import numpy.dtype knows the names too
import numpy as np

from harness.trace.schema import FLOATS, INTEGERS

BETWEEN = " | "  # of the dtypes of two sides, where they are not the same

Dtype = str | np.dtype[Any]


@cache
def is_float(dtype: Dtype) -> bool:
    """Whether this is a floating-point dtype of the format ("float32 | float64": both)."""
    return all(np.dtype(name).name in FLOATS for name in _names(dtype))


@cache
def are_integers(a: Dtype, b: Dtype) -> bool:
    """Whether two dtypes are of integers or booleans, which one dtype of integers holds."""
    x, y = (np.dtype(name).name for name in (a, b))
    exact = x in (*INTEGERS, "bool") and y in (*INTEGERS, "bool")
    return exact and np.result_type(np.dtype(x), np.dtype(y)).kind in "iub"


@cache
def epsilon(*dtypes: Dtype) -> float | None:
    """The machine epsilon of the narrowest of these; None if one of them does not round."""
    infos = _infos(*dtypes)
    return max(float(info.eps) for info in infos) if infos else None


@cache
def smallest_normal(*dtypes: Dtype) -> float:
    """The smallest normal number that all of these floating-point dtypes hold."""
    return max(float(info.smallest_normal) for info in _infos(*dtypes))


@cache
def largest(*dtypes: Dtype) -> float:
    """The largest number that all of these floating-point dtypes hold."""
    return min(float(info.max) for info in _infos(*dtypes))


def common(a: Dtype, b: Dtype) -> np.dtype[Any]:
    """The dtype in which floats of these two are compared: the wider, and float32 at least.

    Where both are of one dtype that NumPy has, it is that one: float16 too.
    """
    x, y = np.dtype(a), np.dtype(b)
    if x == y and x.name in ("float16", "float32", "float64"):
        return x
    return np.dtype(np.float64 if np.float64 in (x, y) else np.float32)


def _names(*dtypes: Dtype) -> list[str]:
    return [name for dtype in dtypes for name in str(dtype).split(BETWEEN)]


def _infos(*dtypes: Dtype) -> list[Any]:
    info: Any = ml_dtypes.finfo
    floats = all(is_float(dtype) for dtype in dtypes)
    return [info(np.dtype(name)) for name in _names(*dtypes)] if floats else []
