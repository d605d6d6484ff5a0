"""Weights on disk: draw, save, load, check, and convert between layouts. No pickle is ever read.

Canonical arrays are those of `harness.models.table.parameters`. Files that other programs write are
recognised by their names and carried over by `harness.data.layouts`.
"""

from __future__ import annotations

import math
import os
import struct
import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from harness.data.layouts import from_layout, infer_model, recognise, to_layout
from harness.data.randomness import STREAM_WEIGHTS, uniform
from harness.errors import HarnessError
from harness.models.layouts import LAYOUTS
from harness.models.table import parameters
from harness.spec import ModelSpec
from harness.trace.schema import check_name, quote, said
from harness.trace.statistics import digest

Weights = dict[str, NDArray[Any]]
R = TypeVar("R")

HEADER_LIMIT = 16 << 20
# A file of real weights hardly compresses; one that claims far more than it holds is a bomb.
BOMB_SIZE, BOMB_RATIO = 256 << 20, 100
# The two methods that NumPy writes with; the others decompress without a limit on what comes out.
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
# A .safetensors file has no checksum of its own, so ours carry one in their metadata.
CHECKSUM = "twin-harness-xxh3_128"


class WeightsError(HarnessError):
    """A file of weights that cannot be used. The message names file, array and remedy."""


def draw(model: ModelSpec, seed: int) -> Weights:
    """Random weights, float32, every parameter from U(-init_scale, init_scale).

    (Zaremba et al. 2014, section 4.1), or from the half-width that the model's row has for it.
    Always float32: a float64 run starts from the same numbers.
    """
    weights = {}
    for block, parameter in enumerate(parameters(model)):
        count = math.prod(parameter.shape)
        scale = model.init_scale if parameter.init is None else parameter.init
        values = (2 * uniform(seed, STREAM_WEIGHTS, block, count) - 1) * scale
        weights[parameter.name] = values.astype(np.float32).reshape(parameter.shape)
    return weights


def save(weights: Mapping[str, NDArray[Any]], path: str | Path) -> None:
    """Write arrays to a .npz or .safetensors file, whole or not at all. Raises WeightsError."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial")
    try:
        if _suffix(path) == ".npz":
            with open(partial, "wb") as file:
                np.savez(file, allow_pickle=False, **dict(weights))
        else:
            native = {name: _native(array) for name, array in weights.items()}
            save_file(native, partial, metadata={CHECKSUM: _checksum(native)})
        os.replace(partial, path)
    except (OSError, SafetensorError) as error:
        with suppress(OSError):
            partial.unlink()
        raise WeightsError(f"{path}: cannot be written: {error}") from None


def load(
    path: str | Path,
    model: ModelSpec | None = None,
    layout: str | None = None,
    dtype: str | None = None,
) -> Weights:
    """Read weights in any known layout and return them canonical, in canonical order.

    `model` is what they must fit (None: whatever consistent model they describe); `layout` one of
    `harness.models.layouts.LAYOUTS` (None: recognised by its names); `dtype` what to cast to.
    Raises WeightsError that names every missing, extra, misshaped, non-finite or foreign array.
    """
    shapes = read_shapes(path)
    try:
        chosen = recognise(shapes) if layout is None else LAYOUTS[layout]
        described = infer_model(shapes, chosen, model)
    except HarnessError as error:
        raise WeightsError(f"{path}: {error}") from None
    except KeyError:
        raise WeightsError(f"no layout {layout!r}; there are: {', '.join(LAYOUTS)}") from None
    weights = from_layout(read_arrays(path), chosen, described)
    with np.errstate(over="ignore"):  # too large for `dtype`: infinite, and refused below
        weights = {
            p.name: weights[p.name].astype(dtype or weights[p.name].dtype)
            for p in parameters(described)
        }
    bad = {name: int(np.count_nonzero(~np.isfinite(array))) for name, array in weights.items()}
    if any(bad.values()):
        named = ", ".join(f"{name} ({count})" for name, count in bad.items() if count)
        as_dtype = f" as {dtype}" if dtype else ""
        raise WeightsError(f"{path}: NaN or infinite elements{as_dtype} in: {named}")
    return weights


def describe_model(path: str | Path) -> ModelSpec:
    """The sizes of the model that a weights file holds, read from its headers alone."""
    shapes = read_shapes(path)
    try:
        return infer_model(shapes, recognise(shapes), None)
    except HarnessError as error:
        raise WeightsError(f"{path}: {error}") from None


def convert(
    source: str | Path, target: str | Path, to: str, layout: str | None = None
) -> dict[str, tuple[int, ...]]:
    """Rewrite `source` (its layout recognised, or given) in layout `to`; return what was written.

    Raises WeightsError for a source that is damaged and for a layout that does not exist.
    """
    if to not in LAYOUTS:
        raise WeightsError(f"no layout {to!r}; there are: {', '.join(LAYOUTS)}")
    weights = to_layout(load(source, layout=layout), LAYOUTS[to])
    save(weights, target)
    return {name: array.shape for name, array in weights.items()}


def read_shapes(path: str | Path) -> dict[str, tuple[int, ...]]:
    """Name and shape of every array of a file, from headers alone. Raises WeightsError."""
    path = Path(path)
    if _suffix(path) == ".npz":
        return {name: header[0] for name, header in _each_npy(path, _npy_header)}
    return dict(_each_tensor(path, lambda file, name: tuple(file.get_slice(name).get_shape())))


def read_arrays(path: str | Path, beside: str | None = None) -> Weights:
    """Every array of a file as it is. Raises WeightsError for anything but plain numbers.

    All are weights, but for the one called `beside`.
    """
    path = Path(path)
    if _suffix(path) == ".npz":
        arrays = dict(_each_npy(path, _npy_array))
    else:
        written: dict[str, str] = {}
        arrays = dict(_each_tensor(path, _tensor, written))
        if CHECKSUM in written and written[CHECKSUM] != _checksum(arrays):
            raise WeightsError(f"{path}: does not match its own checksum: damaged, or changed")
    for name, array in arrays.items():
        if array.dtype.kind != "f" and name != beside:
            raise WeightsError(
                f"{path}: {name} is {quote(str(array.dtype))}; weights are floating point"
            )
    return arrays


_READ_ERRORS = (
    OSError,
    EOFError,
    ValueError,
    TypeError,
    KeyError,
    MemoryError,
    AttributeError,  # safetensors: a dtype that NumPy lacks
    RuntimeError,  # zipfile: encrypted
    NotImplementedError,  # zipfile: unknown compression
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    SafetensorError,
)


def _suffix(path: Path) -> str:
    if path.suffix not in (".npz", ".safetensors"):
        raise WeightsError(f"{path}: weights are a .npz or a .safetensors file")
    return path.suffix


def _each_npy(
    path: Path, read: Callable[[Path, str, IO[bytes], int], R]
) -> Iterator[tuple[str, R]]:
    """Name and what `read` makes of every member of a .npz file."""
    name = ""
    try:
        with zipfile.ZipFile(path) as archive:
            for name, member in _members(path, archive):
                with archive.open(member) as file:
                    yield name, read(path, name, file, member.file_size)
    except _READ_ERRORS as error:
        raise WeightsError(f"{path}: {name or 'it'} cannot be read: {said(error)}") from None


def _each_tensor(
    path: Path, read: Callable[[Any, str], R], metadata: dict[str, str] | None = None
) -> Iterator[tuple[str, R]]:
    """Name and what `read` makes of every tensor of a .safetensors file.

    Its metadata are added to `metadata`, from the same opening: a file may be replaced meanwhile.
    """
    name = ""
    try:
        with _open_safetensors(path) as file:
            if metadata is not None:
                metadata.update(file.metadata() or {})
            for name in file.keys():  # noqa: SIM118 - not a mapping
                _check_array_name(path, name)
                yield name, read(file, name)
    except _READ_ERRORS as error:
        raise WeightsError(f"{path}: {name or 'it'} cannot be read: {said(error)}") from None


def _tensor(file: Any, name: str) -> NDArray[Any]:
    # safetensors panics where this raises MemoryError; 8 bytes are the largest of its elements.
    np.empty(file.get_slice(name).get_shape(), np.float64)
    array: NDArray[Any] = file.get_tensor(name)
    return array


def _members(path: Path, archive: zipfile.ZipFile) -> Iterator[tuple[str, zipfile.ZipInfo]]:
    """The arrays of an archive by name, once its claims are found to be sane."""
    members = archive.infolist()
    claimed = sum(member.file_size for member in members)
    if claimed > max(BOMB_SIZE, BOMB_RATIO * path.stat().st_size):
        raise WeightsError(
            f"{path}: claims {claimed} bytes of arrays in {path.stat().st_size} bytes of file: a "
            "zip bomb, not weights"
        )
    seen = set()
    for member in members:
        if member.compress_type not in METHODS:
            raise WeightsError(
                f"{path}: {quote(member.filename)} is compressed as NumPy never does"
            )
        name = member.filename.removesuffix(".npy")
        if name == member.filename:
            raise WeightsError(f"{path}: {quote(member.filename)} is no array (.npy)")
        if name in seen:
            raise WeightsError(f"{path}: {quote(name)} stands there twice")
        seen.add(name)
        _check_array_name(path, name)
        yield name, member


def _check_array_name(path: Path, name: str) -> None:
    wrong = check_name(name)
    if wrong:
        raise WeightsError(f"{path}: {quote(name)} cannot name an array: it {wrong}")


def _npy_header(
    path: Path, name: str, file: IO[bytes], size: int
) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, order and dtype of a .npy stream; never objects, never more than the file holds."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # such as: written by Python 2, shape (3L,)
            if np.lib.format.read_magic(file) == (1, 0):
                shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
            else:
                shape, fortran, dtype = np.lib.format.read_array_header_2_0(file)
    except (SyntaxError, tokenize.TokenError, MemoryError):  # Python's parser, on what is no header
        raise WeightsError(f"{path}: {name} has no readable .npy header") from None
    if dtype.hasobject:
        raise WeightsError(f"{path}: {name} holds pickled objects, which are never loaded")
    count, held = math.prod(shape), size - file.tell()
    if min(shape, default=0) < 0 or count * dtype.itemsize != held:
        claim = f"{quote(str(dtype))} {quote(list(shape))}"
        raise WeightsError(f"{path}: {name} claims {claim} in {held} bytes")
    return shape, fortran, dtype


def _npy_array(path: Path, name: str, file: IO[bytes], size: int) -> NDArray[Any]:
    shape, fortran, dtype = _npy_header(path, name, file, size)
    # To the claimed end and not past it: that verifies the checksum, and no bomb goes off.
    data = file.read(size - file.tell())
    array = np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")
    return _native(array).reshape(shape)


def _open_safetensors(path: Path) -> Any:
    with open(path, "rb") as file:
        start = file.read(8)
    if len(start) < 8 or struct.unpack("<Q", start)[0] > HEADER_LIMIT:
        raise WeightsError(f"{path}: not a safetensors file (its header is cut or too long)")
    return safe_open(path, framework="numpy")


def _native(array: NDArray[Any]) -> NDArray[Any]:
    return np.ascontiguousarray(array, array.dtype.newbyteorder("="))


def _checksum(weights: Mapping[str, NDArray[Any]]) -> str:
    """One hash of names, dtypes, shapes and elements."""
    rows = [f"{n} {a.dtype} {list(a.shape)} {digest(a)}" for n, a in sorted(weights.items())]
    return digest(np.frombuffer("\n".join(rows).encode(), np.uint8))
