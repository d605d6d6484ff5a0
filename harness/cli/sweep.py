"""`harness sweep`: many short runs that differ in a setting."""

from __future__ import annotations

from typing import Any

import click

from harness.cli.options import (
    DEVICE,
    JSON,
    example,
    of_twins,
    print_json,
    shared_settings,
)


@click.command(
    "sweep",
    epilog=example(
        "harness sweep --grid lr=0.01:1.98:0.01 --side clamp=pt --set clamp:clip=elementwise "
        "--side pt --side tf --plot sweep.png"
    ),
)
@click.option(
    "--grid",
    multiple=True,
    metavar="NAME=VALUES",
    help="A setting and its values: FIRST:LAST:STEP, or VALUE,VALUE. Several: all pairs.",
)
@click.option("--steps", default=200, show_default=True, metavar="N", help="Steps of every run.")
@click.option(
    "--random", type=int, metavar="N", help="So many points of the grid, drawn by --seed."
)
@of_twins
@click.option(
    "--side",
    "sides",
    multiple=True,
    metavar="[LABEL=]TWIN",
    help="A twin: pt, tf, np; up to twelve. [default: pt, then tf]",
)
@click.option("--out", default="sweep", show_default=True, metavar="DIR", help="Where to write.")
@click.option("--workers", type=int, help="Processes at once. [default: one a processor]")
@click.option("--threads", default=1, show_default=True, help="Threads of each.")
@click.option(
    "--scheduler", metavar="ADDRESS", help="Run on the workers of this Dask scheduler instead."
)
@DEVICE
@click.option("--plot", metavar="FILE", help="Draw the curves: .png, .svg, .pdf.")
@JSON
def sweep_command(
    sides: tuple[str, ...],
    settings: tuple[str, ...],
    plot: str | None,
    as_json: bool,
    **options: Any,
) -> int:
    """Run each side for some steps at every point of a grid of settings.

    All start from the same weights, on the same text. The perplexity of a point is the exponential
    of the mean loss of its steps. Finished points are kept in --out (points.jsonl), and the same
    command again runs the others.
    """
    from harness.report.progress import LiveObserver
    from harness.report.sweep import plot_sweep, show_sweep
    from harness.runs.sweep import sweep_sides

    shared = shared_settings(options)
    with LiveObserver() as observer:
        result = sweep_sides(
            sides=sides or ("pt", "tf"),
            settings=(*shared, *settings),
            observer=observer,
            **options,
        )
    if as_json:
        print_json(result)
    else:
        show_sweep(result)
    if plot:
        plot_sweep(result, plot)
        click.echo(f"plot: {plot}", err=True)
    return 0
