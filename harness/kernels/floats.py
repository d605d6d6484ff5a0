"""The standard floating-point mode, whatever mode the caller's thread was set to.

`torch.set_flush_denormal(True)` and its like make a thread, and all threads started from it, take
numbers under the smallest normal one for zero. What is said of a tensor must not depend on that.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

ROOM = 512  # bytes: more than any C library's fenv_t


class _Environment(NamedTuple):
    """C's functions for the floating-point mode of a thread, and its default."""

    get: Callable[[Any], int]
    set: Callable[[Any], int]
    default: Any


def _environment() -> _Environment | None:
    """None where the C library has no such functions, or where its default is not known."""
    default: Any
    try:
        library: Any = ctypes.CDLL(None)
        if not hasattr(library, "fesetenv"):
            library = ctypes.CDLL("libm.so.6")
        if sys.platform == "darwin":
            default = ctypes.byref(ctypes.c_char.in_dll(library, "_FE_DFL_ENV"))
        elif sys.platform == "linux":
            default = ctypes.c_void_p(-1)  # FE_DFL_ENV of glibc and of musl
        else:
            return None
        return _Environment(library.fegetenv, library.fesetenv, default)
    except (AttributeError, OSError, TypeError, ValueError):
        return None


_ENVIRONMENT = _environment()


@contextmanager
def standard_floats() -> Iterator[None]:
    """Compute in the standard mode within the block (or the function that this decorates).

    The mode of the calling thread alone, which is put back at the end. Threads that are started
    within the block inherit it. Where C has no such functions nothing changes.
    """
    if _ENVIRONMENT is None:
        yield
        return
    found = ctypes.create_string_buffer(ROOM)
    _ENVIRONMENT.get(found)
    _ENVIRONMENT.set(_ENVIRONMENT.default)
    try:
        yield
    finally:
        _ENVIRONMENT.set(found)
