"""The functions of a script (tf.function), traced once more for recording."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from harness.capture.keras_calls import Pending
from harness.capture.keras_feed import watching
from harness.capture.keras_tensors import MARK, Taps, is_tensor
from harness.capture.keras_watch import UNKNOWN, Watch
from harness.models.entries import Made

tf: Any = import_module("tensorflow")
functions: Any = import_module("tensorflow.python.eager.polymorphic_function.polymorphic_function")
autographs: Any = import_module("tensorflow.python.eager.polymorphic_function.autograph_util")
statuses: Any = import_module("tensorflow.python.autograph.core.ag_ctx")
decorators: Any = import_module("tensorflow.python.util.tf_decorator")


class Clones:
    """A function for each of the script's, that hands out what is to be kept.

    The script's own is not traced while a step is recorded, and so has nothing of ours in it.
    """

    def __init__(self) -> None:
        """None yet."""
        self._made: dict[tuple[int, bool], tuple[Any, Any]] = {}
        self._last: Taps | None = None
        self._status: list[Any] = []  # of autograph, where these were called
        self.compiled = False  # whether one was met that is compiled by XLA

    def call(
        self, watch: Watch, original: Any, function: Any, args: tuple[Any, ...], kwargs: Any
    ) -> Any:
        """Call what stands for a function."""
        if watch.off or watch.inside or function._jit_compile or not watch.in_sight():
            self.compiled |= bool(function._jit_compile)
            watch.busy += 1
            try:
                return original(function, *args, **kwargs)
            finally:
                watch.busy -= 1
        if function._run_functions_eagerly:
            return original(function, *args, **kwargs)
        eager = tf.executing_eagerly()
        clone = self._of(function, watch.step.fed) if eager else self._new(function)
        watch.arguments.append(tf.nest.flatten((args, kwargs)))
        watch.before.append(set(watch.moved))
        self._status.append(statuses.control_status_ctx())
        watch.ran = self._last = None
        try:
            result = original(clone, *args, **kwargs)
        finally:
            watch.arguments.pop()
            watch.before.pop()
            self._status.pop()
        if self._last is not None and not eager:
            watch.moved.update(self._last.moved)
        self._known(watch, result, watch.ran if eager else self._last)
        return result

    def _known(self, watch: Watch, result: Any, taps: Taps | None) -> None:
        """How what a function returned was made."""
        found = [x for x in tf.nest.flatten(result) if is_tensor(x)]
        made = taps.results if taps is not None else []
        for x, how in zip(
            found, made if len(made) == len(found) else [None] * len(found), strict=True
        ):
            how = watch.named(how) if tf.executing_eagerly() else how
            if how is not None or x.dtype.is_floating:
                watch.know(x, UNKNOWN if how is None else how)

    def _of(self, function: Any, fed: bool) -> Any:
        key = id(function), fed
        if key not in self._made:
            self._made[key] = function, self._new(function)
        return self._made[key][1]

    def _new(self, function: Any) -> Any:
        python = function._python_function
        body = python
        if function._autograph:
            options = function._experimental_autograph_options
            body = autographs.py_func_from_autograph(python, options)

        def traced(*args: Any, **kwargs: Any) -> Any:
            watch = watching()
            if watch is None:
                return body(*args, **kwargs)
            graph = tf.compat.v1.get_default_graph()
            taps = Taps(graph)
            taps.moved |= watch.before[-1]
            watch.graphs[id(graph)] = taps
            _arguments(watch, taps, tf.nest.flatten((args, kwargs)))
            status = self._status[-1]
            with statuses.ControlStatusCtx(status.status, status.options):
                result = body(*args, **kwargs)
            if watch.graphs.get(id(graph)) is taps:
                leaves = [x for x in tf.nest.flatten(result) if is_tensor(x)]
                taps.results = [_result(watch, taps, x) for x in leaves]
                watch.ended(taps)
            self._last = taps
            return result

        clone = function._clone(decorators.make_decorator(python, traced))
        clone._autograph = False
        return clone


def _arguments(watch: Watch, taps: Taps, leaves: list[Any]) -> None:
    """What a function is called with, is known as what it is outside."""
    outer = watch.arguments[-1]
    nested = len(watch.arguments) > 1
    for place, x in enumerate(leaves):
        if not is_tensor(x) or len(outer) != len(leaves):
            continue
        if nested:
            if id(outer[place]) in watch.known:
                watch.know(x, watch.known[id(outer[place])][1])
            continue
        key = f"argument{MARK}{id(taps)}.{place}"
        taps.arguments[key] = place
        watch.know(x, key)


def _result(watch: Watch, taps: Taps, x: Any) -> Any:
    """How a result was made, as far as that is known."""
    made = watch.known.get(id(x), (None, None))[1]
    if made is None or isinstance(made, Pending):
        return None
    return watch.resolved(made, taps) if isinstance(made, Made) else made
