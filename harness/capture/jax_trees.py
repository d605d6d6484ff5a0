"""The state of a JAX script by name: pytrees of parameters and slots, and what holds them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from harness.capture.jax_marks import is_float_dtype, plain
from harness.capture.jax_optim import SLOTS

COUNT = "count"  # how many steps an optimizer has made
ALONE = "weights"  # the name of parameters that are one array
BUFFERS = ("batch_stats", "buffers")


class Leaf(NamedTuple):
    """A leaf of a state: its name in a trace ("" for what is not traced) and its value."""

    name: str
    value: Any


def is_array(value: Any) -> bool:
    """Whether a leaf is an array of floats, of JAX or of NumPy."""
    return isinstance(value, jax.Array | np.ndarray) and is_float_dtype(value.dtype)


def module_of(name: str) -> Any:
    """A package, if the script has imported it; else None."""
    return sys.modules.get(name)


def is_of(value: Any, package: str, name: str) -> bool:
    """Whether a thing is an instance of a class of a package that may not be imported."""
    kind = getattr(module_of(package), name, None)
    return isinstance(kind, type) and isinstance(value, kind)


def paths(tree: Any) -> tuple[list[tuple[tuple[str, ...], Any]], Any]:
    """The leaves of a pytree with their paths, and its form."""
    leaves, form = jax.tree_util.tree_flatten_with_path(tree)
    return [(tuple(plain(p) for p in path), leaf) for path, leaf in leaves], form


def weights(tree: Any, head: str = "") -> tuple[list[Leaf], Any]:
    """Parameters, and buffers of flax's collections, by name."""
    found, form = paths(tree)
    collections = isinstance(tree, Mapping) and "params" in tree
    leaves = []
    for path, leaf in found:
        first = path[0] if collections and path else "params"
        rest = path[1:] if collections else path
        kind = "params" if first == "params" else "buffers"
        name = f"{kind}/{head}{'/'.join(rest) or ALONE}"
        leaves.append(Leaf(name if is_array(leaf) else "", leaf))
    return leaves, form


def buffers(tree: Any) -> tuple[list[Leaf], Any]:
    """Buffers by name."""
    found, form = paths(tree)
    return [Leaf(f"buffers/{'/'.join(p)}" if is_array(x) else "", x) for p, x in found], form


def is_whole(thing: Any) -> bool:
    """Whether a thing holds both parameters and the state of an optimizer (flax's TrainState)."""
    return hasattr(thing, "params") and hasattr(thing, "opt_state")


def whole(thing: Any) -> tuple[list[Leaf], Any]:
    """The parameters, buffers and slots of such a thing, by name."""
    found, form = paths(thing)
    leaves, _ = weights(thing.params)
    shapes = {x.name.removeprefix("params/"): np.shape(x.value) for x in leaves if x.name}
    inner = [(path[1:], leaf) for path, leaf in found if path[0] == "opt_state"]
    named = {"params": iter(leaves), "opt_state": iter(list(slots_of(inner, shapes)))}
    for name in BUFFERS:
        if hasattr(thing, name):
            named[name] = iter(buffers(getattr(thing, name))[0])
    return [next(named[p[0]]) if p[0] in named else Leaf("", leaf) for p, leaf in found], form


def slots(tree: Any, params: Mapping[str, tuple[int, ...]]) -> tuple[list[Leaf], Any]:
    """The state of an optimizer by the names of its parameters, whose shapes are given."""
    found, form = paths(tree)
    return list(slots_of(found, params)), form


def slots_of(
    found: Sequence[tuple[tuple[str, ...], Any]], params: Mapping[str, tuple[int, ...]]
) -> Iterator[Leaf]:
    """The same of leaves with their paths."""
    places = [_place(path, np.shape(leaf), params) for path, leaf in found]
    kinds = {(place[0], place[1]) for place in places if place}
    for (path, leaf), place in zip(found, places, strict=True):
        if place and is_array(leaf):
            before, slot, param = place
            alone = slot == "nu" and (before, "mu") not in kinds
            named = "square" if alone else SLOTS.get(slot, slot)
            yield Leaf(f"optimizer/{param}/{named}", leaf)
        elif path and path[-1] == COUNT and np.shape(leaf) == ():
            yield Leaf(COUNT, leaf)
        else:
            yield Leaf("", leaf)


def _place(
    path: tuple[str, ...], shape: tuple[int, ...], params: Mapping[str, tuple[int, ...]]
) -> tuple[tuple[str, ...], str, str] | None:
    """Where a slot is, what it is called there, and of which parameter it is one."""
    for k in range(1, len(path) + 1):
        param = "/".join(path[k:]) or ALONE
        if params.get(param) == shape:
            return path[: k - 1], path[k - 1], param
    return None


def has_slots(tree: Any) -> bool:
    """Whether a pytree holds a state of optax."""
    todo = [tree]
    while todo:
        node = todo.pop()
        if isinstance(node, tuple) and type(node).__module__.startswith("optax"):
            return True
        if isinstance(node, tuple | list):
            todo += node
        elif isinstance(node, Mapping):
            todo += node.values()
    return False


class Held(NamedTuple):
    """A tensor that an object of the script holds: its name, how to read it, how to put another."""

    name: str
    get: Callable[[], Any]
    put: Callable[[Any], None]


def held_by(model: Any, head: str = "") -> Iterator[Held]:
    """Parameters and buffers of a flax.nnx module."""
    nnx = module_of("flax.nnx")
    for path, variable in _variables(model):
        if is_array(_value(variable)) and not isinstance(variable, nnx.RngState):
            kind = "params" if isinstance(variable, nnx.Param) else "buffers"
            yield _held(f"{kind}/{head}{'/'.join(path)}", variable)


def held_by_optimizer(optimizer: Any, params: Mapping[str, tuple[int, ...]]) -> Iterator[Held]:
    """Slots, and counts of steps, of a flax.nnx optimizer."""
    found = list(_variables(optimizer))
    leaves = slots_of([(path, _value(v)) for path, v in found], params)
    for (_, variable), leaf in zip(found, leaves, strict=True):
        if leaf.name:
            yield _held(leaf.name, variable)


def _variables(thing: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    nnx = module_of("flax.nnx")
    seen = set()
    for path, node in nnx.iter_graph(thing):
        if isinstance(node, nnx.Variable) and id(node) not in seen:
            seen.add(id(node))
            yield tuple(str(p) for p in path), node


def _value(variable: Any) -> Any:
    return variable.get_value() if hasattr(variable, "get_value") else variable.value


def _held(name: str, variable: Any) -> Held:
    def put(value: Any) -> None:
        if hasattr(variable, "set_value"):
            variable.set_value(value)
        else:
            variable.value = value

    return Held(name, lambda: _value(variable), put)
