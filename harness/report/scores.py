"""The scoreboard and the injections as text: for a terminal, and as Markdown for logs/."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from rich.console import Console
from rich.text import Text

from harness.errors import HarnessError
from harness.report.terminal import table
from harness.scoreboard.result import BOUND, BenchResult, FaultRecord, FuzzResult

Row = Sequence[Any]


def show_bench(out: Console, result: BenchResult) -> None:
    """The scoreboard beside its baselines, then what went wrong."""
    _show(out, "planted faults and clean pairs", *_scores(result))
    if len(result.models) > 1:
        _show(out, "by model", *_models(result))
    for line in [*_misses(result), *_alarms(result)]:
        out.print(Text(f"  {line}"))


def show_fuzz(out: Console, result: FuzzResult) -> None:
    """The shares of injections found and placed, by relative size."""
    out.print(Text(_fuzz_line(result)))
    _show(out, "by relative size", *_curve(result))


def write_bench(result: BenchResult, path: Path) -> None:
    """The scoreboard as Markdown, every case in it. Raises HarnessError."""
    lines = [
        "# Scoreboard of planted faults",
        "",
        f"`harness faults bench` on {_machine()}.",
        "",
        f"{result.faults} cases (a fault of the catalogue on a side) and {result.clean_runs} clean "
        "pairs of tiny models, each judged as `harness run` judges. A false alarm is `bug` or "
        "`precision` on a clean pair; for a baseline, any failure on a clean free-running pair.",
        "",
        *_markdown(*_scores(result)),
        "",
        f"The side at fault was named in {result.side_right} of {result.faults} cases, and the "
        f"first cause was right in {result.cause_first}, one of the first three in "
        f"{result.cause_top3}; {result.certain_and_false} were certain and wrong. "
        f"{result.undecided} clean pairs were left undecided.",
        "",
        "## Models",
        "",
        *_markdown(*_models(result)),
        "",
        "## What went wrong",
        "",
        *([f"- {line}" for line in [*_misses(result), *_alarms(result)]] or ["Nothing."]),
        "",
        "## Every fault",
        "",
        *_markdown(
            ("model", "fault", "side", "step", "tensor", "verdict", "first cause"),
            [
                (r.model, r.fault, r.side, r.found_step, r.found_tensor, r.found_verdict, _cause(r))
                for r in result.records
            ],
        ),
        "",
        "## Clean pairs",
        "",
        *_markdown(
            ("model", "settings", "steps", "follow", "free diff", "parted at", "verdict"),
            [
                (
                    c.model,
                    " ".join(f"{k}={v}" for k, v in c.settings.items()),
                    c.steps,
                    c.follow,
                    c.status,
                    c.parted,
                    c.verdict,
                )
                for c in result.clean
            ],
        ),
    ]
    _write(lines, path)


def write_fuzz(result: FuzzResult, path: Path, picture: str) -> None:
    """The curve of the injections as Markdown, with its picture. Raises HarnessError."""
    lines = [
        "# Random injections",
        "",
        f"`harness faults fuzz --cases {result.cases} --seed {result.seed}` on {_machine()}.",
        "",
        "One element, row, timestep or all of one trace point of one step of either twin is "
        "multiplied by 1 + size. The noise is what the same side differs by, undisturbed, from the "
        "other at that trace point, measured on other weights; a tensor is accused at "
        f"{BOUND:g} times the noise, and a disturbance of over {BOUND + 1:g} times must be found. "
        "A large relative size may still be under the noise: that of an element near zero, of a "
        "tensor whose rounding is that of its largest elements.",
        "",
        _fuzz_line(result),
        "",
        f"![Share found and placed against relative size]({picture})",
        "",
        *_markdown(*_curve(result)),
    ]
    _write(lines, path)


def _scores(result: BenchResult) -> tuple[Row, list[Row]]:
    heads = ("", "harness", *result.baselines)
    scores = list(result.baselines.values())
    total = result.faults
    own = (
        ("detected", result.detected, [s.detected for s in scores]),
        ("step right", result.step_right, [s.step_right for s in scores]),
        ("tensor right", result.tensor_right, [s.tensor_right for s in scores]),
        ("verdict right", result.verdict_right, None),
        ("first cause right", result.cause_first, None),
        ("cause in first three", result.cause_top3, None),
    )
    rows: list[Row] = []
    for name, mine, others in own:
        cells = [_share(x, total) for x in others] if others else ["-"] * len(scores)
        rows.append((name, _share(mine, total), *cells))
    free = sum(c.follow is None for c in result.clean)
    alarms = [f"{s.false_alarms} of {free}" for s in scores]
    rows.append(("false alarms", f"{result.false_alarms} of {result.clean_runs}", *alarms))
    return heads, rows


def _models(result: BenchResult) -> tuple[Row, list[Row]]:
    heads = (
        *("model", "cases", "detected", "step", "tensor", "verdict", "cause first"),
        *("certain and false", "clean pairs", "accused"),
    )
    rows: list[Row] = [
        (model, *msgspec.structs.astuple(score)) for model, score in result.models.items()
    ]
    return heads, [*rows, ("all", *(sum(row[k] for row in rows) for k in range(1, len(heads))))]


def _curve(result: FuzzResult) -> tuple[Row, list[Row]]:
    heads = ("dtype", "relative size", "cases", "found", "above the noise", "placed rightly")
    rows: list[Row] = [
        (
            b.dtype,
            f"{b.low:.0e} to {b.high:.0e}",
            b.cases,
            f"{b.found / b.cases:.1%}",
            b.above,
            f"{b.placed_above / b.above:.1%}" if b.above else "-",
        )
        for b in result.curve
    ]
    return heads, rows


def _fuzz_line(result: FuzzResult) -> str:
    share = "-" if result.share is None else f"{result.share:.2%}"
    return (
        f"{result.cases:,} injections: {result.placed:,} of the {result.above:,} above the noise "
        f"placed at their step and tensor ({share}), {result.wrong} wrong accusations"
    )


def _misses(result: BenchResult) -> Iterable[str]:
    for r in result.records:
        at = f"{r.fault} on {r.side} of {r.model}"
        found = f"{r.found_verdict} at step {r.found_step}, {r.found_tensor}: {_cause(r)}"
        if not (r.step_right and r.tensor_right and r.verdict_right):
            yield f"{at}: expected {r.verdict} at step {r.step}; found {found}"
        elif not r.cause_within(1):
            yield f"{at}: expected {' or '.join(r.causes)}; found {_cause(r)}"


def _alarms(result: BenchResult) -> Iterable[str]:
    for c in result.clean:
        if c.verdict not in ("identical", "close", "rounding"):
            yield f"clean pair of {c.model} {c.settings}, {c.steps} steps: {c.verdict}"


def _cause(record: FaultRecord) -> str:
    return record.found_causes[0] if record.found_causes else "none"


def _share(count: int, total: int) -> str:
    return f"{count} ({count / total:.1%})" if total else str(count)


def _machine() -> str:
    return (
        f"{platform.system()} {platform.machine()}, Python {platform.python_version()}, NumPy "
        f"{np.__version__}, twin-harness {version('twin-harness')}"
    )


def _show(out: Console, title: str, heads: Row, rows: Iterable[Row]) -> None:
    grid = table(title)
    for i, name in enumerate(heads):
        grid.add_column(str(name), justify="left" if i == 0 else "right")
    for row in rows:
        grid.add_row(*(Text(str(cell)) for cell in row))
    out.print(grid)


def _markdown(heads: Row, rows: Iterable[Row]) -> list[str]:
    def line(cells: Row) -> str:
        return "| " + " | ".join("-" if c is None else str(c) for c in cells) + " |"

    return [line(heads), line(["---"] * len(heads)), *map(line, rows)]


def _write(lines: list[str], path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n", "utf-8")
    except OSError as error:
        raise HarnessError(f"{path}: cannot be written: {error}; give --report FILE") from None
