"""Which of the processes of one run this is."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

from harness.trace.ranks import rank_folder
from harness.trace.schema import HEADER_FILE

PATIENCE = 60.0  # seconds in which the other ranks, which have the same steps, have to end
WHOLE = b'"complete": true'


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
    if jax is not None and jax.distributed.is_initialized():
        return jax.process_index(), jax.process_count()
    try:
        rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    except (KeyError, ValueError):
        return 0, 1
    return (rank, ranks) if 0 <= rank < ranks else (0, 1)


def await_others(trace: str, ranks: int) -> None:
    """Wait until the traces of all ranks but the first are whole, or for as long as is fair.

    `trace` is that of the first. What is said to have ended is read at once by whoever hears it.
    """
    whole, until = Path(trace).parent, time.monotonic() + PATIENCE
    waiting = [rank_folder(whole, rank) / HEADER_FILE for rank in range(1, ranks)]
    while waiting and time.monotonic() < until:
        waiting = [header for header in waiting if not _whole(header)]
        time.sleep(0.01)


def _whole(header: Path) -> bool:
    try:
        return WHOLE in header.read_bytes()
    except OSError:
        return False  # not there yet
