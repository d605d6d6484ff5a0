"""What a side was told to compute in a stage's place, in words: where the two expressions part."""

from __future__ import annotations

from collections.abc import Callable

from harness.explain.say import figure, say
from harness.models.graph import (
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
from harness.models.ops import OPS

CLIPPED = "update/clipped/"
MOST = 3  # differences that are told of
LONGEST = 70  # characters of an expression in a sentence
ARGUMENTS = {
    ("reduce", "sum"): "sums the loss over all elements",
    ("reduce", "mean"): "averages the loss over all elements",
    ("reduce", "batch"): "averages the loss over the batch and sums it over all else",
    ("causal", "False"): "attends without a causal mask",
    ("causal", "True"): "attends with a causal mask",
}

LEFT_OUT = {
    "decay_weights": "does not decay this parameter",
    "decay_gradient": "does not decay this parameter",
    "stop_gradient": "lets gradients pass",
}
EXCHANGED = {
    ("clip_torch", "clip_by_norm"): "adds nothing to the norm that it divides by (torch adds 1e-6)",
    ("clip_by_norm", "clip_torch"): "adds 1e-6 to the norm that it divides by (as torch does)",
}
PUT_IN = {
    "scale": "multiplies {what} by {number}",
    "decay_weights": "decays this parameter (weight decay {number})",
    "decay_gradient": "decays this parameter (weight decay {number}, added to its gradient)",
    "stop_gradient": "lets no gradient pass through {what} (detached)",
}


def told_words(
    base: Node, other: Node, same: Callable[[Node, Node], bool] = lambda x, y: False
) -> tuple[str, bool]:
    """What a program does that computes `other` where `base` is the stage.

    And whether that says it in so many words, and not only that it is another. Parts that make the
    `same` numbers are written in another way, and nothing is said of them.
    """
    base, other = rebuilt(base, _plain), rebuilt(other, _plain)
    if not any(name_of(x).startswith(CLIPPED) for x in references(base)):
        plain = rebuilt(other, _unclipped)
        if plain is base:
            return "updates by what it has made of the gradient (clipped), not by that itself", True
        other = plain
    pairs = _parting(base, other, same)
    different = [pair for pair in pairs if not same(*pair)]
    pairs = different or pairs
    found = list(dict.fromkeys(_words(x, y) for x, y in pairs))
    if len(found) > MOST:
        return "computes another stage", False
    return ", and ".join(found), not any(words.startswith("computes ") for words in found)


def detached(graph: Graph | None, other: Graph | None, below_it: str = "") -> str | None:
    """What a program detaches that the reference does not, in words; None for nothing.

    With `below_it`, a tensor, what is detached must be made of that: else it says nothing of it.
    """
    for name, stage in other.stages.items() if other and graph else ():
        known = graph.value(name) if graph else None
        if known is None or not name.startswith("forward/"):
            continue
        own = [x for x in below(stage.value) if x.op == "stop_gradient"]
        theirs = [x for x in below(known) if x.op == "stop_gradient"]
        if other and below_it and not any(_made_of(other, x, below_it) for x in own):
            continue
        if len(own) > len(theirs):
            return f"lets no gradient pass through {_short(own[0].inputs[0])}, detached in {name}"
    return None


def _plain(x: Node) -> Node | None:
    """A running mean as torch counts its momentum, which Keras counts from 1, and in one layout."""
    if x.op not in ("running_mean", "running_mean_keras") or x.inputs[2].op != "const":
        return None
    old, given, momentum = x.inputs
    axis = x.arg("axis")
    if given.op == "permute":
        axes = given.arg("axes")
        given, axis = given.inputs[0], axes[axis % len(axes)]
    if x.op == "running_mean_keras":
        momentum = const(1 - momentum.arg("value"), momentum.arg("name"))
    return node("running_mean", old, given, momentum, axis=axis)


def _made_of(graph: Graph, root: Node, tensor: str) -> bool:
    """Whether an expression reads a tensor, itself or by what it reads of the step."""
    waiting, seen = [root], set()
    while waiting:
        for x in references(waiting.pop()):
            name = name_of(x)
            if name == tensor:
                return True
            stage = None if name in seen else graph.value(name)
            seen.add(name)
            if stage is not None and name.startswith("forward/"):
                waiting.append(stage)
    return False


def _unclipped(x: Node) -> Node | None:
    """The gradient in place of what the optimizer was given of it."""
    if not is_ref(x) or not name_of(x).startswith(CLIPPED):
        return None
    return ref(f"grads/{name_of(x).removeprefix(CLIPPED)}", x.arg("time"), x.arg("back"))


def _parting(x: Node, y: Node, equal: Callable[[Node, Node], bool]) -> list[tuple[Node, Node]]:
    """The smallest parts in which two expressions differ; `equal`: of the same numbers."""
    if x is y:
        return []
    same = x.op == y.op and len(x.inputs) == len(y.inputs)
    if same and x.inputs and x.args != y.args:  # an axis may be counted from either end
        same = equal(y, node(y.op, *y.inputs, **dict(x.args)))
    if not same or not x.inputs:
        numbers = zip(x.inputs, y.inputs, strict=False) if _exchanged(x, y) else ()
        return [*((p, q) for p, q in numbers if p is not q and p.op == q.op == "const"), (x, y)]
    return [
        pair
        for one, two in zip(x.inputs, y.inputs, strict=True)
        for pair in _parting(one, two, equal)
    ]


def _exchanged(x: Node, y: Node) -> bool:
    """Whether one formula of a family has another's place, with numbers of its own."""
    if (x.op, y.op) in EXCHANGED:
        return True
    return x.op in OPS and any(_is(kin.formula, y) for kin in OPS[x.op].kin)


def _words(x: Node, y: Node) -> str:
    if x.op == "const" and y.op == "const":
        name = x.arg("name") or y.arg("name") or "the number"
        return f"takes {figure(float(y.arg('value')))} for {name} {figure(float(x.arg('value')))}"
    if x.op == y.op and x.args != y.args and not is_ref(x):
        return _arguments(x, y)
    if (x.op, y.op) in EXCHANGED:
        return EXCHANGED[x.op, y.op]
    kin = next((k for k in OPS[x.op].kin if _is(k.formula, y)), None) if x.op in OPS else None
    if kin is not None:
        return kin.does
    if y in x.inputs and x.op in OPS:
        return LEFT_OUT.get(x.op) or f"leaves out {_named(x)}"
    if y.op == "rounded" and y.inputs[0] is x:
        return f"rounds {_short(x)} to {y.arg('to')}"
    if x in y.inputs and y.op in PUT_IN:
        number = next((figure(i.arg("value")) for i in y.inputs[1:] if i.op == "const"), "")
        return PUT_IN[y.op].format(what=_short(x), number=number)
    if x in y.inputs and y.op in OPS:
        return f"has {_named(y)} of {_short(x)} in its place"
    return f"computes {_short(y)} for {_short(x)}"


def _is(formula: object, y: Node) -> bool:
    return y.op in OPS and OPS[y.op].formula is formula


def _arguments(x: Node, y: Node) -> str:
    own, others = dict(y.args), dict(x.args)
    parts = []
    for name in sorted(own.keys() | others.keys()):
        if own.get(name) == others.get(name):
            continue
        plain = f"has {name} {own.get(name)} for {others.get(name)} in {_named(x)}"
        parts.append(ARGUMENTS.get((name, str(own.get(name))), plain))
    return ", ".join(parts)


def _named(x: Node) -> str:
    return (OPS[x.op].says if x.op in OPS else "") or x.op.replace("_", " ")


def _short(x: Node) -> str:
    words = say(x, None, True)
    return words if len(words) <= LONGEST else _named(x)
