"""Running pytest, with the plugin, on tests as users write them."""

import re
from pathlib import Path

import pytest

import harness.pytest_plugin
import harness.testing.golden  # noqa: F401  # the runs in this process find it and NumPy imported

ROOT = Path(__file__).parent.parent

# A training script in NumPy. LR, STEPS, EXTRA, BAD and VERSION in the environment change it.
TRAIN = """
import os
import numpy as np
import pytest

def setting(name, otherwise):
    return type(otherwise)(os.environ.get(name, otherwise))

def train(recorder, lr=0.1, steps=3, extra=False, bad=0.0):
    w, x = np.arange(6.0).reshape(2, 3) + 1, np.linspace(-1, 1, 8).reshape(4, 2)
    with recorder as rec:
        for step in range(steps):
            with rec.step(x=x) as given:
                y = np.tanh(given @ w)
                g = given.T @ (y * (1 - y * y))
                w = w - lr * g + bad
                rec.log(loss=float((y**2).sum()))
                rec.log(**{"forward/y": y, "grads/w": g, "params/w": w})
                if extra:
                    rec.log(more=1.0)
    return rec

def asked(recorder):
    return train(
        recorder, setting("LR", 0.1), setting("STEPS", 3), bool(setting("EXTRA", "")),
        setting("BAD", 0.0),
    )
"""

GOLDEN = """
def test_run(harness):
    harness.assert_golden(asked(harness.record(name="run")), "run")
"""

VERSIONED = """
def test_run(harness, tmp_path):
    version = {"torch": setting("VERSION", "2.12.0")}
    path = tmp_path / "run.trace"
    with harness.TraceWriter(path, label="run", dtype="float32", framework=version) as trace:
        trace.write(1, {"forward/loss": np.float32(setting("LOSS", 2.5))})
    harness.assert_golden(path, "run")
"""


@pytest.fixture
def run(pytester, monkeypatch):
    """Runs pytest, with the plugin, on a test module that has the training script before it."""
    for name in ("LR", "STEPS", "EXTRA", "BAD", "VERSION", "LOSS", "PYTEST_ADDOPTS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # other plugins take their time
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("XDG_CACHE_HOME", str(pytester.path / "cache"))

    def run(body=None, *options, process=False, **environment):
        if body is not None:
            pytester.makepyfile(test_it=TRAIN + body)
        with monkeypatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, str(value))
            how = pytester.runpytest_subprocess if process else pytester.runpytest_inprocess
            return how("-p", "harness.pytest_plugin", *options)

    return run


def message(result):
    """The lines of the assertion's message."""
    return [line[1:].strip() for line in result.outlines if re.match(r"E  ", line)]


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}
