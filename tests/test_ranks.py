"""The traces of several ranks, read as one."""

from pathlib import Path

import numpy as np
import pytest

import harness
from harness.trace import check_trace


def _write(folder: Path, monkeypatch: pytest.MonkeyPatch, drift: bool = False) -> Path:
    """Two ranks that share a weight and have inputs of their own."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        with harness.record(out=folder) as rec:
            for step in range(1, 4):
                with rec.step(x=np.full(3, float(rank))):
                    w = np.full(2, step + (rank * drift if step > 1 else 0.0))
                    rec.log(params={"w": w})
    return folder


def test_ranks_are_read_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is shared comes once, what is a rank's own under its name, with its own elements."""
    step = harness.open_trace(_write(tmp_path / "a.trace", monkeypatch)).step(2)
    assert [e.name for e in step.entries] == ["inputs/rank0/x", "inputs/rank1/x", "params/w"]
    assert step.read(step.find("inputs/rank1/x")).tolist() == [1.0, 1.0, 1.0]
    checked = check_trace(tmp_path / "a.trace")
    assert (checked.complete, checked.faults) == (True, ())


def test_ranks_that_drift_apart_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A weight that is not the same on all ranks is a difference and a note."""
    a = _write(tmp_path / "a.trace", monkeypatch, drift=True)
    b = _write(tmp_path / "b.trace", monkeypatch)
    found = harness.diff(a, b)
    assert any("ranks differ in params/w from step 2 on" in note for note in found.notes)
    assert [s.tensor for s in found.structure] == ["params/rank1/w"]
