"""What a run must trace so that it can be started again, or followed."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from harness.errors import HarnessError
from harness.models.table import restart_names
from harness.observer import Observer
from harness.spec import Capture, RunSpec

CHECKPOINTS = 5  # a run that keeps no tensors has one fewer, evenly spread


def with_checkpoints(capture: Capture, steps: int, zooms: bool, follows: bool) -> Capture:
    """What to trace in a run of `steps`, with checkpoints where tensors are not kept.

    Raises HarnessError for a level that cannot be zoomed into, or followed.
    """
    if zooms:
        require_zoomable(capture)
    if capture.level == "full":
        return capture
    if follows:
        raise HarnessError(
            f"--follow --level {capture.level}: what is followed must be kept: use --level full"
        )
    # Few: of the small model over PTB, each is as large as the statistics of 300 steps.
    every = capture.checkpoint_every or steps // CHECKPOINTS + 1
    return replace(capture, checkpoint_every=every)


def require_zoomable(capture: Capture) -> None:
    """Raises HarnessError unless a run that keeps this much can be zoomed into."""
    if capture.level == "full":
        raise HarnessError(
            "--level full --zoom: full traces hold everything already; zoom is for --level stats"
        )
    if capture.level == "hash":
        raise HarnessError(
            "--level hash --zoom: hashes cannot tell a rounding from a fault; use --level stats"
        )


def restartable(runs: Sequence[RunSpec], option: str, watcher: Observer) -> list[RunSpec]:
    """The runs, without checkpoints where --include or --exclude leave holes in them.

    `option` is the one that cannot do without, or "". Raises HarnessError for holes under it.
    """
    whole = "all of params/*, optimizer/* and state/out/*"
    for run in runs:
        capture, names = run.capture, restart_names(run.model, run.train)
        hole = next((name for name in names if not capture.wants(name)), None)
        if hole and option:
            raise HarnessError(
                f"{option}: --include or --exclude drop {hole}, and {whole} must be traced for "
                f"it: let them through, or leave {option.split()[0]} out"
            )
        if option == "--follow" and not all(map(capture.wants_step, range(1, run.steps + 1))):
            raise HarnessError(
                "--follow: what is followed must be traced at every step: leave --every and "
                "--steps out"
            )
        if hole and capture.checkpoint_every:
            watcher.note(
                f"no checkpoints are kept, for --include or --exclude drop {hole}, and one has "
                f"{whole}: harness zoom would have to start from the beginning"
            )
            without = replace(capture, checkpoint_every=None)
            return [replace(other, capture=without) for other in runs]
    return list(runs)
