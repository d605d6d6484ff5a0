"""What a repro holds as text for a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from harness.report.terminal import pairs
from harness.repro import Repro


def show_repro(out: Console, made: Repro) -> None:
    """The place and the values, where the folder is, and how its programs are run."""
    one, two = made.sides
    names = one.tensor if one.tensor == two.tensor else f"{one.tensor} | {two.tensor}"
    out.print(Text(f"REPRO: step {made.step}, {names}", "bold"))
    rows = [(side.label, f"{side.value}{_answer(side.answer)}") for side in made.sides]
    rows += [("folder", made.folder), ("files", ", ".join(made.files))]
    rows.append(("run", f"cd {made.folder}; " + "; ".join(made.run)))
    rows += [("lacking", side.why) for side in made.sides if not side.program]
    out.print(pairs(rows))


def _answer(value: object) -> str:
    return "" if value is None else f"; its stage in float64 {value}"
