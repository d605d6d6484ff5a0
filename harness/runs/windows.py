"""A few steps of long runs once more, traced in full: the same to the last bit, or it is said.

A twin starts again from a checkpoint. The data of a script, its schedules and its generators can
not be put forward, so a script goes through all of its steps, unwatched but for the window. One
that does not repeat itself does so once more, and is given what a checkpoint holds on the way.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from msgspec.structs import replace

from harness.explain import Verdict
from harness.runs.files import relabelled
from harness.runs.repeats import Place, first_difference
from harness.runs.session import Session
from harness.spec import STATE, AnyRun, Capture, Resume, RunSpec, ScriptSpec
from harness.trace import Trace, open_trace


class Again(NamedTuple):
    """A window of a run: the run that made it, whether it is the long one's bits, and what not."""

    run: AnyRun
    same_bits: bool
    said: str | None = None


def run_window(
    session: Session, runs: tuple[AnyRun, AnyRun], step: int, first: int, last: int
) -> tuple[int, tuple[Again, Again]]:
    """Run both of the long `runs` again, for a look at `step`, traced in full from first to last.

    Returns also the checkpoint from which twins set out (0: the beginning).
    """
    checkpoint = _last_kept((run for run in runs if isinstance(run, RunSpec)), first - 1)
    window = Capture(first=first, last=last)
    jobs: list[tuple[AnyRun, AnyRun]] = []
    for run in runs:
        again = relabelled(run, f"{run.label}-step{step}")
        begun = checkpoint if isinstance(run, RunSpec) else 0
        resume = Resume(run.trace, begun) if begun else None
        again = replace(again, steps=last, capture=window, resume=resume, start=begun + 1)
        jobs.append((run, again))
    session.run_all([(long.label, short) for long, short in jobs])
    a, b = (_checked(session, long, short, first) for long, short in jobs)
    return checkpoint, (a, b)


def _checked(session: Session, long: AnyRun, short: AnyRun, first: int) -> Again:
    """The window, made again with the help of a checkpoint where it is not the long run's bits."""
    place = first_difference(long.trace, short.trace)
    if place is None or not isinstance(long, ScriptSpec):
        return Again(short, place is None)
    said = f"{long.label} does not repeat itself: run again, {_words(place)} has other bits"
    kept = _last_kept([long], first - 1)
    wrong = cannot_restore(open_trace(long.trace), open_trace(short.trace), kept)
    if wrong:
        return Again(short, False, f"{said}, and {wrong}: {_INEXACT}")
    resumed = replace(short, start=kept + 1, resume=Resume(long.trace, kept))
    session.run_all([(long.label, resumed)])
    place = first_difference(long.trace, resumed.trace)
    begun = f"with weights, buffers and slots of the checkpoint of step {kept} put in place"
    if place is None:
        return Again(resumed, True, f"{said}; {begun}, all of the window has the same bits")
    return Again(resumed, False, f"{said}; {begun}, {_words(place)} has still: {_INEXACT}")


def doubted(verdict: Verdict, labels: tuple[str, str], restless: Sequence[str]) -> Verdict:
    """A verdict on a window in which sides were not what they were: it acquits nobody.

    A fault that it shows is one, whatever the run before had.
    """
    if verdict.label not in ("identical", "close", "rounding"):
        return verdict
    who = " and ".join(restless)
    return replace(
        verdict,
        label="undecided",
        sentence=f"the evidence on {labels[0]} and {labels[1]} does not decide",
        next=f"give {who} a seed for all that is drawn, and run again with --zoom",
    )


_INEXACT = "zoom cannot be exact, and looked at another run of it"


def _words(place: Place) -> str:
    return f"{place.tensor} of step {place.step}"


def _last_kept(runs: Iterable[AnyRun], latest: int) -> int:
    """The last step, up to `latest`, of which all of the runs kept a checkpoint (0: there is none).

    0 also where there are no runs.
    """
    kept = []
    for run in runs:
        trace = open_trace(run.trace)
        every = trace.header.capture.checkpoint_every
        kept.append({s for s in trace.steps if every and s <= latest and not s % every})
    return max(set.intersection(*kept), default=0) if kept else 0


def cannot_restore(long: Trace, short: Trace, kept: int) -> str | None:
    """Why what the long run kept of a step cannot be put in place, in words; None where it can."""
    if not long.header.framework:
        return "it records no model of a framework, into which a checkpoint could be put"
    if not kept:
        return "no checkpoint was kept before (--checkpoint-every N)"
    there = {e.name for e in long.entry(kept).tensors if e.stored}
    needed = (e.name for e in short.entry(short.steps[0]).tensors if e.name.startswith(STATE))
    hole = next((name for name in needed if name not in there), None)
    return f"the checkpoint of step {kept} has no {hole} (--include, --exclude)" if hole else None
