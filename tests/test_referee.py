"""The referee: its derivatives against differences of its loss, its precision, its dtypes."""

import numpy as np
import pytest
from twins import (
    MODEL,
    NAMES,
    SHAPES,
    a_run,
    assert_close,
    random_state,
    random_tokens,
    random_weights,
    rng,
    train_spec,
)

from harness.data.randomness import dropout_masks
from harness.errors import HarnessError
from harness.models.ops import basic
from harness.spec import replace
from harness.trace import open_trace

LONG = np.longdouble
WIDE = np.finfo(LONG).eps < 1e-18  # 64 bits of mantissa or more; on some machines it is a double
CASES = {"as published": {}, "mean": {"loss": "mean"}, "dropout": {"dropout": 0.4}}


def window(dtype, dropout=0.0, **fields):
    """The arguments of a step but the parameters, in `dtype`."""
    model, train = replace(MODEL, dropout=dropout), train_spec("float64", **fields)
    x, y = random_tokens()
    state = {name: s.astype(dtype) for name, s in random_state("float64").items()}
    return [{}, state, x, y, dropout_masks(model, train, 1), 0.1, 1, model, train]


def gradients(referee, dtype, params, **fields):
    """Loss, gradients and trace points of a step."""
    found = referee("watched", "train.train_step", params, *window(dtype, **fields), watch=True)
    *_, loss, points = found
    grads = {name: points[f"grads/{name}"] for name in params}
    return loss, grads, points


def weights_as(dtype):
    return {name: w.astype(dtype) for name, w in random_weights("float64").items()}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_those_of_finite_differences(referee, name, case):
    params, fields = weights_as(LONG), CASES[case]
    _, grads, _ = gradients(referee, LONG, params, **fields)
    direction = rng(8).normal(size=SHAPES[name]).astype(LONG)
    size, slope = LONG(1e-4 if WIDE else 1e-3), LONG(0)
    # (8 (f(h) - f(-h)) - (f(2h) - f(-2h))) / 12h: the error is of the order h^4.
    for steps, factor in ((1, 8), (-1, -8), (2, -1), (-2, 1)):
        moved = {**params, name: params[name] + steps * size * direction}
        slope += factor * gradients(referee, LONG, moved, **fields)[0]
    expected = np.sum(grads[name] * direction)
    tolerance = 1e-11 if WIDE else 1e-8
    assert float(slope / (12 * size)) == pytest.approx(float(expected), rel=tolerance)


@pytest.mark.skipif(not WIDE, reason="long double is no wider than double here")
@pytest.mark.parametrize("case", CASES)
def test_every_stage_is_exact_to_a_few_roundings(referee, dtype, case):
    """Against the same computation in extended precision, from the same numbers."""
    fields, params = CASES[case], weights_as(dtype)
    slots, state, *_ = window(dtype, **fields)
    wide = [{n: a.astype(LONG) for n, a in given.items()} for given in (params, slots, state)]
    _, _, points = gradients(referee, dtype, params, **fields)
    rest = window(LONG, **fields)[2:]
    *_, expected = referee("watched", "train.train_step", *wide, *rest, watch=True)
    assert list(points) == list(expected)
    for name, value in points.items():
        assert value.dtype == dtype, name
        exact = expected[name]
        assert exact.dtype == LONG, name
        assert_close(value, exact.astype(dtype), name)


def test_rows_of_a_token_that_occurs_twice_are_added_up():
    table, x = np.zeros((4, 2), np.float32), np.array([[1, 3, 1]], np.int32)
    dy = np.array([[[1, 10], [2, 20], [4, 40]]], np.float32)
    found = basic.embed_backward(table, x, dy)
    assert np.array_equal(found, np.array([[0, 0], [5, 50], [0, 0], [2, 20]], np.float32))


def test_the_sigmoid_is_right_at_both_ends_and_warns_of_nothing(dtype):
    x = np.array([-1e4, -80, -20, -1, -0.0, 0, 1, 20, 80, 1e4, -np.inf, np.inf, np.nan], dtype)
    found = basic.sigmoid(x)
    assert found.dtype == dtype
    assert np.array_equal(found[[0, 4, 5, 9, 10, 11]], np.array([0, 0.5, 0.5, 1, 0, 1], dtype))
    assert np.isnan(found[-1])
    finite = slice(1, 9)
    exact = 1 / (1 + np.exp(-x[finite].astype(LONG)))
    assert np.allclose(found[finite], exact.astype(dtype), rtol=4 * np.finfo(dtype).eps, atol=0)


def test_a_run_that_explodes_ends_in_nan_without_a_warning(referee, tmp_path, dtype):
    lr = {"float32": 3e38, "float64": 1e308}[dtype]
    losses = referee("train", a_run(tmp_path, "side", steps=6, lr=lr, clip="none", dtype=dtype))
    assert np.isfinite(losses[0])
    assert np.isnan(losses[-1])
    assert len(open_trace(tmp_path / "side.trace").steps) == 6


def test_a_gpu_is_refused_with_the_remedy(referee, tmp_path):
    with pytest.raises(HarnessError, match=r"^device gpu: NumPy has none; use --device cpu$"):
        referee("train", a_run(tmp_path, "side", device="gpu"))


def test_a_numpy_that_promotes_scalars_is_refused(referee, tmp_path, monkeypatch):
    monkeypatch.setattr(np, "__version__", "1.26.4")
    with pytest.raises(HarnessError, match="needs NumPy 2"):
        referee("train", a_run(tmp_path, "side"))
