"""The default tolerance and the one that is given."""

import math

import numpy as np
import pytest
from twins import GRAPH

from harness import TraceWriter, diff
from harness.compare import DEFAULT_TABLE, Tolerance, compare
from harness.errors import HarnessError
from harness.trace.statistics import describe

EPS = {"float16": 2.0**-10, "float32": 2.0**-23, "float64": 2.0**-52}
K = {
    "inputs/x": 0,
    "inputs/mask/layer0": 0,
    "forward/loss": 16,
    "update/global_norm": 16,
    "forward/layer0/gates": 64,
    "backward/logits": 64,
    "grads/softmax_w": 64,
    "params/layer1/w_h": 64,
    "update/clipped/embedding": 64,
    "a name of nobody's": 64,
}


def sample(dtype):
    return np.random.default_rng(7).uniform(-3, 2, (3, 5)).astype(dtype)


def under_default(name, a, b):
    return compare(a, b, Tolerance().allowance(describe(name, b)))


@pytest.mark.parametrize("dtype", EPS)
@pytest.mark.parametrize("name", K)
def test_the_table_gives_each_tensor_its_factor_of_eps_in_every_precision(name, dtype):
    b = sample(dtype)
    largest = float(np.max(np.abs(b)))
    allowed = Tolerance().allowance(describe(name, b))
    assert allowed.factor == K[name]
    assert allowed.rtol == K[name] * EPS[dtype]
    assert allowed.atol == pytest.approx(K[name] * EPS[dtype] * largest, rel=1e-15)
    assert allowed.scale == largest


def test_the_table_that_a_result_carries_is_the_one_applied():
    rows = Tolerance().table
    assert len(rows) == len(DEFAULT_TABLE)
    for glob, factor in rows:
        entry = describe(glob.replace("*", "whatever"), sample("float32"))
        assert Tolerance().allowance(entry).factor == factor


@pytest.mark.parametrize("sign", [1, -1])
def test_the_scale_is_the_largest_size_of_either_sign(sign):
    b = sign * np.array([-7.0, 3.0, 5.0])
    assert Tolerance().allowance(describe("grads/w", b)).scale == 7.0


def test_the_scale_leaves_out_what_is_not_finite():
    b = np.array([1.0, np.nan, -4.0, np.inf], "float32")
    assert Tolerance().allowance(describe("grads/w", b)).scale == 4.0
    nothing = Tolerance().allowance(describe("grads/w", np.full(3, np.nan)))
    assert (nothing.scale, nothing.atol, nothing.rtol) == (0.0, 0.0, 64 * EPS["float64"])


@pytest.mark.parametrize("dtype", EPS)
@pytest.mark.parametrize("name", [name for name, k in K.items() if k])
def test_one_eps_off_passes(name, dtype):
    b = sample(dtype)
    a = np.nextafter(b, np.array(np.inf, dtype))
    assert (a != b).all()
    assert under_default(name, a, b).close


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", K)
def test_one_element_off_by_a_thousandth_is_caught(name, dtype):
    b = sample(dtype)
    a = b.copy()
    a[2, 1] *= 1.001
    found = under_default(name, a, b)
    assert (found.close, found.mismatches, found.index) == (False, 1, (2, 1))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_small_element_may_be_off_by_roundings_of_the_largest(dtype):
    # What is left of a sum after cancellation is wrong by the rounding of its terms.
    b = np.array([100.0, 0.0], dtype)
    a = b + np.array([0, 60 * EPS[dtype] * 100], dtype)
    assert under_default("grads/w", a, b).close
    a = b + np.array([0, 70 * EPS[dtype] * 100], dtype)
    assert not under_default("grads/w", a, b).close


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("name", "most"), [("forward/loss", 2 * 16), ("grads/b", 2 * 64)])
def test_a_scalar_may_be_off_by_twice_its_factor_in_eps(name, most, dtype):
    # Once for itself and once as the largest element.
    b = np.array(1.0, dtype)
    for eps_off, close in ((most - 1, True), (most + 1, False)):
        a = np.array(1.0 + eps_off * EPS[dtype], dtype)
        assert under_default(name, a, b).close is close


@pytest.mark.parametrize("dtype", EPS)
def test_inputs_must_be_equal(dtype):
    b = sample(dtype)
    a = b.copy()
    assert under_default("inputs/x", a, b).close
    a[0, 3] = np.nextafter(a[0, 3], np.array(np.inf, dtype))
    assert under_default("inputs/x", a, b).mismatches == 1


@pytest.mark.parametrize("name", ["inputs/x", "params/counts"])
@pytest.mark.parametrize("dtype", ["bool", "uint8", "int32", "int64", "uint64"])
def test_integers_and_booleans_must_be_equal_whatever_their_name(name, dtype):
    b = np.array([0, 1, 1], dtype) if dtype == "bool" else np.array([0, 1, 2**7], dtype)
    assert under_default(name, b.copy(), b).close
    assert under_default(name, b[::-1], b).index == (0,)


def test_large_integers_next_to_one_another_are_told_apart():
    b = np.array([2**62, 2**62], "int64")
    a = b + np.array([0, 1])
    assert under_default("inputs/x", a, b).index == (1,)


def test_the_reference_alone_sets_the_scale():
    small, large = np.array([1.0, 0.0], "float32"), np.array([1.0, 1e9], "float32")
    assert not under_default("grads/w", large, small).close
    assert Tolerance().allowance(describe("grads/w", small)).scale == 1.0


@pytest.mark.parametrize(
    ("rtol", "atol", "expected"),
    [(0.25, None, (0.25, 1e-8)), (None, 0.5, (1e-5, 0.5)), (0.25, 0.5, (0.25, 0.5))],
)
def test_numpys_defaults_fill_in_for_the_one_not_given(rtol, atol, expected):
    given = Tolerance.given(rtol, atol)
    assert given.rule == "numpy"
    assert (given.rtol, given.atol) == expected
    assert given.table is None
    for name in ("inputs/x", "forward/loss", "grads/w"):
        allowed = given.allowance(describe(name, sample("float32")))
        assert (allowed.rtol, allowed.atol, allowed.factor) == (*expected, None)


def test_the_numbers_that_fill_in_are_those_of_numpy():
    b = np.array([0.0, 1.0, 1000.0])
    for off in (0.9, 1.1):
        for apart in (np.array([off * 1e-8, 0, 0]), np.array([0, 0, off * 1e-5 * 1000])):
            for given in (Tolerance.given(1e-5, None), Tolerance.given(None, 1e-8)):
                found = compare(b + apart, b, given.allowance(describe("w", b)))
                assert found.close is bool(np.allclose(b + apart, b)) is (off < 1)


def test_zero_is_a_tolerance():
    assert (Tolerance.given(0.0, 0.0).rtol, Tolerance.given(0.0, 0.0).atol) == (0.0, 0.0)
    allowed = Tolerance.given(0.0, 0.0).allowance(describe("grads/w", sample("float32")))
    assert (allowed.rtol, allowed.atol, allowed.factor) == (0.0, 0.0, None)


def test_neither_gives_the_default():
    assert Tolerance.given(None, None) == Tolerance()
    assert Tolerance.given(None, None).rule == "default"


@pytest.mark.parametrize("value", [-1e-30, -1.0, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["rtol", "atol"])
def test_a_tolerance_that_is_no_number_from_zero_up_is_refused(name, value):
    with pytest.raises(HarnessError, match=f"{name}={value}"):
        Tolerance.given(**{"rtol": 0.1, "atol": 0.1, name: value})


def test_a_diff_names_the_close_tensor_that_used_the_most_of_its_tolerance(tmp_path):
    eps = float(np.finfo(np.float32).eps)
    for label, roundings in (("a", 40), ("b", 0)):
        with TraceWriter(tmp_path / f"{label}.trace", label=label, dtype="float32") as trace:
            for step, share in ((1, 0.25), (2, 1), (3, 0.5)):
                moved = np.array([1, 1 + share * roundings * eps], np.float32)
                trace.write(step, {"forward/h": moved, "grads/w": [2.0, 1.0]})
    found = diff(tmp_path / "a.trace", tmp_path / "b.trace")
    assert found.status == "close"
    assert (found.tightest.step, found.tightest.tensor) == (2, "forward/h")
    # |a - b| = 40 eps, and K eps (|b| + max|b|) = 128 eps.
    assert found.tightest.used == pytest.approx(40 / 128, rel=1e-6)
    assert diff(tmp_path / "a.trace", tmp_path / "a.trace").tightest is None


def entries(**largest):
    """Index entries by name, each with one large element."""
    named = {name.replace("__", "/"): size for name, size in largest.items()}
    return {n: describe(n, np.array([size, size / 7], np.float64)) for n, size in named.items()}


def test_a_local_tolerance_scales_with_what_a_saturated_derivative_is_multiplied_with():
    step = entries(
        backward__layer0__gates=1e-9,
        backward__layer0__c=2.0,
        backward__layer0__h=3.0,
        forward__layer0__c=5.0,
    )
    local = Tolerance.local()
    assert local.allowance(step["backward/layer0/gates"], step, graph=GRAPH).scale == 10.0
    assert local.allowance(step["backward/layer0/c"], step, graph=GRAPH).scale == 3.0
    assert local.allowance(step["forward/layer0/c"], step, graph=GRAPH).scale == 5.0
    alone = {"backward/layer0/gates": step["backward/layer0/gates"]}
    assert local.allowance(alone["backward/layer0/gates"], alone, graph=GRAPH).scale == 1e-9
    assert local.allowance(step["backward/layer0/gates"], step).scale == 1e-9
    assert Tolerance().allowance(step["backward/layer0/gates"], step, graph=GRAPH).scale == 1e-9


def test_a_local_tolerance_never_asks_for_digits_that_some_programs_flush_to_zero():
    tiny = np.finfo(np.float32).tiny
    entry = describe("grads/w", np.array([3 * tiny, 0], np.float32))
    allowed = Tolerance.local().allowance(entry, {"grads/w": entry})
    assert allowed.atol == pytest.approx(32 * tiny)
    assert Tolerance().allowance(entry).atol < 1e-4 * tiny


def test_a_local_tolerance_is_tighter_than_that_of_free_runs():
    entry = describe("forward/logits", np.array([1.0, 2.0], np.float32))
    assert Tolerance.local().allowance(entry, {}).factor == 32
    assert Tolerance().allowance(entry).factor == 64
