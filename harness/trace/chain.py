"""How some tensors of one program are some of another's: a chain of steps, each with an inverse.

A chain turns a list of tensors into another list. Written as text, one step a line:

    axes 1 0                    the axes in another order: axis k of the result is axis ORDER[k]
    shape 8 32 to 8 4 8         another shape; one length on each side may be -1
    blocks 0 0 2 1 3            the equal blocks along axis 0: block k of the result is ORDER[k]
    order 0 2 0 1               the places along axis 0: place k of the result is ORDER[k]
    reverse 1                   reverse order along axis 1
    split 0 8 8 8               one tensor into several along axis 0, of these lengths
    join 0 8 8 8                several tensors, of these lengths along axis 0, into one
    sum 2                       that many tensors into their sum
    unsum 2                     one tensor into itself and zeros: the inverse of sum

Each works on every tensor of the list but the last four. The arithmetic is that of the ops of
harness.models.ops, on arrays and as expressions alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from harness.errors import HarnessError
from harness.models.graph import Node, is_ref, name_of, node
from harness.models.ops import find

Array = NDArray[Any]
Shape = tuple[int, ...]
T = TypeVar("T")
ALLOWED = (
    "axes ORDER, shape SIZES to SIZES, blocks AXIS ORDER, order AXIS ORDER, reverse AXIS, "
    "split AXIS SIZES, join AXIS SIZES, sum COUNT, unsum COUNT"
)
MOST = 1 << 24  # numbers of one step: an order of places has as many as there are places
# Ops that treat each element by itself: tensors of one shape, and numbers.
_ONE_BY_ONE = """
    relu leaky_relu elu silu gelu gelu_tanh sigmoid tanh exp log softplus square absolute identity
    add multiply divide negate complement scale relu_slope leaky_relu_slope elu_slope silu_slope
    gelu_slope gelu_tanh_slope sigmoid_slope tanh_slope average velocity velocity_keras descend
    along_velocity along_velocity_keras along_gradient nesterov nesterov_keras adam adam_keras
    over_root decay_gradient decay_weights clip_elements stop_gradient
"""
ONE_BY_ONE = frozenset(_ONE_BY_ONE.split())


class MisfitError(HarnessError):
    """A step that cannot be, or does not fit the tensors that it is given."""


class Move(NamedTuple):
    """One step: `kind`, and its numbers; `to` are those after "to" of a shape."""

    kind: str
    numbers: tuple[int, ...]
    to: tuple[int, ...] = ()

    def text(self) -> str:
        """The step as a map has it."""
        words = [self.kind, *map(str, self.numbers)]
        return " ".join([*words, "to", *map(str, self.to)] if self.kind == "shape" else words)

    @property
    def inverse(self) -> Move:
        """The step back."""
        numbers = self.numbers
        if self.kind == "axes":
            return Move("axes", tuple(int(k) for k in np.argsort(numbers)))
        if self.kind in ("blocks", "order"):
            return Move(self.kind, (numbers[0], *(int(k) for k in np.argsort(numbers[1:]))))
        if self.kind == "shape":
            return Move("shape", self.to, numbers)
        other = {"split": "join", "join": "split", "sum": "unsum", "unsum": "sum"}
        return Move(other.get(self.kind, self.kind), numbers)

    @property
    def changes_rounding(self) -> bool:
        """Whether the step is arithmetic, and not only another place for the same numbers."""
        return self.kind in ("sum", "unsum")


def parse_move(text: str) -> Move:
    """The step that is written so. Raises MisfitError that says what is allowed."""
    kind, *words = text.split() or [""]
    before, after = words, list[str]()
    if kind == "shape" and "to" in words:
        at = words.index("to")
        before, after = words[:at], words[at + 1 :]
    try:
        made = Move(kind, tuple(map(int, before)), tuple(map(int, after)))
    except ValueError:
        raise MisfitError(f"{text!r} is no step: there are: {ALLOWED}") from None
    wrong = _wrong(made, "to" in words)
    if wrong:
        raise MisfitError(f"{text!r} {wrong}; there are: {ALLOWED}")
    return made


def _wrong(move: Move, has_to: bool) -> str | None:
    """Why a step cannot be."""
    numbers = move.numbers
    if len(numbers) > MOST:
        return "has too many numbers"
    if move.kind == "axes":
        return None if _is_order(numbers) else "is no order of axes"
    if move.kind in ("blocks", "order"):
        fine = len(numbers) > 1 and numbers[0] >= 0 and _is_order(numbers[1:])
        return None if fine else "is no axis and order"
    if move.kind == "reverse":
        return None if len(numbers) == 1 and numbers[0] >= 0 else "names no one axis"
    if move.kind == "shape":
        return None if has_to and _same_size(numbers, move.to) else "has no two shapes of one size"
    if move.kind in ("split", "join"):
        fine = len(numbers) > 2 and numbers[0] >= 0 and min(numbers[1:]) > 0
        return None if fine else "is no axis and lengths of two parts or more"
    if move.kind in ("sum", "unsum"):
        return None if len(numbers) == 1 and 2 <= numbers[0] <= 64 else "has no count of 2 to 64"
    return "is no step"


def _is_order(numbers: Sequence[int]) -> bool:
    return sorted(numbers) == list(range(len(numbers)))


def _same_size(one: Shape, two: Shape) -> bool:
    open_one, open_two = one.count(-1), two.count(-1)
    if min((*one, *two), default=0) < -1 or 0 in (*one, *two) or (open_one, open_two) > (1, 1):
        return False
    if open_one != open_two:
        return False
    return bool(open_one) or math.prod(one) == math.prod(two)


class Chain(NamedTuple):
    """Steps one after the other; none: the tensors as they are."""

    moves: tuple[Move, ...] = ()

    @property
    def texts(self) -> tuple[str, ...]:
        """The steps as a map has them."""
        return tuple(move.text() for move in self.moves)

    @property
    def inverse(self) -> Chain:
        """The way back."""
        return Chain(tuple(move.inverse for move in reversed(self.moves)))

    @property
    def summed(self) -> bool:
        """Whether tensors are added up."""
        return any(move.kind == "sum" for move in self.moves)

    @property
    def unsummed(self) -> bool:
        """Whether a tensor stands for a sum of several."""
        return any(move.kind == "unsum" for move in self.moves)

    def without(self, kind: str) -> Chain:
        """The same without the steps of a kind."""
        return Chain(tuple(move for move in self.moves if move.kind != kind))

    def only(self, kind: str) -> Chain:
        """The steps of a kind alone."""
        return Chain(tuple(move for move in self.moves if move.kind == kind))

    def counts(self, given: int) -> int:
        """How many tensors come of so many. Raises MisfitError where a step takes others."""
        for move in self.moves:
            given = _count(move, given)
        return given

    def shapes(self, given: Sequence[Shape]) -> list[Shape]:
        """The shapes of the result. Raises MisfitError that names the step that does not fit."""
        found = list(given)
        for move in self.moves:
            found = _shapes(move, found)
        return found

    def arrays(self, given: Sequence[Array], same: bool = False) -> list[Array]:
        """The result; `same`: each part of a sum has the whole (its gradient) as its own."""

        def call(op: str, *operands: Array, **args: Any) -> Array:
            return find(op).formula(*operands, **args)

        return self._made(list(given), call, same)

    def nodes(self, given: Sequence[Node], same: bool = False) -> list[Node]:
        """The same as expressions."""
        return self._made(list(given), _simple, same)

    def _made(self, found: list[T], call: Callable[..., T], same: bool) -> list[T]:
        for move in self.moves:
            found = _applied(move, found, call, same)
        return found


def parse_chain(texts: Sequence[str]) -> Chain:
    """The chain that is written so. Raises MisfitError."""
    return Chain(tuple(map(parse_move, texts)))


def _count(move: Move, given: int) -> int:
    parts = move.numbers[0] if move.kind in ("sum", "unsum") else len(move.numbers) - 1
    apart, together = (1, parts), (parts, 1)
    known = {"split": apart, "unsum": apart, "join": together, "sum": together}
    takes, makes = known.get(move.kind, (given, given))
    if takes != given:
        raise MisfitError(f"{move.text()!r} takes {takes} tensors and is given {given}")
    return makes


def _shapes(move: Move, given: list[Shape]) -> list[Shape]:
    """The shapes that a step makes of these."""
    _count(move, len(given))
    kind, numbers = move.kind, move.numbers
    if kind == "axes":
        return [tuple(s[k] for k in numbers) for s in _of_axes(move, given, len(numbers))]
    if kind == "shape":
        return [_reshaped(move, s) for s in given]
    if kind in ("sum", "unsum"):
        if len(set(given)) > 1:
            raise MisfitError(f"{move.text()!r} adds up tensors of unlike shapes {_said(given)}")
        return given[:1] * (numbers[0] if kind == "unsum" else 1)
    axis = numbers[0]
    for shape in given:
        if axis >= len(shape):
            raise MisfitError(f"{move.text()!r} names axis {axis} of {list(shape)}")
    if kind == "blocks" and any(s[axis] % (len(numbers) - 1) for s in given):
        raise MisfitError(f"{move.text()!r} cuts axis {axis} of {_said(given)} into unequal blocks")
    if kind == "order" and any(s[axis] != len(numbers) - 1 for s in given):
        raise MisfitError(f"{move.text()!r} orders {len(numbers) - 1} places of {_said(given)}")
    if kind == "split":
        (shape,) = given
        if sum(numbers[1:]) != shape[axis]:
            raise MisfitError(f"{move.text()!r} does not cut axis {axis} of {list(shape)}")
        return [(*shape[:axis], n, *shape[axis + 1 :]) for n in numbers[1:]]
    if kind == "join":
        rest = {(*s[:axis], *s[axis + 1 :]) for s in given}
        if len(rest) > 1 or [s[axis] for s in given] != list(numbers[1:]):
            raise MisfitError(f"{move.text()!r} does not join {_said(given)}")
        return [(*given[0][:axis], sum(numbers[1:]), *given[0][axis + 1 :])]
    return given


def _of_axes(move: Move, given: list[Shape], count: int) -> list[Shape]:
    for shape in given:
        if len(shape) != count:
            raise MisfitError(f"{move.text()!r} orders {count} axes, and is given {list(shape)}")
    return given


def _reshaped(move: Move, shape: Shape) -> Shape:
    """A shape after `shape OLD to NEW`, where it is OLD."""
    fits = len(shape) == len(move.numbers) and all(
        n in (-1, k) for n, k in zip(move.numbers, shape, strict=True)
    )
    known = math.prod(n for n in move.to if n != -1)
    if not fits or math.prod(shape) % known:
        raise MisfitError(f"{move.text()!r} is given {list(shape)}")
    return tuple(math.prod(shape) // known if n == -1 else n for n in move.to)


def _said(shapes: Sequence[Shape]) -> str:
    return ", ".join(str(list(s)) for s in shapes)


def _applied(move: Move, given: list[T], call: Callable[..., T], same: bool) -> list[T]:
    """The tensors, or expressions, that a step makes."""
    kind, numbers = move.kind, move.numbers
    if kind == "split":
        ends = np.cumsum((0, *numbers[1:])).tolist()
        cut = partial(call, "cut", given[0], axis=numbers[0])
        return [cut(start=i, stop=j) for i, j in pairwise(ends)]
    if kind == "join":
        return [call("concat", *given, axis=numbers[0])]
    if kind == "sum":
        return given[:1] if same else [call("add", *given)]
    if kind == "unsum":
        rest = given[0] if same else call("zeros", given[0])
        return [given[0], *[rest] * (numbers[0] - 1)]
    ops: dict[str, tuple[str, dict[str, Any]]] = {
        "axes": ("permute", dict(axes=numbers)),
        "shape": ("reshape", dict(shape=move.to)),
        "blocks": ("blocks", dict(axis=numbers[0], order=numbers[1:])),
        "order": ("reordered", dict(axis=numbers[0], order=numbers[1:])),
        "reverse": ("flipped", dict(axis=numbers[0])),
    }
    op, args = ops[kind]
    return [call(op, x, **args) for x in given]


def _simple(op: str, *operands: Node, **args: Any) -> Node:
    """A node, or a shorter expression: what is turned and turned back is gone."""
    x = operands[0]
    if op == "permute":
        return _turned(x, args["axes"])
    if op == "reshape" and x.op == "reshape":
        x = x.inputs[0]
    if op == "blocks" and args["axis"] != -1 and x.op == "blocks" and x.arg("axis") == args["axis"]:
        first, then = x.arg("order"), args["order"]
        if len(first) == len(then):
            order = tuple(first[k] for k in then)
            if order == tuple(range(len(order))):
                return x.inputs[0]
            return node("blocks", x.inputs[0], axis=args["axis"], order=order)
    return node(op, x, *operands[1:], **args)


def _turned(x: Node, axes: tuple[int, ...]) -> Node:
    """A node with its axes in another order."""
    if x.op == "transpose" and len(axes) == 2:
        x, axes = x.inputs[0], tuple(1 - k for k in axes)
    elif x.op == "permute":
        x, axes = x.inputs[0], tuple(x.arg("axes")[k] for k in axes)
    if axes == tuple(range(len(axes))):
        return x
    return node("permute", x, axes=axes)


def turned_back(x: Node) -> Node | None:
    """A transpose of what is turned already, as one step; None for any other node."""
    if x.op == "transpose" and x.inputs[0].op == "permute":
        inner = x.inputs[0]
        if len(inner.arg("axes")) == 2:
            return _turned(inner.inputs[0], tuple(inner.arg("axes")[1 - k] for k in (0, 1)))
    return None


def turned_after(x: Node) -> Node | None:
    """What is made of turned tensors element by element, as the turned result; None for others.

    So that turning back what was turned leaves the stage as the other program would write it.
    """
    turned = [i for i in x.inputs if i.op == "permute"]
    if x.op not in ONE_BY_ONE or len({i.arg("axes") for i in turned}) != 1:
        return None
    if any(i.op not in ("permute", "const", "step") and not _is_scalar(i) for i in x.inputs):
        return None
    inputs = (i.inputs[0] if i.op == "permute" else i for i in x.inputs)
    return node("permute", node(x.op, *inputs, **dict(x.args)), axes=turned[0].arg("axes"))


def _is_scalar(x: Node) -> bool:
    return is_ref(x) and name_of(x) in ("update/learning_rate", "update/global_norm")
