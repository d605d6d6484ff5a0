"""A run once more, of a twin or of a script: in another dtype, following another side, in part."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from harness.runs.files import R, relabelled
from harness.spec import AnyRun, Capture, Dtype, Follow, HandOver, Resume, RunSpec, ScriptSpec
from harness.trace import open_trace


def dtype_of(run: AnyRun) -> Dtype:
    """The dtype of a run; of a script that was asked for none, that of its trace."""
    if isinstance(run, RunSpec):
        return run.train.dtype
    own = run.dtype or open_trace(run.trace).header.dtype
    return "float64" if own == "float64" else "float32"  # a narrower one beside float32 is no run


def in_dtype(run: R, dtype: Dtype) -> R:
    """The run in a dtype, from the start and on the inputs that it had.

    What a script draws by itself, for its weights or for a batch, is other in another dtype.
    """
    if isinstance(run, RunSpec):
        return replace(run, train=replace(run.train, dtype=dtype))
    assert isinstance(run, ScriptSpec)
    asked = None if run.dtype is None and dtype == dtype_of(run) else dtype
    own = HandOver(("weights", "inputs"), run.trace)
    masks = tuple(replace(h, what=("masks",)) for h in run.replay if "masks" in h.what)
    return replace(run, dtype=asked, replay=(own, *masks))


def again(run: R, label: str, steps: int, **changes: Any) -> R:
    """The run once more under another label, to `steps`, with everything traced."""
    changed: dict[str, Any] = {"capture": Capture(), "follow": None, "steps": steps, **changes}
    return replace(relabelled(run, label), **changed)


def following(run: R, follow: Follow, start: int) -> R:
    """The run as a follower of another, from step `start` on."""
    return replace(run, follow=follow, start=start, resume=None)


def resumed(run: R, resume: Resume) -> R:
    """The run from a checkpoint on. A script goes through its steps and leaves them untraced."""
    return replace(run, start=resume.step + 1, resume=resume)
