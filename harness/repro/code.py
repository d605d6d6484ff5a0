"""Expressions as lines of a program: what is common to all frameworks."""

from __future__ import annotations

import ast
import keyword
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from typing import Any, NamedTuple, Protocol

from harness.models.evaluate import apply
from harness.models.graph import Node, below, is_ref
from harness.models.ops import OPS, parameters
from harness.repro.formulas import source_of
from harness.repro.slopes import SLOPES, Slope

LONG = 48  # characters of an expression that is given a line of its own before it is used
TAKEN = ("given", "traced", "value", "np", "jnp", "jax", "torch", "tf", "ops", "keras", "optax")


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


Call = str | Callable[..., str | None]


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


# Names for what ops make, where the op's own would not do.
NAMES = {"add": "total", "bias": "y", "linear": "y", "broadcast_add": "total", "cut": "part"}


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


def along(w: Writer, v: Code, ndim: int, axis: int) -> str:
    """A number for each channel, as it broadcasts; code."""
    if axis % ndim == ndim - 1 or is_number(v):
        return f"{v:p}"
    index = ", ".join([":"] + ["None"] * (ndim - 1 - axis % ndim))
    return f"{v:p}[{index}]"


def _sum_to(w: Writer, x: Code, dy: Code) -> str:
    more = dy.ndim - x.ndim
    found, np = dy.text, w.dialect.np
    if more:
        found = f"{np}.sum({found}, axis={tuple(range(more))})"
    once = tuple(k for k in range(x.ndim) if x.shape[k] == 1 and dy.shape[k + more] != 1)
    return f"{np}.sum({found}, axis={once}, keepdims=True)" if once else found


def _block(w: Writer, x: Code, index: int, of: int) -> str:
    size = x.shape[-1] // of
    at = slices(x.ndim, -1, index * size, (index + 1) * size, x.shape[-1])
    return f"{x:p}[{at}]"


def _part(w: Writer, x: Code, start: int, stop: int) -> str:
    return f"{x:p}[:, {start or ''}:{stop or ''}]"


def _cut(w: Writer, x: Code, axis: int, start: int, stop: int) -> str:
    return f"{x:p}[{slices(x.ndim, axis, start, stop, x.shape[axis])}]"


def _concat_part(w: Writer, dy: Code, *parts: Code, index: int, axis: int) -> str:
    start = sum(p.shape[axis] for p in parts[:index])
    return _cut(w, dy, axis, start, start + parts[index].shape[axis])


def _flat(w: Writer, x: Code) -> str:
    if x.ndim == 2:
        return x.text
    return f"{w.dialect.np}.reshape({x}, (-1, {x.shape[-1]}))"


def _outer(w: Writer, x: Code, dy: Code) -> str:
    return f"{Code(_flat(w, x)):p}.T @ {Code(_flat(w, dy)):p}"


def _norm(w: Writer, *gradients: Code) -> str:
    np = w.dialect.np
    return f"{np}.sqrt(sum({np}.sum(g * g) for g in {a_list(gradients)}))"


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


def _flatten(w: Writer, x: Code, start: int) -> str:
    return f"{w.dialect.np}.reshape({x}, {(*x.shape[:start], -1)})"


def _bias_channels(w: Writer, x: Code, b: Code, axis: int) -> str:
    return f"{x:p} + {along(w, b, x.ndim, axis)}"


def _batch_norm(w: Writer, x: Code, gain: Code, offset: Code, epsilon: Code, axis: int) -> str:
    np, over = w.dialect.np, axes_but(x.ndim, axis)
    x = w.variable(x)
    mean = w.let("mean", f"{np}.mean({x}, axis={over}, keepdims=True)")
    variance = w.let("variance", f"{np}.mean(({x} - {mean}) ** 2, axis={over}, keepdims=True)")
    normal = f"({x} - {mean}) / {np}.sqrt({variance} + {epsilon})"
    return f"{normal} * {along(w, gain, x.ndim, axis)} + {along(w, offset, x.ndim, axis)}"


def _layer_norm(w: Writer, x: Code, gain: Code, offset: Code, epsilon: Code) -> str:
    np, x = w.dialect.np, w.variable(x)
    mean = w.let("mean", f"{np}.mean({x}, axis=-1, keepdims=True)")
    variance = w.let("variance", f"{np}.mean(({x} - {mean}) ** 2, axis=-1, keepdims=True)")
    return f"({x} - {mean}) / {np}.sqrt({variance} + {epsilon}) * {gain:p} + {offset:p}"


def _rms_norm(w: Writer, x: Code, gain: Code, epsilon: Code) -> str:
    np, x = w.dialect.np, w.variable(x)
    return f"{x} / {np}.sqrt({np}.mean({x} * {x}, axis=-1, keepdims=True) + {epsilon}) * {gain:p}"


def _running(what: str, keras: bool) -> Callable[..., str]:
    def code(w: Writer, old: Code, x: Code, momentum: Code, axis: int) -> str:
        np, over, x = w.dialect.np, axes_but(x.ndim, axis), w.variable(x)
        found = f"{np}.{'mean' if what == 'mean' else 'var'}({x}, axis={over})"
        if what == "unbiased":
            count = 1
            for k, size in enumerate(x.shape):
                count *= 1 if k == axis % x.ndim else size
            found += f" * {count} / {count - 1}"
        if keras:
            return f"{momentum} * {old:p} + (1 - {momentum}) * {found}"
        return f"(1 - {momentum}) * {old:p} + {momentum} * {found}"

    return code


def _adam(keras: bool) -> Callable[..., str]:
    def code(w: Writer, p: Code, m: Code, v: Code, lr: Code, *numbers: Code) -> str:
        beta1, beta2, epsilon, step = numbers
        np = w.dialect.np
        one, two = f"(1 - {beta1:p} ** {step:p})", f"(1 - {beta2:p} ** {step:p})"
        if keras:
            rate = w.let("rate", f"{lr:p} * {two} ** 0.5 / {one}")
            return f"{p:p} - {rate} * {m:p} / ({np}.sqrt({v}) + {epsilon})"
        return f"{p:p} - {lr:p} * ({m:p} / {one}) / ({np}.sqrt({v:p} / {two}) + {epsilon})"

    return code


def _reduced(what: str) -> Callable[..., str]:
    def code(w: Writer, x: Code, y: Code, reduce: str) -> str:
        np = w.dialect.np
        terms = what.format(np=np, x=w.variable(x), y=w.variable(y, "y"))
        if reduce == "batch":
            return f"{np}.sum({terms}) / {x.shape[0]}"
        return f"{np}.{reduce}({terms})"

    return code


# Operators of arrays: what any program would write.
PLAIN: dict[str, Call] = {
    "add": lambda w, *terms: " + ".join(t.text for t in terms),
    "multiply": lambda w, *terms: " * ".join(f"{t:p}" for t in terms),
    "scale": "{x:p} * {s:p}",
    "complement": "1 - {x:p}",
    "negate": "-{x:p}",
    "bias": "{x} + {b:p}",
    "bias_channels": _bias_channels,
    "broadcast_add": "{x} + {y:p}",
    "broadcast_multiply": "{x:p} * {y:p}",
    "divide": "{x:p} / {y:p}",
    "linear": "{x:p} @ {w:p}",
    "matmul": "{x:p} @ {y:p}",
    "outer": _outer,
    "transpose": "{w:p}.T",
    "swap_last": "{np}.swapaxes({x}, -1, -2)",
    "sum_rows": lambda w, dy: f"{w.dialect.np}.sum({dy}, axis={axes_but(dy.ndim, -1)})",
    "sum_channels": lambda w, dy, axis: f"{w.dialect.np}.sum({dy}, axis={axes_but(dy.ndim, axis)})",
    "sum_to": _sum_to,
    "block": _block,
    "part": _part,
    "cut": _cut,
    "concat_part": _concat_part,
    "last": "{x:p}[:, -1]",
    "reshape": "{np}.reshape({x}, {shape})",
    "reshape_like": lambda w, x, dy: f"{w.dialect.np}.reshape({dy}, {x.shape})",
    "flatten": _flatten,
    "permute": "{np}.transpose({x}, {axes})",
    "concat": lambda w, *x, axis: (
        f"{w.dialect.np}.concatenate([{', '.join(map(str_of, x))}], axis={axis})"
    ),
    "mean_over": "{np}.mean({x}, axis={axis})",
    "sum_over": "{np}.sum({x}, axis={axis})",
    "exp": "{np}.exp({x})",
    "log": "{np}.log({x})",
    "root": "{np}.sqrt({x})",
    "square": "{np}.square({x})",
    "absolute": "{np}.abs({x})",
    "tanh": "{np}.tanh({x})",
    "dropout": "{x:p} * {mask:p} / (1 - {rate})",
    "mean_square": "{np}.mean({np}.square({x}))",
    "squares": "{np}.sum({np}.square({g}))",
    "norm_of_one": "{np}.sqrt({np}.sum({np}.square({g})))",
    "descend": "{p:p} - {lr:p} * {g:p}",
    "average": "{beta} * {old:p} + (1 - {beta}) * {new:p}",
    "velocity": "{momentum} * {old:p} + {g:p}",
    "velocity_keras": "{momentum} * {old:p} - {lr:p} * {g:p}",
    "along_velocity": "{p:p} - {lr:p} * {v:p}",
    "along_velocity_keras": "{p:p} + {v:p}",
    "nesterov": "{p:p} - {lr:p} * ({g:p} + {momentum} * {v:p})",
    "nesterov_keras": "{p:p} + {momentum} * {v:p} - {lr:p} * {g:p}",
    "adam": _adam(False),
    "adam_keras": _adam(True),
    "over_root": "{p:p} - {lr:p} * {g:p} / ({np}.sqrt({s}) + {epsilon})",
    "over_root_inside": "{p:p} - {lr:p} * {g:p} / {np}.sqrt({s} + {epsilon})",
    "decay_gradient": "{g} + {weight_decay} * {p:p}",
    "decay_weights": "{new} - {lr:p} * {weight_decay} * {p:p}",
    **dict.fromkeys(("identity", "carried", "no_root"), "{x}"),
    "unclipped": "{g}",
    "undecayed_gradient": "{g}",
    "undecayed_weights": "{new}",
}

# Formulas of ops for which a framework may have no call.
WRITTEN_OUT: dict[str, Call] = {
    "sigmoid": "1 / (1 + {np}.exp(-{x:p}))",
    "softplus": "{np}.log1p({np}.exp({x}))",
    "relu": "{np}.where({x:p} > 0, {x}, 0.0)",
    "global_norm": _norm,
    "clip_by_norm": "{g:p} * ({limit} / {np}.clip({norm}, {limit}, None))",
    "clip_elements": "{np}.clip({g}, -{limit}, {limit})",
    "clip_torch": "{g:p} * {np}.clip({limit} / ({norm} + 1e-6), None, 1.0)",
    "batch_norm": _batch_norm,
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
    "running_mean": _running("mean", False),
    "running_mean_keras": _running("mean", True),
    "running_variance": _running("unbiased", False),
    "running_variance_keras": _running("biased", True),
    "l2_normalize": (
        "{x:p} / {np}.clip({np}.sqrt({np}.sum({np}.square({x}), axis={axis}, keepdims=True)), "
        "{epsilon}, None)"
    ),
    "l2_normalize_keras": (
        "{x:p} / {np}.sqrt({np}.clip({np}.sum({np}.square({x}), axis={axis}, keepdims=True), "
        "{epsilon}, None))"
    ),
    "squared_error": _reduced("{np}.square({x} - {y})"),
    "absolute_error": _reduced("{np}.abs({x} - {y})"),
}
assert OPS.keys() >= PLAIN.keys() | WRITTEN_OUT.keys()
