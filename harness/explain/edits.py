"""What can be wrong with a stage: every single edit of its expression.

An edit leaves an operand out, counts it twice, turns its sign, takes it from another timestep,
step, layer or tensor, transposes it, permutes its blocks, rounds it; changes an argument; or puts
another member of an op's family in its place. Where no stage is known, the tensor of the other side
is what is edited. `bits` are the length of an edit's description: what is simple is tried first and
preferred.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from itertools import combinations, permutations
from typing import Any, NamedTuple

from harness.explain.say import block_name, figure, say
from harness.models.graph import (
    BATCH,
    TIME,
    Blocks,
    Graph,
    Node,
    below,
    const,
    is_ref,
    name_of,
    node,
    rebuilt,
    ref,
    references,
)
from harness.models.ops import OPS, find
from harness.models.ops.changes import FORMATS
from harness.models.ops.op import Kin

LAYER = re.compile(r"layer\d+")
MOST_AXES = 4  # permutations of more axes are not tried
MOST_OTHERS = 24  # other tensors that are tried in an operand's place
# What programs set these to; beside them the settings of both sides are tried.
USUAL: Mapping[str, tuple[float, ...]] = {
    "epsilon": (1e-8, 1e-7, 1e-6, 1e-5, 1e-3, 1e-10, 1e-12, 1e-16, 0.0),
    "eps": (1e-5, 1e-3, 1e-6, 1e-12, 1e-8, 1e-7, 0.0),
    "momentum": (0.9, 0.99, 0.95, 0.999, 0.0, 0.1, 0.01),
    "beta1": (0.9, 0.99, 0.95, 0.999, 0.0),
    "beta2": (0.999, 0.99, 0.9, 0.9999, 0.95),
    "rho": (0.9, 0.99, 0.95, 0.999),
}
PRODUCTS = ("linear", "outer", "matmul", "conv", "conv_backward", "conv_kernel")
POINTWISE = ("sigmoid", "tanh", "relu", "gelu", "silu", "dropout", "square", "complement")
# What passes a tensor on in the same shape, so that it may have been left out.
LEFT_OUT = (*POINTWISE, "sigmoid_slope", "tanh_slope", "negate", "decay_gradient")


class Edit(NamedTuple):
    """One way to compute a tensor: `words` say it after a side's name.

    `name` is the kind of cause; `free` the constants that were fitted to the difference; `format`
    the narrower number format of an edit that is one of precision.
    """

    name: str
    words: str
    value: Node
    bits: float
    free: int = 0
    format: str | None = None


class Scene(NamedTuple):
    """What edits are made in: the tensor, its expression, and what else was traced.

    `shapes` are those of the tensors of this step; `settings` the numbers of the run by name, those
    of both sides; `axes` what the tensor's own axes count.
    """

    tensor: str
    base: Node
    graph: Graph | None
    shapes: Mapping[str, tuple[int, ...]]
    settings: Mapping[str, tuple[float, ...]]
    shape: tuple[int, ...]
    axes: tuple[Any, ...]
    step: int


def edits(scene: Scene) -> Iterator[Edit]:
    """Every edit of the stage of a scene; those of the inside first, then those of the result."""
    yield from of_result(scene)
    if scene.base.op != "other":
        for x in below(scene.base):
            yield from _of_node(x, scene)
        yield from _of_all(scene)


def _of_all(scene: Scene) -> Iterator[Edit]:
    """One thing that is wrong with all weights, or all products, of a stage at once."""
    base = scene.base
    weights = [x for x in references(base) if name_of(x).startswith("params/") and x.arg("back")]
    if len(weights) > 1:
        for more, words in ((1, "were before the last step"), (-1, "are after the step")):
            new = {x: _weights(x, x.arg("back") + more) for x in weights}
            value = rebuilt(base, new.get)
            yield Edit("stale", f"computes with weights as they {words}", value, 5.5)
    for op in {x.op: None for x in below(base) if x.op in OPS}:
        same = [x for x in below(base) if x.op == op]
        for kin in find(op).kin if len(same) > 1 else ():
            value = rebuilt(base, {x: kin_of(x, kin) for x in same}.get)
            yield Edit("formula", kin.does, value, _bits(kin) + 0.5)
    yield from _coupled(scene)
    products = [x for x in below(base) if x.op in PRODUCTS]
    if len(products) > 1:
        for to in FORMATS:
            for cut in (False, True) if to == "tf32" else (False,):
                value = rebuilt(base, {x: _narrow(x, to, cut) for x in products}.get)
                how = f"{to} (cut off, not rounded)" if cut else to
                words = f"rounds the operands of all its products to {how}"
                yield Edit("reduced-precision", words, value, 6.5, 0, to)


def _coupled(scene: Scene) -> Iterator[Edit]:
    """One gate made of another: 1 - s of one for the s of the other."""
    gates = [x for x in below(scene.base) if x.op == "sigmoid"]
    for one, two in permutations(gates, 2):
        said = [say(x, scene.graph, True) for x in (one, two)]
        value = put(scene, one, node("complement", two))
        yield Edit("formula", f"takes 1 - {said[1]} for {said[0]}", value, 7)


def _narrow(x: Node, to: str, cut: bool) -> Node:
    """A product with rounded operands."""
    return node(x.op, *(node("rounded", i, to=to, cut=cut) for i in x.inputs), **dict(x.args))


def of_scalars(scene: Scene) -> Iterator[Edit]:
    """Edits of the stage of a number that this one reads (a norm), where it is made once more."""
    for x in references(scene.base):
        stage = scene.graph.value(name_of(x)) if scene.graph else None
        if scene.shapes.get(name_of(x)) != () or stage is None or stage.op == "given":
            continue
        inner = scene._replace(tensor=name_of(x), base=stage, shape=(), axes=())
        for edit in edits(inner):
            words = f"{edit.words}, in {name_of(x)} as it is used here"
            yield edit._replace(words=words, value=put(scene, x, edit.value), bits=edit.bits + 2)


def put(scene: Scene, old: Node, new: Node) -> Node:
    """The expression with `new` in the place of `old`."""
    return rebuilt(scene.base, lambda x: new if x is old else None)


def _of_node(x: Node, scene: Scene) -> Iterator[Edit]:
    def made(name: str, words: str, new: Node, bits: float, format: str | None = None) -> Edit:
        return Edit(name, words, put(scene, x, new), bits, 0, format)

    if x.op in ("add", "bias", "multiply"):
        yield from _operands(x, scene, made)
        if x.op == "add" and x.inputs[0].op == "squares":
            yield from _in_norm(x, scene, made)
    if x.op in OPS:
        for kin in find(x.op).kin:
            yield made("formula", f"{kin.does}{_of_what(x, scene)}", kin_of(x, kin), _bits(kin))
    if x.op in LEFT_OUT and x is not scene.base:
        words = f"leaves out {say(x, scene.graph, True)}"
        yield made("formula", words, x.inputs[0], 3.4)
    if x.op == "kin":  # a stage that may be either of two things, and is the other one here
        plain = node(x.arg("of"), *x.inputs)
        yield made("formula", f"goes on with {say(x.inputs[0], scene.graph)}", plain, 3)
    if x.op == "const":
        yield from _numbers(x, scene, made)
    elif x.op == "step":
        for more, words in ((1, "one step more"), (-1, "one step less")):
            yield made("argument", f"counts {words}", node("step", more=more), 5)
    elif is_ref(x):
        yield from _of_reference(x, scene, made)
    if x.op not in ("add", "multiply", *PRODUCTS):
        yield from _exchanged(x, scene, made)
    if x.op in PRODUCTS:
        yield from _products(x, scene, made)
    if x.op in ("outer", "sum_rows", "embed_backward"):
        yield from _subsets(x, scene, made)
    if x.op == "block":
        for k in range(x.arg("of")):
            if k != x.arg("index"):
                new = node("block", *x.inputs, index=k, of=x.arg("of"))
                words = f"takes {block_name(new, scene.graph)} for {say(x, scene.graph, True)}"
                yield made("block-order", words, new, 6)


Made = Callable[..., Edit]


def kin_of(x: Node, kin: Kin) -> Node:
    """A node with a member of its op's family in its place."""
    return node("kin", *x.inputs, of=x.op, does=kin.does, **dict(x.args))


def _bits(kin: Kin) -> float:
    if kin.rare:
        return 12.0
    return 3.5 if kin.does.startswith(("does not", "drops nothing")) else 4.0


def _exchanged(x: Node, scene: Scene, made: Made) -> Iterator[Edit]:
    """Two operands of one shape in each other's place."""
    sizes = [scene.shapes.get(name_of(i)) if _computed(i) else None for i in x.inputs]
    for k, j in combinations(range(len(x.inputs)), 2):
        if sizes[k] and sizes[k] == sizes[j]:
            given = list(x.inputs)
            given[k], given[j] = given[j], given[k]
            one, two = (say(i, scene.graph, True) for i in (given[j], given[k]))
            new = node(x.op, *given, **dict(x.args))
            yield made("operand-other", f"exchanges {one} and {two}", new, 6)


def _computed(x: Node) -> bool:
    """Whether a node is a tensor that some stage made, not tokens or masks that were handed in."""
    return is_ref(x) and (not name_of(x).startswith("inputs/") or "params" in name_of(x))


def _of_what(x: Node, scene: Scene) -> str:
    """Where in the stage an op stands, unless it is all of it."""
    if x is scene.base or not x.inputs:
        return ""
    return f", in {say(x, scene.graph, True)}"


def _operands(x: Node, scene: Scene, made: Made) -> Iterator[Edit]:
    """An operand of a sum or product dropped, doubled or negated."""
    product = x.op == "multiply"
    for k, operand in enumerate(x.inputs):
        said = _part_of(operand, scene) or say(operand, scene.graph, True)
        rest = (*x.inputs[:k], *x.inputs[k + 1 :])
        within = "the factor " if product else ""
        if not (x.op == "bias" and k == 0):
            left = rest[0] if len(rest) == 1 else node(x.op, *rest)
            yield made("operand-missing", f"leaves out {within}{said}", left, 3)
        if product:
            twice = node(x.op, *x.inputs, operand)
            yield made("operand-twice", f"multiplies twice with {said}", twice, 5)
            continue
        more = node("add", operand, operand) if x.op == "add" else node("times", operand, by=2.0)
        again = node(x.op, *x.inputs[:k], more, *x.inputs[k + 1 :])
        yield made("operand-twice", f"counts {said} twice", again, 4)
        turned = node(x.op, *x.inputs[:k], node("negate", operand), *x.inputs[k + 1 :])
        yield made("sign", f"turns the sign of {said}", turned, 4)


def _part_of(x: Node, scene: Scene) -> str:
    """What goes into one block of the result, by the block's name; nothing for all else."""
    axis = scene.axes[-1] if scene.axes else None
    if x.op != "place_block" or not isinstance(axis, Blocks) or len(axis.names) != x.arg("of"):
        return ""
    inside = say(x.inputs[0], scene.graph, True)
    return f"{axis.word} {axis.names[x.arg('index')]}, {inside}"


def _in_norm(x: Node, scene: Scene, made: Made) -> Iterator[Edit]:
    """A norm of some tensors alone, of another kind, or of rows before they are added up."""
    given = {i.inputs[0]: i for i in x.inputs if i.op == "squares"}
    for tensor, term in given.items():
        below_it = scene.graph.value(name_of(tensor)) if scene.graph and is_ref(tensor) else None
        if below_it is not None and below_it.op == "embed_backward":
            rows = node("squares", below_it.inputs[-1])
            words = f"counts the rows of {name_of(tensor)} before those of one token are added up"
            terms = [rows if i is term else i for i in x.inputs]
            yield made("operand-other", words, node("add", *terms), 5)
    for dims, words in ((1, "vectors (biases)"), (2, "matrices")):
        some = [i for i in x.inputs if len(scene.shapes.get(name_of(i.inputs[0]), ())) != dims]
        if 0 < len(some) < len(x.inputs):
            yield made("operand-missing", f"leaves all {words} out", node("add", *some), 5)
    for kin in find("global_norm").kin:
        yield Edit("formula", kin.does, kin_of(node("global_norm", *given), kin), 6)


def _numbers(x: Node, scene: Scene, made: Made) -> Iterator[Edit]:
    """Another value for a number of the stage."""
    name, value = x.arg("name"), float(x.arg("value"))
    own = scene.settings.get(str(name), ())
    others = dict.fromkeys(own, 3.0) | {v: 6.0 for v in USUAL.get(str(name), ()) if v not in own}
    for key, values in scene.settings.items():
        if key != name and len(scene.settings) < 64:
            others |= {v: 7.0 for v in values if 0 < v < 1 and 0 < value < 1 and v not in others}
    made_of_it: list[tuple[float, Node, float]] = [
        *([(1 - value, node("complement", x), 5.0)] if value >= 0.01 else []),
        *((value * by, node("times", x, by=by), 6.0) for by in (0.5, 2.0)),
        (value * value, node("multiply", x, x), 7.0),
        *((value * by, node("times", x, by=by), 7.0) for by in (10.0, 0.1)),
    ]
    given = [(new, const(new, name), bits) for new, bits in others.items()]
    for new, changed, bits in [*given, *made_of_it]:
        if new != value:
            words = f"takes {figure(new)} for {name or 'the number'} {figure(value)}"
            yield made("argument", words, changed, bits)


def _of_reference(x: Node, scene: Scene, made: Made) -> Iterator[Edit]:
    """A tensor from another timestep, step or place, in another order or format."""
    yield from _other_times(x, scene, made)
    yield from _other_steps(x, scene, made)
    yield from _other_tensors(x, scene, made)
    if name_of(x).startswith("update/clipped/"):
        old = ref(f"params/{name_of(x).removeprefix('update/clipped/')}", back=1)
        for decay in scene.settings.get("weight_decay", ()):
            decayed = node("decay_gradient", x, _weights(old, 1), const(decay, "weight_decay"))
            words = f"adds the weight decay {figure(decay)} to {name_of(x)}"
            if decay:
                yield made("operand-added", words, decayed, 5)
    said, shape = say(x, scene.graph), scene.shapes.get(name_of(x), ())
    axes = scene.graph.axes(name_of(x)) if scene.graph else ()
    if name_of(x).startswith("inputs/") and not name_of(x).startswith("inputs/params/"):
        yield from _other_rows(x, axes, shape, said, made)
        return
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
        yield from _block_orders(x, last, said, made)
    yield from _other_rows(x, axes, shape, said, made)
    for to in FORMATS:
        if to != "float32":
            words = f"rounds {said} to {to}"
            yield made("reduced-precision", words, node("rounded", x, to=to), 6, to)


def _block_orders(x: Node, axis: Blocks, said: str, made: Made) -> Iterator[Edit]:
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


def _other_rows(
    x: Node, axes: tuple[Any, ...], shape: tuple[int, ...], said: str, made: Made
) -> Iterator[Edit]:
    """Reversed or moved by one along the batch or time, whatever comes in at the end."""
    for axis, word in enumerate(axes[:2]):
        if word in (BATCH, TIME) and axis < len(shape) and shape[axis] > 1:
            words = f"has the {word}s of {said} in reverse order"
            yield made("permuted-rows", words, node("flipped", x, axis=axis), 7)
            for by in (1, -1):
                words = f"takes the {word} {'before' if by > 0 else 'after'} of {said}"
                end = f", and its {'last for the first' if by > 0 else 'first for the last'}"
                words += end if word == TIME else ""
                yield made("shift", words, node("rolled", x, axis=axis, by=by), 7)


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
        words = f"takes zeros for {first} at the first timestep, in {said}"
        yield made("operand-missing", words, ref(name_of(x), time, back), 5)


def _other_steps(x: Node, scene: Scene, made: Made) -> Iterator[Edit]:
    name, time, back, first = name_of(x), x.arg("time"), x.arg("back"), x.arg("first")
    if name.startswith("params/"):
        ways = [(back + 1, "before the last step"), (0, "after the step")]
        if back == 0:
            ways = [(1, "before the step")]
        for steps, words in ways:
            new = _weights(x, steps)
            yield made("stale", f"takes {name} as it was {words}", new, 5)
        return
    if not back:
        new = ref(name, time, 1, first)
        yield made("stale", f"takes {name} of the step before", new, 5)
    else:
        new = ref(name, time, back - 1, None)
        if name != scene.tensor or time:
            yield made("stale", f"takes {name} of this step, not of the one before", new, 6)


def _weights(x: Node, back: int) -> Node:
    """A parameter as it was `back` steps before."""
    first = x.arg("first") or f"inputs/{name_of(x)}"
    return ref(name_of(x), x.arg("time"), back, first if back else None)


def _other_tensors(x: Node, scene: Scene, made: Made) -> Iterator[Edit]:
    """Tensors of the same shape that may have been taken by mistake, nearest names first."""
    name, shape = name_of(x), scene.shapes.get(name_of(x))
    if shape is None and name.startswith("params/"):
        shape = scene.shapes.get(f"grads/{name.partition('/')[2]}")
    found = []
    for other, size in earlier(scene):
        far = _distance(name, other)
        if other not in (name, scene.tensor) and size == shape and far is not None:
            found.append((far, other))
    for far, other in sorted(found)[:MOST_OTHERS]:
        weights = name.startswith("params/") and other.startswith("params/")
        first = f"inputs/{other}" if weights and x.arg("back") else None
        if x.arg("time") < 0 and x.arg("first"):
            first = f"state/in/{other.partition('/')[2]}"
        elif x.arg("first") == "zeros":
            first = "zeros"
        keeps = weights or first == "zeros"
        new = ref(other, x.arg("time"), x.arg("back") if keeps else 0, first)
        yield made("operand-other", f"takes {other} for {name}", new, 6 + far)


def earlier(scene: Scene) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The tensors that are there when this one is made: of later ones, those like it alone."""
    seen = False
    kind = scene.tensor.partition("/")[0]
    for name, shape in scene.shapes.items():
        seen = seen or name == scene.tensor
        if not seen or name.partition("/")[0] == kind:
            yield name, shape


def _distance(one: str, two: str) -> int | None:
    """How far apart two names are: 0 of other layers, 1 of another part, 2 of another kind.

    None for tensors that nothing has in common.
    """
    if LAYER.sub("", one) == LAYER.sub("", two):
        return 0
    a, b = one.split("/"), two.split("/")
    if a[0] == b[0] and len(a) == len(b):
        return 1
    return 2 if a[-1] == b[-1] or a[1:] == b[1:] else None


def _products(x: Node, scene: Scene, made: Made) -> Iterator[Edit]:
    """The operands of a product, or both and the result, in a narrower format."""
    said = say(x, scene.graph, True)
    for to in FORMATS:
        for cut in (False, True) if to == "tf32" else (False,):
            narrow = [node("rounded", i, to=to, cut=cut) for i in x.inputs]
            how = f"{to} (cut off, not rounded)" if cut else to
            new = node(x.op, *narrow, **dict(x.args))
            yield made("reduced-precision", f"rounds the operands of {said} to {how}", new, 6, to)
            if to != "tf32":  # whose results are float32
                whole = node("rounded", new, to=to)
                words = f"rounds operands and result of {said} to {how}"
                yield made("reduced-precision", words, whole, 7, to)


def _subsets(x: Node, scene: Scene, made: Made) -> Iterator[Edit]:
    """A sum over batch and time that leaves a part of it out."""
    source = x.inputs[-1]
    parts = (
        (1, None, -1, "all timesteps but the last"),
        (1, None, 1, "the first timestep"),
        (1, -1, None, "the last timestep"),
        (1, 1, None, "all timesteps but the first"),
        (0, None, 1, f"the first {BATCH}"),
        (0, -1, None, f"the last {BATCH}"),
        (0, None, -1, f"all {BATCH}s but the last"),
        (0, 1, None, f"all {BATCH}s but the first"),
    )
    for axis, start, stop, words in parts:
        blank = node("blanked", source, axis=axis, start=start, stop=stop)
        new = node(x.op, *x.inputs[:-1], blank)
        said = say(x, scene.graph, True)
        yield made("subset", f"leaves {words} out of {said}", new, 6)


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
            yield from _block_orders(base, word, "the result", made)
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
        return _weights(x, x.arg("back") + 1)
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
        words = how + ("" if turned else " and then read in the old shape") + swap
        yield made("transposed", words, node("axes_ordered", base, order=order), 7)
        if not turned:
            read = f"is read with its axes in the order ({places}) and permuted back{swap}"
            yield made("transposed", read, node("axes_read", base, order=order), 8)


def _others_whole(scene: Scene, made: Made) -> Iterator[Edit]:
    """Another tensor in the place of this one."""
    found = []
    for other, size in earlier(scene):
        far = _distance(scene.tensor, other)
        if other != scene.tensor and size == scene.shape and far is not None:
            found.append((far, other))
    for far, other in sorted(found)[:MOST_OTHERS]:
        yield made("operand-other", f"has what {other} should be", ref(other), 8 + far)
