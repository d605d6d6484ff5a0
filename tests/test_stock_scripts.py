"""Scripts of stock layers, PyTorch against Keras: no clean pair is accused, every fault is.

The clean pairs are odd in ways that correct programs are: gradients that are zero but for rounding
(the bias of a convolution before batch normalization, that of attention's keys), constants that
Keras rounds to float32 in float64 runs too, and ReLUs whose sign is rounding's to choose. Adam
moves a weight as far for a gradient that is noise as for any other.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from some import some

from harness.explain import explain_traces
from harness.trace import open_trace

ROOT = Path(__file__).parent.parent
SCRIPTS = ROOT / "tests" / "stock_scripts"
CLEAN = {
    "cnn": {
        "odd": (),
        "plain": ("--plain",),
        "adam": ("--adam",),
        "flips in float32": ("--plain", "--flip", "float32"),
        "flips in both": ("--plain", "--flip", "float64"),
    },
    "transformer": {"odd": (), "plain": ("--plain",)},
}
# Which fault is made of what, and the tensor that it touches first, at step 1.
FAULTS = {
    "cnn": {
        "batchnorm-momentum": "buffers/bn1/mean",
        "loss-sum": "forward/loss",
        "kernel-transposed": "inputs/params/conv2/kernel",
        "conv-bfloat16": "forward/conv2",
        "bias-dropped": "forward/logits",
        "gradient-doubled": "grads/conv2/kernel",
        "leaky-relu": "forward/relu1",
    },
    "transformer": {
        "layernorm-epsilon": "forward/block0/norm1",
        "gelu-tanh": "forward/block0/gelu",
        "loss-sum": "forward/loss",
        "kernel-transposed": "inputs/params/block0/output/kernel",
        "bias-dropped": "forward/block0/narrow",
        "scale-missing": "forward/block0/attention",
        "gradient-doubled": "grads/block0/wide/kernel",
    },
}
DTYPES = ("float32", "float64")
FRAMEWORKS = ("torch", "keras")
INNOCENT = ("identical", "close", "rounding", "undecided")


class Scripts:
    """Every script in a process of its own, started when first asked for a trace."""

    def __init__(self, folder):
        self.folder, self.processes, self.made = folder, {}, set()

    def start(self, script):
        environment = dict(os.environ, PYTHONPATH=str(ROOT), TF_CPP_MIN_LOG_LEVEL="3")
        with open(self.folder / f"{script}.log", "w") as log:
            self.processes[script] = subprocess.Popen(
                [sys.executable, str(SCRIPTS / "several.py"), script],
                env=environment,
                text=True,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
            )

    def trace(self, model, framework, dtype, *options):
        """The trace of one run, made at the first call."""
        script = f"{model}_{framework}"
        path = self.folder / "_".join([script, dtype, *options])
        if path not in self.made:
            for each in (f"{model}_torch", f"{model}_keras"):  # both import at the same time
                if each not in self.processes:
                    self.start(each)
            process = self.processes[script]
            line = ["--dtype", dtype, "--out", str(path), *options]
            process.stdin.write(json.dumps(line) + "\n")
            process.stdin.flush()
            if process.stdout.readline() != "done\n":
                self.processes.pop(script).communicate()  # others get a new one
                pytest.fail((self.folder / f"{script}.log").read_text()[-2000:])
            self.made.add(path)
        return path

    def verdict(self, a, b, precision):
        """The verdict over runs (model, framework, *options) in float32, float64, or both."""
        pairs = {d: [self.trace(*run[:2], d, *run[2:]) for run in (a, b)] for d in DTYPES}
        if precision == "both":
            referees = dict(zip(("referee_a", "referee_b"), pairs["float64"], strict=True))
            return explain_traces(*pairs["float32"], **referees)[1]
        return explain_traces(*pairs[precision])[1]

    def close(self):
        for process in self.processes.values():
            process.communicate()


@pytest.fixture(scope="session")
def scripts(tmp_path_factory):
    made = Scripts(tmp_path_factory.mktemp("stock"))
    yield made
    made.close()


def places(models):
    """The rows of a table of models, each with what is in it."""
    return [(model, name) for model, names in models.items() for name in names]


@pytest.mark.parametrize("reference", FRAMEWORKS)
@pytest.mark.parametrize("precision", some(["float32", "float64", "both"], fast=["both"]))
@pytest.mark.parametrize("seed", some(range(1, 7), fast=(6,)))
@pytest.mark.parametrize(("model", "variant"), places(CLEAN))
def test_a_clean_pair_is_not_accused(scripts, model, variant, seed, precision, reference):
    options = (*CLEAN[model][variant], "--seed", str(seed))
    a, b = sorted(FRAMEWORKS, key=lambda name: name == reference)
    found = scripts.verdict((model, a, *options), (model, b, *options), precision)
    assert found.label in INNOCENT, f"{found.sentence}: {found.causes[:1]}"


@pytest.mark.parametrize("variant", ["plain", "odd"])
@pytest.mark.parametrize(("model", "fault"), places(FAULTS))
def test_a_fault_is_accused_at_the_tensor_that_it_touches_first(scripts, model, fault, variant):
    accused(scripts, model, fault, (*CLEAN[model][variant], "--seed", "6"), FRAMEWORKS)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 4))
@pytest.mark.parametrize("faulty", FRAMEWORKS)
@pytest.mark.parametrize("reference", FRAMEWORKS)
@pytest.mark.parametrize(
    ("model", "variant"), [at for at in places(CLEAN) if at[1] != "flips in both"]
)
def test_every_fault_is_accused_of_either_side_beside_every_oddity(
    scripts, model, variant, reference, faulty, seed
):
    for fault in FAULTS[model]:
        if (fault, faulty) != ("conv-bfloat16", "keras"):
            options = (*CLEAN[model][variant], "--seed", str(seed))
            order = sorted(FRAMEWORKS, key=lambda name: name == reference)
            accused(scripts, model, fault, options, order, faulty)


def accused(scripts, model, fault, options, order, faulty="torch"):
    """See a fault of the `faulty` script accused, the sides in this order, at its place."""
    runs = [(model, f, *options, *(("--fault", fault) * (f == faulty))) for f in order]
    found = scripts.verdict(*runs, "both")
    expected = "precision" if fault == "conv-bfloat16" else "bug"
    assert found.label == expected, f"{fault}: {found.sentence}: {found.causes[:1]}"
    assert (found.where.step, found.where.tensor) == (1, FAULTS[model][fault]), fault


def step(path, *names):
    """Tensors of the first step of a trace."""
    first = open_trace(path).step(1)
    return [first.read(first.find(name)) for name in names]


@pytest.mark.parametrize("seed", some(range(1, 7), fast=(6,)))
@pytest.mark.parametrize("dtype", DTYPES)
def test_some_relus_flip_and_their_gradients_part(scripts, dtype, seed):
    for variant, flips in (("flips in both", True), ("flips in float32", dtype == "float32")):
        options = (*CLEAN["cnn"][variant], "--seed", str(seed))
        pair = [scripts.trace("cnn", framework, dtype, *options) for framework in FRAMEWORKS]
        (z, x, gx), (_, y, gy) = (
            step(p, "forward/bn1", "forward/relu1", "grads/conv1/kernel") for p in pair
        )
        eps = np.finfo(dtype).eps
        assert np.any((x > 0) != (y > 0)) == flips
        assert (np.abs(z[(x > 0) != (y > 0)]) < 8 * eps).all()
        assert (np.abs(gx - gy).max() > 1e3 * eps * np.abs(gy).max()) == flips


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("model", "layer"), [("cnn", "conv1"), ("transformer", "block0/key")])
def test_some_gradients_are_zero_but_for_rounding(scripts, dtype, model, layer):
    pair = [scripts.trace(model, name, dtype, "--seed", "6") for name in FRAMEWORKS]
    (x, kernel), (y, _) = (step(p, f"grads/{layer}/bias", f"grads/{layer}/kernel") for p in pair)
    assert np.abs(x - y).max() > np.abs(y).max() / 10
    assert np.abs(x).max() < 100 * np.finfo(dtype).eps * np.abs(kernel).max()


@pytest.mark.parametrize("dtype", DTYPES)
def test_adam_moves_a_bias_by_noise_alone_in_either_precision(scripts, dtype):
    pair = [scripts.trace("cnn", name, dtype, "--adam", "--seed", "6") for name in FRAMEWORKS]
    (x,), (y,) = (step(path, "params/conv1/bias") for path in pair)
    assert np.abs(x - y).max() > 1e-3


def test_attention_and_gelu_of_keras_are_not_those_of_float64(scripts):
    pair = [scripts.trace("transformer", name, "float64", "--seed", "6") for name in FRAMEWORKS]
    for name in ("forward/block0/attention", "forward/block0/gelu"):
        (x,), (y,) = (step(path, name) for path in pair)
        assert 1e-10 < np.abs(x - y).max() < 1e-6


def test_a_script_run_by_itself_leaves_the_same_trace(scripts):
    served = scripts.trace("cnn", "torch", "float32", "--seed", "6")
    alone = served.with_name("alone")
    command = [sys.executable, str(SCRIPTS / "cnn_torch.py"), "--seed", "6", "--out", str(alone)]
    subprocess.run(command, check=True, env=dict(os.environ, PYTHONPATH=str(ROOT)))
    assert (alone / "index.jsonl").read_bytes() == (served / "index.jsonl").read_bytes()
