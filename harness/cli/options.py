"""What the commands share: exit codes, options, output."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click

from harness.errors import HarnessError
from harness.models.table import PRESETS
from harness.spec import field_names

if TYPE_CHECKING:
    from harness.compare import DiffResult

Command = TypeVar("Command", bound=Callable[..., Any])

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

SETTINGS = click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="[LABEL:]NAME=VALUE",
    help=f"Change a setting of both sides, or of one: {', '.join(field_names())}.",
)
FAULTS = click.option(
    "--fault",
    "faults",
    multiple=True,
    metavar="LABEL:NAME",
    help="Plant a fault in a side (harness faults list).",
)
PYTHONS = click.option(
    "--python",
    "pythons",
    multiple=True,
    metavar="LABEL=PATH",
    help="Interpreter of a side. [default: this one]",
)
DTYPE = click.option("--dtype", help="float32 or float64.")
LR = click.option("--lr", help="Learning rate.")
SEED = click.option("--seed", help="Seed of weights, dropout and shuffling.")
BATCH_SIZE = click.option("--batch-size", help="Rows of a batch.")
BPTT = click.option("--bptt", help="BPTT length: timesteps of a window.")
COMPILE = click.option(
    "--compile", "compiled", is_flag=True, help="Compile the steps: torch.compile, XLA."
)
DEVICE = click.option("--device", type=click.Choice(["cpu", "gpu"]), default="cpu")
THREADS = click.option("--threads", type=int, help="Threads of one side. [default: an equal share]")
SEQUENTIAL = click.option("--sequential", is_flag=True, help="One side after the other.")

WEIGHTS = click.option(
    "--weights", metavar="FILE", help="Start from these. [default: drawn from --seed]"
)


def of_twins(command: Command) -> Command:
    """The options that say what twins compute, and on what."""
    options = (WEIGHTS, DATA, TOKENS, MODEL, SETTINGS, PYTHONS, DTYPE, LR, SEED, BATCH_SIZE, BPTT)
    for option in reversed((*options, COMPILE)):
        command = option(command)
    return command


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


def shared_settings(options: dict[str, Any]) -> list[str]:
    """The settings of all sides that have options of their own, which are taken out of these."""
    names = ("dtype", "lr", "seed", "batch_size", "bptt")
    named = {name: options.pop(name) for name in names}
    compiled = options.pop("compiled")
    given = [f"{name}={value}" for name, value in named.items() if value is not None]
    return [*given, *["compile=true"] * compiled]
