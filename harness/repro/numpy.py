"""Code in NumPy alone: for programs that are written in it."""

from __future__ import annotations

from collections.abc import Callable

from harness.repro.code import Call, Code
from harness.repro.updates import Update
from harness.repro.writer import Dys, Writer


class Numpy:
    """NumPy as far as code is written for it; it has no gradients and no optimizers."""

    name, np, package = "NumPy", "np", "numpy"

    def __init__(self) -> None:
        """The tables of this module."""
        self.calls, self.patterns = CALLS, ()

    def begin(self, w: Writer) -> None:
        """What stands before everything else."""

    def load(self, text: str, dtype: str) -> str:
        """An array of the file."""
        return text

    def array(self, w: Writer, x: Code) -> str:
        """An array as it is."""
        return x.text

    def tensor(self, w: Writer, text: str) -> str:
        """An array as it is."""
        return text

    def ones(self, w: Writer, shape: tuple[int, ...]) -> str:
        """An array of ones."""
        return f"np.ones({shape}, np.{w.dtype})"

    def gradient(self, w: Writer, x: Code, forward: Callable[[], list[Code]], dy: Dys) -> Code:
        """There is none: gradients are formulas."""
        raise NotImplementedError

    def update(self, w: Writer, update: Update) -> Code | None:
        """There is none: updates are formulas."""
        return None


CALLS: dict[str, Call] = {
    "reshape": "{x:p}.reshape{shape}",
    "permute": "{x:p}.transpose{axes}",
    "embed": "{table:p}[{x}]",
    "causal_mask": lambda w, x, fill, more: (
        f"np.where(np.tri({x.shape[-2]}, {x.shape[-1]}, {more}, dtype=bool), {x}, {fill})"
    ),
}
