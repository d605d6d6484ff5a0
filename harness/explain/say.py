"""Expressions in words, for the sentences of causes."""

from __future__ import annotations

from harness.explain.case import Array
from harness.models.graph import Axis, Blocks, Graph, Node, is_ref, name_of
from harness.models.ops import OPS

SHOWN = 6  # numbers of a list in a sentence
ALONE = " (no partner)"  # what a map adds to the name of a tensor that only one side has
LONGEST = 90  # characters; an expression that takes more is named by its op alone


def figure(x: float) -> str:
    """A number for a sentence."""
    return f"{x:.6g}"


def eps_words(left: float) -> str:
    """A residual for a sentence: "to 3.1 eps"."""
    return f"to {left:.2g} eps" if 0 < left < 99.5 else f"to {left:.0f} eps"


def say(x: Node, graph: Graph | None, plain: bool = False) -> str:
    """A node in words; `plain` leaves out the usual timestep and step of a reference."""
    if is_ref(x):
        return _reference(x, plain)
    if x.op == "const":
        return str(x.arg("name") or figure(float(x.arg("value"))))
    if x.op == "step":
        return "the number of the step"
    if x.op == "block":
        return f"{block_name(x, graph)} of {say(x.inputs[0], graph, plain)}"
    op = OPS.get(x.arg("of") if x.op == "kin" else x.op)
    named = op.says if op and op.says else x.op.replace("_", " ")
    inside = " and ".join(say(i, graph, plain) for i in x.inputs[:2] if i.op != "const")
    whole = f"{named} of {inside}"
    return whole if len(whole) <= LONGEST else _short(x, graph, named, plain)


def _short(x: Node, graph: Graph | None, named: str, plain: bool) -> str:
    """An op with the first tensor that it is made of."""
    while x.inputs and not is_ref(x):
        x = x.inputs[0]
    return f"{named} with {say(x, graph, plain)}" if is_ref(x) else named


def _reference(x: Node, plain: bool) -> str:
    name, time, back = name_of(x).removesuffix(ALONE), x.arg("time"), x.arg("back")
    if plain:
        return name
    if time:
        name += f"[t{time:+d}]"
    if back and not name.startswith("params/"):  # weights are those before the step wherever read
        name += " of the step before" if back == 1 else f" of {back} steps before"
    return name


def block_name(x: Node, graph: Graph | None) -> str:
    """A block by its name, as in "gate f"; by its place where the axis has no names."""
    index, of = x.arg("index"), x.arg("of")
    source = x.inputs[0]
    axes = graph.axes(name_of(source)) if graph and is_ref(source) else ()
    last = axes[-1] if axes else None
    if isinstance(last, Blocks) and len(last.names) == of:
        return f"{last.word} {last.names[index]}"
    return f"block {index}"


def places_words(word: Axis, places: Array, size: int) -> str:
    """Indices along an axis in words; those of an axis of blocks by block and unit."""
    if isinstance(word, Blocks) and size % len(word.names) == 0:
        width = size // len(word.names)
        hit, units = sorted({int(p) // width for p in places}), {int(p) % width for p in places}
        words = f"{word.word}{'s' * (len(hit) > 1)} {', '.join(word.names[k] for k in hit)}"
        if len(units) <= min(SHOWN, width // 2):
            words += f", {word.of}{'s' * (len(units) > 1)} {', '.join(map(str, sorted(units)))}"
        return words
    name, after = word if isinstance(word, str) else word.word, ""
    if name.startswith("axis "):  # what it counts is not known
        name, after = ("row", "") if name == "axis 0" else ("place", f" along {name}")
    if len(places) > 2 and int(places[-1]) - int(places[0]) == len(places) - 1:
        return f"{name}s {places[0]} to {places[-1]}{after}"
    some = [str(place) for place in places[:SHOWN]]
    if len(places) > SHOWN:
        words = f"{', '.join(some)} and {len(places) - SHOWN} more"
    else:
        words = " and ".join([", ".join(some[:-1]), some[-1]] if len(some) > 1 else some)
    return f"{name}{'s' * (len(places) > 1)} {words}{after}"
