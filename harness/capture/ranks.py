"""Which of the processes of one run this is."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from harness.trace.ranks import rank_folder
from harness.trace.schema import HEADER_FILE

PATIENCE = 20.0  # seconds in which the traces of the other ranks, which have the same steps, grow


def which_rank() -> tuple[int, int]:
    """The rank of this process, and how many there are; 0 of 1 where it trains alone.

    PyTorch says so where its process group is set up, and JAX; else the variables that torchrun
    sets do.
    """
    torch: Any = sys.modules.get("torch")
    distributed = getattr(torch, "distributed", None)
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    jax: Any = sys.modules.get("jax")
    if jax is not None and getattr(jax.distributed, "is_initialized", bool)():
        return jax.process_index(), jax.process_count()
    try:
        rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    except (KeyError, ValueError):
        return 0, 1
    return (rank, ranks) if 0 <= rank < ranks else (0, 1)


def await_others(trace: str, ranks: int) -> list[int]:
    """Wait until the traces of all ranks but the first are whole; which are not, and grow no more.

    `trace` is that of the first. What is said to have ended is read at once by whoever hears it.
    """
    folders = {rank: rank_folder(Path(trace).parent, rank) for rank in range(1, ranks)}
    seen, until, steps = -1, 0.0, _steps(Path(trace))
    while waiting := [rank for rank, folder in folders.items() if _steps(folder) != steps]:
        size = sum(_size(folders[rank]) for rank in waiting)
        if size != seen:
            seen, until = size, time.monotonic() + PATIENCE
        if time.monotonic() > until:
            break
        time.sleep(0.01)
    return waiting


def _steps(folder: Path) -> int | None:
    """How many steps a trace that is whole has; None for one that is not."""
    try:
        header = json.loads((folder / HEADER_FILE).read_bytes())
    except (OSError, ValueError):
        return None  # not there yet
    steps: int | None = header["steps"]
    return steps


def _size(folder: Path) -> int:
    try:
        return sum(file.stat().st_size for file in folder.iterdir())
    except OSError:
        return 0  # not there yet, or a file has just got its name
