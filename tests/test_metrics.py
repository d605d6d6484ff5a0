"""The metrics against restatements of them in plain NumPy and Python numbers."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from harness.compare.metrics import compare, is_close, ulps
from harness.compare.tolerance import Allowance
from harness.trace.schema import INTEGERS
from harness.trace.statistics import BLOCK

FLOATS = ("float16", "float32", "float64")
INTS = INTEGERS
DTYPES = ("bool", *INTS, *FLOATS)
EXACT = Allowance(0.0, 0.0)
TOLERANCES = st.sampled_from([0.0, 1e-12, 1e-8, 1e-5, 1e-3, 0.3, 2.0, 1e6]) | st.floats(0, 4)
# Machines that share cores stall: a slow example says nothing about the code.
thorough = settings(deadline=None, max_examples=100)


def extremes(dtype):
    """The values of a dtype at which comparisons go wrong."""
    if dtype.kind == "b":
        return [False, True]
    if dtype.kind in "iu":
        info = np.iinfo(dtype)
        return [info.min, info.min + 1, 0, 1, info.max - 1, info.max]
    info = np.finfo(dtype)
    sizes = [0.0, info.smallest_subnormal, info.tiny, 1.0, 1.0 + info.eps, info.max, math.inf]
    return [math.nan, *(float(x) for x in sizes), *(-float(x) for x in sizes)]


def neighbours(array):
    """The next number of the same dtype, element by element."""
    if array.dtype.kind == "f":
        with np.errstate(all="ignore"):
            return np.nextafter(array, np.array(np.inf, array.dtype))
    return ~array if array.dtype.kind == "b" else array ^ array.dtype.type(1)


@st.composite
def pairs(draw, dtypes=DTYPES):
    """Two arrays, each element of which is the same, a neighbour, or anything else."""
    dtype = np.dtype(draw(st.sampled_from(dtypes)))
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5))
    elements = hnp.from_dtype(dtype) | st.sampled_from(extremes(dtype))
    b = draw(hnp.arrays(dtype, shape, elements=elements))
    other = draw(hnp.arrays(dtype, shape, elements=elements))
    kind = draw(hnp.arrays(np.uint8, shape, elements=st.integers(0, 4)))
    a = np.where(kind == 0, other, np.where(kind == 1, neighbours(b), b)).astype(dtype)
    return a, b


@st.composite
def tame_pairs(draw, dtype, steps_a_unit, most):
    """Multiples of 1/steps_a_unit up to most: sums and differences of them are exact."""
    numbers = st.integers(-most * steps_a_unit, most * steps_a_unit)
    size = draw(st.integers(1, 12))
    rows = draw(st.lists(st.tuples(numbers, numbers), min_size=size, max_size=size))
    a, b = (np.array(column) / steps_a_unit for column in zip(*rows, strict=True))
    return a.astype(dtype), b.astype(dtype)


def numpy_close(a, b, rtol, atol):
    with np.errstate(all="ignore"):
        return np.atleast_1d(np.isclose(a, b, rtol=rtol, atol=atol, equal_nan=True))


def bits(array):
    """The bytes of every element, C order, as one Python integer each."""
    data, n = array.tobytes(), array.dtype.itemsize
    return [int.from_bytes(data[i : i + n], "little") for i in range(0, len(data), n)]


def both_of(a, b):
    return list(zip(a.ravel().tolist(), b.ravel().tolist(), strict=True))


def finite_pairs(a, b):
    return [(float(x), float(y)) for x, y in both_of(a, b) if math.isfinite(x) and math.isfinite(y)]


def place_on_number_line(value, dtype):
    """How many numbers of `dtype` lie between 0 and `value`, counted by exponent and mantissa."""
    info = np.finfo(dtype)
    size, spacing = abs(Fraction(float(value))), Fraction(2) ** (int(info.minexp) - info.nmant)
    if size >= Fraction(2) ** int(info.minexp):
        exponent = math.frexp(float(size))[1] - 1
        binades = (exponent - int(info.minexp)) * 2**info.nmant
        count = binades + size / (spacing * Fraction(2) ** (exponent - int(info.minexp)))
    else:
        count = size / spacing
    assert count.denominator == 1
    return int(count) if value >= 0 else -int(count)


@thorough
@given(pairs(), TOLERANCES, TOLERANCES)
def test_every_element_is_close_exactly_where_numpy_says_so(pair, rtol, atol):
    a, b = pair
    with np.errstate(all="ignore"):
        found = np.atleast_1d(is_close(a, b, rtol, atol))
    np.testing.assert_array_equal(found, numpy_close(a, b, rtol, atol))


@thorough
@given(pairs(), TOLERANCES, TOLERANCES)
def test_the_verdict_count_and_place_are_those_of_numpy(pair, rtol, atol):
    a, b = pair
    found = compare(a, b, Allowance(rtol, atol))
    close = numpy_close(a, b, rtol, atol).reshape(a.shape)
    with np.errstate(all="ignore"):
        assert found.close == np.allclose(a, b, rtol=rtol, atol=atol, equal_nan=True)
    assert found.mismatches == np.count_nonzero(~close)
    assert found.size == a.size
    wrong = [index for index in np.ndindex(a.shape) if not close[index]]
    assert found.index == (wrong[0] if wrong else None)


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_difference_of_exactly_the_tolerance_is_close(dtype):
    a, b = np.array([1.25, -2.0, 0.0], dtype), np.array([1.0, -4.0, 0.5], dtype)
    for rtol, atol, close in (
        (0.25, 0.0, [True, False, False]),
        (0.5, 0.0, [True, True, False]),
        (0.0, 0.5, [True, False, True]),
        (0.25, 1.0, [True, True, True]),
    ):
        assert is_close(a, b, rtol, atol).tolist() == close
        assert compare(a, b, Allowance(rtol, atol)).mismatches == close.count(False)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_closeness_rounds_as_numpy_rounds_in_the_dtype_itself(dtype):
    # Ratios all around the tolerance: in a wider dtype some of these would fall the other way.
    random = np.random.default_rng(5)
    b, some_eps = random.uniform(0.5, 2, 20_000).astype(dtype), 8 * np.finfo(dtype).eps
    a = (b * random.uniform(1.3 - some_eps, 1.3 + some_eps, b.size) + 0.01).astype(dtype)
    expected = numpy_close(a, b, 0.3, 0.01)
    assert (expected != numpy_close(a.astype("float64"), b.astype("float64"), 0.3, 0.01)).any()
    np.testing.assert_array_equal(is_close(a, b, 0.3, 0.01), expected)


@thorough
@given(pairs())
def test_onset_is_the_first_element_whose_bits_differ(pair):
    a, b = pair
    unequal = [x != y for x, y in zip(bits(a), bits(b), strict=True)]
    first = list(np.ndindex(a.shape))[unequal.index(True)] if any(unequal) else None
    assert compare(a, b, EXACT).onset == first


@thorough
@given(pairs())
def test_maxima_are_taken_over_finite_pairs(pair):
    a, b = pair
    found = compare(a, b, EXACT)
    both = finite_pairs(a, b)
    if found.nonfinite_mismatches:
        assert found.max_abs_diff is found.max_rel_diff is found.max_abs_index is None
        return
    if a.dtype.kind != "f":
        both = [(int(x), int(y)) for x, y in both_of(a, b)]
    apart = [abs(x - y) for x, y in both]
    relative = [float(abs(x - y)) / abs(float(y)) for x, y in both if y != 0]
    # A maximum that no double can hold is None too.
    assert found.max_abs_diff == (max(apart) if apart and max(apart) < math.inf else None)
    assert found.max_rel_diff == (max(relative) if relative and max(relative) < math.inf else None)
    if apart:
        x, y = (side[found.max_abs_index].item() for side in (a, b))
        assert abs(x - y) == max(apart)
    else:
        assert found.max_abs_index is None


@thorough
@given(pairs(FLOATS))
def test_the_ulp_figure_counts_numbers_on_the_number_line(pair):
    a, b = pair
    places = [[place_on_number_line(v, a.dtype) for v in pair] for pair in finite_pairs(a, b)]
    expected = max((abs(x - y) for x, y in places), default=None)
    found = compare(a, b, EXACT)
    assert found.max_ulp_diff == (None if found.nonfinite_mismatches else expected)


@thorough
@given(pairs(("bool", *INTS)))
def test_the_distance_of_integers_is_their_exact_difference_and_they_have_no_ulps(pair):
    a, b = pair
    found = compare(a, b, EXACT)
    assert found.max_abs_diff == max((abs(int(x) - int(y)) for x, y in both_of(a, b)), default=None)
    assert isinstance(found.max_abs_diff, int | None)
    assert found.max_ulp_diff is found.rel_l2_eps is None
    if found.rel_l2 is not None:
        assert (found.rel_l2 > 0) == (found.max_abs_diff > 0)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("start", [0.0, -0.0, 1.0, -1.0, 6.1e-5, -6.1e-5, 300.0, "subnormal"])
def test_so_many_steps_of_nextafter_are_so_many_ulps(dtype, start):
    step = np.finfo(dtype).smallest_subnormal
    first = np.array([-3 * step if start == "subnormal" else start], dtype)
    last = first
    for count in range(9):
        assert ulps(last, first).tolist() == ulps(first, last).tolist() == [count]
        last = np.nextafter(last, np.array(np.inf, dtype))


@pytest.mark.parametrize("dtype", FLOATS)
def test_ulps_from_the_lowest_to_the_highest_float_do_not_overflow(dtype):
    highest = np.array([np.finfo(dtype).max], dtype)
    expected = 2 * place_on_number_line(highest[0], dtype)
    assert expected > {"float16": 60_000, "float32": 2**31, "float64": 2**63}[dtype]
    assert ulps(-highest, highest).tolist() == ulps(highest, -highest).tolist() == [expected]


@pytest.mark.parametrize("dtype", INTS)
def test_ulps_from_the_lowest_to_the_highest_integer_do_not_overflow(dtype):
    info = np.iinfo(dtype)
    low, high = np.array([info.min], dtype), np.array([info.max], dtype)
    assert ulps(low, high).tolist() == ulps(high, low).tolist() == [info.max - info.min]


@pytest.mark.parametrize("dtype", FLOATS)
@given(data=st.data())
@thorough
def test_relative_l2_is_the_ratio_of_the_norms(dtype, data):
    a, b = data.draw(tame_pairs(dtype, 16, 60))
    found = compare(a, b, EXACT)
    apart = math.sqrt(math.fsum((x - y) ** 2 for x, y in finite_pairs(a, b)))
    size = math.sqrt(math.fsum(y * y for _, y in finite_pairs(a, b)))
    if apart and not size:
        assert found.rel_l2 is None
        assert found.rel_l2_eps is None
    else:
        expected = apart / size if apart else 0.0
        assert found.rel_l2 == pytest.approx(expected, rel=1e-12, abs=0)
        eps = {"float16": 2.0**-10, "float32": 2.0**-23, "float64": 2.0**-52}[dtype]
        assert found.rel_l2_eps == pytest.approx(expected / eps, rel=1e-12, abs=0)


def test_relative_l2_leaves_out_pairs_that_are_not_finite_and_the_same():
    b = np.array([3.0, np.nan, 4.0, np.inf])
    a = np.array([3.0, np.nan, 3.0, np.inf])
    assert compare(a, b, EXACT).rel_l2 == pytest.approx(1 / 5, rel=1e-14)


def test_integers_have_no_distance_in_eps():
    a, b = np.array([3, 4], "int32"), np.array([3, 5], "int32")
    found = compare(a, b, EXACT)
    assert found.rel_l2 == pytest.approx(1 / math.sqrt(34))
    assert found.rel_l2_eps is None
    assert found.mismatches == 1


@thorough
@given(pairs(FLOATS))
def test_nan_and_infinite_elements_are_counted(pair):
    a, b = pair
    both = list(zip(a.ravel().tolist(), b.ravel().tolist(), strict=True))
    nans = sum(math.isnan(x) and math.isnan(y) for x, y in both)
    odd = sum(not (math.isfinite(x) and math.isfinite(y)) for x, y in both)
    same = sum(math.isinf(x) and x == y for x, y in both)
    found = compare(a, b, EXACT)
    assert (found.nan_equal, found.nonfinite_mismatches) == (nans, odd - nans - same)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("allowed", [Allowance(1.0, 1e4), Allowance(0.0, 0.0, 0.0)])
@pytest.mark.parametrize("side", [0, 1])
def test_nan_on_one_side_is_never_close(dtype, allowed, side):
    arrays = [np.ones((2, 3), dtype), np.ones((2, 3), dtype)]
    arrays[side][1, 2] = np.nan
    found = compare(*arrays, allowed)
    assert (found.close, found.mismatches, found.index) == (False, 1, (1, 2))
    assert (found.nan_equal, found.nonfinite_mismatches) == (0, 1)
    assert found.least_rtol is found.least_atol is found.least_factor is None


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("allowed", [EXACT, Allowance(0.0, 0.0, 0.0), Allowance(1e-5, 0.0, 64.0)])
def test_nan_at_the_same_element_of_both_sides_is_close_and_counted(dtype, allowed):
    a, b = np.ones((2, 3), dtype), np.ones((2, 3), dtype)
    a[0, 1] = b[0, 1] = np.nan
    found = compare(a, b, allowed)
    assert (found.close, found.nan_equal, found.index) == (True, 1, None)


@pytest.mark.parametrize("value", [np.inf, -np.inf])
def test_an_infinity_passes_only_against_itself(value):
    for other, close in ((value, True), (-value, False), (1.0, False), (np.nan, False)):
        a, b = np.array([1.0, other]), np.array([1.0, value])
        assert compare(a, b, Allowance(1.0, 1e300)).close is close
        assert compare(b, a, Allowance(1.0, 1e300)).close is close


def test_zeros_of_both_signs_are_close_and_no_ulp_apart():
    found = compare(np.array([0.0, 1.0]), np.array([-0.0, 1.0]), Allowance(0.0, 0.0, 0.0))
    assert (found.close, found.max_ulp_diff, found.onset) == (True, 0, (0,))


@pytest.mark.parametrize("dtype", ["int64", "uint64"])
def test_integers_that_doubles_cannot_tell_apart_must_be_equal_by_default(dtype):
    a, b = np.array([5, 2**53 + 1], dtype), np.array([5, 2**53], dtype)
    assert np.allclose(a, b, rtol=0, atol=0)  # what the default rule has to be stricter than
    found = compare(a, b, Allowance(0.0, 0.0, 0.0))
    assert (found.mismatches, found.index, found.max_abs_diff) == (1, (1,), 1)
    assert found.least_rtol is found.least_atol is found.least_factor is None
    assert compare(b, b.copy(), Allowance(0.0, 0.0, 0.0)).close


@pytest.mark.parametrize(("dtype", "hair"), [("float64", 1e-6), ("float32", 1e-5)])
@given(data=st.data())
@thorough
def test_the_least_rtol_is_where_closeness_begins(dtype, hair, data):
    # Tolerances round to the dtype too, so that only in float64 an atol leaves room for a hair.
    atol = data.draw(st.integers(0, 400)) / 64 if dtype == "float64" else 0.0
    a, b = data.draw(tame_pairs(dtype, 64, 500))
    least = compare(a, b, Allowance(0.0, atol)).least_rtol
    if least is None:
        assert np.any(np.abs(a - b)[b == 0] > atol)
        return
    assert compare(a, b, Allowance(least * (1 + hair), atol)).close
    assert least == 0 or not compare(a, b, Allowance(least * (1 - hair), atol)).close


@pytest.mark.parametrize(("dtype", "hair"), [("float64", 1e-6), ("float32", 1e-5)])
@given(data=st.data())
@thorough
def test_the_least_atol_is_where_closeness_begins(dtype, hair, data):
    rtol = data.draw(st.integers(0, 64)) / 64 if dtype == "float64" else 0.0
    a, b = data.draw(tame_pairs(dtype, 64, 500))
    least = compare(a, b, Allowance(rtol, 0.0)).least_atol
    assert least is not None
    assert compare(a, b, Allowance(rtol, least * (1 + hair))).close
    assert least == 0 or not compare(a, b, Allowance(rtol, least * (1 - hair))).close


def by_factor(factor, b):
    """The default rule with K = factor, written out."""
    eps, largest = float(np.finfo(b.dtype).eps), float(np.max(np.abs(b)))
    return Allowance(factor * eps, factor * eps * largest, factor, largest)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@given(data=st.data())
@thorough
def test_the_least_factor_is_where_closeness_begins(dtype, data):
    a, b = data.draw(tame_pairs(dtype, 64, 500))
    least = compare(a, b, by_factor(64.0, b)).least_factor
    if least is None:
        assert not b.any()
        assert a.any()
        return
    assert compare(a, b, by_factor(least * (1 + 1e-5), b)).close
    assert least == 0 or not compare(a, b, by_factor(least * (1 - 1e-5), b)).close


def test_no_factor_passes_where_the_reference_is_zero_throughout():
    a, b = np.array([0.0, 1.0], "float32"), np.zeros(2, "float32")
    found = compare(a, b, by_factor(64.0, b))
    assert not found.close
    assert (found.least_factor, found.least_rtol, found.least_atol) == (None, None, 1.0)


def test_numbers_too_far_apart_for_a_double_have_no_least_tolerance():
    a, b = np.array([1.7e308, 1.0]), np.array([-1.7e308, 1.0])
    found = compare(a, b, by_factor(64.0, b))
    assert not found.close
    assert found.least_factor is found.least_rtol is found.least_atol is None
    assert compare(a, b, Allowance(2.0, 0.0)).least_atol is None


def test_there_is_no_least_factor_without_the_default_rule():
    a, b = np.array([1.0, 2.0]), np.array([1.0, 2.5])
    assert compare(a, b, Allowance(1e-5, 1e-8)).least_factor is None
    assert compare(a, b, Allowance(0.0, 0.0, 0.0)).least_factor is None


@pytest.mark.parametrize("dtype", DTYPES)
def test_empty_arrays_are_close_and_have_no_figures(dtype):
    found = compare(np.empty((3, 0), dtype), np.empty((3, 0), dtype), EXACT)
    assert (found.close, found.size, found.mismatches) == (True, 0, 0)
    assert found.index is found.onset is found.max_abs_index is None
    assert found.max_abs_diff is found.max_rel_diff is found.max_ulp_diff is found.rel_l2 is None


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_scalar_has_the_empty_index(dtype):
    found = compare(np.array(1, dtype), np.array(0, dtype), EXACT)
    assert (found.close, found.index, found.onset, found.max_abs_index) == (False, (), (), ())
    assert found.max_abs_diff == 1


EDGES = [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 3 * BLOCK - 1, 3 * BLOCK, 3 * BLOCK + 56]
LONG = (3, 5, 13111)  # three blocks and 57 elements


@pytest.mark.parametrize("place", EDGES)
def test_a_difference_at_the_edge_of_a_block_is_found_where_it_is(place):
    a = np.random.default_rng(3).uniform(1, 2, LONG).astype("float32")
    b = a.copy()
    b.reshape(-1)[place] += 0.5
    found = compare(a, b, Allowance(1e-5, 1e-8))
    index = tuple(int(i) for i in np.unravel_index(place, LONG))
    assert (found.mismatches, found.index, found.onset) == (1, index, index)
    assert found.max_abs_index == index
    assert found.max_abs_diff == abs(float(a[index]) - float(b[index]))
    assert found.rel_l2 == pytest.approx(
        np.linalg.norm((a.astype("float64") - b).ravel())
        / np.linalg.norm(b.astype("float64").ravel()),
        rel=1e-10,
    )


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(0, math.prod(LONG) - 1), min_size=2, max_size=40, unique=True))
def test_figures_of_many_blocks_are_those_of_the_whole(places):
    random = np.random.default_rng(4)
    a = random.standard_normal(LONG)
    b = a.copy()
    flat_a, flat_b = a.reshape(-1), b.reshape(-1)
    flat_b[places] *= 1 + 10.0 ** random.integers(-14, 0, len(places))
    flat_a[places[0]] += 1
    flat_a[places[1]] = flat_b[places[1]] = np.nan
    found = compare(a, b, Allowance(1e-6, 1e-9))
    close = np.isclose(a, b, rtol=1e-6, atol=1e-9, equal_nan=True)
    finite = np.isfinite(a) & np.isfinite(b)
    apart = np.abs(a - b)[finite]
    assert found.mismatches == np.count_nonzero(~close)
    assert found.index == tuple(np.argwhere(~close)[0])
    changed = min(places[:1] + places[2:])
    assert found.onset == tuple(int(i) for i in np.unravel_index(changed, LONG))
    assert found.max_abs_diff == apart.max()
    assert found.max_rel_diff == (apart / np.abs(b[finite])).max()
    assert np.abs(a - b)[found.max_abs_index] == apart.max()
    assert (found.nan_equal, found.nonfinite_mismatches) == (1, 0)
    assert found.rel_l2 == pytest.approx(
        np.linalg.norm(apart) / np.linalg.norm(b[finite]), rel=1e-9
    )


@pytest.mark.parametrize("view", [lambda x: x.T, lambda x: x[::-1, ::2], lambda x: x[:, 1:, None]])
def test_arrays_that_are_not_contiguous_are_compared_in_their_own_order(view):
    whole = np.arange(28.0).reshape(4, 7)
    changed = whole.copy()
    changed[1, 2] += 1
    changed[2, 4] += 2
    a, b = view(changed), view(whole)
    found = compare(a, b, Allowance(1e-9, 1e-9))
    wrong = np.argwhere(~np.isclose(a, b, 1e-9, 1e-9))
    assert found.mismatches == len(wrong) == 2
    assert found.index == tuple(wrong[0])
    assert a[found.max_abs_index] - b[found.max_abs_index] == found.max_abs_diff == 2


def test_the_reference_is_what_relative_figures_refer_to():
    a, b = np.array([3.0, 8.0]), np.array([2.0, 8.0])
    assert compare(a, b, EXACT).max_rel_diff == 0.5
    assert compare(a, b, Allowance(0.4, 0.0)).close is False
    assert compare(b, a, EXACT).max_rel_diff == pytest.approx(1 / 3)
    assert compare(b, a, Allowance(0.4, 0.0)).close is True


def test_other_shapes_and_dtypes_are_refused():
    with pytest.raises(ValueError, match=r"float64 \(3,\)"):
        compare(np.zeros((3, 1)), np.zeros(3), EXACT)
    with pytest.raises(ValueError, match="float32"):
        compare(np.zeros(3, "float32"), np.zeros(3, "int32"), EXACT)


@pytest.mark.parametrize("size", [1, 5, 3 * BLOCK + 7])
def test_the_greatest_share_of_its_allowance_that_an_element_uses_is_told(size):
    draw = np.random.default_rng(size)
    b = draw.normal(size=size)
    a = b + 1e-6 * draw.normal(size=size)
    shares = np.abs(a - b) / (1e-6 + 1e-5 * np.abs(b))
    found = compare(a, b, Allowance(1e-5, 1e-6))
    assert found.used == pytest.approx(shares.max(), rel=1e-12)
    assert (found.used > 1) == (found.mismatches > 0)


def test_the_share_is_infinite_where_nothing_is_allowed_and_nothing_where_nothing_differs():
    a, b = np.array([1.0, 0.0]), np.array([2.0, 0.0])
    assert compare(a, b, EXACT).used == np.inf
    assert compare(a, a, EXACT).used == 0
    nan = np.array([np.nan])
    found = compare(nan, nan, EXACT)
    assert (found.mismatches, found.rel_l2_eps, found.used) == (0, None, None)
