"""PyTorch's comparison of two arrays, timed as harness.bench.arrays times the others."""

import sys

from harness.bench.arrays import answer
from harness.bench.commands import TORCH


def ways(a, b):
    """PyTorch's comparison, which raises where the arrays are not close."""
    import torch  # here, so that where it is missing the answer says so

    x, y = torch.from_numpy(a), torch.from_numpy(b)
    return {TORCH: lambda: torch.testing.assert_close(x, y) is None}


if __name__ == "__main__":
    library, dtype, elements = sys.argv[1:]
    answer(ways, dtype, int(elements))
