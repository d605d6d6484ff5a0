"""The commands on faults: the catalogue, the scoreboard, random injections."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import click

from harness.cli.options import DIVERGENT, EQUIVALENT, JSON, example, print_json


@click.group("faults")
def faults_group() -> None:
    """Faults to plant, and how well they are found."""


@faults_group.command("list", epilog=example("harness faults list"))
@JSON
def faults_list(as_json: bool) -> int:
    """List the faults that harness run --fault LABEL:NAME plants, with what each must lead to."""
    from harness.models.faults import CATALOGUE
    from harness.report.terminal import console
    from harness.report.verdict import show_faults

    if as_json:
        print_json([fault._asdict() for fault in CATALOGUE.values()])
    else:
        show_faults(console(), CATALOGUE.values())
    return EQUIVALENT


@faults_group.command("bench", epilog=example("harness faults bench"))
@click.option("--only", multiple=True, metavar="NAME", help="This fault alone (repeatable).")
@click.option("--models", default="lstm", show_default=True, metavar="NAME,...", help="Or: all.")
@click.option("--clean", type=int, metavar="N", help="The first N clean pairs. [default: all]")
@click.option("--out", metavar="DIR", help="Where traces go. [default: a folder that is removed]")
@click.option("--report", metavar="FILE", help="[default: logs/faults.md, where all was run]")
@JSON
def faults_bench(
    only: tuple[str, ...],
    models: str,
    clean: int | None,
    out: str | None,
    report: str | None,
    as_json: bool,
) -> int:
    """Score the harness: every fault on each side, and clean pairs that must not be accused.

    Each fault is planted in every one of the models that it can be planted in. Takes some ten
    minutes a model on two cores. Exit code 1 where a fault was missed or a clean pair
    accused.
    """
    from harness.models.faults import MODELS
    from harness.report.progress import LiveObserver
    from harness.report.scores import show_bench, write_bench
    from harness.report.terminal import console
    from harness.scoreboard.bench import bench

    with LiveObserver() as observer, _folder(out) as folder:
        chosen = tuple(MODELS) if models == "all" else tuple(models.split(","))
        result = bench(folder, observer, only, clean, chosen)
    if report or not (only or clean is not None):
        path = Path(report or "logs/faults.md")
        write_bench(result, path)
        click.echo(f"written: {path}", err=True)
    if as_json:
        print_json(result)
    else:
        show_bench(console(), result)
    sound = result.detected == result.faults and not result.false_alarms
    return EQUIVALENT if sound else DIVERGENT


@faults_group.command("fuzz", epilog=example("harness faults fuzz --cases 200 --seed 1"))
@click.option("--cases", default=2000, show_default=True, metavar="N", help="How many injections.")
@click.option("--seed", default=1, show_default=True, type=click.IntRange(0, 2**62 - 1))
@click.option("--out", metavar="DIR", help="Where traces go. [default: a folder that is removed]")
@click.option("--report", metavar="FILE", help="[default: logs/fuzz.md, from 2000 cases up]")
@JSON
def faults_fuzz(cases: int, seed: int, out: str | None, report: str | None, as_json: bool) -> int:
    """Disturb random stages by random amounts, and see which are found at their place.

    Exit code 1 where one above the noise was not, or something else was accused.
    """
    from harness.report.plots import plot_fuzz
    from harness.report.progress import LiveObserver
    from harness.report.scores import show_fuzz, write_fuzz
    from harness.report.terminal import console
    from harness.scoreboard.fuzz import fuzz

    with LiveObserver() as observer, _folder(out) as folder:
        result = fuzz(cases, seed, folder, observer)
    if report or cases >= 2000:
        path = Path(report or "logs/fuzz.md")
        picture = path.with_suffix(".png")
        write_fuzz(result, path, picture.name)
        plot_fuzz(result, str(picture))
        click.echo(f"written: {path}, {picture}", err=True)
    if as_json:
        print_json(result)
    else:
        show_fuzz(console(), result)
    return EQUIVALENT if result.placed == result.above and not result.wrong else DIVERGENT


@contextmanager
def _folder(out: str | None) -> Iterator[Path]:
    """The folder that was named, or one that is removed afterwards."""
    if out:
        yield Path(out)
        return
    with TemporaryDirectory(prefix="harness-") as made:
        yield Path(made)
