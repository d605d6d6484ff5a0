"""The command that says which tensor of one trace is which of another's."""

from __future__ import annotations

import click

from harness.cli.options import EQUIVALENT, JSON, ROLE, TROUBLE, example, print_json


@click.command("align", epilog=example("harness align torch.trace keras.trace -o map.toml"))
@click.argument("a")
@click.argument("b")
@click.option("-o", "--out", metavar="FILE", help="Write the map, as TOML to be read and edited.")
@ROLE
@JSON
def align_command(a: str, b: str, out: str | None, roles: tuple[str, ...], as_json: bool) -> int:
    """Find which tensors of trace A are which of trace B, the reference, and how they lie.

    Other names, transposed weights, NCHW against NHWC, gates in another order, fused and split
    parts: found by values where both hold the same numbers, else by names, order and siblings.
    Exit code 2 where nothing is matched.
    """
    from harness.align import align
    from harness.report import terminal
    from harness.report.alignment import show_alignment
    from harness.report.progress import LiveObserver
    from harness.trace import open_trace, write_alignment

    with LiveObserver() as observer:
        traces = open_trace(a, roles), open_trace(b, roles)
        found = align(*traces, progress=observer.part("align"))
    if out:
        write_alignment(found, out)
        click.echo(f"map: {out}", err=True)
    if as_json:
        print_json(found)
    else:
        one, two = (trace.header.label for trace in traces)
        labels = (one, two) if one != two else (f"{one} (A)", f"{two} (B)")
        show_alignment(terminal.console(), found, labels)
    return EQUIVALENT if any(True for _ in found.matches()) else TROUBLE
