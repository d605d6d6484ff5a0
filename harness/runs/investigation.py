"""The further runs that a verdict needs: both precisions, each side following the other, a referee.

Nothing here judges: the runs are made, compared, and handed to `harness.explain`.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from harness.compare import DiffResult, Tolerance, diff
from harness.compare.diff import Difference
from harness.errors import HarnessError
from harness.explain.case import Side, distance
from harness.explain.evidence import Evidence, Following, Repeat, Vote
from harness.explain.verdict import Verdict, judge
from harness.runs.files import run_bytes
from harness.runs.maps import Maps
from harness.runs.repeats import find_repeats
from harness.runs.session import Session
from harness.runs.variants import again, dtype_of, following, in_dtype, resumed
from harness.spec import AnyRun, Capture, Dtype, Follow, Resume, RunSpec, ScriptSpec
from harness.trace import open_trace, remove_trace
from harness.trace.dtypes import epsilon

LARGE = 4 << 30  # bytes of further traces up to which all steps are judged, and nothing is removed
# Traces that a verdict needs beside the run's own, as multiples of one float32 trace: two sides in
# float64, and two following sides in either precision.
TRACES = 2 * 2 + 2 * 1 + 2 * 2


class Investigation:
    """The further runs of one pair of sides. `runs` are (a, b), the reference last."""

    def __init__(
        self,
        session: Session,
        runs: tuple[AnyRun, AnyRun],
        free: DiffResult,
        sides: tuple[str, str] | None = None,
        maps: Maps | None = None,
        exclude: tuple[str, ...] = (),
    ) -> None:
        """Nothing runs yet. `free` is the diff of `runs`, which have ended.

        `sides` are the session's labels of the sides (None: those of the runs); `maps` has that
        through which the runs are compared, if there is one; `exclude` is what is never compared.
        """
        self.maps, self.exclude = maps, exclude or runs[1].capture.exclude
        self.session, self.runs, self.free = session, runs, free
        self.sides = sides or (runs[0].label, runs[1].label)
        self.folder = Path(runs[0].trace).parent
        self.lacking: list[str] = []
        self.made: list[str] = []
        self.repeats: tuple[Repeat, ...] = ()
        self.scripts = any(isinstance(run, ScriptSpec) for run in runs)

    def verdict(self) -> Verdict:
        """Run what is needed and judge; what could not be run is said in the evidence."""
        own = dtype_of(self.runs[0])
        if self.free.status == "structure" or own != dtype_of(self.runs[1]):
            return judge(Evidence(self.free))
        first, last = self._window()
        if not last:
            return judge(Evidence(self.free, lacking=tuple(self.lacking)))
        self._check_repeats()
        pairs = self._pairs(first, last)
        followed: dict[Dtype, tuple[Following, ...]] = {}
        wrong = next((why for run in self.runs if (why := cannot_follow(run))), None)
        if wrong:
            self.lacking.append(f"not followed: {wrong}")
        else:
            followed = {d: self._follow(d, pair, last) for d, pair in pairs.items()}
        free64 = None
        # From a later step than the first the runs in float64 set out together, and the free ones
        # with all that they had grown apart: those gaps are no measure of one another.
        if first == 1 and own == "float32" and "float64" in pairs:
            free64 = self._diff("float64 diff", *pairs["float64"])
        evidence = Evidence(
            self.free,
            free64,
            followed.get("float32", ()),
            followed.get("float64", ()),
            tuple(self.lacking),
            self.repeats,
            self.scripts,
        )
        verdict = judge(evidence, self._vote)
        if self._bytes(last - first + 1) > LARGE:
            for trace in self.made:
                remove_trace(trace)
        return verdict

    def _check_repeats(self) -> None:
        """Find out which sides do not repeat themselves, before anything is made of their runs."""
        try:
            self.repeats = find_repeats(self.session, self.runs, self.sides, self.free)
        except HarnessError as error:
            self.lacking.append(f"not run again: {str(error).split(chr(10), 1)[0]}")
        self.lacking += [
            f"every further run of {repeat.label} had a process of its own"
            for repeat in self.repeats
            if repeat.fresh
        ]

    def _window(self) -> tuple[int, int]:
        """The steps to judge: all that are traced, or, of large traces, those up to the divergence.

        The last one is 0 where there is no room for their traces.
        """
        traced = open_trace(self.runs[1].trace).steps
        first, last = traced[0] if self.runs[1].capture.first > 1 else 1, traced[-1]
        if self._bytes(last - first + 1) > LARGE:
            divergence = self.free.first_divergence
            # Following from a later step than the first needs the two before it.
            last = max(divergence.step, first + 2 if first > 1 else 1) if divergence else last
            self.lacking.append(
                f"only steps {first} to {last} were judged: --follow=stage takes all"
            )
        free, needed = shutil.disk_usage(self.folder).free, self._bytes(last - first + 1)
        if needed > 0.9 * free:
            self.lacking = [
                f"not run in float64 and following: {needed >> 20:,} MiB of traces, and "
                f"{self.folder} has {free >> 20:,} MiB left: free some, or choose another folder"
            ]
            return first, 0
        return first, last

    def _bytes(self, steps: int) -> int:
        return run_bytes(self.runs[1]) * steps * TRACES

    def _pairs(self, first: int, last: int) -> dict[Dtype, tuple[str, str]]:
        """Traces of both sides that hold everything, in either precision that could be run.

        From a later step than the first, the other precision sets out from what the reference's
        trace holds of that step (of scripts, from what each side's own does).
        """
        own = dtype_of(self.runs[0])
        other: Dtype = "float32" if own == "float64" else "float64"
        window = Capture(first=first, last=last)
        pairs: dict[Dtype, tuple[str, str]] = {}
        pair: tuple[str, str] | None = (self.runs[0].trace, self.runs[1].trace)
        # A run that followed another is not what its own trace would lead to.
        if not all(_whole(run.capture) and run.follow is None for run in self.runs):
            made = [self._variant(run, own, f"{run.label}-{own}", last) for run in self.runs]
            pair = self._traces([replace(run, capture=window) for run in made])
        if pair is None:
            return {}
        pairs[own] = pair
        wide = [self._variant(run, other, f"{run.label}-{other}", last) for run in self.runs]
        if first > 1:
            # What a script can take is in its own names: each side sets out from its own trace.
            begun = pair if self.scripts else (pair[1], pair[1])
            wide = [resumed(r, Resume(p, first)) for r, p in zip(wide, begun, strict=True)]
        others = self._in_dtype(self._traces(wide), other)
        if others and other == "float64":
            self.lacking += [line for path in others if (line := _narrower(path))]
        return pairs | ({other: others} if others else {})

    def _in_dtype(self, traces: tuple[str, str] | None, dtype: Dtype) -> tuple[str, str] | None:
        """The same traces, if both are of this dtype: a script may do as it likes."""
        for path in traces or ():
            header = open_trace(path).header
            if header.dtype != dtype:
                self.lacking.append(
                    f"not judged in {dtype}: asked for it, {header.label} computed in "
                    f"{header.dtype}; let it take its dtype from the framework's default"
                )
                return None
        return traces

    def _follow(self, dtype: Dtype, pair: tuple[str, str], last: int) -> tuple[Following, ...]:
        """Each side given the other's inputs, and how far apart that leaves every stage."""
        a, b = self.runs
        traced = open_trace(pair[1]).steps[0]
        start = traced + 1 if traced > 1 else 1  # a follower starts from the step before
        if start > last:
            return ()
        jobs: dict[Side, AnyRun] = {}
        kinds: tuple[tuple[Side, AnyRun, AnyRun, str], ...] = (
            ("a", a, b, pair[1]),
            ("b", b, a, pair[0]),
        )
        for side, run, other, trace in kinds:
            label = f"{run.label}-follows-{other.label}-{dtype}"
            variant = self._variant(run, dtype, label, last)
            follow = Follow(trace, "stage")
            if self.maps:
                leader = replace(other, trace=trace)
                follow = self.maps.follow(run.label, leader, "stage", (a.label, b.label))
            if isinstance(run, RunSpec) and follow.map:
                continue  # a twin has no names but its own
            if self.scripts:  # what is known to differ in meaning is no input of the other's
                follow = replace(follow, exclude=self.exclude)
            jobs[side] = following(variant, follow, start)
        if not self._all_run({self.sides["ab".index(side)]: jobs[side] for side in jobs}):
            return ()
        self.made += [run.trace for run in jobs.values()]
        traces = {
            side: (run.trace, pair[1]) if side == "a" else (pair[0], run.trace)
            for side, run in jobs.items()
        }
        return tuple(
            Following(side, self._diff(f"{dtype} following, {i} of {len(jobs)}", *both, start))
            for i, (side, both) in enumerate(traces.items(), start=1)
        )

    def _traces(self, runs: Sequence[AnyRun]) -> tuple[str, str] | None:
        """Run both sides; their traces, or None where a side failed."""
        if not self._all_run(dict(zip(self.sides, runs, strict=True))):
            return None
        return runs[0].trace, runs[1].trace

    def _all_run(self, runs: Mapping[str, AnyRun]) -> bool:
        """Run the sides with these labels; whether none failed."""
        for repeat in self.repeats:
            if repeat.fresh:
                self.session.renew(repeat.label)
        try:
            self.session.run_all(list(runs.items()))
        except HarnessError as error:
            self.lacking.append(str(error).split("\n", 1)[0])
            return False
        return True

    def _variant(self, run: AnyRun, dtype: Dtype, label: str, last: int) -> AnyRun:
        """The run again, in `dtype`, to step `last`, with everything traced."""
        return again(in_dtype(run, dtype), label, last)

    def _diff(self, what: str, a: str, b: str, start: int | None = None) -> DiffResult:
        """The diff of two runs; from step `start` on, of a follower and what it followed."""
        labels = self.runs[0].label, self.runs[1].label
        shown: dict[str, Any] = {"progress": self.session.watcher.part(what)}
        shown["alignment"] = self.maps.known(*labels) if self.maps else None
        if self.scripts:  # whose further runs trace all, for they need it
            shown["exclude"] = self.exclude
        if start is None:
            return diff(a, b, **shown)
        return diff(a, b, all=True, tolerance=Tolerance.local(), steps=(start, None), **shown)

    def _vote(self, shown: Following, place: Difference) -> Vote | None:
        """How far each side is from the referee at one place, all three given the same inputs."""
        a, b = self.runs
        if not isinstance(a, RunSpec) or not isinstance(b, RunSpec):
            return None
        plain: dict[str, Any] = {"dtype": "float64", "compile": False, "autograd": False}
        if a.model != b.model or replace(a.train, **plain) != replace(b.train, **plain):
            return None  # told to do different things: no third can say which is right
        if place.tensor == "update/learning_rate" and b.train.schedule == "plateau":
            return None  # it starts at this step and does not know the losses before it
        followed = shown.found.b if shown.follower == "a" else shown.found.a
        variant = replace(
            again(b, "referee", place.step),
            train=replace(b.train, **plain),
            resume=None,
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
        scale = (place.atol / place.rtol) if place.rtol else 0.0
        eps = epsilon(place.dtype) or 2.0**-52
        near = (distance(x, judged, eps, scale), distance(y, judged, eps, scale))
        return Vote("NumPy, float64", *near)


def cannot_follow(run: AnyRun) -> str | None:
    """Why nothing can be put in place of what a run's stages make."""
    if isinstance(run, RunSpec):
        compiled = "a compiled step is one piece, and following goes stage by stage"
        return compiled if run.train.compile else None
    if open_trace(run.trace).header.framework:
        return None
    return f"{run.label} records no model of a framework: give it to harness.record"


def _narrower(path: str) -> str | None:
    """What stayed narrower in a float64 run, in words."""
    trace = open_trace(path)
    floats = ("float32", "float16", "bfloat16")
    names = [e.name for step in trace.steps[:1] for e in trace.entry(step).tensors]
    narrow = [
        e.name
        for step in trace.steps[:1]
        for e in trace.entry(step).tensors
        if e.dtype in floats and not e.name.startswith("inputs/")
    ]
    if not narrow:
        return None
    return (
        f"in the float64 run of {trace.header.label} {len(narrow)} of {len(names)} tensors are "
        f"narrower, such as {narrow[0]}: they convict nobody"
    )


def _whole(capture: Capture) -> bool:
    """Whether all tensors of all steps of a window are kept."""
    return capture == Capture(first=capture.first, last=capture.last)
