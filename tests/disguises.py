"""Pairs of traces of one made-up model, the second of which is disguised: other names and layouts.

The numbers are drawn, not computed; a tensor is drawn once and laid out by plain NumPy for the
second side, so what is right is known and nothing here is made by the search that it tests.
"""

from typing import Any, NamedTuple

import numpy as np

import harness

RATE, EPS = 0.1, {"float32": 1.2e-7, "float64": 2.3e-16}


class Truth(NamedTuple):
    """Which names are which, and what turns arrays of a's shapes into arrays of b's."""

    section: str
    a: tuple[str, ...]
    b: tuple[str, ...]
    turn: Any  # of a list of arrays, a list of arrays
    shapes: tuple[tuple[int, ...], ...]  # of a
    summed: bool = False


class Piece(NamedTuple):
    """Some tensors of a with what they are for b: names say kind and layer."""

    section: str
    layer: str
    a: tuple[str, ...]
    b: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    turn: Any
    start: tuple[str, ...]  # how each is drawn: normal, zeros, ones
    summed: bool = False


def one(section, layer, a, b, shape, turn=lambda x: x, start="normal"):
    return Piece(section, layer, (a,), (b,), (shape,), lambda xs: [turn(xs[0])], (start,))


class Options:
    """What a disguise does; drawn once."""

    def __init__(self, draw):
        pick = lambda *choices: choices[draw.integers(len(choices))]  # noqa: E731
        self.width = pick(6, 8)
        self.square = pick(True, False)
        self.wide = self.width if self.square else 2 * self.width + 3
        self.transposed = pick(True, True, False)
        self.images_last = pick(True, False)
        self.gates = tuple(int(k) for k in draw.permutation(4))
        self.lstm_fused = pick(True, False)
        self.bias_sum = pick(True, True, False)
        self.qkv = pick("split", "fused", "heads first")
        self.folded = pick(True, False)
        self.zeros = pick(True, True, False)
        self.grads = pick(True, True, True, False)
        self.starts = self.zeros is False or pick(True, True, False)
        self.starts = self.starts or not self.grads
        self.after = pick(True, True, False)
        self.backward = pick(True, False)
        self.names = pick("torch", "nothing", "numbers"), pick("keras", "nothing", "numbers")
        self.shuffled = pick(True, False, False)
        self.swapped = pick(True, False)
        self.dtype = pick("float32", "float64")
        self.perturbed = 0.1 if pick(True, False) else float(draw.uniform(0, 0.1))
        self.slots = pick(("exp_avg", "m"), ("momentum_buffer", "velocity"), None)


def linear(o, layer, out, inward, names=("weight", "kernel"), fold=None):
    turn = (lambda w: w.T) if o.transposed else (lambda w: w)
    if fold:
        turn = lambda w: w.T.reshape(fold) if o.transposed else w  # noqa: E731
    yield one("params", layer, names[0], names[1], (out, inward), turn)


def attention(o, layer, heads=2):
    e, h = o.width, o.width // heads
    parts = ("q", "k", "v")
    bias = "zeros" if o.zeros else "normal"
    if o.qkv == "split":
        for p in parts:
            fold = (e, heads, h) if o.folded and o.transposed else None
            yield from linear(o, layer, e, e, (f"{p}/weight", f"{p}/kernel"), fold)
            turn = (lambda x: x.reshape(heads, h)) if fold else (lambda x: x)
            yield one("params", layer, f"{p}/bias", f"{p}/bias", (e,), turn, bias)
    else:

        def join(xs):
            xs = [x.reshape(heads, h, *x.shape[1:]) for x in xs]
            axis = 1 if o.qkv == "heads first" else 0
            if axis == 0:
                xs = [x.reshape(e, *x.shape[2:]) for x in xs]
            y = np.concatenate(xs, axis)
            y = y.reshape(3 * e, *y.shape[2:]) if axis else y
            return [y.T if o.transposed and y.ndim == 2 else y]

        names = tuple(f"{p}/weight" for p in parts)
        yield Piece("params", layer, names, ("qkv/kernel",), ((e, e),) * 3, join, ("normal",) * 3)
        names = tuple(f"{p}/bias" for p in parts)
        yield Piece("params", layer, names, ("qkv/bias",), ((e,),) * 3, join, (bias,) * 3)
    yield from linear(o, layer, e, e, ("out/weight", "out/kernel"))
    yield one("params", layer, "out/bias", "out/bias", (e,), start=bias)


def norm(o, layer, width):
    ones, zeros = ("ones", "zeros") if o.zeros else ("normal", "normal")
    yield one("params", layer, "weight", "gamma", (width,), start=ones)
    yield one("params", layer, "bias", "beta", (width,), start=zeros)


def point(o, layer, shape):
    """An activation; images move their channels."""
    image = len(shape) == 4 and o.images_last
    turn = (lambda x: x.transpose(0, 2, 3, 1)) if image else (lambda x: x)
    return one("points", layer, "", "", shape, turn)


def block(o, k):
    e, bias = o.width, "zeros" if o.zeros else "normal"
    yield from norm(o, f"block{k}/norm1", e)
    yield point(o, f"block{k}/norm1", (3, 5, e))
    yield from attention(o, f"block{k}/attn")
    yield point(o, f"block{k}/attn", (3, 5, e))
    yield from norm(o, f"block{k}/norm2", e)
    yield point(o, f"block{k}/norm2", (3, 5, e))
    for name, out, inward in (("wide", o.wide, e), ("narrow", e, o.wide)):
        yield from linear(o, f"block{k}/{name}", out, inward)
        yield one("params", f"block{k}/{name}", "bias", "bias", (out,), start=bias)
        yield point(o, f"block{k}/{name}", (3, 5, out))


def lstm(o, k):
    h, layer = o.width, f"rnn{k}"
    gate = lambda x: x.reshape(4, h, *x.shape[1:])[list(o.gates)].reshape(x.shape)  # noqa: E731
    turn = (lambda x: gate(x).T) if o.transposed else gate
    if o.lstm_fused:
        axis = 0 if o.transposed else 1
        whole = lambda xs: [np.concatenate([turn(x) for x in xs], axis)]  # noqa: E731
        names, shapes = ("weight_ih", "weight_hh"), ((4 * h, h), (4 * h, h))
        yield Piece("params", layer, names, ("kernel",), shapes, whole, ("normal",) * 2)
    else:
        yield one("params", layer, "weight_ih", "kernel", (4 * h, h), turn)
        yield one("params", layer, "weight_hh", "recurrent_kernel", (4 * h, h), turn)
    start = "zeros" if o.zeros else "normal"
    if o.bias_sum:
        added = lambda xs: [gate(xs[0] + xs[1])]  # noqa: E731
        shapes, names = ((4 * h,), (4 * h,)), ("bias_ih", "bias_hh")
        yield Piece("params", layer, names, ("bias",), shapes, added, (start,) * 2, True)
    else:
        yield one("params", layer, "bias_ih", "bias", (4 * h,), gate, start)
        yield one("params", layer, "bias_hh", "recurrent_bias", (4 * h,), gate, start)
    yield point(o, layer, (3, 5, h))


def convolutions(o):
    last = o.images_last
    for k, (inward, out) in enumerate([(3, 4), (4, 4)]):
        turn = (lambda w: w.transpose(2, 3, 1, 0)) if last else (lambda w: w)
        yield one("params", f"conv{k}", "weight", "kernel", (out, inward, 3, 3), turn)
        yield point(o, f"conv{k}", (2, out, 6, 5))
        yield from norm(o, f"bn{k}", out)
        for a, b in (("running_mean", "moving_mean"), ("running_var", "moving_variance")):
            yield one("buffers", f"bn{k}", a, b, (out,))
        yield point(o, f"bn{k}", (2, out, 6, 5))

    def flat(w):
        w = w.reshape(7, 4, 6, 5).transpose(0, 2, 3, 1).reshape(7, -1) if last else w
        return w.T if o.transposed else w

    yield one("params", "flat", "weight", "kernel", (7, 120), flat)
    yield point(o, "flat", (2, 7))


def pieces(o, draw):
    """A model of some of these layers."""
    chosen = draw.permutation(3)[: draw.integers(1, 4)]
    yield one("others", "", "inputs/x", "inputs/x", (3, 5), start="normal")
    yield one("params", "embedding", "weight", "embeddings", (11, o.width))
    yield point(o, "embedding", (3, 5, o.width))
    for which in sorted(chosen):
        if which == 0:
            yield from convolutions(o)
        for k in range(int(draw.integers(2, 4))):
            if which == 1:
                yield from block(o, k)
            if which == 2:
                yield from lstm(o, k)
    yield from linear(o, "head", 11, o.width)
    yield one("params", "head", "bias", "bias", (11,), start="zeros" if o.zeros else "normal")
    yield point(o, "head", (3, 5, 11))


class Names:
    """Names of one side in its style; those that say nothing are drawn."""

    def __init__(self, style, draw):
        self.style, self.draw, self.given, self.count = style, draw, {}, 0

    def of(self, piece, last):
        if piece.section == "others":
            return last
        key = (piece.section, piece.layer, last)
        if key not in self.given:
            self.count += 1
            plain = f"{piece.layer}/{last}" if last else piece.layer
            plain = plain.replace("block", "layers/") if self.style == "torch" else plain
            self.given[key] = {
                "nothing": f"t{self.draw.integers(10**9)}",
                "numbers": f"var_{self.count}",
            }.get(self.style, plain)
        return self.given[key]


def draw_like(draw, shape, start):
    if start == "normal":
        return draw.normal(0, 0.3, shape)
    return np.zeros(shape) if start == "zeros" else np.ones(shape)


def spoilt(draw, how, facets):
    """The numbers of one tensor of side a, changed: all facets in a way."""
    first = next(iter(facets.values()))
    square = first.ndim == 2 and first.shape[0] == first.shape[1]
    if how == 0:
        return {k: draw.normal(0, 0.3, x.shape) for k, x in facets.items()}
    if how == 1:
        return {k: x + draw.normal(0, 0.1, x.shape) for k, x in facets.items()}
    if how == 2:
        return {k: 2 * x for k, x in facets.items()}
    if how == 3 and square:
        return {
            k: x.T if k.startswith("inputs/") else draw.normal(0, 0.3, x.shape)
            for k, x in facets.items()
        }
    made = {k: x.copy() for k, x in facets.items()}
    for x in made.values():
        x.reshape(-1)[draw.integers(x.size)] += 0.5
    return made


def disguised(seed, folder, changed=True):
    """Two traces in a folder, and the truth about them; some tensors are `changed`, or none."""
    draw = np.random.default_rng(seed)
    o = Options(draw)
    o.perturbed *= changed
    given = list(pieces(o, draw))
    names = [Names(style, np.random.default_rng((seed, k))) for k, style in enumerate(o.names)]
    sides: tuple[dict, dict] = ({1: {}, 2: {}}, {1: {}, 2: {}})
    truths, entries = [], ([], [])
    misread: set[str] = set()  # layers with a weight that a program holds transposed
    for piece in given:
        a = tuple(names[0].of(piece, n) for n in piece.a)
        b = tuple(names[1].of(piece, n) for n in piece.b)
        truths.append(Truth(piece.section, a, b, piece.turn, piece.shapes, piece.summed))
        spoil = draw.uniform() < o.perturbed
        turned = piece.section == "points" and piece.layer in misread
        for step in (1, 2):
            facets, starts = drawn(piece, o, draw, step)
            right = {k: laid_out(piece, k, xs) for k, xs in facets.items()}
            if piece.summed and "params/" in facets:  # one bias moves once
                right["params/"] = piece.turn([facets["params/"][0], starts[1]])
            if (spoil or turned) and facets:
                others = []
                for i in range(len(a)):
                    how = 1 if turned else draw.integers(5)
                    others.append(spoilt(draw, how, {k: xs[i] for k, xs in facets.items()}))
                    misread |= {piece.layer} if how == 3 else set()
                facets = {k: [x[k] for x in others] for k in facets}
            for prefix in facets:
                for side, own, arrays in ((0, a, facets[prefix]), (1, b, right[prefix])):
                    for name, x in zip(own, arrays, strict=True):
                        noise = 0 if prefix.startswith("inputs/") or prefix == "" else 20
                        x = x * (1 + noise * EPS[o.dtype] * draw.uniform(-1, 1, x.shape))
                        entries[side].append((step, prefix, name, x.astype(o.dtype)))
    write(folder, o, entries, sides, draw)
    if o.swapped:
        return folder / "b.trace", folder / "a.trace", truths, True
    return folder / "a.trace", folder / "b.trace", truths, False


def drawn(piece, o, draw, step):
    """What a traced of a piece at a step: lists of arrays by what stands before the name."""

    def each(start=None):
        starts = piece.start if start is None else (start,) * len(piece.shapes)
        return [draw_like(draw, s, how) for s, how in zip(piece.shapes, starts, strict=True)]

    if piece.section == "others":
        return {"": each()}, []
    if piece.section == "points":
        return {"forward/": each()} | ({"backward/": each()} if o.backward else {}), []
    if piece.section == "buffers":
        return {"buffers/": each()}, []
    start = each()
    grads = each("normal")
    if piece.summed:
        grads = [grads[0], grads[0].copy()]
    found = {}
    if step == 1 and o.starts:
        found["inputs/params/"] = start
    if o.grads:
        found["grads/"] = grads
    if o.slots and o.grads:
        found["optimizer/"] = [0.1 * g for g in grads]
    if o.after:
        found["params/"] = [w - RATE * g for w, g in zip(start, grads, strict=True)]
    return found, start


def laid_out(piece, prefix, arrays):
    """The same for b: a gradient of a sum is that of each part."""
    if piece.summed and prefix in ("grads/", "optimizer/"):
        return piece.turn([arrays[0], np.zeros_like(arrays[0])])
    return piece.turn(arrays)


def write(folder, o, entries, sides, draw):
    order = ("inputs/params/", "", "forward/", "backward/", "grads/", "optimizer/", "params/")
    order += ("buffers/",)
    for side, label in enumerate("ab"):
        ranked = sorted(entries[side], key=lambda e: order.index(e[1]))
        if o.shuffled and side:
            ranked = [ranked[k] for k in draw.permutation(len(ranked))]
        for step, prefix, name, x in ranked:
            slot = f"/{o.slots[side]}" if prefix == "optimizer/" else ""
            sides[side][step][f"{prefix}{name}{slot}"] = x
        with harness.TraceWriter(folder / f"{label}.trace", label=label, dtype=o.dtype) as trace:
            for step in (1, 2):
                trace.write(step, sides[side][step])
