"""`harness zoom`: full traces of the steps at which two long runs part."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from harness.cli.options import DIVERGENT, EQUIVALENT, JSON, example, print_json

if TYPE_CHECKING:
    from harness.runs.result import ZoomResult


@click.command("zoom", epilog=example("harness zoom traces/pt.trace traces/tf.trace"))
@click.argument("a")
@click.argument("b")
@click.option("--step", type=int, help="Look at this step. [default: where the traces part]")
@click.option(
    "--python",
    "pythons",
    multiple=True,
    metavar="LABEL=PATH",
    help="Interpreter of a side. [default: this one]",
)
@JSON
def zoom_command(a: str, b: str, step: int | None, pythons: tuple[str, ...], as_json: bool) -> int:
    """Run the steps at which A and B part again, from a checkpoint; trace them in full, and judge.

    A and B (the reference) are traces of level stats, where harness run left them.
    """
    from harness.report.progress import LiveObserver
    from harness.runs.request import parse_pythons
    from harness.runs.zoom import zoom_traces

    paths = parse_pythons(pythons)
    with LiveObserver() as observer:
        free, result = zoom_traces(a, b, step=step, pythons=paths, observer=observer)
    if as_json:
        print_json({"diff": free, "found": result})
    elif result:
        _print(result)
    else:
        click.echo(f"{free.status.upper()}: nothing to zoom into: no step parts, and none jumps")
    same = free.equivalent and (not result or result.verdict.label in ("identical", "close"))
    return EQUIVALENT if same else DIVERGENT


def _print(result: ZoomResult) -> None:
    from harness.report import terminal
    from harness.report.verdict import show_verdict, show_zoom

    out = terminal.console()
    show_verdict(out, result.verdict, result.diff)
    show_zoom(out, result.zoom)
    terminal.show_diff(out, result.diff)
