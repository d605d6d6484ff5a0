"""The runs of a request, in the order in which one is handed or follows what another has left."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from harness.runs.files import remove_files
from harness.runs.maps import Maps
from harness.runs.processes import Job
from harness.runs.request import Request
from harness.runs.session import Session
from harness.runs.variants import again, following
from harness.spec import AnyRun, HandOver, ScriptSpec


def run_all(session: Session, runs: Sequence[AnyRun], request: Request, maps: Maps) -> list[Job]:
    """Run every side to its end, the reference last in the list.

    What follows the reference, or is handed something of it, runs after it. Raises HarnessError
    for a side that fails.
    """
    level, handed = request.judging.follow, request.execution.hand_over
    sequential = request.execution.sequential
    seed = int(request.computation.settings.get("seed", 1))
    masks = HandOver(("masks",), seed=seed) if "masks" in handed else None
    runs = [_with(run, masks) for run in runs]
    start = tuple(what for what in handed if what != "masks")
    if level is None and not start:
        jobs = session.run_all([(run.label, run) for run in runs], sequential)
        return [jobs[run.label] for run in runs]
    *others, leader = runs
    jobs = session.run_all([(leader.label, leader)])
    _find_maps(session, others, leader, maps)
    after = []
    for run in others:
        if start and isinstance(run, ScriptSpec):
            run = _with(run, maps.hand_over(run, HandOver(start), leader))
        if level is not None:
            pair = run.label, leader.label
            run = following(run, maps.follow(run.label, leader, level, pair), run.start)
        after.append((run.label, run))
    jobs |= session.run_all(after, sequential)
    return [jobs[run.label] for run in runs]


def _with(run: AnyRun, hand: HandOver | None) -> AnyRun:
    """A script that is handed something more."""
    if hand is None or not isinstance(run, ScriptSpec):
        return run
    return replace(run, replay=(*run.replay, hand))


def _find_maps(session: Session, others: Sequence[AnyRun], leader: AnyRun, maps: Maps) -> None:
    """Which tensor of the others is which of the leader's, from a first step of their own."""
    probes = [again(run, f"{run.label}-first", 1) for run in others if _needs(run, leader)]
    session.run_all([(run.label.removesuffix("-first"), run) for run in probes])
    for probe in probes:
        label = probe.label.removesuffix("-first")
        maps.of(replace(probe, label=label), leader)
        remove_files(probe)


def _needs(run: AnyRun, leader: AnyRun) -> bool:
    return isinstance(run, ScriptSpec) or isinstance(leader, ScriptSpec)
