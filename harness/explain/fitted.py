"""Edits with a number in them that is fitted to the difference, or found among the run's own."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import numpy as np

from harness.explain.case import Array
from harness.explain.say import figure, say
from harness.explain.scene import Edit, Scene, earlier, put
from harness.models.evaluate import FILL
from harness.models.graph import (
    TIME,
    Node,
    below,
    const,
    is_ref,
    name_of,
    node,
    ref,
    references,
    total,
)

Value = Callable[[Node], Array | None]
MOST = 12  # nodes of a stage whose size or offset is fitted
ROUNDS = 8  # Newton's steps on one number
SAMPLE = 4096  # elements that a number is fitted to
ERROR = 1e-4  # relative: how near a fitted number is to a short one, or to one of the run's own
AS_IT_WAS = 1e-6  # of the largest element: what differs by less was not clamped
# Bits of a number: one of the run's own, one of one digit, one of two, any other.
NAMED, DIGIT, ROUND, ANY = 4.0, 5.0, 9.0, 18.0


class Number(NamedTuple):
    """A number: how long its description is, in words, and as a setting of which it is made.

    A factor of 0.65 is `1 - dropout` at other settings too, where that is what it is.
    """

    value: float
    bits: float
    words: str
    setting: Node | None = None

    @property
    def free(self) -> int:
        """How many constants were fitted: none where it is one of the run's own."""
        return 0 if self.bits == NAMED else 1


def _by(x: Node, number: float | Number) -> Node:
    """A tensor times a number."""
    if isinstance(number, Number):
        if number.setting is not None:
            return node("scale", x, number.setting)
        number = number.value
    return node("times", x, by=number)


def _plain(number: float | Number) -> float:
    return number.value if isinstance(number, Number) else number


def fitted_edits(scene: Scene, mine: Array, value: Value) -> Iterator[Edit]:
    """Edits whose number is fitted to what the side has (`mine`)."""
    if mine.dtype.kind != "f" or not np.isfinite(mine).any():
        return
    yield from _of_result(scene, mine, value)
    if scene.base.op not in ("other", "given"):
        for way in (*_at_places(scene, mine, value), *_of_all(scene), *_of_numbers(scene)):
            yield from _one_number(way, scene, mine, value)


def _at_places(scene: Scene, mine: Array, value: Value) -> Iterator[_Way]:
    """A factor, an offset or a clamp at one place of the stage."""
    # Of a product no operand alone can be said to be scaled: what is made of them comes first.
    places = [x for x in reversed(below(scene.base)) if _has_size(x)]
    partly = _untouched(value(scene.base), mine)
    if partly and scene.base not in places:
        yield from _clamped(scene.base, "the result", scene, value)
    for x in places[:MOST]:
        said = say(x, scene.graph, True)
        if is_ref(x) and name_of(x).startswith("inputs/"):
            continue
        words = f"multiplies {said} by {{}}"
        yield _Way("operand-scaled", words, 1.0, partial(_scaled, scene, x))
        yield _Way("constant", f"adds {{}} to {said}", 0.0, partial(_raised, scene, x))
        if partly:
            yield from _clamped(x, said, scene, value)
        if is_ref(x) and x.arg("first") == "zeros" and scene.step == 1:
            words = f"starts {name_of(x)} from {{}}"
            yield _Way("constant", words, 0.0, partial(_begun, scene, x))


def _of_all(scene: Scene) -> Iterator[_Way]:
    """A share of what stood there a timestep, or a step, before; a share of an average."""
    tensor, base = scene.tensor, scene.base
    axes = scene.graph.axes(tensor) if scene.graph else ()
    if TIME in axes[1:2]:
        rest = tensor.partition("/")[2]
        first = f"state/in/{rest}" if f"state/in/{rest}" in scene.shapes else "zeros"
        old = ref(tensor, -1, first=first)
        beside, words = "before", "keeps the share {} of the timestep before"
        if tensor.startswith("backward/"):
            old, beside = ref(tensor, 1), "after"
            words = "keeps the share {} of the timestep after"
        more = f"adds {{}} times the timestep {beside} to the result"
        yield _Way("operand-added", more, 0.0, lambda c: _with(base, old, c))
        yield _Way("argument", words, 0.0, lambda c: _mixed(old, base, c))
    elif scene.step > 1 and not tensor.startswith("params/"):
        before = ref(tensor, back=1)
        words = "keeps the share {} of the step before"
        yield _Way("argument", words, 0.0, lambda c: _mixed(before, base, c))
    if base.op == "add" and tensor.startswith("optimizer/"):
        kept, *rest_of_it = sorted(base.inputs, key=lambda x: not x.arg("back"))
        words = "averages, with the share {} of the old value, where it should add up"
        yield _Way("argument", words, 0.5, lambda c: _mixed(kept, total(rest_of_it), c))


def _with(base: Node, term: Node, c: float | Number) -> Node:
    """base + c term."""
    return node("add", base, node("times", term, by=_plain(c)))


def _mixed(old: Node, new: Node, c: float | Number) -> Node:
    return node("average", old, new, const(_plain(c)))


def _of_numbers(scene: Scene) -> Iterator[_Way]:
    """Another value of a number of the stage, and another tensor beside what goes into a gate."""
    for x in below(scene.base):
        if x.op == "const" and (x.arg("name") or float(x.arg("value")) != 1):
            own = float(x.arg("value"))
            words = f"takes {{}} for {x.arg('name') or 'the number'} {figure(own)}"
            yield _Way("argument", words, own, partial(_other_number, scene, x))
        if x.op == "average":
            share = 1 - float(x.inputs[2].arg("value") or 0)
            words = f"gives the new value the share {{}}, not {figure(share)}"
            yield _Way("argument", words, share, partial(_share, scene, x))
        if x.op in ("sigmoid", "tanh") and x.inputs[0].op == "block":
            for other in dict.fromkeys(references(scene.base)):
                if scene.shapes.get(name_of(other)) == scene.shape and _is_state(other):
                    said = say(x.inputs[0], scene.graph, True)
                    words = f"adds {{}} times {say(other, scene.graph)} to {said} (a peephole)"
                    yield _Way("operand-added", words, 0.0, partial(_peeped, scene, x, other))


def _is_state(x: Node) -> bool:
    return name_of(x).startswith("forward/")


def _peeped(scene: Scene, x: Node, other: Node, c: float | Number) -> Node:
    return put(scene, x, node(x.op, _with(x.inputs[0], other, c)))


def _share(scene: Scene, x: Node, c: float | Number) -> Node:
    setting = c.setting if isinstance(c, Number) else None
    return put(scene, x, node("blended", *x.inputs, setting or const(_plain(c))))


class _Way(NamedTuple):
    """A way to put a number into a stage, and the number that leaves it as it is."""

    name: str
    words: str
    start: float
    make: Callable[[float | Number], Node]


def _scaled(scene: Scene, x: Node, c: float | Number) -> Node:
    return put(scene, x, _by(x, c))


def _raised(scene: Scene, x: Node, c: float | Number) -> Node:
    return put(scene, x, node("plus", x, by=_plain(c)))


def _begun(scene: Scene, x: Node, c: float | Number) -> Node:
    return put(scene, x, node("ref", **{**dict(x.args), "first": f"{FILL}{_plain(c)!r}"}))


def _other_number(scene: Scene, x: Node, c: float | Number) -> Node:
    made = c.setting if isinstance(c, Number) else None
    if made is None or made.op == "const":  # else it is made of a setting: 1 - dropout
        made = const(_plain(c), x.arg("name"))
    return put(scene, x, made)


def _untouched(base: Array | None, mine: Array) -> bool:
    """Whether some elements are as they should be and others not, as a clamp leaves them."""
    if base is None or base.shape != mine.shape or base.dtype.kind != "f" or mine.size < 2:
        return False
    with np.errstate(all="ignore"):
        close = np.abs(mine - base) <= AS_IT_WAS * np.abs(base).max()
    return bool(close.any() and not close.all())


def _clamped(x: Node, said: str, scene: Scene, value: Value) -> Iterator[_Way]:
    """An operand clamped at a number: the fit begins at one that most elements are beyond."""
    inside = value(x)
    if inside is None or inside.size < 2 or inside.dtype.kind != "f":
        return
    finite = np.abs(inside[np.isfinite(inside)])
    size = float(np.median(finite)) if finite.size else 0.0
    if size:
        words = f"clamps {said} at {{}}"
        yield _Way("argument", words, size, lambda c: put(scene, x, _no_larger(x, c)))


def _no_larger(x: Node, c: float | Number) -> Node:
    return node("clamped", x, limit=_plain(c))


def _one_number(way: _Way, scene: Scene, mine: Array, value: Value) -> Iterator[Edit]:
    """The edits with the number that brings the stage nearest, and with what it may stand for."""
    found = _fit(lambda c: value(way.make(c)), mine, way.start)
    numbers = list(simplest(found, scene, way.start)) if found is not None else []
    own = [n.value for n in numbers if n.bits == NAMED and way.name == "argument"]
    for number in numbers:
        if number.bits != NAMED and any(math.isclose(number.value, v) for v in own):
            continue  # 0.07 for rho says no more than 1 - rho for rho, which it is
        more = 6 if way.name == "operand-scaled" else 8 if way.name == "constant" else 3
        more = 1 if way.words.startswith("starts") else more
        if way.name == "argument":
            if not _plausible(way.start, number.value):
                continue
            more = 13 if number.bits >= ANY else more  # a setting is a short number
        words = way.words.format(number.words)
        yield Edit(way.name, words, way.make(number), number.bits + more, number.free)


def _plausible(own: float, value: float) -> bool:
    """Whether a number may stand for a setting: a rate stays one, nothing changes its sign."""
    return value >= 0 and (value < 1 or not 0 < own < 1)


def _has_size(x: Node) -> bool:
    """Whether a node is worth a factor of its own: a tensor, a block, or an op's result."""
    return is_ref(x) or x.op in ("block", "linear", "multiply", "sigmoid", "tanh", "outer")


def _of_result(scene: Scene, mine: Array, value: Value) -> Iterator[Edit]:
    """The result times a number, plus a number, or plus a number of times another tensor."""
    base = value(scene.base)
    if base is None or base.shape != mine.shape:
        return
    start = _start(scene, value)
    x, y = (np.asarray(v, np.float64).reshape(-1) for v in (base, mine))
    x0 = np.zeros_like(x) if start is None else start.reshape(-1)
    finite = np.isfinite(x) & np.isfinite(y)
    x, y, x0 = x[finite], y[finite], x0[finite]
    with np.errstate(all="ignore"):
        gap, x, y = y - x, x - x0, y - x0
    square = _dot(x, x)
    if square and math.isfinite(square):
        factor = _dot(y, x) / square
        if math.isfinite(factor) and factor not in (0.0, 1.0):
            yield from _factor(scene, factor, start is not None)
    offset = float(np.median(gap)) if y.size else 0.0
    if offset and y.size >= 3:
        number = next(simplest(offset, scene, 0.0))
        words = f"is larger by {number.words} in every element"
        larger = node("plus", scene.base, by=number.value)
        yield Edit("constant", words, larger, number.bits + 2, 1)
    yield from _terms(scene, gap, value, finite)


def _start(scene: Scene, value: Value) -> Array | None:
    """What a change of size is measured from: a parameter's value before the step; else zero."""
    if not scene.tensor.startswith("params/"):
        return None
    return value(_weights(scene.tensor))


def _weights(tensor: str) -> Node:
    return ref(tensor, back=1, first=f"inputs/{tensor}")


def _factor(scene: Scene, factor: float, step: bool) -> Iterator[Edit]:
    for number in (*_one_too_many(factor, scene), *near(factor, scene, 1.0)):
        value = _by(scene.base, number)
        what = "is"
        if step:
            old = _weights(scene.tensor)
            moved = node("add", scene.base, node("negate", old))
            value, what = node("add", old, _by(moved, number)), "moves"
        words = f"{what} {number.words} times what it should"
        yield Edit("factor", words, value, number.bits + 1, number.free)


def _terms(scene: Scene, gap: Array, value: Value, finite: Array) -> Iterator[Edit]:
    """A multiple of a tensor of the same shape that the result has beside what it should."""
    length = _dot(gap, gap)
    if not length or not math.isfinite(length):
        return
    for name, shape in earlier(scene):
        if shape != scene.shape or name == scene.tensor or name.startswith("inputs/params/"):
            continue
        yield from _term(scene, gap, length, ref(name), name, value, finite)
    rest = scene.tensor.partition("/")[2].removeprefix("clipped/")
    if scene.tensor.startswith(("grads/", "update/clipped/", "params/", "optimizer/")):
        old = _weights(f"params/{rest}")
        words = f"params/{rest} before the step"
        yield from _term(scene, gap, length, old, words, value, finite)
        signs = node("signs", old)
        yield from _term(scene, gap, length, signs, f"the sign of {words}", value, finite)


def _term(
    scene: Scene,
    gap: Array,
    length: float,
    term: Node,
    words: str,
    value: Value,
    finite: Array,
) -> Iterator[Edit]:
    found = value(term)
    if found is None or found.size != finite.size or found.dtype.kind != "f":
        return
    x = found.reshape(-1)[finite]
    square, along = _dot(x, x), _dot(gap, x)
    # What is left of the gap beside the term must be small before all of it is looked at.
    if not square or not math.isfinite(square) or along**2 < 0.9 * length * square:
        return
    number = next(simplest(along / square, scene, 0.0))
    made = _with(scene.base, term, number)
    yield Edit("operand-added", f"adds {number.words} times {words}", made, number.bits + 10, 1)


def _fit(made: Callable[[float], Array | None], mine: Array, start: float) -> float | None:
    """The number for which made(number) is nearest to `mine` (Gauss and Newton); None for none."""
    every = max(1, mine.size // SAMPLE)
    y = np.asarray(mine, np.float64).reshape(-1)[::every]
    c = start
    for _ in range(ROUNDS):
        step = 1e-6 * max(abs(c), 1e-3)
        here, ahead = made(c), made(c + step)
        if here is None or ahead is None or here.shape != mine.shape or ahead.shape != mine.shape:
            return None
        x = np.asarray(here, np.float64).reshape(-1)[::every]
        slope = (np.asarray(ahead, np.float64).reshape(-1)[::every] - x) / step
        good = np.isfinite(x) & np.isfinite(slope) & np.isfinite(y)
        square = _dot(slope[good], slope[good])
        if not square or not math.isfinite(square):
            return None
        with np.errstate(all="ignore"):
            change = _dot(slope[good], (y - x)[good]) / square
        if not math.isfinite(change):
            return None
        c += change
        if abs(change) <= 1e-12 * max(abs(c), 1e-9):
            break
    return None if c == start else c


def near(found: float, scene: Scene, start: float) -> Iterator[Number]:
    """A fitted number as one of the run's own, as a short one, and as it is."""
    plain = float(f"{found:.2g}")
    if plain in (2.0, 0.5, -1.0) and abs(found / plain - 1) < ERROR and scene.shape:
        yield Number(plain, NAMED, figure(plain))
    named = sorted(known_numbers(scene), key=lambda n: len(n.words.split()))
    for one in named:
        for number in (one, _inverse(one)):
            if number.value != start and abs(found / number.value - 1) < ERROR:
                if " " in one.words:  # a short number is likelier than one that is made of two
                    yield from _short(found, start)
                yield number._replace(words=f"{figure(number.value)} ({number.words})")
    yield from _short(found, start)
    yield Number(found, ANY, _shown(found, start))


def _inverse(one: Number) -> Number:
    setting = one.setting and node("reciprocal", one.setting)
    return Number(1 / one.value, NAMED, f"1 / {one.words}", setting)


def _dot(x: Array, y: Array) -> float:
    """The sum of the products, which may be infinite or NaN."""
    with np.errstate(all="ignore"):
        return float(x @ y)


def _shown(x: float, start: float) -> str:
    """A number in words; a factor that is nearly 1 by what it has over 1."""
    if start != 1 or abs(x - 1) > 4e-3:
        return figure(x)
    return f"1 {'-+'[x > 1]} {abs(x - 1):.3g}"


def _short(found: float, start: float) -> Iterator[Number]:
    """A number of one or two digits.

    A factor near 1 is as short as what it has over 1: of 1.05 that is 0.05.
    """
    base = 1.0 if start == 1 and abs(found - 1) < 0.1 else 0.0
    digits = found - base
    two, one = (base + float(f"{digits:.{n}g}") for n in (2, 1))
    if two not in (start, 0.0) and abs(digits / (two - base) - 1) < ERROR:
        yield Number(two, DIGIT if two == one else ROUND, _shown(two, start))


def _one_too_many(found: float, scene: Scene) -> Iterator[Number]:
    """A factor n / (n + 1) or n / (n - 1), n the tokens of whole windows: a mean that miscounts.

    Nearly every factor is near such a one for a large n, so only of a single number is it said.
    """
    if scene.shape or not 0.9 < found < 1.1 or found == 1:
        return
    more = 1 if found < 1 else -1
    n = more * found / (1 - found)
    for t in scene.settings.get("bptt", ()):
        for b in scene.settings.get("batch_size", ()):
            tokens = int(t * b) * round(n / (t * b))
            if tokens > 1 and abs(n - tokens) < 0.02 * t * b:
                words = f"{tokens} / {tokens + more}, as of a count that is one too "
                words += f"{'large' if more > 0 else 'small'}: {tokens} "
                words += f"tokens are {round(tokens / (t * b))} windows"
                value = tokens / (tokens + more)
                yield Number(value, NAMED, f"{figure(value)} ({words})")


def simplest(found: float, scene: Scene, start: float) -> Iterator[Number]:
    """What `near` gives, the simplest first; what is added is none of the run's own numbers."""
    given = near(found, scene, start)
    return (n for n in given if start or n.bits != NAMED or n.words == figure(n.value))


def known_numbers(scene: Scene) -> Iterator[Number]:
    """The numbers of the run that may act on a tensor: settings, their complements, the batch."""

    def named(value: float, words: str, setting: Node | None = None) -> Number:
        return Number(value, NAMED, words, setting)

    skipped = ("seed", "steps", "threads", "start", "queue", "flat_epochs", "num_layers")
    used = scene.used
    if scene.graph is None or scene.tensor.startswith(("update/", "optimizer/", "params/")):
        used |= {"lr", "lr_decay"}
    if scene.tensor == "update/learning_rate":
        used -= {"lr"}
    for key, values in scene.settings.items():
        for v in values if key not in skipped else ():
            whole = v >= 2 and float(v).is_integer() and key.endswith(("_size", "bptt"))
            if 0 < v < 1 and key in scene.used and key != "lr":
                kept = node("complement", const(v, key))
                yield named(v, key, const(v, key))
                yield named(1 - v, f"1 - {key}", kept)
                yield named((1 - v) ** 2, f"(1 - {key}) squared", node("multiply", kept, kept))
            elif v > 0 and v != 1 and (key in used or whole):
                yield named(v, key)
            if whole:
                yield named(math.sqrt(v), f"the root of {key}")
            if v > 2 and float(v).is_integer() and not scene.shape:
                yield named(v / (v - 1), f"{key} over one less")
            if key == "lr_decay" and scene.tensor == "update/learning_rate":
                yield from (named(v**k, f"{key} to the power {k}") for k in (2, 3, 4))
    for t in scene.settings.get("bptt", ()):
        for b in scene.settings.get("batch_size", ()):
            yield named(t * b, "the tokens of a batch, bptt times batch_size")
    yield named(math.log(2), "the natural logarithm of 2")
    for name in ("sqrt(2)", "pi"):
        yield named({"sqrt(2)": math.sqrt(2), "pi": math.pi}[name], name)
