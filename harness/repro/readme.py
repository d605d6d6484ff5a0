"""The page that says what a folder shows, in the words of the report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.repro.found import Found
from harness.repro.result import Repro

EVIDENCE = 4  # lines of a verdict's evidence that are quoted
PACKAGES = ("python", "numpy", "torch", "keras", "tensorflow", "jax", "jaxlib", "flax", "optax")


def write_readme(path: Path, made: Repro, found: Found | None) -> None:
    """Write the page."""
    names = dict.fromkeys(side.tensor for side in made.sides)
    lines = [f"# {' | '.join(names)}, step {made.step}", ""]
    lines += _said(made, found)
    lines += _table(made)
    lines += _stages(made)
    lines += ["", "## To run", "", "```console", *(f"$ {line}" for line in made.run), "```", ""]
    lines.append(
        "Each program reads `inputs.npz`, computes this one stage with its framework, and prints "
        "the value above and its greatest difference to what was traced."
    )
    lines += [
        f"{side.label} has no program: {side.why}." for side in made.sides if not side.program
    ]
    lines += ["", "## Versions", ""]
    lines += [f"- {side.label}: {_versions(side.versions)}" for side in made.sides]
    path.write_text("\n".join(lines) + "\n", "utf-8")


def _said(made: Repro, found: Found | None) -> list[str]:
    """What was found."""
    if found is None:
        return []
    lines = [f"{found.label.upper()}: {found.sentence}."]
    if found.cause:
        side = f" ({found.side} is off)" if found.side else ""
        lines += ["", f"Cause: {found.cause}{side}."]
    lines += ["", *(f"- {line}" for line in found.evidence[:EVIDENCE]), ""]
    return lines


def _table(made: Repro) -> list[str]:
    """The figures of both sides."""
    rows: list[tuple[str, list[str]]] = [
        ("value at", [f"`{list(s.index)}`" for s in made.sides]),
        ("traced", [f"**{s.value}**" for s in made.sides]),
        ("its own stage, in float64", [_or_none(s.answer) for s in made.sides]),
        ("distance from that", [_eps(s.off_eps) for s in made.sides]),
        ("the other's stage, in float64", [_or_none(s.other_stage) for s in made.sides]),
        ("dtype", [s.dtype for s in made.sides]),
    ]
    head = [f"{s.label} ({s.framework})" for s in made.sides]
    lines = [_row("", head), "|---|---|---|"]
    lines += [_row(name, cells) for name, cells in rows if any(cell != "-" for cell in cells)]
    if made.gap_eps is not None:
        lines += ["", f"The sides are {made.gap_eps:.3g} eps of the largest element apart."]
    return lines


def _row(name: str, cells: list[str]) -> str:
    return f"| {name} | {' | '.join(cells)} |"


def _or_none(value: Any) -> str:
    return "-" if value is None else str(value)


def _eps(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g} eps"


def _stages(made: Repro) -> list[str]:
    """How each side says that the tensor is made."""
    lines = [""]
    for side in made.sides:
        at = f" ({side.source})" if side.source else ""
        lines.append(f"- {side.label}{at}: `{side.stage or 'no stage is known'}`")
    return lines


def _versions(found: dict[str, str]) -> str:
    known = [f"{name} {found[name]}" for name in PACKAGES if name in found]
    return ", ".join([*known, *(f"{n} {v}" for n, v in found.items() if n not in PACKAGES)])
