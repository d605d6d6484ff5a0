"""What frameworks hand to a trace is stored as the numbers that it is, or refused by name."""

import json
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest

from harness import Capture, TraceWriter, check_trace, diff, open_trace
from harness.trace import Rows, Timesteps, TraceError

WRITE = """
import json, sys
import numpy as np
import harness
from harness.trace import Rows, Timesteps

def store(given, refused):
    said = {}
    with harness.TraceWriter(sys.argv[1], label="x", dtype="float32") as trace:
        trace.write(1, given)
        for number, (name, tensor) in enumerate(refused.items(), start=2):
            try:
                trace.write(number, {"fine": 1.0, name: tensor})
            except harness.HarnessError as error:
                said[name] = str(error)
    print(json.dumps(said))
"""

TORCH = (
    WRITE
    + """
import torch
x = torch.arange(12.0).reshape(3, 4)
p = torch.nn.Parameter(x.clone())
z = torch.complex(x, x + 1)
coo = torch.sparse_coo_tensor([[2, 0, 2]], torch.ones(3, 4), (9, 4))
grown = torch.nn.Embedding(9, 4, sparse=True)
grown(torch.tensor([2, 0, 2])).sum().backward()
store(
    {
        "x": x, "t": x.T, "grad": p * 2, "parameter": p, "int": torch.tensor([1, -2]),
        "bool": torch.tensor([True, False]), "scalar": torch.tensor(2.5, dtype=torch.float64),
        "half": x.half(), "bf16": x.bfloat16() / 3, "bf16_0": torch.tensor(1 / 3).bfloat16(),
        "bf16_t": (x.bfloat16() / 3).T,
        "e4m3": (x / 3).to(torch.float8_e4m3fn), "e5m2": (x / 3).to(torch.float8_e5m2),
        "imag": z.conj().imag, "real": z.conj().real, "coo": coo, "coo2": x.to_sparse(),
        "csr": x.to_sparse_csr(), "embedding": grown.weight.grad, "bias": torch.sparse_coo_tensor(
            [[1, 1]], torch.tensor([1.0, 2.0]), (5,)),
        "leaf": torch.sparse_coo_tensor([[1, 0]], torch.ones(2, 3, requires_grad=True), (5, 3)),
        "coo_bf16": coo.bfloat16(),
        "steps": Timesteps([p, p + 1]), "rows": Rows(torch.tensor([1]), p[:1], (5, 4)),
        "list": [torch.tensor(1.0), torch.tensor(2.0)], "expanded": torch.ones(1).expand(7),
    },
    {
        "complex": z, "conjugated": z.conj(), "meta": torch.empty(3, device="meta"),
        "quantized": torch.quantize_per_tensor(x, 0.1, 0, torch.qint8),
        "nested": torch.nested.nested_tensor([x[0], x[1, :2]]),
    },
)
"""
)

TF = (
    WRITE
    + """
import tensorflow as tf
x = tf.reshape(tf.range(12.0), (3, 4))
seen = []
tf.function(seen.append).get_concrete_function(tf.TensorSpec((3,), tf.float32, name="symbol"))
slices = tf.IndexedSlices(tf.ones((3, 4)), tf.constant([2, 0, 2]), tf.constant([9, 4]))
store(
    {
        "x": x, "variable": tf.Variable(x), "bf16": tf.cast(x / 3, tf.bfloat16),
        "e4m3": tf.cast(x / 3, tf.dtypes.experimental.float8_e4m3fn), "int": tf.constant([1, -2]),
        "slices": slices,
        "slices1": tf.IndexedSlices(tf.ones(3), tf.constant([2, 0, 2]), tf.constant([5])),
        "slices3": tf.IndexedSlices(
            tf.ones((3, 2, 2)), tf.constant([2, 0, 2]), tf.constant([5, 2, 2])),
        "sparse": tf.SparseTensor([[1, 2], [0, 1]], [5.0, 7.0], [3, 4]),
        "sparse_bool": tf.SparseTensor([[1]], [True], [3]),
        "keras": __import__("keras").Variable(np.ones((2, 3), "float32")),
        "steps": Timesteps([x, x + 1]), "rows": Rows(tf.constant([1]), x[:1], (5, 4)),
    },
    {
        "symbolic": seen[0], "text": tf.constant(["a"]), "complex": tf.complex(x, x),
        "ragged": tf.ragged.constant([[1.0], [2.0, 3.0]]),
        "shapeless": tf.IndexedSlices(tf.ones((1, 4)), tf.constant([2])),
        "text_sparse": tf.SparseTensor([[1]], ["a"], [3]),
        "keras_symbol": __import__("keras").Input((3,)),
        "outside": tf.SparseTensor([[7]], [1.0], [3]),
    },
)
"""
)

THREE = np.arange(12.0, dtype="float32").reshape(3, 4)


def run(code, path):
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    step = open_trace(path).step(1)
    assert check_trace(path).faults == ()
    return {e.name: array for e, array in step.tensors()}, json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def torch(tmp_path_factory):
    return run(TORCH, tmp_path_factory.mktemp("torch") / "a.trace")


@pytest.fixture(scope="module")
def tensorflow(tmp_path_factory):
    return run(TF, tmp_path_factory.mktemp("tf") / "a.trace")


def summed_rows(shape, rows, dtype="float32"):
    dense = np.zeros(shape, dtype)
    for row in rows:
        dense[row] += 1
    return dense


def assert_stored(found, expected):
    assert set(found) == set(expected)
    for name, array in expected.items():
        assert str(found[name].dtype) == str(array.dtype), name
        assert found[name].shape == array.shape, name
        wide = [x.astype("float64") if x.dtype.itemsize < 8 else x for x in (found[name], array)]
        np.testing.assert_array_equal(*wide, strict=True, err_msg=name)


def test_tensors_of_pytorch_are_stored_as_what_they_hold(torch):
    third = (THREE / 3).astype
    assert_stored(
        torch[0],
        {
            **dict.fromkeys(("x", "parameter", "real", "coo2", "csr"), THREE),
            "t": THREE.T,
            "grad": THREE * 2,
            "half": THREE.astype("float16"),
            "int": np.array([1, -2]),
            "bool": np.array([True, False]),
            "scalar": np.array(2.5),
            # PyTorch divides in bfloat16 as ml_dtypes does: in float32, rounded once.
            "bf16": third(ml_dtypes.bfloat16),
            "bf16_0": np.array(1 / 3, "float32").astype(ml_dtypes.bfloat16),
            "bf16_t": third(ml_dtypes.bfloat16).T,
            "e4m3": third(ml_dtypes.float8_e4m3fn),
            "e5m2": third(ml_dtypes.float8_e5m2),
            "imag": -(THREE + 1),
            "coo": summed_rows((9, 4), [2, 0, 2]),
            "coo_bf16": summed_rows((9, 4), [2, 0, 2]).astype(ml_dtypes.bfloat16),
            "embedding": summed_rows((9, 4), [2, 0, 2]),
            "bias": np.array([0, 3, 0, 0, 0], "float32"),
            "leaf": summed_rows((5, 3), [1, 0]),
            "steps": np.stack([THREE, THREE + 1], axis=1),
            "rows": np.concatenate([np.zeros((1, 4)), THREE[:1], np.zeros((3, 4))]).astype("f4"),
            "list": np.array([1, 2], "float32"),
            "expanded": np.ones(7, "float32"),
        },
    )


def test_tensors_of_tensorflow_are_stored_as_what_they_hold(tensorflow):
    sparse = np.zeros((3, 4), "float32")
    sparse[1, 2], sparse[0, 1] = 5, 7
    assert_stored(
        tensorflow[0],
        {
            **dict.fromkeys(("x", "variable"), THREE),
            "int": np.array([1, -2], "int32"),
            "bf16": (THREE / 3).astype(ml_dtypes.bfloat16),
            "e4m3": (THREE / 3).astype(ml_dtypes.float8_e4m3fn),
            "slices": summed_rows((9, 4), [2, 0, 2]),
            "slices1": summed_rows(5, [2, 0, 2]),
            "slices3": summed_rows((5, 2, 2), [2, 0, 2]),
            "sparse": sparse,
            "sparse_bool": np.array([False, True, False]),
            "keras": np.ones((2, 3), "float32"),
            "steps": np.stack([THREE, THREE + 1], axis=1),
            "rows": np.concatenate([np.zeros((1, 4)), THREE[:1], np.zeros((3, 4))]).astype("f4"),
        },
    )


def assert_refused(said, expected, path="a.trace"):
    assert set(said) == set(expected)
    for name, words in expected.items():
        assert f"{path}: {name}: " in said[name], name
        assert "\n" not in said[name]
        assert words in said[name], name


def test_what_is_no_tensor_of_numbers_is_refused_by_pytorchs_name_for_it(torch):
    assert_refused(
        torch[1],
        {
            "complex": "dtype complex64 cannot be stored",
            "conjugated": "give its real and its imaginary part",
            "meta": "torch.Tensor is no array of numbers",
            "quantized": "give tensor.dequantize()",
            "nested": "nested tensor",
        },
    )


def test_what_is_no_tensor_of_numbers_is_refused_by_tensorflows_name_for_it(tensorflow):
    assert_refused(
        tensorflow[1],
        {
            "symbolic": "SymbolicTensor is no array of numbers",
            "text": "give an array of numbers",
            "complex": "give its real and its imaginary part",
            "ragged": "RaggedTensor is no array of numbers (its rows are of several lengths)",
            "shapeless": "give tf.convert_to_tensor(tensor)",
            "text_sparse": "cannot be stored",
            "keras_symbol": "KerasTensor is no array of numbers",
            "outside": "indices outside of the shape [3]",
        },
    )


def write(path, tensors, dtype="float32", **options):
    with TraceWriter(path, label="x", dtype=dtype, **options) as trace:
        trace.write(1, tensors)
    return {e.name: array for e, array in open_trace(path).step(1).tensors()}


def refuse(path, tensor, dtype="float32"):
    with (
        TraceWriter(path, label="x", dtype=dtype) as trace,
        pytest.raises(TraceError) as error,
    ):
        trace.write(1, {"w": tensor})
    return str(error.value)


class OfJax:
    """As an array of JAX: an __array__ and no more; a traced one cannot give it."""

    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        if self.array is None:
            raise TypeError("Attempted to convert a traced value\nwith more to say")
        return self.array


def test_whatever_has_an_array_is_taken_and_what_cannot_give_it_is_refused(tmp_path):
    array = THREE.astype(ml_dtypes.bfloat16)
    found = write(tmp_path / "a.trace", {"x": OfJax(THREE), "y": OfJax(array)})
    assert_stored(found, {"x": THREE, "y": array})
    said = refuse(tmp_path / "a.trace", OfJax(None))
    assert "a.trace: w: test_framework_tensors.OfJax is no array of numbers" in said
    assert "(Attempted to convert a traced value)" in said


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "bfloat16"])
def test_numbers_of_python_take_the_dtype_of_the_trace(tmp_path, dtype):
    kind = np.dtype(dtype)
    given = {"f": 3.5, "i": 3, "nan": float("nan"), "inf": -float("inf"), "zero": -0.0}
    found = write(tmp_path / "a.trace", given, dtype)
    assert_stored(found, {name: np.array(x, kind) for name, x in given.items()})
    assert np.signbit(found["zero"])


def test_numbers_that_the_dtype_of_the_trace_cannot_hold_keep_their_own(tmp_path):
    given = {
        "i": 2**24 + 1,
        "big": 2**63 + 1,
        "f": 1e300,
        "bool": True,
        "np": np.float64(3.5),
        "np_i": np.int16(3),
        "np_b": np.bool_(True),
    }
    found = write(tmp_path / "a.trace", given)
    assert_stored(found, {name: np.asarray(x) for name, x in given.items()})
    assert found["i"].dtype == "int64"
    assert "give float(" in refuse(tmp_path / "a.trace", 2**64 + 1)
    assert "give float(" in refuse(tmp_path / "a.trace", -(2**63) - 1)


def test_a_loss_of_pythons_own_is_compared_with_one_of_an_array(tmp_path):
    write(tmp_path / "a.trace", {"forward/loss": 3.5})
    write(tmp_path / "b.trace", {"forward/loss": np.float32(7.5)})
    found = diff(tmp_path / "a.trace", tmp_path / "b.trace")
    assert (found.status, found.first_divergence.a, found.first_divergence.b) == (
        *("diverged", 3.5, 7.5),
    )


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i2", "u8"])
def test_arrays_of_the_other_byte_order_are_stored_as_their_numbers(tmp_path, dtype):
    array = np.arange(6).astype(dtype).reshape(2, 3)
    other = array.astype(array.dtype.newbyteorder("S"))
    found = write(tmp_path / "a.trace", {"x": other, "s": other[1, 2], "t": other.T})
    assert_stored(found, {"x": array, "s": array[1, 2, ...], "t": array.T})


@pytest.mark.parametrize(
    ("tensor", "why"),
    [
        (np.ma.masked_array([1.0, 2.0], [True, False]), "masked array"),
        (np.ma.masked_array([1.0, 2.0]), "masked array"),
        (Timesteps([np.ma.masked_array([1.0])]), "masked array"),
        (Timesteps([Rows([0], np.ones((1, 2)), (2, 2))]), "Rows inside of another"),
        (Rows(np.ma.masked_array([1]), np.ones((1, 2)), (2, 2)), "masked array"),
        ([[1.0], [1.0, 2.0]], "list is no array of numbers"),
        (1j, "give its real and its imaginary part"),
        ("text", "give numbers"),
        (None, "give an array of numbers"),
        ({"a": 1}, "give an array of numbers"),
        (np.datetime64(0, "s"), "give numbers"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_what_is_refused_says_what_to_give(tmp_path, tensor, why):
    said = refuse(tmp_path / "a.trace", tensor)
    assert "a.trace: w: " in said
    assert why in said


@pytest.mark.parametrize("dtype", ["int32", "f4", "Float32", "", None, np.float32, "complex64"])
def test_a_writer_of_no_floating_dtype_is_refused_before_anything_is_made(tmp_path, dtype):
    with pytest.raises(TraceError, match=r"a\.trace: dtype=.* there are: float16, float32"):
        TraceWriter(tmp_path / "a.trace", label="x", dtype=dtype)
    assert not (tmp_path / "a.trace").exists()


@pytest.mark.parametrize("name", ["bfloat16", "float8_e4m3fn", "float8_e5m2"])
@pytest.mark.parametrize("level", ["full", "stats"])
def test_narrow_floats_are_compared_in_their_own_eps(tmp_path, name, level):
    kind = np.dtype(name)
    eps = float(ml_dtypes.finfo(kind).eps)
    b = np.linspace(1, 1.6, 40).astype(kind)
    near = (b.view(f"u{kind.itemsize}") + 1).view(kind)
    for path, x in (("a", near), ("b", b)):
        capture = Capture(level=level)
        with TraceWriter(
            tmp_path / f"{path}.trace", label="x", dtype=name, capture=capture
        ) as trace:
            trace.write(1, {"w": x})
    found = diff(tmp_path / "a.trace", tmp_path / "b.trace")
    assert (found.status, found.onset.dtype) == ("close", name)
    if level == "full":
        assert found.onset.max_ulp_diff == 1
        assert found.onset.max_abs_diff == pytest.approx(eps, rel=0.01)
        assert diff(tmp_path / "a.trace", tmp_path / "b.trace", factor=0.3).status == "diverged"
    assert 0.4 < found.onset.rel_l2_eps < 1.2
