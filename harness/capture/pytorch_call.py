"""A call of PyTorch's API as the rules see it that say how its result is made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from harness.models.entries import Made

Operand = str | float | Made


class Call:
    """A call of a function: its arguments, and how tensors among them were made."""

    def __init__(
        self,
        args: Sequence[Any],
        kwargs: dict[str, Any],
        result: Any,
        of: Callable[[Any], Operand],
        keep: Callable[[str, Any, Made | None], str],
        kept: Callable[[], Any] = lambda: None,
    ) -> None:
        """`of` says how a tensor was made; `keep` makes a point of one and returns its name.

        `kept` gives what a dropout kept.
        """
        self.args, self.kwargs, self.result, self._of, self.keep = args, kwargs, result, of, keep
        self.kept = kept

    def arg(self, place: int, name: str, default: Any = None) -> Any:
        """An argument by its place or name."""
        return self.args[place] if place < len(self.args) else self.kwargs.get(name, default)

    def of(self, value: Any) -> Operand:
        """A tensor or number as an operand."""
        return self._of(value)

    def operand(self, place: int, name: str = "") -> Operand:
        """An argument that is a tensor or a number, as an operand."""
        return self._of(self.arg(place, name))


def made(op: str, *operands: Operand, **args: Any) -> Made:
    """An op of operands, not checked: what no trace can say is left out of it (`Step.stages`)."""
    return Made(op, operands, args)


Rule = Callable[[Call], Made | None]


def of_constants(made: Made) -> bool:
    """Whether an expression reads nothing but what the script made of nothing."""
    inner = [x for x in made.operands if isinstance(x, Made | str)]
    return bool(inner) and all(
        of_constants(x) if isinstance(x, Made) else x.startswith("inputs/constant") for x in inner
    )


def size_of(made: Any) -> tuple[int, int]:
    """How many ops an expression has, and how deep they nest."""
    if not isinstance(made, Made):
        return 0, 0
    inner = [size_of(x) for x in made.operands]
    return 1 + sum(n for n, _ in inner), 1 + max((d for _, d in inner), default=0)
