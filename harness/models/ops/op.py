"""What an op is, and the table of all of them."""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness.errors import HarnessError
from harness.models.graph import Node

Array = NDArray[Any]
# Of a node and the gradient of its result: the gradient of each operand, None where none flows.
Derivative = Callable[[Node, Node], tuple[Node | None, ...]]
# The sizes (largest absolute numbers) of the operands, None where not known, to the size that the
# op rounds at; None: no other than that of its result.
Size = Callable[..., float | None]


class Kin(NamedTuple):
    """What programs have in an op's place: what such a program does, and its formula.

    `rare` says that few do.
    """

    does: str
    formula: Callable[..., Array]
    rare: bool = False


class Op(NamedTuple):
    """An op: `formula` takes the operands as arrays and the arguments by name.

    `size` is about the largest number that comes of operands of given sizes. An op that `cancels`
    rounds at that size, whatever is left: the terms of a sum of products, the 1 of 1 - s. Every
    other rounds at the size of its result. `over_time` says that the result has no timesteps where
    the operands have; `either` that a program may as well have one of its kin; `rows` "each" that
    a row of the result is made of the same row of each operand and of numbers. `kin` are what
    programs have in its place: same operands, another formula. `says` are words for the op in a
    sentence.
    """

    name: str
    formula: Callable[..., Array]
    derivative: Derivative | None = None
    size: Size | None = None
    over_time: bool = False
    cancels: bool = False
    either: bool = False
    rows: str = ""
    kin: tuple[Kin, ...] = ()
    says: str = ""


OPS: dict[str, Op] = {}


def op(
    derivative: Derivative | None = None,
    *,
    size: Size | None = None,
    over_time: bool = False,
    cancels: bool = False,
    either: bool = False,
    says: str = "",
    name: str = "",
) -> Callable[[Callable[..., Array]], Callable[..., Array]]:
    """Put a formula into the table of ops, under its own name (or `name`)."""

    def put(formula: Callable[..., Array]) -> Callable[..., Array]:
        key = name or formula.__name__
        OPS[key] = Op(key, formula, derivative, size, over_time, cancels, either, "", (), says)
        return formula

    return put


def kin(
    of: str, does: str, rare: bool = False
) -> Callable[[Callable[..., Array]], Callable[..., Array]]:
    """Put a formula into the family of an op: what a program `does` that has it in its place."""

    def put(formula: Callable[..., Array]) -> Callable[..., Array]:
        OPS[of] = OPS[of]._replace(kin=(*OPS[of].kin, Kin(does, formula, rare)))
        return formula

    return put


def find(name: str) -> Op:
    """The op of that name. Raises HarnessError that lists those that there are."""
    if name not in OPS:
        raise HarnessError(f"no op named {name!r}; there are: {', '.join(sorted(OPS))}")
    return OPS[name]


class Parameters(NamedTuple):
    """What an op takes: its operands by name (of any number where `more`), and its arguments.

    `defaults` are those of the arguments; `needed` the arguments that have none.
    """

    operands: tuple[str, ...]
    more: bool
    defaults: dict[str, Any]
    needed: tuple[str, ...]


def parameters(name: str) -> Parameters:
    """What an op takes: operands are those parameters of its formula that are arrays or numbers."""
    operands, more, defaults, needed = [], False, {}, []
    for key, parameter in signature(find(name).formula).parameters.items():
        if parameter.kind is parameter.VAR_POSITIONAL:
            more = True
        elif parameter.annotation in ("Array", "N", parameter.empty):
            operands.append(key)
        elif parameter.default is parameter.empty:
            needed.append(key)
        else:
            defaults[key] = parameter.default
    return Parameters(tuple(operands), more, defaults, tuple(needed))


def rows(x: Array) -> Array:
    """All but the last axis as one."""
    return np.reshape(x, (-1, x.shape[-1]))


def related(does: dict[str, str], base: str = "") -> None:
    """Make ops of one signature each other's kin: by name, what a program does that has it.

    With `base`, they are the kin of that op alone.
    """
    for name in [base] if base else list(does):
        others = tuple(Kin(words, OPS[o].formula) for o, words in does.items() if o != name)
        OPS[name] = OPS[name]._replace(kin=OPS[name].kin + others)
