"""The folder in which numba keeps the machine code of the kernels from process to process.

It is named by everything that the code depends on: numba itself looks only at the one file in which
a function stands, and takes constants and functions of other files as they were.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock
import llvmlite  # type: ignore[import-untyped]
import numba
import numpy as np
import platformdirs
import xxhash
from numba.core.registry import cpu_target

_settings: Any = numba.config
WAIT = 120.0  # seconds for another process that fills the folder: it compiles for some ten


def folder() -> Path | None:
    """The folder, made if need be: below NUMBA_CACHE_DIR or the user's own folder for caches.

    None where it cannot be made, or where the sources cannot be read.
    """
    base = Path(_settings.CACHE_DIR or platformdirs.user_cache_dir("twin-harness", False))
    try:
        path = base / f"kernels-{digest(Path(__file__).parent)}"
        if not path.is_absolute():  # there is no home
            return None
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        return None
    return path


def disabled() -> bool:
    """Whether numba leaves functions as they are (NUMBA_DISABLE_JIT)."""
    return bool(_settings.DISABLE_JIT)


def digest(sources: Path) -> str:
    """Of the kernels' sources, of what compiles them, and of the processor they are made for."""
    target = cpu_target.target_context.codegen().magic_tuple()
    versions = (numba.__version__, llvmlite.__version__, np.__version__, platform.python_version())
    found = xxhash.xxh3_128(repr((*versions, sys.implementation.cache_tag, target)).encode())
    for file in sorted(sources.glob("*.py")):
        found.update(f"\0{file.name}\0".encode() + file.read_bytes())
    return found.hexdigest()


@contextmanager
def locked(path: Path | None) -> Iterator[bool]:
    """Whether nobody else can fill the folder, if there is one, for as long as the block lasts.

    numba reads and writes an index there, which two processes at once would spoil.
    """
    lock = None if path is None else filelock.FileLock(path / "lock", timeout=WAIT)
    try:
        if lock:
            lock.acquire()
    except (OSError, NotImplementedError):  # cannot be written, or locked, or never came free
        yield False
        return
    try:
        yield True
    finally:
        if lock:
            lock.release()


def compiled(function: Callable[..., Any], flags: dict[str, Any], path: Path | None) -> Any:
    """`function`, to be compiled when first called; its code is kept at `path`."""
    made = numba.njit(**flags)(function)
    if path is not None:
        own = _settings.CACHE_DIR
        _settings.CACHE_DIR = str(path)  # which is read here and now
        try:
            made.enable_caching()
        except RuntimeError:  # a function of no file, or a folder that has gone
            pass
        finally:
            _settings.CACHE_DIR = own
    return made
