"""Pictures of results, by matplotlib, which is imported only when one is asked for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from harness.compare import DiffResult
from harness.compare.diff import StepSummary, Value
from harness.errors import HarnessError


def plot_diff(result: DiffResult, path: str | Path) -> None:
    """Losses of both sides, and how far apart the sides are, step by step, into an image file.

    Draws the steps that `result` holds: all of them if the diff was made with `all`. Raises
    HarnessError where matplotlib is not installed or the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise HarnessError(
            "--plot needs matplotlib: pip install 'twin-harness[plot]', or leave it out"
        ) from None
    figure = Figure(figsize=(8, 5.5), layout="constrained")
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
