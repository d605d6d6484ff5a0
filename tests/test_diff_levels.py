"""The diff of traces without all their elements, and of large tensors side by side."""

import sys

import numpy as np
import pytest
from test_diff import BIAS, GRAD, change, nudge, run, tensors, write

from harness import diff
from harness.kernels import PIECE
from harness.spec import Capture
from harness.trace import TraceError


def kept(path, steps, level):
    """The same steps as a trace of another level writes them."""
    return write(path, steps, capture=Capture(level=level))


@pytest.fixture
def levels(tmp_path):
    """Diff of two traces of given levels."""

    def compare(a, b, level_a, level_b, **options):
        left = kept(tmp_path / "left.trace", a, level_a)
        return diff(left, kept(tmp_path / "right.trace", b, level_b), **options)

    return compare


LARGER = "grads/embedding"  # more elements than a sketch has sums


def larger(apart, count=2):
    """Steps with a tensor of many elements, moved by `apart` (relative) in step 2."""
    steps = run(count)
    for step, found in steps.items():
        values = np.random.default_rng(step).normal(size=(50, 40)).astype("float32")
        moved = np.random.default_rng(9).normal(size=values.shape).astype("float32")
        found[LARGER] = values + (step == 2) * np.float32(apart) * moved * values
    return steps


@pytest.mark.parametrize("sides", [("stats", "stats"), ("full", "stats"), ("stats", "full")])
def test_without_elements_the_distance_is_estimated(levels, sides):
    a, b = larger(1e-3), larger(0)
    found = levels(a, b, *sides)
    assert (found.status, found.steps_compared) == ("diverged", 2)
    first = found.first_divergence
    assert (first.step, first.tensor, first.estimated) == (2, LARGER, True)
    x, y = (side[2][LARGER].astype(float) for side in (a, b))
    exact = np.linalg.norm(x - y) / np.linalg.norm(y)
    assert first.rel_l2 == pytest.approx(exact, rel=0.35)
    assert first.rel_l2_eps == pytest.approx(first.rel_l2 * 2**23, rel=1e-12)
    assert first.index is first.a is first.max_abs_diff is first.mismatch_ratio is None
    assert (first.mismatches, first.where) == (0, "")
    assert found.onset == first
    assert [row.estimated for row in found.steps] == [False, True]
    assert "estimated" in found.notes[0]


@pytest.mark.parametrize("sides", [("stats", "stats"), ("full", "stats"), ("stats", "full")])
def test_a_rounding_apart_is_close_without_elements_too(levels, sides):
    found = levels(larger(1e-7), larger(0), *sides)
    assert (found.status, found.onset.tensor, found.onset.index) == ("close", LARGER, None)
    assert found.onset.estimated
    assert 0 < found.tightest.used < 0.1


def test_few_elements_have_an_exact_distance_without_them(levels):
    a, b = change(run(), 2, GRAD, (3, 1), 9), run()
    first = levels(a, b, "stats", "stats").first_divergence
    x, y = (side[2][GRAD].astype(float) for side in (a, b))
    exact = np.linalg.norm(x - y) / np.linalg.norm(y)
    assert (first.tensor, first.rel_l2) == (GRAD, pytest.approx(exact, rel=1e-9))


def test_the_tolerance_given_applies_to_the_tensor_as_a_vector(levels):
    a, b = change(run(), 2, GRAD, (3, 1), tensors(2)[GRAD][3, 1] + np.float32(0.01)), run()
    norm = float(np.linalg.norm(b[2][GRAD].astype(float)))
    for rtol, atol, close in ((0, 0.0101, True), (0, 0.0099, False), (0.0101 / norm, 0, True)):
        found = levels(a, b, "stats", "stats", rtol=rtol, atol=atol)
        assert found.equivalent is close
    least = levels(a, b, "stats", "stats").first_divergence.least_factor
    eps, largest = 2.0**-23, float(np.abs(b[2][GRAD]).max())
    assert least >= 0.0099 / (eps * (norm + largest))


def test_an_extreme_too_far_off_is_not_close_in_whatever_norm(levels):
    # One element of many: the vector has room for it, an element has not.
    a, b = larger(0), larger(0)
    at = np.unravel_index(np.argmax(b[2][LARGER]), (50, 40))
    change(a, 2, LARGER, at, b[2][LARGER][at] * np.float32(1.1))
    found = levels(a, b, "stats", "stats", rtol=0.02, atol=0)
    assert found.first_divergence.tensor == LARGER
    assert found.first_divergence.rel_l2 < 0.02


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_and_infinities_must_be_as_many_without_elements(levels, value):
    a = change(larger(0), 2, LARGER, (3, 1), value)
    first = levels(a, larger(0), "stats", "stats", rtol=1e3, atol=1e3).first_divergence
    assert (first.tensor, first.nonfinite_mismatches, first.least_factor) == (LARGER, 1, None)
    both = change(larger(1e-7), 2, LARGER, (3, 1), value)
    assert levels(both, a, "stats", "stats").equivalent


def test_what_must_be_equal_is_not_close_without_elements(levels):
    a = change(run(), 2, "inputs/x", (1, 1), 10)
    assert levels(a, run(), "stats", "stats").first_divergence.tensor == "inputs/x"


@pytest.mark.parametrize("sides", [("hash", "hash"), ("hash", "full"), ("stats", "hash")])
def test_hashes_alone_know_only_equal_and_not(levels, sides):
    found = levels(larger(1e-7), larger(0), *sides)
    first = found.first_divergence
    assert (found.status, first.tensor, first.estimated) == ("diverged", LARGER, True)
    assert first.rel_l2 is first.least_factor is first.a is None
    assert any("hash alone" in note for note in found.notes)
    assert levels(larger(0), larger(0), *sides).status == "identical"


def test_elements_kept_in_a_trace_of_hashes_are_compared_under_their_own_scale(tmp_path):
    keeps = Capture(level="hash", checkpoint_every=2)
    a = write(tmp_path / "a.trace", nudge(run(2), 2, BIAS, 3), capture=keeps)
    found = diff(a, write(tmp_path / "b.trace", run(2), capture=keeps))
    assert (found.status, found.onset.tensor, found.onset.estimated) == ("close", BIAS, False)
    assert found.onset.max_ulp_diff == 1


WIDE = (3, PIECE)  # a tensor that is compared beside others


def wide_run(count, parts):
    """Steps with large tensors, of which those at `parts` differ."""
    steps = {}
    for step in range(1, count + 1):
        draw = np.random.default_rng(step)
        steps[step] = {f"grads/w{n}": draw.normal(size=WIDE).astype("float32") for n in range(4)}
        steps[step]["grads/b"] = draw.normal(size=5).astype("float32")
    for step, name, value in parts:
        change(steps, step, name, (0,) * steps[step][name].ndim, value)
    return steps


def test_large_tensors_are_compared_several_at_a_time_to_the_same_result(tmp_path, monkeypatch):
    places = [(1, "grads/w1", 5), (1, "grads/b", 7), (2, "grads/w0", 6), (3, "grads/w3", 8)]
    a = write(tmp_path / "a.trace", wide_run(3, places))
    b = write(tmp_path / "b.trace", wide_run(3, []))
    for all_of_them in (False, True):
        told = []
        found = diff(a, b, all=all_of_them, progress=lambda *done, told=told: told.append(done))
        monkeypatch.setattr(sys.modules["harness.compare.diff"], "PIECE", 1 << 40)  # one by one
        assert diff(a, b, all=all_of_them) == found
        monkeypatch.undo()
        seen = [(d.step, d.tensor, d.a) for d in found.divergences]
        assert seen == (places if all_of_them else [])
        assert (found.first_divergence.tensor, found.first_divergence.a) == ("grads/w1", 5)
        assert told == [(1, 3), (2, 3), (3, 3)][: 3 if all_of_them else 1]


@pytest.mark.parametrize("all_of_them", [False, True])
def test_damage_after_the_divergence_is_met_only_when_all_is_compared(tmp_path, all_of_them):
    a = write(tmp_path / "a.trace", wide_run(2, [(1, "grads/w0", 5), (2, "grads/w2", 6)]))
    b = write(tmp_path / "b.trace", wide_run(2, []))
    path = a / "step-00000002.safetensors"
    data = bytearray(path.read_bytes())
    data[8 + int.from_bytes(data[:8], "little") + 2 * 4 * 3 * PIECE + 99] ^= 1  # in grads/w2
    path.write_bytes(data)
    if all_of_them:
        with pytest.raises(TraceError, match="grads/w2 does not match its hash"):
            diff(a, b, all=True)
    else:
        assert diff(a, b).first_divergence.tensor == "grads/w0"
