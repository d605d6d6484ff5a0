"""A trace read in the names and layouts of another, through a map (harness.trace.alignment)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from harness.errors import HarnessError
from harness.models.graph import Graph
from harness.trace.aligned_graph import graph_through
from harness.trace.alignment import SLOTS, Alignment, Rule, Side
from harness.trace.alignment_file import read_alignment
from harness.trace.chain import Chain, MisfitError
from harness.trace.ranks import RankedTrace, is_ranked
from harness.trace.reader import Step, Trace
from harness.trace.schema import Place, StepEntry, TensorEntry
from harness.trace.statistics import describe

KEPT = 4  # steps whose entries stay in memory: what lies otherwise is read to be described
ALONE = " (no partner)"  # after the name of such a tensor of a: b may have another of that name
UNKNOWN = "0" * 31 + "x"  # the hash of no tensor: what lies otherwise and was not kept


def open_trace(
    path: str | Path,
    roles: Sequence[str] = (),
    alignment: Alignment | str | Path | None = None,
    side: Side = "a",
) -> Trace:
    """Open the trace folder at `path`. Raises TraceError that says what is wrong with it.

    `roles` say what tensors with names of their own are (harness.trace.roles): "GRAD/*=grads".
    `alignment` is a map to another trace, or its file: the tensors of a trace that is its side "a"
    come in the names and layouts of b. Those of b itself come as they are, but that parts whose sum
    alone a has are shown as one. Raises HarnessError for a map that does not fit the trace.
    """
    if alignment is None:
        return (RankedTrace if is_ranked(path) else Trace)(path, roles)
    found = alignment if isinstance(alignment, Alignment) else read_alignment(alignment)
    return AlignedTrace(path, roles, found, side)


class Recipe(NamedTuple):
    """What a tensor that lies otherwise is made of: tensor `place` of what a chain makes."""

    sources: tuple[TensorEntry, ...]
    chain: Chain
    same: bool
    place: int


class AlignedTrace(Trace):
    """A trace whose tensors come in the names and layouts of another."""

    def __init__(
        self, path: str | Path, roles: Sequence[str], alignment: Alignment, side: Side
    ) -> None:
        """Open it. Raises HarnessError for names of the map that it has not."""
        self.own = open_trace(path, roles)
        self.path, self.given_roles, self.header = self.own.path, tuple(roles), self.own.header
        self.steps, self.cut = self.own.steps, self.own.cut
        self.alignment, self.side = alignment, side
        alignment.check()
        traced = {
            entry.name for step in _some(self.steps) for entry in self.own_entry(step).tensors
        }
        if self.steps:
            alignment.check_names(side, traced, str(path))
        self._made: dict[int, tuple[StepEntry, dict[str, Recipe]]] = {}
        self._rules: dict[tuple[str, ...], list[Rule]] = {}
        self.by_statistics: dict[str, None] = {}  # tensors of which the statistics alone are known
        self.unknown: dict[str, None] = {}  # tensors of which nothing can be said in this layout

    def entry(self, step: int) -> StepEntry:
        """As the trace's own, in the names and layouts of the other."""
        return self._entry(step)[0]

    def own_entry(self, step: int) -> StepEntry:
        """As the trace has it, without the map."""
        return self.own.entry(step)

    def plain_entry(self, step: int) -> StepEntry:
        """As the trace's own, with the names that it has itself."""
        return self.own.plain_entry(step)

    def step(self, step: int) -> Step:
        """As the trace's own, in the names and layouts of the other."""
        entry, recipes = self._entry(step)
        return AlignedStep(self, entry, recipes)

    def partners(self, step: int) -> set[str]:
        """The names of a step, as the other trace has them, that the map speaks of."""
        names = tuple(entry.name for entry in self.own_entry(step).tensors)
        return {target for rule in self.rules(names) for target in rule.targets}

    def rules(self, names: tuple[str, ...]) -> list[Rule]:
        """What becomes of tensors with these names."""
        if names not in self._rules:
            self._rules[names] = self.alignment.rules(names, self.side)
        return self._rules[names]

    @cached_property
    def sources(self) -> dict[str, str]:
        """The line of the program that makes each tensor, by the names of the other trace."""
        own: dict[str, str] = {}
        for step in reversed(self.steps[:2]):
            own |= {e.name: e.source for e in self.own_entry(step).tensors if e.source}
        rules = self.rules(tuple(own))
        return own | {t: own[r.sources[0]] for r in rules for t in r.targets}

    @cached_property
    def graph(self) -> Graph | None:
        """The stages of a step, in the names and layouts of the other trace."""
        found = self.own.graph
        if found is None:
            return None
        names = {e.name: None for step in self.steps[:2] for e in self.own_entry(step).tensors}
        rules = self.rules(tuple(names))
        return graph_through(found, rules, free_names(names, rules) if self.side == "a" else {})

    def _entry(self, step: int) -> tuple[StepEntry, dict[str, Recipe]]:
        if step not in self._made:
            plain = self.own_entry(step)
            for old in list(self._made)[: 1 - KEPT]:
                del self._made[old]
            self._made[step] = self._carried(plain)
        return self._made[step]

    def _carried(self, plain: StepEntry) -> tuple[StepEntry, dict[str, Recipe]]:
        """The entries of a step in the other's names, and how those are made that lie otherwise."""
        given = {entry.name: entry for entry in plain.tensors}
        order = {name: k for k, name in enumerate(given)}
        rules = self.rules(tuple(given))
        free = free_names(given, rules) if self.side == "a" else {}
        recipes: dict[str, Recipe] = {}
        made: list[tuple[int, TensorEntry]] = []
        step = self.own.step(plain.step)
        used = {source for rule in rules for source in rule.sources}
        for name, entry in given.items():
            if name not in used:
                made.append((order[name], _renamed(entry, free.get(name, name), plain.step)))
        for rule in rules:
            at = max(order[name] for name in rule.sources)
            sources = tuple(given[name] for name in rule.sources)
            if rule.renames:
                made.append((at, _renamed(sources[0], rule.targets[0], plain.step)))
                continue
            for k, recipe in self._recipes(rule, sources):
                found = self._described(step, rule.targets[k], recipe)
                if found is not None:
                    recipes[found.name] = recipe
                    made.append((at, found))
        made.sort(key=lambda pair: pair[0])
        tensors = tuple(entry for _, entry in made)
        names = [entry.name for entry in tensors]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise HarnessError(f"{self.path}: by the map two tensors of a step are {twice}")
        return replace(plain, tensors=tensors), recipes

    def _recipes(
        self, rule: Rule, sources: tuple[TensorEntry, ...]
    ) -> Iterable[tuple[int, Recipe]]:
        """How each tensor of a rule is made. Raises MisfitError where the chain does not fit."""
        chain = rule.chain
        try:
            chain.shapes([entry.shape for entry in sources])
        except MisfitError as error:
            if not rule.sources[0].startswith(SLOTS):
                raise MisfitError(
                    f"alignment: [[{rule.section}]] {', '.join(rule.sources)} of {self.path}: "
                    f"{error}"
                ) from None
            if any(entry.shape for entry in sources):
                return []  # a slot of another shape than its parameter: nothing says how it lies
            chain = Chain()  # a count, which has no layout
            return [(k, Recipe(sources[:1], chain, True, 0)) for k in range(len(rule.targets))]
        return [(k, Recipe(sources, chain, rule.same, k)) for k in range(len(rule.targets))]

    def _described(self, step: Step, name: str, recipe: Recipe) -> TensorEntry | None:
        """The entry of a tensor that lies otherwise; None where nothing of it can be known."""
        if all(step.holds(entry) for entry in recipe.sources):
            return describe(name, carried(step, recipe), "full")
        whole = recipe.chain.shapes([entry.shape for entry in recipe.sources])
        joined = _joined(recipe, name, whole[recipe.place], len(whole))
        (self.unknown if joined is None else self.by_statistics)[name] = None
        return joined


class AlignedStep(Step):
    """A step whose tensors come in the names and layouts of another trace."""

    def __init__(self, trace: AlignedTrace, entry: StepEntry, recipes: dict[str, Recipe]) -> None:
        """The step of `trace` that `entry` describes; `recipes` make what lies otherwise."""
        super().__init__(trace, entry)
        self._own, self._recipes = trace.own.step(entry.step), recipes

    def read(self, entry: TensorEntry) -> NDArray[Any]:
        """As the step's own, in the other layout."""
        recipe = self._recipes.get(entry.name)
        if recipe is None:
            return self._own.read(entry)
        parts = [self._own.read(source) for source in recipe.sources]
        found = recipe.chain.arrays(parts, recipe.same)[recipe.place]
        return np.array(found)

    def view(self, entry: TensorEntry) -> NDArray[Any]:
        """As the step's own, in the other layout: then a copy."""
        recipe = self._recipes.get(entry.name)
        if recipe is None:
            return self._own.view(entry)
        parts = [self._own.view(source) for source in recipe.sources]
        return np.asarray(recipe.chain.arrays(parts, recipe.same)[recipe.place], order="C")


def carried(step: Step, recipe: Recipe) -> NDArray[Any]:
    """A tensor that lies otherwise, from the step in which its parts are."""
    parts = [step.view(entry) for entry in recipe.sources]
    return np.asarray(recipe.chain.arrays(parts, recipe.same)[recipe.place], order="C")


def free_names(names: Iterable[str], rules: Sequence[Rule]) -> dict[str, str]:
    """Names for tensors without a partner that none of the other trace's tensors has here."""
    used = {source for rule in rules for source in rule.sources}
    return {name: name + ALONE for name in names if name not in used}


def _some(steps: Sequence[int]) -> Sequence[int]:
    """Steps that tell which tensors a trace has."""
    return sorted({*steps[:2], *steps[-1:]})


def _renamed(entry: TensorEntry, name: str, step: int) -> TensorEntry:
    """The same tensor under another name; a sketch is made for a name, and goes."""
    if name == entry.name:
        return entry
    place = entry.same_as or (Place(step, entry.name) if entry.stored else None)
    return replace(entry, name=name, same_as=place, sketch=None, op=None, operands=(), args={})


def _joined(recipe: Recipe, name: str, shape: tuple[int, ...], made: int) -> TensorEntry | None:
    """What is known of a tensor from the statistics of its parts, as far as order does not matter.

    None where parts are added up or cut, and where there are no statistics.
    """
    sources = recipe.sources[:1] if recipe.same and recipe.chain.summed else recipe.sources
    mixed = recipe.chain.summed and not recipe.same
    if made > 1 or mixed or any(entry.l2 is None or entry.nan is None for entry in sources):
        return None
    lows = [entry.min for entry in sources if entry.min is not None]
    highs = [entry.max for entry in sources if entry.max is not None]
    size = sum(entry.size for entry in sources)
    return TensorEntry(
        name,
        sources[0].dtype,
        shape,
        UNKNOWN,
        min=min(lows, default=None),
        max=max(highs, default=None),
        mean=sum((entry.mean or 0.0) * entry.size for entry in sources) / max(size, 1),
        l2=math.hypot(*(entry.l2 or 0.0 for entry in sources)),
        nan=sum(entry.nan or 0 for entry in sources),
        inf=sum(entry.inf or 0 for entry in sources),
        zero=sum(entry.zero or 0 for entry in sources),
        stored=None,
    )
