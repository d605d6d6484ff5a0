"""Why a test failed, as the message of its assertion: plain text, the answer in its first line."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence

from harness.compare import DiffResult, Structure
from harness.explain import Verdict
from harness.report.terminal import figures, headline
from harness.trace import Header, TensorEntry, Trace, TraceError

WIDTH = 96
LABEL = 24  # characters of what a row is called; one that is longer moves its own row alone
SHOWN = 4  # of a list that could be long
ESTIMATED = "distances marked as estimated"  # what a note on sketches begins with


def failure(
    result: DiffResult, verdict: Verdict | None, commands: Sequence[tuple[str, str]]
) -> str:
    """What differs first, by how much, why if that is known, where both traces are, what to do.

    `commands` are what to do about it, and how: they are shown on lines of their own, unbroken.
    """
    traces = result.opened()
    headers = traces[0].header, traces[1].header
    changed = _changed(headers[0].framework, headers[1].framework)
    lines = [headline(result) + (f" ({changed})" if changed else "")]
    first = result.first_divergence
    rows: list[tuple[str, str]] = []
    if first:
        rows += figures(result, first)
        rows[-1] = rows[-1][0], _in_python(rows[-1][1], first.tensor)  # what would pass
        if first.estimated:
            rows[1:1] = _statistics(traces, first.step, first.tensor, result.labels)
    rows += [("structure", line) for line in _structure(result)]
    if verdict and verdict.causes:
        rows.append(("cause", _cause(verdict)))
    elif verdict and verdict.label not in ("undecided", "structure"):
        rows.append(("verdict", f"{verdict.label}: {verdict.sentence}"))
    rows.append(("made with", _made_with(*headers, result.labels)))
    notes = [note for note in result.notes if not note.startswith(ESTIMATED)]
    rows += [("note", note) for note in notes[:SHOWN]]
    if len(notes) > SHOWN:
        rows.append(("", f"and {len(notes) - SHOWN} more notes: harness diff shows all"))
    fixed = [*zip(result.labels, (result.a, result.b), strict=True), *commands]
    width = min(LABEL, max(len(name) for name, _ in [*rows, *fixed]))
    lines += [line for row in rows for line in _wrapped(*row, width)]
    lines += [f"  {name:{width}}  {text}" for name, text in fixed]
    return "\n".join(lines)


def _in_python(text: str, tensor: str) -> str:
    """What a tensor would pass with, in the words of a test: a factor leaves inputs as they are."""
    if tensor.startswith("inputs/"):
        text = re.sub(r"K = \S+ \(allowed: \S+\), or ", "", text)
    text = re.sub(r"--rtol (\S+) --atol (\S+)", r"rtol=\1 and atol=\2", text)
    return re.sub(r"\bK = ", "factor=", re.sub(r"--rtol ", "rtol=", text))


def _wrapped(name: str, text: str, width: int) -> list[str]:
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=f"  {name:{width}}  ",
        subsequent_indent=" " * (width + 4),
        break_long_words=False,
        break_on_hyphens=False,
    )


def _cause(verdict: Verdict) -> str:
    cause = verdict.causes[0]
    off = f"; {verdict.side} is off" if verdict.side else ""
    return f"{cause.sentence}{off} ({cause.sure})"


def _statistics(
    traces: tuple[Trace, Trace], step: int, name: str, labels: tuple[str, str]
) -> Iterator[tuple[str, str]]:
    """What is known of a tensor on both sides, where elements were not kept."""
    try:
        a, b = (trace.step(step).find(name) for trace in traces)
    except TraceError:  # the map between the traces made one of several
        return
    if a.size == 1 and not (a.nan or b.nan or a.inf or b.inf):
        yield " | ".join(labels), _both(a, b, "min")
        return
    known = [f"{word} {_both(a, b, field)}" for word, field in (("L2", "l2"), ("mean", "mean"))]
    known += [f"{word} {_both(a, b, word)}" for word in ("min", "max")]
    known += [f"{w} {_both(a, b, f)}" for w, f in (("NaN", "nan"), ("Inf", "inf")) if _odd(a, b, f)]
    yield " | ".join(labels), ", ".join(known)


def _odd(a: TensorEntry, b: TensorEntry, field: str) -> bool:
    return bool(getattr(a, field) or getattr(b, field))


def _both(a: TensorEntry, b: TensorEntry, field: str) -> str:
    return " | ".join(_number(getattr(entry, field)) for entry in (a, b))


def _number(value: float | int | None) -> str:
    return "-" if value is None else f"{value:.9g}"


def _structure(result: DiffResult) -> Iterator[str]:
    """Missing tensors and steps, other shapes and dtypes: a line for each kind and side."""
    groups: dict[tuple[str, str], list[Structure]] = {}
    for found in result.structure:
        side = ""
        if found.kind.startswith("missing"):
            side = result.labels[0] if found.a == "missing" else result.labels[1]
        groups.setdefault((found.kind, side), []).append(found)
    for (kind, side), members in groups.items():
        if kind == "missing step":
            count = sum(found.count for found in members)
            yield f"{count} step{'s' * (count > 1)} not in {side}, the first is {members[0].step}"
            continue
        names = list(dict.fromkeys(str(found.tensor) for found in members))
        if kind == "missing tensor":
            word = f"tensor{'s' * (len(names) > 1)}"
            at = f" (from step {members[0].step} on)" if members[0].step > 1 else ""
            yield f"{len(names)} {word} not in {side}{at}: {_some(names)}"
        else:
            yield f"another {kind}: " + _some([f"{m.tensor} {m.a} | {m.b}" for m in members])


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _changed(a: dict[str, str], b: dict[str, str]) -> str:
    """The packages whose versions differ, b being the earlier: "torch 2.12.0 -> 2.13.0"."""
    both = [name for name in b if name in a and a[name] != b[name]]
    return ", ".join(f"{name} {b[name]} -> {a[name]}" for name in both)


def _made_with(a: Header, b: Header, labels: tuple[str, str]) -> str:
    """Versions on both sides; those that are the same once."""
    one, two = {**a.framework, **a.versions}, {**b.framework, **b.versions}
    names = list(dict.fromkeys([*two, *one]))
    other = [name for name in names if one.get(name) != two.get(name)]
    same = ", ".join(f"{name} {two[name]}" for name in names if name not in other)
    if not other:
        return f"{same} on both sides"
    parts = (f"{name} {one.get(name, 'none')} | {two.get(name, 'none')}" for name in other)
    return f"{', '.join(parts)} ({' | '.join(labels)}); the same: {same or 'none'}"
