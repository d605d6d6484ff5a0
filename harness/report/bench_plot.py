"""The benchmark as a picture: speed, tracing, diff, growth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.bench.result import BenchResult, Fit, Row, Section, Spread
from harness.errors import HarnessError

BLUE, ORANGE, GREY, RED = "#2f6db3", "#e08b2c", "#9aa3ad", "#c23b3b"
COLORS = (ORANGE, BLUE, GREY, "#3f9a6b")
GROWTH = (
    ("full: time of a step", "full trace: step"),
    ("harness diff over sizes", "diff"),
    ("tiny model, stats: a run", "10 .. 10,000 steps: run"),
    ("tiny model, stats: harness diff", "10 .. 10,000 steps: diff"),
)


def plot_bench(result: BenchResult, path: str | Path) -> None:
    """Draw the ratios of every part, and how costs grow, into an image file.

    Raises HarnessError where matplotlib is not installed or the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise HarnessError("pictures need matplotlib: pip install 'twin-harness[plot]'") from None
    figure = Figure(figsize=(12, 9), layout="constrained")
    (speed, tracing), (diff, growth) = figure.subplots(2, 2)
    sections = result.sections
    _twins(speed, sections.get("twins"))
    _tracing(tracing, sections.get("tracing"))
    _diff(diff, sections.get("diff"))
    _growth(growth, [fit for section in sections.values() for fit in section.growth])
    try:
        figure.savefig(path, dpi=110)
    except (OSError, ValueError) as error:
        raise HarnessError(f"{path}: cannot be written: {error}") from None


def _twins(axes: Any, section: Section | None) -> None:
    """Words per second of every contestant, by group."""
    _title(axes, "Training speed", "words per second")
    rows = [row for row in section.rows if row.seconds] if section else []
    colors = {"twin": BLUE, "stoc": ORANGE, "matr": GREY}
    bars = [
        (f"{row.name}", (row.rate or 0) / 1000, colors[row.name[:4]], row.group) for row in rows
    ]
    _bars(axes, bars, "thousand words/s", digits=1)


def _tracing(axes: Any, section: Section | None) -> None:
    """Time of a traced step over the untraced one, by group."""
    _title(axes, "Cost of tracing", "time of a step / untraced")
    rows = [r for r in section.rows if r.seconds and r.name != "untraced"] if section else []
    colors = {"hash": GREY, "stats": BLUE, "stats, every 10": BLUE, "full": ORANGE}
    bars = [(row.name, _only(row), colors[row.name], row.group) for row in rows]
    _bars(axes, bars, "ratio", digits=2)
    axes.axvline(1, color=RED, linewidth=1, linestyle="--")


def _diff(axes: Any, section: Section | None) -> None:
    """Throughput of comparing, by group."""
    _title(axes, "Comparing", "GB/s, both sides counted")
    rows = [row for row in section.rows if row.seconds] if section else []
    bars = [
        (row.name, row.rate or 0, BLUE if "harness" in row.group + row.name else GREY, row.group)
        for row in rows
    ]
    _bars(axes, bars, "GB/s", digits=2)


def _only(row: Row) -> float:
    spreads: Sequence[Spread] = tuple(row.ratios.values())
    return spreads[0].median if spreads else 0.0


def _title(axes: Any, title: str, what: str) -> None:
    axes.set_title(f"{title}: {what}", loc="left", fontsize=11, fontweight="bold")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _bars(axes: Any, bars: Sequence[tuple[str, float, str, str]], unit: str, digits: int) -> None:
    """Horizontal bars with their values; the groups one under another with their names."""
    if not bars:
        axes.text(0.5, 0.5, "not measured", ha="center", color=GREY, transform=axes.transAxes)
        axes.set_axis_off()
        return
    place, places, before, names = 0.0, [], "", []
    for *_, group in bars:
        if group != before:
            place += 1.1  # room for the group's name
            names.append((place - 0.85, group))
            before = group
        places.append(place)
        place += 1
    axes.barh(places, [bar[1] for bar in bars], color=[bar[2] for bar in bars], height=0.75)
    axes.set_yticks(places, [bar[0] for bar in bars], fontsize=8)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(place - 0.4, -0.2)
    most = max(bar[1] for bar in bars)
    axes.set_xlim(0, most * 1.15)
    for at, (_, value, _, _) in zip(places, bars, strict=True):
        axes.text(value + most * 0.01, at, f"{value:.{digits}f}", va="center", fontsize=8)
    for at, group in names:
        axes.text(
            most * 0.006, at, group, va="center", fontsize=8, fontstyle="italic", color="#444444"
        )
    axes.set_xlabel(unit, fontsize=9)


def _growth(axes: Any, fits: Sequence[Fit]) -> None:
    """Costs over sizes, each relative to its first point, on logarithmic axes."""
    _title(axes, "Growth", "cost against size")
    found = {fit.what: fit for fit in fits if len(fit.x) > 1}
    drawn = [(found[what], label) for what, label in GROWTH if what in found]
    if not drawn:
        axes.text(0.5, 0.5, "not measured", ha="center", color=GREY, transform=axes.transAxes)
        axes.set_axis_off()
        return
    most = 1.0
    for (fit, label), color, mark in zip(drawn, COLORS, "osD^", strict=False):
        x, y = [v / fit.x[0] for v in fit.x], [v / fit.y[0] for v in fit.y]
        most = max(most, *x)
        slope = f"exponent {fit.exponent:.2f}"
        axes.plot(x, y, f"{mark}-", color=color, markersize=5, label=f"{label}, {slope}")
    axes.plot([1, most], [1, most], "--", color=RED, linewidth=1, label="linear")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("bytes, or steps, relative to the least", fontsize=9)
    axes.set_ylabel("seconds, relative to the least", fontsize=9)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, frameon=False)
