"""The sizes of gradients, and where the signal is blocked."""

import json

import numpy as np
import pytest

from harness import HarnessError, TraceWriter, gradflow
from harness.cli.main import main
from harness.report.gradflow import gradflow_figure
from harness.runs.run import run_sides
from harness.spec import Capture

SMALL = ("hidden_size=8", "embed_size=7", "batch_size=10", "bptt=6")


def written(path, steps, level="full", label="a"):
    with TraceWriter(path, label=label, dtype="float32", capture=Capture(level=level)) as trace:
        for number, tensors in enumerate(steps, start=1):
            trace.write(number, {n: np.asarray(x, "float32") for n, x in tensors.items()})
    return path


STEP = {
    "backward/logits": [1, -1],
    "backward/layer1/h": [2, 4],
    "backward/layer0/h": [0, 0],
    "backward/embedding": [0, 0],
    "grads/layer1/w": [[1, -3], [2, -2]],
    "grads/layer1/b": [1e-9, -1e-9],
    "grads/layer0/w": [0, 0],
    "params/layer1/w": [[1, 1], [1, 1]],
    "params/layer1/b": [1, 1],
    "params/layer0/w": [1, 1],
    "params/head/w": [1, 1],
}


def test_a_gradient_has_its_mean_absolute_element_and_what_is_odd_is_marked(tmp_path):
    found = gradflow(written(tmp_path / "a.trace", [STEP, STEP]))
    (flow,) = found.flows
    assert (found.steps, found.figure) == ((1, 2), "mean |g|")
    assert flow.sizes["layer1/w"] == [2.0, 2.0]
    assert flow.sizes["layer0/w"] == [0.0, 0.0]
    assert flow.sizes["head/w"] == [None, None]
    assert flow.signal["layer1/h"] == [3.0, 3.0]
    assert flow.missing == ("head/w",)
    assert flow.zero == ("layer0/w",)
    assert flow.faint == ("layer1/b",)
    assert flow.blocked == (("layer1/h", "layer0/h"),)
    assert flow.layers()["layer1"][0] == pytest.approx(1.0)
    marks = [flow.mark(n) for n in ("head/w", "layer0/w", "layer1/b", "layer1/w")]
    assert marks == ["no gradient", "zero", "under 0.0001 of the median", ""]


def test_what_is_odd_at_some_steps_alone_is_not_marked(tmp_path):
    other = {**STEP, "grads/layer0/w": [1, 1], "grads/layer1/b": [1, 1]}
    other |= {"backward/layer0/h": [1, 0], "grads/head/w": [1, 2]}
    (flow,) = gradflow(written(tmp_path / "a.trace", [STEP, other])).flows
    assert (flow.missing, flow.zero, flow.faint) == ((), (), ())
    assert flow.blocked == (("layer0/h", "embedding"),)
    assert flow.sizes["head/w"] == [None, 1.5]
    (only,) = gradflow(tmp_path / "a.trace", steps=(1, 1)).flows
    assert only.zero == ("layer0/w",)


def test_a_trace_without_elements_has_the_root_of_the_mean_square(tmp_path):
    whole = written(tmp_path / "a.trace", [STEP])
    known = written(tmp_path / "b.trace", [STEP], "stats", "b")
    found = gradflow(whole, known)
    assert found.figure == "RMS"
    a, b = found.flows
    assert a.sizes == b.sizes  # one figure for both sides
    assert a.sizes["layer1/w"] == [pytest.approx(np.sqrt(18 / 4))]
    assert (
        (a.zero, a.blocked) == (b.zero, b.blocked) == (("layer0/w",), (("layer1/h", "layer0/h"),))
    )


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_shown_as_it_is(tmp_path, value, capsys):
    step = {**STEP, "grads/layer1/w": [[value, 1], [1, 1]]}
    for level in ("full", "stats"):
        path = written(tmp_path / f"{level}.trace", [step], level)
        (flow,) = gradflow(path).flows
        assert not np.isfinite(flow.sizes["layer1/w"][0])
        assert flow.zero == ("layer0/w",)
        with pytest.raises(SystemExit) as ended:
            main(["gradflow", str(path)])
        assert ended.value.code == 0
    assert str(value) in capsys.readouterr().out


def test_bad_traces_are_named(tmp_path):
    hashes = written(tmp_path / "hashes.trace", [STEP], "hash")
    with pytest.raises(HarnessError, match="hashes alone say nothing of sizes"):
        gradflow(hashes)
    nothing = written(tmp_path / "nothing.trace", [{"params/w": [1]}])
    with pytest.raises(HarnessError, match=r"no gradients.*--role"):
        gradflow(nothing)
    a = written(tmp_path / "a.trace", [STEP])
    with pytest.raises(HarnessError, match=r"--steps 5:: no such steps: .*a.trace has steps 1"):
        gradflow(a, steps=(5, None))


def test_two_traces_of_one_name_are_told_apart(tmp_path, capsys):
    a = written(tmp_path / "a.trace", [STEP])
    b = written(tmp_path / "b.trace", [{**STEP, "grads/layer1/w": [[5, 5], [5, 5]]}])
    assert [flow.label for flow in gradflow(a, b).flows] == ["a (A)", "a (B)"]
    with pytest.raises(SystemExit):
        main(["gradflow", str(a), str(b)])
    out = capsys.readouterr().out
    assert "a (A)" in out
    assert "a (B)" in out


def test_nothing_is_said_of_what_is_not_traced(tmp_path, capsys):
    clean = {"grads/w": [1, 2], "params/w": [1, 1], "backward/x": [1]}
    every, flows = "every parameter has a gradient", "nothing blocks the signal"
    for without, said in (("", {every, flows}), ("params/", {flows}), ("backward/", {every})):
        step = {n: x for n, x in clean.items() if not without or not n.startswith(without)}
        path = written(tmp_path / f"{without.strip('/')}.trace", [step])
        with pytest.raises(SystemExit):
            main(["gradflow", str(path)])
        out = capsys.readouterr().out
        assert {words for words in (every, flows) if words in out} == said


def test_names_of_ones_own_have_roles(tmp_path):
    path = written(tmp_path / "a.trace", [{"GRAD/w": [1, -3], "weights/w": [1, 1]}])
    (flow,) = gradflow(path, roles=("GRAD/*=grads", "weights/*=params")).flows
    assert flow.sizes == {"w": [2.0]}


def test_the_commands_pair_the_sides_and_draw_them(tmp_path, capsys):
    run_sides(trace=4, sides=("a=np", "b=np"), settings=SMALL, out=tmp_path)
    command = ["gradflow", str(tmp_path / "a.trace"), str(tmp_path / "b.trace")]
    for options in (["--steps", "2"], []):
        picture = tmp_path / f"{len(options)}.svg"
        with pytest.raises(SystemExit) as ended:
            main([*command, *options, "--plot", str(picture)])
        assert ended.value.code == 0
        assert picture.read_text().startswith("<?xml")
    out = capsys.readouterr().out
    assert "a: every parameter has a gradient; nothing blocks the signal" in out
    assert "layer0/w_i" in out
    assert "\n layer " in out
    with pytest.raises(SystemExit):
        main([*command, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["flows"][0]["sizes"] == found["flows"][1]["sizes"]


def test_pictures_have_both_sides(tmp_path):
    pytest.importorskip("matplotlib")
    a = written(tmp_path / "a.trace", [STEP, STEP])
    b = written(tmp_path / "b.trace", [STEP, STEP], label="b")
    bars = gradflow_figure(gradflow(a, b, steps=(1, 1))).axes[0]
    assert [p.get_label() for p in bars.containers] == ["a", "b"]
    assert "a: zero" in [text.get_text() for text in bars.texts]
    heat = gradflow_figure(gradflow(a, b))
    assert [axes.get_title("left") for axes in heat.axes[:2]] == ["a", "b"]
    assert heat.axes[0].images[0].get_array().shape == (4, 2)
