"""What the scoreboard and the random injections found, as values."""

from __future__ import annotations

from typing import Literal

import msgspec

# An injection's tensor is accused where it is further off than BOUND times the noise there.
BOUND = 2.0
Region = Literal["element", "row", "timestep", "tensor"]


class FaultRecord(msgspec.Struct, frozen=True):
    """A fault on a side of a model: what should be found, what was, and what of it is right.

    `model` is one of the laboratory (harness.models.faults.MODELS). `tensors` are globs that the
    first tensor must match, `causes` the patterns that a right cause must match one of
    (Fault.causes); `found_causes` are "NAME: CLAIM". `sure` is how sure of itself the first of them
    is; `cause_rank` is the place of the first right one, from 1.
    """

    model: str
    fault: str
    side: str
    step: int
    tensors: tuple[str, ...]
    verdict: str
    causes: tuple[str, ...]
    found_verdict: str
    found_step: int | None
    found_tensor: str | None
    found_causes: tuple[str, ...]
    found_side: str | None
    sentence: str
    sure: str | None
    baselines: dict[str, tuple[int, str] | None]
    detected: bool
    step_right: bool
    tensor_right: bool
    verdict_right: bool
    cause_rank: int | None

    @property
    def certain_and_false(self) -> bool:
        """Whether the first cause is certain of itself, and wrong."""
        return self.sure == "certain" and self.cause_rank != 1

    def cause_within(self, count: int) -> bool:
        """Whether a right cause is among the first `count`."""
        return self.cause_rank is not None and self.cause_rank <= count


class CleanRecord(msgspec.Struct, frozen=True):
    """A clean pair: how it was run, how the free diff came out, and the verdict."""

    model: str
    settings: dict[str, str]
    steps: int
    follow: str | None
    status: str
    parted: int | None
    verdict: str
    alarm: bool
    baselines: dict[str, tuple[int, str] | None]


class BaselineScore(msgspec.Struct, frozen=True):
    """What a baseline says: faults noticed, step and tensor right, clean pairs that it fails."""

    detected: int
    step_right: int
    tensor_right: int
    false_alarms: int


class ModelScore(msgspec.Struct, frozen=True):
    """The counts of one model of the laboratory, of cases and of clean pairs."""

    faults: int
    detected: int
    step_right: int
    tensor_right: int
    verdict_right: int
    cause_first: int
    certain_and_false: int
    clean_runs: int
    false_alarms: int


class BenchResult(msgspec.Struct, frozen=True):
    """The scoreboard; counts are of cases, and `records` and `clean` have one row a case.

    `certain_and_false` counts first causes that are certain of themselves and wrong; `models` has
    the counts of each model.
    """

    faults: int
    detected: int
    step_right: int
    tensor_right: int
    verdict_right: int
    cause_first: int
    cause_top3: int
    side_right: int
    certain_and_false: int
    clean_runs: int
    false_alarms: int
    undecided: int
    baselines: dict[str, BaselineScore]
    models: dict[str, ModelScore]
    records: tuple[FaultRecord, ...]
    clean: tuple[CleanRecord, ...]


class FuzzCase(msgspec.Struct, frozen=True):
    """One injection and what was found.

    `size` is the relative size that was drawn, `disturbance` how far it moved the tensor and
    `noise` what clean runs differ by there, both as the K of the tolerance's rule. `accused` is
    every step and tensor that was named. `above`: it must be found, for its own rounding cannot
    hide it. `placed`: exactly its step and tensor were named. `wrong`: a place was named that was
    not disturbed, or one that was disturbed by far less than the noise.
    """

    side: str
    dtype: str
    setting: int
    step: int
    tensor: str
    region: Region
    size: float
    disturbance: float
    noise: float
    accused: tuple[tuple[int, str], ...]
    above: bool
    placed: bool
    wrong: bool


class FuzzBin(msgspec.Struct, frozen=True):
    """Cases whose relative size lies in [low, high): how many, above the noise, found, placed."""

    dtype: str
    low: float
    high: float
    cases: int
    above: int
    found: int
    placed_above: int


class FuzzResult(msgspec.Struct, frozen=True):
    """All cases, the counts that matter, and the curve of shares against relative size."""

    seed: int
    cases: int
    above: int
    placed: int
    share: float | None
    wrong: int
    curve: tuple[FuzzBin, ...]
    records: tuple[FuzzCase, ...]
