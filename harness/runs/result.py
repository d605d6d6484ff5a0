"""What runs and zooming left, as values; their fields are those of `--json`."""

from __future__ import annotations

import msgspec

from harness.compare import DiffResult
from harness.data.checkpoint import Epoch
from harness.data.corpus import perplexity
from harness.explain import Verdict


class Suspect(msgspec.Struct, frozen=True):
    """A step to look at closely, and why in words; `size`: its gap as a multiple of the usual."""

    step: int
    reason: str
    size: float = 0.0


class Window(msgspec.Struct, frozen=True):
    """A step that was looked at: traced in full from `first` to `last`, from a checkpoint on.

    `checkpoint` is the step after which both sides started again (0: the beginning, where scripts
    always do); `same_bits` whether they did the same to the last bit as the long run, by its
    hashes; `label` the verdict; `said` what is to be said of scripts that do not repeat themselves.
    """

    step: int
    reason: str
    checkpoint: int
    first: int
    last: int
    traces: dict[str, str]
    same_bits: bool
    label: str
    said: tuple[str, ...] = ()


class Zoom(msgspec.Struct, frozen=True):
    """What zooming did: the steps looked at, those passed over, and bytes on disk.

    `in_step` is how many steps were run once more in lockstep, each from the other side's state (0:
    none had to be). `kept` has the bytes of each side's long trace, `full` those of the full traces
    around the steps looked at.
    """

    windows: tuple[Window, ...]
    passed_over: tuple[Suspect, ...]
    in_step: int
    kept: dict[str, int]
    full: int


class ZoomResult(msgspec.Struct, frozen=True):
    """The window that decides: what zooming did, the diff there, and the verdict."""

    zoom: Zoom
    diff: DiffResult
    verdict: Verdict


class RunResult(msgspec.Struct, frozen=True):
    """What a run left: trace folders and losses by side; diff and verdict (None with one side).

    `valid` has the validation loss of every finished epoch, in nats per token; `entropy` the least
    that any model can reach, where it is known. With three sides `diff` is the first that diverged
    from the reference, and `pairs` the status of every pair, as in "pt|np". Where `zoom` is there,
    `diff` and `verdict` are those of the full traces around the step that decides.
    """

    traces: dict[str, str]
    losses: dict[str, list[float]]
    valid: dict[str, list[float]]
    entropy: float | None
    diff: DiffResult | None
    verdict: Verdict | None = None
    pairs: dict[str, str] = {}
    zoom: Zoom | None = None

    def exit_code(self, strict: bool = False) -> int:
        """The verdict's, or without one the diff's; 1 where another pair parts unjudged."""
        if self.verdict is None:
            return 0 if self.equivalent else 1
        judged = "|".join(self.diff.labels) if self.diff else ""
        others = [status for pair, status in self.pairs.items() if pair != judged]
        parted = any(status not in ("identical", "close") for status in others)
        return 1 if parted else self.verdict.exit_code(strict)

    @property
    def equivalent(self) -> bool:
        """Whether no pair of sides differs, and no fault was found in following."""
        if self.verdict and self.verdict.label in ("bug", "precision"):
            return False
        return all(status in ("identical", "close") for status in self.pairs.values())


class Curve(msgspec.Struct, frozen=True):
    """What training left of one side: its epochs, the loss on the test text in nats per token.

    `speed` is tokens a second, without evaluation; `metrics` and `weights` are files.
    """

    epochs: tuple[Epoch, ...]
    test: float | None
    speed: float | None
    metrics: str
    weights: str

    @property
    def test_perplexity(self) -> float | None:
        """The exponential of the loss on the test text."""
        return None if self.test is None else perplexity(self.test)


class Gap(msgspec.Struct, frozen=True):
    """How far the validation perplexity of side `a` is from that of `b`, relative to it."""

    a: str
    b: str
    epoch: int
    relative: float


class TrainResult(msgspec.Struct, frozen=True):
    """The curves of the sides that were trained, and where they are furthest apart.

    `entropy` is the least that any model can reach, in nats per token, where it is known.
    """

    curves: dict[str, Curve]
    gap: Gap | None
    entropy: float | None = None


class SweepPoint(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A run of one side at one point, its settings by name.

    `mean` is the loss of all its steps, each before its update, in nats per token; `last` that of
    the last one.
    """

    side: str
    point: dict[str, str]
    mean: float
    last: float

    @property
    def perplexity(self) -> float:
        """The exponential of the mean loss of all steps."""
        return perplexity(self.mean)


class SweepResult(msgspec.Struct, frozen=True):
    """All points of a sweep, in the order of its sides and its grid; the file that keeps them."""

    points: tuple[SweepPoint, ...]
    settings: tuple[str, ...]
    steps: int
    file: str
