"""A program that computes one stage alone, with the calls of its framework."""

from __future__ import annotations

import keyword
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness.models.evaluate import FILL
from harness.models.graph import Graph, Node, is_ref, name_of, references
from harness.repro.code import Code
from harness.repro.gradients import Derived, derived
from harness.repro.jax import Jax
from harness.repro.keras import Keras
from harness.repro.numpy import Numpy
from harness.repro.pytorch import Torch
from harness.repro.updates import Update, is_new, update_of
from harness.repro.writer import Dialect, NoCallError, Writer

Array = NDArray[Any]
RATE = "update/learning_rate"
MANY = 4  # operands from which on a list of them is read
HEAD = ("import functools", "import math")
FUTURE = "from __future__ import annotations"


class Own(NamedTuple):
    """A stage in a framework's terms: an optimizer's step, a derivative, or its formula alone."""

    value: Node
    update: Update | None = None
    derived: Derived | None = None

    def leaves(self, step: int) -> list[Node]:
        """The tensors that are read at a step, in their order."""
        if self.update:
            found = [*references(self.update.g), self.update.p, self.update.lr]
            found += [] if is_new(self.update, step) else self.update.before.values()
        elif self.derived:
            readers = self.derived.readers
            found = [x for r in readers for x in references(r.value)]
            found += [r.dy for r in readers if r.dy is not None]
        else:
            found = list(references(self.value))
        return [x for x in dict.fromkeys(found) if is_ref(x)]


def dialect_for(packages: Mapping[str, str]) -> Any:
    """The framework that code is written for, by the packages that made a trace."""
    for names, made in ((("torch",), Torch), (("keras", "tensorflow"), Keras), (("jax",), Jax)):
        if any(name in packages for name in names):
            return made()
    return Numpy()


def own_of(graph: Graph, tensor: str, dialect: Any, is_derived: bool) -> Own:
    """What a framework would call a stage."""
    value = graph.value(tensor)
    assert value is not None
    update = update_of(graph, tensor)
    if isinstance(dialect, Numpy):
        return Own(value)
    through = derived(graph, tensor) if is_derived else None
    return Own(value, update, through)


class Leaf(NamedTuple):
    """A tensor that is read: its variable, its name in the file, and where it comes from."""

    variable: str
    key: str
    array: Array
    said: str


def leaves_of(own: Own, arrays: Mapping[Node, Array], label: str, step: int) -> dict[Node, Leaf]:
    """The variables of what is read, each with a name of its own."""
    found: dict[Node, Leaf] = {}
    taken: set[str] = {"out", "given"}
    slots = {x: slot for slot, x in own.update.before.items()} if own.update else {}
    for x in own.leaves(step):
        wanted = slots.get(x) or _short(name_of(x))
        name, count = wanted, 1
        while name in taken:
            parent = _short(name_of(x).rpartition("/")[0]) if count == 1 else ""
            count += 1
            name = f"{parent}_{wanted}" if parent else f"{wanted}{count}"
        taken.add(name)
        found[x] = Leaf(name, f"{label}/{name}", arrays[x], origin(x, step))
    return found


def _short(name: str) -> str:
    """A variable's name for a tensor."""
    if name.startswith(("grads/", "update/clipped/")):
        return "grad"
    if name.startswith("backward/"):
        return "d_" + _short(name.removeprefix("backward/"))
    if name == "update/global_norm":
        return "norm"
    if name.startswith("inputs/mask/"):
        return "mask"
    parent, _, last = name.rpartition("/")
    if last.isdigit():  # a module by its number
        last = f"{parent.rpartition('/')[2]}_{last}"
    return _identifier(last)


def _identifier(text: str) -> str:
    found = re.sub(r"\W+", "_", text).strip("_")
    found = found if found.isidentifier() else f"x{found}"
    return f"{found}_" if found in RESERVED else found


_RESERVED = """
    F np jnp jax torch tf ops keras optax lax math functools given out value traced optimizer state
    sum abs print tape layer
"""
RESERVED = frozenset([*_RESERVED.split(), *keyword.kwlist])


def origin(x: Node, step: int) -> str:
    """Where a tensor comes from, in words."""
    name, back, time, first = name_of(x), x.arg("back"), x.arg("time"), x.arg("first")
    if back and back >= step and not time:
        if first == "zeros":
            return f"{name}, which begins with zeros"
        if str(first).startswith(FILL):
            return f"{name}, which begins with {str(first)[len(FILL) :]}"
        return str(first or name)
    said = f"{name} of step {step - back}" if back else name
    return f"{said}, {abs(time)} timestep{'s' * (abs(time) > 1)} before" if time < 0 else said


class Program(NamedTuple):
    """The text of a program, and what it reads from the file of inputs, by name."""

    text: str
    inputs: dict[str, Array]


def program(own: Own, arrays: Mapping[Node, Array], shape_of: Any, **what: Any) -> Program:
    """The program of a stage, which prints its value at `index` and how far the trace's is off.

    `what` are the arguments of `written`. A step that is no optimizer's of the framework, or a
    gradient that it does not make itself, is its formula.
    """
    try:
        return written(own, arrays, shape_of, **what)
    except NoCallError:
        return written(Own(own.value), arrays, shape_of, **what)


def written(
    own: Own,
    arrays: Mapping[Node, Array],
    shape_of: Any,
    *,
    dialect: Any,
    title: str,
    label: str,
    dtype: str,
    step: int,
    index: Sequence[int],
    traced: Array,
) -> Program:
    """The program of a stage. Raises NoCallError where it cannot be written in these terms."""
    leaves = leaves_of(own, arrays, label, step)
    names = {x: leaf.variable for x, leaf in leaves.items()}
    for x, leaf in leaves.items():
        if name_of(x) == RATE and not leaf.array.ndim:
            names[x] = short_number(leaf.array)
    integers = frozenset(f.variable for f in leaves.values() if f.array.dtype.kind in "iub")
    writer = Writer(dialect, shape_of, names, dtype, step, integers)
    dialect.begin(writer)
    writer.add('given = np.load(Path(__file__).with_name("inputs.npz"))')
    listed = _list_of(own, leaves, writer, dialect, label)
    inputs = {f"{label}/traced": traced}
    for x, leaf in leaves.items():
        if listed and x in own.value.inputs:
            inputs[f"{label}/grads/{name_of(x)}"] = leaf.array
        elif names[x] == leaf.variable:
            inputs[leaf.key] = leaf.array
            writer.note(f"{leaf.said} {list(leaf.array.shape)}")
            kind = str(leaf.array.dtype)
            if kind == "bfloat16" != dtype:
                kind = "float32"  # what autocast widens
            loaded = dialect.load(f'given["{leaf.key}"]', kind)
            writer.add(f"{leaf.variable} = {loaded}")
    writer.add("")
    made = listed or result(own, writer)
    if is_small(made):
        made = writer.let("out", made.text, made.shape)
    writer.add("")
    at = f"[{', '.join(map(str, index))}]" if len(index) else "[()]"
    said = f"value at {list(index)}:" if len(index) else "value:"
    writer.add(f'value, traced = {dialect.array(writer, made)}, given["{label}/traced"]')
    writer.add(f'print("{said}", value{at})')
    writer.add('print("greatest difference to the trace:", np.abs(value - traced).max())')
    return Program(_joined(title, writer), {k: plain(x) for k, x in inputs.items()})


def is_small(made: Code) -> bool:
    """Whether a result has no variable yet."""
    return not made.text.isidentifier()


def result(own: Own, w: Writer) -> Code:
    """The code of a stage."""
    if own.update:
        made: Code | None = w.dialect.update(w, own.update)  # type: ignore[attr-defined]
        if made is None:
            raise NoCallError
        return made
    if own.derived:
        through = own.derived

        def forward() -> list[Code]:
            readers = through.readers
            return [w.variable(w.root(r.value), "y" if r.dy else "loss") for r in readers]

        dys = [None if r.dy is None else w.value(r.dy) for r in through.readers]
        by = w.value(through.by)
        made = w.attempt(lambda: w.dialect.gradient(w, by, forward, dys))
        if made is None:
            raise NoCallError
        return made
    return w.root(own.value)


def _list_of(
    own: Own, leaves: Mapping[Node, Leaf], w: Writer, dialect: Dialect, label: str
) -> Code | None:
    """The result of an op of many tensors, read as a list; None for any other."""
    x = own.value
    if own.update or own.derived or len(x.inputs) <= MANY or not all(map(is_ref, x.inputs)):
        return None
    if x.op not in ("global_norm",):
        return None
    load = dialect.load("given[name]", str(leaves[x.inputs[0]].array.dtype))  # type: ignore[attr-defined]
    w.add(f'names = [name for name in given.files if name.startswith("{label}/grads/")]')
    w.add(f"grads = [{load} for name in names]")
    return Code(w.call(x.op, [Code("*grads")], dict(x.args)), ())


def short_number(x: Array) -> str:
    """A number as the shortest text that is it, in its dtype."""
    return str(x[()])


def plain(x: Array) -> Array:
    """An array as NumPy's own files hold it."""
    return x.astype(np.float32) if x.dtype.kind == "V" or str(x.dtype) == "bfloat16" else x


def _joined(title: str, w: Writer) -> str:
    """The whole text: what it is, imports, formulas, lines."""
    needed = dict.fromkeys(["from pathlib import Path", "import numpy as np", *w.imports])
    body = "\n".join(w.lines)
    functions = "\n\n\n".join(w.functions.values())
    head = [f'"""{title}"""', ""]
    if functions:
        used = [line for line in HEAD if f"{line.rpartition(' ')[2]}." in functions]
        if "NamedTuple" in functions:
            used = [FUTURE, "", *used, "from typing import Any, NamedTuple"]
        head += [*used, ""] if used else []
    plain_imports = sorted(n for n in needed if n.startswith("import "))
    head += [*plain_imports, *sorted(n for n in needed if n.startswith("from ")), ""]
    if functions:
        head += ["", functions, "", ""]
    return "\n".join(head) + "\n" + body.rstrip() + "\n"
