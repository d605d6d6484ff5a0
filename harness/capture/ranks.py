"""Which of the processes of one run this is."""

from __future__ import annotations

import os
import sys
from typing import Any


def which_rank() -> tuple[int, int]:
    """The rank of this process, and how many there are; 0 of 1 where it trains alone.

    PyTorch says so where its process group is set up; else the variables that torchrun sets do.
    """
    torch: Any = sys.modules.get("torch")
    distributed = getattr(torch, "distributed", None)
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    try:
        rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    except (KeyError, ValueError):
        return 0, 1
    return (rank, ranks) if 0 <= rank < ranks else (0, 1)
