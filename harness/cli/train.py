"""`harness train`: twins trained to the end, and their curves compared."""

from __future__ import annotations

from typing import Any

import click

from harness.cli.options import (
    DEVICE,
    DIVERGENT,
    EQUIVALENT,
    FAULTS,
    JSON,
    SEQUENTIAL,
    THREADS,
    example,
    of_twins,
    print_json,
    shared_settings,
)
from harness.errors import HarnessError


@click.command(
    "train",
    epilog=example("harness train --model zaremba-small --data ptb/ --compile --plot curves.png"),
)
@click.option("--epochs", type=int, metavar="N", help="How many. [default: the source's]")
@of_twins
@click.option(
    "--side",
    "sides",
    multiple=True,
    metavar="[LABEL=]TWIN",
    help="A twin: pt, tf, np. The last is the reference. [default: pt, then tf]",
)
@FAULTS
@click.option("--out", default="training", show_default=True, metavar="DIR", help="Where to write.")
@click.option("--resume", is_flag=True, help="Go on with what --out has, to the same bits.")
@click.option(
    "--checkpoint-every",
    "every",
    default=500,
    show_default=True,
    metavar="N",
    help="Steps between checkpoints; each epoch ends with one.",
)
@DEVICE
@THREADS
@SEQUENTIAL
@click.option(
    "--within",
    type=float,
    metavar="PERCENT",
    help="End with 1 where validation perplexities of two sides are further apart.",
)
@click.option("--tensorboard", is_flag=True, help="Write events for TensorBoard, too.")
@click.option("--plot", metavar="FILE", help="Draw the curves: .png, .svg, .pdf.")
@JSON
def train_command(
    sides: tuple[str, ...],
    settings: tuple[str, ...],
    within: float | None,
    tensorboard: bool,
    plot: str | None,
    as_json: bool,
    **options: Any,
) -> int:
    """Train twins to the end, from the same weights on the same text; compare their curves.

    Perplexities are exponentials of the mean loss over tokens: of the steps of an epoch, and of the
    validation text after it; of the test text at the end. Ctrl-C keeps what is done: --resume.

    Leaves LABEL.jsonl (a line an epoch), LABEL.npz (the weights at the end), LABEL.log and
    LABEL.checkpoint.safetensors in --out.
    """
    from harness.report.progress import LiveObserver
    from harness.report.training import Events, plot_training, show_training
    from harness.runs.training import train_sides

    shared = shared_settings(options)
    listener = Events(options["out"]) if tensorboard else None
    with LiveObserver() as observer:
        result = train_sides(
            sides=sides or ("pt", "tf"),
            settings=(*shared, *settings),
            observer=observer,
            listener=listener,
            **options,
        )
    if listener:
        listener.close()
    if as_json:
        print_json(result)
    else:
        show_training(result)
    if plot:
        plot_training(result, plot)
        click.echo(f"plot: {plot}", err=True)
    if within is None:
        return EQUIVALENT
    if result.gap is None:
        raise HarnessError(
            f"--within {within}: no two validation perplexities to compare: give two sides, and a "
            "validation text that is long enough for a batch"
        )
    return EQUIVALENT if 100 * result.gap.relative <= within else DIVERGENT
