"""The graph of a trace: of one of our models, from the settings in its header."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Literal, get_args, get_origin, get_type_hints

import msgspec

from harness.errors import HarnessError
from harness.models.graph import Graph
from harness.models.spec import ModelSpec
from harness.models.table import graph_of
from harness.spec import TrainSpec


def graph_of_spec(spec: Mapping[str, Any]) -> Graph | None:
    """The stages of a run with these settings; None where they are of no model that we know."""
    model, train = spec.get("model"), spec.get("train")
    if not isinstance(model, dict) or not isinstance(train, dict):
        return None
    try:
        return _graph(msgspec.json.encode([model, train]))
    except (TypeError, ValueError, HarnessError):
        return None


def variants(spec: Mapping[str, Any]) -> dict[str, Graph]:
    """The stages of the same run with one choice made otherwise, by the choice: "reset=before"."""
    found = {}
    for part, kind in (("model", ModelSpec), ("train", TrainSpec)):
        fields = spec.get(part)
        if not isinstance(fields, dict):
            return {}
        for name, values in _choices(kind).items():
            for value in values:
                if name in NO_STAGE or fields.get(name) == value:
                    continue
                graph = graph_of_spec({**spec, part: {**fields, name: value}})
                if graph is not None:
                    found[f"{name}={str(value).lower()}"] = graph
    return found


# Choices of how a step is computed, or what it is given, and not of what it computes.
NO_STAGE = ("network", "dtype", "compile", "autograd", "shuffle", "schedule")


def _choices(kind: type[msgspec.Struct]) -> dict[str, tuple[Any, ...]]:
    """The values of every field that has a few."""
    hints = get_type_hints(kind)
    found = {name: get_args(hint) for name, hint in hints.items() if get_origin(hint) is Literal}
    return found | {name: (False, True) for name, hint in hints.items() if hint is bool}


@lru_cache(maxsize=64)
def _graph(encoded: bytes) -> Graph | None:
    model, train = msgspec.json.decode(encoded)
    return graph_of(msgspec.convert(model, ModelSpec), msgspec.convert(train, TrainSpec))
