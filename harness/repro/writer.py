"""Lines of a program, written as expressions of the graph are asked for."""

from __future__ import annotations

import keyword
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from typing import Any, Protocol

from harness.models.evaluate import apply
from harness.models.graph import Node, below, is_ref
from harness.models.ops import parameters
from harness.repro.code import Call, Code, is_number, number
from harness.repro.formulas import source_of
from harness.repro.plain import PLAIN, WRITTEN_OUT
from harness.repro.slopes import SLOPES, Slope

LONG = 48  # characters of an expression that is given a line of its own before it is used
TAKEN = ("given", "traced", "value", "np", "jnp", "jax", "torch", "tf", "ops", "keras", "optax")
# Names for what ops make, where the op's own would not do.
NAMES = {"add": "total", "bias": "y", "linear": "y", "broadcast_add": "total", "cut": "part"}


class NoCallError(Exception):
    """There is only a formula of ours for an op."""


class Dialect(Protocol):
    """A framework as far as code is written for it."""

    @property
    def name(self) -> str:
        """What it is called in a sentence."""

    @property
    def np(self) -> str:
        """The module of its array functions."""

    @property
    def calls(self) -> Mapping[str, Call]:
        """Code for ops: a format string over operands and arguments, or a function."""

    @property
    def patterns(self) -> Sequence[Callable[[Writer, Node], Code | None]]:
        """What it has one call for where the graph has several ops."""

    def gradient(self, w: Writer, x: Code, forward: Callable[[], list[Code]], dy: Dys) -> Code:
        """Its own differentiation of what `forward` writes, by the variable x."""

    def array(self, w: Writer, x: Code) -> str:
        """A tensor as a NumPy array."""

    def tensor(self, w: Writer, text: str) -> str:
        """An array as a tensor."""

    def ones(self, w: Writer, shape: tuple[int, ...]) -> str:
        """A tensor of ones."""


Dys = Sequence[Code | None]  # the gradients of results; None: of a loss, 1


class Writer:
    """Lines of a program in a framework, written as expressions are asked for."""

    def __init__(
        self,
        dialect: Dialect,
        shape_of: Callable[[Node], tuple[int, ...]],
        leaves: Mapping[Node, str],
        dtype: str,
        step: int,
        integers: frozenset[str] = frozenset(),
    ) -> None:
        """`leaves` are the variables that hold what is read, `integers` those of whole numbers.

        `shape_of` tells the shape of any expression.
        """
        self.dialect, self.dtype, self.step = dialect, dtype, step
        self._integers = integers
        self._shape_of, self._leaves = shape_of, leaves
        self.lines: list[str] = []
        self.imports: dict[str, None] = {}
        self.functions: dict[str, str] = {}  # formulas of ours, by name
        self._taken = Counter({*leaves.values(), *TAKEN, *keyword.kwlist})
        self._made: dict[Node, Code] = {}
        self._uses: Counter[Node] = Counter()
        self._note = ""
        self._indent = ""
        self._own_calls = False  # whether formulas of ours will not do

    def root(self, x: Node) -> Code:
        """The code of an expression; what is used more than once in it is computed once."""
        for y in below(x):
            self._uses.update(y.inputs)
        return self.value(x)

    def value(self, x: Node) -> Code:
        """The code of an expression, or of one that it is made of."""
        if x not in self._made:
            self._made[x] = self._kept(x, self._written(x))
        return self._made[x]

    def shape(self, x: Node) -> tuple[int, ...]:
        """The shape of an expression."""
        return self._shape_of(x)

    def used_again(self, x: Node) -> bool:
        """Whether an expression is an operand of more than one other."""
        return self._uses[x] > 1

    def is_integer(self, x: Code) -> bool:
        """Whether a variable holds whole numbers."""
        return x.text in self._integers

    def let(self, wanted: str, text: str, shape: tuple[int, ...] = ()) -> Code:
        """A new variable, as the result of an expression."""
        name = self.name(wanted)
        self.add(f"{name} = {text}")
        return Code(name, shape)

    def add(self, line: str) -> None:
        """One line more."""
        note, self._note = self._note, ""
        self.lines.append(self._indent + line + (f"  # {note}" if note else ""))

    def blank(self) -> None:
        """An empty line, but not two."""
        if self.lines and self.lines[-1]:
            self.lines.append("")

    def note(self, text: str) -> None:
        """A comment at the end of the line that comes next."""
        self._note = text

    def needs(self, line: str) -> None:
        """An import."""
        self.imports[line] = None

    def name(self, wanted: str) -> str:
        """A name that no variable has."""
        base = re.sub(r"\W+", "_", wanted).strip("_") or "x"
        base = f"x{base}" if base[0].isdigit() else base
        name, count = base, 1
        while name in self._taken:
            count += 1
            name = f"{base}{count}"
        self._taken[name] += 1
        return name

    def variable(self, x: Code, wanted: str = "x") -> Code:
        """The same as a variable."""
        return x if x.text.isidentifier() else self.let(wanted, x.text, x.shape)

    @contextmanager
    def block(self, line: str) -> Iterator[None]:
        """Lines that belong to one that ends in a colon; what they make is theirs."""
        self.add(line)
        before, made = self._indent, dict(self._made)
        self._indent += "    "
        try:
            yield
        finally:
            self._indent, self._made = before, made

    def attempt(self, write: Callable[[], Code]) -> Code | None:
        """What `write` gives; None, and nothing written, where a formula of ours would be in it.

        A framework does not differentiate those.
        """
        kept = dict(vars(self))
        kept |= {key: copy(kept[key]) for key in ("lines", "imports", "functions")}
        kept |= {key: copy(kept[key]) for key in ("_taken", "_made")}
        self._own_calls = True
        try:
            return write()
        except NoCallError:
            vars(self).update(kept)
            return None
        finally:
            self._own_calls = kept["_own_calls"]

    def call(self, op: str, operands: Sequence[Code], args: Mapping[str, Any]) -> str:
        """The code of an op over some operands."""
        for table in (self.dialect.calls, PLAIN, WRITTEN_OUT):
            found = self._from(table.get(op), op, operands, args)
            if found is not None:
                if table is WRITTEN_OUT and self.dialect.name != "NumPy":
                    self.note(f"written out: {self.dialect.name} has no call of its own for it")
                return found
        return self._formula(op, operands, args)

    def _from(
        self, entry: Call | None, op: str, operands: Sequence[Code], args: Mapping[str, Any]
    ) -> str | None:
        if entry is None:
            return None
        if callable(entry):
            return entry(self, *operands, **args)
        named = dict(zip(parameters(op).operands, operands, strict=False))
        return entry.format(np=self.dialect.np, **named, **args)

    def _formula(self, op: str, operands: Sequence[Code], args: Mapping[str, Any]) -> str:
        """A call of the op's formula, which is written into the program."""
        if self._own_calls:
            raise NoCallError
        name, functions = source_of(op)
        self.functions |= functions
        self._taken.update(text.strip() for text in functions)
        if self.dialect.name != "NumPy":
            self.note(f"in NumPy: {self.dialect.name} has no call of its own for it")
        given = [self.dialect.array(self, x) if not is_number(x) else x.text for x in operands]
        given += [f"{key}={value!r}" for key, value in args.items()]
        return self.dialect.tensor(self, f"{name}({', '.join(given)})")

    def _written(self, x: Node) -> Code:
        if is_ref(x):
            return Code(self._leaves[x], self._shape_of(x))
        if x.op in ("const", "step") or (x.inputs and all(i.op == "const" for i in x.inputs)):
            return Code(number(apply(x, [i.arg("value") for i in x.inputs], self.step)))
        for pattern in self.dialect.patterns:
            found = pattern(self, x)
            if found is not None:
                return found
        sloped = self._slope(x)
        if sloped is not None:
            return sloped
        operands = [self.value(i) for i in x.inputs]
        return Code(self.call(x.op, operands, dict(x.args)), self._shape_of(x))

    def _kept(self, x: Node, made: Code) -> Code:
        """The code of a node, as a variable where it is long or used again."""
        again = self._uses[x] > 1 or self._note or len(made.text) > LONG
        if is_ref(x) or is_number(made) or made.text.isidentifier() or not again:
            return made
        plain = "y" if x.op in self.functions else NAMES.get(x.op, x.op)
        return self.let(plain, made.text, made.shape)

    def _slope(self, x: Node) -> Code | None:
        """The gradient of an op, by the framework's own differentiation of that op."""
        if self.dialect.name == "NumPy":
            return None
        if x.op == "multiply" and len(x.inputs) == 2:
            dy, slope = x.inputs
            rule = SLOPES.get(slope.op)
            if rule and rule.of_one:
                return self._differentiated(slope, rule, dy)
        rule = SLOPES.get(x.op)
        return self._differentiated(x, rule, None) if rule else None

    def _differentiated(self, x: Node, rule: Slope, dy: Node | None) -> Code | None:
        takes = parameters(x.op).operands
        given = {name: self.value(i) for name, i in zip(takes, x.inputs, strict=True)}
        gradient = self.value(dy) if dy is not None else given.pop("dy", None)
        if gradient is None and rule.of_one:
            gradient = Code(self.dialect.ones(self, self._shape_of(x)), self._shape_of(x))
        shape = self._shape_of(x)
        by = given.get(rule.by) or Code(self.dialect.ones(self, shape), shape)
        given[rule.by] = by = self.variable(by, rule.by)
        operands = [given.get(name, Code("0.0")) for name in parameters(rule.of).operands]

        def forward() -> list[Code]:
            return [self.variable(Code(self.call(rule.of, operands, dict(x.args))), "y")]

        return self.attempt(lambda: self.dialect.gradient(self, by, forward, [gradient]))
