"""What an index may say of where elements lie, and how much of them there is: hostile versions."""

import numpy as np
import pytest
from safetensors.numpy import save_file
from test_hostile_files import STEP, edit, expect_refused, make
from test_trace_format import write

from harness.spec import Capture
from harness.trace import TraceError, check_trace, open_trace

HERE, THERE = {"step": 2, "name": "grads/x"}, {"step": 1, "name": "grads/x"}


@pytest.mark.parametrize(
    ("place", "words"),
    [
        *(({"step": step, "name": "grads/x"}, ["step 2", "grads/x"]) for step in (7, 2**62, 3)),
        *(({"step": step, "name": "grads/x"}, ["step 2"]) for step in (0, -1, 2**70, "1", None)),
        *((place, ["step 2"]) for place in ({}, [1, "grads/x"], 1, {**THERE, "file": "/x"})),
        (HERE, ["grads/x", "no such tensor comes before it"]),  # itself
        ({"step": 2, "name": "grads/y"}, ["grads/x", "no such tensor comes before it"]),  # later
        *(({"step": 1, "name": n}, ["grads/x"]) for n in ("", "../x", "\x1b[2J" * 999, "nothing")),
        ({"step": 1, "name": "none"}, ["grads/x", "another tensor"]),  # of another shape
        (THERE, ["grads/x", "another tensor"]),  # of another hash
    ],
)
def test_a_reference_to_anything_but_an_equal_earlier_tensor_is_refused(tmp_path, place, words):
    path = make(tmp_path / "a.trace")
    edit(path, lambda line: line["tensors"][0].update(same_as=place))
    expect_refused(path, *words)


def test_references_by_way_of_another_and_in_a_circle_are_refused(tmp_path):
    same = {"grads/x": np.arange(20.0)}
    path = write(tmp_path / "a.trace", {1: same, 2: same, 3: same})
    edit(path, lambda line: line["tensors"][0]["same_as"].update(step=2), line=2)
    expect_refused(path, "step 3", "grads/x", "does not lie there")
    edit(path, lambda line: line["tensors"][0]["same_as"].update(step=1), line=2)
    assert check_trace(path).faults == ()
    edit(path, lambda line: line["tensors"][0].update(same_as={"step": 3, "name": "grads/x"}), 0)
    expect_refused(path, "step 1", "no earlier step")


def test_a_reference_into_a_file_that_is_gone_or_damaged_is_refused(tmp_path):
    same = {"grads/x": np.arange(20.0)}
    path = write(tmp_path / "a.trace", {1: same, 2: same})
    file = path / "step-00000001.safetensors"
    whole = file.read_bytes()
    for bad in (whole[:-8], whole[:-1] + b"\x01", b""):
        file.write_bytes(bad)
        with pytest.raises(TraceError, match=file.name):
            open_trace(path).step(2).read(open_trace(path).step(2).find("grads/x"))
        assert len(check_trace(path).faults) == 2
    file.unlink()
    with pytest.raises(TraceError, match="gone"):
        open_trace(path).step(2).view(open_trace(path).step(2).find("grads/x"))


@pytest.mark.parametrize(
    "numbers",
    [
        *([0, 9], [-1, 3], [3, 1], [3, 3], [-(2**63), 2**63 - 1], [3], [1, 3, 4]),
        *([0.0, 1.0], [[1, 3]], [True, False]),
    ],
    ids=str,
)
def test_row_numbers_that_are_none_of_the_matrix_are_refused(tmp_path, numbers):
    matrix = np.zeros((9, 3))
    matrix[[1, 3]] = 1.0
    path = write(tmp_path / "a.trace", {1: {"x": 1.0}, 2: {"grads/x": matrix}})
    save_file({"grads/x//rows": np.array(numbers), "grads/x//values": matrix[[1, 3]]}, path / STEP)
    edit(path, lambda line: line.update(bytes=(path / STEP).stat().st_size))
    expect_refused(path, STEP, "grads/x")
    with pytest.raises(TraceError, match="grads/x"):
        open_trace(path).step(2).view(open_trace(path).step(2).entries[0])


@pytest.mark.parametrize(
    "field",
    [
        *({"shape": [2**62, 2**62]}, {"shape": [2**50, 3]}, {"shape": [2**32, 3]}, {"shape": [9]}),
        *({"shape": [9, 3, 1]}, {"dtype": "int64"}, {"dtype": "float32"}, {"shape": [3, 9]}),
        *({"stored": "columns"}, {"stored": 1}, {"stored": None}, {"stored": "whole"}),
    ],
    ids=str,
)
def test_a_matrix_of_rows_that_claims_anything_else_is_refused(tmp_path, field):
    matrix = np.zeros((9, 3))
    matrix[[1, 3]] = 1.0
    path = write(tmp_path / "a.trace", {1: {"x": 1.0}, 2: {"grads/x": matrix}})
    edit(path, lambda line: line["tensors"][0].update(field))
    expect_refused(path, "grads/x" if field.get("stored", "whole") == "whole" else "step 2")


def test_a_matrix_of_rows_too_large_to_be_made_is_refused_before_it_is(tmp_path):
    path = write(tmp_path / "a.trace", {1: {"x": 1.0}, 2: {"grads/x": np.eye(9, 4)}})
    edit(path, lambda line: line["tensors"][0].update(shape=[2**29, 4]))  # just 16 GiB
    assert open_trace(path).entry(2).tensors[0].size == 2**31
    edit(path, lambda line: line["tensors"][0].update(shape=[2**29 + 1, 4]))
    expect_refused(path, "step 2", "grads/x", "is not stored as rows")


@pytest.mark.parametrize(
    ("level", "field", "words"),
    [
        *(("stats", {"sketch": bad}, ["grads/x", "bytes"]) for bad in (None, "", "AAAA")),
        ("stats", {"sketch": "A" * 684}, ["grads/x", "513 bytes"]),
        *(("stats", {"sketch": bad}, ["step 2"]) for bad in ("\x1b", "A", 3, [0.0] * 64)),
        *(("stats", {count: None}, ["grads/x", "counts"]) for count in ("nan", "inf", "zero")),
        ("hash", {"nan": 0}, ["grads/x", "counts"]),
        ("hash", {"nan": 0, "inf": 0, "zero": 0}, ["grads/x", "counts"]),
        ("hash", {"sketch": "AAAA"}, ["grads/x", "3 bytes"]),
        *((level, {"stored": "whole"}, ["grads/x", "0 bytes"]) for level in ("stats", "hash")),
        *((level, {"same_as": THERE}, ["grads/x", "not stored"]) for level in ("stats", "hash")),
        *((level, {"hash": "x" * 32}, ["grads/x", "no hash"]) for level in ("stats", "hash")),
    ],
)
def test_an_entry_of_another_level_is_refused(tmp_path, level, field, words):
    capture = Capture(level=level)
    steps = {1: {"grads/x": np.ones(9)}, 2: {"grads/x": np.zeros(9)}}
    path = write(tmp_path / "a.trace", steps, capture=capture)
    assert check_trace(path).faults == ()
    edit(path, lambda line: line["tensors"][0].update(field))
    (fault,) = check_trace(path).faults
    assert all(word in fault for word in (str(path), *words)), fault
    with pytest.raises(TraceError) as error:
        open_trace(path).step(2)
    assert str(error.value) == fault
    assert fault.isprintable()
