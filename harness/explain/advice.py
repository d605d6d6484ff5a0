"""What to do next, in words that the reader can act on."""

from __future__ import annotations

from harness.compare import DiffResult
from harness.explain.evidence import Evidence, Finding, Label
from harness.explain.start import unlike
from harness.trace.ranks import drifted


def what_next(label: Label, finding: Finding, evidence: Evidence, side: str | None) -> str:
    """The one thing to do next."""
    free, place = evidence.free, finding.place
    found = finding.shown.found if finding.shown else free
    if label in ("bug", "precision") and place:
        trace = found.a if side == free.labels[0] else found.b
        return (
            f"read what makes {place.tensor}{f' in {side}' * bool(side)}"
            f"{_lines(found, place.tensor, free.labels, side)}; its values: harness show "
            f"{trace} {place.tensor} --step {place.step}"
        )
    if label == "rounding":
        return "nothing to mend; to compare the steps after this one, run with --follow=stage"
    if label == "structure":
        return _same_tensors(free)
    if label == "close" and not (evidence.wide or evidence.narrow):
        return "--verdict looks closer: faults of a few epsilons are seen only there"
    start = unlike(free)
    if label == "undecided" and start:
        return start.remedy
    if label == "undecided" and evidence.free64 is None:
        return (
            "run both programs once more in float64, traced alike, and give those traces too: "
            f"harness explain {free.a} {free.b} --referee-a A64 --referee-b B64"
        )
    if label == "undecided":
        return (
            "what decides is following: one program run again with each step (or stage) started "
            "from the other's trace; for the twins harness run --follow=stage does that"
        )
    return "nothing"


def _same_tensors(free: DiffResult) -> str:
    """What to do about a tensor that one side has not, or has of another shape."""
    found = next((s for s in free.structure if "constant" not in str(s.tensor)), free.structure[0])
    alone = free.labels[found.a != "present"]
    drift = drifted(found.tensor)
    if drift:
        return (
            f"from step {found.step} on rank {drift[1]} of {alone} has {drift[0]} of its own: "
            "ranks must start alike, and take each step by the same gradients"
        )
    if found.kind == "missing step" or not free.distances or free.distances[0][0] >= found.step:
        return f"trace the same names and shapes on both sides: harness show {free.a}; {free.b}"
    what = f"only {alone} has" if found.kind == "missing tensor" else f"the {found.kind} differs of"
    return (
        f"from step {found.step} on {what} {found.tensor}: there what one side trains changes (a "
        "layer that is added or removed, a parameter that is frozen): let both do so; until then: "
        f"harness diff --steps :{found.step - 1} {free.a} {free.b}"
    )


def _lines(found: DiffResult, tensor: str, labels: tuple[str, str], side: str | None) -> str:
    """The lines of the programs that make a tensor, in brackets; "" where the traces say none."""
    pairs = zip(labels, found.opened(), strict=True)
    lines = {label: trace.sources.get(tensor) for label, trace in pairs}
    said = [f"{label}: {at}" for label, at in lines.items() if at and side in (None, label)]
    return f" ({', '.join(said)})" if said else ""
