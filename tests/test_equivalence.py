"""PyTorch against TensorFlow: cell, layer, whole model, forward, backward, update."""

import numpy as np
import pytest
from twins import (
    MODEL,
    B,
    E,
    H,
    T,
    assert_all_close,
    assert_close,
    random_state,
    random_tokens,
    random_weights,
    rng,
    train_spec,
)

from harness.randomness import dropout_masks
from harness.spec import parameters, replace


def cell_arrays(dtype, zero):
    draw = rng(4)
    return [draw.normal(size=(B, 4 * H)).astype(dtype), random_state(dtype, zero=zero)["layer0/c"]]


def layer_arrays(dtype, zero):
    draw, weights, state = rng(5), random_weights(dtype), random_state(dtype, zero=zero)
    x = draw.normal(size=(B, T, E)).astype(dtype)
    names = [f"layer0/{name}" for name in ("w_i", "w_h", "b_i", "b_h")]
    return [x, state["layer0/h"], state["layer0/c"], *(weights[name] for name in names)]


@pytest.mark.parametrize("zero", [True, False], ids=["from zero", "from a given state"])
def test_the_cells_agree_forward_and_backward(pt, tf, dtype, zero):
    arrays = cell_arrays(dtype, zero)
    for name, a, b in zip(
        "hc", *(twin("call", "cells.lstm_cell", *arrays) for twin in (pt, tf)), strict=True
    ):
        assert_close(a, b, name)
    cotangents = [rng(6).normal(size=(B, H)).astype(dtype) for _ in range(2)]
    grads = [twin("vjp", "cells.lstm_cell", arrays, cotangents) for twin in (pt, tf)]
    for name, a, b in zip(("dz", "dc"), *grads, strict=True):
        assert_close(a, b, name)


@pytest.mark.parametrize("zero", [True, False], ids=["from zero", "from a given state"])
def test_the_layers_agree_forward_and_backward(pt, tf, dtype, zero):
    arrays = layer_arrays(dtype, zero)
    outputs = [twin("call", "cells.lstm_layer", *arrays) for twin in (pt, tf)]
    for name, a, b in zip(("gates", "h", "c"), *outputs, strict=True):
        assert_close(np.stack(a, 1), np.stack(b, 1), name)
    draw = rng(7)
    shapes = [(B, 4 * H)] * T + [(B, H)] * (2 * T)
    cotangents = [draw.normal(size=shape).astype(dtype) for shape in shapes]
    grads = [twin("vjp", "cells.lstm_layer", arrays, cotangents) for twin in (pt, tf)]
    for name, a, b in zip(("x", "h", "c", "w_i", "w_h", "b_i", "b_h"), *grads, strict=True):
        assert_close(a, b, f"d{name}")


def step(twin, dtype, zero=False, dropout=0.0, **fields):
    model, train = replace(MODEL, dropout=dropout), train_spec(dtype, **fields)
    x, y = random_tokens()
    masks = dropout_masks(model, train, 1)
    state = random_state(dtype, zero=zero)
    weights = random_weights(dtype)
    return twin("call", "train.train_step", weights, state, x, y, masks, 0.7, model, train, True)


CASES = {
    "as published": {},
    "from zero": {"zero": True},
    "clipped by global norm": {"clip_limit": 0.3},
    "clipped element by element": {"clip": "elementwise", "clip_limit": 0.05},
    "not clipped": {"clip": "none"},
    "loss averaged over time": {"loss": "mean"},
    "with dropout": {"dropout": 0.4},
}


@pytest.mark.parametrize("case", CASES, ids=list(CASES))
def test_one_training_step_agrees_at_every_trace_point(pt, tf, dtype, case):
    params_a, state_a, loss_a, points_a = step(pt, dtype, **CASES[case])
    params_b, state_b, loss_b, points_b = step(tf, dtype, **CASES[case])
    names = [p.name for p in parameters(MODEL)]
    assert {f"grads/{n}" for n in names} | {f"update/clipped/{n}" for n in names} <= set(points_a)
    assert_all_close(points_a, points_b)
    assert_all_close(params_a, params_b)
    assert_all_close(state_a, state_b)
    assert_close(loss_a, loss_b, "loss")


def test_clipping_bites_in_the_cases_that_say_so(pt):
    for case in ("clipped by global norm", "clipped element by element"):
        points = step(pt, "float64", **CASES[case])[3]
        assert not np.allclose(points["grads/softmax_w"], points["update/clipped/softmax_w"])


def test_clipped_gradients_have_the_norm_of_the_limit(twin, dtype):
    points = step(twin, dtype, clip_limit=0.3)[3]
    clipped = [g for name, g in points.items() if name.startswith("update/clipped/")]
    norm = np.sqrt(sum(float(np.sum(g.astype(np.float64) ** 2)) for g in clipped))
    assert norm == pytest.approx(0.3, rel=1e-6)


def test_the_mean_over_time_is_the_sum_divided_by_t(twin, dtype):
    total = step(twin, dtype, clip="none")[3]
    mean = step(twin, dtype, clip="none", loss="mean")[3]
    assert mean["forward/loss"] * T == pytest.approx(total["forward/loss"], rel=1e-5)
    assert np.allclose(mean["grads/layer0/w_h"] * T, total["grads/layer0/w_h"], rtol=1e-3)


def test_log_softmax_is_finite_where_a_naive_one_overflows(twin, dtype):
    logits = np.array([[[1e4, 0.0, -1e4]]], dtype)
    found = twin("call", "losses.log_softmax", logits)
    assert np.array_equal(found, np.array([[[0.0, -1e4, -2e4]]], dtype))


def test_the_learning_rate_is_flat_and_then_decays_once_an_epoch(twin):
    train = train_spec("float64", lr=2.0, flat_epochs=4, lr_decay=2.0)
    rates = [twin("call", "optim.learning_rate", train, epoch, 9) for epoch in range(1, 8)]
    assert rates == [2.0, 2.0, 2.0, 2.0, 1.0, 0.5, 0.25]


def test_the_learning_rate_can_follow_the_validation_loss(twin):
    train = train_spec("float64", lr=2.0, lr_decay=4.0, schedule="plateau")
    rates = [twin("call", "optim.learning_rate", train, 30, plateaus) for plateaus in range(3)]
    assert rates == [2.0, 0.5, 0.125]


def loss_at(twin, weights, state, x, y):
    train = train_spec("float64")
    loss, *_ = twin("call", "train.gradients", weights, state, x, y, {}, MODEL, train, False)
    return float(loss)


@pytest.mark.parametrize("name", [p.name for p in parameters(MODEL)])
def test_gradients_are_those_of_finite_differences(twin, name):
    weights, state, (x, y) = random_weights("float64"), random_state("float64"), random_tokens()
    train = train_spec("float64")
    found = twin("call", "train.gradients", weights, state, x, y, {}, MODEL, train, False)
    grad, draw, size = found[3][name], rng(8), 1e-5
    for direction in (draw.normal(size=grad.shape), draw.normal(size=grad.shape)):
        ends = [
            loss_at(twin, {**weights, name: weights[name] + sign * size * direction}, state, x, y)
            for sign in (1, -1)
        ]
        slope = (ends[0] - ends[1]) / (2 * size)
        assert slope == pytest.approx(float(np.sum(grad * direction)), rel=1e-7, abs=1e-8)
