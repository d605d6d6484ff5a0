"""What a framework has to do so that its scripts can be recorded, and which one a thing is of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from typing import Any

from numpy.typing import NDArray

from harness.capture.step import Step
from harness.errors import HarnessError
from harness.models.entries import Made

Array = NDArray[Any]
Tensors = dict[str, Any]

# The module of harness/capture for what comes from a package.
HOMES = {
    "torch": "pytorch",
    "lightning": "pytorch",
    "pytorch_lightning": "pytorch",
    "keras": "keras",
    "tensorflow": "keras",
    "tf_keras": "keras",
    "jax": "jax",
    "jaxlib": "jax",
    "flax": "jax",
    "optax": "jax",
    "equinox": "jax",
}
MOST_LEAVES = 64  # of a container that are looked at


class Adapter:
    """A framework's half of a recorder. This one is of no framework: only what is logged is kept.

    Names are those of a trace: "params/..", "buffers/..", "optimizer/../SLOT". Arrays are as a
    trace takes them (tensors of the framework that nothing changes any more, too).
    """

    def __init__(self, objects: Sequence[Any]) -> None:
        """What the script handed to `record`. Raises HarnessError for what cannot be recorded."""

    def begin(self, dtype: str | None) -> None:
        """Once, before the first step: bring the model to `dtype` where one is asked for."""

    def end(self) -> None:
        """Once, after the last step: leave nothing behind."""

    def versions(self) -> dict[str, str]:
        """The framework's packages and their versions."""
        return {}

    def dtype(self) -> str:
        """The model's own floating-point dtype."""
        return "float64"

    def settings(self) -> dict[str, Any]:
        """The numbers that the optimizers were given, by the names of harness.models.update."""
        return {}

    def state(self) -> Tensors:
        """Parameters, buffers and slots as they are, copied."""
        return {}

    def load(self, tensors: Mapping[str, Array], step: int) -> None:
        """Put parameters, buffers and slots as they were after step `step` in place."""

    def given(self, name: str, value: Any, instead: Array | None, dtype: str | None) -> Any:
        """What the script goes on with for an input: `instead` in its place, in `dtype`."""
        return value if instead is None else instead

    def inputs(self, name: str, value: Any) -> Tensors:
        """What of an input of a step is traced, by name. Raises HarnessError for no array."""
        if isinstance(value, Mapping):
            raise HarnessError(
                f"rec.step({name}=..): a {type(value).__name__} is no array of numbers: give the "
                "model or its parameters to harness.record(..), or here each array by its name"
            )
        return {f"inputs/{name}": self.owned(value)}

    def takes(self, name: str, value: Any) -> bool:
        """Whether a logged value is a part of the state after the step, which the adapter keeps."""
        return False

    def watch(self, step: Step) -> AbstractContextManager[None]:
        """While a step runs: its points go to `step.see`, and it goes on with what that says."""
        return nullcontext()

    def finish(self, step: Step) -> None:
        """At the end of a step: what it left behind goes to `step.see`."""

    def owned(self, value: Any) -> Any:
        """A logged value as a trace takes it, copied where the script may change it."""
        return value

    def made(self, value: Any) -> Made | str | None:
        """How a logged value was made, or the name that it has already, where that is known."""
        return None

    def call(self, value: Any, name: str) -> None:
        """A logged value goes by this name from now on."""

    def callback(self, recorder: Any) -> Any:
        """What the framework's own training loop calls, so that `recorder` has its steps.

        Raises HarnessError where there is no such loop.
        """
        raise HarnessError(
            "callback: give the model, of Keras or Lightning, whose fit is to be recorded; in a "
            "loop of your own put `with rec.step(..)` of harness.record"
        )

    def tap(self, step: Step | None, name: str, value: Any) -> Any:
        """A value inside the model, by a name of the script's own; what the script goes on with."""
        if step is not None:
            step.see(name, self.owned(value))
        return value


def adapter_for(objects: Sequence[Any]) -> Adapter:
    """The adapter of the framework that these come from.

    Raises HarnessError for things of two frameworks, or of none.
    """
    found = {home: thing for thing in objects for home in _homes(thing)}
    if len(found) > 1:
        raise HarnessError(
            f"record: {' and '.join(sorted(found))} in one call: a script is of one framework; "
            "record each with its own"
        )
    if not found:
        if objects:
            raise HarnessError(
                f"record: a {type(objects[0]).__name__} is no model, optimizer or parameters of "
                "PyTorch, Keras or JAX: give those, or nothing and log what is to be compared"
            )
        return Adapter(())
    module = import_module(f"harness.capture.{next(iter(found))}")
    made: Adapter = module.adapter(objects)
    return made


def _homes(thing: Any) -> Iterator[str]:
    """The modules of this folder that a thing is for."""
    leaves = [thing]
    for _ in range(MOST_LEAVES):
        if not leaves:
            return
        leaf = leaves.pop(0)
        packages = [kind.__module__.partition(".")[0] for kind in type(leaf).__mro__]
        home = next((HOMES[package] for package in packages if package in HOMES), None)
        if home:
            yield home
            return
        if isinstance(leaf, Mapping):
            leaves += leaf.values()
        elif isinstance(leaf, list | tuple):
            leaves += leaf
