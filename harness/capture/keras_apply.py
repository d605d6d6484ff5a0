"""What an optimizer of Keras is given, and goes on with after it has clipped."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from harness.capture.keras_gradients import fed_gradient, keep_gradient
from harness.capture.keras_optim import inner
from harness.capture.keras_watch import Watch
from harness.models.entries import Made

tf: Any = import_module("tensorflow")
rules: Any = import_module("keras.src.optimizers.base_optimizer")
NORM = "update/global_norm"


def applied(
    optimizers: Sequence[Any],
    watch: Watch,
    original: Any,
    optimizer: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """An optimizer is given gradients."""
    place = next((i for i, o in enumerate(optimizers) if o is optimizer), None)
    if place is None or watch.off or not watch.in_sight():
        with watch.unseen():
            return original(optimizer, *args, **kwargs)
    given = dict(zip(("grads", "trainable_variables"), args, strict=False)) | kwargs
    given["grads"] = grads = list(given["grads"])
    variables = given.get("trainable_variables")
    if variables is not None:
        given["trainable_variables"] = variables = list(variables)
    else:
        variables = inner(optimizer)._trainable_variables
    pairs = [(v, g) for v, g in zip(variables, grads, strict=False) if g is not None]
    names = [watch.name_of(v.handle) for v, _ in pairs]
    if tf.executing_eagerly():
        with watch.unseen():
            watch.rates[place] = float(optimizer.learning_rate)
            watch.applied.add(place)
    with watch.unseen(), _clipping(watch, inner(optimizer), place, names):
        result = original(optimizer, **given)
    watch.moved.update(name for name in names if name)
    return result


@contextmanager
def _clipping(
    watch: Watch, optimizer: Any, place: int, names: Sequence[str | None]
) -> Iterator[None]:
    """While this lasts, what the optimizer goes on with after clipping is kept."""

    def clip(grads: Any) -> Any:
        return _clipped(watch, optimizer, place, names, list(grads))

    object.__setattr__(optimizer, "_clip_gradients", clip)
    try:
        yield
    finally:
        object.__delattr__(optimizer, "_clip_gradients")


def _clipped(
    watch: Watch, optimizer: Any, place: int, names: Sequence[str | None], grads: list[Any]
) -> list[Any]:
    """The gradients after clipping, each kept; another's in their place where that is asked for."""
    off, watch.off = watch.off, 0
    try:
        with _norm(watch):
            found = list(type(optimizer)._clip_gradients(optimizer, grads))
    finally:
        watch.off = off
    if not watch.in_sight() or len(found) != len(names):
        return found
    for i, (name, old, new) in enumerate(zip(names, grads, found, strict=True)):
        if name is None or new is None:
            continue
        path = name.partition("/")[2]
        keep_gradient(watch, f"{place}/{path}", new, _made(watch, optimizer, old, new), "given")
        found[i] = fed_gradient(watch, f"update/clipped/{path}", new)
    return found


def _made(watch: Watch, optimizer: Any, old: Any, new: Any) -> Any:
    """How what an optimizer goes on with was made of what it was given."""
    if optimizer.clipnorm and optimizer.clipnorm > 0:
        return Made("clip_tensor", (watch.of(old), 0.0, float(optimizer.clipnorm)), {})
    if optimizer.global_clipnorm and optimizer.global_clipnorm > 0:
        return Made("clip_by_norm", (watch.of(old), NORM, float(optimizer.global_clipnorm)), {})
    if optimizer.clipvalue and optimizer.clipvalue > 0:
        return Made("clip_elements", (watch.of(old), 0.0, float(optimizer.clipvalue)), {})
    return watch.of(new)


@contextmanager
def _norm(watch: Watch) -> Iterator[None]:
    """While this lasts, the norm that Keras takes of all gradients is kept."""
    original = rules.global_norm

    def norm(values: Any) -> Any:
        with watch.unseen():
            found = original(values)
        if watch.in_sight():
            of = tuple(watch.of(v) for v in values if v is not None)
            rows = any(isinstance(v, tf.IndexedSlices) for v in values)  # not added up before it
            made = None if rows else Made("global_norm", of, {})
            watch.know(found, watch.keep(NORM, (found,), made, "fixed"))
        return found

    rules.global_norm = norm
    try:
        yield
    finally:
        rules.global_norm = original
