"""Runs whose numbers leave the finite: every step is traced, and the twins agree about it."""

import msgspec
import numpy as np
import pytest
from some import some
from twins import NAMES, RUN_MODEL, V, a_run, assert_close, tensors_of
from twins import E as WIDTH

from harness.compare import diff
from harness.data import weights
from harness.models.table import SLOTS
from harness.spec import Capture
from harness.trace import Rows, check_trace, open_trace

OPTIMIZERS = list(SLOTS)
CLIPS = ["global_norm", "elementwise", "none"]
# Overflow, an infinite rate, numbers under the smallest normal one, and a decay of all rows.
RATES = {"huge": 1e38, "infinite": 1e300, "tiny": 1e-39}
STEPS = 4
# NumPy's side computes whole matrices, by the formula: where a factor is 0 or infinite, rows of
# tokens that were not read become NaN there, and no others do.
DENSE = "the formula on the whole matrix makes NaN of 0 times infinity in rows that were not read"


def exploding(folder, label, rate, **fields):
    """A run that is started with -0.0, denormals and a weight near the largest number."""
    run = a_run(folder, label, steps=STEPS, lr=RATES[rate], lr_decay=1.0, tokens=60, **fields)
    start = weights.load(run.weights)
    start["embedding"][:, 0] = -0.0
    start["embedding"][3] = -0.0
    start["softmax_w"][0] = 1e-40
    start["softmax_w"][1, 2] = 3e38
    weights.save(start, run.weights)
    return run


def whole(folder, label, steps=STEPS):
    """The trace of a run that must have come to its end, sound to the last byte."""
    path = folder / f"{label}.trace"
    assert check_trace(path).faults == ()
    trace = open_trace(path)
    assert trace.header.complete
    assert trace.steps == tuple(range(1, steps + 1))
    return trace


def not_finite(trace):
    """How many elements of the weights are NaN or infinite after the last step."""
    found = {e.name: e for e in trace.step(trace.steps[-1]).entries}
    return sum(found[f"params/{name}"].nan + found[f"params/{name}"].inf for name in NAMES)


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("optimizer", some(OPTIMIZERS, fast=("sgd", "adam")))
def test_a_run_traces_through_nan_inf_denormals_and_negative_zeros(
    request, twin, tmp_path, optimizer, clip, rate
):
    unread = clip == "global_norm" or (optimizer, rate) == ("sgd", "infinite")
    if twin.twin == "np" and unread:
        request.applymarker(pytest.mark.xfail(strict=True, reason=DENSE))
    twin("train", exploding(tmp_path, "side", rate, optimizer=optimizer, clip=clip))
    trace = whole(tmp_path, "side")
    if rate != "tiny":
        assert not_finite(trace), "the weights must explode, or this test shows nothing"
    for step in trace.steps:
        found = tensors_of(tmp_path, "side", step)
        assert_clipped(found, clip)
        if step == 1:  # denormals are read as they are, whatever ran in the process before
            assert (found["inputs/params/softmax_w"][0] == np.float32(1e-40)).all()
    if optimizer == "sgd" and rate != "tiny":  # frameworks flush such a rate to zero
        assert_rows_moved(tmp_path, RATES[rate])


def assert_clipped(found, clip):
    """The clipped gradient of the embedding is what clipping the whole matrix makes of it."""
    with np.errstate(all="ignore"):
        given, norm = found["grads/embedding"], found["update/global_norm"]
        read = np.unique(found["inputs/x"])
        expected = np.zeros_like(given)
        expected[read] = {
            "none": lambda g: g,
            "elementwise": lambda g: np.clip(g, np.float32(-5), np.float32(5)),
            "global_norm": lambda g: g * (np.float32(5) / np.maximum(norm, np.float32(5))),
        }[clip](given[read])
    np.testing.assert_allclose(found["update/clipped/embedding"], expected, 1e-5, 1e-38)


def assert_rows_moved(folder, rate):
    """The rows of tokens read are moved as an update of those rows as a matrix would move them."""
    first = tensors_of(folder, "side", 1)
    read = np.unique(first["inputs/x"])
    with np.errstate(all="ignore"):
        moved = first["update/clipped/embedding"][read]
        moved = np.where(moved.any(axis=1, keepdims=True), moved * np.float32(rate), moved)
        expected = first["inputs/params/embedding"][read] - moved
    np.testing.assert_allclose(first["params/embedding"][read], expected, 1e-5, 1e-38)
    others = np.setdiff1d(np.arange(V), read)
    kept = first["params/embedding"][others].view(np.uint32)
    assert np.array_equal(kept, first["inputs/params/embedding"][others].view(np.uint32))


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_twins_explode_at_the_same_tensor(pt, tf, referee, tmp_path, optimizer, clip):
    fields = dict(optimizer=optimizer, clip=clip, dtype="float64")
    for twin, label in ((pt, "pt"), (tf, "tf"), (referee, "np")):
        twin("train", exploding(tmp_path, label, "infinite", **fields))
    places = {label: first_not_finite(whole(tmp_path, label)) for label in ("pt", "tf", "np")}
    assert places["tf"] is not None
    assert places["pt"] == places["tf"] == places["np"]
    for label in ("pt", "np"):
        # Sums of infinities depend on their order, so that no more than this can be promised.
        found = diff(tmp_path / f"{label}.trace", tmp_path / "tf.trace")
        first = found.first_divergence
        assert first is None or first.step >= places["tf"][0]


def first_not_finite(trace):
    for step in trace.steps:
        for entry in trace.entry(step).tensors:
            if entry.nan or entry.inf:
                return step, entry.name
    return None


@pytest.mark.parametrize(
    "fields",
    [
        {"loss": "mean"},
        {"dropout": 0.5},
        {"num_layers": 1},
        {"capture": Capture(level="stats", checkpoint_every=2)},
        {"capture": Capture(level="hash")},
        {"weight_decay": 0.1, "decoupled": True},
        {"clip_limit": 1e300},
        {"clip_limit": 1e300, "clip": "elementwise"},
        {"dtype": "float64", "lr": 1e300},
    ],
    ids=str,
)
def test_other_settings_trace_through_it_too(twin, tmp_path, fields):
    model = {name: fields[name] for name in ("dropout", "num_layers") if name in fields}
    train = {name: value for name, value in fields.items() if name not in model}
    rate = train.pop("lr", 1e38)
    changed = msgspec.structs.replace(RUN_MODEL, **model)
    twin("train", a_run(tmp_path, "side", steps=STEPS, lr=rate, model=changed, **train))
    trace = whole(tmp_path, "side")
    assert trace.header.level == "hash" or first_not_finite(trace)


@pytest.mark.parametrize(
    "fields", [pytest.param({"compile": True}, marks=pytest.mark.slow), {"autograd": True}], ids=str
)
def test_compiled_steps_and_autograd_trace_through_it_too(side, tmp_path, fields):
    side("train", exploding(tmp_path, "side", "huge", **fields))
    assert not_finite(whole(tmp_path, "side"))


def test_a_run_that_follows_an_exploding_one_traces_through_it_too(pt, tf, referee, tmp_path):
    pt("train", exploding(tmp_path, "pt", "huge"))
    for twin, label in ((tf, "tf"), (referee, "np")):
        twin("train", exploding(tmp_path, label, "huge", follow="pt"))
        whole(tmp_path, label)


def test_rows_are_added_up_and_single_ones_keep_their_bits():
    values = np.array([[1, -0.0], [-0.0, -0.0], [0, 0], [np.nan, np.inf], [2, 3]], np.float32)
    found = Rows(np.array([4, 2, 4, 3, 4]), values, (6, 2)).checked()
    assert found.rows.tolist() == [2, 3, 4]
    expected = np.array([[-0.0, -0.0], [np.nan, np.inf], [3, 3]], np.float32)
    assert found.values.dtype == np.float32
    assert found.values.tobytes() == expected.tobytes()
    assert np.signbit(Rows([5, 5], values[1:3], (6, 2)).dense()[5]).all()


@pytest.mark.parametrize("padding", [np.nan, -0.0, 0.0, np.inf, 1e-45])
def test_padding_that_is_no_longer_zero_is_added_to_its_row(padding):
    values = np.full((3, WIDTH), padding, np.float32)
    values[0] = 1.5
    with np.errstate(invalid="ignore"):
        expected = values[0] + values[1]
    dense = Rows(np.array([1, 1, 2]), values, (4, WIDTH)).dense()
    assert_close(dense[1], expected)
    assert not dense[[0, 3]].any()


def test_rows_that_overflow_or_cancel_infinities_warn_of_nothing():
    big = np.finfo(np.float32).max
    values = np.array([[big, np.inf], [big, -np.inf]], np.float32)
    dense = Rows(np.array([0, 0]), values, (1, 2)).dense()
    assert np.isposinf(dense[0, 0])
    assert np.isnan(dense[0, 1])
