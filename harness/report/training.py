"""Curves of training: as a table, as a picture, as events for TensorBoard."""

from __future__ import annotations

from itertools import zip_longest
from pathlib import Path
from typing import Any

from harness.data.checkpoint import Epoch
from harness.data.corpus import perplexity
from harness.errors import HarnessError
from harness.report import terminal
from harness.report.plots import new_figure, save_figure
from harness.runs.result import TrainResult


def show_training(result: TrainResult) -> None:
    """Perplexities of every epoch, sides side by side; the test; where the sides are apart."""
    out, curves = terminal.console(), result.curves
    grid = terminal.table("")
    for heading in ("Epoch", "lr"):
        grid.add_column(heading, justify="right")
    for label in curves:
        grid.add_column(f"{label} train", justify="right")
        grid.add_column(f"{label} valid", justify="right")
    for row in zip_longest(*(curve.epochs for curve in curves.values())):
        known = next(epoch for epoch in row if epoch)
        cells = [text for epoch in row for text in _cells(epoch)]
        grid.add_row(str(known.epoch), f"{known.lr:.6g}", *cells)
    tests = [cell for c in curves.values() for cell in ("", _number(c.test_perplexity))]
    grid.add_row("test", "", *tests)
    if result.entropy is not None:
        least = _number(perplexity(result.entropy))
        grid.add_row("least", "", *["", least] * len(curves))
    out.print(grid)
    if result.gap:
        gap = result.gap
        out.print(
            f"{gap.a} and {gap.b}: validation perplexities at most {100 * gap.relative:.3g} % "
            f"apart (epoch {gap.epoch})"
        )
    for label, curve in curves.items():
        speed = f"{curve.speed:,.0f} tokens a second; " if curve.speed else ""
        out.print(f"{label}: {speed}{curve.metrics}, {curve.weights}")


def _cells(epoch: Epoch | None) -> tuple[str, str]:
    if epoch is None:
        return "", ""
    return _number(epoch.train_perplexity), _number(epoch.valid_perplexity)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}" if value < 1e6 else f"{value:.3g}"


def training_figure(result: TrainResult) -> Any:
    """Perplexity against epochs, and how far the sides are apart: a matplotlib Figure.

    Raises HarnessError where matplotlib is not installed.
    """
    several = len(result.curves) > 1
    figure = new_figure(8, 5.5 if several else 4)
    heights = (3, 1) if several else (1,)
    panels = figure.subplots(len(heights), squeeze=False, sharex=True, height_ratios=heights)[:, 0]
    top, bottom = panels[0], panels[-1]
    *_, reference = result.curves
    for k, (label, curve) in enumerate(result.curves.items()):
        at = [e.epoch for e in curve.epochs]
        line = ("o-", "s--", "^:")[k]
        top.plot(at, [e.valid_perplexity for e in curve.epochs], line, ms=3, label=f"{label} valid")
        color = top.lines[-1].get_color()
        train = [e.train_perplexity for e in curve.epochs]
        top.plot(at, train, line, ms=2, alpha=0.4, color=color, label=f"{label} train")
        if several and label != reference:
            _draw_apart(bottom, result, label, reference)
    top.set_yscale("log")
    top.set_ylabel("perplexity")
    top.grid(alpha=0.3, which="both")
    top.legend()
    bottom.set_xlabel("epoch")
    return figure


def _draw_apart(axes: Any, result: TrainResult, label: str, reference: str) -> None:
    pairs = zip(result.curves[label].epochs, result.curves[reference].epochs, strict=False)
    apart = [
        (a.epoch, 100 * (x / y - 1))
        for a, b in pairs
        if (x := a.valid_perplexity) is not None and (y := b.valid_perplexity) is not None
    ]
    axes.plot(
        [epoch for epoch, _ in apart], [percent for _, percent in apart], "o-", ms=3, label=label
    )
    axes.axhline(0, color="gray", linewidth=0.8)
    axes.set_ylabel(f"over {reference}\n(valid, %)")
    axes.legend()
    axes.grid(alpha=0.3)


def plot_training(result: TrainResult, path: str | Path) -> None:
    """Draw it into an image file. Raises HarnessError as `training_figure`, and for the file."""
    save_figure(training_figure(result), path)


class Events:
    """Writes every epoch for TensorBoard, into a folder a side."""

    def __init__(self, folder: str | Path) -> None:
        """Raises HarnessError where tensorboardX is not installed."""
        try:
            from tensorboardX import SummaryWriter  # type: ignore[import-untyped]
        except ModuleNotFoundError:
            raise HarnessError(
                "--tensorboard needs tensorboardX: pip install 'twin-harness[tensorboard]', or "
                "leave it out: LABEL.jsonl has the same numbers"
            ) from None
        self._kind, self._folder = SummaryWriter, Path(folder) / "tensorboard"
        self._writers: dict[str, Any] = {}

    def __call__(self, label: str, epoch: Epoch) -> None:
        """Add an epoch of a side."""
        writer = self._writers.get(label)
        if writer is None:
            folder = str(self._folder / label)
            writer = self._writers[label] = self._kind(folder, purge_step=epoch.epoch)
        numbers = {
            "perplexity/train": epoch.train_perplexity,
            "perplexity/valid": epoch.valid_perplexity,
            "learning_rate": epoch.lr,
        }
        for name, value in numbers.items():
            if value is not None:
                writer.add_scalar(name, value, epoch.epoch)
        writer.flush()

    def close(self) -> None:
        """All that was added is on the disk."""
        for writer in self._writers.values():
            writer.close()
