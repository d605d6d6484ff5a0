"""The stages of one trace as expressions over the tensors of another, through a map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from harness.models.evaluate import FILL
from harness.models.graph import Graph, Node, Stage, Tensor, below, is_ref, name_of, node, ref
from harness.trace.alignment import Rule
from harness.trace.chain import MisfitError, turned_after, turned_back

BATCH_AND_TIME = 2  # axes that a reference to another timestep leaves where they are


class _Unsaid(Exception):  # noqa: N818
    """A stage that reads what has no expression in the other layout."""


def graph_through(graph: Graph, rules: Sequence[Rule], free: Mapping[str, str]) -> Graph:
    """The stages of `graph` by the names and in the layouts that `rules` give.

    A reference becomes the inverse chain of references, a stage's value is put through the chain.
    What cannot be said so has no stage. `free` are the names of what no rule speaks of.
    """
    by_source = {name: (rule, k) for rule in rules for k, name in enumerate(rule.sources)}
    stages: dict[str, Stage] = {}
    done: set[str] = set()
    for name, stage in graph.stages.items():
        rule, _ = by_source.get(name, (None, 0))
        parts = rule.sources if rule else (name,)
        targets = rule.targets if rule else (free.get(name, name),)
        axes = stage.out.axes if rule is None or rule.renames else ()
        if targets[0] in done:
            continue
        values = [graph.value(part) for part in parts]
        known = [value for value in values if value is not None]
        if len(known) < len(values):
            continue
        try:
            made = [_through(value, by_source, free) for value in known]
            if rule is not None:
                made = rule.chain.nodes(made, rule.same)
        except (_Unsaid, MisfitError):
            continue
        done.add(targets[0])
        stages |= {
            target: Stage(Tensor(target, axes), value)
            for target, value in zip(targets, made, strict=True)
        }
    return Graph(stages)


def _through(root: Node, rules: Mapping[str, tuple[Rule, int]], free: Mapping[str, str]) -> Node:
    """An expression over the other trace's tensors. Raises _Unsaid where there is none."""
    made: dict[Node, Node] = {}
    for x in below(root):
        if is_ref(x):
            made[x] = _reference(x, rules, free)
        else:
            inputs = tuple(made[i] for i in x.inputs)
            new = x if inputs == x.inputs else node(x.op, *inputs, **dict(x.args))
            made[x] = turned_back(new) or turned_after(new) or new
    return made[root]


def _reference(x: Node, rules: Mapping[str, tuple[Rule, int]], free: Mapping[str, str]) -> Node:
    """A tensor of one trace from those of the other."""
    name, first = name_of(x), x.arg("first")
    rule, index = rules.get(name, (None, 0))
    names = rule.targets if rule else (free.get(name, name),)
    if rule and x.arg("time") and not _keeps_time(rule):
        raise _Unsaid
    firsts: tuple[str | None, ...] = (first,) * len(names)
    if first and first != "zeros" and not first.startswith(FILL):
        other, place = rules.get(first, (None, 0))
        alike = (other.chain if other else None) == (rule.chain if rule else None)
        plain = (other is None or other.renames) and (rule is None or rule.renames)
        if not plain and not (alike and place == index):
            raise _Unsaid
        firsts = other.targets if other else (free.get(first, first),) * len(names)
    references = [
        ref(new, x.arg("time"), x.arg("back"), start)
        for new, start in zip(names, firsts, strict=True)
    ]
    return rule.chain.inverse.nodes(references, rule.same)[index] if rule else references[0]


def _keeps_time(rule: Rule) -> bool:
    """Whether a chain leaves batch and time where they are, in tensors of their own."""
    for move in rule.chain.moves:
        if move.kind == "axes":
            if move.numbers[:BATCH_AND_TIME] != (0, 1):
                return False
        elif move.kind in ("shape", "sum", "unsum") or move.numbers[0] < BATCH_AND_TIME:
            return False
    return True
