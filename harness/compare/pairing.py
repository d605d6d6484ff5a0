"""What has a partner where traces are compared through a map, and what is said of the rest."""

from __future__ import annotations

from collections.abc import Iterable

from harness.trace import TensorEntry, Trace
from harness.trace.aligned import ALONE, AlignedTrace

Entries = dict[str, TensorEntry]
SHOWN = 3


class Pairing:
    """Which tensors of each step have a partner, and which had none so far."""

    def __init__(self, a: AlignedTrace, b: Trace) -> None:
        """Nothing has been looked at."""
        self._traces = (a, b)
        self._alone: tuple[dict[str, None], dict[str, None]] = {}, {}
        self._both: set[str] = set()

    def partners(self, step: int, a: Entries, b: Entries) -> tuple[Entries, Entries]:
        """The entries of a step that are compared: what the map speaks of, as far as it is traced.

        A tensor that one side has never had until this step is none that is missing there.
        """
        kept = []
        for trace, entries, alone in zip(self._traces, (a, b), self._alone, strict=True):
            spoken = trace.partners(step) if isinstance(trace, AlignedTrace) else set(entries)
            kept.append({name: entry for name, entry in entries.items() if name in spoken})
            lonely = (name.removesuffix(ALONE) for name in entries if name not in spoken)
            alone |= dict.fromkeys(lonely)
        self._both |= kept[0].keys() & kept[1].keys()
        for own, other, alone in zip(kept, kept[::-1], self._alone, strict=True):
            for name in [name for name in own if name not in other and name not in self._both]:
                del own[name]
                alone[name] = None
        return kept[0], kept[1]

    def notes(self, labels: tuple[str, str]) -> Iterable[str]:
        """What a reader should know of the map, and of what was not compared."""
        first, _ = self._traces
        yield from first.alignment.notes
        likely = [
            name
            for _, match in first.alignment.matches()
            if match.sure != "certain"
            for name in match.b[:1]
        ]
        if likely:
            yield f"the map is no more than likely for {len(likely)} tensors: {_some(likely)}"
        for _, match in first.alignment.matches():
            if match.note:
                yield f"{' and '.join(match.b)}: {match.note}"
        for label, alone in zip(labels, self._alone, strict=True):
            if alone:
                yield f"{len(alone)} tensors of {label} have no partner: {_some(list(alone))}"
        for trace, label in zip(self._traces, labels, strict=True):
            if isinstance(trace, AlignedTrace) and trace.by_statistics:
                yield (
                    f"{len(trace.by_statistics)} tensors of {label} lie otherwise or have another "
                    "name, and their elements were not kept: compared by norm, extremes, mean and "
                    f"counts alone, as nothing else can be: {_some(list(trace.by_statistics))}"
                )
            if isinstance(trace, AlignedTrace) and trace.unknown:
                yield (
                    f"{len(trace.unknown)} tensors of {label} lie otherwise, and what was kept of "
                    f"them says nothing then: not compared: {_some(list(trace.unknown))}"
                )


def pairing(a: Trace, b: Trace) -> Pairing | None:
    """That of two traces; None where they are compared by name."""
    return Pairing(a, b) if isinstance(a, AlignedTrace) else None


def _some(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + ", .." * (len(names) > SHOWN)
