"""`harness bench`: how fast comparing and tracing are, as ratios to named peers in the same run.

Every contestant is run once a round, in turn, so that a machine that slows down slows all of them;
the figures are medians over rounds with the spread (least and greatest) beside them.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from harness.compare import Tolerance, compare
from harness.compare.metrics import scan
from harness.trace import TraceWriter, check_trace
from harness.trace.statistics import describe


class Timing(msgspec.Struct, frozen=True):
    """Seconds of one contestant, its throughput, and its time as a ratio to the peer's."""

    name: str
    peer: str
    median_s: float
    least_s: float
    greatest_s: float
    gb_per_s: float
    ratio: float


def bench(
    elements: int = 5_000_000,
    rounds: int = 7,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, list[Timing]]:
    """Time the comparison of two arrays and the writing of a trace.

    `elements` is the size of each float32 array (both sides counted in the throughput), `rounds`
    how often everything is run. The first of each list is the peer: numpy.allclose, numpy.save.
    """
    drawn = np.random.default_rng(1)
    b = drawn.normal(size=elements).astype(np.float32)
    a = b * (1 + 1e-7 * drawn.normal(size=elements).astype(np.float32))
    allowed = Tolerance().allowance(describe("forward/h", b))
    comparing: dict[str, Callable[[], Any]] = {
        "numpy.allclose": lambda: np.allclose(a, b),
        "memory copy": lambda: (a.copy(), b.copy()),
        "scan (closeness and L2: what a diff needs of every pair)": lambda: scan(a, b, allowed),
        "compare (every figure: what it needs of a pair it reports)": lambda: compare(
            a, b, allowed
        ),
    }
    with tempfile.TemporaryDirectory() as folder:
        writing = _writers(Path(folder), a, b)
        seconds: dict[str, list[float]] = {name: [] for name in (*comparing, *writing)}
        for number in range(rounds):
            for name, contestant in (*comparing.items(), *writing.items()):
                start = time.perf_counter()
                contestant()
                seconds[name].append(time.perf_counter() - start)
            if progress:
                progress(number + 1, rounds)
    size = (a.nbytes + b.nbytes) / 1e9
    return {
        "diff": [_timing(name, "numpy.allclose", seconds, size) for name in comparing],
        "tracing": [_timing(name, "numpy.save", seconds, size) for name in writing],
    }


def _writers(folder: Path, a: NDArray[Any], b: NDArray[Any]) -> dict[str, Callable[[], Any]]:
    """Ways to bring two arrays to the disk, or to read them back and check them."""

    def trace() -> None:
        with TraceWriter(folder / "bench.trace", label="bench", dtype="float32") as writer:
            writer.write(1, {"a": a, "b": b})

    def save() -> None:
        np.save(folder / "a.npy", a)
        np.save(folder / "b.npy", b)

    return {
        "numpy.save": save,
        "TraceWriter (with hashes and statistics)": trace,
        "trace check (reads, hashes, statistics)": lambda: check_trace(folder / "bench.trace"),
    }


def _timing(name: str, peer: str, seconds: dict[str, list[float]], size: float) -> Timing:
    own = seconds[name]
    median = statistics.median(own)
    # Round by round, so that what slows a whole round cancels out.
    ratio = statistics.median(x / y for x, y in zip(own, seconds[peer], strict=True))
    return Timing(name, peer, median, min(own), max(own), size / median, ratio)
