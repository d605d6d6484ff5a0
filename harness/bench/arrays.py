"""Ways to compare two arrays, each timed when its name comes on standard input.

`python -m harness.bench.arrays LIBRARY DTYPE ELEMENTS`: one library a process, so that none is in
another's. Answers each name with a line of JSON: seconds, or what failed. What a framework has is
in its twin's package (pt_impl/bench/arrays.py), for nothing here imports one.
"""

from __future__ import annotations

import json
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.bench.commands import ALLCLOSE, COMPARE, COPY, POLYGRAPHY

Array = NDArray[Any]
Ways = Mapping[str, Callable[[], bool]]


def pair(dtype: str, elements: int) -> tuple[Array, Array]:
    """Two arrays that differ by a rounding or two, as twins do."""
    random = np.random.default_rng(1)
    b = random.standard_normal(elements).astype(dtype)
    noise = random.standard_normal(elements).astype(dtype)
    return b * (1 + np.finfo(dtype).eps * noise), b


def harness_ways(a: Array, b: Array) -> Ways:
    """A copy of both arrays into memory that is there, numpy.allclose, and our compare."""
    from harness.compare import Tolerance, compare
    from harness.trace.statistics import describe

    allowed = Tolerance().allowance(describe("forward/x", b))
    to = np.empty_like(a), np.empty_like(b)

    def copy() -> bool:
        np.copyto(to[0], a)
        np.copyto(to[1], b)
        return True

    return {
        COPY: copy,
        ALLCLOSE: lambda: np.allclose(a, b),
        COMPARE: lambda: compare(a, b, allowed).close,
    }


def polygraphy_ways(a: Array, b: Array) -> Ways:
    """Polygraphy's comparison of the outputs of two runners."""
    try:
        tool = import_module("polygraphy.comparator")
    except ModuleNotFoundError:
        raise RuntimeError("not installed") from None
    close = tool.CompareFunc.simple(check_shapes=True)
    x, y = (tool.IterationResult({"x": v}, runner_name=name) for name, v in (("a", a), ("b", b)))
    return {POLYGRAPHY: lambda: bool(close(x, y)["x"])}


def timed(way: Callable[[], bool]) -> float:
    """Seconds that a comparison took; it must find the arrays close, or it timed something else."""
    start = time.perf_counter()
    close = way()
    seconds = time.perf_counter() - start
    if not close:
        raise RuntimeError("it does not find two arrays close that differ by rounding")
    return seconds


def answer(make: Callable[[Array, Array], Ways], dtype: str, elements: int) -> None:
    """Answer names until standard input ends; `make` is given the pair at the first of them."""
    ways: Ways | None = None
    for line in sys.stdin:
        try:
            ways = ways or make(*pair(dtype, elements))
            reply: dict[str, object] = {"seconds": timed(ways[line.rstrip("\n")])}
        except Exception as error:
            traceback.print_exc()
            reply = {"failed": str(error) or type(error).__name__}
        print(json.dumps(reply), flush=True)


def main(argv: Sequence[str]) -> None:
    """Answer for a library (harness or polygraphy), a dtype and a number of elements."""
    library, dtype, elements = argv
    makers = {"harness": harness_ways, "polygraphy": polygraphy_ways}
    answer(makers[library], dtype, int(elements))


if __name__ == "__main__":
    main(sys.argv[1:])
