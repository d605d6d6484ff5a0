"""How much of a tensor is kept: levels, checkpoints, and what is never written twice."""

import base64
import json
import math
import os
from pathlib import Path

import msgspec
import numpy as np
import pytest
import safetensors.numpy
import xxhash
from test_trace_format import write

import harness
from harness.spec import Capture
from harness.trace import Rows, Timesteps, TraceError, TraceWriter, check_trace, open_trace
from harness.trace.statistics import describe, sketch

LEVELS = ["full", "stats", "hash"]


def step_of(step, **more):
    """A step as a run has it: 'params/w' and the state change, 'params/b' does not."""
    draw = np.random.default_rng(step)
    before = np.random.default_rng(step - 1).standard_normal((4, 7))
    return {
        "state/in/layer0/h": before if step > 1 else np.full((4, 7), 0.5),
        "forward/logits": draw.standard_normal((3, 5, 11)),
        "forward/loss": np.float32(draw.standard_normal()),
        "params/w": draw.standard_normal((6, 9)),
        "params/b": np.ones(30),
        "optimizer/w/m": draw.standard_normal((6, 9)),
        "state/out/layer0/h": np.random.default_rng(step).standard_normal((4, 7)),
        **more,
    }


def lines(path):
    return [json.loads(line) for line in (path / "index.jsonl").read_bytes().splitlines()]


def files(path):
    return sorted(p.name for p in path.glob("step-*"))


def change(path, edit):
    found = lines(path)
    edit(found)
    (path / "index.jsonl").write_text("".join(json.dumps(line) + "\n" for line in found))


@pytest.mark.parametrize("level", LEVELS)
def test_the_index_says_at_each_level_what_it_promises(tmp_path, level):
    steps = {1: step_of(1), 2: step_of(2)}
    path = write(tmp_path / "a.trace", steps, capture=Capture(level=level))
    trace = open_trace(path)
    assert (trace.header.level, trace.header.version) == (level, 4)
    for number, tensors in steps.items():
        step = trace.step(number)
        assert [entry.name for entry in step.entries] == list(tensors)
        for entry in step.entries:
            array = np.asarray(tensors[entry.name])
            whole = describe(entry.name, array)
            assert entry.identity == whole.identity
            assert step.holds(entry) == (level == "full")
            figures = [getattr(entry, name) for name in ("min", "max", "mean", "l2", "nan", "zero")]
            expected = [
                getattr(whole, name) for name in ("min", "max", "mean", "l2", "nan", "zero")
            ]
            assert figures == ([None] * 6 if level == "hash" else expected)
            if level == "stats":
                own = np.frombuffer(entry.sketch, "<f8")
                np.testing.assert_allclose(own, sketch(entry.name, array), rtol=1e-12)
            else:
                assert entry.sketch is None
    assert bool(files(path)) == (level == "full")
    assert [bool(line["bytes"]) for line in lines(path)] == [level == "full"] * 2
    assert check_trace(path) == harness.CheckResult(str(path), True, 2, ())


@pytest.mark.parametrize("level", ["stats", "hash"])
def test_what_is_not_kept_cannot_be_read_and_the_error_says_what_would_keep_it(tmp_path, level):
    path = write(tmp_path / "a.trace", {1: step_of(1)}, capture=Capture(level=level))
    step = open_trace(path).step(1)
    for ask in (step.read, step.view):
        with pytest.raises(TraceError, match=rf'params/w were not kept .*"{level}".*at level full'):
            ask(step.find("params/w"))
    assert step.names() == set()


@pytest.mark.parametrize("level", LEVELS)
def test_checkpoints_hold_what_a_run_starts_again_from_and_nothing_else(tmp_path, level):
    capture = Capture(level=level, checkpoint_every=3)
    steps = {step: step_of(step) for step in range(1, 8)}
    path = write(tmp_path / "a.trace", steps, capture=capture)
    kept = {"params/w", "params/b", "optimizer/w/m", "state/out/layer0/h"}
    trace = open_trace(path)
    for number, tensors in steps.items():
        step = trace.step(number)
        everything = set(tensors) if level == "full" else kept if number % 3 == 0 else set()
        assert step.names() == everything
        for entry in step.entries:
            if step.holds(entry):
                np.testing.assert_array_equal(step.read(entry), tensors[entry.name], strict=True)
    if level != "full":
        assert files(path) == ["step-00000003.safetensors", "step-00000006.safetensors"]
    assert check_trace(path).faults == ()


@pytest.mark.parametrize("level", LEVELS)
def test_a_checkpoint_between_the_traced_steps_is_traced_as_far_as_it_is_one(tmp_path, level):
    capture = Capture(level=level, checkpoint_every=5, every=4, last=10, exclude=("params/b",))
    with TraceWriter(tmp_path / "a.trace", label="a", dtype="float64", capture=capture) as writer:
        wanted = [step for step in range(1, 17) if writer.wants_step(step)]
        for step in range(1, 17):
            writer.write(step, step_of(step))
    assert wanted == [1, 5, 9, 10, 15]  # 5 is both
    trace = open_trace(tmp_path / "a.trace")
    assert list(trace.steps) == wanted
    kept = ["params/w", "optimizer/w/m", "state/out/layer0/h"]
    for step in trace.steps:
        names = [entry.name for entry in trace.step(step).entries]
        assert names == (kept if step in (10, 15) else [n for n in step_of(1) if n != "params/b"])
        assert trace.step(step).names() >= (set(kept) if step % 5 == 0 else set())
    assert check_trace(tmp_path / "a.trace").faults == ()


def documented_sketch(name, array):
    """As the format's page has it, in plain integers."""

    def number(n):
        x = (start + 0x9E3779B97F4A7C15 * n) % 2**64
        x = ((x ^ x >> 30) * 0xBF58476D1CE4E5B9) % 2**64
        x = ((x ^ x >> 27) * 0x94D049BB133111EB) % 2**64
        return x ^ x >> 31

    start = xxhash.xxh3_64_intdigest(f"{name} {list(array.shape)}".encode())
    sums = [0.0] * 64
    for i, value in enumerate(array.ravel().tolist()):
        k, j = divmod(i, 64)
        m, r = number(2 * k), number(2 * k + 1) % 64
        if math.isfinite(value):
            sums[(j + r) % 64] += -value if m >> j & 1 else value
    return sums


def test_hash_and_sketch_are_those_of_the_format_page(tmp_path):
    array = np.random.default_rng(1).standard_normal((30, 71)).astype(np.float32)
    array[3, 1:4] = np.nan, np.inf, -np.inf
    path = write(tmp_path / "a.trace", {1: {"grads/w": array}}, capture=Capture(level="stats"))
    (row,) = lines(path)[0]["tensors"]
    assert row["hash"] == xxhash.xxh3_128_hexdigest(array.tobytes())
    found = np.frombuffer(base64.b64decode(row["sketch"]), "<f8")
    np.testing.assert_allclose(found, documented_sketch("grads/w", array), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("level", LEVELS)
def test_the_reader_of_the_format_page_reads_every_kind_of_tensor(tmp_path, level, monkeypatch):
    capture = Capture(level=level, checkpoint_every=2)
    grads = {"grads/e": np.eye(9, 4), "update/clipped/e": np.eye(9, 4), "params/e": np.eye(9, 4)}
    steps = {step: step_of(step, **grads) for step in (1, 2, 3)}
    write(tmp_path / "traces/pt.trace", steps, capture=capture)
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parent.parent / "traces/README.md").read_text("utf-8")
    found = {}
    exec(page.split("```python\n")[1].split("\n\n\nfor line")[0], found)
    trace = open_trace("traces/pt.trace")
    for line in lines(trace.path):
        for row in line["tensors"]:
            array, step = found["load"](line["step"], row), trace.step(line["step"])
            entry = step.find(row["name"])
            assert (array is None) == (not step.holds(entry))
            if array is not None:
                np.testing.assert_array_equal(array, step.read(entry), strict=True)


def test_a_line_of_72_sketched_tensors_stays_under_100_kilobytes(tmp_path):
    draw = np.random.default_rng(1)
    tensors = {f"backward/layer{i}/gates": draw.normal(size=(20, 20, 800)) for i in range(72)}
    path = write(tmp_path / "a.trace", {12345: tensors}, capture=Capture(level="stats"))
    assert (path / "index.jsonl").stat().st_size <= 100_000


def test_a_tensor_that_did_not_change_is_stored_once_and_named_where_it_lies(tmp_path):
    path = write(tmp_path / "a.trace", {step: step_of(step) for step in range(1, 6)})
    for line in lines(path):
        step, places = line["step"], {t["name"]: t.get("same_as") for t in line["tensors"]}
        expected = {}
        if step > 1:
            expected["state/in/layer0/h"] = {"step": step - 1, "name": "state/out/layer0/h"}
            expected["params/b"] = {"step": 1, "name": "params/b"}  # never by way of another
        assert {name: place for name, place in places.items() if place} == expected
        stored = safetensors.numpy.load_file(path / f"step-{step:08d}.safetensors")
        assert set(stored) == set(places) - set(expected)
    trace = open_trace(path)
    for step in trace.steps:
        for entry in trace.step(step).entries:
            for array in (trace.step(step).read(entry), trace.step(step).view(entry)):
                np.testing.assert_array_equal(array, step_of(step)[entry.name], strict=True)
    assert check_trace(path).faults == ()


def test_equal_bits_of_another_dtype_shape_or_sign_are_stored_again(tmp_path):
    zeros = np.zeros((4, 30), np.float32)
    given = {
        "a": zeros[0],
        "b": zeros[0].astype(np.int32),
        "c": zeros[0].reshape(5, 6)[:, None],
        "d": -zeros[0],
        "e": np.zeros(30, np.float32),
        "small": np.zeros(16, np.float32),
        "small too": np.zeros(16, np.float32),
    }
    path = write(tmp_path / "a.trace", {1: given})
    places = {entry.name: entry.same_as for entry in open_trace(path).step(1).entries}
    assert {name for name, place in places.items() if place} == {"e"}
    assert places["e"].name == "a"


def test_the_writer_remembers_no_more_than_the_step_before(tmp_path):
    x, y = np.ones(40), np.zeros(40)
    path = write(tmp_path / "a.trace", {1: {"x": x}, 2: {"x": y}, 3: {"x": x}, 4: {"x": x}})
    places = [open_trace(path).step(step).find("x").same_as for step in (1, 2, 3, 4)]
    assert [place and place.step for place in places] == [None, None, None, 3]


def test_a_step_that_could_not_be_written_is_referred_to_by_none(tmp_path, monkeypatch):
    def refuse(*args):
        raise OSError("full")

    with TraceWriter(tmp_path / "a.trace", label="a", dtype="float64") as trace:
        trace.write(1, {"x": np.ones(40)})
        with monkeypatch.context() as patch:
            patch.setattr("harness.trace.writer.os.replace", refuse)
            with pytest.raises(TraceError):
                trace.write(2, {"x": np.zeros(40)})
        trace.write(2, {"x": np.zeros(40), "y": np.ones(40)})
    assert check_trace(tmp_path / "a.trace").faults == ()
    x, y = open_trace(tmp_path / "a.trace").step(2).entries
    assert (x.same_as, y.same_as.step) == (None, 1)


def test_a_step_in_which_nothing_changed_has_no_file(tmp_path):
    same = {"params/w": np.arange(20.0), "params/v": np.arange(99)}
    path = write(tmp_path / "a.trace", {1: same, 2: same, 3: {}})
    assert files(path) == ["step-00000001.safetensors"]
    assert [line["bytes"] == 0 for line in lines(path)] == [False, True, True]
    step = open_trace(path).step(2)
    np.testing.assert_array_equal(step.view(step.find("params/v")), same["params/v"])
    assert check_trace(path).faults == ()


MATRICES = {
    "rows": ({2: 1.5, 7: -2.0}, "rows"),
    "signed zeros are no zeros": ({1: -0.0, 8: np.nan}, "rows"),
    "no row": ({}, "rows"),
    "just under a half": ({0: 1, 3: 1, 5: 1, 8: 1}, "rows"),
    "just over a half": ({0: 1, 3: 1, 5: 1, 7: 1, 8: 1}, "whole"),
}


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize(("rows", "stored"), MATRICES.values(), ids=MATRICES)
def test_a_matrix_comes_back_bit_for_bit_without_its_rows_of_zeros(tmp_path, rows, stored, dtype):
    matrix = np.zeros((9, 5), dtype)
    for row, value in rows.items():
        matrix[row, 3] = value
    path = write(tmp_path / "a.trace", {1: {"grads/e": matrix}})
    step = open_trace(path).step(1)
    (entry,) = step.entries
    assert (entry.stored, entry.shape) == (stored, (9, 5))
    assert msgspec.structs.replace(entry, stored="whole") == describe("grads/e", matrix)
    for array in (step.read(entry), step.view(entry)):
        assert (array.dtype, array.shape, array.tobytes()) == (dtype, (9, 5), matrix.tobytes())
    found = safetensors.numpy.load_file(path / "step-00000001.safetensors")
    if stored == "rows":
        assert found["grads/e//rows"].tolist() == sorted(rows)
        assert found["grads/e//values"].tobytes() == matrix[sorted(rows)].tobytes()
    assert check_trace(path).faults == ()


@pytest.mark.parametrize(
    "array",
    [
        *(np.zeros((9, 5), int), np.zeros((9, 5, 1)), np.zeros(9), np.zeros((0, 5))),
        *(np.zeros((5, 0)), np.zeros((9, 5), bool), np.eye(9)),
    ],
    ids=lambda array: f"{array.dtype}{array.shape}",
)
def test_only_floating_point_matrices_with_rows_of_zeros_are_stored_as_rows(tmp_path, array):
    path = write(tmp_path / "a.trace", {1: {"x": array}})
    step = open_trace(path).step(1)
    assert step.find("x").stored == "whole"
    np.testing.assert_array_equal(step.read(step.find("x")), array, strict=True)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("height", [40, 7])
def test_rows_handed_over_are_the_matrix_that_they_stand_for(tmp_path, level, height):
    values = np.random.default_rng(1).standard_normal((5, 6)).astype(np.float32)
    values[1] = values[4] = 0  # padding, of rows that are there and of one that is not
    rows = np.array([6, 2, 0, 3, 6])
    matrix = np.zeros((height, 6), np.float32)
    matrix[[6, 0, 3]] = values[[0, 2, 3]]
    given = Rows(rows, values, (height, 6))
    assert given.dense().tobytes() == matrix.tobytes()
    for name, tensor in (("a", given), ("b", matrix)):
        path = tmp_path / f"{name}.trace"
        write(path, {1: {"grads/e": tensor}}, capture=Capture(level=level))
    for file in ("index.jsonl", *files(tmp_path / "b.trace")):
        assert (tmp_path / "a.trace" / file).read_bytes() == (
            tmp_path / "b.trace" / file
        ).read_bytes()
    assert check_trace(tmp_path / "a.trace").faults == ()


@pytest.mark.parametrize("level", LEVELS)
def test_timesteps_handed_over_are_stacked_along_the_second_axis(tmp_path, level):
    whole = np.random.default_rng(1).standard_normal((3, 5, 4))
    parts = Timesteps([whole[:, t] for t in range(5)])
    for name, tensor in (("a", parts), ("b", whole)):
        write(tmp_path / f"{name}.trace", {1: {"h": tensor}}, capture=Capture(level=level))
    assert lines(tmp_path / "a.trace") == lines(tmp_path / "b.trace")
    assert check_trace(tmp_path / "a.trace").faults == ()


@pytest.mark.parametrize(
    ("tensor", "why"),
    [
        (Rows(np.array([9]), np.ones((1, 3)), (9, 3)), "outside 0 to 8"),
        (Rows(np.array([-1]), np.ones((1, 3)), (9, 3)), "outside 0 to 8"),
        (Rows(np.array([1.0]), np.ones((1, 3)), (9, 3)), "float64"),
        (Rows(np.array([1]), np.ones((1, 4)), (9, 3)), "1 rows of 3"),
        (Rows(np.array([1]), np.ones((2, 3)), (9, 3)), "1 rows of 3"),
        (Rows(np.array([1]), np.ones((1, 3), complex), (9, 3)), "cannot be stored"),
        (Timesteps([]), "batch axis"),
        (Timesteps([np.float32(1), np.float32(2)]), "batch axis"),
        (Timesteps([np.zeros((2, 3)), np.zeros((3, 2))]), "more than one"),
        (Timesteps([np.zeros(2), np.zeros(2, np.float32)]), "more than one"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_parts_that_make_no_tensor_are_refused(tmp_path, tensor, why):
    with TraceWriter(tmp_path / "a.trace", label="a", dtype="float64") as trace:
        with pytest.raises(TraceError, match=why):
            trace.write(1, {"grads/e": tensor})
        trace.write(1, {"grads/e": 1.0})
    assert open_trace(tmp_path / "a.trace").steps == (1,)


def test_a_view_lies_in_the_file_and_cannot_be_written_to(tmp_path):
    path = write(tmp_path / "a.trace", {1: step_of(1, rows=np.zeros((9, 4)))})
    step = open_trace(path).step(1)
    for entry in step.entries:
        view = step.view(entry)
        with pytest.raises(ValueError, match="read-only"):
            view[...] = 0
        assert view.flags.owndata is False or entry.stored == "rows"
        assert view.flags.aligned
        step.read(entry)[...] = 0  # one's own


def test_a_view_is_not_checked_and_a_read_is(tmp_path):
    path = write(tmp_path / "a.trace", {1: {"x": np.arange(30)}})
    whole = (path / "step-00000001.safetensors").read_bytes()
    (path / "step-00000001.safetensors").write_bytes(whole[:-1] + b"\x01")
    step = open_trace(path).step(1)
    assert step.view(step.find("x"))[-1] != 29
    with pytest.raises(TraceError, match="hash"):
        step.read(step.find("x"))


@pytest.mark.parametrize(
    ("level", "edit", "why"),
    [
        ("stats", lambda t: t.update(l2=1e9), "statistics in the index are not its own"),
        ("stats", lambda t: t.update(sketch=base64.b64encode(bytes(512)).decode()), "its sketch"),
        ("hash", lambda t: t.update(hash="0" * 32), "does not match its hash"),
    ],
)
def test_a_check_finds_what_is_wrong_with_a_checkpoint(tmp_path, level, edit, why):
    capture = Capture(level=level, checkpoint_every=2)
    path = write(tmp_path / "a.trace", {1: step_of(1), 2: step_of(2)}, capture=capture)
    assert check_trace(path).faults == ()
    change(path, lambda found: edit(found[1]["tensors"][3]))
    (fault,) = check_trace(path).faults
    assert "params/w" in fault
    assert why in fault


@pytest.mark.parametrize(
    "field", [{"nan": -1}, {"zero": 55}, {"min": 9e9}, {"l2": -1}, {"max": None}]
)
def test_a_check_finds_statistics_that_no_tensor_has_where_it_is_not_kept(tmp_path, field):
    path = write(tmp_path / "a.trace", {1: step_of(1)}, capture=Capture(level="stats"))
    change(path, lambda found: found[0]["tensors"][3].update(field))
    (fault,) = check_trace(path).faults
    assert "params/w: its statistics in the index are those of no tensor" in fault


def test_a_trace_of_any_level_is_replaced_and_removed(tmp_path):
    for level in LEVELS:
        write(
            tmp_path / "a.trace", {2: step_of(2)}, capture=Capture(level=level, checkpoint_every=2)
        )
    harness.trace.remove_trace(tmp_path / "a.trace")
    assert os.listdir(tmp_path) == []
