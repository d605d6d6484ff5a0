"""Whole runs of the twins: what their traces hold, and what tracing leaves alone."""

import msgspec
import numpy as np
import pytest
from some import some
from twins import NAMES, RUN_MODEL, SHAPES, B, H, T, V, a_run, tensors_of

from harness.compare import diff
from harness.data import corpus, weights
from harness.spec import Capture
from harness.trace import open_trace


def run_both(pt, tf, folder, **fields):
    """The losses of both, and the diff of their traces "pt" and "tf"."""
    changed = fields.pop("changed", None)
    running = [
        pt.start("train", a_run(folder, "pt", changed=changed, **fields)),
        tf.start("train", a_run(folder, "tf", **fields)),
    ]
    losses = [run.result() for run in running]
    return losses, diff(folder / "pt.trace", folder / "tf.trace")


@pytest.mark.parametrize("seed", some(range(1, 21), fast=range(1, 7)))
def test_clean_pairs_do_not_diverge_at_the_default_tolerance(
    pt, tf, referee, tmp_path, dtype, seed
):
    losses, found = run_both(pt, tf, tmp_path, seed=seed, dtype=dtype)
    assert (found.status, found.steps_compared) == ("close", 10)
    assert len(losses[0]) == len(losses[1]) == 10
    if seed <= 5:  # the referee is as near to each
        referee("train", a_run(tmp_path, "np", seed=seed, dtype=dtype))
        for side in ("pt", "tf"):
            found = diff(tmp_path / f"{side}.trace", tmp_path / "np.trace")
            assert (found.status, found.steps_compared) == ("close", 10), found.first_divergence


@pytest.mark.parametrize("parameter", NAMES)
def test_one_weight_off_by_a_thousandth_is_reported_at_step_1(pt, tf, tmp_path, parameter):
    index = tuple(n // 2 for n in SHAPES[parameter])
    changed = (parameter, index, 1.001)
    found = run_both(pt, tf, tmp_path, changed=changed, steps=1)[1]
    assert found.status == "diverged"
    assert found.first_divergence.step == 1
    assert found.first_divergence.tensor == f"inputs/params/{parameter}"
    assert found.first_divergence.index == index


def test_a_weight_off_by_a_thousandth_is_reported_without_looking_at_the_initial_weights(
    pt, tf, tmp_path
):
    run_both(pt, tf, tmp_path, changed=("softmax_b", (3,), 1.001), steps=1)
    found = diff(tmp_path / "pt.trace", tmp_path / "tf.trace", exclude=["inputs/*"])
    assert (found.status, found.first_divergence.step) == ("diverged", 1)


@pytest.mark.parametrize("fields", [{}, {"optimizer": "adam"}], ids=["sgd", "adam"])
def test_a_trace_holds_every_point_in_execution_order(twin, tmp_path, dtype, fields):
    twin("train", a_run(tmp_path, "side", steps=2, dtype=dtype, **fields))
    state = [f"layer{k}/{part}" for k in range(2) for part in "hc"]
    forward = ["embedding"]
    forward += [f"layer{k}/{part}" for k in range(2) for part in ("gates", "c", "h")] + ["logits"]
    slots = [f"{name}/{slot}" for name in NAMES for slot in ("m", "v")] if fields else []
    expected = ["inputs/x", "inputs/y", *(f"state/in/{name}" for name in state)]
    expected += [f"forward/{name}" for name in forward] + ["forward/loss"]
    expected += [f"backward/{name}" for name in reversed(forward)]
    expected += [f"grads/{name}" for name in NAMES] + ["update/global_norm"]
    expected += [f"update/clipped/{name}" for name in NAMES] + ["update/learning_rate"]
    expected += [f"optimizer/{name}" for name in slots] + [f"params/{name}" for name in NAMES]
    expected += [f"state/out/{name}" for name in state]
    trace = open_trace(tmp_path / "side.trace")
    assert [e.name for e in trace.step(2).entries] == expected
    first = [f"inputs/params/{name}" for name in NAMES]
    assert [e.name for e in trace.step(1).entries] == expected[:2] + first + expected[2:]
    shapes = {e.name: e.shape for e in trace.step(2).entries}
    assert shapes["forward/layer1/gates"] == (B, T, 4 * H)
    assert shapes["backward/layer0/c"] == (B, T, H)
    assert shapes["forward/logits"] == (B, T, V)
    assert shapes["update/global_norm"] == shapes["update/learning_rate"] == ()
    dtypes = {e.name: e.dtype for e in trace.step(2).entries}
    integers = {"inputs/x": "int32", "inputs/y": "int32"}
    assert dtypes == {name: integers.get(name, dtype) for name in expected}


def test_a_step_starts_where_the_last_one_ended_and_an_epoch_from_zero(twin, tmp_path):
    run = a_run(tmp_path, "side", tokens=100, steps=14)
    assert corpus.Batches(corpus.load_tokens(run.tokens), run.train).steps_per_epoch == 6
    twin("train", run)
    tensors = {step: tensors_of(tmp_path, "side", step) for step in (6, 7, 8)}
    for name in ("layer0/h", "layer0/c", "layer1/h", "layer1/c"):
        assert np.array_equal(tensors[7][f"state/out/{name}"], tensors[8][f"state/in/{name}"])
        assert tensors[6][f"state/out/{name}"].any()
        assert not tensors[7][f"state/in/{name}"].any()


def test_an_epoch_ends_with_the_validation_loss_of_the_weights_it_left(
    pt, tf, referee, tmp_path, dtype
):
    found = run_both(pt, tf, tmp_path, tokens=100, steps=13, dtype=dtype)[1]
    assert found.status == "close"
    trace = open_trace(tmp_path / "tf.trace")
    losses = {}
    for number in trace.steps:
        step = trace.step(number)
        if "evaluate/loss" in step.names():
            losses[number] = step.read(step.find("evaluate/loss"))
    assert list(losses) == [6, 12]
    run = a_run(tmp_path, "again", tokens=100, steps=13, dtype=dtype)
    batches = corpus.evaluation_batches(corpus.load_tokens(run.valid), run.train)
    assert batches.steps_per_epoch == 13
    left = tensors_of(tmp_path, "tf", 12)
    params = {name: left[f"params/{name}"] for name in NAMES}
    for twin in (pt, tf, referee):
        again = twin("call", "train.evaluate", params, batches, RUN_MODEL, run.train)
        assert again == pytest.approx(float(losses[12]), rel=1e-6)
        assert again != pytest.approx(float(losses[6]), rel=1e-6)
    assert 0 < again < 1.5 * np.log(V)


def test_the_rate_falls_after_epochs_that_do_not_better_the_validation_loss(twin, tmp_path):
    fields = dict(tokens=100, steps=25, lr=30.0, lr_decay=4.0, schedule="plateau", clip="none")
    seen = twin("train_reports", a_run(tmp_path, "side", **fields))
    valid = [report["valid"] for report in seen if report["valid"] is not None]
    expected, best, rate = [], float("inf"), 30.0
    for loss in valid:
        expected.append(rate)
        if not loss < best:
            rate /= 4
        best = min(best, loss)
    rates = [report["lr"] for report in seen]
    assert rates[::6] == [*expected, rate]
    assert rate < 30, "the loss must stop falling, or this test shows nothing"


def test_the_update_is_gradient_descent_on_the_clipped_gradients(twin, tmp_path):
    twin("train", a_run(tmp_path, "side", steps=2, dtype="float64", lr=0.5, clip_limit=0.2))
    tensors = tensors_of(tmp_path, "side", 1)
    for name in NAMES:
        moved = tensors[f"inputs/params/{name}"] - 0.5 * tensors[f"update/clipped/{name}"]
        assert np.allclose(moved, tensors[f"params/{name}"], rtol=1e-14, atol=1e-16)


def test_tracing_changes_no_bit_of_the_weights(twin, tmp_path, dtype):
    final = []
    for label, capture in (("traced", Capture()), ("untraced", Capture(first=1000))):
        run = a_run(tmp_path, label, steps=8, dtype=dtype, capture=capture)
        twin("train", msgspec.structs.replace(run, weights=str(tmp_path / "traced-start.npz")))
        final.append(weights.load(run.final))
    assert len(open_trace(tmp_path / "traced.trace").steps) == 8
    assert open_trace(tmp_path / "untraced.trace").steps == ()
    start = weights.load(tmp_path / "traced-start.npz")
    for name, array in final[0].items():
        assert array.tobytes() == final[1][name].tobytes()
        assert not np.array_equal(array, start[name])


def test_the_same_run_twice_gives_the_same_trace_bit_for_bit(twin, tmp_path, dtype):
    for label in ("one", "two"):
        twin("train", a_run(tmp_path, label, dtype=dtype, steps=6, lr=3.0))
    assert diff(tmp_path / "one.trace", tmp_path / "two.trace").status == "identical"
    for step in range(1, 7):
        file = f"step-{step:08d}.safetensors"
        one, two = (tmp_path / f"{label}.trace" / file for label in ("one", "two"))
        assert one.read_bytes() == two.read_bytes()


def test_dropout_masks_are_the_same_bytes_on_both_sides_and_act(pt, tf, tmp_path):
    model = msgspec.structs.replace(RUN_MODEL, dropout=0.5)
    found = run_both(pt, tf, tmp_path, model=model, steps=3)[1]
    assert found.status == "close"
    traces = [open_trace(tmp_path / f"{label}.trace") for label in ("pt", "tf")]
    for site in ("embedding", "layer0", "layer1"):
        name = f"inputs/mask/{site}"
        hashes = [t.step(step).find(name).hash for t in traces for step in (1, 2)]
        assert hashes[:2] == hashes[2:]
        assert hashes[0] != hashes[1]
    pt("train", a_run(tmp_path, "dry", steps=1))
    logits = [tensors_of(tmp_path, label, 1)["forward/logits"] for label in ("pt", "dry")]
    assert not np.allclose(*logits)


def test_weights_saved_by_one_side_start_the_other(pt, tf, tmp_path):
    run_both(pt, tf, tmp_path, steps=3)
    pt_final, tf_final = (str(tmp_path / f"{label}.npz") for label in ("pt", "tf"))
    for label, twin, start in (("a", pt, tf_final), ("b", tf, tf_final), ("c", tf, pt_final)):
        run = a_run(tmp_path, label, steps=4)
        twin("train", msgspec.structs.replace(run, weights=start))
    assert diff(tmp_path / "a.trace", tmp_path / "b.trace").status == "close"
    handed = tensors_of(tmp_path, "c", 1)
    for name, array in weights.load(pt_final).items():
        assert np.array_equal(handed[f"inputs/params/{name}"], array)


def test_a_side_that_clips_element_by_element_parts_at_the_first_step_over_the_limit(
    pt, tf, tmp_path
):
    fields = dict(lr=2.0, clip_limit=1.9, steps=12)
    running = [
        pt.start("train", a_run(tmp_path, "pt", clip="elementwise", **fields)),
        tf.start("train", a_run(tmp_path, "tf", **fields)),
    ]
    for run in running:
        run.result()
    found = diff(tmp_path / "pt.trace", tmp_path / "tf.trace")
    steps = open_trace(tmp_path / "tf.trace").steps
    norms = {n: float(tensors_of(tmp_path, "tf", n)["update/global_norm"]) for n in steps}
    first = min(number for number, norm in norms.items() if norm > 1.9)
    assert first > 1, "the limit must not bite at once, or this test shows little"
    assert found.first_divergence.step == first
    assert found.first_divergence.tensor.startswith("update/clipped/")
    assert found.last_agreeing.tensor == "update/global_norm"
