"""Traces that were damaged, or made to do harm: an error that says so, never anything else."""

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file
from test_trace_format import read, write

import harness
from harness.trace import TraceError, check_trace, open_trace

EXAMPLES = 100  # of each property, here; a nightly run may take more
FILES = ["trace.json", "index.jsonl", "step-00000002.safetensors"]
STEP = "step-00000002.safetensors"


def make(path):
    draw = np.random.default_rng(3)
    spec = {"model": {"hidden_size": 11}, "note": "a b"}
    steps = {
        s: {n: draw.standard_normal((2, 3)) for n in ("grads/x", "grads/y")} for s in (1, 2, 3)
    }
    for tensors in steps.values():
        tensors["none"] = np.zeros((0, 4), np.float32)
    return write(path, steps, spec=spec)


@pytest.fixture
def trace(tmp_path, monkeypatch):
    """A sound trace three folders deep, with a look afterwards at what was written beside it."""
    path = make(tmp_path / "deep/er/a.trace")
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    yield path
    beside = {p.relative_to(tmp_path) for p in tmp_path.rglob("*") if path not in (p, *p.parents)}
    assert {str(p) for p in beside} == {"cwd", "deep", "deep/er"}


def expect_refused(path, *words):
    """Reading all of the trace and checking it both fail, in one printable line with `words`."""
    with pytest.raises(TraceError) as error:
        read(path)
    said = [str(error.value)]
    try:
        said += check_trace(path).faults
        assert len(said) > 1
    except TraceError as again:
        said += [str(again)]
    for text in said:
        assert text.isprintable()
        assert len(text) < len(str(path)) + 600
    assert all(word in said[0] for word in (str(path), *words)), said[0]


def edit(path, change, line=1):
    """Change the JSON of one line of the index, or of the header (line None)."""
    file = path / ("index.jsonl" if line is not None else "trace.json")
    lines = file.read_bytes().splitlines() if line is not None else [file.read_bytes()]
    tree = json.loads(lines[line or 0])
    change(tree)
    lines[line or 0] = json.dumps(tree).encode()
    file.write_bytes(b"".join(text + b"\n" for text in lines))


def put_step(path, header, data=b""):
    """Another file for step 2, whose size the index knows."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    (path / STEP).write_bytes(struct.pack("<Q", len(text)) + text + data)
    edit(path, lambda line: line.update(bytes=len(text) + len(data) + 8))


@pytest.mark.parametrize("name", FILES)
def test_a_file_cut_at_any_place_is_refused(trace, name):
    whole = (trace / name).read_bytes()
    for end in range(len(whole) - 2, 0, -3):  # the very last byte may be white space
        (trace / name).write_bytes(whole[:end])
        expect_refused(trace, name)


@pytest.mark.parametrize("name", FILES)
def test_a_folder_or_nothing_in_the_place_of_a_file_is_refused(trace, name):
    (trace / name).unlink()
    expect_refused(trace, name)
    (trace / name).mkdir()
    expect_refused(trace, name)


@pytest.mark.parametrize(
    "order", [(1, 0, 2), (0, 2, 1), (2, 1, 0), (1, 2, 0), (2, 0, 1), (0, 1, 1), (0, 0, 1)]
)
def test_index_lines_in_another_order_are_refused(trace, order):
    lines = (trace / "index.jsonl").read_bytes().splitlines(keepends=True)
    (trace / "index.jsonl").write_bytes(b"".join(lines[i] for i in order))
    expect_refused(trace, "index.jsonl, line", "reordered")


def test_swapped_step_files_are_refused(trace):
    one, two = trace / "step-00000001.safetensors", trace / STEP
    assert one.stat().st_size == two.stat().st_size
    a, b = one.read_bytes(), two.read_bytes()
    one.write_bytes(b)
    two.write_bytes(a)
    expect_refused(trace, "step-00000001", "grads/x", "hash")


def test_swapped_tensors_are_refused(trace):
    was = read(trace)[2]
    save_file({**was, "grads/x": was["grads/y"], "grads/y": was["grads/x"]}, trace / STEP)
    expect_refused(trace, STEP, "grads/x", "hash")


def test_a_tensor_that_is_not_in_the_index_is_found_by_a_check(trace):
    save_file({**read(trace)[2], "\x1b[31m": np.ones(3)}, trace / STEP)
    edit(trace, lambda line: line.update(bytes=(trace / STEP).stat().st_size))
    (fault,) = check_trace(trace).faults
    assert STEP in fault
    assert "not in the index" in fault
    assert fault.isprintable()


@pytest.mark.parametrize("length", [2**60, 2**63, 2**64 - 1, 17 << 20, 10_000])
def test_a_tensor_file_that_claims_a_huge_header_is_refused(trace, length):
    whole = (trace / STEP).read_bytes()
    (trace / STEP).write_bytes(struct.pack("<Q", length) + whole[8:])
    expect_refused(trace, STEP, f"a header of {length} bytes in a file of {len(whole)}")


@pytest.mark.parametrize(
    "field",
    [
        *({"shape": [2**60]}, {"shape": [2**62, 2**62]}, {"shape": [2**70]}, {"shape": [-1]}),
        *({"data_offsets": [0, 2**62]}, {"data_offsets": [8, 0]}, {"dtype": "X\x1b[2J" * 999}),
        *({"dtype": "F8_E5M2"}, {"dtype": "BF16"}, {"dtype": "C64"}, {"dtype": "F32"}, {}),
        *({"shape": [6]}, {"shape": [3, 2]}, {"dtype": "I64"}, {"dtype": "U64"}),
    ],
    ids=str,
)
def test_a_tensor_file_that_claims_anything_but_the_index_is_refused(trace, field):
    row = {"dtype": "F64", "shape": [2, 3], "data_offsets": [0, 48], **field}
    if row["dtype"] in ("F8_E5M2", "BF16", "F32"):  # the elements that 48 bytes hold
        row["shape"] = [{"F8_E5M2": 48, "BF16": 24, "F32": 12}[row["dtype"]]]
        edit(trace, lambda line: line["tensors"][0].update(shape=row["shape"]))
    put_step(trace, {"grads/x": row}, bytes(48))
    expect_refused(trace, STEP)


@pytest.mark.parametrize("text", [b"[" * 99_999, b'{"a":' * 99_999, b"", b"{}", b"null", b"\xff"])
def test_a_tensor_file_whose_header_is_no_header_is_refused(trace, text):
    put_step(trace, text, bytes(8))
    expect_refused(trace, STEP)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        *(("name", bad, ["step 2"]) for bad in ("../../x", "/etc/passwd", "", "a/../b", 3, None)),
        ("name", "n" * 9999, ["step 2", "at most 255"]),
        ("name", "\x1b[2Jgone\u202e", ["step 2", "\\x1b[2Jgone\\u202e"]),
        ("name", "grads/y", ["step 2", "grads/y", "twice"]),
        ("name", "grads/z", [STEP, "grads/z"]),
        *(("shape", bad, ["step 2"]) for bad in ([-2, 3], [2.0, 3], ["2"], "23", None, [True])),
        *(("shape", bad, ["grads/x"]) for bad in ([2**70] * 99, [3, 2], [6], [], [2, 3, 1])),
        *(
            ("dtype", bad, ["grads/x", "no dtype"])
            for bad in ("object", "O", "complex64", "\x1b[2J" * 999)
        ),
        *(("dtype", bad, ["grads/x"]) for bad in ("float32", "int64")),
        *(("hash", bad, ["grads/x"]) for bad in ("", "0" * 32, "\x1b[2J")),
        *(("hash", bad, ["step 2"]) for bad in (0, None, [])),
        *(("nan", bad, ["step 2"]) for bad in (0.5, "0", None)),
        *(("min", bad, ["step 2"]) for bad in ("0", [], True)),
        ("file", "../../etc/passwd", ["step 2", "file"]),
        ("\x1b[2J", "", ["step 2"]),
    ],
)
def test_an_index_entry_that_is_wrong_or_unsafe_is_refused(trace, field, value, words):
    edit(trace, lambda line: line["tensors"][0].update({field: value}))
    expect_refused(trace, *words)


@pytest.mark.parametrize("field", ["min", "max", "mean", "l2", "nan", "inf", "zero"])
@pytest.mark.parametrize("value", [-1, 7, 2**70, 1e300, None])
def test_wrong_statistics_are_found_by_a_check(trace, field, value):
    if field in ("nan", "inf", "zero") and not isinstance(value, int):
        value = 1
    edit(trace, lambda line: line["tensors"][0].update({field: value}))
    (fault,) = check_trace(trace).faults
    assert "grads/x: its statistics" in fault


@pytest.mark.parametrize(("field", "value"), [("mean", 0), ("l2", None), ("min", 0), ("max", 0)])
def test_statistics_of_nothing_are_found_by_a_check(trace, field, value):
    edit(trace, lambda line: line["tensors"][2].update({field: value}))
    (fault,) = check_trace(trace).faults
    assert "none: its statistics" in fault


@pytest.mark.parametrize("shape", [[2**62] * 65, [1] * 65, [0, 2**62, 2**62]], ids=str)
def test_a_tensor_file_of_shapes_that_no_array_has_is_refused(trace, shape):
    put_step(trace, {"grads/x": {"dtype": "F64", "shape": shape, "data_offsets": [0, 0]}})
    edit(trace, lambda line: line["tensors"][0].update(shape=shape))
    expect_refused(trace, "grads/x")


def test_tensors_that_share_bytes_or_leave_some_out_are_refused(trace):
    row = {"dtype": "F64", "shape": [2, 3], "data_offsets": [0, 48]}
    for start, size in ((0, 48), (24, 72), (56, 104), (48, 97)):
        other = {**row, "data_offsets": [start, start + 48]}
        put_step(trace, {"grads/x": row, "grads/y": other}, bytes(size))
        expect_refused(trace, STEP, "not a readable safetensors file")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("step", bad) for bad in (0, -1, 2**70, 10**4000, 7, 1, 2.0, "2", None, True)),
        *(("bytes", bad) for bad in (0, -1, 2**70, 1, 2.5, None)),
        *(("tensors", bad) for bad in (None, {}, [1], [[]])),
        ("file", "../../etc/passwd"),
    ],
    ids=lambda value: str(value)[:9],
)
def test_an_index_line_out_of_range_is_refused(trace, field, value):
    edit(trace, lambda line: line.update({field: value}))
    expect_refused(trace)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        *(("format", bad, ["format"]) for bad in ("other", "\x1b[2J" * 999, 1, None)),
        *(("version", bad, ["version"]) for bad in (0, 5, 2, -1, 10**4000, "2", 2.0, None)),
        *(("hash", bad, ["hash"]) for bad in ("md5", "\x1b[2J" * 999, None)),
        *(("level", bad, ["level"]) for bad in ("most", None, 1)),
        ("level", "\x1b[2J" * 999, []),
        *(("level", bad, ["step 1"]) for bad in ("stats", "hash")),
        *(("steps", bad, ["3"]) for bad in (2, 4, -3, 10**4000, None)),
        *(("complete", bad, []) for bad in (1, "true", None)),
        *(("capture", bad, []) for bad in (None, {"every": 0}, {"file": "x"}, {"first": -1})),
        *(("digests", bad, []) for bad in ({"tokens": 1}, [], {"a": {}})),
        *(("program", bad, []) for bad in (None, {}, "x", {"kind": "other"}, {"kind": "script"})),
        *((bad, "", []) for bad in ("\x1b[2J", "file")),
    ],
)
def test_a_header_that_is_wrong_is_refused(trace, field, value, words):
    edit(trace, lambda header: header.update({field: value}), line=None)
    expect_refused(trace, *words)


@pytest.mark.parametrize("bomb", ["[" * 10**5 + "]" * 10**5, '{"a":' * 10**5 + "1" + "}" * 10**5])
@pytest.mark.parametrize("field", ["spec", "unknown", "tensors", "step", "format"])
def test_nesting_without_end_is_refused(trace, field, bomb):
    for name, mark in (("trace.json", b"{"), ("index.jsonl", b'{"step":2,')):
        whole = (trace / name).read_bytes()
        assert mark in whole
        spiked = whole.replace(mark, mark + f'"{field}":{bomb},'.encode(), 1)
        (trace / name).write_bytes(spiked)
        expect_refused(trace, name)
        (trace / name).write_bytes(whole)


@pytest.mark.parametrize("kind", [dict, list])
def test_a_spec_too_deep_to_walk_is_refused_and_a_deep_one_is_not(trace, kind):
    def nested(levels):
        tree = 1
        for _ in range(levels):
            tree = {"a": tree} if kind is dict else [tree]
        return {"spec": {"a": tree}}

    edit(trace, lambda header: header.update(nested(50)), line=None)
    assert harness.diff(trace, trace).status == "identical"
    edit(trace, lambda header: header.update(nested(900)), line=None)
    expect_refused(trace, "trace.json", "spec")


def test_files_that_never_end_are_not_read_to_their_end(trace):
    os.truncate(trace / "index.jsonl", 70 << 20)  # no disk is used: one line of zeros
    expect_refused(trace, "index.jsonl", "line of over")
    os.truncate(trace / "trace.json", 1 << 40)
    expect_refused(trace, "trace.json", "over 16777216 bytes")


@pytest.mark.parametrize("path", ["nothing", "file", "a\x00b"])
def test_what_is_no_folder_is_no_trace(tmp_path, path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TraceError, match="no such trace"):
        open_trace(tmp_path / path)


EDITS = st.tuples(
    st.sampled_from(["flip", "cut", "insert", "delete", "overwrite"]),
    st.integers(0, 2**16),
    st.binary(min_size=1, max_size=32),
)


def damaged(whole, edit):
    kind, where, data = edit
    at = where % len(whole)
    if kind == "flip":
        return whole[:at] + bytes([whole[at] ^ (data[0] or 1)]) + whole[at + 1 :]
    if kind == "cut":
        return whole[:at]
    if kind == "insert":
        return whole[:at] + data + whole[at:]
    return whole[:at] + (data if kind == "overwrite" else b"") + whole[at + len(data) :]


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    """A trace to damage again and again, its files as they were, what it holds, its entries."""
    path = make(tmp_path_factory.mktemp("workshop") / "a.trace")
    entries = [open_trace(path).step(s).entries for s in (1, 2, 3)]
    return path, {name: (path / name).read_bytes() for name in FILES}, read(path), entries


def same(found, truth):
    assert list(found) == list(truth)
    for step, tensors in truth.items():
        assert list(found[step]) == list(tensors)
        for name, array in tensors.items():
            np.testing.assert_array_equal(found[step][name], array, strict=True)


def sums_left_out(entries):
    return [[msgspec.structs.replace(e, mean=0.0, l2=0.0) for e in step] for step in entries]


@pytest.mark.parametrize("name", FILES)
@settings(max_examples=EXAMPLES, deadline=None)
@given(edit=EDITS)
def test_a_damaged_trace_gives_the_truth_or_an_error(workshop, name, edit):
    path, files, truth, entries = workshop
    for other in FILES:
        (path / other).write_bytes(files[other])
    (path / name).write_bytes(damaged(files[name], edit))
    try:
        same(read(path), truth)
        if not check_trace(path).faults:
            found = [open_trace(path).step(s).entries for s in (1, 2, 3)]
            assert sums_left_out(found) == sums_left_out(entries)
    except TraceError:
        expect_refused(path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.just("step"), inner),
).map(json.dumps)


@pytest.mark.parametrize("name", FILES)
@settings(max_examples=EXAMPLES, deadline=None)
@given(text=st.binary() | st.text().map(str.encode) | JSON.map(str.encode))
def test_anything_at_all_in_a_file_of_a_trace_is_an_error(workshop, name, text):
    path, files, _, _ = workshop
    for other in FILES:
        (path / other).write_bytes(files[other])
    if name == STEP:
        put_step(path, text, bytes(96))
    else:
        (path / name).write_bytes(text)
    expect_refused(path, name)


OPEN = """
import resource, sys
from harness.trace import TraceError, open_trace
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (500 << 20),) * 2)
try:
    [list(open_trace(sys.argv[1]).step(step).tensors()) for step in (1, 2, 3)]
except TraceError as error:
    print(error)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc to bound memory")
@pytest.mark.parametrize("name", [*FILES, "tensor"])
def test_a_file_of_terabytes_and_a_tensor_beyond_memory_are_refused(trace, name):
    if name == "tensor":  # the file can be mapped, and the tensor not be copied out of it
        size, name = 300 << 20, STEP
        put_step(trace, {"grads/x": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}})
        os.truncate(trace / STEP, (trace / STEP).stat().st_size + size)
        edit(trace, lambda line: line["tensors"][0].update(dtype="uint8", shape=[size]))
    else:
        os.truncate(trace / name, 1 << 42)  # no disk is used
    if name == STEP:
        edit(trace, lambda line: line.update(bytes=(trace / STEP).stat().st_size))
    command = [sys.executable, "-c", OPEN, trace]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (0, "")
    assert name in done.stdout


def test_a_header_cannot_send_escape_codes_to_the_terminal(tmp_path):
    spec = {"\x1b[31mkey": {"inner": ["\x1b]0;title\x07"]}, "n": 1}
    with harness.TraceWriter(
        tmp_path / "a.trace", label="\x1b[2J", dtype="float32", spec=spec
    ) as trace:
        trace.write(1, {"x": np.float32(1)})
    header = open_trace(tmp_path / "a.trace").header
    assert header.label == "?[2J"
    assert header.spec == {"?[31mkey": {"inner": ["?]0;title?"]}, "n": 1}
