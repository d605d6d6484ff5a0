"""A LightningModule that a Trainer fits: each update of its weights is a step."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from recorded.stages import disagreeing

import harness
from harness.errors import HarnessError

SCRIPT = Path(__file__).parent / "recorded" / "lightning_fit.py"
needs_lightning = pytest.mark.skipif(
    not any(find_spec(name) for name in ("lightning", "pytorch_lightning")),
    reason="no Lightning: pip install 'twin-harness[lightning]'",
)


def fit(folder, *words):
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parents[2])}
    command = [sys.executable, str(SCRIPT), *map(str, words)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@needs_lightning
@pytest.mark.parametrize("accumulate", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_a_fit_is_recorded_and_computes_what_it_does_unwatched(accumulate, tmp_path):
    fit(tmp_path, "bare.pt", "--accumulate", accumulate)
    fit(tmp_path, "seen.pt", "--accumulate", accumulate, "--record")
    bare, seen = (torch.load(tmp_path / name) for name in ("bare.pt", "seen.pt"))
    assert all(torch.equal(bare[name], seen[name]) for name in bare)
    trace = harness.open_trace(tmp_path / "traces" / "fit.trace")
    assert list(trace.steps) == list(range(1, 12 // accumulate + 1))
    names = [entry.name for entry in trace.entry(2).tensors]
    for name in ("forward/inward", "backward/inward", "grads/inward/weight", "forward/loss"):
        assert name in names
    for name in ("update/clipped/inward/weight", "update/global_norm", "optimizer/inward/weight/m"):
        assert name in names
    batches = [name for name in names if name.startswith("inputs/x")]
    assert len(batches) == accumulate
    wrong, right = disagreeing(tmp_path / "traces" / "fit.trace")
    assert wrong == []
    assert len(right) > 12


@pytest.mark.slow
@needs_lightning
def test_a_fit_is_a_side(tmp_path):
    sides = [f"mine={SCRIPT} a.pt --record --rate 0.02", f"theirs={SCRIPT} b.pt --record"]
    found = harness.run_sides(sides=sides, trace=3, out=tmp_path).verdict
    assert found.label == "bug"
    assert "mine takes 0.02, 2 times the 0.01 of theirs" in found.causes[0].sentence


def test_a_module_that_no_trainer_fits_is_refused():
    with pytest.raises(HarnessError, match="a Linear is no LightningModule: put"):
        harness.callback(torch.nn.Linear(2, 2))
