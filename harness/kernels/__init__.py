"""The choice between the compiled passes over elements (numba) and the same in NumPy.

Both give the same figures: counts, extremes and places to the last bit, sums up to the order of
adding. Importing numba takes most of a second, so that a process which only ever sees small tensors
never does; once it has, smaller ones profit too.

Machine code may be older than what it was made from, or wrong. So each process holds a compiled
pass against NumPy on a known case before it uses it, and does without once one has been wrong.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from contextlib import suppress
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.kernels.layout import RUN

PIECE = 1 << 18  # elements handed to a kernel at once: 1 or 2 MB, which stay in the second cache
LARGE = 1 << 18  # elements of a tensor that is worth the import

# Compares a pass of harness.kernels.passes for a dtype with the same in NumPy: the name of a
# figure that is wrong, or None.
Proof = Callable[[ModuleType, np.dtype[Any]], str | None]

_lock = threading.Lock()
_compiled: ModuleType | None = None
_missing = False  # numba cannot be imported
_distrusted = False  # a compiled pass was wrong
_proven: set[tuple[Proof, np.dtype[Any]]] = set()
_use: bool | None = None  # None: where numba can be imported; tests force one or the other


def choose(compiled: bool | None) -> None:
    """Use the compiled passes always (True), never (False) or where they pay (None).

    They have to prove themselves again.
    """
    global _use, _distrusted, _missing
    _use, _distrusted, _missing = compiled, False, False
    _proven.clear()


def kernels_for(
    array: NDArray[np.generic], proof: Proof, wanted: bool | None = None
) -> ModuleType | None:
    """The compiled passes (harness.kernels.passes), or None where NumPy is to do the work.

    `proof` is that of the pass which the caller is about to use. `wanted` is the caller's own
    choice, where it has made one.
    """
    if wanted is False and _use is None:
        return None
    if _use is False or _distrusted or array.dtype not in (np.float32, np.float64):
        return None
    if not array.dtype.isnative or not array.flags.aligned:
        return None
    if _use is None and not wanted and array.size < (RUN if _compiled else LARGE):
        return None
    if (proof, array.dtype) in _proven:
        return _compiled
    with _lock:  # numba may be needed first by two threads at once
        kernels = _load()
        return kernels if kernels and _prove(kernels, proof, array.dtype) else None


def in_use(size: int) -> bool:
    """Whether a compiled pass may have gone over an array of so many elements."""
    return bool(_proven) and not _distrusted and (_use is True or (_use is None and size >= RUN))


def distrust() -> None:
    """Do without compiled passes for the rest of the process."""
    global _distrusted
    _distrusted = True


def advice(elements: int) -> str | None:
    """What to install, where tensors of so many elements had to be left to NumPy."""
    if _missing and elements >= LARGE:
        return (
            "large tensors were compared with NumPy alone: with numba that takes a fraction of the "
            "time (pip install 'twin-harness[fast]')"
        )
    return None


def _load() -> ModuleType | None:
    global _compiled, _missing
    if _compiled is None and not _missing:
        try:
            from harness.kernels import passes

            passes.make(keep=True)
        except (ImportError, OSError):  # no numba, none for this interpreter, or told to do nothing
            _missing = True
            return None
        _compiled = passes
    return _compiled


def _prove(kernels: ModuleType, proof: Proof, dtype: np.dtype[Any]) -> bool:
    """Whether a pass is right on the known case; it is compiled, or read from the disk, by that."""
    key = (proof, dtype)
    if key not in _proven and not _distrusted:
        wrong = _first_wrong(kernels, proof, dtype)
        if wrong is None:
            _proven.add(key)
        else:
            distrust()
            warnings.warn(
                f"compiled code for {dtype.name} is wrong on a known case ({wrong}): NumPy does "
                "the work from here on",
                RuntimeWarning,
                stacklevel=2,
            )
    return key in _proven


def _first_wrong(kernels: ModuleType, proof: Proof, dtype: np.dtype[Any]) -> str | None:
    """A figure that a pass has wrong; it is made once more if it cannot be had from the disk."""
    with kernels.filling() as kept, suppress(Exception):  # a full disk, a file that was damaged
        if kept:
            return proof(kernels, dtype)
    _proven.clear()
    kernels.make(keep=False)
    try:
        return proof(kernels, dtype)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
