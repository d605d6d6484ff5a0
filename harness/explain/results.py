"""What can be done to a stage's result as a whole, whatever made it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import permutations
from typing import Any

from harness.explain.operands import block_orders
from harness.explain.scene import Edit, Made, Scene, nearest_names, weights_at
from harness.models.graph import TIME, Blocks, Node, below, is_ref, name_of, node, rebuilt, ref
from harness.models.ops import OPS
from harness.models.ops.changes import FORMATS

MOST_AXES = 4  # permutations of more axes are not tried


def of_result(scene: Scene) -> Iterator[Edit]:
    """What can be done to the result as a whole, whatever made it."""
    base, shape, axes = scene.base, scene.shape, scene.axes

    def made(name: str, words: str, new: Node, bits: float, format: str | None = None) -> Edit:
        return Edit(name, words, new, bits, 0, format)

    yield made("sign", "has the sign turned", node("negate", base), 3.9)
    yield made("zero", "has nothing but zeros", node("zeros", base), 4.1)
    for to in FORMATS:
        words = f"is rounded to {to}" + " (computed in float32)" * (to == "float32")
        new = node("rounded", base, to=to)
        yield made("reduced-precision", words, new, 4 + (to == "tf32"), to)
    yield from _axis_orders(base, shape, axes, made)
    for axis, word in enumerate(axes[: len(shape)]):
        name = word.word if isinstance(word, Blocks) else word
        for by in (1, -1):
            if shape[axis] > 2:
                new = node("moved", base, axis=axis, by=by)
                yield made("shift", f"is moved by {by:+d} {name}", new, 15)
        if shape[axis] > 2:
            words = f"has the {name}s in reverse order"
            yield made("permuted-rows", words, node("flipped", base, axis=axis), 8)
        if isinstance(word, Blocks):
            yield from block_orders(base, word, "the result", made)
    here = scene.tensor
    if not here.startswith("params/"):
        before = ref(here, back=1)
        late = before if base.op == "other" else rebuilt(base, _a_step_before)
        yield made("stale", "has the value of the step before", late, 6)
        if base.op != "other":
            yield made("stale", "does not change: it is as it was at the step before", before, 7)
        if here.startswith("optimizer/"):
            name, _, _slot = here.removeprefix("optimizer/").rpartition("/")
            old = ref(here, back=1, first="zeros")
            yield from _rows_read(scene, name, old, made)
        words = "adds the value of the step before to it: not zeroed?"
        yield made("accumulated", words, node("add", base, before), 7)
        if here.startswith("grads/"):  # where clipping has written into it
            kept = ref(f"update/clipped/{here.removeprefix('grads/')}", back=1)
            yield made("accumulated", words, node("add", base, kept), 8)
        mean = node("times", node("add", base, before), by=0.5)
        yield made("accumulated", "averages it with the value of the step before", mean, 8)
    else:
        before = ref(here, back=1, first=f"inputs/{here}")
        yield made("stale", "does not move it: it is as it was before the step", before, 6)
        name = here.removeprefix("params/")
        plain = node("descend", before, ref(f"update/clipped/{name}"), ref("update/learning_rate"))
        yield made("formula", "takes a plain step along the gradient", plain, 6)
        yield from _rows_read(scene, name, before, made)
    op = OPS.get(base.arg("of", base.op))
    if not (op and op.either):  # else it is one tensor, taken from elsewhere
        yield from _others_whole(scene, made)


def _a_step_before(x: Node) -> Node | None:
    """A reference to what stood there a step before."""
    if not is_ref(x):
        return None
    if name_of(x).startswith("params/"):
        return weights_at(x, x.arg("back") + 1)
    return ref(name_of(x), x.arg("time"), x.arg("back") + 1, x.arg("first"))


def _rows_read(scene: Scene, name: str, before: Node, made: Made) -> Iterator[Edit]:
    """Rows of a table that stay as they are where their tokens are not in the batch."""
    gradient = scene.graph.value(f"grads/{name}") if scene.graph else None
    for x in below(gradient) if gradient is not None else ():
        if x.op == "embed_backward":
            value = node("rows_read", scene.base, before, x.inputs[1])
            words = "leaves rows of tokens that are not in the batch as they were"
            yield made("subset", words, value, 5)


def _axis_orders(
    base: Node, shape: tuple[int, ...], axes: tuple[Any, ...], made: Made
) -> Iterator[Edit]:
    if not 2 <= len(shape) <= MOST_AXES or sum(n > 1 for n in shape) < 2:
        return
    plain = tuple(range(len(shape)))
    for order in permutations(plain):
        if order == plain:
            continue
        places = ", ".join(map(str, order))
        over_time = order[:2] == (1, 0) and (TIME in axes or len(shape) > 2)
        swap = ": batch-major numbers taken for time-major?" if over_time else ""
        turned = tuple(shape[k] for k in order) == shape
        how = f"has its axes permuted ({places})" if turned else f"is permuted to axes ({places})"
        how = "is transposed" if turned and order == (1, 0) else how
        words = how + ("" if turned else " and then read in the old shape") + swap
        yield made("transposed", words, node("axes_ordered", base, order=order), 7)
        if not turned:
            read = f"is read with its axes in the order ({places}) and permuted back{swap}"
            yield made("transposed", read, node("axes_read", base, order=order), 8)


def _others_whole(scene: Scene, made: Made) -> Iterator[Edit]:
    """Another tensor in the place of this one."""
    for far, other in nearest_names(scene, scene.tensor, scene.shape):
        yield made("operand-other", f"has what {other} should be", ref(other), 8 + far)
