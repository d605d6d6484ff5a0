"""Runs that start again from what a trace keeps, and steps that a compiler has made."""

import msgspec
import pytest
from some import some
from twins import RUN_MODEL, B, T, a_run

from harness.data import weights
from harness.errors import HarnessError
from harness.spec import Capture, Follow, Resume
from harness.trace import TraceError, open_trace

STATS = Capture(level="stats", checkpoint_every=3)
CASES = {
    "as published": {},
    "all that can be": {
        "optimizer": "adam",
        "model": {"dropout": 0.4},
        "schedule": "plateau",
        "lr": 0.5,
        "dtype": "float64",
    },
}


def long_run(folder, steps=33, **fields):
    """A run over epochs of five steps that keeps checkpoints; TensorFlow makes a graph of it."""
    model = msgspec.structs.replace(RUN_MODEL, **fields.pop("model", {}))
    return a_run(folder, "long", model, steps, tokens=B * (5 * T + 1), capture=STATS, **fields)


def again(run, step, **fields):
    """The same run, from after `step` on, with everything kept."""
    folder = run.trace.rsplit("/", 1)[0]
    return msgspec.structs.replace(
        run,
        label="again",
        trace=f"{folder}/again.trace",
        final=f"{folder}/again.npz",
        capture=Capture(),
        start=step + 1,
        resume=Resume(run.trace, step),
        **fields,
    )


def assert_same_bits(long, short):
    a, b = open_trace(long.trace), open_trace(short.trace)
    for step in b.steps:
        hashes = [(e.name, e.hash) for e in a.entry(step).tensors]
        assert hashes == [(e.name, e.hash) for e in b.entry(step).tensors], step
    assert b.steps[-1] == long.steps
    final = [weights.load(run.final) for run in (long, short)]
    for name, array in final[0].items():
        assert array.tobytes() == final[1][name].tobytes(), name


@pytest.mark.parametrize("case", some(CASES, fast=list(CASES)[::2]))
def test_a_restarted_run_has_the_same_bits_as_one_that_was_not_interrupted(twin, tmp_path, case):
    run = long_run(tmp_path, **CASES[case])
    reports = twin("train_reports", run)
    assert sum(seen["valid"] is not None for seen in reports) >= 2
    for step in (3, 30):
        short = again(run, step)
        found = twin("train_reports", short)
        assert found == reports[step:]
        assert_same_bits(run, short)


def test_a_restart_is_not_the_same_where_the_checkpoint_is_another(twin, tmp_path):
    run = long_run(tmp_path)
    twin("train", run)
    short = msgspec.structs.replace(again(run, 6), start=4)
    twin("train", short)
    with pytest.raises(AssertionError):
        assert_same_bits(run, short)


def test_a_step_that_keeps_nothing_cannot_be_started_from(twin, tmp_path):
    run = long_run(tmp_path, steps=5)
    twin("train", run)
    with pytest.raises(
        TraceError, match=r"long\.trace: no params/.* is kept of step 4: .*checkpoints"
    ):
        twin("train", again(run, 4))


def test_a_run_can_start_again_in_another_precision(twin, tmp_path):
    run = long_run(tmp_path, steps=6)
    twin("train", run)
    wide = msgspec.structs.replace(run.train, dtype="float64")
    twin("train", again(run, 3, train=wide))
    short = open_trace(tmp_path / "again.trace")
    assert short.steps == (4, 5, 6)
    assert short.step(4).find("params/softmax_w").dtype == "float64"


@pytest.mark.parametrize("name", ["tf", pytest.param("pt", marks=pytest.mark.slow)])
def test_a_compiled_run_is_close_to_the_eager_one(request, tmp_path, name):
    """PyTorch's compiler takes most of a minute."""
    from harness.compare import diff

    twin = request.getfixturevalue(name)
    fields = {"optimizer": "adam", "dtype": "float64", "lr": 0.01}
    eager = a_run(tmp_path, "eager", steps=6, **fields)
    compiled = a_run(tmp_path, "compiled", steps=6, compile=True, **fields)
    twin("train", eager)
    twin("train", compiled)
    found = diff(compiled.trace, eager.trace)
    assert (found.status, found.steps_compared) == ("close", 6)
    assert [e.name for e in open_trace(compiled.trace).entry(3).tensors] == [
        e.name for e in open_trace(eager.trace).entry(3).tensors
    ]
    sparse = a_run(tmp_path, "sparse", steps=6, compile=True, capture=Capture(every=5), **fields)
    twin("train", sparse)
    final = [weights.load(run.final) for run in (compiled, sparse)]
    assert all(final[0][n].tobytes() == final[1][n].tobytes() for n in final[0])


def test_a_compiled_step_has_no_place_for_faults_or_stages(side, tmp_path):
    run = a_run(tmp_path, "compiled", steps=1, compile=True)
    follow = Follow("nowhere.trace", "stage")
    for fields in ({"faults": ("clip-never",)}, {"follow": follow}):
        with pytest.raises(HarnessError, match="compile=true: a compiled step is one piece"):
            side("train", msgspec.structs.replace(run, **fields))


@pytest.mark.parametrize("name", ["compile", "autograd"])
def test_numpy_has_neither_a_compiler_nor_autograd(referee, tmp_path, name):
    with pytest.raises(HarnessError, match=f"^{name}=true: NumPy has neither"):
        referee("train", a_run(tmp_path, "side", **{name: True}))


@pytest.mark.parametrize(
    ("function", "arguments", "name"),
    [("compiled", 2, "compile"), ("differentiate", 2, "autograd"), ("swap", 3, "autograd")],
)
def test_the_backend_in_numpy_refuses_what_it_has_not(referee, function, arguments, name):
    with pytest.raises(HarnessError, match=f"^{name}=true: NumPy has neither"):
        referee("call", f"backend.{function}", *[None] * arguments)
