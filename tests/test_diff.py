"""The diff of two traces, written with small tensors made up here."""

import json
import math

import msgspec
import numpy as np
import pytest
from safetensors.numpy import load_file
from twins import SPEC

from harness import TraceWriter, diff, open_trace
from harness.errors import HarnessError
from harness.trace import Step, TraceError

GATES, LOSS, GRAD = "forward/layer0/gates", "forward/loss", "grads/softmax_w"
NORM, BIAS = "update/global_norm", "params/softmax_b"
ORDER = ("inputs/x", GATES, LOSS, GRAD, NORM, BIAS)


def tensors(step):
    """One step as a twin would write it: every axis of another length."""
    random = np.random.default_rng(step)
    return {
        "inputs/x": random.integers(0, 9, (2, 3)).astype("int32"),
        GATES: random.uniform(-1, 1, (2, 3, 8)).astype("float32"),
        LOSS: np.float32(100 / step),
        GRAD: random.uniform(-1, 1, (4, 5)).astype("float32"),
        NORM: np.float32(3 * step),
        BIAS: random.uniform(-1, 1, (5,)).astype("float32"),
    }


def run(count=3):
    return {step: tensors(step) for step in range(1, count + 1)}


def write(path, steps, **options):
    options = {"label": path.stem, "dtype": "float32", "spec": SPEC, **options}
    with TraceWriter(path, **options) as trace:
        for step, found in steps.items():
            trace.write(step, found)
    return path


def change(steps, step, name, index, value):
    """Set one element of one tensor."""
    array = np.array(steps[step][name])
    array[index] = value
    steps[step][name] = array
    return steps


def nudge(steps, step, name, index):
    """Move one element to the next number."""
    old = np.asarray(steps[step][name])[index]
    return change(steps, step, name, index, np.nextafter(old, old.dtype.type(np.inf)))


@pytest.fixture
def pair(tmp_path):
    """Diff of two traces made from dictionaries of steps."""

    def compare(a, b, **options):
        left = write(tmp_path / "left.trace", a)
        return diff(left, write(tmp_path / "right.trace", b), **options)

    return compare


@pytest.fixture
def reads(monkeypatch):
    """The names of the tensors whose bytes were read, in order."""
    names = []
    original = Step.view

    def view(self, entry):
        names.append(entry.name)
        return original(self, entry)

    monkeypatch.setattr(Step, "view", view)
    return names


def test_equal_traces_are_identical_and_no_tensor_is_read(pair, reads):
    found = pair(run(), run())
    assert (found.status, found.equivalent) == ("identical", True)
    assert (found.steps_compared, found.tensors_compared) == (3, 18)
    assert found.first_divergence is found.onset is None
    assert (found.last_agreeing.step, found.last_agreeing.tensor) == (3, BIAS)
    assert (found.structure, found.divergences, found.notes) == ((), (), ())
    assert reads == []


def test_a_rounding_apart_is_close_and_its_place_is_the_onset(pair, reads):
    a = nudge(nudge(run(), 2, GRAD, (3, 1)), 3, BIAS, 4)
    found = pair(a, run())
    assert (found.status, found.equivalent) == ("close", True)
    assert found.first_divergence is None
    assert (found.onset.step, found.onset.tensor, found.onset.index) == (2, GRAD, (3, 1))
    assert (found.onset.max_ulp_diff, found.onset.mismatches) == (1, 0)
    assert (found.steps_compared, found.tensors_compared) == (3, 18)
    assert reads == [GRAD, GRAD, BIAS, BIAS]


def test_the_first_divergence_is_the_first_in_order_of_execution(pair):
    a = change(run(), 3, GATES, (1, 2, 7), 9)
    a = change(a, 2, BIAS, 3, 9)
    a = change(a, 2, GRAD, (3, 1), 9)
    found = pair(a, run())
    assert (found.status, found.equivalent) == ("diverged", False)
    first = found.first_divergence
    assert (first.step, first.tensor, first.index) == (2, GRAD, (3, 1))
    assert first.where == "hidden 3, token 1"
    assert (found.last_agreeing.step, found.last_agreeing.tensor) == (2, LOSS)


def test_it_stops_at_the_first_divergence(pair, reads):
    a = change(change(run(5), 2, GRAD, (3, 1), 9), 2, BIAS, 3, 9)
    found = pair(change(a, 3, BIAS, 3, 9), run(5))
    assert (found.steps_compared, found.tensors_compared) == (2, 6 + 4)
    assert reads == [GRAD, GRAD]
    assert found.divergences == ()


def test_it_goes_on_to_the_end_if_asked_for_all(pair):
    a = change(change(run(5), 2, GRAD, (3, 1), 9), 2, BIAS, 3, 9)
    found = pair(change(a, 4, LOSS, (), 9), run(5), all=True)
    assert (found.steps_compared, found.tensors_compared) == (5, 30)
    places = [(d.step, d.tensor) for d in found.divergences]
    assert places == [(2, GRAD), (2, BIAS), (4, LOSS)]
    assert found.first_divergence == found.divergences[0]
    assert [row.not_close for row in found.steps] == [0, 2, 0, 1, 0]


def test_the_figures_are_those_of_the_files_read_without_the_harness(pair, tmp_path):
    a = run()
    a[2][GRAD] = a[2][GRAD] * np.float32(1.01)
    found = pair(change(a, 2, GRAD, (0, 0), tensors(2)[GRAD][0, 0]), run(), rtol=1e-3, atol=1e-4)
    first = found.first_divergence
    x, y = (
        load_file(tmp_path / side / "step-00000002.safetensors")[GRAD]
        for side in ("left.trace", "right.trace")
    )
    wrong = np.argwhere(~np.isclose(x, y, rtol=1e-3, atol=1e-4))
    assert first.index == tuple(wrong[0])
    assert (first.mismatches, first.size) == (len(wrong), 20)
    assert first.mismatch_ratio == len(wrong) / 20
    assert (first.a, first.b) == (float(x[first.index]), float(y[first.index]))
    x, y = x.astype("float64"), y.astype("float64")
    assert first.max_abs_diff == np.abs(x - y).max()
    assert first.max_rel_diff == (np.abs(x - y) / np.abs(y)).max()
    rel_l2 = np.linalg.norm(x - y) / np.linalg.norm(y)
    assert first.rel_l2 == pytest.approx(rel_l2, rel=1e-12)
    assert first.rel_l2_eps == pytest.approx(rel_l2 * 2**23, rel=1e-12)
    assert (first.dtype, first.shape, first.rtol, first.atol) == ("float32", (4, 5), 1e-3, 1e-4)


def test_a_and_b_are_not_swapped(pair):
    a = change(run(), 2, GRAD, (3, 1), 7)
    b = change(run(), 2, GRAD, (3, 1), 4)
    found = pair(a, b)
    assert (found.a.rsplit("/")[-1], found.b.rsplit("/")[-1]) == ("left.trace", "right.trace")
    assert found.labels == ("left", "right")
    first = found.first_divergence
    assert (first.a, first.b, first.max_rel_diff) == (7.0, 4.0, 0.75)
    assert (found.onset.a, found.onset.b) == (7.0, 4.0)


def test_a_scalar_has_the_empty_index(pair):
    first = pair(change(run(), 1, LOSS, (), 7), run()).first_divergence
    assert (first.tensor, first.index, first.where) == (LOSS, (), "")
    assert (first.a, first.b) == (7.0, 100.0)


def test_the_scale_of_the_tolerance_is_the_references(pair):
    a = change(change(run(), 1, GRAD, (0, 0), 1e9), 1, GRAD, (0, 1), 0.5)
    b = change(run(), 1, GRAD, (0, 0), 1e9)
    assert pair(a, run()).first_divergence.mismatches == 2
    assert pair(change(b, 1, GRAD, (0, 1), 0.25), a).status == "close"


def test_the_order_of_the_reference_decides(pair):
    a = change(change(run(), 2, GATES, (1, 2, 7), 9), 2, BIAS, 3, 9)
    b = run()
    backwards = {step: dict(reversed(found.items())) for step, found in b.items()}
    assert pair(a, b).first_divergence.tensor == GATES
    assert pair(a, backwards).first_divergence.tensor == BIAS
    assert pair(backwards, a).first_divergence.tensor == GATES


def test_onset_may_come_long_before_the_divergence(pair):
    a = nudge(run(), 1, GATES, (0, 2, 5))
    found = pair(change(a, 3, GRAD, (2, 2), 9), run())
    assert (found.onset.step, found.onset.tensor, found.onset.index) == (1, GATES, (0, 2, 5))
    assert found.onset.where == "batch row 0, timestep 2, gate g, unit 1"
    assert (found.first_divergence.step, found.first_divergence.tensor) == (3, GRAD)
    assert (found.tightest.step, found.tightest.tensor) == (1, GATES)  # of those that are close


def test_onset_is_the_first_bit_to_differ_and_not_the_first_that_is_not_close(pair):
    a = nudge(run(), 2, GRAD, (0, 2))
    found = pair(change(a, 2, GRAD, (3, 1), 9), run())
    assert (found.onset.tensor, found.onset.index) == (GRAD, (0, 2))
    assert found.first_divergence.index == (3, 1)
    assert found.onset.a == float(a[2][GRAD][0, 2])


def test_zeros_of_both_signs_differ_in_bits_only(pair):
    a, b = change(run(), 1, GRAD, (0, 0), -0.0), change(run(), 1, GRAD, (0, 0), 0.0)
    found = pair(a, b)
    assert (found.status, found.onset.max_ulp_diff) == ("close", 0)


def test_nothing_agreed_before_a_divergence_of_the_first_tensor(pair):
    found = pair(change(run(), 1, "inputs/x", (1, 2), 77), run())
    assert (found.first_divergence.tensor, found.first_divergence.a) == ("inputs/x", 77)
    assert found.last_agreeing is None


def test_numpys_rule_is_applied_if_asked_for(pair):
    a = run()
    a[2][GRAD] = a[2][GRAD] + np.float32(3e-4)
    for atol, status in ((2e-4, "diverged"), (4e-4, "close")):
        found = pair(a, run(), rtol=0.0, atol=atol)
        assert found.status == status
        assert (found.tolerance.rule, found.tolerance.rtol, found.tolerance.atol) == (
            "numpy",
            0.0,
            atol,
        )
    assert pair(a, run()).tolerance.rule == "default"
    assert pair(a, run(), rtol=1e-2).tolerance.atol == 1e-8


@pytest.mark.parametrize(("side", "a", "b"), [(0, "missing", "present"), (1, "present", "missing")])
def test_a_tensor_missing_on_one_side_is_structure(pair, side, a, b):
    runs = [run(), run()]
    for step in (2, 3):
        del runs[side][step][GRAD]
    found = pair(*runs)
    assert (found.status, found.equivalent, found.first_divergence) == ("structure", False, None)
    (difference,) = found.structure
    assert (difference.kind, difference.tensor) == ("missing tensor", GRAD)
    assert (difference.step, difference.count, difference.a, difference.b) == (2, 2, a, b)
    assert (found.steps_compared, found.tensors_compared) == (3, 16)


@pytest.mark.parametrize(("side", "a", "b"), [(0, "missing", "present"), (1, "present", "missing")])
def test_a_step_missing_on_one_side_is_structure(pair, side, a, b):
    runs = [run(4), run(4)]
    del runs[side][2], runs[side][4]
    found = pair(*runs)
    assert (found.status, found.equivalent) == ("structure", False)
    (difference,) = found.structure
    assert (difference.kind, difference.tensor) == ("missing step", None)
    assert (difference.step, difference.count, difference.a, difference.b) == (2, 2, a, b)
    assert found.steps_compared == 2


def test_an_integer_beside_a_float_is_structure_even_where_values_are_equal(pair):
    a = run()
    a[3][BIAS] = np.zeros_like(a[3][BIAS], "int32")
    b = run()
    b[3][BIAS] = np.zeros_like(b[3][BIAS])
    found = pair(a, b)
    (difference,) = found.structure
    assert found.status == "structure"
    assert (difference.kind, difference.step, difference.tensor) == ("dtype", 3, BIAS)
    assert (difference.a, difference.b, difference.count) == ("int32", "float32", 1)
    assert found.tensors_compared == 17


def test_another_shape_is_structure_even_where_bytes_are_equal(pair):
    a = run()
    a[3][GRAD] = a[3][GRAD].reshape(2, 10)
    found = pair(a, run())
    (difference,) = found.structure
    assert found.status == "structure"
    assert (difference.kind, difference.step, difference.tensor) == ("shape", 3, GRAD)
    assert (difference.a, difference.b) == ("[2, 10]", "[4, 5]")


def test_values_are_compared_beside_a_difference_of_structure(pair):
    a = change(run(), 2, BIAS, 1, 9)
    del a[1][GRAD]
    found = pair(a, run())
    assert found.status == "structure"
    assert (found.first_divergence.step, found.first_divergence.tensor) == (2, BIAS)


def test_filters_choose_tensors_and_steps(pair):
    a = change(change(run(5), 2, GRAD, (3, 1), 9), 4, BIAS, 3, 9)
    del a[5][LOSS]
    b = run(5)
    assert pair(a, b).first_divergence.tensor == GRAD
    only = pair(a, b, include=["params/*", "inputs/*"])
    assert (only.first_divergence.step, only.first_divergence.tensor) == (4, BIAS)
    assert only.tensors_compared == 4 * 2
    without = pair(a, b, exclude=["grads/*", "*/loss"])
    assert (without.status, without.first_divergence.tensor) == ("diverged", BIAS)
    both = pair(a, b, include=["params/*", "inputs/*"], exclude=["params/*"])
    assert (both.status, both.tensors_compared) == ("identical", 5)
    later = pair(a, b, steps=(3, None))
    assert (later.status, later.first_divergence.step) == ("diverged", 4)
    third = pair(a, b, steps=(3, 3))
    assert (third.status, third.steps_compared, third.tensors_compared) == ("identical", 1, 6)
    assert pair(a, b, steps=(5, 5), exclude=[LOSS]).status == "identical"
    assert pair(a, b, steps=(5, 5)).status == "structure"


def test_a_step_that_the_filter_leaves_out_is_not_missing(pair):
    a = run(4)
    del a[4]
    assert pair(a, run(4), steps=(1, 3)).status == "identical"
    assert pair(a, run(4), steps=(2, None)).status == "structure"


def rename(steps):
    return {step: {f"other/{n}": t for n, t in found.items()} for step, found in steps.items()}


@pytest.mark.parametrize(
    ("a", "b", "options"),
    [
        ({1: tensors(1)}, {2: tensors(2)}, {}),
        ({}, run(), {}),
        ({}, {}, {}),
        ({1: {}}, {1: {}}, {}),
        (rename(run()), run(), {}),
        (run(), run(), {"include": ["gradients/*"]}),
        (run(), run(), {"exclude": ["*"]}),
        (run(), run(), {"steps": (4, None)}),
        (run(), run(), {"steps": (3, 2)}),
    ],
)
def test_nothing_to_compare_is_trouble_and_never_success(pair, a, b, options):
    with pytest.raises(HarnessError, match="nothing to compare"):
        pair(a, b, **options)


def test_tensors_that_differ_in_dtype_throughout_leave_nothing_to_compare(pair):
    a = {1: {BIAS: np.ones_like(tensors(1)[BIAS], "int64")}}
    with pytest.raises(HarnessError, match=f"named alike .{BIAS}. differ in shape, or are integ"):
        pair(a, {1: {BIAS: tensors(1)[BIAS]}})


def test_nan_on_both_sides_is_noted_and_close(pair):
    a, b = (change(run(), 2, GRAD, (1, 3), np.nan) for _ in "ab")
    assert pair(a, b).status == "identical"
    assert pair(a, b).notes[0] == f"both sides hold NaN, first in {GRAD} of step 2"
    a[2][GRAD].view("uint32")[1, 3] ^= 1  # another NaN: another hash
    found = pair(a, b)
    assert (found.status, found.onset.index, found.onset.nan_equal) == ("close", (1, 3), 1)
    assert (found.onset.a, found.onset.b) == ("nan", "nan")


@pytest.mark.parametrize("options", [{}, {"rtol": 1e9, "atol": 1e9}])
@pytest.mark.parametrize("side", [0, 1])
def test_nan_on_one_side_diverges_under_any_tolerance(pair, side, options):
    runs = [run(), run()]
    change(runs[side], 2, GRAD, (1, 3), np.nan)
    found = pair(*runs, **options)
    first = found.first_divergence
    assert (found.status, first.tensor, first.index) == ("diverged", GRAD, (1, 3))
    assert (first.nonfinite_mismatches, first.least_rtol, first.least_atol) == (1, None, None)
    assert [math.isnan(float(x)) for x in (first.a, first.b)] == [side == 0, side == 1]
    assert [note.split(":")[0] for note in found.notes] == [("left", "right")[side]]


def test_the_steps_around_the_divergence_are_listed_with_loss_and_norm(pair):
    a = change(nudge(run(8), 3, BIAS, 0), 4, LOSS, (), 7)
    rows = pair(a, run(8)).steps
    assert [row.step for row in rows] == [2, 3, 4, 5, 6]
    assert [row.loss_b for row in rows] == [float(np.float32(100 / s)) for s in range(2, 7)]
    assert [row.loss_a for row in rows if row.step == 4] == [7.0]
    assert [row.norm_a for row in rows] == [row.norm_b for row in rows] == [6, 9, 12, 15, 18]
    assert [row.unequal for row in rows] == [0, 1, 1, 0, 0]
    assert [row.tensors for row in rows] == [6] * 5
    assert [row.not_close for row in rows[:2]] == [0, 0]
    assert [row.not_close for row in rows[3:]] == [None, None]  # it stopped before them
    x, y = a[3][BIAS].astype("float64"), run(8)[3][BIAS].astype("float64")
    worst = np.linalg.norm(x - y) / np.linalg.norm(y) * 2**23
    assert rows[0].worst_rel_l2_eps == 0
    assert rows[1].worst_rel_l2_eps == pytest.approx(worst, rel=1e-9)


def test_the_table_of_steps_ends_where_the_trace_does(pair):
    assert [row.step for row in pair(change(run(8), 1, LOSS, (), 7), run(8)).steps] == [1, 2, 3]
    assert [row.step for row in pair(change(run(8), 8, LOSS, (), 7), run(8)).steps] == [6, 7, 8]
    assert [row.step for row in pair(run(8), run(8)).steps] == [6, 7, 8]
    everything = pair(change(run(8), 5, LOSS, (), 7), run(8), all=True).steps
    assert [row.step for row in everything] == list(range(1, 9))


def test_losses_that_are_not_finite_or_not_there_have_a_row_all_the_same(pair):
    a, b = run(), run()
    change(change(a, 3, LOSS, (), np.nan), 2, NORM, (), np.inf)
    del a[2][LOSS], b[2][LOSS]
    rows = {row.step: row for row in pair(a, b).steps}
    assert (rows[2].loss_a, rows[2].norm_a, rows[2].norm_b) == (None, "inf", 6.0)
    assert (rows[3].loss_a, rows[3].loss_b) == ("nan", float(np.float32(100 / 3)))


def test_settings_and_digests_that_differ_are_noted(tmp_path):
    a = write(
        tmp_path / "a.trace",
        run(),
        spec={"train": {"lr": 1.0, "clip": "none"}, "steps": 3},
        digests={"tokens": "aa", "weights/softmax_w": "bb", "only/here": "cc"},
    )
    b = write(
        tmp_path / "b.trace",
        run(),
        spec={"train": {"lr": 0.5, "clip": "none"}, "device": "gpu", "steps": 3},
        digests={"tokens": "aa", "weights/softmax_w": "dd"},
    )
    assert diff(a, b).notes == (
        "the sides' settings differ: device = None | 'gpu'",
        "the sides' settings differ: train.lr = 1.0 | 0.5",
        "the sides were given different weights/softmax_w",
    )


def test_an_incomplete_trace_is_noted(tmp_path):
    whole = write(tmp_path / "whole.trace", run())
    cut = tmp_path / "cut.trace"
    with pytest.raises(TraceError):
        write(cut, {1: tensors(1), 2: tensors(2), 3: {"x": "text cannot be stored"}})
    found = diff(cut, whole)
    assert (found.status, found.structure[0].kind) == ("structure", "missing step")
    assert found.notes == (f"{cut} is not complete: its run stopped after 2 steps",)
    assert diff(whole, cut, steps=(1, 2)).status == "identical"


def test_opened_traces_can_be_given_and_progress_is_told(tmp_path):
    a, b = (write(tmp_path / f"{label}.trace", run()) for label in "ab")
    told = []
    found = diff(open_trace(a), open_trace(b), progress=lambda *done: told.append(done))
    assert found.status == "identical"
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_a_flipped_bit_in_a_tensor_that_is_read_is_damage(tmp_path):
    a = write(tmp_path / "a.trace", nudge(run(), 2, GRAD, (1, 1)))
    b = write(tmp_path / "b.trace", run())
    assert diff(a, b).status == "close"
    file = b / "step-00000002.safetensors"
    data = bytearray(file.read_bytes())
    data[data.index(tensors(2)[GRAD].tobytes()) + 6] ^= 1
    file.write_bytes(data)
    with pytest.raises(TraceError, match=f"{GRAD} does not match its hash"):
        diff(a, b)


def test_the_json_has_the_documented_keys(pair):
    a = nudge(run(), 1, GATES, (0, 2, 5))
    found = strict_json(pair(change(a, 2, GRAD, (3, 1), 9), run()))
    assert found["status"] == "diverged"
    assert (found["steps_compared"], found["tensors_compared"]) == (2, 10)
    assert found["structure"] == []
    assert found["tolerance"]["rule"] == "default"
    keys = "step tensor index a b max_abs_diff max_rel_diff max_ulp_diff rel_l2 rel_l2_eps"
    for place in ("first_divergence", "onset"):
        assert set(keys.split()) | {"mismatch_ratio"} <= found[place].keys()
    first, y = found["first_divergence"], float(tensors(2)[GRAD][3, 1])
    assert (first["step"], first["tensor"], first["index"]) == (2, GRAD, [3, 1])
    assert (first["a"], first["b"], first["mismatch_ratio"]) == (9, y, 1 / 20)
    assert first["max_abs_diff"] == 9 - y
    assert found["onset"]["step"] == 1


def test_the_json_of_traces_that_agree_has_null_for_the_places(pair):
    found = strict_json(pair(run(), run()))
    assert (found["status"], found["first_divergence"], found["onset"]) == ("identical", None, None)


def test_the_json_holds_no_number_that_json_does_not_know(pair):
    a = change(run(), 2, GRAD, (1, 3), np.nan)
    found = strict_json(pair(change(a, 2, LOSS, (), -np.inf), run(), all=True))
    loss, grad = found["divergences"]
    assert (loss["a"], loss["b"], grad["a"]) == ("-inf", 50, "nan")
    assert loss["max_abs_diff"] is None


def test_the_json_of_other_structure_lists_it(pair):
    a = run()
    del a[2][GRAD]
    assert strict_json(pair(a, run()))["structure"] == [
        dict(kind="missing tensor", step=2, tensor=GRAD, a="missing", b="present", count=1)
    ]


def strict_json(result):
    def refuse(text):
        raise AssertionError(f"{text} is no JSON")

    return json.loads(msgspec.json.encode(result), parse_constant=refuse)
