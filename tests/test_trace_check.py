"""Every bit of a trace that is turned round is found by its check."""

import re

import msgspec
import numpy as np
import pytest

from harness.trace import TraceError, TraceWriter, check_trace, open_trace


def _flips(path, first, last):
    """Each bit of part of a file the other way round in turn; the file restored at the end."""
    whole = path.read_bytes()
    for place, bit in [(place, bit) for place in range(first, last) for bit in range(8)]:
        flipped = bytearray(whole)
        flipped[place] ^= 1 << bit
        path.write_bytes(flipped)
        yield place, bit
    path.write_bytes(whole)


def _found(path):
    try:
        return bool(check_trace(path).faults)
    except TraceError:
        return True


@pytest.fixture
def small(tmp_path):
    x = np.array([[0.1, np.nan, -2]], np.float32)
    with TraceWriter(tmp_path / "a.trace", label="mine", dtype="float32") as trace:
        trace.write(1, {"x": x, "n": np.arange(3)})
    return trace.path


def test_check_finds_every_flipped_bit_of_a_step(small):
    file = small / "step-00000001.safetensors"
    for place in _flips(file, 0, file.stat().st_size):
        assert _found(small), place
    assert not _found(small)


def test_check_finds_every_flipped_bit_of_the_index_but_rounding_of_sums(small):
    before, index = open_trace(small).step(1).entries, small / "index.jsonl"
    for place in _flips(index, 0, index.stat().st_size):
        if not _found(small):
            for was, now in zip(before, open_trace(small).step(1).entries, strict=True):
                assert now.mean == pytest.approx(was.mean, rel=1e-8), place
                assert now.l2 == pytest.approx(was.l2, rel=1e-8), place
                assert msgspec.structs.replace(now, mean=was.mean, l2=was.l2) == was, place


@pytest.mark.parametrize("field", ["format", "version", "complete", "steps", "hash"])
def test_check_finds_every_flipped_bit_of_what_the_header_promises(small, field):
    text = (small / "trace.json").read_text()
    first, last = re.search(rf'"{field}": [^,]*,', text).span()
    for place in _flips(small / "trace.json", first, last):
        assert _found(small), place
