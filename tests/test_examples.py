"""The examples: scripts that somebody could have written, run as sides; what is found in each."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import harness

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(tmp_path, folder, *sides, trace=4, **options):
    """The examples' scripts as sides, "LABEL=script.py ARGUMENTS"."""
    paths = []
    for side in sides:
        label, _, script = side.partition("=")
        paths.append(f"{label}={EXAMPLES / folder / script}")
    return harness.run_sides(sides=paths, trace=trace, out=tmp_path / "out", **options)


def cause(result):
    assert result.verdict.causes, result.verdict
    return result.verdict.causes[0]


START = {"hand_over": "weights,inputs"}
CNN = ("images", "keras=cnn_keras.py", "torch=cnn_pt.py")
GPT = ("language", "jax=gpt_jax.py", "torch=gpt_pt.py")
LSTM = ("language", "torch=lstm_pt.py --clip norm", "keras=lstm_keras.py")


def both_ways(case):
    """The sides as they are, and each in the other's place."""
    folder, a, b = case
    return [(folder, a, b), (folder, b, a)]


@pytest.mark.slow
@pytest.mark.parametrize("sides", both_ways(CNN))
def test_a_cnn_differs_in_what_the_frameworks_take_for_a_variance(sides, tmp_path):
    result = run(tmp_path, *sides, **START)
    assert result.verdict.where.tensor.startswith("buffers/bn1/")
    assert "divides the variance of the batch by n" in cause(result).sentence
    assert cause(result).sure == "certain"


@pytest.mark.slow
def test_without_that_its_adam_differs_in_where_epsilon_stands(tmp_path):
    capture = harness.Capture(exclude=("buffers/*",))
    sides = "images", "keras=cnn_keras.py --adam", "torch=cnn_pt.py --adam"
    result = run(tmp_path, *sides, capture=capture, **START)
    assert result.verdict.where.tensor.startswith("params/")
    assert "epsilon beside the root that is not bias-corrected" in cause(result).sentence


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "tensor", "words"),
    [
        ("--epsilon 1e-5", "forward/bn1", "takes 1e-05 for epsilon 0.001"),
        ("--momentum 0.9", "buffers/bn1/", "takes 0.1 for momentum 0.01"),
    ],
)
def test_a_mistake_in_the_port_of_the_cnn_is_named(change, tensor, words, tmp_path):
    result = run(tmp_path, "images", f"keras=cnn_keras.py {change}", CNN[2], **START)
    assert result.verdict.label == "bug"
    assert result.verdict.where.step == 1
    assert result.verdict.where.tensor.startswith(tensor)
    assert words in cause(result).sentence


@pytest.mark.slow
@pytest.mark.parametrize("sides", both_ways(GPT))
def test_a_gpt_differs_in_what_torch_adds_to_the_norm(sides, tmp_path):
    result = run(tmp_path, *sides)
    assert result.verdict.where.tensor.startswith("update/clipped/")
    assert "1e-6" in cause(result).sentence
    found = harness.align(result.traces["jax"], result.traces["torch"])
    alone = (*found.only_a, *found.only_b)
    assert not [n for n in alone if n.startswith(("params/", "grads/", "inputs/params/"))]
    assert len(found.params) >= 25


@pytest.mark.slow
@pytest.mark.parametrize(
    ("jax", "torch", "words"),
    [
        ("--approximate", "", "GELU by tanh"),
        ("", "--epsilon 1e-3", "0.001"),
        ("--epsilon 1e-3", "", "0.001"),
    ],
)
def test_a_mistake_in_the_port_of_the_gpt_is_named(jax, torch, words, tmp_path):
    result = run(tmp_path, "language", f"jax=gpt_jax.py {jax}", f"torch=gpt_pt.py {torch}")
    assert result.verdict.label == "bug"
    assert result.verdict.where.step == 1
    assert words in cause(result).sentence


@pytest.mark.slow
def test_autocast_is_a_matter_of_precision(tmp_path):
    result = run(tmp_path, "language", "low=gpt_pt.py --autocast", "full=gpt_pt.py")
    assert result.verdict.label == "precision"
    assert "bfloat16" in cause(result).sentence
    assert result.verdict.side == "low"


@pytest.mark.slow
def test_a_compiled_model_is_close_and_a_wrong_one_is_named(tmp_path):
    compiled = "compiled=train.py --compile"
    assert run(tmp_path, "compiled", compiled, "eager=train.py").diff.status == "close"
    result = run(tmp_path, "compiled", f"{compiled} --fast", "eager=train.py")
    assert "GELU by tanh" in cause(result).sentence


@pytest.mark.slow
def test_the_pair_of_the_story(tmp_path):
    clean = run(tmp_path, *LSTM, **START)
    # What torch adds to the norm, 1e-6, is seen in float64.
    assert clean.verdict.label in ("close", "rounding") or "norm" in cause(clean).sentence
    wrong = run(tmp_path, "language", "torch=lstm_pt.py", LSTM[2], **START)
    assert wrong.verdict.label == "bug"
    assert wrong.verdict.where.tensor.startswith("update/clipped/")
    said = cause(wrong).sentence
    assert "clamps" in said or "scales all gradients by their global norm" in said


@pytest.mark.slow
def test_one_script_under_two_versions_of_a_library(tmp_path):
    pytest.importorskip("keras")
    here = next(p for p in map(Path, sys.path) if (p / "keras").is_dir())
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "old"], check=True)
    python = tmp_path / "old" / "bin" / "python"
    pip = [python, "-m", "pip", "install", "--quiet", "--no-deps", "keras==3.12.0"]
    if subprocess.run(pip, check=False).returncode:
        pytest.skip("keras==3.12.0 cannot be installed here")
    own = next((tmp_path / "old" / "lib").glob("python*/site-packages"))
    (own / "rest.pth").write_text(f"{here}\n")  # all else, after what the environment has itself
    sides = "images", "old=cnn_keras.py", "new=cnn_keras.py"
    result = run(tmp_path, *sides, pythons=(f"old={python}",))
    versions = [harness.open_trace(t).header.framework["keras"] for t in result.traces.values()]
    assert versions[0] == "3.12.0" != versions[1]
    assert result.exit_code() == 0


def added_lines(script):
    """The lines of a script that record it, its import aside."""
    lines = (EXAMPLES / script).read_text().splitlines()
    return [x.strip() for x in lines if re.search(r"harness\.|\brec\.", x)]


@pytest.mark.parametrize(
    "script",
    [
        *("images/cnn_pt.py", "language/gpt_pt.py", "language/gpt_jax.py", "language/lstm_pt.py"),
        *("language/lstm_keras.py", "compiled/train.py"),
    ],
)
def test_three_lines_are_added_to_a_script(script):
    assert len(added_lines(script)) == 3


def test_one_is_added_to_a_script_that_calls_fit():
    assert len(added_lines("images/cnn_keras.py")) == 1


COUPLED = ("torch.optim.AdamW(model", "torch.optim.Adam(model")
LIMIT = ("clip_grad_norm_(model.parameters(), 1.0)", "clip_grad_norm_(model.parameters(), 0.1)")
ELEMENTS = (LIMIT[0], "clip_grad_value_(model.parameters(), 0.01)")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "part", "words", "also"),
    [
        (COUPLED, "optimizer/", "decays this parameter (weight decay 0.1, added to", "adds 1e-6"),
        (LIMIT, "update/clipped/", "takes 0.1 for limit 1, and adds 1e-6 to the norm", None),
        (ELEMENTS, "update/clipped/", "takes 0.01 for limit 1, and clamps each element", None),
    ],
)
def test_how_torch_clips_hides_no_mistake_of_the_update(change, part, words, also, tmp_path):
    for file in (EXAMPLES / "language").glob("*.py"):
        text = file.read_text()
        (tmp_path / file.name).write_text(
            text.replace(*change) if file.name == "gpt_pt.py" else text
        )
    assert change[1] in (tmp_path / "gpt_pt.py").read_text()
    sides = [f"torch={tmp_path / 'gpt_pt.py'}", f"jax={tmp_path / 'gpt_jax.py'}"]
    result = harness.run_sides(sides=sides, trace=3, out=tmp_path / "out", hand_over="inputs")
    assert result.verdict.where.tensor.startswith(part)
    assert words in cause(result).sentence
    assert [words in a.causes[0].sentence for a in result.verdict.also for words in (also,)] == (
        [True] if also else []
    )
