"""Recording what `model.fit` does: a callback that makes each batch of training a step."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from harness.capture.keras_feed import handed, watching
from harness.capture.keras_tensors import is_tensor
from harness.capture.keras_watch import Watch
from harness.capture.record import Recorder
from harness.errors import HarnessError

tf: Any = import_module("tensorflow")
keras: Any = import_module("keras")
PARTS = ("x", "y", "sample_weight")


class RecordedFit(keras.callbacks.Callback):  # type: ignore[misc]
    """Records the training batches of `model.fit`: give it to fit's `callbacks`.

    The function that fit trains with is traced once more, with the same operations, for the steps
    that are recorded; fit's own is untouched.
    """

    def __init__(self, recorder: Recorder) -> None:
        """`recorder` is of the model that is fitted."""
        super().__init__()
        self._recorder = recorder
        self._function: Callable[..., Any] | None = None
        self._open = False

    def on_train_begin(self, logs: Any = None) -> None:
        """Open the trace."""
        steps = int(getattr(self.model, "steps_per_execution", 1) or 1)
        if steps != 1:
            raise HarnessError(
                f"model.fit runs {steps} steps at once: compile with steps_per_execution=1, which "
                "computes the same, so that each can be recorded"
            )
        self._recorder.__enter__()
        self._open, self._function = True, None

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """For one call, the model trains with what is recorded."""
        model = self.model
        own = model.train_function
        if self._function is None:
            self._function = _built(model, own)
        function = self._function

        def once(iterator: Any) -> Any:
            model.train_function = own
            return self._step(function, iterator)

        model.train_function = once

    def _step(self, function: Callable[..., Any], iterator: Any) -> Any:
        """One batch. An exception closes the trace, but for the one that ends an epoch."""
        recorder = self._recorder
        try:
            with recorder.step():
                result = function(iterator)
                watch = watching()
                if watch is not None:
                    watch.fitted()
        except (StopIteration, tf.errors.OutOfRangeError):
            recorder.undo()
            raise
        except BaseException as error:
            self._open = False
            recorder.__exit__(type(error), error, error.__traceback__)
            raise
        return result

    def on_train_end(self, logs: Any = None) -> None:
        """Close the trace."""
        if self._open:
            self._open = False
            self._recorder.__exit__(None, None, None)


def _built(model: Any, own: Callable[..., Any]) -> Callable[..., Any]:
    """The function that fit trains with, made anew, which says what data it is given."""
    step = model.train_step

    def seen(data: Any) -> Any:
        watch = watching()
        if watch is not None and watch.in_sight():
            data = _handed(watch, data)
        return step(data)

    object.__setattr__(model, "train_step", seen)
    try:
        model.make_train_function(force=True)
        function: Callable[..., Any] = model.train_function
    finally:
        object.__delattr__(model, "train_step")
        model.train_function = own
    return function


def _handed(watch: Watch, data: Any) -> Any:
    """The parts of a batch as inputs of the step; what the step goes on with."""
    parts = data if isinstance(data, tuple) else (data,)
    found = []
    for name, part in zip(PARTS, parts, strict=False):
        leaves = tf.nest.flatten(part)
        names = [name] if len(leaves) == 1 else [f"{name}/{i}" for i in range(len(leaves))]
        made = [_input(watch, n, x) for n, x in zip(names, leaves, strict=True)]
        found.append(tf.nest.pack_sequence_as(part, made))
    return (*found, *parts[len(PARTS) :]) if isinstance(data, tuple) else found[0]


def _input(watch: Watch, name: str, x: Any) -> Any:
    if not is_tensor(x):
        return x
    x = handed(watch, f"inputs/{name}", x)
    key = watch.keep(f"inputs/{name}", (x,), kind="fixed")
    watch.know(x, key)
    return x
