"""The benchmark of the harness as a command."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from harness.cli.options import EQUIVALENT, JSON, TROUBLE, example, print_json
from harness.errors import HarnessError

if TYPE_CHECKING:
    from pathlib import Path

    from harness.bench.result import BenchResult


@click.command("bench", epilog=example("harness bench --quick"))
@click.option("--quick", is_flag=True, help="Four minutes: fewer sizes and rounds, no compilers.")
@click.option(
    "--only", metavar="A,B", help="Of twins, tracing, record, diff, startup. [default: all]"
)
@click.option("--rounds", type=int, metavar="N", help="How often each is timed.")
@click.option(
    "--report", metavar="FILE", help="[default: logs/bench.md, where all was run, not --quick]"
)
@JSON
def bench_command(
    quick: bool, only: str | None, rounds: int | None, report: str | None, as_json: bool
) -> int:
    """Time twins, tracing, recording, diff and start-up against named peers.

    Medians, spread, ratios. Takes twenty minutes and the whole machine: leave it alone meanwhile. A
    contestant that cannot be run is shown as not available. Exit code 2 where a part of it failed.
    """
    from pathlib import Path
    from tempfile import TemporaryDirectory

    from harness.bench.main import bench
    from harness.bench.result import PARTS
    from harness.report import terminal
    from harness.report.bench import show_bench
    from harness.report.progress import LiveObserver

    if rounds is not None and rounds < 1:
        raise HarnessError(f"--rounds {rounds}: from 1 up")
    parts = tuple(only.split(",")) if only is not None else PARTS
    path = Path(report) if report else None
    if path is None and not quick and set(parts) == set(PARTS):
        path = Path("logs/bench.md")

    def keep(result: BenchResult) -> None:
        if path:
            _write(result, path)

    with LiveObserver() as observer, TemporaryDirectory(prefix="harness-") as folder:
        place = Path(folder)
        result = bench(place, observer, only=parts, quick=quick, rounds=rounds, keep=keep)
    if path:
        click.echo(f"written: {path}, {path.with_suffix('.png')}", err=True)
    if as_json:
        print_json({name: section.as_json() for name, section in result.sections.items()})
    else:
        show_bench(terminal.console(), result)
    failed = any(section.error for section in result.sections.values())
    return TROUBLE if failed else EQUIVALENT


def _write(result: BenchResult, path: Path) -> None:
    """The report and its picture."""
    from harness.report.bench import write_bench
    from harness.report.bench_plot import plot_bench

    picture = path.with_suffix(".png")
    write_bench(result, path, picture.name)
    plot_bench(result, picture)
