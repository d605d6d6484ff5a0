"""What a step goes on with in place of its own tensors, where it follows another side."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from numpy.typing import NDArray

from harness.capture.keras_tensors import MARK, is_eager, logits_of

tf: Any = import_module("tensorflow")

Array = NDArray[Any]
CURRENT: list[Any] = []  # the watch of the step that is being recorded, if any


def watching() -> Any:
    """The step that is being recorded, if any, and if something is to be seen of it now."""
    return CURRENT[-1] if CURRENT and not CURRENT[-1].busy else None


def fed(watch: Any, value: Any, key: str) -> Any:
    """What the step goes on with; back-propagation is told of it, and may be fed too."""
    name = key.partition(MARK)[0]
    onward = fetch(watch, name, value)

    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def swapped(x: Any) -> Any:
        back = name.replace("forward/", "backward/", 1)
        return tf.identity(onward), lambda dy: fetch(watch, back, dy)

    with watch.unseen():
        made = swapped(value)
    logits = logits_of(value)
    if logits is not None:
        made._keras_logits = logits  # a loss reads these, and not what was made of them
    if getattr(value, "_keras_mask", None) is not None:
        made._keras_mask = value._keras_mask
    return made


def fetch(watch: Any, name: str, value: Any) -> Any:
    """Another's tensor of this name in a tensor's place, where there is one."""
    if not watch.step.fed:
        return value
    return _instead(watch, name, value, lambda now, shape: now.step.onward(name, shape))


def handed(watch: Any, name: str, value: Any) -> Any:
    """An input of the step: the one that is handed over, or its own."""
    if watch.source is None:
        return value
    plain = name.partition("/")[2]
    return _instead(watch, name, value, lambda now, shape: now.source(now.step.number, plain))


def _instead(watch: Any, name: str, value: Any, found: Callable[..., Array | None]) -> Any:
    """What `found` gives in this step in a tensor's place, now or when the function runs."""

    def other(array: Any) -> Any:
        now = CURRENT[-1] if CURRENT else None
        fed = found(now, tuple(array.shape)) if now is not None else None
        return array if fed is None else fed.astype(array.dtype)

    with watch.unseen():
        if is_eager(value):
            fed = found(watch, tuple(value.shape))
            return value if fed is None else tf.constant(fed.astype(value.dtype.as_numpy_dtype))
        made = tf.numpy_function(other, [value], value.dtype)
        made.set_shape(value.shape)
        return made
