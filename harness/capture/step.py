"""One step of a script while it is recorded: its tensors by name, and how each was made."""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from numpy.typing import NDArray

from harness.data import randomness
from harness.models.entries import Made, why_not
from harness.trace.roles import has_role

Array = NDArray[Any]
# What a step is made of, in the order in which it happens: first parts of names.
PHASES = (
    *("inputs/", "state/in/", "forward/", "log/", "buffers/", "backward/", "grads/"),
    *("update/", "optimizer/", "params/", "state/out/"),
)
# Code that is no script's: this project's, Python's own, and what is installed.
INSIDE = (str(Path(__file__).parents[1]), sysconfig.get_path("stdlib"), "<frozen", "<string")
INSTALLED, LONGEST = f"{os.sep}site-packages{os.sep}", 100
LOSS = ("forward/objective", "forward/loss")  # the last of the forward pass, in this order


class Point(NamedTuple):
    """A tensor, as an array of its own, and how it was made: an op with its operands, if known."""

    array: Any
    made: Made | None = None
    source: str | None = None


class Step:
    """The points of one step. What is seen in it may be replaced by what `feed` holds.

    `feed` gives, by name, what the step is to go on with in place of what it made itself (None: its
    own); a run that follows another is fed so.
    """

    def __init__(
        self,
        number: int,
        feed: Callable[[str], Array | None] | None = None,
        seed: int | None = None,
        said: bool = True,
        deep: bool = False,
        describe: Callable[[str, Any], Any] | None = None,
    ) -> None:
        """Nothing is seen yet. `seed`: masks of dropout are drawn here, the same on every side.

        `describe` gives what a trace would say of a tensor, in place of its elements, where the
        trace keeps none; None for one that is to be copied.

        `said`: the trace is to say how the tensors of this step are made, and in which lines.
        `deep`: operations between modules are points, too.
        """
        self.number, self.said, self.deep = number, said, deep
        self._feed, self._seed, self._sites = feed, seed, 0
        self._describe = describe
        self.points: dict[str, Point] = {}
        self._calls: dict[str, int] = {}

    @property
    def fed(self) -> bool:
        """Whether anything may be put in place."""
        return self._feed is not None

    def name(self, wanted: str) -> str:
        """A name that no point of this step has: `wanted`, or with the number of the call."""
        count = self._calls.get(wanted, 0) + 1
        self._calls[wanted] = count
        return wanted if count == 1 else f"{wanted}:{count}"

    def see(
        self, name: str, array: Any, made: Made | None = None, source: str | None = None
    ) -> None:
        """Keep a point. A name that there is already is given the newer one."""
        self.points.pop(name, None)
        self.points[name] = Point(array, made, source)

    def described(self, name: str, tensor: Any) -> Any:
        """What is to be seen of a tensor that is not copied; None for one that has to be."""
        return None if self._describe is None else self._describe(name, tensor)

    def mask(self, name: str, shape: tuple[int, ...], rate: float) -> Array | None:
        """What the next dropout of the step keeps, where that is handed over; None: its own.

        It is that of the point which `name` gives next: a layer may run several times in a step.
        """
        site, self._sites = self._sites, self._sites + 1
        count = self._calls.get(name, 0) + 1
        fed = self.onward(name if count == 1 else f"{name}:{count}", shape)
        if fed is None and self._seed is not None:
            fed = randomness.mask(self._seed, site, self.number, shape, rate)
        return fed

    def rename(self, old: str, new: str) -> None:
        """Give a point that nothing was made of another name."""
        self.points[new] = self.points.pop(old)

    def call(self, old: str, new: str) -> None:
        """Give a point another name, also in what was made of it."""
        for name, point in self.points.items():
            self.points[name] = point._replace(made=called(point.made, old, new))
        names = {name: new if name == old else name for name in self.points}
        self.points = {names[name]: point for name, point in self.points.items()}

    def onward(self, name: str, shape: tuple[int, ...]) -> Array | None:
        """What the step goes on with in place of a point of this shape; None: its own."""
        found = self._feed(name) if self._feed else None
        return found if found is not None and found.shape == shape else None

    def tensors(self) -> dict[str, Any]:
        """The arrays by name, in the order in which a step goes."""
        return {name: self.points[name].array for name in self._ordered()}

    def stages(self) -> Mapping[str, Made]:
        """How each is made, where that is known and a trace can say it; by name.

        A factor that is infinite, or a norm of more tensors than an entry may name, is not said.
        """
        known = ((name, self.points[name].made) for name in self._ordered())
        return {name: made for name, made in known if made and _can_be_said(made)}

    def sources(self) -> Mapping[str, str]:
        """The line of the script that made each, where that is known; by name."""
        return {name: at for name in self._ordered() if (at := self.points[name].source)}

    def _ordered(self) -> list[str]:
        names = sorted(self.points, key=_place)  # of one phase as they came: the sort is stable
        first, last = LOSS
        if first in self.points and last in self.points and _reads(self.points[first].made, last):
            names.remove(last)  # what is minimised is a part of the loss that was logged before
            names.insert(names.index(first), last)
        return names


@cache
def _place(name: str) -> tuple[int, int]:
    """Where a point stands in a step."""
    phase = next((i for i, phase in enumerate(PHASES) if name.startswith(phase)), len(PHASES))
    return phase, LOSS.index(name) + 1 if name in LOSS else 0


def _reads(made: Made | None, name: str) -> bool:
    """Whether a point is made from another."""
    inner = made.operands if made else ()
    return any(x == name or (isinstance(x, Made) and _reads(x, name)) for x in inner)


def _can_be_said(made: Made) -> bool:
    return why_not(made.op, made.written().get("from", []), made.args) is None


def called(made: Any, old: str, new: str) -> Any:
    """An expression, or a name, in which a point has another name."""
    if isinstance(made, Made):
        return Made(made.op, tuple(called(x, old, new) for x in made.operands), made.args)
    return new if made == old else made


def line() -> str | None:
    """The line of the script that is running: the innermost outside of what is installed."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if not file.startswith(INSIDE) and INSTALLED not in file:
            name = os.path.relpath(file) if file.startswith(os.getcwd() + os.sep) else file
            found = f"{name if len(name) < LONGEST else os.path.basename(file)}:{frame.f_lineno}"
            return found if found.isprintable() else None
        frame = frame.f_back
    return None


def logged(name: str) -> str:
    """The name under which something that a script logs is kept."""
    if name == "loss":
        return "forward/loss"
    return name if has_role(name) or f"{name}/".startswith(PHASES) else f"log/{name}"
