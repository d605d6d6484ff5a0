"""The command that writes the stage at which two traces part as programs of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from harness.cli.options import EQUIVALENT, JSON, MAP, ROLE, example, print_json

if TYPE_CHECKING:
    from harness.repro import Repro


@click.command("repro", epilog=example("harness repro traces/mine.trace traces/theirs.trace"))
@click.argument("a")
@click.argument("b")
@click.option("--step", type=click.IntRange(1), help="Which step. [default: that of the verdict]")
@click.option("--tensor", metavar="NAME", help="Which tensor, by its name in B. [default: as well]")
@click.option(
    "--follower", type=click.Choice(["a", "b"]), help="That one was given the other's inputs."
)
@click.option("-o", "--out", metavar="FOLDER", help="[default: repro, beside trace A]")
@MAP
@ROLE
@JSON
def repro_command(a: str, b: str, map_: str | None, as_json: bool, **options: Any) -> int:
    """Write the stage at which A and B part as a folder to attach to a bug report.

    One program a side, of about ten lines, computes that stage alone from what it was given, with
    the framework's own call; README.md has the figures and the versions. The place is that of the
    verdict that harness run has left beside the traces; else the first that differs.
    """
    from harness.repro import repro

    made = repro(a, b, map=map_, **options)
    if as_json:
        print_json(made)
    else:
        _print(made)
    return EQUIVALENT


def _print(made: Repro) -> None:
    from harness.report.repro import show_repro
    from harness.report.terminal import console

    show_repro(console(), made)
