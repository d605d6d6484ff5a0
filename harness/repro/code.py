"""Expressions of a program, and pieces of them that frameworks have in common."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple


class Code(NamedTuple):
    """An expression of a program, and the shape of what it makes.

    In a format string "{x}" is the expression, "{x:p}" the same in parentheses if it needs them.
    """

    text: str
    shape: tuple[int, ...] = ()

    def __format__(self, how: str) -> str:
        """The expression as it stands at a place."""
        return f"({self.text})" if how == "p" and not is_atom(self.text) else self.text

    @property
    def ndim(self) -> int:
        """How many axes it has."""
        return len(self.shape)


def is_atom(text: str) -> bool:
    """Whether an expression binds tighter than any operator."""
    found = ast.parse(text, mode="eval").body
    return isinstance(found, ast.Name | ast.Constant | ast.Call | ast.Attribute | ast.Subscript)


Call = str | Callable[..., str | None]  # a format string over operands, or a function


def is_number(x: Code) -> bool:
    """Whether an expression is a number as it stands."""
    return re.fullmatch(r"-?[\d.]+(e[+-]?\d+)?|inf|nan", x.text) is not None


def number(value: Any) -> str:
    """A number as a program has it."""
    plain = value.item() if hasattr(value, "item") else value
    return repr(plain)


def axes_but(ndim: int, axis: int) -> str:
    """All axes but one, as code."""
    return repr(tuple(k for k in range(ndim) if k != axis % ndim))


def slices(ndim: int, axis: int, start: int, stop: int, size: int) -> str:
    """An index that takes a part along one axis, as code."""
    part = f"{start or ''}:{'' if stop == size else stop}"
    if axis % ndim == ndim - 1 and ndim > 1:
        return f"..., {part}"
    return ", ".join([":"] * (axis % ndim) + [part])


def along(v: Code, ndim: int, axis: int) -> str:
    """A number for each channel, as it broadcasts; code."""
    if axis % ndim == ndim - 1 or is_number(v):
        return f"{v:p}"
    index = ", ".join([":"] + ["None"] * (ndim - 1 - axis % ndim))
    return f"{v:p}[{index}]"


def listed(items: Sequence[Code], brackets: str = "[]") -> str:
    """One expression as it is, several as a list or tuple."""
    inside = ", ".join(x.text for x in items)
    return inside if len(items) == 1 else brackets[0] + inside + brackets[1]


def a_list(items: Sequence[Code]) -> str:
    """A list; one that there is already is written as "*name"."""
    if len(items) == 1 and items[0].text.startswith("*"):
        return items[0].text[1:]
    return f"[{', '.join(x.text for x in items)}]"


def str_of(x: Code) -> str:
    """The expression."""
    return x.text
