"""Weights that were damaged, or made to do harm: an error that says so, never anything else."""

import io
import json
import os
import pickle
import struct
import subprocess
import sys
import warnings
import zipfile
import zlib
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from test_hostile_files import EDITS, EXAMPLES, damaged

from harness.data import weights
from harness.data.weights import WeightsError
from harness.spec import ModelSpec

MODEL = ModelSpec(vocab_size=5, embed_size=2, hidden_size=3, num_layers=1)
TRUE = weights.draw(MODEL, 1)
SHAPE = (3, 5)  # of softmax_w, the array that the tests spoil
KINDS = ["stored.npz", "deflated.npz", "w.safetensors"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder to put files in, with a look afterwards at what was written beside it."""
    for name in ("deep", "cwd"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    yield tmp_path / "deep"
    assert sorted(os.listdir(tmp_path)) == ["cwd", "deep"]
    assert os.listdir(tmp_path / "cwd") == []


def make(folder, kind, arrays=TRUE):
    path = folder / kind
    np.savez_compressed(path, **arrays) if kind == "deflated.npz" else weights.save(arrays, path)
    return path


def expect_refused(path, *words):
    """Every way to read the file fails with one printable, short line that has `words`."""
    for call in (weights.load, weights.read_arrays, partial(weights.load, model=MODEL)):
        with pytest.raises(WeightsError) as error:
            call(path)
        text = str(error.value)
        assert text.isprintable()
        assert len(text) < len(str(path)) + 600
        assert all(word in text for word in (str(path), *words)), text


def npy(array, **options):
    file = io.BytesIO()
    np.lib.format.write_array(file, np.asanyarray(array), **options)
    return file.getvalue()


def raw_npy(header, data=b"", version=1):
    text = header.encode() + b"\n"
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H", len(text)) + text + data


def claim(descr="'<f4'", shape="(3, 5)", data=bytes(60), version=1):
    return raw_npy(f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}", data, version)


def put(path, change, **options):
    """A .npz of true members with `change`: name to bytes, or to None to leave it out."""
    members = {f"{name}.npy": npy(array) for name, array in TRUE.items()} | change
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, data in members.items():
            if data is not None:
                archive.writestr(name, data)
    return path


def test_what_the_tests_spoil_is_sound_before(here):
    for path in (*(make(here, kind) for kind in KINDS), put(here / "put.npz", {})):
        found = weights.load(path)
        assert list(found) == list(TRUE)
        for name, array in TRUE.items():
            np.testing.assert_array_equal(found[name], array, strict=True)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_cut_at_any_place_is_refused(here, kind):
    whole = make(here, kind).read_bytes()
    for end in range(len(whole) - 1, -1, -7):
        (here / kind).write_bytes(whole[:end])
        expect_refused(here / kind)


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_or_nothing_in_the_place_of_a_file_is_refused(here, kind):
    expect_refused(here / kind)
    (here / kind).mkdir()
    expect_refused(here / kind)


def test_other_kinds_of_file_are_refused_by_their_names(here):
    for name in ("w.pt", "w.npy", "w.pkl", "npz", "w.npz.zip"):
        (here / name).write_bytes(make(here, "stored.npz").read_bytes())
        expect_refused(here / name, ".npz or a .safetensors")


class Bomb:
    """What unpickles to a file on disk."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_pickled_objects_are_refused_and_never_executed(here):
    mark = here / "executed"
    objects = np.array([[Bomb(mark)]], dtype=object)
    np.load(io.BytesIO(npy(objects)), allow_pickle=True)[0, 0].close()
    mark.unlink()  # the bomb is live: NumPy would have set it off
    bare = pickle.dumps(Bomb(mark))
    fields = np.array([(1.0, Bomb(mark))], dtype=[("a", "f4"), ("b", "O")])
    for data in (npy(objects), npy(fields), npy(objects)[:-3]):
        expect_refused(
            put(here / "w.npz", {"softmax_w.npy": data}), "softmax_w holds pickled objects"
        )
    for data in (bare, b"\x93NUMPY" + bare, npy(np.ones(SHAPE)) + bare):
        expect_refused(put(here / "w.npz", {"softmax_w.npy": data}), "softmax_w")
    (here / "w.npz").write_bytes(bare)
    expect_refused(here / "w.npz")
    (here / "w.safetensors").write_bytes(bare)
    expect_refused(here / "w.safetensors")
    assert not mark.exists()


LOAD = """
import resource, sys
from harness.data.weights import WeightsError, load
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (100 << 20),) * 2)
try:
    load(sys.argv[1])
except WeightsError as error:
    print(error)
"""


def _expect_refused_in_little_memory(path, *words):
    command = [sys.executable, "-c", LOAD, path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stderr) == (0, "")
    assert all(word in done.stdout for word in (str(path), *words)), done.stdout


needs_proc = pytest.mark.skipif(
    not Path("/proc/self/statm").exists(), reason="needs /proc to bound memory"
)


@needs_proc
@pytest.mark.parametrize("claimed", [(4 << 30) - 2, 300 << 20])
def test_a_zip_bomb_is_refused_before_it_goes_off(here, claimed):
    part = claim(shape=f"({claimed // 4 - 32},)", data=b"")
    size = struct.pack("<L", len(part))
    path = put(here / "w.npz", {"softmax_w.npy": part}, compression=zipfile.ZIP_DEFLATED)
    whole = path.read_bytes()
    assert whole.count(size) >= 2  # in the member's header and in the directory
    path.write_bytes(whole.replace(size, struct.pack("<L", claimed)))
    _expect_refused_in_little_memory(path, "zip bomb")


@needs_proc
def test_a_zip_bomb_that_claims_to_be_small_is_refused_before_it_goes_off(here):
    part = claim(shape="(3, 5000)", data=bytes(60_000))
    members = {"embedding.npy": npy(np.ones((5000, 2))), "softmax_b.npy": npy(np.ones(5000))}
    packer = zlib.compressobj(1, wbits=-15)
    packed = packer.compress(part) + b"".join(packer.compress(bytes(1 << 20)) for _ in range(400))
    packed += packer.flush()
    path = put(here / "w.npz", {**members, "softmax_w.npy": packed})
    whole = path.read_bytes()
    sizes = struct.pack("<LL", len(packed), len(packed))
    assert whole.count(sizes) == 2
    for at in (whole.rindex(sizes), whole.index(sizes)):  # method, time, CRC, then the two sizes
        fixed = struct.pack("<L", zlib.crc32(packed)) + struct.pack("<LL", len(packed), len(part))
        whole = whole[: at - 4] + fixed + whole[at + 8 :]
        whole = whole[: at - 10] + struct.pack("<H", zipfile.ZIP_DEFLATED) + whole[at - 8 :]
    path.write_bytes(whole)
    _expect_refused_in_little_memory(path, "softmax_w", "Bad CRC")  # and not: out of memory


@needs_proc
@pytest.mark.parametrize("kind", ["npz", "safetensors"])
def test_arrays_beyond_memory_are_refused(here, kind):
    """A hole in a file takes no disk, so that nothing about its size is a lie."""
    path = here / f"w.{kind}"
    # The file of safetensors can be mapped, and the tensors not be copied out of it.
    size = 3_200_000 if kind == "safetensors" else 8_000_000
    names = {name: list(array.shape) for name, array in TRUE.items()}
    names |= {"embedding": [size, 2], "softmax_w": [3, size], "softmax_b": [size]}
    if kind == "safetensors":
        header, at = {}, 0
        for name, shape in names.items():
            end = at + 4 * int(np.prod(shape))
            header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, end]}
            at = end
        text = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text)
        os.truncate(path, 8 + len(text) + at)
    else:
        put(
            path,
            {
                f"{n}.npy": claim("'<f4'", str(tuple(s)), bytes(4 * int(np.prod(s))))
                for n, s in names.items()
            },
        )
    _expect_refused_in_little_memory(path)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compression_that_numpy_never_writes_is_refused(here, method):
    expect_refused(put(here / "w.npz", {}, compression=method), "embedding.npy", "compressed")


@pytest.mark.parametrize(
    "name",
    [
        *("readme.txt", "w.NPY", "__pickle__", "../../evil.npy", "/evil.npy", "a/../../evil.npy"),
        *("a\\b.npy", ".npy", "\x1b[2J.npy", "\x1b[2J", "a\u202eb.npy", "n" * 300 + ".npy"),
        "x" * 9999,
    ],
)
def test_members_with_names_that_are_no_arrays_are_refused(here, name):
    expect_refused(put(here / "w.npz", {name: npy(np.ones(1))}), "w.npz")


def test_a_member_that_stands_there_twice_is_refused(here):
    path = make(here, "stored.npz")
    with zipfile.ZipFile(path, "a") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile's own, of the duplicate
        archive.writestr("softmax_w.npy", npy(np.zeros(SHAPE, np.float32)))
    expect_refused(path, "softmax_w", "twice")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"softmax_w.npy": None}, ["missing softmax_w"]),
        ({"softmax_w.npy": None, "softmax_b.npy": None}, ["missing softmax_b, softmax_w"]),
        ({"momentum.npy": npy(np.ones(2))}, ["extra momentum"]),
        ({"layer2/w_i.npy": npy(np.ones((2, 2)))}, ["extra layer2/w_i"]),
        ({"layer0/w_i.npy": None, "w.npy": npy(1.0)}, ["missing layer0/w_i", "extra w"]),
        (dict.fromkeys(f"{name}.npy" for name in TRUE), ["no known layout"]),
        ({f"{i}.npy": npy(1.0) for i in range(99)}, ["extra 0, 1,", "and 87 more"]),
    ],
)
def test_missing_and_extra_arrays_are_named(here, change, words):
    path = put(here / "w.npz", change)
    with pytest.raises(WeightsError) as error:
        weights.load(path)
    assert all(word in str(error.value) for word in (str(path), *words)), error.value


@pytest.mark.parametrize(
    "array",
    [
        *(np.ones(SHAPE, dtype) for dtype in (int, bool, complex, "u1", "S4", "U4", "M8[s]", "V4")),
        np.ones(SHAPE, [("a", "f4")]),
        np.ones(SHAPE, [("\x1b[2J" * 200, "f4")]),
    ],
    ids=lambda array: str(array.dtype)[:20],
)
def test_what_is_not_floating_point_is_refused(here, array):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy's own, of the format's version
        data = npy(array)
    expect_refused(put(here / "w.npz", {"softmax_w.npy": data}), "softmax_w")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", KINDS)
def test_nan_and_infinity_are_refused(here, kind, value):
    spoilt = {**TRUE, "softmax_w": TRUE["softmax_w"].copy(), "softmax_b": TRUE["softmax_b"].copy()}
    spoilt["softmax_w"][1, 2] = spoilt["softmax_b"][[0, 3]] = value
    path = make(here, kind, spoilt)
    for model in (None, MODEL):
        with pytest.raises(WeightsError, match=r"in: softmax_w \(1\), softmax_b \(2\)$"):
            weights.load(path, model)


def test_numbers_too_large_for_the_dtype_asked_for_are_refused(here):
    path = put(here / "w.npz", {"softmax_w.npy": npy(np.full(SHAPE, 1e300))})
    assert weights.load(path)["softmax_w"][0, 0] == 1e300
    with pytest.raises(WeightsError, match=r"as float32 in: softmax_w \(15\)"):
        weights.load(path, dtype="float32")


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b"PK\x03\x04", b"\x93NUMPY", b"\x93NUMPY\x01\x00\xff\xff{", raw_npy("")),
        *(
            raw_npy(text)
            for text in ("(" * 5000, "-" * 9000 + "1", "{'a':" * 1500, "'", "{}", "\0")
        ),
        *(raw_npy(text) for text in ("[" * 99 + "]" * 99, "1if", "{1:2}", "\x1b[2J", " " * 60_000)),
        *(claim(version=version) for version in (0, 4, 255)),
        *(
            claim(shape=s)
            for s in ("(3, 6)", "(-3, -5)", "(3, 5, 0)", "(2**60,)", "15", "(3.0, 5)")
        ),
        *(claim(shape=f"({s},)") for s in (2**62, 10**4000, -(2**70), "'3'", "None", "((3, 5),)")),
        claim(shape=f"({2**62}, 4)", data=b""),
        *(claim(descr=d) for d in ("'<f4,<f4'", "'V0'", "'<U0'", "('<f4', (2,))", "'f3'", "None")),
        *(claim(descr=d) for d in ("'O'", "[('a', 'O')]", "'<f8'", "'<f2'", "__import__('os')")),
        *(claim(data=bytes(size)) for size in (0, 59, 61, 120)),
    ],
    ids=lambda data: repr(data[10:40]),
)
def test_a_member_that_is_no_array_or_not_the_one_it_claims_is_refused(here, data):
    expect_refused(put(here / "w.npz", {"softmax_w.npy": data}), "softmax_w")


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", ">f8", "<f2", ">f2"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_foreign_byte_order_and_fortran_order_load_right(here, dtype, order):
    array = np.asarray(np.arange(15).reshape(SHAPE) / 4, dtype=dtype, order=order)
    data = npy(array)
    assert (b"'fortran_order': True" in data) == (order == "F")
    found = weights.load(put(here / "w.npz", {"softmax_w.npy": data}))["softmax_w"]
    assert found.dtype.isnative
    assert found.flags.c_contiguous
    assert found.tolist() == [[(5 * i + j) / 4 for j in range(5)] for i in range(3)]


def test_a_header_written_by_python_2_loads_right(here):
    data = np.arange(15, dtype="<f4").tobytes()
    path = put(here / "w.npz", {"softmax_w.npy": claim(shape="(3L, 5L)", data=data)})
    assert weights.load(path)["softmax_w"].tolist() == np.arange(15).reshape(SHAPE).tolist()


@pytest.mark.parametrize(
    ("offset", "value"),
    [(8, 1), (8, 1 << 5), (8, 1 << 6), (10, 99), (10, 12), (16, 0xBAD), (42, 0xFFFF)],
)
def test_encrypted_or_corrupt_members_are_refused(here, offset, value):
    whole = bytearray(make(here, "deflated.npz").read_bytes())
    at = whole.index(b"PK\x01\x02")  # the first member in the directory
    whole[at + offset : at + offset + 2] = struct.pack("<H", value)
    (here / "w.npz").write_bytes(whole)
    expect_refused(here / "w.npz", "embedding")


def test_corrupt_compressed_bytes_are_refused(here):
    whole = make(here, "deflated.npz").read_bytes()
    start = whole.index(b"embedding.npy") + 40
    for at in range(start, start + 60):
        (here / "w.npz").write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        expect_refused(here / "w.npz", "embedding")


@pytest.mark.parametrize("size", [2**31, 2**63 - 1, 2**64 - 1])
@pytest.mark.parametrize("field", [40, 48])
def test_a_zip_directory_at_no_possible_place_is_refused(here, size, field):
    whole = make(here, "stored.npz").read_bytes()
    end = whole.index(b"PK\x05\x06")
    at = struct.unpack("<LL", whole[end + 12 : end + 20])
    big = bytearray(struct.pack("<4sQHHLLQQQQ", b"PK\x06\x06", 44, 45, 45, 0, 0, 9, 9, *at))
    big[field : field + 8] = struct.pack("<Q", size)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, end, 1)
    tail = whole[end : end + 12] + b"\xff" * 8 + whole[end + 20 :]
    (here / "w.npz").write_bytes(whole[:end] + big + locator + tail)
    expect_refused(here / "w.npz")


def safe(path, change, data=bytes(60)):
    """A .safetensors file of one array, softmax_w, with `change` to its row of the header."""
    row = {"dtype": "F32", "shape": [3, 5], "data_offsets": [0, 60]}
    text = change if isinstance(change, bytes) else json.dumps({"softmax_w": row | change}).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


@pytest.mark.parametrize(
    "change",
    [
        *({"shape": [2**60]}, {"shape": [2**62, 2**62]}, {"shape": [-3, -5]}, {"shape": [2**70]}),
        *({"data_offsets": [0, 2**60]}, {"data_offsets": [60, 0]}, {"dtype": "\x1b[2J" * 99}),
        *({"dtype": "I32"}, {"dtype": "U32"}, {"dtype": "F8_E5M2", "shape": [60]}),
        *({"dtype": "BF16", "shape": [30]}, {"dtype": "BOOL", "shape": [60]}),
        *(b"", b"{}", b"[" * 9999, b'{"a":' * 9999, b"null", b"\xff" * 99),
    ],
    ids=lambda change: str(change)[:40],
)
def test_a_safetensors_header_that_lies_is_refused(here, change):
    with pytest.raises(WeightsError, match=r"w\.safetensors") as error:
        weights.read_arrays(safe(here / "w.safetensors", change))
    assert str(error.value).isprintable()
    assert len(str(error.value)) < len(str(here)) + 600


@pytest.mark.parametrize("length", [2**60, 2**64 - 1, 17 << 20, 9999, 1, 0])
def test_a_safetensors_file_that_claims_a_huge_header_is_refused(here, length):
    path = make(here, "w.safetensors")
    path.write_bytes(struct.pack("<Q", length) + path.read_bytes()[8:])
    expect_refused(path, "cut or too long" if length > 16 << 20 else "cannot be read")


@pytest.mark.parametrize("name", ["../../x", "\x1b[2J", "", "a\\b", "/etc/passwd", "n" * 9999])
def test_unsafe_names_in_a_safetensors_file_are_refused(here, name):
    row = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    expect_refused(
        safe(here / "w.safetensors", json.dumps({name: row}).encode(), bytes(4)), "name an array"
    )


def test_every_flipped_bit_of_our_safetensors_file_is_found(here):
    path = make(here, "w.safetensors")
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << at % 8)]) + whole[at + 1 :])
        if weights.CHECKSUM.encode() in path.read_bytes():  # its own name is not checked by it
            expect_refused(path)


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    return tmp_path_factory.mktemp("workshop")


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=EXAMPLES, deadline=None)
@given(edit=EDITS)
def test_a_damaged_file_gives_the_truth_or_an_error(workshop, kind, edit):
    path = make(workshop, kind)
    path.write_bytes(damaged(path.read_bytes(), edit))
    said, found = "", TRUE
    try:
        found = weights.load(path)
    except WeightsError as error:
        said = f"{error}"
    assert found is not TRUE or str(path) in said
    assert said.isprintable()
    assert list(found) == list(TRUE)
    for name, array in TRUE.items():
        np.testing.assert_array_equal(found[name], array, strict=True)
