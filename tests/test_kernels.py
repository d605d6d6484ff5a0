"""The compiled passes against the same in NumPy."""

import subprocess
import sys

import msgspec
import numpy as np
import pytest

from harness import TraceWriter, kernels
from harness.compare.metrics import compare
from harness.compare.tolerance import Allowance
from harness.kernels import PIECE
from harness.kernels.layout import RUN
from harness.trace.statistics import SMALL, describe, describe_all

DTYPES = ("float32", "float64")
SIZES = (1, 63, 64, 65, RUN - 1, RUN, RUN + 1, 3 * RUN + 7)
ALLOWED = (
    Allowance(0.0, 0.0),
    Allowance(0.0, 0.0, 0.0),
    Allowance(1e-5, 1e-8),
    Allowance(0.0, 1e-3),
    Allowance(1e-2, 0.0),
    Allowance(1e300, 1e10),  # infinite in float32
    Allowance(2.0, 1e4),
    Allowance(64e-7, 2e-5, 64.0, 3.0),
    Allowance(64e-7, 0.0, 64.0, 0.0),
)
COUNTS = ("hash", "min", "max", "nan", "inf", "zero")


def rounded(draw, b):
    eps = np.finfo(b.dtype).eps
    return b * (1 + eps * draw.integers(-3, 4, b.size)).astype(b.dtype)


def changed_a_little(draw, b):
    a = b.copy()
    a[draw.integers(0, b.size, 2)] += 1
    return a


def any_bits(draw, b):
    words = f"u{b.itemsize}"
    near = (b.view(words) + draw.integers(0, 3, b.size).astype(words)).view(b.dtype)
    return np.where(draw.random(b.size) < 0.5, b, near)


def some_not_finite(draw, b):
    odd = np.array([np.nan, np.inf, -np.inf], b.dtype)
    a = changed_a_little(draw, b)
    for side in (a, b):
        side[draw.integers(0, b.size, 3)] = draw.choice(odd)
    return a


def all_alike(draw, b):
    b[:] = 3
    return b + b.dtype.type(0.5)


KINDS = {
    "equal": lambda draw, b: b.copy(),
    "rounded": rounded,
    "far": lambda draw, b: b * draw.normal(size=b.size).astype(b.dtype),
    "sparse": changed_a_little,
    "any bits": any_bits,
    "not finite": some_not_finite,
    "all alike": all_alike,
}


def drawn(kind, dtype, size, seed):
    """A pair of arrays; the reference of some kinds is special too."""
    draw = np.random.default_rng([seed, size])
    b = draw.normal(size=size).astype(dtype)
    if kind == "sparse":
        b[draw.random(size) < 0.9] = 0
    if kind == "any bits":
        b = np.frombuffer(draw.bytes(b.nbytes), dtype).copy()
    return KINDS[kind](draw, b), b


@pytest.fixture
def both():
    """What a function gives with NumPy, and with the compiled passes."""

    def call(function, *args):
        kernels.choose(False)
        plain = function(*args)
        kernels.choose(True)
        return plain, function(*args)

    yield call
    kernels.choose(None)


def assert_same(plain, compiled):
    """Every figure to the last bit, but those that are made from sums."""
    for name, x in msgspec.structs.asdict(plain).items():
        y = getattr(compiled, name)
        if name in ("rel_l2", "rel_l2_eps") and x is not None:
            assert y == pytest.approx(x, rel=1e-12, abs=0), name
        else:
            assert y == x, name


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_both_find_the_same_figures_of_two_arrays(both, kind, dtype):
    for number, size in enumerate(SIZES):
        pair = drawn(kind, dtype, size, 1)
        for allowed in (ALLOWED[number], ALLOWED[-2]):
            assert_same(*both(compare, *pair, allowed))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("allowed", ALLOWED)
def test_both_find_the_same_figures_under_every_tolerance(both, dtype, allowed):
    for kind in ("rounded", "any bits", "sparse"):
        assert_same(*both(compare, *drawn(kind, dtype, 2 * RUN + 3, 2), allowed))


@pytest.mark.parametrize("dtype", DTYPES)
def test_quotients_that_grow_by_the_least_there_is_are_not_missed(both, dtype):
    # One pair a run, all as far apart, of references that shrink by one unit in the last place:
    # what a screen with too little margin passes over.
    size, eps = 9 * RUN, np.finfo(dtype).eps
    b = np.ones(size, dtype)
    b[::RUN] = 1.5 - np.arange(9) * eps
    a = b.copy()
    a[::RUN] += 0.25
    assert len(set((a - b)[::RUN].tolist())) == 1
    for allowed in ALLOWED:
        assert_same(*both(compare, a, b, allowed))


@pytest.mark.parametrize("dtype", DTYPES)
def test_quotients_of_subnormal_numbers_are_not_missed(both, dtype):
    least = np.finfo(dtype).smallest_subnormal
    draw = np.random.default_rng(3)
    b = (draw.integers(-9, 9, 4 * RUN) * least).astype(dtype)
    a = (b + draw.integers(-3, 4, b.size) * least).astype(dtype)
    for allowed in (*ALLOWED, Allowance(0.1, float(least)), Allowance(0.0, float(least))):
        assert_same(*both(compare, a, b, allowed))


def test_distances_that_overflow_are_no_number_in_both(both):
    b = np.random.default_rng(4).normal(size=3 * RUN)
    a = b.copy()
    a[RUN + 5], b[RUN + 5] = 1.7e308, -1.7e308
    a[RUN + 6] += 1e-3  # in the same run, and in another
    a[2 * RUN] += 1e-4
    for allowed in ALLOWED:
        assert_same(*both(compare, a, b, allowed))


@pytest.mark.parametrize("place", [0, PIECE - 1, PIECE, 2 * PIECE - 1, 3 * PIECE, 3 * PIECE + 6])
def test_a_difference_at_the_edge_of_a_piece_is_found_where_it_is(both, place):
    b = np.random.default_rng(5).normal(size=3 * PIECE + 7).astype("float32")
    a = b.copy()
    a[place] += 1
    for found in both(compare, a, b, ALLOWED[2]):
        assert (found.mismatches, found.index, found.onset) == (1, (place,), (place,))
        assert found.max_abs_index == (place,)


def test_threads_change_no_figure(both):
    a, b = drawn("rounded", "float32", 5 * PIECE + 3, 6)
    a[2 * PIECE + 1] = a[4 * PIECE + 1] = b[0] = np.nan
    a[PIECE], a[5 * PIECE] = b[PIECE] + 2, b[5 * PIECE] + 2  # the greatest difference, twice
    for allowed in (ALLOWED[0], ALLOWED[-2]):
        alone = compare(a, b, allowed, threads=1)
        for threads in (2, 3, 9):
            assert_same(alone, compare(a, b, allowed, threads=threads))
        assert_same(*both(compare, a, b, allowed))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_both_describe_an_array_alike(both, kind, dtype):
    for size in (*SIZES, PIECE + 65):
        array, _ = drawn(kind, dtype, size, 7)
        plain, compiled = both(describe, "w", array, "stats")
        for name in COUNTS:
            assert getattr(compiled, name) == getattr(plain, name), name
        if plain.l2 is None:  # "any bits": sums that no double holds
            continue
        assert compiled.l2 == pytest.approx(plain.l2, rel=1e-12)
        scale = max(abs(plain.min or 0), abs(plain.max or 0))
        assert (compiled.mean or 0) == pytest.approx(plain.mean or 0, abs=1e-12 * scale)
        x, y = (np.frombuffer(found.sketch) for found in (plain, compiled))
        assert np.linalg.norm(x - y) <= 1e-14 * plain.l2 + 1e-300


@pytest.mark.parametrize("level", ["hash", "full", "stats"])
def test_arrays_described_together_are_described_as_each_is_alone(level):
    draw = np.random.default_rng(8)
    shapes = [(), (1,), (0,), (3, 64), (2047,), (2049,), (SMALL,), (SMALL + 1,), (5, 7, 11)]
    given = [
        (f"w{k}/{dtype}", draw.normal(size=shape).astype(dtype))
        for dtype in (*DTYPES, "float16", "int32")
        for k, shape in enumerate(shapes)
    ]
    given[4][1][[3, 5]] = np.nan, -np.inf
    given[3][1][:] = 0
    given.append(("across", np.asarray(draw.normal(size=(40, 30)), order="F")))
    for compiled in (True, False):
        found = describe_all(given, level, compiled)
        assert [entry.name for entry in found] == [name for name, _ in given]
        for (name, array), entry in zip(given, found, strict=True):
            alone = describe(name, array, level, compiled)
            for field in ("dtype", "shape", "hash", "min", "max", "nan", "inf", "zero"):
                assert getattr(entry, field) == getattr(alone, field), name
            if level != "hash" and alone.l2:
                assert entry.l2 == pytest.approx(alone.l2, rel=1e-12)
                assert entry.mean == pytest.approx(alone.mean, abs=1e-12 * alone.l2)
            if level == "stats":
                x, y = (np.frombuffer(e.sketch) for e in (entry, alone))
                assert np.linalg.norm(x - y) <= 1e-14 * alone.l2


def test_zeros_of_both_signs_have_the_positive_one_as_extremes(both):
    for found in both(describe, "w", np.array([-0.0, 0.0, -0.0] * 30)):
        assert (str(found.min), str(found.max), found.zero) == ("0.0", "0.0", 90)


def run_python(code, *args):
    """The output of a fresh interpreter."""
    command = [sys.executable, "-c", code, *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_numba_is_not_imported_before_large_tensors_differ(tmp_path):
    for side in "ab":
        with TraceWriter(tmp_path / f"{side}.trace", label=side, dtype="float32") as trace:
            trace.write(1, {"w": np.ones(PIECE, "float32"), "x": np.float32(ord(side))})
    code = """if True:
        import sys
        from harness import diff
        from harness.cli.main import main
        traces, sys.argv[1:] = sys.argv[1:], ["--help"]
        try:
            main()
        except SystemExit:
            pass
        print(diff(*traces).status, "numba" in sys.modules)
    """
    out = run_python(code, tmp_path / "a.trace", tmp_path / "b.trace")
    assert out.splitlines()[-1] == "diverged False"


def test_without_numba_numpy_does_the_work():
    code = """if True:
        import sys
        sys.modules["numba"] = None
        import numpy as np
        from harness import kernels
        from harness.trace.statistics import SMALL, describe, describe_all
        kernels.choose(True)
        print(describe("w", np.arange(5.0)).l2, kernels.in_use(5))
    """
    assert run_python(code).split() == [str(30**0.5), "False"]
