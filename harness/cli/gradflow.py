"""`harness gradflow`: the sizes of gradients, and where the signal is blocked."""

from __future__ import annotations

import click

from harness.cli.options import JSON, MAP, ROLE, STEPS, example, parse_steps, print_json


@click.command(
    "gradflow", epilog=example("harness gradflow traces/pt.trace traces/tf.trace --steps 3")
)
@click.argument("a")
@click.argument("b", required=False)
@STEPS
@ROLE
@MAP
@click.option("--plot", metavar="FILE", help="Draw bars of one step, or a heat map over several.")
@JSON
def gradflow_command(
    a: str,
    b: str | None,
    steps: str,
    roles: tuple[str, ...],
    map_: str | None,
    plot: str | None,
    as_json: bool,
) -> int:
    """Show how large the gradients of trace A are (beside those of B), and where they stop.

    Of each parameter the mean absolute gradient, or the root of its mean square where a trace keeps
    no elements (level stats). Parameters without gradient, and with one that is zero or faint, are
    marked; where the backward pass goes on with zeros alone, the signal is blocked.
    """
    from harness.align import chosen
    from harness.compare.gradflow import gradflow
    from harness.report.gradflow import plot_gradflow, show_gradflow
    from harness.report.progress import LiveObserver

    with LiveObserver() as observer:
        found = chosen(a, b, map_, roles, observer.part("align")) if b else None
        progress = observer.part("gradflow")
        result = gradflow(
            a, b, steps=parse_steps(steps), roles=roles, alignment=found, progress=progress
        )
    if as_json:
        print_json(result)
    else:
        show_gradflow(result)
    if plot:
        plot_gradflow(result, plot)
        click.echo(f"plot: {plot}", err=True)
    return 0
