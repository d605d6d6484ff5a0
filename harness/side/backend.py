"""What a side's framework does with bytes: ten functions, in a module of each twin.

Their names, arguments and documentation are the same in every twin (tests/test_mirrors.py).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from harness.spec import RunSpec, TrainSpec


class Backend(Hashable, Protocol):
    """The module `backend` of a twin; tensors are the framework's own."""

    @property
    def __package__(self) -> str:
        """The package of the twin."""

    def prepare(self, run: RunSpec) -> None:
        """Make the framework deterministic, in full precision, on the run's device."""

    def versions(self) -> dict[str, str]:
        """The framework and its version."""

    def flush_denormals(self) -> None:
        """From now on numbers under 1e-38 count for nothing."""

    def to_array(self, tensor: Any) -> NDArray[Any]:
        """A tensor as an array, in the tensor's memory where it can be."""

    def to_tensor(self, array: NDArray[Any] | np.generic) -> Any:
        """An array as a tensor that shares no memory with it."""

    def scalar(self, value: float, dtype: str) -> Any:
        """A number as a tensor without axes."""

    def compiles(self, run: RunSpec) -> bool:
        """Whether the steps of a run are one compiled function."""

    def compiled(self, step: Callable[..., Any], train: TrainSpec) -> Callable[..., Any]:
        """A step as one compiled function, or graph."""

    def differentiate(self, function: Callable[..., Any], params: Mapping[str, Any]) -> Any:
        """Gradients by the framework's own back-propagation."""

    def swap(self, value: Any, onward: Any, backward: Callable[[Any], Any]) -> Any:
        """`onward` in place of `value`; back-propagation goes on with backward(gradient)."""
