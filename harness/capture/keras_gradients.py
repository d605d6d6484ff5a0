"""What a tape makes: gradients of weights, and of what layers hand on."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np

from harness.capture.keras_feed import fetch
from harness.capture.keras_tensors import MARK, is_eager, is_tensor
from harness.capture.keras_watch import LOSS, OBJECTIVE, UNKNOWN, Watch

tf: Any = import_module("tensorflow")


def gradient(
    watch: Watch, original: Any, tape: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """A tape is asked for gradients: those of the points are asked for too."""
    given = dict(
        zip(("target", "sources", "output_gradients", "unconnected_gradients"), args, strict=False)
    )
    given |= kwargs
    target, sources = given.pop("target"), given.pop("sources")
    flat = tf.nest.flatten(sources)
    root = next((x for x in tf.nest.flatten(target) if is_tensor(x)), None)
    if root is None or not _here(root, watch):
        with watch.unseen():
            return original(tape, target, sources, **given)
    _root(watch, root)
    points = [(x, key) for x, key in watch.points if _same_place(x, root)]
    with watch.unseen():
        found = original(tape, target, [*flat, *(x for x, _ in points)], **given)
    zeros = given.get("unconnected_gradients", tf.UnconnectedGradients.NONE)
    zeros = zeros in (tf.UnconnectedGradients.ZERO, "zero")
    for (_, key), g in list(zip(points, found[len(flat) :], strict=True))[::-1]:
        plain = key.partition(MARK)[0]
        if g is not None and not plain.startswith((LOSS, OBJECTIVE)):
            keep_gradient(watch, f"backward/{plain.partition('/')[2]}", g, like=key, zeros=zeros)
    found = [_of_weight(watch, s, g) for s, g in zip(flat, found, strict=False)]
    return tf.nest.pack_sequence_as(sources, found)


def _here(x: Any, watch: Watch) -> bool:
    return is_eager(x) or id(x.graph) in watch.graphs


def _same_place(x: Any, root: Any) -> bool:
    """Whether both have values, or are of one graph."""
    if is_eager(x) or is_eager(root):
        return is_eager(x) and is_eager(root)
    return x.graph is root.graph


def _root(watch: Watch, root: Any) -> None:
    """What gradients are taken of is what is minimised, if it has no name yet."""
    known = watch.known.get(id(root), (None, None))[1]
    watch.keep("root", (), kind="root")
    if isinstance(known, str) and known.startswith("forward/"):
        return
    watch.know(root, watch.keep(OBJECTIVE, (root,), known))


def _of_weight(watch: Watch, source: Any, g: Any) -> Any:
    """A gradient that the tape made; what the step goes on with."""
    handle = getattr(source, "handle", None)
    name = watch.name_of(handle) if handle is not None else None
    if g is None:
        return None
    if name is None or not name.startswith("params/"):
        if is_tensor(g):
            watch.know(g, UNKNOWN)
        return g
    point = f"grads/{name.partition('/')[2]}"
    key = keep_gradient(watch, point, g)
    g = fed_gradient(watch, point, g)
    watch.know(g, key)
    if isinstance(g, tf.IndexedSlices):
        watch.know(g.values, UNKNOWN)
    return g


def keep_gradient(
    watch: Watch,
    name: str,
    g: Any,
    made: Any = None,
    kind: str = "",
    like: str = "",
    zeros: bool = False,
) -> str:
    """Keep a gradient; rows of a table as their sum."""
    if not isinstance(g, tf.IndexedSlices):

        def unless_zero(arrays: list[Any]) -> Any:
            return np.array(arrays[0]) if arrays[0].any() else None

        how: Any = unless_zero if zeros else None
        return watch.keep(name, (g,), made, kind, how, like)
    with watch.unseen():
        parts = g.values, g.indices, g.dense_shape
        return watch.keep(name, parts, made, kind, _dense, like)


def _dense(arrays: list[Any]) -> Any:
    """The sum of rows, as a matrix."""
    rows, places, shape = arrays
    made = np.zeros(tuple(int(n) for n in shape), rows.dtype)
    np.add.at(made, places, rows)
    return made


def fed_gradient(watch: Watch, point: str, g: Any) -> Any:
    """Another's gradient in its place; rows stay rows."""
    if not watch.step.fed:
        return g
    if not isinstance(g, tf.IndexedSlices):
        return fetch(watch, point, g)
    dense = tf.convert_to_tensor(g)
    with watch.unseen():
        other = fetch(watch, point, dense)
        if other is dense:
            return g
        first = tf.cast(_first(g.indices), g.values.dtype)
        rows = tf.gather(other, g.indices) * first[:, None]
        return tf.IndexedSlices(rows, g.indices, g.dense_shape)


def _first(indices: Any) -> Any:
    """Which of some places are named for the first time."""
    same = tf.cast(tf.equal(indices[:, None], indices[None, :]), tf.int32)
    before = tf.linalg.band_part(same, -1, 0) - tf.linalg.band_part(same, 0, 0)
    return tf.equal(tf.reduce_sum(before, 1), 0)
