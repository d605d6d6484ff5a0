"""Sweeps: a table of points, and the perplexity against the setting that was swept."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.errors import HarnessError
from harness.report import terminal
from harness.report.plots import new_figure, save_figure
from harness.runs.result import SweepPoint, SweepResult

MOST_ROWS = 40  # of a table on a terminal


def show_sweep(result: SweepResult) -> None:
    """Perplexities by point, sides side by side; the best point of each side."""
    out, sides = terminal.console(), _by_side(result)
    grid = terminal.table("")
    for name in result.settings:
        grid.add_column(name, justify="right")
    for label in sides:
        grid.add_column(label, justify="right")
    rows = list(zip(*sides.values(), strict=True))
    every = -(-len(rows) // MOST_ROWS)
    for row in rows[::every]:
        grid.add_row(*row[0].point.values(), *(_number(p.perplexity) for p in row))
    out.print(grid)
    if every > 1:
        out.print(f"one of {every} of {len(rows)} points; all of them: {result.file}")
    for label, own in sides.items():
        best = min(own, key=lambda p: (p.perplexity != p.perplexity, p.perplexity))
        at = ", ".join(f"{name} {value}" for name, value in best.point.items())
        out.print(
            f"{label}: least perplexity of {result.steps} steps {_number(best.perplexity)}, at {at}"
        )


def _number(value: float) -> str:
    return f"{value:.2f}" if value < 1e5 else f"{value:.3g}"


def _by_side(result: SweepResult) -> dict[str, list[SweepPoint]]:
    found: dict[str, list[SweepPoint]] = {}
    for point in result.points:
        found.setdefault(point.side, []).append(point)
    return found


def sweep_figure(result: SweepResult, columns: Sequence[Sequence[str]] = ()) -> Any:
    """Perplexity against the setting, a line a side: a matplotlib Figure.

    `columns` are the sides of each panel (none: all in one). Raises HarnessError where there is
    more than one setting, or one that is no number, and where matplotlib is not installed.
    """
    sides = _by_side(result)
    if len(result.settings) != 1:
        raise HarnessError(
            f"--plot: a curve is drawn of one setting, and {', '.join(result.settings)} are swept"
        )
    (name,) = result.settings
    panels = columns or [list(sides)]
    figure = new_figure(max(8, 5 * len(panels)), 4.5)
    every = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axes, labels in zip(every, panels, strict=True):
        for k, label in enumerate(labels):
            try:
                at = [float(point.point[name]) for point in sides[label]]
            except ValueError as error:
                raise HarnessError(f"--plot: {name} is no number: {error}") from None
            line = ("-", "--", ":", "-.")[k % 4]
            axes.plot(at, [p.perplexity for p in sides[label]], line, label=label, linewidth=1.2)
        axes.set_yscale("log")
        axes.set_xlabel(name)
        axes.grid(alpha=0.3)
        axes.legend()
    every[0].set_ylabel(f"perplexity of {result.steps} steps")
    return figure


def plot_sweep(result: SweepResult, path: str | Path) -> None:
    """Draw it into an image file. Raises HarnessError as `sweep_figure`, and for the file."""
    save_figure(sweep_figure(result), path)
