"""Every op of the table, from the table: formula, derivative, precision, rounding, and its kin."""

from importlib.util import find_spec

import numpy as np
import pytest
from op_examples import EXAMPLES
from stock_ops import fits

from harness.models.derive import adjoints
from harness.models.evaluate import Values
from harness.models.graph import const, name_of, node, ref
from harness.models.ops import OPS, find

# What edits put into an expression is part of no model.
NAMES = sorted(name for name, op in OPS.items() if not op.formula.__module__.endswith(".changes"))
CASES = [(name, k) for name in NAMES for k in range(len(EXAMPLES.get(name, ())))]
FLOAT32 = float(np.finfo(np.float32).eps)
# Keras makes the constants of these (root of 2, of d) in float32, whatever the tensors are.
NARROW = {("tf", name) for name in ("gelu", "gelu_tanh", "attention")}
PACKAGES = {"pt": "torch", "tf": "tensorflow"}


def example(name, k):
    return EXAMPLES[name][k]


def is_float(x):
    return isinstance(x, np.ndarray) and x.dtype.kind == "f"


def made(name, operands, args):
    return find(name).formula(*operands, **args)


def test_every_op_has_an_example_and_every_example_an_op():
    missing = [name for name in NAMES if name not in EXAMPLES]
    assert not missing, "write an example into tests/op_examples.py"
    assert set(EXAMPLES) <= set(OPS)


def expression(name, case):
    """The op over references x0, x1, .. (numbers as constants), and the gradients of each."""
    leaves = [
        ref(f"x{i}") if isinstance(x, np.ndarray) else const(x) for i, x in enumerate(case.operands)
    ]
    root = node(name, *leaves, **case.args)
    found = {name_of(leaf): gradient for leaf, gradient in adjoints(root, ref("dy"))}
    return root, found


def by_differences(name, case, place, dy, h=1e-5):
    """The gradient of sum(dy op(x)) by one operand, from central differences."""
    x = case.operands[place]
    gradient = np.zeros_like(x)
    for at in np.ndindex(*x.shape):
        ends = []
        for side in (h, -h):
            moved = x.copy()
            moved[at] += side
            operands = [moved if i == place else other for i, other in enumerate(case.operands)]
            ends.append(float(np.sum(dy * made(name, operands, case.args))))
        gradient[at] = (ends[0] - ends[1]) / (2 * h)
    return gradient


def check_derivative(name, k):
    case = example(name, k)
    dy = np.asarray(np.random.default_rng(k).normal(size=made(name, *case[:2]).shape))
    held = {f"x{i}": x for i, x in enumerate(case.operands) if isinstance(x, np.ndarray)}
    values = Values(lambda back, of: {**held, "dy": dy}.get(of), 1)
    _, gradients = expression(name, case)
    wanted = [i for i, x in enumerate(case.operands) if is_float(x) and i not in case.fixed]
    assert wanted or name == "stop_gradient"
    assert {f"x{i}" for i in wanted} == set(gradients)
    for i in wanted:
        found = values.value(gradients[f"x{i}"])
        expected = by_differences(name, case, i, dy)
        if name == "embed_padded":  # which is no derivative there, by definition
            expected[case.args["padding"]] = 0
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-7 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("name", "k"), [case for case in CASES if OPS[case[0]].derivative is not None]
)
def test_the_derivative_is_that_of_the_formula(name, k):
    check_derivative(name, k)


@pytest.mark.parametrize("name", ["tanh", "conv", "layer_norm", "attention"])
def test_a_wrong_derivative_is_found(name, monkeypatch):
    right = OPS[name]

    def wrong(n, dy):
        first, *rest = right.derivative(n, dy)
        return (node("scale", first, const(1.001)), *rest)

    monkeypatch.setitem(OPS, name, right._replace(derivative=wrong))
    with pytest.raises(AssertionError):
        check_derivative(name, 0)


def differs(x, y):
    """Whether two results are of different shapes, or apart by more than rounding."""
    x, y = np.asarray(x), np.asarray(y)
    if x.shape != y.shape:
        return True
    scale = max(float(np.abs(x).max()), float(np.abs(y).max()))
    return not float(np.abs(x - y).max()) <= 1e-6 * scale


@pytest.mark.parametrize("name", [name for name in NAMES if OPS[name].kin])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_each_of_the_kin_differs_from_the_op_on_an_example(name):
    does = [kin.does for kin in OPS[name].kin]
    assert len(does) == len(set(does))
    for kin in OPS[name].kin:
        seen = []
        for case in EXAMPLES[name]:
            try:
                found = kin.formula(*case.operands, **case.args)
            except ValueError:  # not to be had with these arguments
                continue
            seen.append(differs(found, made(name, *case[:2])))
        assert any(seen), kin.does


@pytest.mark.parametrize(("name", "k"), CASES)
def test_float32_in_gives_float32_out_to_the_rounding_that_the_op_says(name, k):
    case = example(name, k)
    narrow = [x.astype(np.float32) if is_float(x) else x for x in case.operands]
    found = made(name, narrow, case.args)
    assert found.dtype == np.float32
    wide = [x.astype(np.float64) if is_float(x) else x for x in narrow]
    expected = made(name, wide, case.args)
    assert expected.dtype == np.float64
    size, said = float(np.abs(expected).max()), said_size(name, wide)
    rounds_at = max(size, said or 0.0) if find(name).cancels else size
    assert float(np.abs(found - expected).max()) <= 8 * FLOAT32 * rounds_at
    if said is not None:
        assert size / 32 <= said <= size * 1000, "no size of what comes of these operands"


def said_size(name, operands):
    """What an op says of the size of its result, from the sizes of the operands."""
    sizes = [float(np.abs(x).max()) if np.asarray(x).dtype.kind == "f" else None for x in operands]
    size = find(name).size
    return size(*sizes) if size else None


def stock_cases(twin):
    return [case for case in CASES if fits(twin, case[0], example(*case).args)]


def check_stock(run, twin, name, k):
    if find_spec(PACKAGES[twin]) is None:
        pytest.skip(f"{PACKAGES[twin]} is not installed")
    case = example(name, k)
    expected = run("stock_op", name, case.operands, case.args)
    found = made(name, *case[:2])
    assert found.shape == expected.shape
    rtol = 1e-7 if (twin, name) in NARROW else 1e-12
    np.testing.assert_allclose(found, expected, rtol=0, atol=rtol * np.abs(expected).max())


@pytest.mark.parametrize(("name", "k"), stock_cases("pt"))
def test_the_formula_is_that_of_torch(pt, name, k):
    check_stock(pt, "pt", name, k)


@pytest.mark.parametrize(("name", "k"), stock_cases("tf"))
def test_the_formula_is_that_of_keras(tf, name, k):
    check_stock(tf, "tf", name, k)


def _f(name):
    return find(name).formula


# Numbers that float32 holds: Keras makes them float32 before they are float64.
LR, MU, BETA1, BETA2, RHO, EPS, DECAY, FIRST = (
    1 / 16,
    0.75,
    0.75,
    0.9375,
    0.875,
    2**-10,
    0.125,
    0.25,
)


def _sgd(p, s, g, t):
    return _f("descend")(p, g, LR)


def _along(velocity, step):
    def rule(p, s, g, t):
        s["v"] = _f(velocity)(s.get("v", 0 * p), g, MU, LR)
        return _f(step)(p, s["v"], g, LR, MU)

    return rule


def _adam(step, decay=0.0):
    def rule(p, s, g, t):
        s["m"] = _f("average")(s.get("m", 0 * p), g, BETA1)
        s["v"] = _f("average")(s.get("v", 0 * p), _f("square")(g), BETA2)
        new = _f(step)(p, s["m"], s["v"], LR, BETA1, BETA2, EPS, t)
        return _f("decay_weights")(new, p, LR, decay) if decay else new

    return rule


def _rms(step):
    def rule(p, s, g, t):
        s["v"] = _f("average")(s.get("v", 0 * p), _f("square")(g), RHO)
        return _f(step)(p, g, s["v"], LR, EPS)

    return rule


def _adagrad(step, first):
    def rule(p, s, g, t):
        s["v"] = _f("add")(s.get("v", first + 0 * p), _f("square")(g))
        return _f(step)(p, g, s["v"], LR, EPS)

    return rule


def _decayed(p, s, g, t):
    return _f("descend")(p, _f("decay_gradient")(g, p, DECAY), LR)


BETAS = dict(beta_1=BETA1, beta_2=BETA2, epsilon=EPS)
RULES = {
    ("pt", "sgd"): ("SGD", dict(lr=LR), _sgd),
    ("pt", "decay"): ("SGD", dict(lr=LR, weight_decay=DECAY), _decayed),
    ("pt", "momentum"): ("SGD", dict(lr=LR, momentum=MU), _along("velocity", "along_velocity")),
    ("pt", "nesterov"): (
        "SGD",
        dict(lr=LR, momentum=MU, nesterov=True),
        _along("velocity", "nesterov"),
    ),
    ("pt", "adam"): ("Adam", dict(lr=LR, betas=(BETA1, BETA2), eps=EPS), _adam("adam")),
    ("pt", "adamw"): (
        "AdamW",
        dict(lr=LR, betas=(BETA1, BETA2), eps=EPS, weight_decay=DECAY),
        _adam("adam", DECAY),
    ),
    ("pt", "rmsprop"): ("RMSprop", dict(lr=LR, alpha=RHO, eps=EPS), _rms("over_root")),
    ("pt", "adagrad"): ("Adagrad", dict(lr=LR, eps=EPS), _adagrad("over_root", 0.0)),
    ("tf", "sgd"): ("SGD", dict(learning_rate=LR), _sgd),
    ("tf", "momentum"): (
        "SGD",
        dict(learning_rate=LR, momentum=MU),
        _along("velocity_keras", "along_velocity_keras"),
    ),
    ("tf", "nesterov"): (
        "SGD",
        dict(learning_rate=LR, momentum=MU, nesterov=True),
        _along("velocity_keras", "nesterov_keras"),
    ),
    ("tf", "adam"): ("Adam", dict(learning_rate=LR, **BETAS), _adam("adam_keras")),
    ("tf", "adamw"): (
        "AdamW",
        dict(learning_rate=LR, weight_decay=DECAY, **BETAS),
        _adam("adam_keras", DECAY),
    ),
    ("tf", "rmsprop"): (
        "RMSprop",
        dict(learning_rate=LR, rho=RHO, epsilon=EPS),
        _rms("over_root_inside"),
    ),
    ("tf", "adagrad"): (
        "Adagrad",
        dict(learning_rate=LR, epsilon=EPS, initial_accumulator_value=FIRST),
        _adagrad("over_root_inside", FIRST),
    ),
}


@pytest.mark.parametrize(("twin", "name"), RULES)
def test_the_rules_of_updates_are_those_of_the_optimizers(twin, name, request):
    if find_spec(PACKAGES[twin]) is None:
        pytest.skip(f"{PACKAGES[twin]} is not installed")
    kind, args, rule = RULES[twin, name]
    draw = np.random.default_rng(8)
    p, gradients = draw.normal(size=(4, 3)), [draw.normal(size=(4, 3)) for _ in range(4)]
    expected = request.getfixturevalue(twin)("stock_rule", kind, args, p, gradients)
    slots = {}
    for t, g in enumerate(gradients, start=1):
        p = rule(p, slots, g, t)
        np.testing.assert_allclose(p, expected[t - 1], rtol=1e-12, atol=1e-13)
