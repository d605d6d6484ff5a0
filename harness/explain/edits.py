"""What can be wrong with a stage: every single edit of its expression.

An edit leaves an operand out, counts it twice, turns its sign, takes it from another timestep,
step, layer or tensor, transposes it, permutes its blocks, rounds it; changes an argument; or puts
another member of an op's family in its place. Where no stage is known, the tensor of the other side
is what is edited. `bits` are the length of an edit's description: what is simple is tried first and
preferred.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations, permutations

from harness.explain.norms import in_norm, in_whole_norm
from harness.explain.operands import of_reference, other_rows
from harness.explain.results import of_result
from harness.explain.say import block_name, figure, say
from harness.explain.scene import Edit, Made, Scene, kin_of, put, weights_at
from harness.models.graph import (
    BATCH,
    TIME,
    Blocks,
    Node,
    below,
    const,
    is_ref,
    name_of,
    node,
    rebuilt,
    ref,
    references,
    total,
)
from harness.models.ops import OPS, find
from harness.models.ops.changes import FORMATS
from harness.models.ops.op import Kin
from harness.models.update import RATE

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
TWICE = ("sigmoid", "tanh", "gelu", "silu", "square")
# What may be another in one of several places that read it.
IN_ONE_PLACE = ("shift", "stale", "operand-other", "permuted-rows", "operand-missing")
# What passes a tensor on in the same shape, so that it may have been left out.
LEFT_OUT = (*POINTWISE, "sigmoid_slope", "tanh_slope", "negate", "decay_gradient")


def edits(scene: Scene) -> Iterator[Edit]:
    """Every edit of the stage of a scene; those of the result first, then those of the inside."""
    yield from of_result(scene)
    if scene.base.op != "other":
        for x in below(scene.base):
            yield from _of_node(x, scene)
        yield from _of_all(scene)
        yield from _of_stages_before(scene)


def _of_all(scene: Scene) -> Iterator[Edit]:
    """One thing that is wrong with all weights, or all products, of a stage at once."""
    base = scene.base
    weights = [x for x in references(base) if name_of(x).startswith("params/") and x.arg("back")]
    if len(weights) > 1:
        for more, words in ((1, "were before the last step"), (-1, "are after the step")):
            new = {x: weights_at(x, x.arg("back") + more) for x in weights}
            value = rebuilt(base, new.get)
            yield Edit("stale", f"computes with weights as they {words}", value, 5.5)
    for op in {x.op: None for x in below(base) if x.op in OPS}:
        same = [x for x in below(base) if x.op == op]
        for kin in find(op).kin if len(same) > 1 else ():
            value = rebuilt(base, {x: kin_of(x, kin) for x in same}.get)
            yield Edit("formula", kin.does, value, _bits(kin) + 0.5)
    yield from _settings_exchanged(scene)
    yield from _further(scene)
    yield from _coupled(scene)
    products = [x for x in below(base) if x.op in PRODUCTS]
    if len(products) > 1:
        for to in FORMATS:
            for cut in (False, True) if to == "tf32" else (False,):
                value = rebuilt(base, {x: _narrow(x, to, cut) for x in products}.get)
                how = f"{to} (cut off, not rounded)" if cut else to
                words = f"rounds the operands of all its products to {how}"
                yield Edit("reduced-precision", words, value, 6.5, 0, to)


def _settings_exchanged(scene: Scene) -> Iterator[Edit]:
    """Each of two settings with the other's value."""
    named = [x for x in below(scene.base) if x.op == "const" and x.arg("name")]
    for one, two in combinations(named, 2):
        if one.arg("value") != two.arg("value"):
            new = {
                one: const(two.arg("value"), one.arg("name")),
                two: const(one.arg("value"), two.arg("name")),
            }
            words = f"exchanges {one.arg('name')} and {two.arg('name')}"
            yield Edit("argument", words, rebuilt(scene.base, new.get), 6)


def _further(scene: Scene) -> Iterator[Edit]:
    """A change over two timesteps, not over one: every part that leaves one out leaves out two."""

    def change(x: Node) -> Node | None:
        if x.op not in ("part", "part_backward"):
            return None
        start, stop = x.arg("start"), x.arg("stop")
        more = dict(start=start + (start > 0), stop=stop - (stop < 0))
        inputs = (rebuilt(i, change) for i in x.inputs)
        return node(x.op, *inputs, **more)

    value = rebuilt(scene.base, change)
    if value is not scene.base:
        words = "takes the change over two timesteps, not over one"
        yield Edit("argument", words, value, 6)


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


def _of_node(x: Node, scene: Scene) -> Iterator[Edit]:
    def made(name: str, words: str, new: Node, bits: float, format: str | None = None) -> Edit:
        return Edit(name, words, put(scene, x, new), bits, 0, format)

    if x.op in ("add", "bias", "multiply"):
        yield from _operands(x, scene, made)
        if x.op == "add" and x.inputs[0].op == "squares":
            yield from in_norm(x, scene, made)
    if x.op == "global_norm":
        yield from in_whole_norm(x, scene)
    if x.op in OPS:
        for kin in find(x.op).kin:
            yield made("formula", f"{kin.does}{_of_what(x, scene)}", kin_of(x, kin), _bits(kin))
    if x.op in TWICE:
        words = f"applies {OPS[x.op].says} twice{_of_what(x, scene)}"
        yield made("operand-twice", words, node(x.op, x), 6)
    if x.op == "dropout" and is_ref(x.inputs[0]) and scene.graph:
        axes = scene.graph.axes(name_of(x.inputs[0]))
        yield from other_rows(x, axes, say(x, scene.graph, True), made)
    if x.op == "average":
        yield from _other_shares(x, scene, made)
        if x.inputs[1].op == "square":
            of = (x.inputs[0], node("absolute", x.inputs[1].inputs[0]), x.inputs[2])
            words = "keeps the larger of the decayed value and |g| (as Adamax does)"
            yield made("formula", words, node("decayed_largest", *of), 6)
    if x.op == "over_root":
        yield from _corrected(x, scene, made)
    if x.op in (*POINTWISE, "multiply", "scale"):
        yield from _added_later(x, scene, made)
    if x.op == "square":
        yield from _from_the_mean(x, scene, made)
    if x.op in LEFT_OUT and x is not scene.base:
        words = f"leaves out {say(x, scene.graph, True)}"
        yield made("formula", words, x.inputs[0], 3.4)
    if x.op == "kin":  # a stage that may be either of two things, and is the other one here
        plain = node(x.arg("of"), *x.inputs)
        yield made("formula", f"goes on with {say(x.inputs[0], scene.graph)}", plain, 3)
    if x.op == "const":
        yield from _numbers(x, scene, made)
        yield from _rates(x, scene, made)
    elif x.op == "step":
        for more, words in ((1, "one step more"), (-1, "one step less")):
            yield made("argument", f"counts {words}", node("step", more=more), 5)
    elif is_ref(x):
        yield from of_reference(x, scene, made)
        yield from _in_one_place(x, scene)
    if x.op not in ("add", "multiply", *PRODUCTS):
        yield from _exchanged(x, scene, made)
    if x.op in PRODUCTS:
        yield from _products(x, scene, made)
    if x.op in ("linear", "matmul"):
        yield from _places_left_out(x, scene, made)
    if x.op == "linear" and x.inputs[0].op == "multiply":
        yield from _multiplied_later(x, scene, made)
    if x.op in ("outer", "sum_rows", "embed_backward"):
        yield from _subsets(x, scene, made)
    if x.op == "block":
        yield from _other_blocks(x, scene, made)


def _corrected(x: Node, scene: Scene, made: Made) -> Iterator[Edit]:
    """A rule that corrects the bias of its squares, as Adam does."""
    for v in scene.settings.get("rho", ()):
        of = (x.inputs[2], const(v, "rho"), node("step"))
        p, g, _, *rest = x.inputs
        words = "corrects the bias of the squares (as Adam does)"
        yield made("formula", words, node(x.op, p, g, node("corrected", *of), *rest), 6)


def _rates(x: Node, scene: Scene, made: Made) -> Iterator[Edit]:
    """A number of the stage times a scalar that was traced, as the learning rate."""
    rates = [r for r in references(scene.base) if scene.shapes.get(name_of(r)) == ()]
    if scene.shapes.get(RATE) == () and scene.tensor.startswith(("optimizer/", "params/")):
        rates = list(dict.fromkeys([*rates, ref(RATE)]))
    for rate in rates:
        words = f"multiplies {x.arg('name') or 'the number'} by {name_of(rate)}"
        words += " once more" * (rate in references(scene.base))
        yield made("operand-added", words, node("scale", rate, x), 6)


def _other_blocks(x: Node, scene: Scene, made: Made) -> Iterator[Edit]:
    """Another block of the same tensor."""
    for k in range(x.arg("of")):
        if k != x.arg("index"):
            new = node("block", *x.inputs, index=k, of=x.arg("of"))
            words = f"takes {block_name(new, scene.graph)} for {say(x, scene.graph, True)}"
            yield made("block-order", words, new, 6)


def _places_left_out(x: Node, scene: Scene, made: Made) -> Iterator[Edit]:
    """A product that sums over all places of an axis but the first, or the last."""
    for start, stop, which in ((None, 1, "first"), (-1, None, "last")):
        blank = node("blanked", x.inputs[0], axis=-1, start=start, stop=stop)
        words = f"leaves the {which} place of what is summed out of {say(x, scene.graph, True)}"
        yield made("subset", words, node(x.op, blank, *x.inputs[1:], **dict(x.args)), 7)


def _multiplied_later(x: Node, scene: Scene, made: Made) -> Iterator[Edit]:
    """A factor after a product, not before it: r (h W) for (r h) W."""
    factors = x.inputs[0].inputs
    for k, factor in enumerate(factors):
        others = [*factors[:k], *factors[k + 1 :]]
        rest = others[0] if len(others) == 1 else node("multiply", *others)
        new = node("multiply", factor, node("linear", rest, *x.inputs[1:]))
        said = say(factor, scene.graph, True)
        yield made("formula", f"multiplies with {said} after the product, not before it", new, 5)


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


def _in_one_place(x: Node, scene: Scene) -> Iterator[Edit]:
    """A tensor that is another in one of the places where the stage reads it."""
    parents = [y for y in below(scene.base) if x in y.inputs]
    for parent in parents if len(parents) > 1 else ():

        def made(
            name: str,
            words: str,
            new: Node,
            bits: float,
            format: str | None = None,
            parent: Node = parent,
        ) -> Edit:
            inputs = (new if i is x else i for i in parent.inputs)
            value = put(scene, parent, node(parent.op, *inputs, **dict(parent.args)))
            where = f"{words}, in {say(parent, scene.graph, True)} alone"
            return Edit(name, where, value, bits + 1, 0, format)

        for edit in of_reference(x, scene, made):
            if edit.name in IN_ONE_PLACE:
                yield edit


def _other_shares(x: Node, scene: Scene, made: Made) -> Iterator[Edit]:
    """A running average that weighs the new value by another setting's share."""
    own = x.inputs[2]
    for key, values in scene.settings.items():
        for v in values if key in scene.used and key != own.arg("name") else ():
            if 0 < v < 1:
                share = node("complement", const(v, key))
                words = f"takes 1 - {key} for 1 - {own.arg('name') or figure(own.arg('value'))}"
                words += ", the share of the new value"
                yield made("argument", words, node("blended", *x.inputs, share), 6.5)


def _added_later(x: Node, scene: Scene, made: Made) -> Iterator[Edit]:
    """A term that is added after an op, not before it: r (h W) + b for r (h W + b)."""
    for k, operand in enumerate(x.inputs):
        for rest, term in _terms(operand):
            new = node(x.op, *x.inputs[:k], rest, *x.inputs[k + 1 :], **dict(x.args))
            what = OPS[x.op].says or x.op
            words = f"adds {say(term, scene.graph, True)} after {what}, not before it"
            yield made("formula", words, node("broadcast_add", new, term), 6)


def _from_the_mean(x: Node, scene: Scene, made: Made) -> Iterator[Edit]:
    """The square of the distance from a running average (AdaBelief, Zhuang et al. 2020, alg. 2)."""
    slots = scene.tensor.rpartition("/")[0]
    for other, shape in scene.shapes.items():
        if other.rpartition("/")[0] == slots and other != scene.tensor and shape == scene.shape:
            apart = node("add", x.inputs[0], node("negate", ref(other)))
            said = say(x.inputs[0], scene.graph, True)
            words = f"takes the square of {said} - {other} (as AdaBelief does)"
            yield made("formula", words, node("square", apart), 6)


def _terms(x: Node) -> Iterator[tuple[Node, Node]]:
    """Each term of a sum, or of a block of one, with the rest of the sum."""
    if x.op == "block":
        for rest, term in _terms(x.inputs[0]):
            yield tuple(node("block", i, **dict(x.args)) for i in (rest, term))  # type: ignore[misc]
    elif x.op == "bias":
        yield x.inputs[0], x.inputs[1]
    elif x.op == "add":
        for k, term in enumerate(x.inputs):
            yield total([*x.inputs[:k], *x.inputs[k + 1 :]]), term


def _of_stages_before(scene: Scene) -> Iterator[Edit]:
    """What an operand would be with one of its own terms left out, where only this stage has it so.

    A loop that keeps a gradient in two variables may go on with the one that lacks what came last.
    """
    for x in references(scene.base):
        stage = scene.graph.value(name_of(x)) if scene.graph else None
        if stage is None or stage.op != "add" or x.arg("time") or x.arg("back"):
            continue
        for rest, term in _terms(stage):
            words = f"takes {name_of(x)} without {say(term, scene.graph, True)}"
            yield Edit("operand-missing", words, put(scene, x, rest), 6.5)


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
    if x.op == "add":
        yield from _what_settings_scale(x, made)
    timed = scene.axes[:2] if scene.axes[1:2] == (TIME,) and not product else ()
    for k, operand in enumerate(x.inputs):
        said = _part_of(operand, scene) or say(operand, scene.graph, True)
        rest = (*x.inputs[:k], *x.inputs[k + 1 :])
        if timed and x.op == "add" and not is_ref(operand):

            def moved(name: str, words: str, new: Node, bits: float, k: int = k) -> Edit:
                terms = node("add", *x.inputs[:k], new, *x.inputs[k + 1 :])
                return Edit(name, words, put(scene, x, terms), bits)

            yield from other_rows(operand, timed, said, moved)
        within = "the factor " if product else "the term " * (operand.op in LEFT_OUT)
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


def _what_settings_scale(x: Node, made: Made) -> Iterator[Edit]:
    """A sum without all that a setting scales, or two: penalties, in the loss or its gradient."""
    by = [set(_scales(operand)) for operand in x.inputs]
    names = sorted({name for found in by for name in found})
    for some in (*combinations(names, 1), *combinations(names, 2)):
        rest = [i for i, found in zip(x.inputs, by, strict=True) if not found & set(some)]
        if 0 < len(rest) < len(x.inputs):
            words = f"leaves out all that {' and '.join(some)} scale{'s' * (len(some) == 1)}"
            yield made("operand-missing", words, total(rest), 2.5 + 0.4 * len(some))


def _scales(x: Node) -> Iterator[str]:
    """The settings that scale some part of an expression."""
    for y in below(x):
        if y.op == "scale" and y.inputs[1].op == "const" and y.inputs[1].arg("name"):
            yield str(y.inputs[1].arg("name"))


def _part_of(x: Node, scene: Scene) -> str:
    """What goes into one block of the result, by the block's name; nothing for all else."""
    axis = scene.axes[-1] if scene.axes else None
    if x.op != "place_block" or not isinstance(axis, Blocks) or len(axis.names) != x.arg("of"):
        return ""
    inside = say(x.inputs[0], scene.graph, True)
    return f"{axis.word} {axis.names[x.arg('index')]}, {inside}"


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
        yield made("subset", f"leaves {words} out of {said}", new, 4.9)
