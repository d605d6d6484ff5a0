"""`harness.repro`: one stage of two programs as a folder that can be attached to a bug report."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.compare.diff import Difference
from harness.errors import HarnessError
from harness.explain.case import Side
from harness.explain.evidence import Pair
from harness.explain.trial import FAILURES
from harness.kernels.floats import standard_floats
from harness.models.evaluate import Values
from harness.models.graph import Node
from harness.repro.place import Spot, spot
from harness.repro.readme import write_readme
from harness.repro.result import Repro, SideRepro
from harness.repro.script import Program, plain, program
from harness.repro.sides import SIDES, Sided, sided
from harness.trace import Alignment
from harness.trace.dtypes import epsilon

Array = NDArray[Any]
INPUTS, README = "inputs.npz", "README.md"
FAR = 64.0  # eps; answers of two stages that are nearer are one


@standard_floats()
def repro(
    a: str | Path,
    b: str | Path,
    *,
    step: int | None = None,
    tensor: str | None = None,
    map: str | Path | Alignment | None = None,
    follower: Side | None = None,
    roles: Sequence[str] = (),
    out: str | Path | None = None,
) -> Repro:
    """Write the stage that makes a tensor, on both sides, as programs that compute it alone.

    Args:
        a, b: traces; b is the reference.
        step, tensor: the place, by the names of b. Without them it is that of the verdict which
            `harness run` has left beside the traces; else the first that differs.
        map: which tensors of a are which of b, as for `harness.diff`.
        follower: "a" or "b", where that one was given the other's inputs at every stage.
        roles: as for `harness.diff`.
        out: the folder to write; "repro" beside trace a by default.

    Raises HarnessError where there is no such place, or no side says how the tensor is made.

    Example:
        harness.repro("traces/mine.trace", "traces/theirs.trace").folder

    """
    place = spot(a, b, step, tensor, map, follower, roles)
    shape = place.diff.opened()[1].step(place.step).find(place.tensor).shape
    at = place.at.index if place.at and place.at.index is not None else (0,) * len(shape)
    sides = [
        sided(place.diff, side, place.step, place.tensor, at, place.follower) for side in SIDES
    ]
    if all(side.own is None for side in sides):
        raise HarnessError(_lacking(place, sides))
    folder = _folder(Path(out) if out else Path(a).parent / "repro")
    programs = {side.side: _program(side, place) for side in sides if side.own is not None}
    arrays = {f"{_file(side)}/traced": side.traced for side in sides}
    for made in programs.values():
        arrays |= made.inputs
    others = _other_stages(place, sides)
    reports = tuple(_report(s, programs.get(s.side), others.get(s.side)) for s in sides)
    files = _write(folder, arrays, {r.program: programs[s.side] for r, s in _pairs(reports, sides)})
    said = place.said
    result = Repro(
        folder=str(folder),
        step=place.step,
        tensor=place.tensor,
        sides=(reports[0], reports[1]),
        files=(README, *files),
        run=tuple(f"python {r.program}" for r in reports if r.program),
        gap_eps=_gap(place.at, sides),
        verdict=said.label if said else None,
        sentence=said.sentence if said else None,
        cause=said.cause if said else None,
    )
    write_readme(folder / README, result, said)
    return result


def _pairs(reports: Sequence[SideRepro], sides: Sequence[Sided]) -> list[Any]:
    """The sides that have a program."""
    return [(r, s) for r, s in zip(reports, sides, strict=True) if r.program]


def _file(side: Sided) -> str:
    """A side's label as part of a file's name."""
    return re.sub(r"[^\w.-]+", "-", side.label).strip("-.") or side.side


def _program(side: Sided, place: Spot) -> Program:
    assert side.own is not None
    known = {**side.trace.header.framework, **side.trace.header.versions}
    version = known.get(side.dialect.package) or known.get("tensorflow", "")
    what = f"{side.dialect.name} {version}".strip()
    return program(
        side.own,
        side.inputs,
        side.shape_of,
        dialect=side.dialect,
        title=f"{side.name} of step {place.step} as {side.label} made it, alone, with {what}.",
        label=_file(side),
        dtype=side.dtype,
        step=place.step,
        index=side.at,
        traced=side.traced,
    )


def _report(side: Sided, made: Program | None, other: Array | None) -> SideRepro:
    header = side.trace.header
    return SideRepro(
        label=side.label,
        tensor=side.name,
        index=side.at,
        value=_number(side.traced[side.at]),
        dtype=side.dtype,
        stage=side.stage,
        framework=side.dialect.name,
        versions={**header.versions, **header.framework},
        answer=None if side.answer is None else _number(_at(side.answer, side.at)),
        off_eps=side.off,
        other_stage=None if other is None else _number(other),
        program=f"repro_{_file(side)}.py" if made else None,
        source=side.trace.sources.get(side.name),
        why=side.why,
    )


def _at(x: Array, index: tuple[int, ...]) -> Any:
    return x[index] if x.ndim == len(index) else np.nan


def _number(x: Any) -> Any:
    """A number as a report has it: the shortest text that is it, in its dtype."""
    value = np.asarray(x)
    if value.dtype.kind in "iub":
        return value.item()
    text = str(value.astype(np.float32) if value.dtype.itemsize < 4 else value[()])
    found = float(text)
    return found if np.isfinite(found) else text


def _gap(at: Difference | None, sides: Sequence[Sided]) -> float | None:
    """How far the sides are apart."""
    return at.least_factor if at else None


def _other_stages(place: Spot, sides: Sequence[Sided]) -> dict[Side, Any]:
    """By side: what the other's stage makes of its inputs, where the two are not the same."""
    pair = Pair(place.diff, place.diff.labels, place.follower)
    graphs = {side: trace.graph for side, trace in pair.traces.items()}
    stages: dict[Side, Node | None] = {
        side: graph.value(place.tensor) if graph else None for side, graph in graphs.items()
    }
    found: dict[Side, Any] = {}
    index = sides[1].at if place.at is None else place.at.index
    for side, other in (("a", "b"), ("b", "a")):
        one, two = stages[side], stages[other]  # type: ignore[index]
        if two is None or index is None or one is two:
            continue
        made = [_aligned(pair, place, side, x) for x in (one, two)]  # type: ignore[arg-type]
        own, theirs = made
        if theirs is None or (own is not None and _near(own, theirs, sides[0].traced)):
            continue
        found[side] = _at(theirs, index)  # type: ignore[index]
    return found


def _aligned(pair: Pair, place: Spot, side: Side, stage: Node | None) -> Array | None:
    """A stage in float64 over what one side was given, in the reference's names."""
    if stage is None:
        return None
    lookup = pair._lookup(place.step, place.tensor)
    values = Values(
        lambda back, name: lookup(side, place.step - back, name),
        place.step,
        pair.traces[side].graph,
    )
    try:
        with np.errstate(all="ignore"):
            return np.asarray(values.value(stage))
    except FAILURES:
        return None


def _near(x: Array, y: Array, traced: Array) -> bool:
    eps = epsilon(traced.dtype) or 0.0
    if x.shape != y.shape:
        return False
    with np.errstate(all="ignore"):
        return bool(np.abs(x - y).max(initial=0.0) <= FAR * eps * np.abs(x).max(initial=0.0))


def _folder(path: Path) -> Path:
    """A folder to write into: new, empty, or one that was written before."""
    if path.exists():
        names = {p.name for p in path.iterdir()} if path.is_dir() else {""}
        ours = all(re.fullmatch(rf"{INPUTS}|{README}|repro_.*\.py", name) for name in names)
        if not ours:
            raise HarnessError(f"{path}: holds other things: name another folder with --out")
        for name in names:
            (path / name).unlink()
    path.mkdir(parents=True, exist_ok=True)
    return path


def _write(folder: Path, arrays: dict[str, Array], programs: dict[str, Program]) -> tuple[str, ...]:
    """Write inputs and programs; the names of the files."""
    given: dict[str, Any] = {name: plain(x) for name, x in arrays.items()}
    np.savez_compressed(folder / INPUTS, **given)
    for name, made in programs.items():
        (folder / name).write_text(made.text, "utf-8")
    return (INPUTS, *programs)


def _lacking(place: Spot, sides: Sequence[Sided]) -> str:
    """Why nothing can be written, and which tensor near it has a stage, in one line."""
    why = "; ".join(dict.fromkeys(side.why for side in sides if side.why))
    names: dict[str, None] = {}
    for trace in place.diff.opened():
        graph = trace.graph
        stages = graph.stages.items() if graph else ()
        known = {name for name, stage in stages if stage.value.op != "given"}
        order = [e.name for e in trace.entry(place.step).tensors]
        at = order.index(place.tensor)
        names |= dict.fromkeys(name for name in order[at:] + order[:at][::-1] if name in known)
    near = next(iter(names), None)
    if near is None:
        return f"{why}: declare stages (harness.stage), or record the model (harness.record)"
    return f"{why}; the nearest tensor that has a stage: --step {place.step} --tensor {near}"
