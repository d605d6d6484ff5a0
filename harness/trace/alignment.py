"""Which tensors of one trace are which of another, and how they lie: a map that people can read.

Parameters stand in it once, whatever of them is traced (inputs/params/, params/, grads/,
update/clipped/, every slot of the optimizer); layers once for forward/ and backward/; buffers once
for before and after. All else stands by its whole name.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any, Literal, NamedTuple

import msgspec
from numpy.typing import NDArray

from harness.errors import HarnessError
from harness.trace.chain import Chain, MisfitError, parse_chain
from harness.trace.ranks import crosses_ranks
from harness.trace.schema import check_name, quote

Sure = Literal["certain", "likely"]
Side = Literal["a", "b"]
BEFORE, AFTER, SLOTS = "inputs/params/", "params/", "optimizer/"
# Of each section, what stands before a name in a trace, and whether that is a gradient.
FAMILIES: Mapping[str, tuple[tuple[str, bool], ...]] = {
    "params": ((BEFORE, False), (AFTER, False), ("grads/", True), ("update/clipped/", True)),
    "buffers": (("inputs/buffers/", False), ("buffers/", False)),
    "points": (("forward/", False), ("backward/", False)),
    "others": (("", False),),
}
SECTIONS = tuple(FAMILIES)


class Match(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Some tensors of a that, after `steps` (harness.trace.chain), are some of b.

    `sure` says how sure that is, `by` what it rests on (name, ops, shape, values, siblings), `note`
    what there is to say of it beside.
    """

    a: tuple[str, ...]
    b: tuple[str, ...]
    steps: tuple[str, ...] = ()
    sure: Sure = "certain"
    by: tuple[str, ...] = ()
    note: str = ""

    @property
    def chain(self) -> Chain:
        """The steps. Raises MisfitError for what is none."""
        return parse_chain(self.steps)

    @property
    def target(self) -> tuple[str, ...]:
        """What is compared: b's tensors, or one for all whose sum alone is known."""
        return ("+".join(self.b),) if self.chain.unsummed else self.b


class Rule(NamedTuple):
    """Whole names of a trace: these tensors, after the chain, are those."""

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    chain: Chain
    same: bool  # each part of a sum has the whole as its own
    section: str

    @property
    def renames(self) -> bool:
        """Whether only a name is another."""
        return not self.chain.moves and len(self.sources) == 1


class Alignment(msgspec.Struct, frozen=True, dict=True, forbid_unknown_fields=True):
    """A map from the tensors of trace a to those of trace b, the reference.

    `slots` pairs the names of the optimizer's slots. `only_a` and `only_b` have no partner; `notes`
    say how the map came about.
    """

    params: tuple[Match, ...] = ()
    buffers: tuple[Match, ...] = ()
    points: tuple[Match, ...] = ()
    others: tuple[Match, ...] = ()
    slots: tuple[Match, ...] = ()
    only_a: tuple[str, ...] = ()
    only_b: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def matches(self) -> Iterator[tuple[str, Match]]:
        """Every match with its section, slots left out."""
        for section in SECTIONS:
            for match in getattr(self, section):
                yield section, match

    def check(self, where: str = "alignment") -> None:
        """Raise HarnessError for a map that cannot be, naming the entry and what is allowed."""
        seen: dict[tuple[str, Side, str], str] = {}
        for text in (*self.only_a, *self.only_b, *self.notes):
            if not text.isprintable():
                raise HarnessError(f"{where}: {quote(text)} holds what cannot be printed")
        for section in (*SECTIONS, "slots"):
            for k, match in enumerate(getattr(self, section), start=1):
                at = f"{where}: [[{section}]] {k} ({_short(match.a)})"
                _check_match(match, section, at)
                sides: tuple[tuple[Side, tuple[str, ...]], ...] = (("a", match.a), ("b", match.b))
                for side, names in sides:
                    for name in names:
                        if (section, side, name) in seen:
                            raise HarnessError(
                                f"{at}: {side} = {name!r} stands in {seen[section, side, name]} "
                                "already; a tensor has one partner: take one of the two out"
                            )
                        seen[section, side, name] = f"[[{section}]] {k}"

    def check_names(self, side: Side, traced: Collection[str], where: str) -> None:
        """Raise HarnessError for a name that trace `where` has not, with the nearest it has."""
        known_of = {
            section: {
                name.removeprefix(prefix): None
                for name in traced
                for prefix, _ in families
                if name.startswith(prefix)
            }
            for section, families in FAMILIES.items()
        }
        for section, match in self.matches():
            known = known_of[section]
            for name in match.a if side == "a" else match.b:
                first = f"{SLOTS}{name}/"
                if name in known or (
                    section == "params" and any(other.startswith(first) for other in traced)
                ):
                    continue
                near = difflib.get_close_matches(name, known, 3, 0.4) or list(known)[:3]
                raise HarnessError(
                    f"alignment: [[{section}]] {side} = {name!r} is no tensor of {where}; there "
                    f"are {len(known)}, such as {', '.join(near) or 'none'}"
                )

    def rules(self, names: Iterable[str], side: Side = "a") -> list[Rule]:
        """What becomes of the tensors of a trace with these names; what has no rule is left out.

        Those of b stay as they are, but for tensors whose sum alone the other side has.
        """
        given = dict.fromkeys(names)
        found = []
        for section, match in self.matches():
            for prefix, gradient in FAMILIES[section]:
                rule = _rule(match, section, prefix, gradient, side)
                whole = all(name in given for name in rule.sources)
                if whole and not crosses_ranks(prefix, rule.sources, rule.targets):
                    found.append(rule)
            if section == "params":
                found += self._slots(_rule(match, section, SLOTS, True, side), given, side)
        return found

    def _slots(self, rule: Rule, given: Mapping[str, None], side: Side) -> Iterator[Rule]:
        """The rules of what the optimizer keeps of some parameters, whose rule has no slot."""
        first = rule.sources[0] + "/"
        for name in given:
            if not name.startswith(first) or self._is_of_another(name, first):
                continue
            slot = name.removeprefix(first)
            other = slot if side == "b" else self.slot_names.get(slot)
            sources = tuple(f"{source}/{slot}" for source in rule.sources)
            if other is not None and all(source in given for source in sources):
                targets = tuple(f"{target}/{other}" for target in rule.targets)
                yield rule._replace(sources=sources, targets=targets)

    def _is_of_another(self, name: str, first: str) -> bool:
        """Whether a slot is of a parameter whose name goes on after that of another."""
        places = [k for k, c in enumerate(name) if c == "/" and k >= len(first)]
        return any(name[len(SLOTS) : k] in self._params for k in places)

    @cached_property
    def _params(self) -> frozenset[str]:
        """The names of parameters on both sides."""
        return frozenset(name for match in self.params for name in (*match.a, *match.b))

    @cached_property
    def slot_names(self) -> dict[str, str]:
        """b's name of a slot by a's."""
        return {match.a[0]: match.b[0] for match in self.slots}

    def forward(self, arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """What a's arrays, by names as in a trace or as in this map, are in b's names and layout.

        Raises MisfitError for shapes that a chain does not fit.
        """
        return _carried(self._all_rules(arrays), arrays)

    def inverse(self, arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """What b's arrays are in a's names and layout: of a sum, all to the first part.

        Raises MisfitError for shapes that a chain does not fit.
        """
        return _carried(self.turned._all_rules(arrays), arrays)

    @cached_property
    def turned(self) -> Alignment:
        """The map from b to a."""
        sections = {
            section: tuple(_turned(match) for match in getattr(self, section))
            for section in (*SECTIONS, "slots")
        }
        return Alignment(**sections, only_a=self.only_b, only_b=self.only_a, notes=self.notes)

    def _all_rules(self, names: Iterable[str]) -> Iterator[Rule]:
        """Rules of arrays to arrays, sums included, and of names without what stands before."""
        given = dict.fromkeys(names)
        for section, match in self.matches():
            chain = match.chain
            for prefix, gradient in {**dict(FAMILIES[section]), "": False}.items():
                sources, targets = (
                    tuple(prefix + name for name in side) for side in (match.a, match.b)
                )
                whole = all(name in given for name in sources)
                if whole and not crosses_ranks(prefix, sources, targets):
                    yield Rule(sources, targets, chain, gradient, section)
            if section == "params":
                sources, targets = (
                    tuple(SLOTS + name for name in side) for side in (match.a, match.b)
                )
                yield from self._slots(Rule(sources, targets, chain, True, section), given, "a")


def _turned(match: Match) -> Match:
    return msgspec.structs.replace(match, a=match.b, b=match.a, steps=match.chain.inverse.texts)


def _rule(match: Match, section: str, prefix: str, gradient: bool, side: Side) -> Rule:
    """One family of a match on one side."""
    chain, targets = match.chain, tuple(prefix + name for name in match.target)
    if side == "a":
        sources = tuple(prefix + name for name in match.a)
        return Rule(sources, targets, chain.without("unsum"), gradient, section)
    sources = tuple(prefix + name for name in match.b)
    return Rule(sources, targets, chain.only("unsum").inverse, gradient, section)


def _carried(rules: Iterable[Rule], arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    made: dict[str, NDArray[Any]] = {}
    for rule in rules:
        given = [arrays[name] for name in rule.sources]
        try:
            rule.chain.shapes([x.shape for x in given])
        except MisfitError as error:
            if rule.sources[0].startswith(SLOTS) and all(not x.ndim for x in given):
                made |= dict.fromkeys(rule.targets, given[0])
                continue
            raise MisfitError(f"{', '.join(rule.sources)}: {error}") from None
        made |= zip(rule.targets, rule.chain.arrays(given, rule.same), strict=True)
    return made


def _short(names: tuple[str, ...]) -> str:
    text = "".join(c if c.isprintable() else "?" for c in ", ".join(names))
    return text[:100] or "-"


def _check_match(match: Match, section: str, at: str) -> None:
    """Raise HarnessError for a match that cannot be."""
    for name in (*match.a, *match.b):
        wrong = check_name(name)
        if wrong:
            raise HarnessError(f"{at}: {quote(name)} cannot name a tensor: it {wrong}")
    for text in (match.note, *match.by):
        if not text.isprintable():
            raise HarnessError(f"{at}: {quote(text)} holds what cannot be printed: take it out")
    if not match.a or not match.b:
        raise HarnessError(f"{at}: names no tensor of one side: give a name, or a list of them")
    try:
        chain = match.chain
        made = chain.counts(len(match.a))
    except MisfitError as error:
        raise HarnessError(f"{at}: steps: {error}") from None
    if made != len(match.b):
        raise HarnessError(
            f"{at}: its steps make {made} of {len(match.a)}, and b names {len(match.b)}: "
            "add split, join or sum, or name as many"
        )
    if any(move.kind == "unsum" for move in chain.moves[:-1]):
        raise HarnessError(f"{at}: steps: unsum is allowed as the last step alone")
    if (chain.summed or chain.unsummed) and section != "params":
        raise HarnessError(f"{at}: steps: sum and unsum are allowed in [[params]] alone")
    if section == "slots" and (match.steps or len(match.a) != 1):
        raise HarnessError(f"{at}: a slot is one name on each side, without steps")
