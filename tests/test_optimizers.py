"""The optimizers: one rule in both twins, the rule of torch.optim, and numbers done by hand."""

import numpy as np
import pytest
from twins import assert_all_close, assert_close, rng, train_spec

from harness.models.table import SLOTS


@pytest.fixture(params=["pt", "tf"])
def twin(request):
    """A twin with optimizers of its own: those of NumPy's side are stages of its graph."""
    return request.getfixturevalue(request.param)


# Where each is stable: an Adam whose averages are a few steps old moves by lr in every element.
OPTIMIZERS = {
    "sgd": dict(lr=0.5),
    "momentum": dict(lr=0.3, momentum=0.8),
    "adam": dict(lr=0.02, beta1=0.85, beta2=0.97, epsilon=1e-4),
    "rmsprop": dict(lr=0.02, rho=0.9, epsilon=1e-4),
    "adagrad": dict(lr=0.2, epsilon=1e-4),
}
DECAYS = {
    "no decay": {},
    "decay in the gradient": dict(weight_decay=0.05),
    "decay beside the step": dict(weight_decay=0.05, decoupled=True),
}
STEPS = 5


def problem(dtype):
    """Parameters, and the gradients of some steps: some elements are 0 for a while, or always."""
    draw = rng(21)
    shapes = {"embedding": (5, 3), "softmax_b": (4,)}
    params = {name: draw.normal(size=shape).astype(dtype) for name, shape in shapes.items()}
    grads = [
        {name: draw.normal(size=shape).astype(dtype) for name, shape in shapes.items()}
        for _ in range(STEPS)
    ]
    for step, g in enumerate(grads):
        g["embedding"][0] = 0
        g["embedding"][1] *= step > 1
    return params, grads


def optimized(twin, dtype, optimizer, **decay):
    fields = {**OPTIMIZERS[optimizer], **decay}
    train = train_spec(dtype, optimizer=optimizer, **fields)
    return twin("optimize", *problem(dtype), train.lr, train), train


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_optimizers_agree_step_after_step(pt, tf, dtype, optimizer, decay):
    expected, _ = optimized(pt, dtype, optimizer, **DECAYS[decay])
    params, _ = problem(dtype)
    assert len(expected) == STEPS
    assert len(expected[0]) == len(params) * (1 + len(SLOTS[optimizer]))
    found, _ = optimized(tf, dtype, optimizer, **DECAYS[decay])
    for a, b in zip(found, expected, strict=True):
        assert_all_close(a, b)
    moved = expected[-1]["softmax_b"] - params["softmax_b"]
    assert np.abs(moved).min() > 1e-4
    still = np.array_equal(expected[-1]["embedding"][0], params["embedding"][0])
    assert still == (not DECAYS[decay]), "what has no gradient moves by its decay alone"


STOCK_DECAYS = [(optimizer, "no decay") for optimizer in OPTIMIZERS]
STOCK_DECAYS += [(optimizer, "decay in the gradient") for optimizer in OPTIMIZERS]
STOCK_DECAYS += [("adam", "decay beside the step")]  # torch.optim.AdamW; no other stock one has it


@pytest.mark.parametrize(("optimizer", "decay"), STOCK_DECAYS)
def test_the_optimizers_are_those_of_torch(pt, twin, dtype, optimizer, decay):
    found, train = optimized(twin, dtype, optimizer, **DECAYS[decay])
    params, grads = problem(dtype)
    stock = pt("stock_optimize", params, grads, train.lr, train)
    for a, b in zip(found, stock, strict=True):
        assert_all_close({name: a[name] for name in b}, b)


# One element, p = 1, with gradients 0.5 and then -1; worked out by hand from the papers' formulas.
BY_HAND = {
    "sgd": (dict(lr=0.1), [0.95, 1.05]),
    "momentum": (dict(lr=0.1, momentum=0.5), [0.95, 1.025]),
    # m = 0.25, v = 0.0625, both corrected: 0.5 / (sqrt(0.25) + 0.5); then m = -0.375, v = 0.296875,
    # corrected by 3/4 and 7/16: -0.5 / (sqrt(0.678571...) + 0.5).
    "adam": (
        dict(lr=1.0, beta1=0.5, beta2=0.75, epsilon=0.5),
        [0.5, 0.5 + 0.5 / ((0.296875 / 0.4375) ** 0.5 + 0.5)],
    ),
    # square = 0.0625, its root 0.25; then 0.75 * 0.0625 + 0.25 = 0.296875.
    "rmsprop": (
        dict(lr=1.0, rho=0.75, epsilon=0.25),
        [0.0, 1 / (0.296875**0.5 + 0.25)],
    ),
    # accumulator = 0.25, its root 0.5; then 1.25.
    "adagrad": (dict(lr=1.0, epsilon=0.5), [0.5, 0.5 + 1 / (1.25**0.5 + 0.5)]),
}


@pytest.mark.parametrize("optimizer", BY_HAND)
def test_two_steps_of_an_optimizer_are_those_worked_out_by_hand(twin, dtype, optimizer):
    fields, expected = BY_HAND[optimizer]
    train = train_spec(dtype, optimizer=optimizer, **fields)
    params = {"softmax_b": np.array([1.0], dtype)}
    grads = [{"softmax_b": np.array([g], dtype)} for g in (0.5, -1.0)]
    found = [step["softmax_b"] for step in twin("optimize", params, grads, train.lr, train)]
    assert_close(np.concatenate(found), np.array(expected, dtype))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_weight_decay_by_hand(twin, dtype, optimizer):
    params, grads = {"softmax_b": np.array([2.0], dtype)}, [{"softmax_b": np.zeros(1, dtype)}]
    fields = dict(optimizer=optimizer, weight_decay=0.5, epsilon=0.25, rho=0.75)
    beside = train_spec(dtype, decoupled=True, **fields)
    (found,) = twin("optimize", params, grads, 0.25, beside)
    assert_close(found["softmax_b"], np.array([2 - 0.25 * 0.5 * 2], dtype))
    assert not any(found[f"softmax_b/{slot}"].any() for slot in SLOTS[optimizer])
    # In the gradient, weight decay is one: 0.5 * 2 = 1, divided by its root and epsilon.
    inside = train_spec(dtype, **fields)
    (found,) = twin("optimize", params, grads, 0.25, inside)
    divisor = {"adam": 1.25, "rmsprop": 0.75, "adagrad": 1.25}.get(optimizer, 1)
    assert_close(found["softmax_b"], np.array([2 - 0.25 / divisor], dtype))
