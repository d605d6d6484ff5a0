"""Ways to compare two arrays, each timed when its name comes on standard input.

`python -m bench_impl.arrays LIBRARY DTYPE ELEMENTS`: one library a process, so that no framework is
in another's. Answers each name with a line of JSON: seconds, or what failed.
"""

import json
import sys
import time
import traceback

import numpy as np

from harness.bench.commands import ALLCLOSE, COMPARE, COPY, POLYGRAPHY, TORCH


def pair(dtype, elements):
    """Two arrays that differ by a rounding or two, as twins do."""
    drawn = np.random.default_rng(1)
    b = drawn.standard_normal(elements).astype(dtype)
    noise = drawn.standard_normal(elements).astype(dtype)
    return b * (1 + np.finfo(dtype).eps * noise), b


def harness_ways(a, b):
    """A copy of both arrays into memory that is there, numpy.allclose, and our compare."""
    from harness.compare import Tolerance, compare
    from harness.trace.statistics import describe

    allowed = Tolerance().allowance(describe("forward/h", b))
    to = np.empty_like(a), np.empty_like(b)

    def copy():
        np.copyto(to[0], a)
        np.copyto(to[1], b)
        return True

    return {
        COPY: copy,
        ALLCLOSE: lambda: np.allclose(a, b),
        COMPARE: lambda: compare(a, b, allowed).close,
    }


def torch_ways(a, b):
    """PyTorch's comparison, which raises where the arrays are not close."""
    import torch

    x, y = torch.from_numpy(a), torch.from_numpy(b)
    return {TORCH: lambda: torch.testing.assert_close(x, y) is None}


def polygraphy_ways(a, b):
    """Polygraphy's comparison of the outputs of two runners."""
    try:
        from polygraphy.comparator import CompareFunc, IterationResult
    except ModuleNotFoundError:
        raise RuntimeError("not installed") from None
    close = CompareFunc.simple(check_shapes=True)
    x, y = IterationResult({"x": a}, runner_name="a"), IterationResult({"x": b}, runner_name="b")
    return {POLYGRAPHY: lambda: bool(close(x, y)["x"])}


def timed(way):
    """Seconds that a comparison took; it must find the arrays close, or it timed something else."""
    start = time.perf_counter()
    found = way()
    seconds = time.perf_counter() - start
    if not found:
        raise RuntimeError("it does not find two arrays close that differ by rounding")
    return seconds


def main(library, dtype, elements):
    """Answer names until standard input ends."""
    makers = {"harness": harness_ways, "torch": torch_ways, "polygraphy": polygraphy_ways}
    ways = None
    for line in sys.stdin:
        try:
            ways = ways or makers[library](*pair(dtype, elements))
            answer = {"seconds": timed(ways[line.rstrip("\n")])}
        except Exception as error:
            traceback.print_exc()
            answer = {"failed": str(error) or type(error).__name__}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
