"""The verdict in a terminal: the answer in five lines, its evidence, and lists of faults."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from rich.console import Console
from rich.text import Text

from harness.compare import DiffResult
from harness.explain import Verdict
from harness.models.faults import Fault
from harness.report.terminal import eps, pairs, place, table, values
from harness.runs.result import Zoom

STYLES = {
    "identical": "bold green",
    "close": "bold green",
    "rounding": "bold green",
    "undecided": "bold yellow",
}


def show_verdict(out: Console, verdict: Verdict, found: DiffResult) -> None:
    """Verdict, where, cause, what to do next; then the evidence, numbered."""
    style = STYLES.get(verdict.label, "bold red")
    out.print(Text(f"{verdict.label.upper()}: {verdict.sentence}", style))
    if verdict.label in ("identical", "close"):
        if verdict.label == "close":
            out.print(pairs([("next", verdict.next)]))
        return
    rows = []
    where = verdict.where
    if where:
        sides = " | ".join(found.labels)
        sides = "" if where.estimated else f": {sides} = {values(where)}"
        apart = "" if where.rel_l2_eps is None else f", {eps(where.rel_l2_eps)}"
        rows.append(("where", f"{place(where)}{sides}{apart}"))
    side = f"; {verdict.side} is off" if verdict.side and where else ""
    first = verdict.causes[0].sentence if verdict.causes else "none that was tried explains it"
    if verdict.label != "rounding":
        rows.append(("cause", first + side))
    for also in verdict.also:
        rows.append(("also", f"{place(also.where)}: {also.causes[0].sentence}"))
    rows.append(("next", verdict.next))
    out.print(pairs(rows))
    out.print(pairs((f"{i:>5}", line) for i, line in enumerate(verdict.evidence, start=1)))
    for cause in verdict.causes[1:]:
        out.print(Text(f"  or ({cause.sure}): {cause.sentence}", "dim"))
    others = [spot for spot in verdict.places if where is None or spot.tensor != where.tensor]
    if others:
        shown = ", ".join(f"{spot.tensor} (step {spot.step})" for spot in others[:4])
        more = f" and {len(others) - 4} more tensors" if len(others) > 4 else ""
        out.print(Text(f"  stages that differ as well: {shown}{more}"))
    out.print()


def show_zoom(out: Console, zoom: Zoom) -> None:
    """What a zoomed run has stored, and the steps that were looked at."""
    kept = ", ".join(f"{label} {size / 1e6:,.1f} MB" for label, size in zoom.kept.items())
    steps = ", ".join(f"{w.first} to {w.last} ({w.label})" for w in zoom.windows)
    out.print(
        Text(f"stored: {kept} for the whole run; {zoom.full / 1e6:,.1f} MB in full: steps {steps}")
    )
    for window in zoom.windows:
        out.print(Text("  full traces: " + ", ".join(window.traces.values()), "dim"))


def show_pairs(out: Console, statuses: Mapping[str, str]) -> None:
    """How every pair of three sides came out, and which side is alone."""
    said = ", ".join(f"{pair.replace('|', ' and ')}: {s}" for pair, s in statuses.items())
    agree = [pair.split("|") for pair, s in statuses.items() if s in ("identical", "close")]
    labels = {label for pair in statuses for label in pair.split("|")}
    alone = labels - set(agree[0]) if len(agree) == 1 else set()
    vote = f"; two agree against {alone.pop()}" if alone else ""
    out.print(Text(f"vote: {said}{vote}"))


def show_faults(out: Console, faults: Iterable[Fault]) -> None:
    """The catalogue: name, what the faulty side does, where and when it must show, why."""
    grid = table("harness run --fault LABEL:NAME plants one")
    for name in ("fault", "what the side does", "bites", "first at", "verdict", "cause"):
        grid.add_column(name, overflow="fold")
    for fault in faults:
        cells = (fault.bites, fault.tensor[0], fault.verdict, fault.causes[0].partition(":")[0])
        grid.add_row(Text(fault.name), Text(fault.title), *map(Text, cells))
    out.print(grid)
