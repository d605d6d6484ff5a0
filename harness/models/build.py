"""What a model's row is written with: it declares parameters, state, draws and stages in order."""

from __future__ import annotations

from typing import Any, NamedTuple

from harness.models.graph import BATCH, TIME, Axis, Node, Stage, Tensor, const, node, ref


class Parameter(NamedTuple):
    """A row of the table of parameters: canonical name, shape, and what each axis counts.

    `init` is the half-width of the uniform distribution that it is drawn from; None: that of the
    model (init_scale).
    """

    name: str
    shape: tuple[int, ...]
    axes: tuple[Axis, ...]
    init: float | None = None


class Draw(NamedTuple):
    """A random mask of every step: its site, and its shape (-1: the batch's size, or the window's).

    `rate` is the probability of dropping; `axes` what the mask's axes count; `stream` the number
    of the random stream that it is drawn from, which no other site has.
    """

    site: str
    shape: tuple[int, ...]
    axes: tuple[Axis, ...]
    rate: float
    stream: int


class Block(NamedTuple):
    """A part of a model that a twin computes in one function, and in another its derivative.

    `kind` names the function; `name` is what the names of its stages begin with. `params` are the
    canonical names of its parameters, `state` those of what it carries, `traced` those of its
    stages, the last of them what it hands on; `draws` the sites of its masks; `args` are settings.
    """

    kind: str
    name: str
    params: tuple[str, ...] = ()
    state: tuple[str, ...] = ()
    traced: tuple[str, ...] = ()
    draws: tuple[str, ...] = ()
    args: tuple[tuple[str, Any], ...] = ()


class Builder:
    """Collects what a row declares."""

    def __init__(self, train: Any = None) -> None:
        """`train` is the TrainSpec, where stages depend on it (how the loss is averaged)."""
        self.train = train
        self.params: dict[str, Parameter] = {}
        self.state: dict[str, int] = {}
        self.draws: dict[str, Draw] = {}
        self.sites = 0
        self.stages: list[Stage] = []
        self.blocks: list[Block] = []

    def param(
        self,
        name: str,
        shape: tuple[int, ...],
        axes: tuple[Axis, ...],
        init: float | None = None,
    ) -> Node:
        """A parameter as the forward pass reads it: as it was before the step."""
        self.params.setdefault(name, Parameter(name, shape, axes, init))
        return ref(f"params/{name}", back=1, first=f"inputs/params/{name}")

    def carried(self, name: str, size: int) -> Node:
        """What is carried from timestep to timestep, and from step to step: [B, size]."""
        self.state[name] = size
        return ref(f"forward/{name}", time=-1, first=f"state/in/{name}")

    def dropout(
        self, x: Node, site: str, shape: tuple[int, ...], axes: tuple[Axis, ...], rate: float
    ) -> Node:
        """x with what the mask of this site drops set to zero, a new mask at every step.

        Nothing is drawn at rate 0; every site has a stream of its own, whatever the others' rates.
        """
        stream, self.sites = self.sites, self.sites + 1
        if not rate:
            return x
        self.draws[site] = Draw(site, shape, axes, rate, stream)
        return node("dropout", x, ref(f"inputs/mask/{site}"), const(rate, "dropout"))

    def trace(self, name: str, value: Node, *axes: Axis) -> Node:
        """A stage of the forward pass that is traced; `axes` those after batch and timestep."""
        full = (BATCH, TIME, *axes) if axes else ()
        self.stages.append(Stage(Tensor(f"forward/{name}", full), value))
        return ref(f"forward/{name}")

    def block(self, kind: str, name: str, **fields: Any) -> None:
        """A block, for the twins."""
        args = tuple(sorted(fields.pop("args", {}).items()))
        self.blocks.append(Block(kind, name, **fields, args=args))
