"""Recording what Lightning's Trainer does: a callback that makes each update of weights a step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from torch import nn

from harness.errors import HarnessError

if TYPE_CHECKING:
    from harness.capture.record import Recorder

HOMES = {"lightning": "lightning.pytorch", "pytorch_lightning": "pytorch_lightning"}
PARTS = ("x", "y")  # of a batch that is a pair


def recorded_trainer(recorder: Recorder, model: nn.Module, optimizers: list[Any]) -> Any:
    """The callback for a Trainer that fits `model`; `optimizers` is filled when training begins.

    Raises HarnessError for a model that is no LightningModule.
    """
    packages = [kind.__module__.partition(".")[0] for kind in type(model).__mro__]
    home = next((HOMES[package] for package in packages if package in HOMES), None)
    if home is None:
        raise HarnessError(
            f"callback: a {type(model).__name__} is no LightningModule: put `with rec.step(..)` of "
            "harness.record into the loop"
        )
    # The class of callbacks is that of the package which the model comes from.
    base: Any = import_module(home).Callback
    kind = type("RecordedTrainer", (_Hooks, base), {})
    return kind(recorder, model, optimizers)


class _Hooks:
    """The hooks of Lightning's Callback, by its names."""

    def __init__(self, recorder: Recorder, model: nn.Module, optimizers: list[Any]) -> None:
        super().__init__()
        self._recorder, self._model, self._optimizers = recorder, model, optimizers
        self._step: Any = None  # the one that is open: several batches may make one
        self._open, self._updates, self._batches = False, 0, 0
        self._batch: Any = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Open the trace."""
        self._optimizers[:] = trainer.optimizers
        self._recorder.__enter__()
        self._open = True

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        """Begin a step, or go on with it; the model is handed what the step goes on with."""
        inputs = _named(batch)
        if self._step is None:
            self._updates, self._batches = trainer.global_step, 1
            self._step = self._recorder.step(**inputs)
            handed = self._step.__enter__()
            values = [handed] if len(inputs) == 1 else handed
        else:
            self._batches += 1
            values = self._recorder.more(self._batches, inputs)
        handed_batch = _rebuilt(batch, dict(zip(inputs, values, strict=True)))
        own: Callable[..., Any] = type(pl_module).training_step

        def training_step(given: Any, *args: Any, **kwargs: Any) -> Any:
            result = own(pl_module, handed_batch, *args, **kwargs)
            loss = result.get("loss") if isinstance(result, Mapping) else result
            if loss is not None:
                self._recorder.log(loss=loss)
            return result

        pl_module.training_step = training_step

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        """End the step, if the weights were updated."""
        pl_module.__dict__.pop("training_step", None)
        if self._step is not None and trainer.global_step > self._updates:
            step, self._step = self._step, None
            step.__exit__(None, None, None)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Close the trace. Batches after the last update are no step."""
        self._end(None)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Close the trace, which is not whole."""
        pl_module.__dict__.pop("training_step", None)
        self._end(exception)

    def _end(self, error: BaseException | None) -> None:
        step, self._step = self._step, None
        if step is not None:
            unfinished = error or HarnessError("no update")
            step.__exit__(type(unfinished), unfinished, None)
            self._recorder.undo()
        if self._open:
            self._open = False
            kind = None if error is None else type(error)
            self._recorder.__exit__(kind, error, None)


def _named(batch: Any) -> dict[str, Any]:
    """The parts of a batch by name: its own keys, x and y of a pair, or numbers."""
    if isinstance(batch, Mapping):
        return {str(name): value for name, value in batch.items()}
    if isinstance(batch, tuple | list):
        names = PARTS if len(batch) == len(PARTS) else [str(k) for k in range(len(batch))]
        return dict(zip(names, batch, strict=True))
    return {"x": batch}


def _rebuilt(batch: Any, values: Mapping[str, Any]) -> Any:
    """A batch with other parts."""
    if isinstance(batch, Mapping):
        names = zip(batch, values.values(), strict=True)
        return {**batch, **dict(names)}
    if isinstance(batch, tuple | list):
        made = list(values.values())
        if hasattr(batch, "_fields"):
            return type(batch)(*made)
        return type(batch)(made)
    return values["x"]
