"""Sides that do not start alike: other weights, inputs or masks than the reference was given."""

from __future__ import annotations

from typing import NamedTuple

from harness.compare import DiffResult
from harness.compare.diff import Difference

START = "inputs/"
# What can be handed over, by the first parts of the names of what differs, and in words.
KINDS = {
    "inputs/params/": ("weights", "weights"),
    "inputs/buffers/": ("weights", "buffers"),
    "inputs/mask/": ("masks", "masks of dropout"),
    "inputs/constant": ("", "constants"),  # made by the script itself, from nothing recorded
    START: ("inputs", "inputs"),
}
ORDER = ("weights", "inputs", "masks", "")


class Start(NamedTuple):
    """What the sides were given differently, in words, and what of it can be handed over.

    `first` is the tensor to look at first: of weights, where there are any. `what` is empty where
    nothing can be handed over.
    """

    place: Difference
    first: str
    what: str
    words: str

    @property
    def line(self) -> str:
        """The first thing to be said."""
        early = self.place.step == 1 and self.first.startswith(("inputs/params", "inputs/buffers"))
        when = "before training" if early else f"at step {self.place.step}"
        said = f"the sides do not start alike: their {self.words} differ {when}, first {self.first}"
        if self.what:
            return f"{said}; harness run --hand-over {self.what} gives one side the other's"
        return f"{said}; whether that was drawn at random or is made wrongly is not known"

    @property
    def remedy(self) -> str:
        """What to do next."""
        if self.what:
            return f"--hand-over {self.what}, and judge what is left then"
        return (
            f"compare how the scripts make {self.first}: it is at fault unless it is drawn at "
            "random; what is random can be handed over where it is an input of rec.step(..)"
        )


def unlike(free: DiffResult) -> Start | None:
    """What the sides were given differently, where that is what parts them first."""
    place = free.first_divergence
    if place is None or not place.tensor.startswith(START):
        return None
    a, b = (trace.entry(place.step).tensors for trace in free.opened())
    theirs = {entry.name: entry for entry in b}
    names = [
        e.name
        for e in a
        if e.name.startswith(START) and e.name in theirs and e.identity != theirs[e.name].identity
    ]
    found = dict.fromkeys(_kind(name) for name in names or [place.tensor])
    ordered = sorted(found, key=lambda kind: ORDER.index(kind[0]))
    what = ",".join(dict.fromkeys(word for word, _ in ordered if word))
    first = next((n for n in names if _kind(n) == ordered[0]), place.tensor)
    return Start(place, first, what, " and ".join(words for _, words in ordered))


def _kind(name: str) -> tuple[str, str]:
    return next(kind for first, kind in KINDS.items() if name.startswith(first))
