"""Functions of PyTorch that move numbers about, add them up or round them: a rule for each."""

from __future__ import annotations

import torch

from harness.capture.pytorch_call import Call, Rule, made
from harness.models.entries import Made


def reshape(call: Call) -> Made:
    """The same numbers in the shape of the result."""
    return made("reshape", call.operand(0, "input"), shape=list(call.result.shape))


def permute(call: Call) -> Made:
    """Axes in another order."""
    axes = call.args[1:] if len(call.args) > 2 else call.arg(1, "dims")
    count = call.arg(0, "input").dim()
    return made("permute", call.operand(0), axes=[int(a) % count for a in axes])


def transpose(call: Call) -> Made:
    """Two axes exchanged."""
    count = call.arg(0, "input").dim()
    one, two = (int(call.arg(i, name)) % count for i, name in ((1, "dim0"), (2, "dim1")))
    axes = list(range(count))
    axes[one], axes[two] = axes[two], axes[one]
    return made("permute", call.operand(0), axes=axes)


def turned(call: Call) -> Made:
    """All axes in reverse order."""
    return made("permute", call.operand(0), axes=list(range(call.args[0].dim()))[::-1])


def last_turned(call: Call) -> Made:
    """The last two axes exchanged."""
    return made("swap_last", call.operand(0))


def moved_axes(call: Call) -> Made | None:
    """movedim: axes in another order, where their lengths tell them apart."""
    x = call.arg(0, "input")
    axes = torch.empty(x.shape, device="meta").movedim(call.arg(1, "s"), call.arg(2, "d")).stride()
    order = torch.empty(x.shape, device="meta").stride()
    if len(set(order)) < len(order):
        return None
    return made("permute", call.of(x), axes=[order.index(s) for s in axes])


def concat(call: Call) -> Made:
    """Tensors one after the other."""
    parts = call.arg(0, "tensors")
    return made("concat", *map(call.of, parts), axis=int(call.arg(1, "dim", 0)))


def parts(call: Call) -> list[Made | None]:
    """chunk, split, tensor_split: consecutive pieces along one axis."""
    x = call.arg(0, "input")
    axis = int(call.arg(2, "dim", 0)) % x.dim()
    parts: list[Made | None] = []
    at = 0
    for piece in call.result:
        end = at + piece.shape[axis]
        parts.append(made("cut", call.of(x), axis=axis, start=at, stop=end))
        at = end
    return parts


def unbound(call: Call) -> list[Made | None]:
    """unbind: the places of an axis, which goes."""
    x = call.arg(0, "input")
    axis = int(call.arg(1, "dim", 0)) % x.dim()
    return [
        made(
            "reshape",
            made("cut", call.of(x), axis=axis, start=i, stop=i + 1),
            shape=list(piece.shape),
        )
        for i, piece in enumerate(call.result)
    ]


def item(call: Call) -> Made | None:
    """x[..]: slices with a step of one, numbers, None and ...; nothing that gathers."""
    x, index = call.args[0], call.args[1]
    index = index if isinstance(index, tuple) else (index,)
    if any(not (i is None or i is ... or isinstance(i, int | slice)) for i in index):
        return None
    if any(isinstance(i, bool) for i in index):
        return None
    if ... in index:
        at = index.index(...)
        named = sum(i is not None for i in index) - 1
        index = (*index[:at], *[slice(None)] * (x.dim() - named), *index[at + 1 :])
    found, axis = call.of(x), 0
    for i in index:
        if i is None:
            continue
        size = x.shape[axis]
        if isinstance(i, slice):
            start, stop, by = i.indices(size)
            if by != 1:
                return None
        else:
            start = int(i) % size
            stop = start + 1
        if (start, stop) != (0, size):
            found = made("cut", found, axis=axis, start=start, stop=stop)
        axis += 1
    return made("reshape", found, shape=list(call.result.shape))


def over(op: str) -> Rule:
    """A sum or mean over axes."""

    def rule(call: Call) -> Made | None:
        x, axis = call.arg(0, "input"), call.arg(1, "dim")
        axes = (
            range(x.dim()) if axis is None else axis if isinstance(axis, tuple | list) else [axis]
        )
        found = made(op, call.of(x), axis=[int(a) % x.dim() for a in axes])
        if call.arg(2, "keepdim", False):
            found = made("reshape", found, shape=list(call.result.shape))
        return found

    return rule


def cast(call: Call) -> Made | None:
    """Another dtype: the same numbers, or those rounded to it."""
    x, result = call.args[0], call.result
    if result.dtype == x.dtype or not (x.is_floating_point() and result.is_floating_point()):
        return made("add", call.of(x))
    wider = torch.finfo(result.dtype).eps <= torch.finfo(x.dtype).eps
    to = str(result.dtype).removeprefix("torch.")
    return made("add" if wider else "rounded", call.of(x), **({} if wider else {"to": to}))


def same(call: Call) -> Made:
    """The same numbers in another tensor."""
    return made("add", call.operand(0, "input"))
