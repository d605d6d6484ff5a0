"""The published small model on the Penn Treebank: gigabytes of traces, so marked slow."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from harness.cli.main import main

PTB = Path(os.environ.get("HARNESS_DATA", "")) / "ptb"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        "HARNESS_DATA" not in os.environ, reason="HARNESS_DATA is not set: no folder with ptb/"
    ),
]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "params.npz"
    assert code("weights", "init", path, "--model", "zaremba-small", "--data", PTB) == 0
    return path


def code(*arguments):
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return ended.value.code


def run(capsys, weights, out, *arguments):
    capsys.readouterr()
    common = ("--weights", weights, "--data", PTB, "--out", out, "--json")
    found = code("run", *common, *arguments)
    return found, json.loads(capsys.readouterr().out)


def test_clean_twins_are_close_and_start_at_the_loss_of_a_uniform_guess(weights, tmp_path, capsys):
    exit_code, found = run(capsys, weights, tmp_path, "--trace", 10)
    assert (exit_code, found["diff"]["status"]) == (0, "close")
    losses = np.array([found["losses"]["pt"], found["losses"]["tf"]])
    assert losses.shape == (2, 10)
    assert losses[0, 0] == pytest.approx(20 * np.log(10_000), rel=0.005)
    assert np.all(np.abs(losses[0] - losses[1]) <= 1e-5 * losses[1])


def test_element_wise_clipping_parts_at_the_first_norm_over_5(weights, tmp_path, capsys):
    fault = ("--trace", 6, "--set", "pt:clip=elementwise")
    exit_code, found = run(capsys, weights, tmp_path, *fault)
    assert exit_code == 1
    first = found["diff"]["first_divergence"]
    assert first["tensor"].startswith("update/clipped/")
    files = sorted((tmp_path / "tf.trace").glob("step-*"))
    norms = [float(load_file(file)["update/global_norm"]) for file in files]
    assert first["step"] == 1 + next(i for i, norm in enumerate(norms) if norm > 5)
    agreed = abs(np.subtract(found["losses"]["pt"], found["losses"]["tf"]))
    assert max(agreed[: first["step"]]) < 1e-3
    assert agreed[first["step"]] > 1
    verdict = found["verdict"]
    assert (verdict["label"], verdict["where"]["step"]) == ("bug", first["step"])
    said = "one side clips by global norm, the other element by element"
    assert said in verdict["causes"][0]["sentence"]


def test_a_norm_that_does_not_add_up_duplicates_is_a_bug_of_its_side(weights, tmp_path, capsys):
    fault = ("--trace", 2, "--fault", "tf:norm-duplicates")
    exit_code, found = run(capsys, weights, tmp_path, *fault)
    verdict = found["verdict"]
    assert (exit_code, verdict["label"], verdict["side"]) == (1, "bug", "tf")
    assert verdict["where"]["tensor"] == "update/global_norm"
    assert verdict["causes"][0]["name"] == "norm-duplicates"


def test_a_free_run_that_leaves_the_tolerance_is_rounding(weights, tmp_path, capsys):
    _, found = run(capsys, weights, tmp_path, "--trace", 20)
    verdict = found["verdict"]
    expected = "close" if found["diff"]["status"] == "close" else "rounding"
    assert (verdict["label"], verdict["causes"]) == (expected, [])


def test_in_float64_the_twins_agree_to_ten_digits(weights, tmp_path, capsys):
    exact = ("--trace", 4, "--dtype", "float64", "--rtol", 1e-10, "--atol", 1e-12)
    exit_code, found = run(capsys, weights, tmp_path, *exact)
    assert (exit_code, found["diff"]["status"]) == (0, "close")


def test_what_a_long_run_reports_is_what_numpy_computes(weights, tmp_path, capsys):
    include = [
        word for glob in ("forward/*", "backward/*", "up*norm") for word in ("--include", glob)
    ]
    _, found = run(capsys, weights, tmp_path, "--trace", 40, "--no-verdict", *include)
    first = found["diff"]["first_divergence"] or found["diff"]["onset"]
    file = f"step-{first['step']:08d}.safetensors"
    a, b = (load_file(tmp_path / f"{s}.trace" / file)[first["tensor"]] for s in ("pt", "tf"))
    wide_a, wide_b = a.astype(np.float64), b.astype(np.float64)
    diff = np.abs(wide_a - wide_b)
    bad = ~np.isclose(a, b, rtol=first["rtol"], atol=first["atol"])
    assert first["mismatches"] == np.count_nonzero(bad)
    if bad.any():
        assert tuple(first["index"]) == tuple(np.argwhere(bad)[0])
    assert first["a"] == a[tuple(first["index"])]
    assert first["b"] == b[tuple(first["index"])]
    assert first["max_abs_diff"] == diff.max()
    assert first["max_rel_diff"] == (diff[wide_b != 0] / np.abs(wide_b[wide_b != 0])).max()
    norm = np.linalg.norm(diff) / np.linalg.norm(wide_b)
    assert first["rel_l2_eps"] == pytest.approx(norm / np.finfo(np.float32).eps)
