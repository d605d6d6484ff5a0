"""`harness repro`: what it writes runs without us, and prints the values of the report."""

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

import harness
from harness import stage
from harness.cli.main import main
from harness.models.entries import Declared, graph_from
from harness.models.evaluate import Values

HERE = Path(__file__).parent
QUIET = {"TF_CPP_MIN_LOG_LEVEL": "3", "JAX_PLATFORMS": "cpu"}
# A mistake of tests/repro_scripts.py: where it shows first, and what its programs must say.
MISTAKES = {
    "layer_norm": ("forward/ln", "F.layer_norm(", "eps=0.001"),
    "batch_norm": ("forward/bn", "F.batch_norm(", "eps=0.001"),
    "gelu": ("forward/act", "F.gelu(", 'approximate="tanh"'),
    "loss": ("forward/loss", "F.cross_entropy(", 'reduction="sum"'),
    "mask": ("forward/act", "F.scaled_dot_product_attention(", "attention(ln, ln, ln)"),
    "dropout": ("forward/head", "F.linear(", "drop * 1.33333"),
    "decay": ("optimizer/conv/bias/m", "torch.optim.Adam(", "weight_decay=0.1"),
    "epsilon": ("params/conv/weight", "torch.optim.Adam(", "eps=0.001"),
    "momentum": ("buffers/bn/running_mean", "F.batch_norm(", "momentum=0.3"),
}
OTHERS = {  # mistakes of other optimizers, and the right ones
    "sgd_nesterov": ("sgd", "params/conv/weight", "torch.optim.SGD(", "nesterov=True"),
    "rmsprop_rho": ("rmsprop", "optimizer/conv/weight/square", "RMSprop(", "alpha=0.9,"),
    "adagrad_start": ("adagrad", "optimizer/conv/weight/accumulator", "Adagrad(", '"sum": accum'),
}


def needs(*packages):
    for package in packages:
        if find_spec(package) is None:
            pytest.skip(f"{package} is not installed")


def run_programs(paths):
    """What programs print, in one process that has none of our paths and cannot import us."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")} | QUIET
    command = [sys.executable, "-I", str(HERE / "repro_programs.py"), *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, env=clean)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["harness"] == []
    return result["printed"]


def programs(made):
    return [Path(made.folder).resolve() / side.program for side in made.sides]


def check(made, printed, eps=16):
    """Each program prints the value that the report has of its side, to rounding."""
    inputs = np.load(Path(made.folder) / "inputs.npz")
    for side, path in zip(made.sides, programs(made), strict=True):
        value, off = (float(line.rpartition(" ")[2]) for line in printed[str(path)])
        label = path.stem.removeprefix("repro_")
        if side.framework == "Keras" and side.dtype == "float64":
            eps = 1e9  # Keras rounds beta1 and beta2 to float32 in Adam, whatever the dtype
        largest = float(np.abs(inputs[f"{label}/traced"]).max())
        allowed = eps * float(np.finfo(side.dtype).eps) * largest
        assert abs(value - side.value) <= allowed, path
        assert off <= allowed, path
        assert abs(side.answer - side.value) <= allowed


@pytest.fixture(scope="module")
def repros(tmp_path_factory):
    """Of every mistake, the folder that is written, and what its programs print."""
    needs("torch")
    folder = tmp_path_factory.mktemp("torch")
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent)}
    script = [sys.executable, str(HERE / "repro_scripts.py"), str(folder)]
    subprocess.run(script, check=True, capture_output=True, env=environment)
    pairs = dict.fromkeys(MISTAKES, "right") | {k: v[0] for k, v in OTHERS.items()}
    made = {
        name: harness.repro(
            folder / f"{name}.trace", folder / f"{right}.trace", out=folder / f"repro {name}"
        )
        for name, right in pairs.items()
    }
    printed = run_programs([path for one in made.values() for path in programs(one)])
    return folder, made, printed


@pytest.mark.parametrize("name", [*MISTAKES, *OTHERS])
def test_programs_of_a_mistake_print_the_values_of_the_report(name, repros):
    tensor, call, wrong = MISTAKES[name] if name in MISTAKES else OTHERS[name][1:]
    _, made, printed = repros
    found = made[name]
    check(found, printed)
    assert found.tensor == tensor
    assert found.sides[0].value != found.sides[1].value
    one, two = (path.read_text() for path in programs(found))
    assert call in one
    assert call in two
    assert wrong in one
    assert wrong not in two
    for text in (one, two):
        assert "harness" not in text
        assert len(text.splitlines()) < 30


@pytest.mark.slow
@pytest.mark.parametrize("name", ["right", "sgd"])
@pytest.mark.parametrize("step", [1, 3])
def test_every_stage_of_a_script_can_be_written(name, step, repros, tmp_path):
    folder = repros[0]
    trace = harness.open_trace(folder / f"{name}.trace")
    other = harness.open_trace(folder / "layer_norm.trace")
    names = [e.name for e in trace.entry(step).tensors if trace.graph.value(e.name)]
    wanted = [n for n in names if n in {e.name for e in other.entry(step).tensors}]
    wanted = wanted[:: 1 if name == "right" else 3]
    made = [
        harness.repro(trace.path, trace.path, step=step, tensor=n, out=tmp_path / str(k))
        for k, n in enumerate(wanted)
    ]
    printed = run_programs([programs(one)[0] for one in made])
    for one in made:
        assert len(printed[str(programs(one)[0])]) == 2
        largest = max(abs(one.sides[0].value), 1e-3)
        off = float(printed[str(programs(one)[0])][1].rpartition(" ")[2])
        assert off <= 1e-5 * max(largest, 1), one.tensor


def test_the_page_has_the_figures_of_both_sides_and_the_versions(repros):
    _, made, _ = repros
    found = made["layer_norm"]
    text = (Path(found.folder) / "README.md").read_text()
    for side in found.sides:
        assert str(side.value) in text
        assert str(side.answer) in text
        assert side.versions["torch"] in text
        assert f"python {side.program}" in text
    assert "epsilon=0.001" in text
    assert "the other's stage, in float64" in text
    one, two = found.sides  # each side's stage on the other's inputs is the other's value here
    assert one.other_stage == pytest.approx(two.answer, rel=1e-6)


def test_one_program_runs_by_itself(repros):
    _, made, _ = repros
    path = programs(made["gelu"])[0]
    clean = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    command = [sys.executable, "-I", path.name]
    done = subprocess.run(command, cwd=path.parent, env=clean, capture_output=True, text=True)
    assert done.returncode == 0
    assert re.fullmatch(r"value at \[.*\]: \S+\ngreatest difference .*: \S+\n", done.stdout)


def test_the_command_says_where_the_folder_is_and_how_to_run(repros, tmp_path, capsys):
    folder = repros[0]
    traces = [str(folder / "gelu.trace"), str(folder / "right.trace")]
    out = ["--out", str(tmp_path / "new"), "--step", "2", "--tensor", "forward/head"]
    with pytest.raises(SystemExit) as ended:
        main(["repro", *traces, *out])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert "python repro_gelu.py" in " ".join(shown.split())
    assert "REPRO: step 2, forward/head" in shown
    with pytest.raises(SystemExit):
        main(["repro", *traces, *out, "--json"])
    said = json.loads(capsys.readouterr().out)
    assert (said["step"], said["tensor"]) == (2, "forward/head")
    assert {"README.md", "inputs.npz"} <= set(said["files"])


def failed(*args, **options):
    with pytest.raises(harness.HarnessError) as caught:
        harness.repro(*args, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_cannot_be_written_is_said_with_what_to_do(repros, tmp_path):
    folder = repros[0]
    a, b = folder / "gelu.trace", folder / "right.trace"
    assert "no place to report" in failed(b, b)
    assert "no step 9" in failed(a, b, step=9, tensor="forward/ln")
    assert "near are: forward/ln" in failed(a, b, step=1, tensor="forward/lm")
    said = failed(a, b, step=1, tensor="inputs/x", out=tmp_path / "x")
    assert "does not say how inputs/x is made" in said
    assert re.search(r"--step 1 --tensor forward/\w+$", said)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    said = failed(a, b, step=1, tensor="forward/ln", out=tmp_path / "mine")
    assert "name another folder with --out" in said
    assert (tmp_path / "mine" / "thesis.txt").exists()


def write_trace(path, framework, tensors, stages, step=1, dtype="float32"):
    """A trace whose tensors with a stage are what that stage makes, rounded once."""
    arrays = {name: np.asarray(x) for name, x in tensors.items()}
    entries = [Declared.of(n, stages.get(n)) for n in [*arrays, *stages]]
    graph = graph_from(entries)
    for name in stages:
        began = np.zeros_like(arrays["grads/w"]) if name.startswith("optimizer/") else None
        values = Values(lambda back, wanted, z=began: arrays.get(wanted, z), step, graph)
        arrays[name] = np.asarray(values.value(graph.value(name))).astype(dtype)
    with harness.TraceWriter(
        path, label=path.stem, dtype=dtype, framework=dict.fromkeys(framework, "1")
    ) as trace:
        trace.write(step, arrays, stages=stages)
    return path


DRAW = np.random.default_rng(2)


def draw(*shape, dtype="float32"):
    return DRAW.normal(size=shape).astype(dtype)


def adam(op, step=1.0, epsilon=1e-3):
    old = "params/w@step-1|inputs/params/w"
    slots = {
        "m": stage("average", "optimizer/w/m@step-1|zeros", "grads/w", 0.9),
        "v": stage("average", "optimizer/w/v@step-1|zeros", stage("square", "grads/w"), 0.999),
    }
    new = stage(
        op, old, "optimizer/w/m", "optimizer/w/v", "update/learning_rate", 0.9, 0.999, epsilon,
        stage("step"),
    )  # fmt: skip
    return {f"optimizer/w/{slot}": made for slot, made in slots.items()} | {"params/w": new}


MAP = """
[[points]]
a = ["x"]
b = ["x"]
steps = ["axes 0 2 3 1"]

[[points]]
a = ["conv"]
b = ["conv"]
steps = ["axes 0 2 3 1"]

[[params]]
a = ["w"]
b = ["w"]
steps = ["axes 2 3 1 0"]
"""


@pytest.mark.parametrize(
    ("package", "dtype"),
    [
        ("keras", "float32"),
        pytest.param("keras", "float64", marks=pytest.mark.slow),
        pytest.param("jax", "float32", marks=pytest.mark.slow),
        pytest.param("jax", "float64", marks=pytest.mark.slow),
    ],
)
def test_epsilon_hat_of_adam_and_other_padding_across_frameworks(package, dtype, tmp_path):
    needs("torch", "tensorflow" if package == "keras" else "jax")
    weights = {"inputs/params/w": draw(4, 3, dtype=dtype), "grads/w": draw(4, 3, dtype=dtype)}
    weights["update/learning_rate"] = np.float64(0.01)
    framework = ("tensorflow", "keras") if package == "keras" else ("jax",)
    keras_rule = "adam_keras" if package == "keras" else "adam"
    a = write_trace(tmp_path / "a.trace", ("torch",), weights, adam("adam"), dtype=dtype)
    other = adam(keras_rule, epsilon=1e-3 if package == "keras" else 1e-2)
    b = write_trace(tmp_path / "b.trace", framework, weights, other, dtype=dtype)
    made = [harness.repro(a, b, out=tmp_path / "adam")]

    x, w = draw(2, 3, 6, 6, dtype=dtype), draw(4, 3, 3, 3, dtype=dtype)
    one = write_trace(
        tmp_path / "one.trace",
        ("torch",),
        {"forward/x": x, "inputs/params/w": w},
        {"forward/conv": stage("conv", "forward/x", "inputs/params/w", stride=2, padding=1)},
        dtype=dtype,
    )
    two = write_trace(
        tmp_path / "two.trace",
        framework,
        {
            "forward/x": np.ascontiguousarray(x.transpose(0, 2, 3, 1)),
            "inputs/params/w": np.ascontiguousarray(w.transpose(2, 3, 1, 0)),
        },
        {
            "forward/conv": stage(
                "conv", "forward/x", "inputs/params/w", stride=2, padding="same", layout="last"
            )
        },
        dtype=dtype,
    )
    (tmp_path / "map.toml").write_text(MAP)
    made.append(harness.repro(one, two, map=tmp_path / "map.toml", out=tmp_path / "conv"))

    printed = run_programs([programs(m)[0] for m in made] + [programs(m)[1] for m in made])
    for found in made:
        check(found, printed)
    assert made[0].tensor == "params/w"
    assert ("keras.optimizers.Adam(" if package == "keras" else "optax.adam(") in programs(made[0])[
        1
    ].read_text()
    first, second = (side.index for side in made[1].sides)
    assert first == (second[0], second[3], second[1], second[2])


@pytest.mark.slow
def test_a_run_leaves_its_verdict_where_repro_finds_it(tmp_path, monkeypatch):
    needs("torch")
    monkeypatch.chdir(tmp_path)
    text = (HERE / "repro_scripts.py").read_text()
    for name, change in (("mine", "ln_eps=1e-3"), ("theirs", "ln_eps=1e-5")):
        call = f"train('traces/{name}.trace', {change})"
        head = text.partition('if __name__ == "__main__":')[0]
        (tmp_path / f"{name}.py").write_text(f"{head}\n{call}\n")
    result = harness.run_sides(sides=["mine.py", "theirs.py"], trace=2, out="out")
    assert result.verdict.label == "bug"
    command = result.verdict.next.partition("to report it: ")[2]
    assert command == "harness repro out/mine.trace out/theirs.trace"
    (tmp_path / "moved").mkdir()
    os.rename("out", "moved/out")  # a folder is found by its traces, wherever it lies
    made = harness.repro("moved/out/mine.trace", "moved/out/theirs.trace")
    assert (made.step, made.tensor) == (1, "forward/ln")
    assert made.sentence == result.verdict.sentence
    assert made.cause == result.verdict.causes[0].sentence
    assert [side.label for side in made.sides] == ["mine", "theirs"]
    where = result.verdict.where
    assert [side.value for side in made.sides] == [where.a, where.b]
    check(made, run_programs(programs(made)))
    page = (Path(made.folder) / "README.md").read_text()
    assert made.sentence in page
    assert made.cause in page
