"""Stock PyTorch against stock Keras, each traced under its own names and in its own layouts."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import harness
from harness.trace import Match

ROOT = Path(__file__).parent.parent
SCRIPTS = ROOT / "tests" / "stock_scripts"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def traced(tmp_path_factory):
    """Runs a script, once for the same arguments, and gives its trace."""
    folder, made = tmp_path_factory.mktemp("scripts"), {}

    def trace(framework, *words):
        if (framework, *words) not in made:
            path = folder / ("_".join([framework, *words]) + ".trace")
            environment = dict(os.environ, PYTHONPATH=str(ROOT), TF_CPP_MIN_LOG_LEVEL="3")
            command = [sys.executable, str(SCRIPTS / f"native_{framework}.py"), *words]
            subprocess.run([*command, "--out", str(path)], env=environment, check=True)
            made[framework, *words] = path
        return made[framework, *words]

    return trace


def pair(traced, *words):
    return traced("torch", *words), traced("keras", *words)


def by_b(matches):
    return {match.b[0].partition("/")[2]: match for match in matches}


def test_a_transformer_is_aligned_with_its_projections_split_and_heads_folded(traced):
    found = harness.align(*pair(traced, "transformer"))
    params = by_b(found.params)
    assert len(found.params) == 30
    assert all(match.sure == "certain" for match in found.params)
    assert params["block0/attention/query/kernel"].steps == (
        "split 0 6 6 6",
        "axes 1 0",
        "shape 6 6 to 6 2 3",
    )
    assert params["block1/attention/attention_output/kernel"].steps == (
        "shape 6 6 to 6 2 3",
        "axes 1 2 0",
    )
    assert not [name for name in found.only_a if name.startswith("params/")]


def test_a_cnn_is_aligned_with_its_images_and_kernels(traced):
    found = harness.align(*pair(traced, "cnn"))
    assert by_b(found.params)["conv2/kernel"].steps == ("axes 2 3 1 0",)
    assert by_b(found.points)["conv2"].steps == ("axes 0 2 3 1",)
    assert by_b(found.buffers)["bn1/moving_variance"].a == ("bn1/running_var",)
    assert by_b(found.others)["x"].steps == ("axes 0 2 3 1",)


def test_an_lstm_has_two_biases_in_torch_which_move_twice_as_far(traced):
    a, b = pair(traced, "lstm")
    found = harness.align(a, b)
    biases = [match for match in found.params if len(match.a) == 2]
    assert [match.steps for match in biases] == [("sum 2",), ("sum 2",)]
    assert all(match.sure == "certain" for match in found.params)
    first = harness.diff(a, b, alignment=found).first_divergence
    assert first.tensor == f"params/{biases[0].b[0]}"
    assert abs(first.a / first.b - 2) < 1e-3
    assert any("opposite signs" in note for note in found.notes)


def test_a_weight_that_torch_holds_transposed_is_the_first_divergence(traced):
    words = ("transformer", "--plain")
    a, b = traced("torch", *words, "--fault", "kernel-transposed"), traced("keras", *words)
    found = harness.align(a, b)
    place = harness.diff(a, b, alignment=found).first_divergence
    assert place.tensor == "inputs/params/net/block0/attention/attention_output/kernel"
    noted = [match for match in found.params if match.note]
    assert [match.a for match in noted] == [("block0/attention/out_proj/weight",)]
    assert noted[0].note == "weights differ before training; equal when transposed"


@pytest.mark.parametrize(
    ("fault", "tensor"),
    [("layernorm-epsilon", "block0/norm1"), ("gelu-tanh", "block1/norm1")],
)
def test_a_fault_is_placed_through_a_map(traced, fault, tensor):
    words = ("transformer", "--plain")
    a, b = traced("torch", *words, "--fault", fault), traced("keras", *words)
    wide = [
        traced("torch", *words, "--fault", fault, "--dtype", "float64"),
        traced("keras", *words, "--dtype", "float64"),
    ]
    alignment = harness.align(a, b)
    found = harness.explain(a, b, referee_a=wide[0], referee_b=wide[1], alignment=alignment).verdict
    assert (found.label, found.where.tensor) == ("bug", f"forward/net/{tensor}")


def test_no_match_of_a_clean_pair_is_certain_and_wrong(traced):
    found = harness.align(*pair(traced, "transformer"))
    certain = {m.a: m.b for m in found.points if m.sure == "certain"}
    assert certain[("block0/wide",)] == ("net/block0/wide",)
    assert ("block0",) not in certain  # what is added up there is no tensor of Keras
    assert all(isinstance(match, Match) for match in found.points)
