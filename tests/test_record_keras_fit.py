"""Recording model.fit of Keras: the example's CNN, by its one line. All else of Keras is slow."""

import subprocess
import sys
from pathlib import Path

import pytest
from recorded.stages import disagreeing, without_stage

import harness

SCRIPT = Path(__file__).parent.parent / "examples" / "images" / "cnn_keras.py"


@pytest.fixture(scope="module")
def trace(tmp_path_factory):
    """What the script leaves."""
    folder = tmp_path_factory.mktemp("fit")
    subprocess.run(
        [sys.executable, SCRIPT, "--steps", "3"], cwd=folder, check=True, capture_output=True
    )
    return folder / "traces" / "cnn_keras.trace"


def test_each_batch_of_fit_is_a_step(trace):
    opened = harness.open_trace(trace)
    assert (opened.header.complete, opened.steps) == (True, (1, 2, 3))
    names = {entry.name for entry in opened.entry(2).tensors}
    assert {"inputs/x", "inputs/y", "forward/conv1", "backward/bn1", "grads/head/kernel"} <= names
    assert {"buffers/bn2/moving_variance", "params/conv2/bias", "forward/loss"} <= names


def test_every_stage_of_it_gives_what_the_trace_holds(trace):
    wrong, right = disagreeing(trace)
    # The gradient of a bias before a batch normalization is zero but for rounding.
    assert {name for _, name, _ in wrong} <= {"grads/conv1/bias", "grads/conv2/bias"}
    assert len(right) > 120
    assert without_stage(trace) == []
