"""The sketch of a tensor: what it promises of distances."""

import numpy as np
import pytest

from harness import kernels
from harness.trace.sketch import (
    GREATEST_ERROR,
    LIKELY_ERROR,
    ROUNDING,
    SIZE,
    distance,
    seed,
)
from harness.trace.statistics import describe, sketch

SHAPE = (48, 128)  # a width that is a multiple of 64: a column lies at one place of every chunk


def one_element(draw):
    made = np.zeros(SHAPE)
    made[draw.integers(48), draw.integers(128)] = draw.normal()
    return made


def one_row(draw):
    made = np.zeros(SHAPE)
    made[draw.integers(48)] = draw.normal(size=128)
    return made


def one_column(draw):
    made = np.zeros(SHAPE)
    made[:, draw.integers(128)] = draw.normal(size=48)
    return made


def one_constant_column(draw):
    made = np.zeros(SHAPE)
    made[:, draw.integers(128)] = 1
    return made


def one_block(draw):
    made = np.zeros(SHAPE)
    row, column = draw.integers(30), draw.integers(100)
    made[row : row + 15, column : column + 20] = 1
    return made


def smooth_ramp(draw):
    return np.linspace(draw.normal(), draw.normal(), 48 * 128).reshape(SHAPE)


def alternating(draw):
    return np.where(np.indices(SHAPE).sum(axis=0) % 2, 1.0, -1.0)


DIFFERENCES = {
    "random": lambda draw: draw.normal(size=SHAPE),
    "one element": one_element,
    "one row": one_row,
    "one column": one_column,
    "one constant column": one_constant_column,
    "one block": one_block,
    "constant": lambda draw: np.ones(SHAPE),
    "ramp": smooth_ramp,
    "alternating": alternating,
}


@pytest.fixture(params=[False, True], ids=["numpy", "compiled"])
def either(request):
    kernels.choose(request.param)
    yield
    kernels.choose(None)


def restated(name, array):
    """The sketch as its description says, element by element, in Python's integers."""
    state, most = int(seed(name, array.shape)), 2**64
    sums = [0.0] * 64

    def number(n):
        x = (state + n * 0x9E3779B97F4A7C15) % most
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % most
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB % most
        return x ^ (x >> 31)

    for i, value in enumerate(array.ravel().tolist()):
        k, j = divmod(i, 64)
        sign = -1 if number(2 * k) >> j & 1 else 1
        if np.isfinite(value):
            sums[(j + number(2 * k + 1)) % 64] += sign * value
    return sums


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int32", "bool"])
def test_the_sketch_is_as_described(either, dtype):
    array = (np.random.default_rng(1).normal(size=(7, 31)) * 9).astype(dtype)
    if array.dtype.kind == "f":
        array[2, 3:6] = np.nan, np.inf, -np.inf
    np.testing.assert_allclose(sketch("w", array), restated("w", array), rtol=0, atol=1e-12)


def test_it_depends_on_name_and_shape():
    array = np.random.default_rng(2).normal(size=(4, 96))
    sketches = [
        sketch("v", array), sketch("w", array), sketch("w", array.reshape(96, 4)),
    ]  # fmt: skip
    for i in range(3):
        assert not np.allclose(sketches[i], sketches[i - 1])


@pytest.mark.parametrize("size", [0, 1, 2, 63, 64])
def test_up_to_64_elements_are_kept_without_loss(either, size):
    array = np.random.default_rng(size).normal(size=size).astype("float32")
    other = array + np.float32(1e-6)
    found = np.sort(np.abs(sketch("w", array)))[SIZE - size :]
    np.testing.assert_array_equal(found, np.sort(np.abs(array)).astype(float))
    exact = np.linalg.norm(other.astype(float) - array)
    estimate = distance(sketch("w", other), sketch("w", array))
    assert estimate == pytest.approx(exact, rel=1e-12)


def test_it_is_linear(either):
    draw = np.random.default_rng(3)
    a, b = draw.normal(size=(2, 40, 77))
    apart = sketch("w", a) - sketch("w", b)
    np.testing.assert_allclose(apart, sketch("w", a - b), rtol=0, atol=1e-13 * 80)


@pytest.mark.parametrize("kind", DIFFERENCES)
def test_the_estimate_is_as_good_as_stated(kind):
    # 2,000 tensors each (names of their own, so signs of their own); of the square, the mean has
    # a standard deviation of 0.177 / sqrt(2000) = 0.004.
    kernels.choose(True)
    draw = np.random.default_rng(4)
    ratios = []
    for number in range(2000):
        apart = DIFFERENCES[kind](draw).astype("float32")
        norm = np.linalg.norm(apart.astype(float))
        ratios.append(np.linalg.norm(sketch(str(number), apart)) / norm)
    kernels.choose(None)
    ratios = np.array(ratios)
    assert np.mean(ratios**2) == pytest.approx(1, abs=0.016)  # no bias
    assert np.std(ratios**2) <= 1.1 * (2 / SIZE) ** 0.5
    wrong = np.abs(ratios - 1)
    assert np.mean(wrong > LIKELY_ERROR) <= 0.03 + 0.01  # three standard deviations of the count
    assert np.mean(wrong > GREATEST_ERROR) <= 0.001 + 0.002


@pytest.mark.parametrize("size", [1000, 100_000, 2_000_000])
def test_sums_round_less_than_stated(size):
    draw = np.random.default_rng(size)
    kernels.choose(True)
    a = draw.normal(size=size)
    b = a * (1 + 2.0**-52 * draw.integers(-1, 2, size))
    found = sketch("w", a) - sketch("w", b)
    true = sketch("w", a - b)  # exact differences, so small that their sums do not round
    kernels.choose(None)
    assert np.linalg.norm(found - true) <= ROUNDING * 2.0**-52 * np.linalg.norm(a)


def test_the_index_holds_the_sketch_at_level_stats_alone():
    array = np.random.default_rng(5).normal(size=(3, 50)).astype("float32")
    entry = describe("w", array, "stats")
    np.testing.assert_array_equal(np.frombuffer(entry.sketch, "<f8"), sketch("w", array))
    full, hashed = describe("w", array), describe("w", array, "hash")
    assert full.sketch is hashed.sketch is hashed.min is hashed.l2 is hashed.nan is None
    assert full.hash == hashed.hash == entry.hash
    assert (full.min, full.l2, full.zero) == (entry.min, entry.l2, entry.zero)
