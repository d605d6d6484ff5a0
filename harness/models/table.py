"""The table of models, and what follows from a row: parameters, state, draws, blocks, the graph."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from harness.models import blocks
from harness.models.build import Block, Builder, Draw, Parameter
from harness.models.derive import backward
from harness.models.graph import BATCH, TIME, Graph, Stage, Tensor, node, ref
from harness.models.update import RATE, update

if TYPE_CHECKING:
    from harness.spec import ModelSpec, TrainSpec

CELLS = {"lstm": blocks.lstm}


class Model(NamedTuple):
    """What follows from a row: all that anything else knows of a model."""

    params: tuple[Parameter, ...]
    state: dict[str, int]
    draws: dict[str, Draw]
    blocks: tuple[Block, ...]
    forward: tuple[Stage, ...]


def language_model(spec: ModelSpec, m: Builder) -> None:
    """Embedding, recurrent layers, softmax; dropout between them, never along time."""
    x = blocks.embedding(m, spec.embed_size, spec.vocab_size)
    x, width = blocks.dropout(m, "embedding", x, spec.embed_size, spec.dropout), spec.embed_size
    for k in range(spec.num_layers):
        x = CELLS["lstm"](m, f"layer{k}", x, width, spec.hidden_size)
        width = spec.hidden_size
        x = blocks.dropout(m, f"layer{k}", x, width, spec.dropout)
    logits = blocks.project(m, x, width, spec.vocab_size)
    m.trace("loss", blocks.cross_entropy(m, logits))


@lru_cache(maxsize=64)
def model_of(spec: ModelSpec, train: TrainSpec | None = None) -> Model:
    """The model that a spec describes."""
    m = Builder(train)
    language_model(spec, m)
    return Model(tuple(m.params.values()), m.state, m.draws, tuple(m.blocks), tuple(m.stages))


@lru_cache(maxsize=64)
def graph_of(spec: ModelSpec, train: TrainSpec) -> Graph:
    """All stages of a step in their order: forward, backward, gradients, update, state."""
    model = model_of(spec, train)
    names = [Tensor(p.name, p.axes) for p in model.params]
    stages = [*_inputs(model), *model.forward]
    stages += backward(model.forward, "forward/loss", names)
    stages += update(model.params, train)
    stages += [
        Stage(Tensor(f"state/out/{name}", (BATCH, "unit")), node("last", ref(f"forward/{name}")))
        for name in model.state
    ]
    return Graph({stage.out.name: stage for stage in stages})


def _inputs(model: Model) -> list[Stage]:
    """What a step is given: tensors that no stage makes, for their axes."""
    given = node("given")
    tensors = [Tensor("inputs/x", (BATCH, TIME)), Tensor("inputs/y", (BATCH, TIME))]
    tensors += [Tensor(f"inputs/mask/{d.site}", d.axes) for d in model.draws.values()]
    tensors += [Tensor(f"inputs/params/{p.name}", p.axes) for p in model.params]
    tensors += [Tensor(f"state/in/{name}", (BATCH, "unit")) for name in model.state]
    tensors += [Tensor(RATE)]
    return [Stage(tensor, given) for tensor in tensors]
