"""`harness run`: both sides traced, compared and judged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from harness.cli.options import (
    ALL,
    ATOL,
    BATCH_SIZE,
    BPTT,
    COMPILE,
    DATA,
    DEVICE,
    DTYPE,
    EXCLUDE,
    FAULTS,
    INCLUDE,
    JSON,
    LEVEL,
    LR,
    MAP,
    MODEL,
    PLOT,
    PYTHONS,
    RTOL,
    SEED,
    SEQUENTIAL,
    SETTINGS,
    STEPS,
    STRICT,
    THREADS,
    TOKENS,
    WEIGHTS,
    example,
    parse_count,
    parse_steps,
    print_json,
    shared_settings,
    write_plot,
)
from harness.errors import HarnessError

if TYPE_CHECKING:
    from harness.runs.result import RunResult


@click.command(
    "run",
    epilog=example("harness run --trace 10 --weights params.npz --set pt:clip=elementwise"),
)
@click.option(
    "--trace",
    default="10",
    show_default=True,
    metavar="N",
    help="Steps to run and trace; all: one epoch.",
)
@WEIGHTS
@DATA
@TOKENS
@MODEL
@click.option(
    "--side",
    "sides",
    multiple=True,
    metavar="[LABEL=]PROGRAM",
    help='A script with its arguments (mine="train.py --lr 0.1"), or a twin: pt, tf, np. The last '
    "is the reference. [default: pt, then tf]",
)
@SETTINGS
@FAULTS
@PYTHONS
@click.option(
    "--hand-over",
    metavar="WHAT",
    help="Give scripts the start of the reference: weights, inputs, masks (of dropout), by commas.",
)
@MAP
@DTYPE
@LR
@SEED
@BATCH_SIZE
@BPTT
@COMPILE
@click.option("--out", default="traces", show_default=True, metavar="DIR", help="Where to write.")
@INCLUDE
@EXCLUDE
@click.option("--every", default=1, metavar="N", help="Trace one step in N.")
@STEPS
@LEVEL
@click.option(
    "--checkpoint-every",
    type=int,
    metavar="N",
    help="Keep the weights after every N steps where --level keeps no tensors. [default: 4 times]",
)
@click.option(
    "--zoom",
    is_flag=True,
    help="Run again, from a checkpoint, the steps at which the sides part; trace those in full.",
)
@click.option(
    "--queue",
    default=1024,
    show_default=True,
    metavar="MIB",
    help="Tensors of a side that may wait to be written while it goes on.",
)
@click.option(
    "--depth",
    type=click.Choice(["modules", "ops"]),
    default="modules",
    show_default=True,
    help="What of a script is traced: what modules hand on, or operations between them, too.",
)
@DEVICE
@THREADS
@SEQUENTIAL
@click.option(
    "--follow",
    is_flag=False,
    flag_value="step",
    type=click.Choice(["step", "stage"]),
    help="Start each step (=stage: each stage) from what the last side's trace holds.",
)
@click.option(
    "--verdict/--no-verdict",
    default=None,
    help="Judge always, or never. [default: where the sides diverge]",
)
@STRICT
@RTOL
@ATOL
@ALL
@PLOT
@JSON
def run_command(
    trace: str,
    sides: tuple[str, ...],
    settings: tuple[str, ...],
    as_json: bool,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    every: int,
    steps: str,
    level: str | None,
    checkpoint_every: int | None,
    zoom: bool,
    queue: int,
    all_: bool,
    plot: str | None,
    map_: str | None,
    strict: bool,
    **options: Any,
) -> int:
    """Run both sides from the same weights, trace every step, compare, and judge.

    Where they diverge, both are run again in float64 and stage by stage from each other's inputs,
    to tell rounding from a bug, and to say which and why.

    Leaves LABEL.trace (the trace), LABEL.log (what it printed), LABEL.npz (the weights after the
    last step) and LABEL.json (what the side was told to do) in --out.
    """
    from harness.report.progress import LiveObserver
    from harness.runs.run import run_sides
    from harness.spec import Capture, build

    first, last = parse_steps(steps)
    kept = {"level": level or ("stats" if zoom else "full"), "checkpoint_every": checkpoint_every}
    names = {"include": include, "exclude": exclude}
    capture = build(Capture, **kept, **names, every=every, first=first, last=last)
    if queue < 1:
        raise HarnessError(f"--queue {queue}: give a number of MiB from 1 up")
    shared = shared_settings(options)
    with LiveObserver() as observer:
        result = run_sides(
            trace=parse_count(trace),
            zoom=zoom,
            queue=queue << 20,
            sides=sides or ("pt", "tf"),
            settings=(*shared, *settings),
            capture=capture,
            map=map_,
            observer=observer,
            all=all_ or plot is not None,
            **options,
        )
    if as_json:
        print_json(result)
    else:
        _print_run(result)
    if plot and result.diff:
        write_plot(result.diff, plot)
    return result.exit_code(strict)


def _print_run(result: RunResult) -> None:
    from harness.report import terminal
    from harness.report.verdict import show_pairs, show_verdict, show_zoom

    out = terminal.console()
    diff = result.diff
    first_step = diff.first_divergence.step if diff and diff.first_divergence else None
    if result.verdict and diff:
        show_verdict(out, result.verdict, diff)
    if len(result.pairs) > 1:
        show_pairs(out, result.pairs)
    if result.zoom:
        show_zoom(out, result.zoom)
    terminal.show_losses(out, result.losses, first_step)
    terminal.show_valid(out, result.valid, result.entropy)
    if diff:
        terminal.show_diff(out, diff, result.verdict.label if result.verdict else None)
