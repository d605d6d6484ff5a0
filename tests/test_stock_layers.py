"""Each twin against the stock layers of its own framework, through the converter of weights."""

import numpy as np
import pytest
from twins import (
    MODEL,
    assert_close,
    random_state,
    random_tokens,
    random_weights,
    train_spec,
)

from harness.data.layouts import to_layout
from harness.models.layouts import LAYOUTS

STOCK = {"pt": "torch", "tf": "keras"}


def both(side, dtype, zero):
    """What a twin and the stock layers make of one window, and the layout of the latter."""
    weights, state, (x, y) = random_weights(dtype), random_state(dtype, zero=zero), random_tokens()
    given = [weights, state, x, y, {}, MODEL, train_spec(dtype)]
    own = side("watched", "train.gradients", *given)
    layout = LAYOUTS[STOCK[side.twin]]
    stock = side("stock_step", to_layout(weights, layout), x, y, state, MODEL, dtype)
    return own, stock, layout


@pytest.mark.parametrize("zero", [True, False], ids=["from zero", "from a given state"])
def test_logits_loss_and_states_are_those_of_the_stock_layers(side, dtype, zero):
    (loss, state, _, points), (logits, stock_loss, _, stock_state), _ = both(side, dtype, zero)
    assert_close(points["forward/logits"], logits, "logits")
    assert_close(loss, np.asarray(stock_loss, dtype), "loss")
    for name, value in state.items():
        assert_close(value, stock_state[name], name)


@pytest.mark.parametrize("zero", [True, False], ids=["from zero", "from a given state"])
def test_every_gradient_is_that_of_the_stock_layers(side, dtype, zero):
    (_, _, grads, _), (_, _, stock_grads, _), layout = both(side, dtype, zero)
    if layout.b_h is None:
        # One bias stands for the sum of two: each of the two has the gradient of the one.
        for k in range(MODEL.num_layers):
            assert_close(grads[f"layer{k}/b_i"], grads[f"layer{k}/b_h"], "the two biases")
            grads[f"layer{k}/b_h"] = np.zeros_like(grads[f"layer{k}/b_h"])
    expected = to_layout(grads, layout)
    assert expected.keys() == stock_grads.keys()
    for name, value in expected.items():
        assert_close(value, stock_grads[name], name)


def test_the_stock_model_in_a_wrong_gate_order_does_not_agree(side):
    weights, state, (x, y) = random_weights("float64"), random_state("float64"), random_tokens()
    wrong = LAYOUTS[STOCK[side.twin]]._replace(gates="igfo")
    given = [weights, state, x, y, {}, MODEL, train_spec("float64")]
    points = side("watched", "train.gradients", *given)[-1]
    stock = side("stock_step", to_layout(weights, wrong), x, y, state, MODEL, "float64")
    with pytest.raises(AssertionError):
        assert_close(points["forward/logits"], stock[0], "logits")
