"""The names of what a TensorFlow or Keras model holds: layers, parameters, buffers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

tf: Any = import_module("tensorflow")
keras: Any = import_module("keras")
naming: Any = import_module("keras.src.utils.naming")


def plain(variable: Any) -> Any:
    """The variable of TensorFlow's that one of Keras' is around."""
    return variable._value if isinstance(variable, keras.Variable) else variable


class Names:
    """The parts of one or several models by name; parts of a path have "/" between them.

    Names are Keras' own, without that of the model itself: the layers' and the variables'. What a
    tf.Module or a container holds goes by attribute, key or place.
    """

    def __init__(self, models: Sequence[Any]) -> None:
        """`models`: layers, modules, variables, or lists and dictionaries of them."""
        self._first: dict[str, int] = {}
        self._read(models)
        self._first = _first_numbers(self.kept)
        self._read(models)

    def _read(self, models: Sequence[Any]) -> None:
        self.layers: dict[int, str] = {}
        self.kept: list[Any] = []  # so that no identity is used twice
        self.params: dict[str, Any] = {}
        self.buffers: dict[str, Any] = {}
        self._seen: set[int] = set()
        for k, model in enumerate(models):
            self._walk(model, f"model{k}" if len(models) > 1 else "")

    def _walk(self, thing: Any, path: str) -> None:
        if isinstance(thing, keras.Variable | tf.Variable):
            self._variable(thing, path or _own_name(thing), bool(thing.trainable))
        elif id(thing) in self._seen:
            return
        elif isinstance(thing, keras.layers.Layer):
            self._seen.add(id(thing))
            self._layer(thing, path)
        elif isinstance(thing, tf.Module):
            self._seen.add(id(thing))
            for name, value in sorted(vars(thing).items()):
                if not name.startswith("_self_") and name not in ("_name", "_name_scope"):
                    self._walk(value, _joined(path, name.strip("_") or name))
        elif isinstance(thing, Mapping):
            for key, value in thing.items():
                self._walk(value, _joined(path, str(key)))
        elif isinstance(thing, list | tuple):
            named = not path and all(isinstance(v, keras.Variable | tf.Variable) for v in thing)
            for i, value in enumerate(thing):
                self._walk(value, _own_name(value) if named else _joined(path, str(i)))

    def _layer(self, layer: Any, path: str) -> None:
        self.kept.append(layer)
        self.layers[id(layer)] = _free(path or "model", self.layers.values())
        for trained, variables in (
            (True, layer._trainable_variables),
            (False, layer._non_trainable_variables),
        ):
            for variable in variables:
                self._variable(variable, _joined(path, variable.name), trained)
        for inner in layer._flatten_layers(include_self=False, recursive=False):
            if id(inner) not in self._seen:
                self._walk(inner, _joined(path, self._name(inner)))

    def _name(self, layer: Any) -> str:
        """A layer's name; where Keras has numbered it, as if this model were the first one."""
        base, number = _numbered(layer)
        if number is None:
            return str(layer.name)
        number -= self._first.get(base, 0)
        return f"{base}_{number}" if number else base

    def _variable(self, variable: Any, path: str, trained: bool) -> None:
        variable = plain(variable)
        if id(variable) in self._seen or not variable.dtype.is_floating:
            return
        self._seen.add(id(variable))
        found = self.params if trained else self.buffers
        found[_free(path, found)] = variable

    def path(self, layer: Any) -> str | None:
        """The path of a layer; None for one that is no part of the models."""
        return self.layers.get(id(layer))


def _numbered(layer: Any) -> tuple[str, int | None]:
    """The name that Keras gives layers of this class, and which of them it is; None: named so."""
    base = str(naming.to_snake_case(type(layer).__name__))
    found = re.fullmatch(re.escape(base) + r"(?:_(\d+))?", layer.name)
    return base, int(found[1] or 0) if found else None


def _first_numbers(layers: Sequence[Any]) -> dict[str, int]:
    """The least number of the layers of each class: those before are of other models."""
    first: dict[str, int] = {}
    for base, number in map(_numbered, layers):
        if number is not None:
            first[base] = min(number, first.get(base, number))
    return first


def _own_name(variable: Any) -> str:
    return str(getattr(variable, "path", None) or plain(variable).name.partition(":")[0])


def _joined(path: str, name: str) -> str:
    return f"{path}/{name}" if path else name


def _free(name: str, taken: Any) -> str:
    """A name that is not taken yet."""
    count, found = 1, name
    while found in taken:
        count += 1
        found = f"{name}_{count}"
    return found
