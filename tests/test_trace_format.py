"""The promises of the trace format: what was written is read back, whatever happened between."""

import json
import os
import re
import shutil
import struct
import sys

import numpy as np
import pytest
import safetensors.numpy
import xxhash

import harness
from harness.spec import Capture
from harness.trace import (
    Rows,
    TraceError,
    TraceWriter,
    check_trace,
    open_trace,
    reader,
    remove_trace,
)
from harness.trace.schema import DTYPES, FLOATS

SHAPES = [(), (0,), (2, 0, 3), (3, 5), (2, 40_000)]  # the last is longer than a block


def write(path, steps, **options):
    with TraceWriter(path, label="mine", dtype="float32", **options) as trace:
        for step, tensors in steps.items():
            trace.write(step, tensors)
    return path


def read(path):
    trace = open_trace(path)
    return {s: {e.name: a for e, a in trace.step(s).tensors()} for s in trace.steps}


def sample(dtype, shape):
    draw = np.random.default_rng(7)
    if dtype == "bool":
        return np.asarray(draw.random(shape) < 0.3)
    if dtype in FLOATS:
        return np.asarray(draw.standard_normal(shape) * 3).astype(dtype)
    limits = np.iinfo(dtype)
    return np.asarray(draw.integers(limits.min, limits.max, shape, dtype, endpoint=True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_dtype_and_shape_comes_back_bit_for_bit(tmp_path, dtype, shape):
    array = sample(dtype, shape)
    back = read(write(tmp_path / "a.trace", {1: {"x": array}}))[1]["x"]
    assert (back.dtype, back.shape, back.tobytes()) == (array.dtype, shape, array.tobytes())
    assert check_trace(tmp_path / "a.trace").faults == ()


def test_nan_payloads_infinities_and_signed_zeros_come_back_bit_for_bit(tmp_path):
    bits = np.array([0x7FC00000, 0xFFC00001, 0x7F800001, 0x7F800000, 0xFF800000, 0x80000000, 0, 1])
    array = bits.astype(np.uint32).view(np.float32).reshape(2, 4)
    back = read(write(tmp_path / "a.trace", {1: {"x": array}}))[1]["x"]
    assert back.tobytes() == array.tobytes()
    assert check_trace(tmp_path / "a.trace").faults == ()


def test_views_lists_and_numbers_are_stored_as_what_they_show(tmp_path):
    array = np.arange(24.0).reshape(2, 3, 4)
    given = {
        "t": array.T,
        "part": array[:, ::2, 1:],
        "list": [[1, 2, 3]],
        "number": np.float64(2.5),
    }
    back = read(write(tmp_path / "a.trace", {1: given}))[1]
    for name, tensor in given.items():
        np.testing.assert_array_equal(back[name], np.array(tensor), strict=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_hash_and_statistics_are_those_of_plain_numpy(tmp_path, dtype, shape):
    array = sample(dtype, shape)
    write(tmp_path / "a.trace", {1: {"x": array}})
    entry = open_trace(tmp_path / "a.trace").step(1).find("x")
    assert (entry.dtype, entry.shape, entry.size) == (dtype, shape, array.size)
    assert entry.hash == xxhash.xxh3_128_hexdigest(array.tobytes())
    assert (entry.nan, entry.inf, entry.zero) == (0, 0, np.sum(array == 0))
    wide = array.astype(np.float64)
    assert entry.l2 == pytest.approx(np.sqrt(np.sum(wide**2)), rel=1e-12)
    if not array.size:
        assert (entry.min, entry.max, entry.mean) == (None, None, None)
        return
    assert (entry.min, entry.max) == (wide.min(), wide.max())
    assert entry.mean == pytest.approx(wide.mean(), rel=1e-9)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_statistics_are_over_finite_elements_and_the_others_are_counted(tmp_path, dtype):
    array = np.array([1, 2, -2, 0, -0.0, np.nan, np.inf, -np.inf, np.nan, np.nan], dtype)
    write(tmp_path / "a.trace", {1: {"x": array, "none": array[5:]}})
    x, none = open_trace(tmp_path / "a.trace").step(1).entries
    assert (x.min, x.max, x.mean, x.l2) == (-2, 2, 0.2, 3)
    assert (x.nan, x.inf, x.zero) == (3, 2, 2)
    assert (none.min, none.max, none.mean, none.l2) == (None, None, None, 0)
    assert (none.nan, none.inf, none.zero) == (3, 2, 0)


def test_statistics_that_no_double_holds_are_left_out(tmp_path):
    array = np.zeros(16)
    array[[0, 8]], array[[4, 12]] = 1.7e308, -1.7e308  # partial sums: inf, and inf - inf
    write(tmp_path / "a.trace", {1: {"x": array, "y": array[[0, 0]]}})
    x, y = open_trace(tmp_path / "a.trace").step(1).entries
    assert (x.min, x.max, x.l2) == (-1.7e308, 1.7e308, None)
    assert (y.min, y.max, y.mean, y.l2) == (1.7e308, 1.7e308, None, None)
    assert check_trace(tmp_path / "a.trace").faults == ()


def test_the_index_keeps_the_order_of_execution(tmp_path):
    names = ["z", "inputs/x", "forward/b", "forward/a", "backward/c", "a"]
    tensors = {name: np.full(3, i, DTYPES[i]) for i, name in enumerate(names)}
    path = write(tmp_path / "a.trace", {1: tensors, 5: dict(reversed(tensors.items()))})
    assert list(read(path)[1]) == names
    assert list(read(path)[5]) == names[::-1]
    line = json.loads((path / "index.jsonl").read_text().splitlines()[0])
    assert [tensor["name"] for tensor in line["tensors"]] == names


@pytest.mark.parametrize("later", [4, 3, 1])
def test_steps_must_grow(tmp_path, later):
    with TraceWriter(tmp_path / "a.trace", label="a", dtype="float32") as trace:
        trace.write(4, {"x": 1.0})
        with pytest.raises(TraceError, match=f"step {later} after step 4"):
            trace.write(later, {"x": 2.0})
    assert read(tmp_path / "a.trace") == {4: {"x": 1.0}}


@pytest.mark.parametrize("step", [0, -1, True, False, 1.0, "1", None, 2**63, np.array([1])])
def test_steps_are_integers_and_count_from_one(tmp_path, step):
    with (
        TraceWriter(tmp_path / "a.trace", label="a", dtype="float32") as trace,
        pytest.raises(TraceError, match=r"a.trace: step .*: steps are integers and count from 1"),
    ):
        trace.write(step, {"x": 1.0})


def test_a_step_may_be_a_numpy_integer(tmp_path):
    path = write(tmp_path / "a.trace", {np.int64(3): {"x": 1.0}, np.uint8(9): {"x": 2.0}})
    assert open_trace(path).steps == (3, 9)


def test_arguments_that_are_no_utf8_do_not_stop_a_run(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", os.fsdecode(b"caf\xe9"), "ü"])
    assert open_trace(write(tmp_path / "a.trace", {})).header.argv == (
        *("train.py", "caf\\udce9", "ü"),
    )


@pytest.mark.parametrize(
    ("capture", "kept"),
    [
        (Capture(), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]),
        (Capture(every=3), [1, 4, 7, 10]),
        (Capture(first=4, last=8), [4, 5, 6, 7, 8]),
        (Capture(first=2, last=9, every=4), [2, 6]),
        (Capture(first=20), []),
    ],
    ids=str,
)
def test_only_the_steps_of_the_capture_are_written(tmp_path, capture, kept):
    steps = {step: {"x": np.float32(step)} for step in range(1, 11)}
    path = write(tmp_path / "a.trace", steps, capture=capture)
    assert open_trace(path).header.steps == len(kept)
    assert read(path) == {step: {"x": step} for step in kept}


@pytest.mark.parametrize(
    ("capture", "kept"),
    [
        (Capture(include=("grads/*",)), ["grads/w", "grads/b"]),
        (Capture(exclude=("grads/*", "loss")), ["params/w"]),
        (Capture(include=("*/w", "loss"), exclude=("params/*",)), ["grads/w", "loss"]),
        (Capture(include=("grads",)), []),  # a glob matches the whole name
        (Capture(include=("GRADS/*",)), []),
    ],
    ids=str,
)
def test_only_the_tensors_of_the_capture_are_written(tmp_path, capture, kept):
    tensors = dict.fromkeys(["grads/w", "grads/b", "loss", "params/w"], np.ones(2))
    path = write(tmp_path / "a.trace", {1: tensors}, capture=capture)
    assert list(read(path)[1]) == kept
    assert check_trace(path).faults == ()


@pytest.mark.parametrize(
    "name",
    [
        *("", "/", "a//b", "/a", "a/", ".", "..", "../a", "a/../b", "a/./b", "a\\b", "a\n"),
        *("a\x1b[31m", "a\x00", "a\u202eb", "n" * 256),
    ],
)
def test_names_that_are_unsafe_to_read_back_are_refused(tmp_path, name):
    with TraceWriter(tmp_path / "a.trace", label="a", dtype="float32") as trace:
        with pytest.raises(TraceError, match="cannot name a tensor") as error:
            trace.write(1, {"good": 1.0, name: 2.0})
        trace.write(1, {"good": 1.0, "n" * 255: 2.0, "ü/é": 3.0})
    assert str(error.value).isprintable()
    assert list(read(tmp_path / "a.trace")[1]) == ["good", "n" * 255, "ü/é"]


@pytest.mark.parametrize(
    "tensor",
    [
        *(1j, "text", b"bytes", None, [object()], np.datetime64(0, "s"), np.longdouble(1)),
        np.zeros(1, [("a", "f4")]),
    ],
    ids=lambda tensor: type(tensor).__name__,  # the same in every process of the tests
)
def test_a_dtype_that_cannot_be_stored_is_refused_with_those_that_can(tmp_path, tensor):
    with (
        TraceWriter(tmp_path / "a.trace", label="a", dtype="float32") as trace,
        pytest.raises(TraceError, match=r"w: dtype .* cannot be stored") as error,
    ):
        trace.write(1, {"x": 1.0, "w": tensor})
    assert all(dtype in str(error.value) for dtype in DTYPES)
    assert sorted(os.listdir(tmp_path / "a.trace")) == ["index.jsonl", "trace.json"]


def test_an_earlier_trace_is_replaced_and_nothing_of_it_stays(tmp_path):
    path = write(tmp_path / "a.trace", {s: {"old": s} for s in range(1, 6)})
    (path / "step-00000006.partial").write_bytes(b"half")
    (path / "trace.json.partial").write_bytes(b"half")
    write(path, {2: {"new": 1.5}})
    assert read(path) == {2: {"new": 1.5}}
    assert sorted(os.listdir(path)) == ["index.jsonl", "step-00000002.safetensors", "trace.json"]


def test_what_a_process_killed_at_its_very_start_leaves_is_replaced(tmp_path):
    (tmp_path / "a.trace").mkdir()
    (tmp_path / "a.trace/trace.json.partial").write_bytes(b'{"for')
    assert read(write(tmp_path / "a.trace", {1: {"x": 1}})) == {1: {"x": 1}}


@pytest.mark.parametrize("remove", [False, True])
@pytest.mark.parametrize(
    "name",
    [
        *("thesis.tex", "sub/index.jsonl", "movie.partial", "step-1.safetensors", "trace.json~"),
        # The name is ours, the file is not.
        *("index.jsonl", "trace.json", "step-00000001.safetensors"),
    ],
)
def test_a_folder_that_holds_anything_else_is_refused_untouched(tmp_path, name, remove):
    path = tmp_path / "a.trace"
    (path / name).parent.mkdir(parents=True)
    (path / name).write_text("precious")
    with pytest.raises(TraceError, match="which is no part of a trace; choose another"):
        remove_trace(path) if remove else write(path, {})
    assert (path / name).read_text() == "precious"
    assert len(list(path.rglob("*"))) == len(name.split("/"))


@pytest.mark.parametrize("name", ["notes.txt", "movie.partial", ".hidden"])
def test_a_file_of_somebody_else_in_a_trace_keeps_it_from_being_replaced(tmp_path, name):
    path = write(tmp_path / "a.trace", {1: {"x": 1}})
    (path / name).write_text("precious")
    with pytest.raises(TraceError, match=re.escape(name)):
        write(path, {1: {"x": 2}})
    assert (path / name).read_text() == "precious"
    assert read(path) == {1: {"x": 1}}


@pytest.mark.parametrize("remove", [False, True])
def test_a_file_or_a_symlink_in_the_place_of_a_trace_is_refused(tmp_path, remove):
    (tmp_path / "file").write_text("precious")
    write(tmp_path / "real.trace", {1: {"x": 1}})
    (tmp_path / "link").symlink_to(tmp_path / "real.trace")
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    for name, why in (("file", "is a file"), ("link", "symbolic"), ("dangling", "symbolic")):
        with pytest.raises(TraceError, match=why):
            remove_trace(tmp_path / name) if remove else write(tmp_path / name, {})
    assert (tmp_path / "file").read_text() == "precious"
    assert read(tmp_path / "real.trace") == {1: {"x": 1}}
    assert not (tmp_path / "nothing").exists()


def test_removing_a_trace_removes_it_and_removing_nothing_is_no_error(tmp_path):
    path = write(tmp_path / "a.trace", {1: {"x": 1}})
    remove_trace(path)
    assert os.listdir(tmp_path) == []
    remove_trace(path)


def test_a_step_is_readable_with_safetensors_alone(tmp_path):
    array = np.random.default_rng(1).standard_normal((2, 3)).astype(np.float32)
    path = write(tmp_path / "a.trace", {7: {"grads/w": array, "loss": np.float64(2)}})
    found = safetensors.numpy.load_file(path / "step-00000007.safetensors")
    assert set(found) == {"grads/w", "loss"}
    np.testing.assert_array_equal(found["grads/w"], array, strict=True)
    assert found["loss"].shape == ()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_step_file_and_one_of_the_safetensors_package_are_read_alike(tmp_path, dtype):
    arrays = {f"x{i}": sample(dtype, shape) for i, shape in enumerate(SHAPES)}
    arrays |= {f"y{other}": sample(other, (4, 5)) for other in DTYPES}
    path = write(tmp_path / "a.trace", {1: arrays})
    file = path / "step-00000001.safetensors"
    own, length = file.read_bytes(), struct.unpack("<Q", file.read_bytes()[:8])[0]
    assert length % 8 == 0
    for row in json.loads(own[8 : 8 + length]).values():  # aligned for whoever maps the file
        size = int(re.search(r"\d+|$", row["dtype"])[0] or 8) // 8
        assert row["data_offsets"][0] % size == 0
    found = dict(safetensors.deserialize(own))
    assert set(found) == set(arrays)
    assert all(found[name]["data"] == array.tobytes() for name, array in arrays.items())
    assert all(tuple(found[name]["shape"]) == array.shape for name, array in arrays.items())
    # NumPy has no float8, and this part of the package does not ask ml_dtypes.
    known = {name: x for name, x in arrays.items() if not str(x.dtype).startswith("float8")}
    write(path, {1: known})
    loaded = safetensors.numpy.load_file(file)
    assert {n: x.tobytes() for n, x in loaded.items()} == {n: x.tobytes() for n, x in known.items()}
    safetensors.numpy.save_file(known, file, metadata={"by": "others"})
    line = json.loads((path / "index.jsonl").read_text()) | {"bytes": file.stat().st_size}
    (path / "index.jsonl").write_text(json.dumps(line) + "\n")
    assert check_trace(path).faults == ()


def write_version_1(path, steps):
    """A trace as the format's page described version 1, made without the writer."""
    path.mkdir()
    header = {
        "format": "twin-harness-trace",
        "version": 1,
        "complete": True,
        "steps": len(steps),
        "label": "old",
        "dtype": "float32",
        "level": "full",
        "hash": "xxh3_128",
        "capture": {"include": [], "exclude": [], "every": 1, "first": 1, "last": None},
    }
    header |= {"framework": {}, "versions": {}, "spec": {}, "digests": {}, "argv": []}
    (path / "trace.json").write_text(json.dumps(header))
    with open(path / "index.jsonl", "w") as index:
        for step, tensors in steps.items():
            file = path / f"step-{step:08d}.safetensors"
            safetensors.numpy.save_file(tensors, file)
            rows = []
            for name, x in tensors.items():
                row = {"name": name, "dtype": str(x.dtype), "shape": x.shape}
                row |= {"hash": xxhash.xxh3_128_hexdigest(x.tobytes())}
                row |= {"min": float(x.min()), "max": float(x.max()), "mean": float(x.mean())}
                row |= {"l2": float(np.linalg.norm(x)), "nan": 0, "inf": 0}
                rows.append(row | {"zero": int(np.sum(x == 0))})
            line = {"step": step, "bytes": file.stat().st_size, "tensors": rows}
            index.write(json.dumps(line) + "\n")
    return path


def test_a_trace_of_version_1_opens_reads_checks_and_compares_with_one_of_today(tmp_path):
    draw = np.random.default_rng(1)
    same = draw.standard_normal((40, 3))
    steps = {s: {"grads/w": draw.standard_normal((3, 4)), "params/w": same} for s in (1, 2, 5)}
    steps[2]["grads/e"] = np.eye(9, 4)  # version 1 stores all of it
    old, new = write_version_1(tmp_path / "old.trace", steps), write(tmp_path / "new.trace", steps)
    for path in (old, new):
        found = read(path)
        assert list(found) == [1, 2, 5]
        for step, tensors in steps.items():
            assert list(found[step]) == list(tensors)
            for name, array in tensors.items():
                np.testing.assert_array_equal(found[step][name], array, strict=True)
        assert check_trace(path).faults == ()
    assert open_trace(old).header.version == 1
    step = open_trace(old).step(2)
    assert all(step.holds(entry) and entry.own for entry in step.entries)
    assert harness.diff(old, new).status == "identical"
    steps[5]["grads/w"][1, 2] += 1
    write(new, steps)
    for pair in ((old, new), (new, old)):
        first = harness.diff(*pair).first_divergence
        assert (first.step, first.tensor, first.index) == (5, "grads/w", (1, 2))
    remove_trace(old)
    assert not old.exists()


def test_a_trace_of_version_2_opens_and_compares_with_one_of_today(tmp_path):
    steps = {1: {"w": np.eye(9, 4), "x": 1.0}, 2: {"w": np.eye(9, 4), "x": 2.0}}
    old, new = (write(tmp_path / name, steps) for name in ("old.trace", "new.trace"))
    header = json.loads((old / "trace.json").read_text()) | {"version": 2}
    del header["program"]
    (old / "trace.json").write_text(json.dumps(header))
    assert open_trace(old).header.program is None
    assert check_trace(old).faults == ()
    assert harness.diff(old, new).status == "identical"


def test_a_folder_that_is_no_trace_is_told_from_one_that_is_not_there(tmp_path):
    with pytest.raises(TraceError, match=r"x: no such trace"):
        open_trace(tmp_path / "x")
    with pytest.raises(TraceError, match=r"is a folder without trace.json, so no trace: give"):
        open_trace(tmp_path)


@pytest.mark.parametrize("tensors", [[("x", 1.0)], {3: 1.0}, {None: 1.0}, "x", None])
def test_tensors_without_names_are_refused(tmp_path, tensors):
    capture = Capture(include=("x",))
    with (
        TraceWriter(tmp_path / "a.trace", label="a", dtype="float32", capture=capture) as trace,
        pytest.raises(TraceError, match=r"a.trace: step 1: .*give a mapping of names"),
    ):
        trace.write(1, tensors)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("given", ["matrix", "rows"])
def test_a_matrix_of_mostly_zero_rows_comes_back_in_every_floating_dtype(tmp_path, dtype, given):
    whole = np.zeros((9, 4), dtype)
    whole[3] = [1, -2, 0.5, -0.0]
    tensor = whole if given == "matrix" else Rows([3], whole[3:4], (9, 4))
    path = write(tmp_path / "a.trace", {1: {"w": tensor}})
    back = read(path)[1]["w"]
    assert (str(back.dtype), back.tobytes()) == (dtype, whole.tobytes())
    assert check_trace(path).faults == ()


def test_a_run_that_fails_leaves_an_incomplete_trace_that_opens(tmp_path):
    def fail_after_two_steps():
        with TraceWriter(tmp_path / "a.trace", label="a", dtype="float32") as trace:
            trace.write(1, {"x": 1})
            trace.write(2, {"x": 2})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail_after_two_steps()
    trace = open_trace(tmp_path / "a.trace")
    assert (trace.header.complete, trace.header.steps, trace.cut) == (False, None, False)
    assert read(tmp_path / "a.trace") == {1: {"x": 1}, 2: {"x": 2}}
    assert check_trace(tmp_path / "a.trace").faults == ()


def _unfinished(path):
    trace = TraceWriter(path, label="a", dtype="float32")
    trace.write(1, {"x": 1})
    trace.write(2, {"x": 2})
    trace.close(complete=False)
    return path


def test_half_a_last_line_is_passed_over_while_the_run_is_not_complete(tmp_path):
    path = _unfinished(tmp_path / "a.trace")
    whole = (path / "index.jsonl").read_bytes()
    second = whole.index(b"\n") + 1
    for end in range(second + 1, len(whole)):
        (path / "index.jsonl").write_bytes(whole[:end])
        trace = open_trace(path)
        assert (trace.steps, trace.cut) == ((1,), True)
        assert check_trace(path).faults == ()
    (path / "index.jsonl").unlink()  # killed before it was made
    assert open_trace(path).steps == ()


def test_half_a_last_line_or_a_line_less_is_an_error_once_the_run_is_complete(tmp_path):
    path = write(tmp_path / "a.trace", {1: {"x": 1}, 2: {"x": 2}})
    whole = (path / "index.jsonl").read_bytes()
    second = whole.index(b"\n") + 1
    for end in (*range(second - 1, len(whole)), 0):
        (path / "index.jsonl").write_bytes(whole[:end])
        with pytest.raises(TraceError, match=r"index\.jsonl"):
            open_trace(path)
    (path / "index.jsonl").write_bytes(whole + b'{"step":3')  # every step, and half of one more
    with pytest.raises(TraceError, match=r"index\.jsonl"):
        open_trace(path)
    (path / "index.jsonl").unlink()
    with pytest.raises(TraceError, match=r"index\.jsonl"):
        open_trace(path)


def test_a_diff_of_identical_traces_reads_no_tensor(tmp_path, monkeypatch):
    steps = {s: {"x": np.full(5, s), "y": np.full((2, 2), np.nan)} for s in (1, 2, 3)}
    a = write(tmp_path / "a.trace", steps)
    b = tmp_path / "b.trace"
    shutil.copytree(a, b)
    other = write(tmp_path / "other.trace", {**steps, 3: {**steps[3], "x": np.zeros(5, int)}})

    def refuse(path):
        raise AssertionError(f"{path} was opened")

    monkeypatch.setattr(reader, "TensorFile", refuse)
    found = harness.diff(a, b)
    assert (found.status, found.steps_compared, found.tensors_compared) == ("identical", 3, 6)
    with pytest.raises(AssertionError, match="step-00000003"):
        harness.diff(a, other)
