"""A call of one of TensorFlow's operations, as the rules for them are given it."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np

from harness.models.entries import Made

tf: Any = import_module("tensorflow")

Operand = Any  # str | float | Made | Pending


class Pending(NamedTuple):
    """A tensor that nothing is known of: kept as a constant if it is ever read."""

    tensor: Any


class OpCall:
    """An operation: its tensors and attributes, and how the tensors were made."""

    def __init__(
        self, name: str, inputs: Any, attrs: Any, outputs: Any, of: Callable[[Any], Operand]
    ) -> None:
        """`attrs` are names and values in turn."""
        self.name, self.inputs, self.outputs = name, list(inputs), list(outputs)
        pairs = list(attrs or ())
        self._attrs = dict(zip(map(_text, pairs[::2]), pairs[1::2], strict=False))
        self._of = of

    def attr(self, name: str, default: Any = None) -> Any:
        """An attribute; words as text."""
        found = self._attrs.get(name, default)
        if hasattr(found, "WhichOneof"):  # of an operation in a graph
            kind = found.WhichOneof("value")
            found = getattr(found, kind) if kind else default
            found = list(found.i) if kind == "list" else found
        return _text(found)

    def of(self, place: int) -> Operand:
        """An input as an operand."""
        return self._of(self.inputs[place])

    def shape(self, place: int) -> tuple[int | None, ...]:
        """The shape of an input, as far as it is known."""
        return tuple(self.inputs[place].shape)

    def out(self, place: int = 0) -> tuple[int | None, ...]:
        """The shape of a result, as far as it is known."""
        return tuple(self.outputs[place].shape)

    def constant(self, place: int) -> Any:
        """An input as an array, where it is a constant."""
        x = self.inputs[place]
        found = x.numpy() if hasattr(x, "numpy") else tf.get_static_value(x)
        return None if found is None else np.asarray(found)

    def axes(self, place: int) -> list[int] | None:
        """An input that names axes of the first one."""
        found = self.constant(place)
        if found is None:
            return None
        count = len(self.shape(0))
        return sorted(int(a) % count for a in found.reshape(-1))


def _text(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value


def made(op: str, *operands: Operand, **args: Any) -> Made:
    """An op of operands, not checked: the tests check every rule against harness.stage."""
    return Made(op, operands, args)


def is_number(x: Operand) -> bool:
    """Whether an operand is a number."""
    return isinstance(x, int | float)
