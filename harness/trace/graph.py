"""The graph of a trace: of one of our models, from the settings in its header."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import msgspec

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
    except (TypeError, ValueError):
        return None


@lru_cache(maxsize=32)
def _graph(encoded: bytes) -> Graph | None:
    model, train = msgspec.json.decode(encoded)
    return graph_of(msgspec.convert(model, ModelSpec), msgspec.convert(train, TrainSpec))
