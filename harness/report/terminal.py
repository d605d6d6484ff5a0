"""Results as text for a terminal: the verdict first, details below it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness.compare import DiffResult
from harness.compare.diff import Difference, StepSummary, Structure
from harness.data.corpus import perplexity
from harness.trace import Program, StepEntry, TensorEntry, Trace
from harness.trace.dtypes import epsilon, is_float, smallest_normal

STYLES = {"identical": "bold green", "close": "bold green"}
MOST_ROWS = 20  # of a list that could be long
LOSSES_SHOWN = 12
WIDTH = 110  # of a file or pipe, which has none of its own


def console() -> Console:
    """Standard output; no markup is read, so that a tensor's name is shown as it is."""
    out = Console(markup=False, highlight=False, emoji=False)
    if not out.is_terminal:
        out.width = max(out.width, WIDTH)
    return out


def show_diff(out: Console, result: DiffResult, verdict: str | None = None) -> None:
    """How the traces compare, the place, the figures, and the steps around it.

    Under a `verdict` (its label) there is no second headline.
    """
    a, b = result.labels
    if verdict is None:
        out.print(Text(headline(result), STYLES.get(result.status, "bold red")))
    elif verdict != result.status:
        out.print(Text(f"The traces as compared, before anything was run again: {_parted(result)}"))
    rows: list[tuple[str, str]] = []
    if result.first_divergence:
        rows += figures(result, result.first_divergence)
    if result.onset:
        rows.append(("first bits to differ", f"{place(result.onset)}{_onset(result.onset)}"))
    rows.append(("tolerance", _tolerance(result)))
    if result.tightest:
        tightest = result.tightest
        tight = f"{tightest.tensor} of step {tightest.step}"
        rows.append(("tightest", f"{tight} used {tightest.used:.1%} of its tolerance"))
    rows.append(
        (
            "compared",
            _plural(result.tensors_compared, "tensor")
            + " in "
            + _plural(result.steps_compared, "step"),
        )
    )
    rows.append(("sides", f"{a}: {result.a}   {b} (reference): {result.b}"))
    out.print(pairs(rows))
    for line in [*map(_structure, result.structure[:MOST_ROWS]), *result.notes[:MOST_ROWS]]:
        out.print(Text(f"  * {line}", "yellow"))
    hidden = len(result.structure[MOST_ROWS:]) + len(result.notes[MOST_ROWS:])
    if hidden:
        out.print(f"  * and {hidden} more (--json lists all)")
    if result.divergences:
        out.print(_divergence_table(result.divergences))
    if result.steps:
        first = result.first_divergence
        out.print(_step_table(result.steps, a, b, first.step if first else None))


def headline(result: DiffResult) -> str:
    """How the traces compare, in a line."""
    a, b = result.labels
    if result.status == "identical":
        return f"IDENTICAL: {a} and {b} agree bit for bit"
    if result.status == "close":
        assert result.onset is not None
        return f"CLOSE: {a} and {b} agree within the tolerance at every tensor of every step"
    first = result.first_divergence
    where = f" at step {first.step}: {first.tensor}" if first else ""
    if result.status == "structure":
        also = f"; values part{where}" if first else ""
        return f"STRUCTURE: {a} and {b} do not hold the same tensors{also}"
    return f"DIVERGED{where}"


def _parted(result: DiffResult) -> str:
    """Where the traces part, in a sentence under a verdict."""
    first = result.first_divergence
    if first is None:
        return f"{result.status}"
    return f"over the tolerance from step {first.step}, {first.tensor} on"


def _about(found: Difference) -> str:
    """What stands before an estimated number."""
    return "~" if found.estimated and found.rel_l2 is not None else ""


def _estimated(found: Difference) -> str:
    return " (estimated)" if _about(found) else ""


def _onset(found: Difference) -> str:
    """Both values at the first element that differs, and how far they are apart themselves."""
    if found.index is None and not found.estimated:
        return f": {found.dtype} with the same numbers"
    if found.index is None:
        apart = (
            "" if found.rel_l2_eps is None else f": {_about(found)}{eps(found.rel_l2_eps)} apart"
        )
        return apart + _estimated(found)
    own = _own_eps(found)
    return f": {values(found)}" + ("" if own is None else f", {eps(own)} apart")


def _own_eps(found: Difference) -> float | None:
    """|a - b| of the element shown, in eps of the larger; None where that says nothing."""
    a, b, unit = found.a, found.b, epsilon(found.dtype)
    if unit is None or not isinstance(a, float) or not isinstance(b, float):
        return None
    size = max(abs(a), abs(b))
    if size < smallest_normal(found.dtype) or not math.isfinite(a - b):
        return None
    return abs(a - b) / size / unit


def figures(result: DiffResult, first: Difference) -> list[tuple[str, str]]:
    """Where the traces part and by how much, as names and what they stand for."""
    a, b = result.labels
    last = result.last_agreeing
    agreed = ("last that agreed", f"{last.tensor} of step {last.step}" if last else "none")
    apart = f"{_about(first)}{_number(first.rel_l2)} = {_about(first)}{eps(first.rel_l2_eps)}"
    if first.estimated:
        rows = [
            ("where", place(first)),
            ("relative L2", apart + _estimated(first)),
            ("not finite", f"at least {first.nonfinite_mismatches:,} elements, on one side alone"),
            agreed,
            ("would pass with", _least(first)),
        ]
        return [row for row in rows if row[0] != "not finite" or first.nonfinite_mismatches]
    assert first.mismatch_ratio is not None
    rows = [("where", place(first)), (f"{a} | {b}", values(first))]
    if first.max_abs_diff is not None:
        rows.append(("greatest difference", _greatest(first)))
    if first.rel_l2 is not None:
        rows.append(("relative L2", apart if is_float(first.dtype) else _number(first.rel_l2)))
    return [
        *rows,
        (
            "out of tolerance",
            f"{first.mismatches:,} of {first.size:,} elements ({first.mismatch_ratio:.3%})"
            + (f", {first.nonfinite_mismatches:,} not finite" * bool(first.nonfinite_mismatches)),
        ),
        agreed,
        ("would pass with", _least(first)),
    ]


def _greatest(first: Difference) -> str:
    said = f"{_number(first.max_abs_diff)} absolute"
    if first.max_rel_diff is not None:
        said += f", {_number(first.max_rel_diff)} relative"
    # Numbers more than a factor of two apart, or on both sides of zero, are not a count of
    # roundings apart.
    ulps, unit, a, b = first.max_ulp_diff, epsilon(first.dtype), first.a, first.b
    near = isinstance(a, float) and isinstance(b, float) and b != 0 and 0.5 <= a / b <= 2
    counted = near and ulps is not None and unit is not None and ulps * unit <= 1
    return said + (f", {ulps:,} ULPs" if counted else "")


def _least(first: Difference) -> str:
    if first.nonfinite_mismatches:
        return "no tolerance: NaN or infinity on one side only"
    if first.factor == 0 and not is_float(first.dtype):
        return f"no tolerance: {'booleans' if 'bool' in first.dtype else 'integers'} must be equal"
    ways = []
    if first.least_factor is not None:
        least = _number(first.least_factor, up=True)
        ways.append(f"K = {least} (allowed: {_number(first.factor)})")
    if first.least_rtol is not None and first.factor is None:
        ways.append(f"--rtol {_number(first.least_rtol, up=True)} at this atol")
    if first.least_atol is not None:
        ways.append(f"--rtol {first.rtol!r} --atol {_number(first.least_atol, up=True)}")
    unknown = first.estimated and first.rel_l2 is None
    return ", or ".join(ways) or ("not known" if unknown else "no tolerance")


def _tolerance(result: DiffResult) -> str:
    tolerance = result.tolerance
    if tolerance.rule == "numpy":
        return f"|a - b| <= {tolerance.atol:g} + {tolerance.rtol:g} |b| (as numpy.allclose)"
    table = ", ".join(f"{glob} {factor:g}" for glob, factor in tolerance.table or ())
    return f"|a - b| <= K eps (|b| + max|b|), K by tensor: {table}"


def _structure(found: Structure) -> str:
    what = f"{found.kind} {found.tensor}" if found.tensor else found.kind
    times = f" and {_plural(found.count - 1, 'later step')}" if found.count > 1 else ""
    return f"{what} at step {found.step}{times}: {found.a} | {found.b}"


def _divergence_table(divergences: Sequence[Difference]) -> Table:
    grid = table(f"{len(divergences):,} tensors are not close")
    for name in ("step", "max abs", "rel L2 in eps", "not close"):
        grid.add_column(name, justify="right")
    grid.add_column("tensor", overflow="fold")
    for found in divergences[:MOST_ROWS]:
        grid.add_row(
            str(found.step),
            _number(found.max_abs_diff),
            _about(found) + _number(found.rel_l2_eps),
            "-" if found.mismatch_ratio is None else f"{found.mismatch_ratio:.2%}",
            Text(found.tensor),
        )
    if len(divergences) > MOST_ROWS:
        grid.add_row("...", "", "", "", f"{len(divergences) - MOST_ROWS:,} more (--json)")
    return grid


def _step_table(steps: Sequence[StepSummary], a: str, b: str, parted: int | None) -> Table:
    if len(steps) > MOST_ROWS:  # those around the divergence, or the last ones
        at = next((i for i, row in enumerate(steps) if row.step == parted), len(steps))
        start = max(0, min(at - MOST_ROWS // 2, len(steps) - MOST_ROWS))
        steps = steps[start : start + MOST_ROWS]
    grid = table("")
    for name in ("step", f"loss {a}", f"loss {b}", f"norm {a}", f"norm {b}"):
        grid.add_column(name, justify="right")
    for name in ("bits differ", "not close", "worst eps"):
        grid.add_column(name, justify="right")
    for row in steps:
        grid.add_row(
            str(row.step),
            *(_number(x, 7) for x in (row.loss_a, row.loss_b, row.norm_a, row.norm_b)),
            f"{row.unequal}/{row.tensors}",
            "-" if row.not_close is None else str(row.not_close),
            _number(row.worst_rel_l2_eps, 3),
        )
    return grid


def show_losses(
    out: Console, losses: Mapping[str, Sequence[float]], parted: int | None = None
) -> None:
    """The loss of every iteration, sides side by side; a long run is cut around where it parted."""
    grid = table("")
    grid.add_column("Iteration", justify="right")
    for label in losses:
        grid.add_column(f"{label} loss", justify="right")
    steps = max((len(values) for values in losses.values()), default=0)
    last = 0
    for step in _rows_shown(steps, parted):
        if step > last + 1:
            grid.add_row("...")
        cells = [values[step - 1] if step <= len(values) else None for values in losses.values()]
        style = "bold red" if step == parted else None
        grid.add_row(str(step), *(_loss(x) for x in cells), style=style)
        last = step
    out.print(grid)


def show_valid(out: Console, valid: Mapping[str, Sequence[float]], entropy: float | None) -> None:
    """The validation perplexity of every finished epoch, beside the best there can be."""
    epochs = min(len(values) for values in valid.values())
    if not epochs:
        return
    grid = table("")
    grid.add_column("Epoch", justify="right")
    for label in valid:
        grid.add_column(f"{label} valid perplexity", justify="right")
    for epoch in range(epochs):
        grid.add_row(str(epoch + 1), *(_perplexity(values[epoch]) for values in valid.values()))
    if entropy is not None:
        grid.add_row("least", *[_perplexity(entropy)] * len(valid))
    out.print(grid)


def _perplexity(nats: float) -> str:
    return f"{perplexity(nats):.3f}"


def _loss(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.4f}" if abs(value) < 1e6 else f"{value:.6g}"


def _rows_shown(steps: int, parted: int | None) -> list[int]:
    if steps <= LOSSES_SHOWN:
        return list(range(1, steps + 1))
    centre = parted or 1
    around = range(max(1, centre - 3), min(steps, centre + 8) + 1)
    return sorted({1, 2, 3, steps - 1, steps, *around})


def show_trace(out: Console, trace: Trace, step: StepEntry | None) -> None:
    """What a trace is, and the tensors of one step with their statistics."""
    header = trace.header
    framework = ", ".join(f"{name} {version}" for name, version in header.framework.items())
    state = "complete" if header.complete else "not complete: its run was stopped"
    steps = f"{trace.steps[0]} to {trace.steps[-1]}" if trace.steps else "none"
    out.print(
        pairs(
            [
                (
                    "trace",
                    f"{trace.path} ({header.label}, {header.dtype}, {framework or 'unknown'})",
                ),
                ("steps", f"{len(trace.steps):,} ({steps}), {state}"),
                ("made by", _program(header.program)),
                *((name, _flat(part)) for name, part in header.spec.items() if _is_dict(part)),
                ("other", _flat({k: v for k, v in header.spec.items() if not _is_dict(v)})),
            ]
        )
    )
    if step is None:
        return
    grid = table(f"step {step.step}: {len(step.tensors)} tensors, in execution order")
    grid.add_column("tensor", no_wrap=True)
    grid.add_column("dtype, shape")
    for name in ("min", "max", "mean", "L2"):
        grid.add_column(name, justify="right")
    grid.add_column("holds")
    for entry in step.tensors:
        shape = "x".join(map(str, entry.shape))
        counts = {"NaN": entry.nan, "Inf": entry.inf, "zero": entry.zero}
        grid.add_row(
            Text(entry.name),
            f"{entry.dtype} {shape}",
            *(_number(x, 3) for x in (entry.min, entry.max, entry.mean, entry.l2)),
            ", ".join(f"{n:,} {name}" for name, n in counts.items() if n),
        )
    out.print(grid)


def _program(program: Program | None) -> str:
    if program is None:
        return "not known: a trace of an earlier version"
    source = f"digest {program.digest}" if program.digest else "whose source cannot be read"
    return f"{program.kind} {program.name}, {source}"


def show_tensor(out: Console, step: int, entry: TensorEntry, values: NDArray[Any]) -> None:
    """The values of one tensor, or of the part of it that was asked for."""
    shape, shown = list(entry.shape), list(values.shape)
    out.print(Text(f"step {step}, {entry.name}: {entry.dtype} {shape}, shown {shown}"))
    # "unique": every value in as many digits as tell it from its neighbours.
    text = np.array2string(values, floatmode="unique", threshold=400, max_line_width=out.width)
    out.print(Text(text))


def show_arrays(out: Console, arrays: Mapping[str, NDArray[Any]]) -> None:
    """The arrays of a file: name, shape, dtype and range."""
    grid = table("")
    grid.add_column("array", overflow="fold")
    for name in ("shape", "dtype", "range"):
        grid.add_column(name, justify="right")
    for name, array in arrays.items():
        shape = "x".join(map(str, array.shape)) or "-"
        grid.add_row(Text(name), shape, str(array.dtype), _range(array))
    out.print(grid)
    out.print(f"{sum(array.size for array in arrays.values()):,} parameters")


def _range(array: NDArray[Any]) -> str:
    return f"{array.min():.4g} .. {array.max():.4g}" if array.size else "empty"


def pairs(rows: Iterable[tuple[str, str]]) -> Table:
    """Names and what they stand for, in two columns."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in rows:
        grid.add_row(Text(f"  {name}"), Text(value))
    return grid


def table(title: str) -> Table:
    """An empty table without lines."""
    return Table(
        title=Text(title) if title else None, title_justify="left", box=None, pad_edge=True
    )


def _is_dict(value: object) -> bool:
    return isinstance(value, dict)


def _flat(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}={item}" for key, item in value.items())
    return str(value)


def place(found: Difference) -> str:
    """Step, tensor and index, the index in words too."""
    index = "" if not found.index else f" {list(found.index)}"
    words = f" ({found.where})" if found.where and not found.where.startswith("[") else ""
    return f"step {found.step}, {found.tensor}{index}{words}"


def values(found: Difference) -> str:
    """Both sides' values in all their digits."""
    digits = 17 if "float64" in found.dtype else 9
    return f"{_number(found.a, digits)} | {_number(found.b, digits)}"


def eps(value: float | None) -> str:
    """A distance in units of machine epsilon."""
    return "- eps" if value is None else f"{_number(value, 3)} eps"


def _plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + "s" * (count != 1)


def _number(value: float | int | str | None, digits: int = 4, up: bool = False) -> str:
    """A number in `digits` digits, an integer in all of its own.

    `up`: not less than it is, so that it can be used as a bound.
    """
    if value is None:
        return "-"
    if isinstance(value, str | int):
        return str(value)
    if up and isinstance(value, float):
        value *= 1 + 10.0 ** (1 - digits)
    return f"{value:.{digits}g}"
