"""What is matched: parameters, buffers, layers and other tensors of a trace, with their numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.models.graph import Graph, below, is_ref, name_of
from harness.trace import Step, TensorEntry, Trace
from harness.trace.alignment import FAMILIES, SLOTS
from harness.trace.dtypes import epsilon

Array = NDArray[Any]
Facet = tuple[int, str]  # a step, and what stands before the name there
LOOSE, TIGHT = 2000.0, 8.0  # epsilons that computed and given numbers may be off by
COARSEST = 0.02
SMALL = 1 << 20  # elements that stay in memory


class Unit:
    """A tensor under all the names it has: a parameter before and after the step, its gradient."""

    def __init__(self, section: str, name: str, place: int) -> None:
        """It has no numbers yet; `place` is where it comes in the order of execution."""
        self.section, self.name, self.place = section, name, place
        self.entries: dict[Facet, tuple[Step, TensorEntry]] = {}
        self.op: str | None = None
        # The order of axes that makes [out, in, ..] of a weight, by how its stage reads it.
        self.read_as: tuple[int, ...] | None = None
        self.weight: str | None = None  # of a layer: the parameter of its only product
        self._kept: dict[Facet, Array] = {}

    def __repr__(self) -> str:
        """Its name and shape."""
        return f"{self.name}{list(self.shape)}"

    @property
    def whole_name(self) -> str:
        """The name as a trace has it, once."""
        return {"params": "params/", "buffers": "buffers/", "points": "forward/"}.get(
            self.section, ""
        ) + self.name

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the first step."""
        return next(iter(self.entries.values()))[1].shape

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    def entry(self, facet: Facet) -> TensorEntry | None:
        """What the index says of it there."""
        found = self.entries.get(facet)
        return found[1] if found else None

    def holds(self, facet: Facet) -> bool:
        """Whether its elements are there."""
        found = self.entries.get(facet)
        return bool(found and found[0].holds(found[1]))

    def read(self, facet: Facet) -> Array:
        """Its elements, as floats."""
        if facet not in self._kept:
            step, entry = self.entries[facet]
            array = step.view(entry)
            wide = array.astype(np.float64) if array.size <= SMALL else array
            if array.size > SMALL:
                return wide if wide.dtype.kind == "f" else wide.astype(np.float64)
            self._kept[facet] = wide
        return self._kept[facet]

    def facets(self) -> list[Facet]:
        """Where it has numbers, those first that tell most: what was given, then gradients."""
        return sorted(self.entries, key=lambda f: (f[0], _RANK.get(f[1], 9)))


_RANK = {"inputs/params/": 0, "inputs/buffers/": 0, "forward/": 0, "": 0, "grads/": 1}
_RANK |= {"backward/": 1, "update/clipped/": 2, "params/": 3, "buffers/": 3}


def units(trace: Trace, steps: Iterable[int]) -> dict[str, list[Unit]]:
    """The units of a trace by section, in the order of execution."""
    found: dict[str, dict[str, Unit]] = {section: {} for section in FAMILIES}
    opened = [(number, trace.step(number)) for number in steps]
    for number, step in opened:
        for place, entry in enumerate(step.entries):
            section, prefix = _family(entry.name)
            if section is None:
                continue
            name = entry.name.removeprefix(prefix)
            unit = found[section].setdefault(name, Unit(section, name, place))
            unit.entries[number, prefix] = (step, entry)
    _add_ops(found, trace.graph)
    _add_layouts(found, trace.graph)
    return {
        section: sorted(by_name.values(), key=lambda unit: unit.place)
        for section, by_name in found.items()
    }


def _family(name: str) -> tuple[str | None, str]:
    """The section that a name belongs to, and what stands before; None for a slot."""
    if name.startswith(SLOTS):
        return None, SLOTS
    for section, families in FAMILIES.items():
        for prefix, _ in families:
            if prefix and name.startswith(prefix):
                return section, prefix
    return "others", ""


def _add_ops(found: dict[str, dict[str, Unit]], graph: Graph | None) -> None:
    """The op that makes each tensor, where the trace says so."""
    for name, stage in graph.stages.items() if graph else ():
        section, prefix = _family(name)
        unit = found[section].get(name.removeprefix(prefix)) if section else None
        if unit is not None and prefix in ("forward/", "buffers/", ""):
            unit.op = stage.value.op


def _add_layouts(found: dict[str, dict[str, Unit]], graph: Graph | None) -> None:
    """How the stages read their weights: a kernel of [in, out], or of [out, in]."""
    for name, stage in graph.stages.items() if graph else ():
        if not name.startswith("forward/"):
            continue  # on the way back a product reads its weight the other way round
        layer = found["points"].get(name.removeprefix("forward/"))
        products = [x for x in below(stage.value) if x.op in ("linear", "conv")]
        for x in products:
            w, turned = x.inputs[1], x.op == "linear"
            if w.op == "transpose":
                w, turned = w.inputs[0], False
            unit = found["params"].get(name_of(w).removeprefix("params/")) if is_ref(w) else None
            if unit is None:
                continue
            if layer is not None and len(products) == 1:
                layer.weight = unit.name
            count = len(unit.shape)
            plain = tuple(range(count))
            last = turned or (x.op == "conv" and x.arg("layout") == "last")
            unit.read_as = (count - 1, count - 2, *plain[:-2]) if last else plain


def slots_of(step: Step, param: str) -> dict[str, TensorEntry]:
    """The entries of what the optimizer keeps of a parameter, by slot."""
    first = f"{SLOTS}{param}/"
    return {e.name.removeprefix(first): e for e in step.entries if e.name.startswith(first)}


def tolerance(a: TensorEntry, b: TensorEntry, prefix: str) -> float:
    """What numbers may be off by, as a share of the largest."""
    eps = epsilon(a.dtype, b.dtype)
    if not eps:
        return 0.0
    return min(COARSEST, eps * (TIGHT if prefix.startswith("inputs/") else LOOSE))


def informs(entry: TensorEntry | None) -> bool:
    """Whether a tensor holds two numbers that differ, or its statistics are not known."""
    return entry is not None and (entry.min is None or entry.min != entry.max)
