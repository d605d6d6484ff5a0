"""What the commands share: exit codes, options, output."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import click

from harness.errors import HarnessError
from harness.models.table import PRESETS

if TYPE_CHECKING:
    from harness.compare import DiffResult

EQUIVALENT, DIVERGENT, TROUBLE = 0, 1, 2
CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


def example(text: str) -> str:
    """The epilog of a command's help."""
    return f"\b\nExample:\n  {text}"


def print_json(value: object) -> None:
    """One JSON object on standard output."""
    import msgspec

    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2))


def write_plot(result: DiffResult, path: str) -> None:
    """Draw a diff, and say where."""
    from harness.report.plots import plot_diff

    plot_diff(result, path)
    click.echo(f"plot: {path}", err=True)


JSON = click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
RTOL = click.option("--rtol", type=float, help="With --atol: numpy.allclose's rule.")
ATOL = click.option("--atol", type=float, help="With --rtol: numpy.allclose's rule.")
DATA = click.option(
    "--data", metavar="PATH", help="Corpus: a folder or text file. [default: the built-in one]"
)
TOKENS = click.option(
    "--tokens",
    type=click.Choice(["word", "char"]),
    default="word",
    help="What a token of the corpus is.",
)
LEVEL = click.option(
    "--level",
    type=click.Choice(["full", "stats", "hash"]),
    help="How much of a tensor is kept: all; its hash, statistics and sketch; its hash. "
    "[default: full; stats with --zoom]",
)
MODEL = click.option("--model", type=click.Choice(list(PRESETS)), help="A published model.")
INCLUDE = click.option("--include", multiple=True, metavar="GLOB", help="Only tensors like this.")
EXCLUDE = click.option("--exclude", multiple=True, metavar="GLOB", help="No tensors like this.")
FACTOR = click.option(
    "--factor",
    type=float,
    metavar="K",
    help="K of the default tolerance, for all tensors but inputs/*. [default: 64; see the README]",
)
STRICT = click.option("--strict", is_flag=True, help="End with 1 where the verdict is rounding.")
ALL = click.option("--all", "all_", is_flag=True, help="Do not stop at the first divergence.")
PLOT = click.option(
    "--plot", metavar="FILE", help="Draw losses and distances step by step (implies --all)."
)
ROLE = click.option(
    "--role",
    "roles",
    multiple=True,
    metavar="GLOB=ROLE",
    help="What tensors with names of their own are: 'GRAD/*=grads', 'W/*=params', "
    "loss=forward/loss.",
)
MAP = click.option(
    "--map",
    "map_",
    metavar="FILE",
    help="Which tensors of A are which of B (harness align A B -o FILE); none: compare by name. "
    "[default: searched for where names differ]",
)
STEPS = click.option("--steps", metavar="A:B", default=":", help="Steps A to B, both included.")


def parse_count(text: str) -> int | Literal["all"]:
    """A number of steps from 1 up, or "all"."""
    if text == "all":
        return "all"
    if not text.isdecimal() or not int(text):
        raise HarnessError(f"--trace {text}: give a number of steps from 1 up, or all (one epoch)")
    return int(text)


def parse_steps(text: str) -> tuple[int, int | None]:
    """The first and last step of "A:B", "A:", ":B" or "A"."""
    start, colon, end = text.partition(":")
    try:
        first = int(start) if start else 1
        last = (int(end) if end else None) if colon else first
    except ValueError:
        first, last = 0, None
    if first < 1 or (last is not None and last < first):
        raise HarnessError(f"--steps {text}: give A:B, steps from A to B, counted from 1")
    return first, last
