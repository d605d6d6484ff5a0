"""The further runs that a verdict needs: both precisions, each side following the other, a referee.

Nothing here judges: the runs are made, compared, and handed to `harness.explain`.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable
from pathlib import Path

import msgspec
import numpy as np

from harness.compare import DiffResult, Tolerance, diff
from harness.compare.diff import Difference
from harness.errors import HarnessError
from harness.explain.case import Side, distance
from harness.explain.evidence import Evidence, Following, Vote
from harness.explain.verdict import Verdict, judge
from harness.observer import Observer
from harness.session import Session
from harness.spec import SLOTS, Capture, Dtype, Follow, RunSpec, parameters
from harness.trace import open_trace, remove_trace

DTYPES: tuple[Dtype, Dtype] = ("float32", "float64")
LARGE = 4 << 30  # bytes of further traces up to which all steps are judged, and nothing is removed
# Traces that a verdict needs beside the run's own, as multiples of one float32 trace: two sides in
# float64, and two following sides in either precision.
TRACES = 2 * 2 + 2 * 1 + 2 * 2


class Investigation:
    """The further runs of one pair of sides. `runs` are (a, b), the reference last."""

    def __init__(self, session: Session, runs: tuple[RunSpec, RunSpec], free: DiffResult) -> None:
        """Nothing runs yet. `free` is the diff of `runs`, which have ended."""
        self.session, self.runs, self.free = session, runs, free
        self.folder = Path(runs[0].trace).parent
        self.lacking: list[str] = []
        self.made: list[str] = []

    def verdict(self) -> Verdict:
        """Run what is needed and judge; what could not be run is said in the evidence."""
        if self.free.status == "structure" or self.runs[0].train.dtype != self.runs[1].train.dtype:
            return judge(Evidence(self.free))
        steps = self._steps()
        if not steps:
            return judge(Evidence(self.free, lacking=tuple(self.lacking)))
        pairs = {d: self._pair(d, steps) for d in DTYPES}
        followed = {d: self._follow(d, pair, steps) for d, pair in pairs.items() if pair}
        free64 = None
        if self.runs[0].train.dtype == "float32" and pairs["float64"]:
            free64 = self._diff("float64 diff", *pairs["float64"])
        evidence = Evidence(
            self.free,
            free64,
            followed.get("float32", ()),
            followed.get("float64", ()),
            tuple(self.lacking),
        )
        found = judge(evidence, self._vote)
        if self._bytes(steps) > LARGE:
            for trace in self.made:
                remove_trace(trace)
        return found

    def _steps(self) -> int:
        """How many steps to judge: all, or, of large traces, those up to the divergence."""
        trace = open_trace(self.runs[1].trace)
        steps = trace.steps[-1]
        if self._bytes(steps) > LARGE:
            first = self.free.first_divergence
            steps = first.step if first else steps
            self.lacking.append(f"only steps 1 to {steps} were judged: --follow=stage takes all")
        free = shutil.disk_usage(self.folder).free
        if self._bytes(steps) > 0.9 * free:
            self.lacking = [
                f"not run in float64 and following: {self._bytes(steps) >> 20:,} MiB of traces, "
                f"and {self.folder} has {free >> 20:,} MiB left: free some, or give another --out"
            ]
            return 0
        return steps

    def _bytes(self, steps: int) -> int:
        return step_bytes(self.runs[1]) * steps * TRACES

    def _pair(self, dtype: Dtype, steps: int) -> tuple[str, str] | None:
        """Traces of both sides in `dtype` that hold everything; None where a side failed."""
        # A run that followed another is not what its own trace would lead to.
        whole = all(run.capture == Capture() and run.follow is None for run in self.runs)
        if dtype == self.runs[0].train.dtype and whole:
            return self.runs[0].trace, self.runs[1].trace
        again = [self._variant(run, dtype, f"{run.label}-{dtype}", steps) for run in self.runs]
        return self._traces(zip((run.label for run in self.runs), again, strict=True))

    def _follow(self, dtype: Dtype, pair: tuple[str, str], steps: int) -> tuple[Following, ...]:
        """Each side given the other's inputs, and how far apart that leaves every stage."""
        a, b = self.runs
        jobs = []
        for run, other, trace in ((a, b, pair[1]), (b, a, pair[0])):
            label = f"{run.label}-follows-{other.label}-{dtype}"
            follow = Follow(trace, "stage")
            variant = self._variant(run, dtype, label, steps)
            jobs.append((run.label, msgspec.structs.replace(variant, follow=follow)))
        made = self._traces(jobs)
        if not made:
            return ()
        self.made += made
        kinds: tuple[tuple[Side, str, str], ...] = (
            ("a", made[0], pair[1]),
            ("b", pair[0], made[1]),
        )
        return tuple(
            Following(side, self._diff(f"{dtype} following, {i} of 2", x, y, local=True))
            for i, (side, x, y) in enumerate(kinds, start=1)
        )

    def _traces(self, runs: Iterable[tuple[str, RunSpec]]) -> tuple[str, str] | None:
        pairs = list(runs)
        try:
            self.session.run_all(pairs)
        except HarnessError as error:
            self.lacking.append(str(error).split("\n", 1)[0])
            return None
        return pairs[0][1].trace, pairs[1][1].trace

    def _variant(self, run: RunSpec, dtype: Dtype, label: str, steps: int) -> RunSpec:
        return msgspec.structs.replace(
            run,
            label=label,
            train=msgspec.structs.replace(run.train, dtype=dtype),
            trace=str(self.folder / f"{label}.trace"),
            final=str(self.folder / f"{label}.npz"),
            capture=Capture(),
            follow=None,
            steps=steps,
        )

    def _diff(self, what: str, a: str, b: str, local: bool = False) -> DiffResult:
        tolerance = Tolerance.local() if local else None
        told = self.session.watcher.part(what)
        return diff(a, b, all=local, tolerance=tolerance, progress=told)

    def _vote(self, shown: Following, place: Difference) -> Vote | None:
        """How far each side is from the referee at one place, all three given the same inputs."""
        a, b = self.runs
        if a.model != b.model or msgspec.structs.replace(
            a.train, dtype="float64"
        ) != msgspec.structs.replace(b.train, dtype="float64"):
            return None  # told to do different things: no third can say which is right
        if place.tensor == "update/learning_rate" and b.train.schedule == "plateau":
            return None  # it starts at this step and does not know the losses before it
        followed = shown.found.b if shown.follower == "a" else shown.found.a
        variant = self._variant(b, "float64", "referee", place.step)
        variant = msgspec.structs.replace(
            variant,
            follow=Follow(followed, "stage"),
            start=place.step,
            faults=(),
            device="cpu",
        )
        job = self.session.start("referee", variant, show=False)
        if job.wait():
            return None
        tensors = []
        for path in (shown.found.a, shown.found.b, variant.trace):
            step = open_trace(path).step(place.step)
            if place.tensor not in step.names():
                return None
            tensors.append(step.read(step.find(place.tensor)))
        if len({t.shape for t in tensors}) > 1:
            return None
        x, y, judged = tensors
        dtype = place.dtype if place.dtype.startswith("float") else "float64"
        scale = (place.atol / place.rtol) if place.rtol else 0.0
        eps = float(np.finfo(dtype).eps)
        near = (distance(x, judged, eps, scale), distance(y, judged, eps, scale))
        return Vote("NumPy, float64", *near)


def step_bytes(run: RunSpec) -> int:
    """About how many bytes a step of a full float32 trace of `run` takes, whatever it captures."""
    model, train = run.model, run.train
    weights = sum(math.prod(p.shape) for p in parameters(model))
    copies = 3 + len(SLOTS[train.optimizer])  # gradients, clipped gradients, weights, slots
    units = model.embed_size + 6 * model.hidden_size * model.num_layers + model.vocab_size
    activations = 2 * train.batch_size * train.bptt * units  # and their gradients
    return 4 * (weights * copies + activations)


def explain_traces(
    a: str | Path,
    b: str | Path,
    *,
    referee_a: str | Path | None = None,
    referee_b: str | Path | None = None,
    followed_a: str | Path | None = None,
    followed_b: str | Path | None = None,
    observer: Observer | None = None,
) -> tuple[DiffResult, Verdict]:
    """The diff of two traces made anywhere, and the verdict from whatever else there is of them.

    Args:
        a: a trace.
        b: the trace of the reference.
        referee_a: the run of `a` again in float64.
        referee_b: the run of `b` again in float64.
        followed_a: the run of `a` again, each stage given the inputs that `b` holds.
        followed_b: the run of `b` again, each stage given the inputs that `a` holds.
        observer: told about progress.

    Raises HarnessError for traces that cannot be compared, or one referee without the other.
    """
    watcher = observer or Observer()
    if (referee_a is None) != (referee_b is None):
        raise HarnessError("--referee-a and --referee-b: give both, or neither")
    found = diff(a, b, progress=watcher.part("diff"))
    free64 = None
    if referee_a is not None and referee_b is not None:
        free64 = diff(referee_a, referee_b, progress=watcher.part("float64 diff"))
    runs = []
    kinds: tuple[tuple[Side, str | Path | None, str | Path | None], ...] = (
        ("a", followed_a, b),
        ("b", a, followed_b),
    )
    for side, x, y in kinds:
        if x is not None and y is not None:
            told = watcher.part(f"following, {side}")
            local = diff(x, y, all=True, tolerance=Tolerance.local(), progress=told)
            runs.append(Following(side, local))
    wide = open_trace(b).header.dtype == "float64"
    evidence = Evidence(
        found,
        free64,
        () if wide else tuple(runs),
        tuple(runs) if wide else (),
        _missing(free64, runs),
    )
    return found, judge(evidence)


def _missing(free64: DiffResult | None, runs: list[Following]) -> tuple[str, ...]:
    """What could be told with more."""
    lines = []
    if free64 is None:
        lines.append("not given: both runs in float64 (--referee-a, --referee-b), to tell rounding")
    if not runs:
        lines.append("not given: a following run (--followed-a, --followed-b), which decides")
    return tuple(lines)
