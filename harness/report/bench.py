"""The benchmark as tables: for a terminal, and as Markdown for logs/."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from harness.bench.result import BenchResult, Fit, Row, Section, Spread, Target
from harness.errors import HarnessError
from harness.report.terminal import pairs, table

TITLES = {
    "twins": "Twins: speed against the stock model of the framework",
    "tracing": "Tracing: time of a step against the untraced step of the same twin",
    "record": "Recording: time of a step of a script against the same script, not recorded",
    "diff": "Diff: throughput, both sides counted",
    "startup": "Start-up: wall time of a command",
}
RATES = {"twins": "words/s", "diff": "GB/s"}
Cells = tuple[str, ...]


def show_bench(out: Console, result: BenchResult) -> None:
    """The targets first, then every part: ratios, times, what is missing."""
    for name, section in result.sections.items():
        if section.targets:
            _show(out, f"{name}: targets", *_targets(section))
        for group, rows in _groups(section):
            _show(out, f"{name}: {group}", *_rows(name, rows))
        if section.growth:
            _show(out, f"{name}: growth", *_growth(section.growth))
        if section.error:
            out.print(Text(f"  {name}: ended early: {section.error}", style="bold red"))
    out.print(pairs({**result.machine, **result.settings}.items()))


def write_bench(result: BenchResult, path: Path, picture: str | None) -> None:
    """All of it as Markdown, with the picture of that name. Raises HarnessError."""
    lines = [
        "# Benchmark",
        "",
        "`harness bench`: all contestants of a table once a round, in turn, one at a time. Figures "
        "are medians over rounds (least to greatest in brackets), ratios are taken round by round.",
        "",
        *[f"- {name}: {value}" for name, value in {**result.machine, **result.settings}.items()],
        "",
        *([f"![Ratios and growth]({picture})", ""] if picture else []),
        "## Targets",
        "",
    ]
    found = [_targets(section) for section in result.sections.values()]
    rows = [row for _, some in found for row in some]
    lines += _markdown(found[0][0], rows) if rows else ["None was measured."]
    for name, section in result.sections.items():
        lines += ["", f"## {TITLES[name]}", *_markdown_section(name, section)]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n", "utf-8")
    except OSError as error:
        raise HarnessError(f"{path}: cannot be written: {error}") from None


def _markdown_section(name: str, section: Section) -> list[str]:
    lines = []
    for group, rows in _groups(section):
        lines += ["", f"### {group}", "", *_markdown(*_rows(name, rows))]
    if section.growth:
        lines += ["", "### Growth", "", *_markdown(*_growth(section.growth))]
    if section.error:
        lines += ["", f"Ended early: {section.error}"]
    return lines


def _groups(section: Section) -> Iterable[tuple[str, list[Row]]]:
    """The rows by what they compete in, in their order."""
    found: dict[str, list[Row]] = {}
    for row in section.rows:
        found.setdefault(row.group, []).append(row)
    return found.items()


def _rows(part: str, rows: Sequence[Row]) -> tuple[Cells, list[Cells]]:
    """One table: ratios, rate, times and figures of contestants, or why one is missing."""
    peers = list(dict.fromkeys(peer for row in rows for peer in row.ratios))
    figures = list(dict.fromkeys(name for row in rows for name in row.figures))
    rate = [RATES[part]] if part in RATES else []
    heads = ("contestant", *peers, *rate, "time", *figures)
    cells: list[Cells] = []
    for row in rows:
        if row.seconds is None:
            cells.append((row.name, row.missing or "not available"))
            continue
        ratios = (_compared(row.ratios.get(peer)) for peer in peers)
        shown = [_rate(row.rate)] if rate else []
        sizes = (_bytes(row.figures.get(name)) for name in figures)
        cells.append((row.name, *ratios, *shown, _time(row.seconds), *sizes))
    return heads, cells


def _targets(section: Section) -> tuple[Cells, list[Cells]]:
    heads = ("target", "wanted", "measured", "")
    return heads, [
        (t.what, _wanted(t), _figure(t.measured, t.unit), _judgement(t)) for t in section.targets
    ]


def _wanted(target: Target) -> str:
    return f"{'>=' if target.at_least else '<='} {_figure(target.bound, target.unit)}"


def _judgement(target: Target) -> str:
    if target.measured is None:
        return "not available"
    return "met" if target.met else f"missed by {100 * (target.missed_by or 0):.0f}%"


def _growth(fits: Sequence[Fit]) -> tuple[Cells, list[Cells]]:
    heads = ("cost", "against", "exponent", "between the last two", "points")
    return heads, [
        (fit.what, fit.x_name, _slope(fit.exponent), _slope(fit.last), _points(fit)) for fit in fits
    ]


def _points(fit: Fit) -> str:
    unit = "B" if fit.x_name.startswith("bytes") else ""
    return ", ".join(
        f"{_figure(x, unit) if unit else f'{x:,.0f}'}: {_figure(y, fit.y_name)}"
        for x, y in zip(fit.x, fit.y, strict=True)
    )


def _slope(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _compared(value: Spread | None) -> str:
    if value is None:
        return "-"
    return f"{_ratio(value.median)} ({_ratio(value.least)} to {_ratio(value.greatest)})"


def _time(value: Spread) -> str:
    """Median, least and greatest in one unit."""
    unit, scale, digits = ("ms", 1e3, 1) if value.median < 1 else ("s", 1, 2)
    middle, least, most = (
        f"{scale * x:.{digits}f}" for x in (value.median, value.least, value.greatest)
    )
    return f"{middle} {unit} ({least} to {most})"


def _figure(value: float | None, unit: str) -> str:
    """A figure in its unit: "B" bytes, "s" seconds, else a ratio."""
    if value is None:
        return "-"
    return {"B": _bytes, "s": _seconds}.get(unit, _ratio)(value)


def _ratio(value: float) -> str:
    return f"{value:.2f}" if value < 100 else f"{value:.0f}"


def _rate(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


def _seconds(value: float) -> str:
    return f"{1000 * value:.1f} ms" if value < 1 else f"{value:.2f} s"


def _bytes(value: float | None) -> str:
    if value is None:
        return "-"
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if value >= size:
            return f"{value / size:.1f} {unit}"
    return f"{value:.0f} B"


def _show(out: Console, title: str, heads: Cells, rows: Iterable[Cells]) -> None:
    grid = table(title)
    for number, head in enumerate(heads):
        grid.add_column(head, justify="left" if not number else "right", overflow="fold")
    for row in rows:
        grid.add_row(*(_cell(value) for value in row))
    out.print(grid)
    out.print()


def _cell(value: str) -> Text:
    styles = {"met": "green", "missed": "bold red", "not": "yellow"}
    return Text(value, style=styles.get(value.split(" ")[0], ""))


def _markdown(heads: Cells, rows: Iterable[Cells]) -> list[str]:
    lines = [heads, tuple("---" for _ in heads)]
    # A row that only says why it is missing has fewer cells.
    lines += [row + ("",) * (len(heads) - len(row)) for row in rows]
    return [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in lines]
