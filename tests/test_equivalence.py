"""PyTorch and TensorFlow against each other, piece by piece, and whole steps against NumPy."""

import numpy as np
import pytest
from twins import (
    MODEL,
    NAMES,
    B,
    E,
    H,
    T,
    V,
    assert_all_close,
    assert_close,
    random_slots,
    random_state,
    random_tokens,
    random_weights,
    rng,
    train_spec,
)

from harness.data.randomness import dropout_masks
from harness.spec import replace

TWINS = ("pt", "tf")  # NumPy's side has no functions of its own: it is held to whole steps


@pytest.fixture(params=TWINS)
def function(request):
    """A twin whose functions are called one by one."""
    return request.getfixturevalue(request.param)


ZERO = pytest.mark.parametrize("zero", [True, False], ids=["from zero", "from a given state"])


def drawn(dtype, seed, *shapes):
    draw = rng(seed)
    return [draw.normal(size=shape).astype(dtype) for shape in shapes]


def layer_arrays(dtype, zero):
    weights, state = random_weights(dtype), random_state(dtype, zero=zero)
    names = [f"layer0/{name}" for name in ("w_i", "w_h", "b_i", "b_h")]
    (x,) = drawn(dtype, 5, (B, T, E))
    return [x, state["layer0/h"], state["layer0/c"], *(weights[name] for name in names)]


def assert_derivatives_agree(names, *found):
    """Every later list of arrays against the last of them."""
    for others in found[:-1]:
        for name, a, b in zip(names, others, found[-1], strict=True):
            assert_close(a, b, f"d{name}")


@ZERO
def test_the_cells_agree_forward_and_backward(side, pt, tf, dtype, zero):
    arrays = [*drawn(dtype, 4, (B, 4 * H)), random_state(dtype, zero=zero)["layer0/c"]]
    found = [twin("call", "cells.lstm_cell", *arrays) for twin in (pt, tf)]
    for name, a, b in zip("hc", *found, strict=True):
        assert_close(a, b, name)
    cotangents = drawn(dtype, 6, (B, H), (B, H))
    by_autograd = side("vjp", "cells.lstm_cell", arrays, cotangents)
    by_hand = [twin("cell_by_hand", *arrays, *cotangents) for twin in (pt, tf)]
    assert_derivatives_agree("zc", by_autograd, *by_hand)


@ZERO
def test_the_layers_agree_forward_and_backward(side, pt, tf, dtype, zero):
    arrays = layer_arrays(dtype, zero)
    found = [twin("call", "cells.lstm_layer", *arrays) for twin in (pt, tf)]
    for name, a, b in zip(("h", "c"), *found, strict=True):
        assert_close(np.stack(a, 1), np.stack(b, 1), name)
    d_hidden = drawn(dtype, 7, *[(B, H)] * T)
    unread = [np.zeros((B, H), dtype)] * T  # nothing outside a layer reads its cell states
    x, _, _, *weights = side("vjp", "cells.lstm_layer", arrays, [*d_hidden, *unread])
    outside = np.stack(d_hidden, 1)
    by_hand = [twin("layer_by_hand", *arrays, outside) for twin in (pt, tf)]
    assert_derivatives_agree(("x", "w_i", "w_h", "b_i", "b_h"), [x, *weights], *by_hand)


def test_the_projections_agree_forward_and_backward(side, pt, tf, dtype):
    *arrays, gradient = drawn(dtype, 9, (B, T, H), (H, V), (V,), (B, T, V))
    a, b = (twin("call", "cells.project", *arrays) for twin in (pt, tf))
    assert_close(a, b)
    by_autograd = side("vjp", "cells.project", arrays, [gradient])
    given = [*arrays[:2], gradient]
    by_hand = [twin("call", "cells.project_backward", *given) for twin in (pt, tf)]
    assert_derivatives_agree("xwb", by_autograd, *by_hand)


def test_log_sum_exp_agrees(pt, tf, dtype):
    (logits,) = drawn(dtype, 10, (B, T, V))
    a, b = (twin("call", "losses.log_sum_exp", 5 * logits) for twin in (pt, tf))
    assert_close(a, b)


@pytest.mark.parametrize("loss", ["sum", "mean"])
def test_the_losses_agree_forward_and_backward(side, pt, tf, dtype, loss):
    (logits,) = drawn(dtype, 11, (B, T, V))
    y = random_tokens()[1]
    a, b = (twin("call", "losses.cross_entropy", logits, y, loss) for twin in (pt, tf))
    assert_close(a, b)
    by_autograd = side("loss_by_autograd", logits, y, loss)
    given = [logits, y, loss]
    by_hand = [twin("call", "losses.cross_entropy_backward", *given) for twin in (pt, tf)]
    assert_derivatives_agree(["logits"], [by_autograd], *([d] for d in by_hand))


def step(twin, dtype, zero=False, dropout=0.0, watch=True, how="watched", **fields):
    """One training step: new parameters, slots and state, loss, and the trace points."""
    model, train = replace(MODEL, dropout=dropout), train_spec(dtype, **fields)
    x, y = random_tokens()
    masks, state = dropout_masks(model, train, 1), random_state(dtype, zero=zero)
    given = [random_weights(dtype), random_slots(dtype, train), state, x, y, masks, 0.07, 3]
    more = {} if watch else {"watch": False}
    return twin(how, "train.train_step", *given, model, train, **more)


CASES = {
    "as published": {},
    "from zero": {"zero": True},
    "clipped by global norm": {"clip_limit": 0.3},
    "clipped element by element": {"clip": "elementwise", "clip_limit": 0.05},
    "not clipped": {"clip": "none"},
    "loss averaged over time": {"loss": "mean"},
    "with dropout": {"dropout": 0.4},
    "momentum": {"optimizer": "momentum", "loss": "mean", "weight_decay": 0.1},
    "Adam": {"optimizer": "adam", "dropout": 0.4, "weight_decay": 0.1, "decoupled": True},
    "RMSprop": {"optimizer": "rmsprop", "clip": "none"},
    "Adagrad": {"optimizer": "adagrad", "clip": "elementwise", "clip_limit": 0.05},
}


@pytest.mark.parametrize("case", CASES, ids=list(CASES))
def test_one_training_step_agrees_at_every_trace_point(side, referee, dtype, case):
    *found_a, loss_a, points_a = step(side, dtype, **CASES[case])
    *found_b, loss_b, points_b = step(referee, dtype, **CASES[case])
    assert_all_close(points_a, points_b)
    for a, b in zip(found_a, found_b, strict=True):  # parameters, slots, state
        assert_all_close(a, b)
    assert_close(loss_a, loss_b, "loss")
    expected = [
        f"{kind}/{name}" for kind in ("grads", "update/clipped", "params") for name in NAMES
    ]
    forward = [f"layer{k}/{part}" for k in range(2) for part in ("gates", "c", "h")]
    forward = ["embedding", *forward, "logits"]
    expected += [f"{phase}/{name}" for phase in ("forward", "backward") for name in forward]
    assert set(expected) <= set(points_a)


@pytest.mark.parametrize("case", CASES, ids=list(CASES))
def test_the_gradient_by_hand_is_that_of_autograd(side, dtype, case):
    by_hand, by_autograd = (
        step(side, dtype, **CASES[case], autograd=autograd)[-1] for autograd in (False, True)
    )
    assert set(by_hand) == set(by_autograd)
    assert_all_close(by_hand, by_autograd)


@pytest.mark.parametrize("case", ["with dropout", "Adam"])
def test_watching_changes_no_bit_of_a_step(twin, dtype, case):
    *found, _, points = step(twin, dtype, **CASES[case])
    *unseen, _, nothing = step(twin, dtype, **CASES[case], watch=False)
    assert points
    assert not nothing
    for a, b in zip(found, unseen, strict=True):
        assert {name: x.tobytes() for name, x in a.items()} == {
            n: x.tobytes() for n, x in b.items()
        }


def test_clipping_bites_in_the_cases_that_say_so(referee):
    for case in ("clipped by global norm", "clipped element by element"):
        points = step(referee, "float64", **CASES[case])[-1]
        assert not np.allclose(points["grads/softmax_w"], points["update/clipped/softmax_w"])


def test_clipped_gradients_have_the_norm_of_the_limit(twin, dtype):
    points = step(twin, dtype, clip_limit=0.3)[-1]
    clipped = [g for name, g in points.items() if name.startswith("update/clipped/")]
    norm = np.sqrt(sum(float(np.sum(g.astype(np.float64) ** 2)) for g in clipped))
    assert norm == pytest.approx(0.3, rel=1e-6)


def test_the_mean_over_time_is_the_sum_divided_by_t(twin, dtype):
    total = step(twin, dtype, clip="none")[-1]
    mean = step(twin, dtype, clip="none", loss="mean")[-1]
    assert mean["forward/loss"] * T == pytest.approx(total["forward/loss"], rel=1e-5)
    assert np.allclose(mean["grads/layer0/w_h"] * T, total["grads/layer0/w_h"], rtol=1e-3)


@pytest.mark.parametrize("mode", ["global_norm", "elementwise", "none"])
def test_a_gradient_that_is_not_a_number_stays_so_when_clipped(function, dtype, mode):
    grads = {"w": np.array([1.0, np.nan, -np.inf], dtype), "b": np.array([3.0], dtype)}
    norm = function("call", "optim.global_norm", grads)
    assert np.isnan(norm)
    clipped = function("call", "optim.clip", grads, np.asarray(norm, dtype), mode, 2.0)
    assert np.isnan(clipped["w"][1])
    assert np.isnan(clipped["b"][0]) == (mode == "global_norm")
    assert clipped["w"].dtype == dtype


def test_log_sum_exp_is_finite_where_a_naive_one_overflows(function, dtype):
    logits = np.array([[[1e4, 0.0, -1e4]]], dtype)
    assert function("call", "losses.log_sum_exp", logits) == 1e4


def test_the_learning_rate_is_flat_and_then_decays_once_an_epoch(function):
    train = train_spec("float64", lr=2.0, flat_epochs=4, lr_decay=2.0)
    rates = [function("call", "optim.learning_rate", train, epoch, 9) for epoch in range(1, 8)]
    assert rates == [2.0, 2.0, 2.0, 2.0, 1.0, 0.5, 0.25]


def test_the_learning_rate_can_follow_the_validation_loss(function):
    train = train_spec("float64", lr=2.0, lr_decay=4.0, schedule="plateau")
    rates = [function("call", "optim.learning_rate", train, 30, plateaus) for plateaus in range(3)]
    assert rates == [2.0, 0.5, 0.125]


def test_a_part_that_is_cut_off_has_a_zero_gradient_and_the_run_goes_on(side):
    points = step(side, "float32", how="watched_with_detached_embedding", autograd=True)[-1]
    usual = step(side, "float32", autograd=True)[-1]
    assert list(points) == list(usual)
    assert not points["grads/embedding"].any()
    assert usual["grads/embedding"].any()
    assert np.array_equal(points["grads/layer0/w_i"], usual["grads/layer0/w_i"])
