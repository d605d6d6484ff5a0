"""Pictures of results, by matplotlib, which is imported only when one is asked for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from harness.compare import DiffResult
from harness.compare.diff import StepSummary, Value
from harness.errors import HarnessError
from harness.scoreboard.result import FuzzResult


def plot_diff(result: DiffResult, path: str | Path) -> None:
    """Losses of both sides, and how far apart the sides are, step by step, into an image file.

    Draws the steps that `result` holds: all of them if the diff was made with `all`. Raises
    HarnessError where matplotlib is not installed or the file cannot be written.
    """
    figure = new_figure(8, 5.5)
    top, bottom = figure.subplots(2, sharex=True)
    _losses(top, result)
    _distances(bottom, result)
    first = result.first_divergence
    if first:
        for axes in (top, bottom):
            axes.axvline(first.step, color="tab:red", linestyle="--", linewidth=1)
        top.set_title(f"{result.labels[0]} and {result.labels[1]} part: {first.tensor}", loc="left")
    else:
        top.set_title(f"{result.labels[0]} and {result.labels[1]}: {result.status}", loc="left")
    save_figure(figure, path)


def plot_fuzz(result: FuzzResult, path: str | Path) -> None:
    """The share of injections found, and placed rightly, against their relative size.

    Raises HarnessError as `plot_diff` does.
    """
    figure = new_figure(8, 4)
    axes = figure.subplots()
    for dtype, color in (("float32", "tab:blue"), ("float64", "tab:orange")):
        bins = [b for b in result.curve if b.dtype == dtype]
        found = [b.found / b.cases for b in bins]
        middles = [(b.low * b.high) ** 0.5 for b in bins]
        axes.plot(middles, found, "o-", color=color, label=f"{dtype}: found, of all")
        above = [b for b in bins if b.above]
        middles = [(b.low * b.high) ** 0.5 for b in above]
        placed = [b.placed_above / b.above for b in above]
        label = f"{dtype}: placed, of those above the noise"
        axes.plot(middles, placed, "x", color=color, label=label)
    axes.set_xscale("log")
    axes.set_ylim(-0.03, 1.06)
    axes.set_xlabel("relative size of the disturbance")
    axes.set_ylabel("share")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower center")
    save_figure(figure, path)


def new_figure(width: float, height: float) -> Any:
    """An empty figure, in inches. Raises HarnessError where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise HarnessError(
            "pictures need matplotlib: pip install 'twin-harness[plot]', or leave --plot out"
        ) from None
    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: Any, path: str | Path) -> None:
    """Write a figure. Raises HarnessError where it cannot be written."""
    try:
        figure.savefig(path, dpi=110)
    except (OSError, ValueError) as error:
        raise HarnessError(f"--plot {path}: cannot be written: {error}") from None


def _losses(axes: Any, result: DiffResult) -> None:
    steps = [row.step for row in result.steps]
    a, b = result.labels
    axes.plot(steps, _numbers(row.loss_b for row in result.steps), "o-", ms=3, label=b)
    axes.plot(steps, _numbers(row.loss_a for row in result.steps), "s--", ms=3, label=a)
    values = [x for row in result.steps for x in (row.loss_a, row.loss_b) if isinstance(x, float)]
    if values and min(values) > 0 and max(values) > 20 * min(values):
        axes.set_yscale("log")
    axes.set_ylabel("loss")
    axes.legend()


def _distances(axes: Any, result: DiffResult) -> None:
    rows: Sequence[StepSummary] = [r for r in result.steps if r.worst_rel_l2_eps]
    axes.plot([r.step for r in rows], [r.worst_rel_l2_eps for r in rows], "o-", ms=3, color="black")
    if rows:
        axes.set_yscale("log")
    axes.set_ylabel("worst relative L2 distance\n(machine epsilons)")
    axes.set_xlabel("step")
    axes.grid(alpha=0.3)


def _numbers(values: Iterable[Value | None]) -> list[float]:
    """Figures as they can be drawn: what is missing or not finite leaves a gap."""
    return [x if isinstance(x, float) else float("nan") for x in values]
