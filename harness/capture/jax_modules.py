"""What modules hand on: flax's (nnx and linen) and equinox's, by their paths in the model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import wraps
from typing import Any

from harness.capture.jax_marks import Tracing
from harness.capture.jax_trees import is_of, module_of

Path = tuple[str, ...]
DEEPEST = 32


def watch_modules(tracing: Tracing, models: Sequence[Any]) -> None:
    """Until the end, what modules return is marked with their paths."""
    _watch_linen(tracing)
    paths = _Paths(models)
    tracing.until_end(paths.clear)
    classes = {type(m): None for model in models for _, m in submodules(model)}
    for kind in classes:
        call = vars(kind).get("__call__") or next(
            (vars(k)["__call__"] for k in kind.__mro__ if "__call__" in vars(k)), None
        )
        if call is not None:
            tracing.put(kind, "__call__", _watched(call, tracing, paths))


def _watch_linen(tracing: Tracing) -> None:
    linen = module_of("flax.linen")
    if linen is None:
        return

    def interceptor(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        if context.method_name != "__call__":
            return call(*args, **kwargs)
        path = "/".join(context.module.path) or "model"
        with tracing.inside(path):
            made = call(*args, **kwargs)
        return made if context.module.scope is None else tracing.point(f"forward/{path}", made)

    entered = linen.intercept_methods(interceptor)
    entered.__enter__()
    tracing.until_end(lambda: entered.__exit__(None, None, None))


class _Paths:
    """The paths of modules by their identity; those of copies that a transformation made, too."""

    def __init__(self, models: Sequence[Any]) -> None:
        self._heads = {
            type(model): (f"model{k}",) if len(models) > 1 else () for k, model in enumerate(models)
        }
        self._found: dict[int, tuple[Any, Path]] = {}

    def clear(self) -> None:
        self._found.clear()

    def of(self, module: Any, outermost: bool) -> str | None:
        """The path of a module that is called; None where it is none of the model's."""
        head = self._heads.get(type(module))
        if head is not None and outermost:
            self._found = {id(m): (m, (*head, *path)) for path, m in submodules(module)}
        known = self._found.get(id(module))
        if known is None or known[0] is not module:
            return None
        return "/".join(known[1]) or "model"


def _watched(call: Any, tracing: Tracing, paths: _Paths) -> Any:
    @wraps(call)
    def watched(module: Any, *args: Any, **kwargs: Any) -> Any:
        path = paths.of(module, not tracing.scope)
        if path is None or (tracing.scope and tracing.scope[-1] == path):
            return call(module, *args, **kwargs)
        with tracing.inside(path):
            made = call(module, *args, **kwargs)
        return tracing.point(f"forward/{path}", made)

    return watched


def is_module(value: Any) -> bool:
    """Whether a thing is a module of flax.nnx or of equinox."""
    return is_of(value, "flax.nnx", "Module") or is_of(value, "equinox", "Module")


def submodules(model: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """A module and all below it, with their paths."""
    if len(path) > DEEPEST:
        return
    if is_module(model):
        yield path, model
        fields = (
            {f.name: getattr(model, f.name, None) for f in dataclasses.fields(model)}
            if dataclasses.is_dataclass(model)
            else vars(model)
        )
        below: Any = fields.items()
    elif isinstance(model, Mapping):
        below = model.items()
    elif isinstance(model, list | tuple) or is_of(model, "flax.nnx", "List"):
        below = enumerate(model)
    else:
        return
    for key, value in below:
        if not str(key).startswith("_"):
            yield from submodules(value, (*path, str(key)))
