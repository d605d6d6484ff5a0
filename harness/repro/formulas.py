"""The formula of an op as the source of a program of its own: with all that it is made of."""

from __future__ import annotations

import ast
import builtins
import inspect
import textwrap
from collections.abc import Callable
from functools import cache, partial
from types import FunctionType, ModuleType
from typing import Any

from harness.models.ops import find


def source_of(op: str) -> tuple[str, dict[str, str]]:
    """The name of a function that is an op's formula, and the source of it and what it calls."""
    return _named(op, find(op).formula)


@cache
def _named(op: str, formula: Callable[..., Any]) -> tuple[str, dict[str, str]]:
    found: dict[str, str] = {}
    name = _take(formula, op, found)
    return name, found


def _take(value: Any, wanted: str, found: dict[str, str]) -> str:
    """Put what a name stands for into `found`, after what it is made of."""
    if isinstance(value, partial):
        inner = _take(value.func, value.func.__name__, found)
        found[wanted] = f"{wanted} = functools.partial({inner}, *{value.args!r})"
        return wanted
    if not str(getattr(value, "__module__", "harness")).startswith("harness"):
        found.setdefault(
            f"{wanted} ", f"from {value.__module__} import {value.__name__} as {wanted}"
        )
        return wanted
    if isinstance(value, type):
        return _class(value, found)
    if not isinstance(value, FunctionType):
        made = repr(value)
        if isinstance(value, tuple) and hasattr(value, "_fields"):  # with its defaults
            made = f"{_class(type(value), found)}()"
        found.setdefault(wanted, f"{wanted} = {made}")
        return wanted
    node = _function(_tree(value), value)
    name = wanted if node.name in ("loss", "slope", "formula", "other", "code") else node.name
    node.name = name
    if name in found:
        return name
    found[name] = ""
    _plain(node)
    for used, thing in _used(node, value).items():
        real = _take(thing, used, found)
        if real != used:
            found[f"{used} "] = f"{used} = {real}"
    found.pop(name)
    found[name] = ast.unparse(node)
    return name


def _class(value: type, found: dict[str, str]) -> str:
    """Put a class into `found`, after what its methods and defaults call."""
    name = value.__name__
    if name in found:
        return name
    found[name] = ""
    parts = [*vars(value).values(), *getattr(value, "_field_defaults", {}).values()]
    for part in parts:
        if isinstance(part, FunctionType) and part.__module__ == value.__module__:
            for used, thing in _used(_function(_tree(part), part), part).items():
                _take(thing, used, found)
    found.pop(name)
    found[name] = inspect.getsource(value).rstrip()
    return name


def _tree(value: FunctionType) -> ast.stmt:
    """The statement that a function is written in."""
    source = textwrap.dedent(inspect.getsource(value))
    try:
        return ast.parse(source).body[0]
    except SyntaxError:  # a lambda among the arguments of a call, or after a colon
        start = source.index("lambda")
        for end in range(len(source), start, -1):
            try:
                return ast.parse(source[start:end].rstrip(" ,)\n")).body[0]
            except SyntaxError:
                continue
        raise


def _function(tree: ast.stmt, value: FunctionType) -> ast.FunctionDef:
    if isinstance(tree, ast.FunctionDef):
        return tree
    lambdas = [x for x in ast.walk(tree) if isinstance(x, ast.Lambda)]
    wanted = inspect.getfullargspec(value).args
    found = next(x for x in lambdas if [a.arg for a in x.args.args] == wanted)
    body: list[ast.stmt] = [ast.Return(found.body)]
    made = ast.FunctionDef("other", found.args, body, [])
    return ast.fix_missing_locations(made)


def _plain(node: ast.FunctionDef) -> None:
    """Take annotations and decorators away."""
    node.decorator_list, node.returns = [], None
    for x in ast.walk(node):
        if isinstance(x, ast.arg):
            x.annotation = None
        for _, field in ast.iter_fields(x):
            if isinstance(field, list):
                field[:] = [
                    ast.copy_location(ast.Assign([y.target], y.value), y)
                    if isinstance(y, ast.AnnAssign) and y.value
                    else y
                    for y in field
                ]


def _used(node: ast.FunctionDef, value: FunctionType) -> dict[str, Any]:
    """What a function reads from outside of it."""
    names = {x.id for x in ast.walk(node) if isinstance(x, ast.Name)}
    inner = zip(value.__code__.co_freevars, value.__closure__ or (), strict=True)
    scope = {name: value.__globals__[name] for name in names if name in value.__globals__}
    scope |= {name: cell.cell_contents for name, cell in inner}
    return {
        name: thing
        for name, thing in scope.items()
        if name in names and not isinstance(thing, ModuleType) and not hasattr(builtins, name)
    }
