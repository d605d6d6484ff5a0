"""Figures that say nothing are not shown, and no number stands for a distance that is none."""

import math

import numpy as np
import pytest
from test_metrics import EXACT
from test_report import GRAD, advised, result, row, shown, tensors, write

from harness import diff, kernels
from harness.compare.metrics import compare
from harness.compare.tolerance import Allowance
from harness.report import terminal

__all__ = ["result"]  # a fixture


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("allowed", [EXACT, Allowance(1.0, 1.0), Allowance(1e-5, 0.0, 64.0, 1.0)])
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("size", [1, 3, 5000])
def test_no_figure_passes_where_one_side_alone_is_not_finite(odd, allowed, compiled, size):
    kernels.choose(compiled)
    b = np.ones(size, "float32")
    for place in {0, size - 1}:
        a = b.copy()
        a[place] = odd
        for found in (compare(a, b, allowed), compare(b, a, allowed)):
            assert found.nonfinite_mismatches == 1
            assert not found.close
            assert found.max_abs_diff is found.max_rel_diff is found.max_ulp_diff is None
            assert found.rel_l2 is found.rel_l2_eps is found.max_abs_index is None
            assert found.used == math.inf
    kernels.choose(None)


def test_squares_that_leave_the_range_of_a_double_give_no_distance_instead_of_none_at_all():
    b = np.array([1e-200, 1.0])
    assert compare(b + np.array([1e-190, 0]), b, EXACT).rel_l2 is None  # it would be 0
    b = np.array([1e200, 1.0])
    assert compare(b + np.array([0, 1]), b, EXACT).rel_l2 is None
    assert compare(b, b, EXACT).rel_l2 is None
    assert compare(b[1:], b[1:], EXACT).rel_l2 == 0


@pytest.mark.parametrize(
    ("dtype", "eps"), [("float32", 2.0**-23), ("float64", 2.0**-52), ("float16", 2.0**-10)]
)
def test_the_first_bits_to_differ_have_the_distance_of_that_element_alone(result, dtype, eps):
    b = tensors(2, dtype)[GRAD]
    near = np.nextafter(b[0, 3], np.array(9, dtype))
    found = result((2, GRAD, (0, 3), near), (2, GRAD, (2, 2), 9e3), dtype=dtype)
    said = row(shown(terminal.show_diff, found), "first bits to differ")
    own = (float(near) - float(b[0, 3])) / float(near) / eps
    assert said.endswith(f", {own:.3g} eps apart")
    assert own <= 1


@pytest.mark.parametrize(
    ("value", "reference"), [(-0.0, 0.0), (1e-45, 0.0), (np.nan, 1.0), (1.0, np.inf), (3e38, -3e38)]
)
def test_no_distance_is_shown_where_it_says_nothing(tmp_path, value, reference):
    sides = [
        write(tmp_path / f"{name}.trace", {1: {"w": np.array([x], "float32")}})
        for name, x in (("a", value), ("b", reference))
    ]
    text = shown(terminal.show_diff, diff(*sides))
    said = row(text, "first bits to differ")
    if value == 3e38:
        assert said.endswith(", 1.68e+07 eps apart")  # |a - b| fits a double
    else:
        assert "eps" not in said
    assert "ULPs" not in text


def test_ulps_are_shown_where_they_count_roundings(tmp_path):
    for a, b, said in (
        (1.5, 1.0, ", 4,194,304 ULPs"),
        (2.5, 1.0, ""),
        (-1.0, 1.0, ""),
        (1.0, 0.0, ""),
        (1e-44, -1e-44, ""),
    ):
        sides = [
            write(tmp_path / f"{name}.trace", {1: {"w": np.array([x], "float32")}})
            for name, x in (("a", a), ("b", b))
        ]
        text = shown(terminal.show_diff, diff(*sides, rtol=0, atol=0))
        assert row(text, "greatest difference").partition(" relative")[2] == said


@pytest.mark.parametrize("dtype", ["int64", "uint64", "int8", "bool"])
def test_integers_have_exact_distances_and_neither_eps_nor_ulps(tmp_path, dtype):
    top = 1 if dtype == "bool" else np.iinfo(dtype).max
    sides = [
        write(tmp_path / f"{name}.trace", {1: {"n": np.array([5 * (dtype != "bool"), x], dtype)}})
        for name, x in (("a", top), ("b", top - 1))
    ]
    found = diff(*sides)
    assert (found.first_divergence.max_abs_diff, found.first_divergence.rel_l2 != 0) == (1, True)
    text = shown(terminal.show_diff, found)
    assert row(text, "greatest difference").startswith("1 absolute")
    kind = "booleans" if dtype == "bool" else "integers"
    assert row(text, "would pass with") == f"no tolerance: {kind} must be equal"
    assert "ULPs" not in text
    assert " eps" not in text.partition("compared")[0].replace("K eps", "")
    if dtype == "int8":
        text = shown(terminal.show_diff, diff(*sides, rtol=0, atol=0.5))
        assert advised(text)[-1] == {"rtol": 0, "atol": pytest.approx(1, rel=1e-2)}
