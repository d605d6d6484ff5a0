"""Names inside of functions that JAX traces: a primitive that computes nothing, and its places.

A mark is lowered to its operand, so what XLA is given is the same program, text for text, with and
without it. What is marked in the forward pass is differentiated as the identity; the mark that
stands for it on the way back says which value is the gradient of it.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax._src import api, core, source_info_util
from jax._src.ad_util import Zero
from jax._src.interpreters import ad, batching, mlir

# What a mark says of its value: it is a point, one that the script asked for, or perhaps one (by
# what it turns out to be); the slope along a point, and the gradient by it; what a gradient is
# taken by, what is differentiated, the gradient.
POINT, TAP, OPERATION, SLOPE, BACK = "point", "tap", "operation", "slope", "back"
NAMING = (POINT, TAP, OPERATION)
BY, OBJECTIVE, GRADIENT = "by", "objective", "gradient"
OWN = ("site-packages", "dist-packages", "harness/capture", "/contextlib.py", "/functools.py")

mark_p = core.Primitive("harness_mark")
source_info_util.register_exclusion(str(Path(__file__).parent))
_keys = itertools.count(1)


def mark(value: Any, kind: str, key: int, name: Any = "") -> Any:
    """A value with a mark on it; anything that is no floating-point array as it is."""
    if not is_float(value):
        return value
    return mark_p.bind(value, kind=kind, key=key, name=name, axes=())


def is_float(value: Any) -> bool:
    """Whether a value is an array of floats of JAX, or stands for one."""
    return isinstance(value, jax.Array) and is_float_dtype(value.dtype)


def is_float_dtype(dtype: Any) -> bool:
    """Whether a dtype is one of floating-point numbers."""
    return dtype is not None and bool(jax.numpy.issubdtype(dtype, np.floating))


def epsilon(dtype: Any) -> float:
    """The rounding of a floating-point format, those of ml_dtypes too."""
    return float(jax.numpy.finfo(dtype).eps)  # type: ignore[no-untyped-call]


def new_key() -> int:
    """A number for marks that belong together."""
    return next(_keys)


def _slope(primals: Any, tangents: Any, **params: Any) -> Any:
    value = mark_p.bind(*primals, **params)
    (slope,) = tangents
    if type(slope) is Zero or params["kind"] not in NAMING:
        return value, slope
    return value, mark_p.bind(slope, **{**params, "kind": SLOPE})


def _transposed(gradient: Any, value: Any, **params: Any) -> Any:
    if type(gradient) is Zero or params["kind"] != SLOPE:
        return [gradient]
    return [mark_p.bind(gradient, **{**params, "kind": BACK})]


def _batched(args: Any, dims: Any, /, **params: Any) -> Any:
    """The axis that jax.vmap adds stays where it is: to move it would be another program."""
    (value,), (axis,) = args, dims
    if axis is not None:
        params["axes"] = (*params["axes"], axis)
    return mark_p.bind(value, **params), axis


def order(rank: int, axes: tuple[int, ...]) -> list[int]:
    """The axes of a marked value with those that jax.vmap added first, the outermost before all."""
    places: list[Any] = list(range(rank - len(axes)))
    for k, axis in enumerate(axes):
        places.insert(axis, f"vmap {k}")
    added = [places.index(f"vmap {k}") for k in reversed(range(len(axes)))]
    return [*added, *(k for k in range(rank) if k not in added)]


mark_p.def_impl(lambda value, **params: value)
mark_p.def_abstract_eval(lambda value, **params: value)
mlir.register_lowering(mark_p, lambda context, value, **params: [value])
ad.primitive_jvps[mark_p] = _slope
ad.primitive_transposes[mark_p] = _transposed
batching.primitive_batchers[mark_p] = _batched


class Tracing:
    """What is put in place while a block records, for the functions that are traced in it."""

    def __init__(self) -> None:
        """Nothing is in place yet."""
        self.scope: list[str] = []  # paths of the modules that are running
        self.deep = False  # whether what is between and inside of modules is marked, too
        self._within = 0  # primitives that are being bound
        self._differentiated = 0  # functions that are
        self._undo: list[Callable[[], None]] = []

    def begin(self) -> None:
        """Put it in place. What was compiled before has no marks, so JAX forgets it."""
        jax.clear_caches()
        self.put(api, "vjp", self._vjp(api.vjp))
        self.put(core.Primitive, "bind", self._bind(core.Primitive.bind))

    def end(self) -> None:
        """Take it away, and what was compiled with it."""
        if self._undo:
            while self._undo:
                self._undo.pop()()
            self.scope.clear()
            jax.clear_caches()

    def put(self, owner: Any, name: str, value: Any) -> None:
        """Set an attribute until the end."""
        own = name in vars(owner)
        old = vars(owner).get(name)
        setattr(owner, name, value)

        def back() -> None:
            setattr(owner, name, old) if own else delattr(owner, name)

        self._undo.append(back)

    def until_end(self, undo: Callable[[], None]) -> None:
        """Something more to be done at the end."""
        self._undo.append(undo)

    @contextmanager
    def inside(self, path: str) -> Iterator[None]:
        """While a module of this path runs."""
        self.scope.append(path)
        try:
            yield
        finally:
            self.scope.pop()

    def point(self, name: str, tree: Any, kind: str = POINT) -> Any:
        """Marks on all arrays of a tree: one by the name itself, several by theirs in the tree."""
        leaves, form = jax.tree_util.tree_flatten_with_path(tree)
        if len(leaves) == 1 and not leaves[0][0]:
            return mark(leaves[0][1], kind, new_key(), name)
        marked = [
            mark(leaf, kind, new_key(), "/".join((name, *map(plain, path))))
            for path, leaf in leaves
        ]
        return jax.tree_util.tree_unflatten(form, marked)

    def _vjp(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """jax.grad and jax.value_and_grad come to this function."""

        def vjp(fun: Callable[..., Any], *primals: Any, **options: Any) -> Any:
            key = new_key()
            leaves, form = jax.tree_util.tree_flatten(primals)
            by = [mark(leaf, BY, key, k) for k, leaf in enumerate(leaves)]

            def counted(*args: Any) -> Any:
                self._differentiated += 1
                try:
                    return fun(*args)
                finally:
                    self._differentiated -= 1

            made, back, *more = original(
                counted, *jax.tree_util.tree_unflatten(form, by), **options
            )

            def backward(gradient: Any) -> Any:
                found, shape = jax.tree_util.tree_flatten(back(gradient))
                marked = [mark(g, GRADIENT, key, k) for k, g in enumerate(found)]
                return jax.tree_util.tree_unflatten(shape, marked)

            return mark(made, OBJECTIVE, key), backward, *more

        return vjp

    def _bind(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Every primitive comes to this: what is outside of modules may be a point."""

        def bind(primitive: Any, *args: Any, **params: Any) -> Any:
            if self._within:
                return original(primitive, *args, **params)
            self._within += 1
            try:
                made = original(primitive, *args, **params)
            finally:
                self._within -= 1
            if not self._differentiated or (self.scope and not self.deep):
                return made
            name = NAMED.get(primitive.name)
            if name and not self.scope and _is_lookup(primitive, args, params):
                return mark(made, POINT, new_key(), f"forward/{_caller()}/{name}")
            if primitive is mark_p or not any(is_float(x) and x.ndim for x in args):
                return made  # numbers are constants of the program: a mark would move them
            if _is_within_jax():
                return made  # traced once for many calls: these marks would stand for all of them
            where = f"forward/{self.scope[-1] if self.scope else _caller()}"
            if not primitive.multiple_results:
                return self._perhaps(made, where)
            return [self._perhaps(x, where) for x in made]

        return bind

    def _perhaps(self, value: Any, where: str) -> Any:
        """A value that may turn out to be a point."""
        whole = is_float(value) and value.ndim
        return mark(value, OPERATION, new_key(), where) if whole else value


NAMED = {"dot_general": "linear", "conv_general_dilated": "conv", "gather": "embed"}


def _is_lookup(primitive: Any, args: Any, params: Any) -> bool:
    """Whether a gather reads rows of a table, as an embedding does; true of all that is none."""
    if primitive.name != "gather":
        return True
    picked = params["dimension_numbers"].operand_batching_dims
    return args[0].ndim == 2 and args[1].ndim > 1 and not picked


def _is_within_jax() -> bool:
    """Whether what runs is traced for a compiled function of JAX's own, and not of the script's."""
    frame: Any = sys._getframe(2)
    while frame is not None:
        code = frame.f_code
        if not any(part in code.co_filename for part in OWN):
            return False
        if code.co_name.startswith("trace_to_jaxpr"):
            return True
        frame = frame.f_back
    return False


def _caller() -> str:
    """The script's own function that is running."""
    frame: Any = sys._getframe(2)
    while frame is not None:
        file = frame.f_code.co_filename
        if not any(part in file for part in OWN) and not file.startswith("<frozen"):
            found = "".join(c for c in frame.f_code.co_name if c.isalnum() or c == "_")
            return "main" if found == "module" else found
        frame = frame.f_back
    return "function"


def plain(part: Any) -> str:
    """One part of a path into a pytree, as a part of a name."""
    for attribute in ("key", "idx", "name"):
        if hasattr(part, attribute):
            return str(getattr(part, attribute)).replace("/", ".")
    return str(part).strip(".[]'\"").replace("/", ".")
