"""Weights on disk: draw, save, load, check, and convert between layouts. No pickle is ever read.

Canonical arrays are those of `harness.spec.parameters`. Files that other programs write are
recognised by their names and carried over by `harness.layouts`.
"""

from __future__ import annotations

import math
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from harness.errors import HarnessError
from harness.layouts import LAYOUTS, from_layout, infer_model, recognise, to_layout
from harness.randomness import STREAM_WEIGHTS, uniform
from harness.spec import ModelSpec, parameters
from harness.trace.schema import check_name, digest

Weights = dict[str, NDArray[Any]]

HEADER_LIMIT = 16 << 20
# A file of real weights hardly compresses; one that claims far more than it holds is a bomb.
BOMB_SIZE, BOMB_RATIO = 256 << 20, 100


class WeightsError(HarnessError):
    """A file of weights that cannot be used. The message names file, array and remedy."""


def draw(model: ModelSpec, seed: int) -> Weights:
    """Random weights, float32, every parameter from U(-init_scale, init_scale).

    (Zaremba et al. 2014, section 4.1.) Always float32: a float64 run starts from the same numbers.
    """
    weights = {}
    for block, parameter in enumerate(parameters(model)):
        count = math.prod(parameter.shape)
        values = (2 * uniform(seed, STREAM_WEIGHTS, block, count) - 1) * model.init_scale
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
            contiguous = {name: np.ascontiguousarray(array) for name, array in weights.items()}
            save_file(contiguous, partial)
        os.replace(partial, path)
    except (OSError, SafetensorError) as error:
        partial.unlink(missing_ok=True)
        raise WeightsError(f"{path}: cannot be written: {error}") from None


def load(
    path: str | Path,
    model: ModelSpec | None = None,
    layout: str | None = None,
    dtype: str | None = None,
) -> Weights:
    """Read weights in any known layout and return them canonical, in canonical order.

    `model` is what they must fit (None: whatever consistent model they describe); `layout` one of
    `harness.layouts.LAYOUTS` (None: recognised by its names); `dtype` what to cast to.
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
    bad = {name: int(np.count_nonzero(~np.isfinite(array))) for name, array in weights.items()}
    if any(bad.values()):
        named = ", ".join(f"{name} ({count})" for name, count in bad.items() if count)
        raise WeightsError(f"{path}: NaN or infinite elements in: {named}")
    return {
        p.name: weights[p.name].astype(dtype or weights[p.name].dtype)
        for p in parameters(described)
    }


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


def digest_all(weights: Mapping[str, NDArray[Any]]) -> dict[str, str]:
    """The hash of every array, as a trace stores it."""
    return {name: digest(array) for name, array in weights.items()}


def read_shapes(path: str | Path) -> dict[str, tuple[int, ...]]:
    """Name and shape of every array of a file, from headers alone. Raises WeightsError."""
    path = Path(path)
    shapes: dict[str, tuple[int, ...]] = {}
    try:
        if _suffix(path) == ".npz":
            with zipfile.ZipFile(path) as archive:
                for name, member in _members(path, archive):
                    with archive.open(member) as file:
                        shapes[name] = _npy_header(path, name, file, member.file_size)[0]
        else:
            with _open_safetensors(path) as file:
                for name in file.keys():  # noqa: SIM118 - not a mapping
                    _check_array_name(path, name)
                    shapes[name] = tuple(file.get_slice(name).get_shape())
    except _READ_ERRORS as error:
        raise WeightsError(f"{path}: cannot be read: {_said(error)}") from None
    return shapes


def read_arrays(path: str | Path) -> Weights:
    """Every array of a file as it is. Raises WeightsError for anything but plain numbers."""
    path = Path(path)
    arrays: Weights = {}
    try:
        if _suffix(path) == ".npz":
            with zipfile.ZipFile(path) as archive:
                for name, member in _members(path, archive):
                    with archive.open(member) as file:
                        arrays[name] = _npy_array(path, name, file, member.file_size)
        else:
            with _open_safetensors(path) as file:
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except _READ_ERRORS as error:
        raise WeightsError(f"{path}: cannot be read: {_said(error)}") from None
    for name, array in arrays.items():
        if array.dtype.kind != "f":
            raise WeightsError(f"{path}: {name} is {array.dtype}; weights are floating point")
    return arrays


_READ_ERRORS = (
    OSError,
    EOFError,
    ValueError,
    TypeError,
    KeyError,
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
        name = member.filename.removesuffix(".npy")
        if name == member.filename:
            raise WeightsError(f"{path}: {member.filename!r} is no array (.npy)")
        if name in seen:
            raise WeightsError(f"{path}: {name!r} stands there twice")
        seen.add(name)
        _check_array_name(path, name)
        yield name, member


def _check_array_name(path: Path, name: str) -> None:
    wrong = check_name(name)
    if wrong:
        raise WeightsError(f"{path}: {name!r} cannot name an array: it {wrong}")


def _npy_header(
    path: Path, name: str, file: IO[bytes], size: int
) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, order and dtype of a .npy stream; never objects, never more than the file holds."""
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    else:
        shape, fortran, dtype = np.lib.format.read_array_header_2_0(file)
    if dtype.hasobject:
        raise WeightsError(f"{path}: {name} holds pickled objects, which are never loaded")
    count = math.prod(shape)
    if min(shape, default=0) < 0 or count * dtype.itemsize != size - file.tell():
        raise WeightsError(
            f"{path}: {name} claims {dtype} {list(shape)} in {size - file.tell()} bytes"
        )
    return shape, fortran, dtype


def _npy_array(path: Path, name: str, file: IO[bytes], size: int) -> NDArray[Any]:
    shape, fortran, dtype = _npy_header(path, name, file, size)
    data = file.read()  # to the end, so that the archive's checksum is verified
    array = np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")
    return np.ascontiguousarray(array.astype(dtype.newbyteorder("="))).reshape(shape)


def _open_safetensors(path: Path) -> Any:
    with open(path, "rb") as file:
        start = file.read(8)
    if len(start) < 8 or struct.unpack("<Q", start)[0] > HEADER_LIMIT:
        raise WeightsError(f"{path}: not a safetensors file (its header is cut or too long)")
    return safe_open(path, framework="numpy")


def _said(error: BaseException) -> str:
    text = str(error) or type(error).__name__
    return "".join(c if c.isprintable() else "?" for c in text)[:300]
