"""Tensors of TensorFlow: what they are, and what of them goes out of the graph of a function."""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

tf: Any = import_module("tensorflow")
keras: Any = import_module("keras")

Array = NDArray[Any]
MARK = "\0"  # between a name and the number that makes it a key


class Tap(NamedTuple):
    """Tensors to be kept, under what name, and how they were made.

    `kind`: "" for a point that may get the number of its call, "fixed" for one name only,
    "constant" for what may be an input, "given" for the gradient that an optimizer goes on with,
    "later" for how something is made that the end of the step keeps, "root" for what is minimised.
    `how` makes one array of those of the tensors.
    """

    key: str
    tensors: tuple[Any, ...]
    made: Any = None
    kind: str = ""
    how: Callable[[list[Array]], Array | None] | None = None
    like: str = ""  # the key of the point whose gradient it is


class Given(NamedTuple):
    """A gradient that an optimizer went on with; `rows` if several are one row of a table."""

    array: Array
    made: Any
    rows: bool


class Taps:
    """What goes out of one graph of a function, by one call when it has run."""

    def __init__(self, graph: Any) -> None:
        """Nothing yet."""
        self.graph = graph
        self.queue: list[Tap] = []
        self.arguments: dict[str, int] = {}  # key: place among the arguments
        self.counts: dict[str, int] = {}
        self.results: list[Any] = []  # how each result was made
        self.begun: set[str] = set()  # variables whose value before the step is kept
        self.moved: set[str] = set()  # variables that have got another value in it, or before


def is_tensor(x: Any) -> bool:
    """Whether this is a tensor of TensorFlow with elements."""
    return isinstance(x, tf.Tensor) and not isinstance(x, keras.KerasTensor)


def is_eager(x: Any) -> bool:
    """Whether a tensor has a value now."""
    return isinstance(x, tf.__internal__.EagerTensor)


def kept(x: Any) -> bool:
    """Whether a tensor is of a kind that a trace has."""
    return bool(x.dtype.is_floating or x.dtype.is_integer or x.dtype.is_bool)


def as_array(x: Any) -> Array:
    """The elements of a tensor, array or variable, copied."""
    if isinstance(x, tf.IndexedSlices):
        x = tf.convert_to_tensor(x)
    return np.array(x.numpy() if hasattr(x, "numpy") else x)


def number_of(x: Any) -> Any:
    """A tensor without axes, that is a constant, as a number."""
    if getattr(x, "shape", None) is None or len(x.shape) or not kept_number(x):
        return None
    value = x if isinstance(x, np.ndarray) else x.numpy() if is_eager(x) else static(x)
    if value is None:
        return None
    number = value.item()
    return number if isinstance(number, int | float) and math.isfinite(number) else None


def kept_number(x: Any) -> bool:
    """Whether elements are numbers."""
    return isinstance(x, np.ndarray) or bool(x.dtype.is_floating or x.dtype.is_integer)


def static(x: Any) -> Any:
    """The value of a tensor of a graph, where it is a constant."""
    return tf.get_static_value(x)


def logits_of(x: Any) -> Any:
    """The logits of probabilities, as Keras' losses find them; None where they find none."""
    found = getattr(x, "_keras_logits", None)
    if found is None and is_tensor(x) and not is_eager(x) and x.op.type in ("Softmax", "Sigmoid"):
        found = x.op.inputs[0]
    return found
