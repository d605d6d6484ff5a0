"""What a diff compares, by which tolerance, and what it notes of dtypes and of programs."""

import io
import math
import subprocess
import sys

import numpy as np
import pytest
import xxhash
from rich.console import Console
from test_diff import GRAD, pair, run

from harness import Capture, Tolerance, TraceWriter, diff, open_trace
from harness.errors import HarnessError
from harness.report.terminal import show_diff
from harness.trace import Program

__all__ = ["pair"]  # a fixture


@pytest.mark.parametrize(
    ("a", "b", "narrow"),
    [
        *(("float32", "float64", 2.0**-23), ("float64", "float32", 2.0**-23)),
        *(("bfloat16", "float32", 2.0**-7), ("float16", "bfloat16", 2.0**-7)),
        *(("float16", "float32", 2.0**-10), ("float8_e5m2", "float64", 2.0**-2)),
    ],
)
@pytest.mark.parametrize("level", ["full", "stats"])
def test_floats_of_two_dtypes_are_compared_and_noted(tmp_path, a, b, narrow, level):
    drawn = np.random.default_rng(1).uniform(1, 1.9, (3, 50))

    def write(dtype, off):
        path = tmp_path / f"{dtype}.trace"
        with TraceWriter(path, label=dtype, dtype=dtype, capture=Capture(level=level)) as trace:
            for step in (1, 2):
                x = drawn.copy()
                x[2, 3] += off * (step == 2)
                tensors = {"w": x.astype(dtype), "v": x[0].astype(dtype), "n": np.arange(3)}
                trace.write(step, tensors)
        return path

    close = diff(write(a, 0), write(b, 0))
    assert (close.status, close.structure, close.tensors_compared) == ("close", (), 6)
    assert close.onset.dtype == f"{a} | {b}"
    assert close.onset.max_ulp_diff is None
    assert 0.05 < close.onset.rel_l2_eps < 1.5  # in eps of the narrower
    note = f"of two dtypes, {a} | {b}: 4 tensors, first w of step 1; compared in the wider, with"
    assert [n for n in close.notes if n.startswith("of two dtypes")] == [
        f"{note} the eps of the narrower"
    ]
    apart = diff(write(a, 1e3), write(b, 0))
    first = apart.first_divergence
    assert (apart.status, first.step, first.tensor) == ("diverged", 2, "w")
    assert first.dtype == f"{a} | {b}"
    if level == "full":
        assert first.index == (2, 3)
        assert first.max_abs_diff == pytest.approx(1e3, rel=0.3)
        assert first.rtol == 64 * narrow
    shown = io.StringIO()
    show_diff(Console(file=shown, width=200), apart)
    assert "of two dtypes" in shown.getvalue()


def test_values_that_two_dtypes_hold_alike_are_close_and_not_identical(tmp_path):
    for name, dtype in (("a", "float32"), ("b", "float64")):
        with TraceWriter(tmp_path / f"{name}.trace", label=name, dtype=dtype) as trace:
            trace.write(1, {"inputs/w": np.arange(5).astype(dtype), "empty": np.zeros(0, dtype)})
    found = diff(tmp_path / "a.trace", tmp_path / "b.trace")
    assert (found.status, found.onset.index, found.onset.rel_l2) == ("close", None, 0)
    shown = io.StringIO()
    show_diff(Console(file=shown, width=200), found)
    assert "inputs/w: float32 | float64 with the same numbers" in shown.getvalue()


def test_the_onset_is_where_numbers_differ_and_not_where_the_dtype_alone_does(tmp_path):
    for name, dtype in (("a", "float32"), ("b", "float64")):
        with TraceWriter(tmp_path / f"{name}.trace", label=name, dtype=dtype) as trace:
            third = np.full(5, 1 / 3).astype(dtype)
            trace.write(1, {"v": np.arange(5).astype(dtype), "w": third, "x": third})
    found = diff(tmp_path / "a.trace", tmp_path / "b.trace")
    assert (found.onset.tensor, found.onset.index) == ("w", (0,))


@pytest.mark.parametrize("dtypes", [("int32", "float32"), ("bool", "float64"), ("uint64", "int64")])
def test_what_is_not_two_floats_stays_a_difference_of_structure(tmp_path, dtypes):
    for name, dtype in zip("ab", dtypes, strict=True):
        with TraceWriter(tmp_path / f"{name}.trace", label=name, dtype="float32") as trace:
            trace.write(1, {"w": np.ones(5, dtype), "x": 1.0})
    found = diff(tmp_path / "a.trace", tmp_path / "b.trace")
    assert (found.status, [s.kind for s in found.structure]) == ("structure", ["dtype"])


@pytest.mark.parametrize("level", ["full", "stats"])
def test_integers_of_two_widths_are_compared_by_value(tmp_path, level):
    def write(dtype, more):
        path = tmp_path / f"{dtype}-{more}.trace"
        capture = Capture(level=level)
        with TraceWriter(path, label="x", dtype="float32", capture=capture) as trace:
            trace.write(1, {"inputs/y": np.arange(5, dtype=dtype) + np.dtype(dtype).type(more)})
        return path

    same = diff(write("int32", 0), write("int64", 0))
    assert (same.status, same.structure) == ("close", ())
    assert any("int32 | int64: 1 tensors" in n and "by value" in n for n in same.notes)
    assert diff(write("int32", 1), write("int64", 0)).status == "diverged"


def test_a_factor_takes_the_place_of_every_k_but_that_of_inputs(pair):
    a = run()
    a[2][GRAD] = a[2][GRAD] * np.float32(1 + 1e-4)
    found = pair(a, run())
    assert found.status == "diverged"
    least = found.first_divergence.least_factor
    assert pair(a, run(), factor=least * 1.01).status == "close"
    tight = pair(a, run(), factor=least * 0.99)
    assert tight.first_divergence.factor == least * 0.99
    assert tight.tolerance.table == (("inputs/*", 0), ("*", least * 0.99))
    assert pair(a, run(), factor=0).first_divergence.factor == 0
    a = run()
    a[2]["inputs/x"] = a[2]["inputs/x"] + 1
    assert pair(a, run(), factor=1e9).first_divergence.tensor == "inputs/x"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"factor": -1}, "factor=-1: a tolerance is a number from 0 up"),
        ({"factor": math.nan}, "factor=nan"),
        ({"factor": math.inf}, "factor=inf"),
        ({"factor": 3, "rtol": 0.0}, "factor=3 beside rtol=0.0, atol=None"),
        ({"factor": 3, "atol": 1.0}, "give the one or the others"),
        ({"factor": 3, "tolerance": Tolerance()}, "give the one or the others"),
    ],
)
def test_a_factor_that_cannot_be_is_refused(pair, options, words):
    with pytest.raises(HarnessError, match=words):
        pair(run(), run(), **options)


def made_by(path, code, **tensors):
    """A trace that a script of its own leaves."""
    script = path.parent / "train.py"
    script.write_text(
        "import sys, numpy, harness, helper\n"
        "with harness.TraceWriter(sys.argv[1], label='x', dtype='float32') as trace:\n"
        "    trace.write(1, {'w': numpy.ones(3)})\n" + code
    )
    subprocess.run([sys.executable, str(script), str(path)], check=True)
    return open_trace(path).header.program


def test_a_trace_names_the_script_that_made_it_and_a_diff_notes_another_version_of_it(tmp_path):
    (tmp_path / "helper.py").write_text("")
    (tmp_path / "other.py").write_text("")
    first = made_by(tmp_path / "a.trace", "")
    files = sorted(["helper.py", "train.py"])
    hashed = xxhash.xxh3_128()
    for name in files:
        data = (tmp_path / name).read_bytes()
        hashed.update(f"{name}\0{len(data)}\0".encode() + data)
    assert first == Program("script", "train.py", hashed.hexdigest())
    (tmp_path / "other.py").write_text("# not loaded")
    assert made_by(tmp_path / "b.trace", "") == first
    assert diff(tmp_path / "a.trace", tmp_path / "b.trace").notes == ()
    (tmp_path / "helper.py").write_text("# loaded")
    second = made_by(tmp_path / "b.trace", "")
    assert second.digest != first.digest
    assert diff(tmp_path / "a.trace", tmp_path / "b.trace").notes == (
        f"made by different code: train.py of digest {first.digest} | {second.digest}",
    )


def test_a_session_without_a_script_says_so(tmp_path):
    code = "import harness; harness.TraceWriter('a.trace', label='x', dtype='float32').close()"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
    assert open_trace(tmp_path / "a.trace").header.program == Program("script", "interactive", "")


def test_nothing_to_compare_says_what_each_side_has(pair):
    def said(a, b):
        with pytest.raises(HarnessError) as error:
            pair({1: a}, {1: b})
        return str(error.value)

    one = np.ones(2)
    names = {f"x{i}": one for i in range(5)}
    assert said(names, {"y": one}).endswith(
        "nothing to compare: no tensor has the same name on both sides: x0, x1, x2, ... on one, "
        "y on the other"
    )
    assert "the tensors named alike (x0) differ in shape" in said(names, {"x0": np.ones(3)})
    assert said({}, names).endswith("0 tensors on one side and 5 on the other")
