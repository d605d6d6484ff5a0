"""The choice between the compiled passes over elements (numba) and the same in NumPy.

Both give the same figures: counts, extremes and places to the last bit, sums up to the order of
adding. Importing numba takes most of a second, so that a process which only ever sees small tensors
never does; once it has, smaller ones profit too.
"""

from __future__ import annotations

import threading
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from harness.kernels.layout import RUN

PIECE = 1 << 18  # elements handed to a kernel at once: 1 or 2 MB, which stay in the second cache
LARGE = 1 << 18  # elements of a tensor that is worth the import

_lock = threading.Lock()
_compiled: ModuleType | None = None
_use: bool | None = None  # None: where numba can be imported; tests force one or the other


def choose(compiled: bool | None) -> None:
    """Use the compiled passes always (True), never (False) or where they pay (None)."""
    global _use
    _use = compiled


def kernels_for(array: NDArray[np.generic]) -> ModuleType | None:
    """The compiled passes (harness.kernels.compiled), or None where NumPy is to do the work."""
    if _use is False or array.dtype not in (np.float32, np.float64):
        return None
    if not array.dtype.isnative or (_use is None and array.size < (RUN if _compiled else LARGE)):
        return None
    return _load()


def _load() -> ModuleType | None:
    global _compiled, _use
    with _lock:  # numba may be needed first by two threads at once
        if _compiled is None:
            try:
                from harness.kernels import compiled
            except ImportError:  # no numba, or none for this interpreter
                _use = False
                return None
            _compiled = compiled
    return _compiled
