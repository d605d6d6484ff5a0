"""What frameworks hand to a trace, as arrays that it can store; no framework is imported for it."""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from harness.trace.dtypes import largest
from harness.trace.parts import Rows, Timesteps
from harness.trace.schema import DTYPES, NARROW

Tensor: TypeAlias = NDArray[Any] | Timesteps | Rows

# Dtypes that are stored as they are; a look-up in this is quick, NumPy's names of dtypes are not.
KNOWN = frozenset(np.dtype(name) for name in DTYPES if name not in NARROW)
# What to do about a kind of array that is no tensor of numbers.
REMEDIES = {
    "c": "give its real and its imaginary part, as two tensors",
    "O": "give an array of numbers (a list whose rows are of one length)",
    "U": "give numbers",
    "S": "give numbers",
    "M": "give numbers",
    "m": "give numbers",
    "V": "give its fields as tensors of their own",
}


def accept(tensor: Any, dtype: str) -> Tensor:
    """A tensor of any framework as what the writer stores, in the memory that it had if it can be.

    Python's own numbers take `dtype`, that of the trace. Raises ValueError that says what was
    given, and what to give, for what is no tensor of numbers.
    """
    if isinstance(tensor, Timesteps):
        return Timesteps([_dense(part, dtype) for part in tensor.parts]).checked()
    if isinstance(tensor, Rows):
        rows, values = _dense(tensor.rows, dtype), _dense(tensor.values, dtype)
        return Rows(rows, values, tensor.shape).checked()
    found = _rows(tensor)
    if found is None:
        return _dense(tensor, dtype)
    indices, values, shape = found
    if len(shape) == 2 and indices.ndim == 1:
        return Rows(indices, _stored(values), (shape[0], shape[1])).checked()
    return _summed(indices, _stored(values), shape)


def owned(tensor: Tensor) -> Tensor:
    """A copy of what was accepted, which nobody else can change."""
    if isinstance(tensor, Rows):
        return Rows(np.array(tensor.rows), np.array(tensor.values), tensor.shape)
    if isinstance(tensor, Timesteps):
        return tensor.dense()
    return np.array(tensor, order="C")


def _dense(tensor: Any, dtype: str) -> NDArray[Any]:
    if isinstance(tensor, Rows | Timesteps):
        raise ValueError(f"{type(tensor).__name__} inside of another: give arrays")
    if isinstance(tensor, np.ma.MaskedArray):
        raise ValueError(
            "a masked array, whose masked elements are no numbers: give tensor.filled(VALUE)"
        )
    if isinstance(tensor, int | float) and not isinstance(tensor, bool | np.generic):
        return _number(tensor, dtype)
    return _stored(_array(tensor))


def _stored(array: NDArray[Any]) -> NDArray[Any]:
    """The array in the byte order of this machine; ValueError for what no trace stores."""
    if array.dtype in KNOWN:
        return array
    name = array.dtype.newbyteorder("=").name
    if name not in DTYPES:
        remedy = REMEDIES.get(array.dtype.kind, "convert it to one of these")
        raise ValueError(
            f"dtype {array.dtype} cannot be stored; there are: {', '.join(DTYPES)}; {remedy}"
        )
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _number(number: int | float, dtype: str) -> NDArray[Any]:
    """A number of Python's own, in the trace's dtype if that can hold it: an integer exactly."""
    fits = abs(number) <= largest(dtype) or number != number or abs(number) == float("inf")
    kind = np.dtype(dtype)
    with np.errstate(all="ignore"):
        if fits and (isinstance(number, float) or int(np.array(number, kind)) == number):
            return np.array(number, kind)
    if isinstance(number, int) and not -(2**63) <= number < 2**64:
        raise ValueError(f"{number} is an integer of over 64 bits: give float({number})")
    return _stored(np.array(number))


def _array(tensor: Any) -> NDArray[Any]:
    """Whatever gives its elements up to NumPy; ValueError for what does not."""
    try:
        torch = sys.modules.get("torch")
        if torch is not None and isinstance(tensor, torch.Tensor):
            return _torch(tensor)
        if type(tensor).__name__.startswith("Ragged"):
            raise ValueError("its rows are of several lengths")
        if not isinstance(tensor, np.ndarray) and callable(getattr(tensor, "numpy", None)):
            return np.asarray(tensor.numpy())
        return np.asarray(tensor)
    except Exception as error:  # each framework has its own
        said = (str(error).splitlines() or [""])[0][:200]
        raise ValueError(
            f"{type(tensor).__module__}.{type(tensor).__name__} is no array of numbers "
            f"({said or type(error).__name__}): give a tensor that has values, and one shape"
        ) from None


def _torch(tensor: Any) -> NDArray[Any]:
    """A tensor of PyTorch: of any layout, on any device, in the graph or not."""
    if not (tensor.is_quantized or tensor.requires_grad or tensor.is_nested):
        with suppress(RuntimeError, TypeError):  # what follows is for those that it does not take
            return np.asarray(tensor.numpy())
    if tensor.is_quantized or getattr(tensor, "is_nested", False):
        raise ValueError("a quantized or nested tensor: give tensor.dequantize(), or its parts")
    tensor = tensor.detach()
    if str(tensor.layout) != "torch.strided":
        tensor = tensor.to_dense()
    tensor = tensor.cpu().resolve_conj().resolve_neg()
    name = str(tensor.dtype).removeprefix("torch.")
    if name in NARROW:  # which PyTorch does not tell NumPy of
        torch = sys.modules["torch"]
        words = tensor.view(torch.uint8 if tensor.element_size() == 1 else torch.int16)
        return np.asarray(words.numpy()).view(np.dtype(name))
    return np.asarray(tensor.numpy())


def _rows(tensor: Any) -> tuple[NDArray[Any], NDArray[Any], tuple[int, ...]] | None:
    """Indices, values and shape of a sparse tensor: numbers of rows [k] or of elements [k, axes].

    None for what is no sparse tensor of these kinds: PyTorch's COO with one sparse axis, and
    TensorFlow's IndexedSlices and SparseTensor.
    """
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(tensor, torch.Tensor):
        if tensor.layout != torch.sparse_coo or tensor.sparse_dim() != 1:
            return None
        summed = tensor.detach().coalesce()
        return _array(summed.indices()[0]), _array(summed.values()), tuple(tensor.shape)
    if not type(tensor).__module__.startswith("tensorflow."):
        return None
    if type(tensor).__name__ not in ("IndexedSlices", "SparseTensor"):
        return None
    if tensor.dense_shape is None:
        raise ValueError("IndexedSlices without a dense_shape: give tf.convert_to_tensor(tensor)")
    indices, values, shape = map(_array, (tensor.indices, tensor.values, tensor.dense_shape))
    return indices, values, tuple(shape.tolist())


def _summed(indices: NDArray[Any], values: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """The tensor of `shape` that is zero but for `values` at `indices`; what meets is added up."""
    places = tuple(indices.T) if indices.ndim == 2 else (indices,)
    if any(np.any((i < 0) | (i >= n)) for i, n in zip(places, shape, strict=False)):
        raise ValueError(f"indices outside of the shape {list(shape)}")
    dense = np.zeros(shape, values.dtype)
    if values.dtype.kind == "b":
        dense[places] = values
    else:
        np.add.at(dense, places, values)
    return dense
