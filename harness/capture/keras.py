"""Recording TensorFlow and Keras 3: what layers hand on, gradients, variables, slots, how made.

Nothing is put into the computation while a step is recorded, eager or in functions, so the bits
of the training stay what they are. What XLA compiles is run as if nobody watched: its inputs and
what it leaves behind are seen, and nothing inside of it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import numpy as np

from harness.capture.adapter import Adapter, Array, Tensors
from harness.capture.keras_fit import RecordedFit
from harness.capture.keras_functions import Clones
from harness.capture.keras_hooks import hooked
from harness.capture.keras_names import Names, plain
from harness.capture.keras_optim import hyperparameters, inner, slots, update_of
from harness.capture.keras_tensors import as_array, is_tensor
from harness.capture.keras_watch import LOSS, OBJECTIVE, Watch
from harness.capture.record import Recorder
from harness.capture.step import Point, Step
from harness.errors import HarnessError
from harness.models.entries import Made
from harness.models.graph import name_of, parse

tf: Any = import_module("tensorflow")
keras: Any = import_module("keras")


def adapter(objects: Sequence[Any]) -> Adapter:
    """The adapter of a script in TensorFlow."""
    return Keras(objects)


class Keras(Adapter):
    """Recording of Keras models, tf.Modules and variables, and of Keras' optimizers."""

    def __init__(self, objects: Sequence[Any]) -> None:
        """`objects`: models, modules, variables, optimizers. Raises HarnessError for all else."""
        if keras.backend.backend() != "tensorflow":
            raise HarnessError(
                f"record: Keras runs on {keras.backend.backend()} here: give what is of "
                "that framework, or set KERAS_BACKEND=tensorflow"
            )
        self.optimizers = [x for x in objects if isinstance(x, keras.optimizers.Optimizer)]
        self.models = [x for x in objects if not isinstance(x, keras.optimizers.Optimizer)]
        for thing in self.models:
            if not _is_model(thing):
                raise HarnessError(
                    f"record: a {type(thing).__name__} is no model, module, variable or optimizer "
                    "of Keras or TensorFlow"
                )
        self._source: Any = None  # of inputs that are handed over to model.fit
        self._clones = Clones()
        self._inputs: dict[str, Any] = {}
        self._watch: Watch | None = None
        self._filled: set[str] = set()  # slots that held something before the first step
        self._steps: list[int] = []
        self._told = False

    # What the model is.

    def names(self) -> Names:
        """The parts of the models as they are now."""
        return Names(self.models)

    def _params(self, names: Names) -> dict[str, Any]:
        """The parameters by name; those that only an optimizer knows by their own names."""
        found = dict(names.params)
        known = {id(v) for v in (*found.values(), *names.buffers.values())}
        for optimizer in self.optimizers:
            for variable in getattr(inner(optimizer), "_trainable_variables", ()) or ():
                own = plain(variable)
                if id(own) not in known:
                    known.add(id(own))
                    found[f"optimizer/{getattr(variable, 'path', own.name.partition(':')[0])}"] = (
                        own
                    )
        return found

    def _variables(self) -> dict[str, Any]:
        names = self.names()
        found = {f"params/{name}": v for name, v in self._params(names).items()}
        return found | {f"buffers/{name}": v for name, v in names.buffers.items()}

    # The recorder's calls.

    def begin(self, dtype: str | None) -> None:
        """Keras' dtype is set before a model is made: here only what is narrower is told of."""
        compiled = [getattr(m, "optimizer", None) for m in self.models]
        for optimizer in compiled if not self.optimizers else ():
            if isinstance(optimizer, keras.optimizers.Optimizer):
                self.optimizers.append(optimizer)
        found = self.narrower(dtype) if dtype else []
        if found:
            print(
                f"harness: asked for {dtype}, and narrower: {', '.join(found[:8])}: "
                "keras.config.set_floatx and dtypes in the script decide over these",
                file=sys.stderr,
            )

    def narrower(self, dtype: str = "float64") -> list[str]:
        """The layers, and variables outside of them, that compute in less than `dtype`."""
        wanted = np.finfo(dtype).eps
        names = self.names()
        found = [
            names.layers[id(layer)]
            for layer in names.kept
            if layer._flatten_layers and _epsilon(layer.compute_dtype) > wanted
        ]
        found += [n for n, v in self._params(names).items() if _epsilon(v.dtype.name) > wanted]
        return found

    def end(self) -> None:
        """Nothing is left: a step takes its hooks away itself."""
        if self._clones.compiled and not self._told:
            self._told = True
            print(
                "harness: functions compiled by XLA (jit_compile) were recorded from outside: no "
                "activations and gradients; jit_compile=False shows them",
                file=sys.stderr,
            )

    def versions(self) -> dict[str, str]:
        """TensorFlow's and Keras'."""
        return {"tensorflow": str(tf.__version__), "keras": str(keras.__version__)}

    def dtype(self) -> str:
        """That of most parameters."""
        kinds = [str(v.dtype.name) for v in self._params(self.names()).values()]
        return max(set(kinds), key=kinds.count) if kinds else str(keras.config.floatx())

    def settings(self) -> dict[str, Any]:
        """The numbers of the optimizers, by the field's names."""
        found: dict[str, Any] = {}
        for optimizer in self.optimizers:
            found = {**hyperparameters(optimizer), **found}
            if isinstance(getattr(inner(optimizer), "_learning_rate", None), keras.Variable):
                found.setdefault("lr", float(optimizer.learning_rate))
        return found

    def state(self) -> Tensors:
        """Parameters, buffers and slots, copied."""
        found = {name: as_array(v) for name, v in self._variables().items()}
        return found | {name: as_array(v) for name, v in self._slots().items()}

    def _slots(self) -> dict[str, Any]:
        names = {id(v): name for name, v in self._params(self.names()).items()}
        return {
            f"optimizer/{names[id(plain(variable))]}/{slot}": plain(value)
            for optimizer in self.optimizers
            for variable, slot, value in slots(inner(optimizer))
            if id(plain(variable)) in names
        }

    def load(self, tensors: Mapping[str, Array], step: int) -> None:
        """Put weights, buffers and slots in place; an optimizer is made to have done `step`."""
        if not tensors:
            return
        names = self.names()
        unbuilt = [
            n for layer, n in ((x, names.layers[id(x)]) for x in names.kept) if not layer.built
        ]
        own = self._variables()
        if unbuilt and not any(name in own for name in tensors):
            raise HarnessError(
                f"the weights of {unbuilt[0]} are made at its first call: call the model once (or "
                "build it) before harness.record, so that weights can be handed over"
            )
        for optimizer in (
            self.optimizers if any(n.startswith("optimizer/") for n in tensors) else ()
        ):
            if not inner(optimizer).built and self.models:
                optimizer.build([v for v in self._params(names).values() if v.trainable])
        for name, variable in {**own, **self._slots()}.items():
            if name in tensors:
                _put(variable, tensors[name], name)
        if step:
            for optimizer in self.optimizers:
                inner(optimizer).iterations.assign(step)

    def given(self, name: str, value: Any, instead: Array | None, dtype: str | None) -> Any:
        """An input, in the run's dtype where it is of floats."""
        if instead is not None:
            value = tf.constant(instead, value.dtype) if is_tensor(value) else instead
        if dtype and is_tensor(value) and value.dtype.is_floating:
            value = tf.cast(value, dtype)
        elif dtype and getattr(getattr(value, "dtype", None), "kind", "") == "f":
            value = value.astype(dtype)
        self._inputs[name] = value
        return value

    def owned(self, value: Any) -> Any:
        """A copy of a tensor that the script may go on to change."""
        if is_tensor(value) or isinstance(value, tf.Variable | keras.Variable | tf.IndexedSlices):
            return as_array(plain(value))
        return np.array(value) if isinstance(value, np.ndarray) else value

    def made(self, value: Any) -> Made | str | None:
        """How a tensor, or the number that was taken from it, was made."""
        if self._watch is None:
            return None
        if (is_tensor(value) or isinstance(value, np.ndarray)) and id(value) in self._watch.known:
            found = self._watch.named(self._watch.known[id(value)][1])
            found = self._watch.resolved(found, None)
            if isinstance(found, str | Made) and not (
                isinstance(found, Made) and found.op == "unknown"
            ):
                return found
        try:
            number = float(value)
        except (TypeError, ValueError):
            return None
        objective = self._watch.objective
        if objective is None:
            return None
        return (
            OBJECTIVE
            if number == objective or (number != number and objective != objective)
            else None
        )

    def call(self, value: Any, name: str) -> None:
        """A logged tensor is known by this name to what is made of it."""
        if self._watch and is_tensor(value):
            self._watch.know(value, name)
        if self._watch and name == LOSS:
            self._watch.renamed(OBJECTIVE, LOSS)

    def tap(self, step: Step | None, name: str, value: Any) -> Any:
        """A tensor inside of the model, which may be fed."""
        if step is None or self._watch is None or not is_tensor(value):
            return value
        return self._watch.point(name, value)

    def callback(self, recorder: Recorder) -> RecordedFit:
        """For model.fit."""
        run = recorder.run
        self._source = recorder.handed if run.replay or run.follow else None
        return RecordedFit(recorder)

    @contextmanager
    def watch(self, step: Step) -> Iterator[None]:
        """Wrappers and the callback for operations, for one step."""
        names = self.names()
        variables = self._variables()
        handles = {id(v.handle): name for name, v in variables.items()}
        unbuilt = any(not layer.built for layer in names.kept) or not variables
        open_ended = unbuilt or any(not isinstance(m, keras.layers.Layer) for m in self.models)
        more = self._variables if open_ended else None
        watch = self._watch = Watch(step, handles, self._inputs, more)
        watch.source = self._source
        self._steps = [int(inner(o).iterations.numpy()) for o in self.optimizers]
        watch.rates = {k: float(o.learning_rate) for k, o in enumerate(self.optimizers)}
        if step.number == 1:
            self._filled = {n for n, v in self._slots().items() if as_array(v).any()}
        paths = _Paths(self.names, names, open_ended)
        with hooked(watch, paths, self._clones, self.optimizers):
            yield

    def finish(self, step: Step) -> None:
        """What the step left: gradients as they were applied, slots, parameters and buffers."""
        watch, self._watch = self._watch, None
        if watch is None:
            return
        later = dict(watch.later)
        for k, optimizer in enumerate(self.optimizers):
            if int(inner(optimizer).iterations.numpy()) == self._steps[k]:
                continue  # it did nothing
            rate = inner(optimizer)._learning_rate
            value = float(rate.value) if isinstance(rate, keras.Variable) else watch.rates[k]
            value = watch.rates[k] if k in watch.applied else value
            step.see("update/learning_rate" + (f"/{k}" if k else ""), value)
        later |= self._updates(step, watch)
        for name, tensor in self.state().items():
            made = later.get(name)
            step.see(name, tensor, None if step.number == 1 and name in self._filled else made)
        if watch.roots > 1:
            _forget(step, OBJECTIVE, LOSS)
        _drop_misplaced(step)

    def _updates(self, step: Step, watch: Watch) -> dict[str, Made]:
        """How slots and parameters are made of the gradients that the optimizers went on with."""
        params = self._params(self.names())
        # Clipping that found nothing to clip is clipping, too: a step has the points of all steps.
        changed = any(isinstance(given.made, Made) for given in watch.given.values()) or any(
            _clipped(step, key, given.array) for key, given in watch.given.items()
        )
        later: dict[str, Made] = {}
        for key, (array, made, rows) in watch.given.items():
            place, _, name = key.partition("/")
            k = int(place)
            source = f"grads/{name}"
            if changed or source not in step.points:
                source = f"update/clipped/{name}"
                step.see(source, array, made if isinstance(made, Made) else None)
            done = self._steps[k] + 1
            number: Made | float = Made("step", (), {}) if done == step.number else float(done)
            rate = "update/learning_rate" + (f"/{k}" if k else "")
            variable = params.get(name)
            if variable is not None:
                moved = update_of(self.optimizers[k], variable, name, source, rate, number)
                later |= {n: m for n, m in moved.items() if not (rows and _squares(m))}
        return later


class _Paths:
    """The paths of layers, of those too that are made while a step runs."""

    def __init__(self, names: Callable[[], Names], now: Names, more: bool) -> None:
        self._names, self._now, self._more = names, now, more
        self._strange: list[Any] = []  # layers that are no part of the models

    def __call__(self, layer: Any) -> str | None:
        found = self._now.path(layer)
        if found is None and self._more and not any(layer is one for one in self._strange):
            self._now = self._names()
            found = self._now.path(layer)
            if found is None:
                self._strange.append(layer)
        return found


def _is_model(thing: Any) -> bool:
    kinds = keras.layers.Layer | keras.Variable | tf.Variable | tf.Module
    if isinstance(thing, Mapping):
        return all(map(_is_model, thing.values()))
    if isinstance(thing, list | tuple):
        return all(map(_is_model, thing))
    return isinstance(thing, kinds)


def _epsilon(dtype: str) -> float:
    if dtype in ("float16", "float32", "float64"):
        return float(np.finfo(dtype).eps)
    return 2**-7 if dtype == "bfloat16" else 0.0


def _put(variable: Any, array: Array, name: str) -> None:
    """Write an array into a variable. Raises HarnessError for another shape."""
    if tuple(variable.shape) != array.shape:
        raise HarnessError(
            f"{name}: handed over as {list(array.shape)}, and the script has "
            f"{list(variable.shape)}: the two models differ"
        )
    variable.assign(array.astype(variable.dtype.as_numpy_dtype))


def _clipped(step: Step, key: str, array: Array) -> bool:
    """Whether an optimizer went on with something else than the tape made."""
    name = key.partition("/")[2]
    if step.fed:  # the other side's gradient is no clipped one
        return step.onward(f"update/clipped/{name}", array.shape) is not None
    return not _same(step.points.get(f"grads/{name}"), array)


def _squares(made: Any) -> bool:
    """Whether an expression squares: Keras does so row by row, before it adds rows up."""
    return isinstance(made, Made) and (made.op == "square" or any(map(_squares, made.operands)))


def _same(point: Point | None, array: Array) -> bool:
    """Whether a gradient is the one that the tape made, bit for bit."""
    if point is None or point.array.dtype != array.dtype:
        return False
    equal = point.array == array
    return bool((equal | ((point.array != point.array) & (array != array))).all())


def _forget(step: Step, *names: str) -> None:
    """Where several things are minimised, no gradient follows from one of them alone."""
    for name in names:
        if name in step.points:
            step.points[name] = Point(step.points[name].array)


def _drop_misplaced(step: Step) -> None:
    """A stage that reads what comes after it is none."""
    order = {name: k for k, name in enumerate(step.tensors())}
    for name, point in list(step.points.items()):
        if point.made is not None and any(
            order.get(text, -1) >= order[name] for text in _read_now(point.made)
        ):
            step.points[name] = Point(point.array)


def _read_now(made: Any) -> Iterator[str]:
    """The tensors of this step that an expression reads."""
    if isinstance(made, Made):
        for x in made.operands:
            yield from _read_now(x)
    elif isinstance(made, str) and "@" not in made:
        yield name_of(parse(made))
