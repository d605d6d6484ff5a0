"""What can be wrong with one operand: it is another tensor, or this one read in another way."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import permutations
from typing import Any

from harness.explain.say import figure, say
from harness.explain.scene import Edit, Made, Scene, nearest_names, weights_at
from harness.models.graph import BATCH, TIME, Blocks, Node, below, const, is_ref, name_of, node, ref
from harness.models.ops.changes import FORMATS


def of_reference(x: Node, scene: Scene, made: Made) -> Iterator[Edit]:
    """A tensor from another timestep, step or place, in another order or format."""
    yield from _other_times(x, scene, made)
    yield from _other_steps(x, scene, made)
    yield from _other_tensors(x, scene, made)
    if name_of(x).startswith("update/clipped/"):
        old = ref(f"params/{name_of(x).removeprefix('update/clipped/')}", back=1)
        decays = any(y.op == "decay_gradient" for y in below(scene.base))
        for decay in () if decays else scene.settings.get("weight_decay", ()):
            decayed = node("decay_gradient", x, weights_at(old, 1), const(decay, "weight_decay"))
            words = f"adds the weight decay {figure(decay)} to {name_of(x)}"
            if decay:
                yield made("operand-added", words, decayed, 5)
    said, shape = say(x, scene.graph), scene.shapes.get(name_of(x), ())
    axes = scene.graph.axes(name_of(x)) if scene.graph else ()
    if name_of(x).startswith("inputs/") and not name_of(x).startswith("inputs/params/"):
        yield from other_rows(x, axes, said, made, 6.5)
        for of in scene.settings.get("vocab_size", ()) if axes[:2] == (BATCH, TIME) else ():
            for by, words in ((1, "one more"), (-1, "one less")):
                new = node("next_class", x, by=by, of=int(of))
                yield made("shift", f"takes each token of {said} as {words}", new, 6)
        return
    if name_of(x).startswith("update/clipped/") and len(shape) > 1:
        for axis in range(len(shape)):
            words = f"takes the mean along axis {axis} off {said} (centred gradients)"
            yield made("formula", words, node("centred", x, axis=axis), 6)
    yield made("formula", f"takes the absolute values of {said}", node("absolute", x), 6)
    yield made("operand-missing", f"takes zeros for {said}", node("zeros", x), 4.5)
    yield made("sign", f"turns the sign of {said}", node("negate", x), 5)
    if len(shape) == 2 and not set(axes) & {BATCH, TIME}:
        if shape[0] == shape[1]:
            turned = node("axes_ordered", x, order=(1, 0))
            yield made("transposed", f"transposes {said}", turned, 5)
        else:
            for op, how in (("axes_ordered", "as"), ("axes_read", "in the layout of")):
                words = f"reads {said} {how} its transpose"
                yield made("transposed", words, node(op, x, order=(1, 0)), 6)
    if len(shape) >= 2 and axes[:2] == (BATCH, TIME):
        order = (1, 0, *range(2, len(shape)))
        for op in ("axes_ordered", "axes_read"):
            words = f"reads {said}, which lies batch-major, as time-major"
            yield made("transposed", words, node(op, x, order=order), 6)
    last = axes[-1] if axes else None
    if isinstance(last, Blocks):
        yield from block_orders(x, last, said, made)
        if len(shape) == 2 and shape[1] == shape[0] * len(last.names):
            for k, name in enumerate(last.names):
                turned = node("block_turned", x, index=k, of=len(last.names))
                yield made("transposed", f"transposes {last.word} {name} of {said}", turned, 6)
    yield from other_rows(x, axes, said, made)
    for to in FORMATS:
        if to != "float32":
            words = f"rounds {said} to {to}"
            yield made("reduced-precision", words, node("rounded", x, to=to), 6, to)


def block_orders(x: Node, axis: Blocks, said: str, made: Made) -> Iterator[Edit]:
    """The blocks of the last axis (the gates of a layer) in every other order."""
    plain = tuple(range(len(axis.names)))
    for order in permutations(plain):
        if order != plain:
            # What is read in an order lies, by its names, in the inverse one.
            lie = [order.index(k) for k in plain] if is_ref(x) else order
            comma = ", " if max(map(len, axis.names)) > 1 else ""
            names = comma.join(axis.names[k] for k in lie)
            does = "reads" if is_ref(x) else "has"
            words = f"{does} the {axis.word}s of {said} in the order {names}"
            yield made("block-order", words, node("blocks", x, order=order), 5)


def other_rows(
    x: Node, axes: tuple[Any, ...], said: str, made: Made, bits: float = 7.0
) -> Iterator[Edit]:
    """Reversed or moved by one along the batch or time, whatever comes in at the end."""
    for axis, word in enumerate(axes[:2]):
        if word in (BATCH, TIME):
            words = f"has the {word}s of {said} in reverse order"
            yield made("permuted-rows", words, node("flipped", x, axis=axis), bits)
            for by in (1, -1):
                words = f"takes the {word} {'before' if by > 0 else 'after'} of {said}"
                end = f", and its {'last for the first' if by > 0 else 'first for the last'}"
                words += end if word == TIME else ""
                yield made("shift", words, node("rolled", x, axis=axis, by=by), bits)


def _other_times(x: Node, scene: Scene, made: Made) -> Iterator[Edit]:
    axes = scene.graph.axes(name_of(x)) if scene.graph else ()
    if TIME not in axes[1:2]:
        return
    time, back, first, said = x.arg("time"), x.arg("back"), x.arg("first"), say(x, scene.graph)
    for other in (-1, 0, 1):
        if other == time:
            continue
        state = f"state/in/{name_of(x).partition('/')[2]}"
        begins = first or (state if state in scene.shapes else None)
        new = ref(name_of(x), other, back, begins if other < 0 else None)
        yield made("shift", f"takes {say(new, scene.graph)} for {said}", new, 5)
    if first and time < 0:
        words = f"takes {first} at every timestep for {said}"
        yield made("stale", words, node("held", x, ref(first)), 5.5)
        words = f"takes zeros for {first} at the first timestep, in {said}"
        yield made("operand-missing", words, ref(name_of(x), time, back), 5)


def _other_steps(x: Node, scene: Scene, made: Made) -> Iterator[Edit]:
    name, time, back, first = name_of(x), x.arg("time"), x.arg("back"), x.arg("first")
    if name.startswith("params/"):
        ways = [(back + 1, "before the last step"), (0, "after the step")]
        if back == 0:
            ways = [(1, "before the step")]
        for steps, words in ways:
            new = weights_at(x, steps)
            yield made("stale", f"takes {name} as it was {words}", new, 5)
        return
    if not back:
        new = ref(name, time, 1, first)
        yield made("stale", f"takes {name} of the step before", new, 5)
    else:
        new = ref(name, time, back - 1, None)
        if name != scene.tensor or time:
            yield made("stale", f"takes {name} of this step, not of the one before", new, 6)


def _other_tensors(x: Node, scene: Scene, made: Made) -> Iterator[Edit]:
    """Tensors of the same shape that may have been taken by mistake, nearest names first."""
    name, shape = name_of(x), scene.shapes.get(name_of(x))
    if shape is None and name.startswith("params/"):
        shape = scene.shapes.get(f"grads/{name.partition('/')[2]}")
    for far, other in nearest_names(scene, name, shape):
        weights = name.startswith("params/") and other.startswith("params/")
        first = f"inputs/{other}" if weights and x.arg("back") else None
        if x.arg("time") < 0 and x.arg("first"):
            first = f"state/in/{other.partition('/')[2]}"
        elif x.arg("first") == "zeros":
            first = "zeros"
        if not far and not weights and not name.startswith(("params/", "inputs/")):
            words = f"adds {other} to {name}"
            yield made("operand-added", words, node("add", x, ref(other)), 7)
        keeps = weights or first == "zeros"
        new = ref(other, x.arg("time"), x.arg("back") if keeps else 0, first)
        yield made("operand-other", f"takes {other} for {name}", new, 6 + far)
