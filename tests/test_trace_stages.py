"""What entries say of how their tensors are made: from a script to the referee."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

import harness
from harness.models.entries import Declared, declared, graph_from
from harness.models.evaluate import MissingError, Values
from harness.models.graph import const, node, parse, ref, words
from harness.trace import TraceError, TraceWriter, open_trace

SCRIPT = Path(__file__).parent / "declaring_script.py"


@pytest.fixture(scope="module", params=["float32", "float64"])
def script_trace(request, tmp_path_factory):
    if find_spec("torch") is None:
        pytest.skip("torch is not installed")
    path = tmp_path_factory.mktemp("declared") / "mine.trace"
    root = str(Path(__file__).parent.parent)
    environment = {**os.environ, "PYTHONPATH": root}
    subprocess.run([sys.executable, SCRIPT, path, request.param], check=True, env=environment)
    return open_trace(path)


def values_of(trace, step, graph):
    steps = {back: trace.step(step - back) for back in range(step)}
    found = {
        back: {entry.name: entry for entry in opened.entries} for back, opened in steps.items()
    }

    def read(back, name):
        entry = found.get(back, {}).get(name)
        return None if entry is None else steps[back].read(entry)

    return Values(read, step, graph)


def apart(a, b, terms):
    """The L2 distance of two tensors beside that of what was added up, in a's epsilons."""
    eps = np.finfo(a.dtype).eps
    return float(np.linalg.norm((a - b).ravel()) / (np.linalg.norm(terms.ravel()) * eps))


def test_every_stage_that_a_script_declares_is_computed_again_to_rounding(script_trace):
    for step in script_trace.steps:
        opened = script_trace.step(step)
        graph = graph_from(opened.entries, derive=True)
        values = values_of(script_trace, step, graph)
        made = [e for e in opened.entries if not e.name.startswith("inputs/")]
        assert len(made) == 15 + 12 + 12 * 3
        for entry in made:
            traced, again = opened.read(entry), values.value(graph.value(entry.name))
            assert again.shape == traced.shape, entry.name
            # A batch normalisation takes the mean off: of a bias before it nothing is left.
            nothing = entry.name == "grads/conv/b"
            terms = opened.read(opened.find("backward/conv")) if nothing else again
            assert apart(traced, again, terms) < 32, entry.name


def test_back_propagation_is_derived_from_what_a_script_declares(script_trace):
    entries = script_trace.step(1).entries
    declared, derived = graph_from(entries), graph_from(entries, derive=True)
    more = {name for name in derived.stages if name not in declared.stages}
    traced = {e.name for e in entries}
    assert more == {name for name in traced if name.startswith(("backward/", "grads/"))}
    assert list(declared.stages) == [e.name for e in entries if e.op]


def test_a_wrong_stage_is_not_computed_to_rounding(script_trace):
    entries = [
        Declared(e.name, "elu", ("forward/norm", 1.0)) if e.name == "forward/pool" else e
        for e in script_trace.step(1).entries
    ]
    graph = graph_from(entries)
    traced = script_trace.step(1)
    again = values_of(script_trace, 1, graph).value(graph.value("forward/pool"))
    assert again.shape != traced.read(traced.find("forward/pool")).shape


def write(path, tensors, stages=None, **args):
    with TraceWriter(path, label="a", dtype="float32", **args) as trace:
        trace.write(1, tensors, stages)
    return open_trace(path)


X = np.arange(6, dtype=np.float32).reshape(2, 3)


def test_a_stage_comes_back_as_it_was_written(tmp_path):
    half = harness.stage("linear", "x", harness.stage("transpose", "w@step-1|first/w"))
    stages = {
        "y": half,
        "z": harness.stage("leaky_relu", "h@t-1|start", 0.01),
        "s": harness.stage("adam", *"pmv", 0.1, 0.9, 0.999, 1e-8, harness.stage("step")),
        "c": harness.stage("conv", "x", "w", stride=[2, 1]),
    }
    trace = write(tmp_path / "t.trace", dict.fromkeys("xyzscpmvwh", X) | {"i": X}, None)
    assert not graph_from(trace.step(1).entries).stages
    names = "xhpmvw" + "yzsc"
    trace = write(tmp_path / "t.trace", dict.fromkeys(names, X), stages)
    graph = graph_from(trace.step(1).entries)
    assert list(graph.stages) == ["y", "z", "s", "c"]
    weights = ref("w", back=1, first="first/w")
    assert graph.value("y") is node("linear", ref("x"), node("transpose", weights))
    slope = const(0.01, "slope")
    assert graph.value("z") is node("leaky_relu", parse("h@t-1|start"), slope)
    assert words(graph.value("s")) == "adam(p, m, v, lr, beta1, beta2, epsilon, step())"
    assert dict(graph.value("c").args) == {
        "stride": (2, 1),
        "padding": 0,
        "dilation": 1,
        "layout": "first",
    }
    lines = (tmp_path / "t.trace" / "index.jsonl").read_text()
    entries = {entry["name"]: entry for entry in json.loads(lines)["tensors"]}
    assert entries["c"]["from"] == ["x", "w"]
    assert "op" not in entries["x"]


def test_stages_are_written_in_the_background_and_without_the_elements(tmp_path):
    tensors, stages = {"x": X, "y": X}, {"y": harness.stage("relu", "x")}
    for k, args in enumerate((dict(queue=1 << 20), dict(capture=harness.Capture(level="stats")))):
        trace = write(tmp_path / f"{k}.trace", tensors, stages, **args)
        assert list(graph_from(trace.step(1).entries).stages) == ["y"]


WRONG = {
    "an op that there is not": (lambda: harness.stage("linaer", "x", "w"), "nearest are: linear"),
    "an operand too many": (lambda: harness.stage("relu", "x", "w"), "2 operands; it takes x"),
    "an operand missing": (lambda: harness.stage("linear", "x"), "1 operands; it takes x, w"),
    "an argument that it has not": (
        lambda: harness.stage("conv", "x", "w", strides=2),
        "no argument 'strides'; there are: stride",
    ),
    "an argument missing": (lambda: harness.stage("reshape", "x"), "'shape' is missing"),
    "a bad reference": (lambda: harness.stage("relu", "x@t1"), "NAME@t-1|FIRST"),
    "no reference": (lambda: harness.stage("relu", X), "neither a reference"),
    "not a number": (lambda: harness.stage("elu", "x", float("nan")), "neither a reference"),
    "an array for an argument": (
        lambda: harness.stage("mean_over", "x", axis=X),
        "neither a number",
    ),
    "a step with operands": (lambda: harness.stage("step", "x"), "neither operands"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_stage_is_refused_in_words(case):
    make, message = WRONG[case]
    with pytest.raises(harness.HarnessError, match=message):
        make()


def test_stages_that_do_not_fit_the_tensors_are_refused(tmp_path):
    relu = harness.stage("relu", "x")
    cases = (
        ({"y": X}, {"z": relu}, "'z' is no tensor of the step"),
        ({"x": X, "y": X}, {"y": "relu"}, "'y' is no harness.stage"),
        ({"y": X, "x": X}, {"y": relu}, "y is made from x, which does not come before it"),
        ({"x": X}, {"x": relu}, "x is made from x"),
    )
    for tensors, stages, message in cases:
        with pytest.raises(TraceError, match=message):
            write(tmp_path / "t.trace", tensors, stages)


def test_a_tensor_may_be_made_from_itself_a_step_or_a_timestep_before(tmp_path):
    stages = {
        "y": harness.stage("add", "y@step-1|zeros", "x"),
        "x": harness.stage("tanh", "x@t-1"),
    }
    trace = write(tmp_path / "t.trace", {"x": X, "y": X}, stages)
    assert set(graph_from(trace.step(1).entries).stages) == {"x", "y"}


DEEP = "x"
for _ in range(40):
    DEEP = {"op": "relu", "from": [DEEP]}
HOSTILE = {
    "a number for an op": dict(op=3),
    "an op that is no name": dict(op="a b\x1b[2J"),
    "operands of no op": {"from": ["x"]},
    "arguments of no op": dict(args={"axis": 1}),
    "operands that are no list": {"op": "relu", "from": "x"},
    "an operand that is a list": {"op": "relu", "from": [["x"]]},
    "an operand that is a boolean": {"op": "relu", "from": [True]},
    "an operand with other keys": {"op": "relu", "from": [{"op": "relu", "form": ["x"]}]},
    "a huge number": {"op": "elu", "from": ["x", 10**400]},
    "no reference": {"op": "relu", "from": ["x@t-1@t-1"]},
    "a reference with an escape": {"op": "relu", "from": ["x\x1b[2J"]},
    "a reference that reaches far": {"op": "relu", "from": ["x@t-99999999"]},
    "a reference of many digits": {"op": "relu", "from": ["x@step-" + "9" * 590]},
    "ops that nest deep": {"op": "relu", "from": [DEEP]},
    "many ops": {"op": "add", "from": [{"op": "relu", "from": ["x"]}] * 255 + [DEEP]},
    "many operands": {"op": "add", "from": ["x"] * 300},
    "a huge argument": {"op": "conv", "from": ["x", "x"], "args": {"padding": 1 << 40}},
    "a long list": {"op": "reshape", "from": ["x"], "args": {"shape": [1] * 100}},
    "an argument that is an object": {"op": "softmax", "from": ["x"], "args": {"axis": {}}},
    "arguments that are a list": {"op": "softmax", "from": ["x"], "args": [1]},
    "itself": {"op": "relu", "from": ["y"]},
    "what comes after it": {"op": "relu", "from": ["z"]},
}


def changed(path, **fields):
    """A trace of x, y and z whose entry of y says something else."""
    write(path, {"x": X, "y": X + 1, "z": X + 2})
    index = path / "index.jsonl"
    line = json.loads(index.read_text())
    line["tensors"][1] |= fields
    index.write_text(json.dumps(line) + "\n")
    return open_trace(path)


@pytest.mark.parametrize("case", HOSTILE)
def test_entries_that_nobody_writes_are_refused(tmp_path, case):
    trace = changed(tmp_path / "t.trace", **HOSTILE[case])
    with pytest.raises(TraceError) as caught:
        trace.step(1)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 600


LATER = {
    "an op of a later version": {"op": "mamba", "from": ["x"], "args": {"depth": 3}},
    "an operand more": {"op": "relu", "from": ["x", "x"]},
    "an argument more": {"op": "softmax", "from": ["x"], "args": {"stable": True}},
    "a new op within": {"op": "relu", "from": [{"op": "mamba", "from": ["x"]}]},
}


@pytest.mark.parametrize("case", LATER)
def test_what_a_later_version_may_write_is_no_stage_here(tmp_path, case):
    trace = changed(tmp_path / "t.trace", **LATER[case])
    assert not graph_from(trace.step(1).entries).stages
    assert harness.check_trace(tmp_path / "t.trace").faults == ()


def test_a_stage_that_cannot_be_computed_says_so_and_takes_no_memory(tmp_path):
    image = np.ones((1, 1, 8, 8), np.float32)
    args = {"padding": 1 << 30}
    entries = [Declared("y", "conv", ("x", "w"), args)]
    graph = graph_from(entries)
    values = Values(lambda back, name: {"x": image, "w": image}.get(name), 1, graph)
    with pytest.raises(ValueError, match="too many"):
        values.value(graph.value("y"))
    with pytest.raises(MissingError):
        Values(lambda back, name: None, 1, graph).value(graph.value("y"))


def forward(*entries):
    return [Declared("inputs/x"), *(Declared(*entry) for entry in entries)]


W = "params/w@step-1|inputs/params/w"


def test_no_gradient_is_derived_past_a_tensor_of_which_nothing_is_known():
    known = (
        ("forward/a", "linear", ("inputs/x", W)),
        ("forward/b", "tanh", ("forward/a",)),
        ("forward/loss", "mean_square", ("forward/b",)),
    )
    derived = graph_from(forward(*known), derive=True)
    assert {"backward/a", "backward/b", "grads/w"} <= set(derived.stages)
    unknown = (known[0], ("forward/b",), known[2])
    assert list(graph_from(forward(*unknown), derive=True).stages) == ["forward/a", "forward/loss"]
    no_rule = (known[0], ("forward/b", "root", ("forward/a",)), known[2])
    assert "grads/w" not in graph_from(forward(*no_rule), derive=True).stages


def test_a_stage_that_entries_declare_goes_before_one_that_is_derived():
    entries = forward(
        ("forward/a", "linear", ("inputs/x", W)),
        ("forward/loss", "mean_square", ("forward/a",)),
        ("backward/a", "negate", ("forward/a",)),
    )
    graph = graph_from(entries, derive=True)
    assert words(graph.value("backward/a")) == "negate(forward/a)"
    assert words(graph.value("grads/w")) == "outer(inputs/x, backward/a)"


LOSSES = {
    "a share of a mean": harness.stage(
        "scale", harness.stage("mean_over", harness.stage("square", "forward/a"), axis=[0, 1]), 0.5
    ),
    "a mean": harness.stage("mean_over", harness.stage("exp", "forward/a"), axis=[0, 1]),
    "two losses": harness.stage(
        "add",
        harness.stage("cross_entropy", "forward/a", "inputs/y"),
        harness.stage("scale", harness.stage("mean_square", "forward/a"), 0.1),
    ),
    "a share of a cross-entropy": harness.stage(
        "scale", harness.stage("cross_entropy", "forward/a", "inputs/y"), 0.25
    ),
    "a sum with a number that is learned": harness.stage(
        "broadcast_add",
        harness.stage("squared_error", "forward/a", "inputs/target", reduce="sum"),
        "params/c@step-1|inputs/params/c",
    ),
    "a product": harness.stage(
        "multiply",
        harness.stage("mean_square", "forward/a"),
        harness.stage("nll_loss", "forward/a", "inputs/y"),
    ),
}


@pytest.mark.parametrize("case", LOSSES)
def test_the_derived_gradient_is_that_of_the_loss_however_it_is_put_together(case):
    draw = np.random.default_rng(2)
    held = {
        "inputs/x": draw.normal(size=(4, 5)),
        "inputs/y": np.array([2, 0, 1, 2]),
        "inputs/target": draw.normal(size=(4, 3)),
        "inputs/params/w": draw.normal(size=(5, 3)),
        "inputs/params/c": np.asarray(0.3),
    }
    names = ["forward/a", "forward/loss"]
    stages = {"forward/a": harness.stage("linear", "inputs/x", W), "forward/loss": LOSSES[case]}
    graph = graph_from(declared(names, stages).values(), derive=True)

    def loss(w):
        read = {**held, "inputs/params/w": w}
        values = Values(lambda back, name: read.get(name), 1, graph)
        return float(values.value(graph.value("forward/loss")))

    values = Values(lambda back, name: held.get(name), 1, graph)
    found = values.value(graph.value("grads/w"))
    w, h = held["inputs/params/w"], 1e-5
    for at in np.ndindex(*w.shape):
        step = np.zeros_like(w)
        step[at] = h
        slope = (loss(w + step) - loss(w - step)) / (2 * h)
        assert found[at] == pytest.approx(slope, abs=1e-8 * np.abs(found).max(), rel=1e-7)
