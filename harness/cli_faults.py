"""The commands on faults: the catalogue, the scoreboard, random injections."""

from __future__ import annotations

import click

from harness.options import EQUIVALENT, JSON, example, print_json


@click.group("faults")
def faults_group() -> None:
    """Faults to plant, and how well they are found."""


@faults_group.command("list", epilog=example("harness faults list"))
@JSON
def faults_list(as_json: bool) -> int:
    """List the faults that harness run --fault LABEL:NAME plants, with what each must lead to."""
    from harness.faults.catalogue import CATALOGUE
    from harness.report.terminal import console
    from harness.report.verdict import show_faults

    if as_json:
        print_json([fault._asdict() for fault in CATALOGUE.values()])
    else:
        show_faults(console(), CATALOGUE.values())
    return EQUIVALENT
