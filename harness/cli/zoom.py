"""`harness zoom`: full traces of the steps at which two long runs part."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from harness.cli.options import DIVERGENT, EQUIVALENT, JSON, example, print_json
from harness.errors import HarnessError

if TYPE_CHECKING:
    from harness.runs.zoom import Found


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
    from harness.runs.zoom import zoom_traces

    places = {}
    for text in pythons:
        label, equals, path = text.partition("=")
        if not equals or not path:
            raise HarnessError(f"--python {text}: give LABEL=PATH")
        places[label] = path
    with LiveObserver() as observer:
        free, found = zoom_traces(a, b, step=step, pythons=places, observer=observer)
    if as_json:
        print_json({"diff": free, "found": found})
    elif found:
        _print(found)
    else:
        click.echo(f"{free.status.upper()}: nothing to zoom into: no step parts, and none jumps")
    same = free.equivalent and (not found or found.verdict.label in ("identical", "close"))
    return EQUIVALENT if same else DIVERGENT


def _print(found: Found) -> None:
    from harness.report import terminal
    from harness.report.verdict import show_verdict, show_zoom

    out = terminal.console()
    show_verdict(out, found.verdict, found.diff)
    show_zoom(out, found.zoom)
    terminal.show_diff(out, found.diff)
