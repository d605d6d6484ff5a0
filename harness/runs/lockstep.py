"""A long run once more, every step of one side from the other's state: rounding cannot grow.

The reference leads: a stretch of it is run with the state of every step kept; the other side
follows it step by step; what is known of both is compared; the stretch is removed. So the disk
holds two stretches, however long the run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from msgspec.structs import replace

from harness.runs.files import relabelled, remove_files, state_bytes
from harness.runs.session import Session
from harness.spec import AnyRun, Capture, Follow, Resume, ScriptSpec
from harness.trace import StepEntry, open_trace

STRETCH = 1 << 30  # bytes of kept states in a stretch
SHORTEST, LONGEST = 4, 500  # steps of one


def run_in_lockstep(
    session: Session,
    runs: tuple[AnyRun, AnyRun],
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[tuple[StepEntry, StepEntry]]:
    """What the index says of every step of both `runs`: follower and leader.

    The follower starts every step from what the leader left of the one before. Nothing of it all is
    left on the disk. Raises HarnessError for a side that fails.
    """
    follower, leader = runs
    steps, length = leader.steps, _stretch_length(leader)
    bounds = [(s, min(s + length, steps)) for s in range(0, steps, length)]
    made: list[AnyRun] = []
    # While the leader runs a stretch, the follower runs the one before it.
    following: AnyRun | None = None
    followed: AnyRun | None = None
    try:
        for i, (done, last) in enumerate([*bounds, (steps, steps)]):
            leading = _leading(leader, i, done, last, followed) if done < last else None
            made += [run for run in (leading, following) if run]
            jobs = [session.start(leader.label, leading, show=False)] if leading else []
            jobs += [session.start(follower.label, following, show=False)] if following else []
            session.wait(jobs)
            if following and followed:
                a, b = open_trace(following.trace), open_trace(followed.trace)
                for step in a.steps:
                    yield a.entry(step), b.entry(step)
                    if progress:
                        progress(step, steps)
                remove_files(following)
                remove_files(followed)
            following = _following(follower, i, done, last, leading) if leading else None
            followed = leading
    finally:
        for run in made:
            remove_files(run)


def _leading(run: AnyRun, i: int, done: int, last: int, before: AnyRun | None) -> AnyRun:
    """The stretch of the leader after step `done`, with that step: it is followed from there.

    A script that leads goes through the steps before it once more.
    """
    twin = not isinstance(run, ScriptSpec)
    resume = Resume(before.trace, done - 1) if before and twin else None
    capture = Capture(level="stats", checkpoint_every=1)
    stretch = relabelled(run, f"{run.label}-lockstep-{i}")
    whole = ("inputs/",)  # which a script that follows is handed, too
    again = replace(stretch, start=max(1, done), steps=last, resume=resume, capture=capture)
    return replace(again, whole=whole)


def _following(run: AnyRun, i: int, done: int, last: int, leading: AnyRun) -> AnyRun:
    """The same stretch of the follower."""
    follow, capture = Follow(leading.trace, "step"), Capture(level="stats")
    stretch = relabelled(run, f"{run.label}-lockstep-{i}")
    return replace(stretch, start=done + 1, steps=last, resume=None, follow=follow, capture=capture)


def _stretch_length(run: AnyRun) -> int:
    """Steps of a stretch: as many as STRETCH has room for the states of.

    Those of a script are as long as they can be, as each begins with all steps before it.
    """
    room = max(STRETCH // max(1, state_bytes(run)), SHORTEST)
    return room if isinstance(run, ScriptSpec) else min(room, LONGEST)
