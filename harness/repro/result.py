"""What a repro is, as a value."""

from __future__ import annotations

import msgspec


class SideRepro(msgspec.Struct, frozen=True):
    """One side at the place that is reported, by its own name and in its own layout.

    `value` is the traced number at `index`; `answer` the same of its stage in float64, from its own
    inputs, and `off_eps` how far the traced tensor is from that; `other_stage` what the other
    side's stage makes of this side's inputs, where the two say different things. `program` is the
    file that computes the stage alone, None where none can be written, and `why` says why.
    """

    label: str
    tensor: str
    index: tuple[int, ...]
    value: float | int | str
    dtype: str
    stage: str
    framework: str
    versions: dict[str, str]
    answer: float | int | str | None = None
    off_eps: float | None = None
    other_stage: float | int | str | None = None
    program: str | None = None
    source: str | None = None
    why: str = ""


class Repro(msgspec.Struct, frozen=True):
    """A folder with one stage of two programs, to be run alone; its place, and what it shows."""

    folder: str
    step: int
    tensor: str
    sides: tuple[SideRepro, SideRepro]
    files: tuple[str, ...]
    run: tuple[str, ...]
    gap_eps: float | None = None
    verdict: str | None = None
    sentence: str | None = None
    cause: str | None = None
