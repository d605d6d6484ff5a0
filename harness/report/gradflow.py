"""Gradient flow on a terminal and as a picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.compare.gradflow import Flow, GradFlow, mean_of
from harness.report import terminal
from harness.report.plots import new_figure, save_figure

BAR = 24  # characters of the longest bar
DECADES = 8  # that a bar shows at most
MOST_LABELS = 60  # of a picture


def show_gradflow(result: GradFlow) -> None:
    """Bars of every parameter, on a log scale, both sides one below the other; what is odd."""
    out = terminal.console()
    first, last = result.steps[0], result.steps[-1]
    when = f"step {first}" if first == last else f"{len(result.steps)} steps, {first} to {last}"
    out.print(f"gradients, {result.figure} of each parameter ({when}; bars are logarithmic)")
    _table(out, "parameter", result.figure, {f.label: f.sizes for f in result.flows}, result)
    layers = {f.label: f.layers() for f in result.flows}
    if len(next(iter(layers.values()))) < len(result.names):
        _table(out, "layer", result.figure, layers)
    for flow in result.flows:
        for reached, lost in flow.blocked:
            out.print(
                f"{flow.label}: the signal is blocked: the gradient with respect to {lost} is "
                f"zero, and that of {reached}, before it in the backward pass, is not"
            )
        said = []
        if flow.complete and not flow.missing and not flow.zero:
            said.append("every parameter has a gradient")
        if flow.signal and not flow.blocked:
            said.append("nothing blocks the signal")
        if said:
            out.print(f"{flow.label}: {'; '.join(said)}")


def _table(
    out: Any,
    heading: str,
    figure: str,
    sides: Mapping[str, Mapping[str, Sequence[float | None]]],
    marked: GradFlow | None = None,
) -> None:
    """A row of each name and side, with a bar; and what is odd of it, where it is `marked`."""
    names = list(dict.fromkeys(name for side in sides.values() for name in side))
    means = {label: {n: mean_of(row) for n, row in side.items()} for label, side in sides.items()}
    known = [x for side in means.values() for x in side.values() if x and math.isfinite(x)]
    top = max(known, default=1.0)
    low = max(min(known, default=1.0), top / 10**DECADES)
    marks = {flow.label: flow for flow in marked.flows} if marked else {}
    grid = terminal.table("")
    for text in (heading, "side"):
        grid.add_column(text)
    grid.add_column(figure, justify="right")
    grid.add_column("")
    grid.add_column("")
    for name in names:
        for k, (label, side) in enumerate(means.items()):
            value = side.get(name)
            mark = _mark(marks[label], name) if marks else ""
            text = "" if value is None else f"{value:.3g}"
            grid.add_row("" if k else name, label, text, _bar(value, low, top), mark)
    out.print(grid)


def _mark(flow: Flow, name: str) -> str:
    return flow.mark(name) if name in flow.sizes else f"no such parameter in {flow.label}"


def _bar(value: float | None, low: float, top: float) -> str:
    if not value or not math.isfinite(value):
        return ""
    decades = math.log10(top / low) or 1.0
    share = 1 - math.log10(top / value) / decades if value < top else 1.0
    return "█" * max(1, round(BAR * share))


def gradflow_figure(result: GradFlow) -> Any:
    """Paired bars of one step, or a heat map a side over several: a matplotlib Figure.

    Raises HarnessError where matplotlib is not installed.
    """
    names = result.names
    if len(result.steps) == 1:
        return _bars(result, names)
    height = 2 + 0.22 * min(len(names), MOST_LABELS)
    figure = new_figure(5 + 4 * len(result.flows), height)
    axes = figure.subplots(1, len(result.flows), squeeze=False, sharey=True)[0]
    every = [_logs(flow.sizes, names) for flow in result.flows]
    finite = [x for rows in every for row in rows for x in row if math.isfinite(x)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 1.0)
    image = None
    for place, flow, rows in zip(axes, result.flows, every, strict=True):
        image = place.imshow(
            rows, aspect="auto", interpolation="nearest", vmin=max(low, high - DECADES), vmax=high,
            extent=(0.5, len(result.steps) + 0.5, len(names) - 0.5, -0.5), cmap="viridis",
        )  # fmt: skip
        place.set_facecolor("tab:red")  # zero, or none at all
        place.set_title(flow.label, loc="left")
        place.set_xlabel(f"step ({result.steps[0]} to {result.steps[-1]})")
    _name(axes[0].set_yticks, names)
    figure.colorbar(image, ax=list(axes), label=f"log10 of {result.figure} (red: zero or none)")
    return figure


def _bars(result: GradFlow, names: Sequence[str]) -> Any:
    figure = new_figure(9, 2 + 0.28 * min(len(names), MOST_LABELS))
    axes = figure.subplots()
    width = 0.8 / len(result.flows)
    for k, flow in enumerate(result.flows):
        values = [mean_of(flow.sizes.get(name, ())) or math.nan for name in names]
        at = [i + (k - (len(result.flows) - 1) / 2) * width for i in range(len(names))]
        axes.barh(at, values, width, label=flow.label)
        for i, name in zip(at, names, strict=True):
            mark = _mark(flow, name)
            if mark:
                axes.text(0.01, i, f"{flow.label}: {mark}", transform=axes.get_yaxis_transform(),
                          va="center", fontsize=7, color="tab:red")  # fmt: skip
    axes.set_xscale("log")
    axes.invert_yaxis()
    _name(axes.set_yticks, names)
    axes.set_xlabel(f"{result.figure}, step {result.steps[0]}")
    axes.grid(alpha=0.3, axis="x")
    axes.legend()
    return figure


def _name(set_ticks: Any, names: Sequence[str]) -> None:
    every = -(-len(names) // MOST_LABELS)
    set_ticks(range(0, len(names), every), list(names)[::every], fontsize=7)


def _logs(sizes: Mapping[str, Sequence[float | None]], names: Sequence[str]) -> list[list[float]]:
    """log10 of the sizes [names, steps]; NaN of what is zero, missing or not finite."""
    count = max((len(row) for row in sizes.values()), default=0)
    return [
        [
            math.log10(x) if x and math.isfinite(x) else math.nan
            for x in sizes.get(n, [None] * count)
        ]
        for n in names
    ]


def plot_gradflow(result: GradFlow, path: str | Path) -> None:
    """Draw it into an image file. Raises HarnessError as `gradflow_figure`, and for the file."""
    save_figure(gradflow_figure(result), path)
