"""The table of models, and what follows from a row: parameters, state, draws, blocks, the graph."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import lru_cache
from typing import Any, NamedTuple

from harness.errors import HarnessError
from harness.models import blocks
from harness.models.build import Block, Builder, Draw, Parameter
from harness.models.graph import BATCH, TIME, Graph, Stage, Tensor, node, ref
from harness.models.presets import PRESETS as PRESETS
from harness.models.spec import ModelSpec
from harness.models.update import RATE, update
from harness.models.update import SLOTS as SLOTS


class Model(NamedTuple):
    """What follows from a row: all that anything else knows of a model."""

    params: tuple[Parameter, ...]
    state: dict[str, int]
    draws: dict[str, Draw]
    blocks: tuple[Block, ...]
    forward: tuple[Stage, ...]


class Row(NamedTuple):
    """A model: the function that declares it, and the fields of ModelSpec that it reads."""

    declare: Callable[[ModelSpec, Builder], None]
    fields: tuple[str, ...]


def language_model(spec: ModelSpec, m: Builder) -> None:
    """Embedding, recurrent layers, softmax; dropout between them, never along time."""
    x = blocks.embedding(m, spec.embed_size, spec.vocab_size)
    x, width = blocks.dropout(m, "embedding", x, spec.embed_size, spec.dropout), spec.embed_size
    for k in range(spec.num_layers):
        more = {name: getattr(spec, name) for name in OF_LAYER if name in fields_of(spec.network)}
        x = LAYERS[spec.network](m, f"layer{k}", x, width, spec.hidden_size, **more)
        width = spec.hidden_size
        x = blocks.dropout(m, f"layer{k}", x, width, spec.dropout)
    logits = blocks.project(m, x, width, spec.vocab_size, spec.tied)
    m.trace("loss", blocks.cross_entropy(m, logits))


def awd_lstm(spec: ModelSpec, m: Builder) -> None:
    """The network of AWD-LSTM (Merity et al. 2017, arXiv 1708.02182): what it drops and penalises.

    Every LSTM is drawn from U(+-1/sqrt H) and the softmax's bias is 0; tied, the last layer is as
    wide as the embedding (the authors' program, salesforce/awd-lstm-lm, model.py).
    """
    x = blocks.embedding(m, spec.embed_size, spec.vocab_size, spec.embedding_dropout)
    x, width = (
        blocks.locked(m, "embedding", x, spec.embed_size, spec.input_dropout),
        spec.embed_size,
    )
    for k in range(spec.num_layers):
        last = k == spec.num_layers - 1
        units = spec.embed_size if last and spec.tied else spec.hidden_size
        init = 1 / math.sqrt(units)
        x = blocks.lstm(m, f"layer{k}", x, width, units, spec.weight_dropout, init)
        width = units
        if last:
            temporal = blocks.temporal_penalty(m, x, spec.temporal_penalty)
        rate = spec.dropout if last else spec.layer_dropout
        x = blocks.locked(m, f"layer{k}", x, width, rate)
    activation = blocks.activation_penalty(m, x, spec.activation_penalty)
    logits = blocks.project(m, x, width, spec.vocab_size, spec.tied, init=0.0)
    m.trace("loss", node("add", blocks.cross_entropy(m, logits), activation, temporal))


SIZES = ("network", "vocab_size", "embed_size", "hidden_size", "num_layers", "init_scale")
OF_LAYER = ("reset",)  # fields that a recurrent layer takes
LAYERS: dict[str, Callable[..., Any]] = {
    "lstm": blocks.lstm,
    "rnn": blocks.rnn,
    "gru": blocks.gru,
}
ROWS = {
    "lstm": Row(language_model, (*SIZES, "dropout", "tied")),
    "rnn": Row(language_model, (*SIZES, "dropout", "tied")),
    "gru": Row(language_model, (*SIZES, "dropout", "reset", "tied")),
    "awd-lstm": Row(
        awd_lstm,
        (
            *(*SIZES, "dropout", "tied", "embedding_dropout", "input_dropout", "layer_dropout"),
            *("weight_dropout", "activation_penalty", "temporal_penalty"),
        ),
    ),
}


def fields_of(network: str) -> tuple[str, ...]:
    """The fields that the model of this name has. Raises HarnessError that lists the models."""
    if network not in ROWS:
        raise HarnessError(f"network={network!r}: no such model; there are: {', '.join(ROWS)}")
    return ROWS[network].fields


def check_fields(spec: ModelSpec) -> None:
    """Raises HarnessError for a field that the spec gives a value and its model has not."""
    known = fields_of(spec.network)
    for name, default in zip(
        reversed(spec.__struct_fields__), reversed(spec.__struct_defaults__), strict=False
    ):
        value = getattr(spec, name)
        if name not in known and value != default:
            raise HarnessError(
                f"{name}={value}: the model {spec.network} has no such field; it has: "
                f"{', '.join(known)}"
            )


@lru_cache(maxsize=64)
def model_of(spec: ModelSpec, train: Any = None) -> Model:
    """The model that a spec describes. Raises HarnessError for one that cannot be."""
    check_fields(spec)
    m = Builder(train)
    ROWS[spec.network].declare(spec, m)
    return Model(tuple(m.params.values()), m.state, m.draws, tuple(m.blocks), tuple(m.stages))


def parameters(spec: ModelSpec) -> tuple[Parameter, ...]:
    """The parameters of a model in canonical order: the order of files, traces and norms.

    Matrices are [in, out], so that a layer computes x @ w; a layer's columns are blocks of H, which
    the axes name ("ifgo" of an LSTM). Each layer has two biases.
    """
    return model_of(spec).params


def fitting(shapes: Mapping[str, tuple[int, ...]]) -> ModelSpec | None:
    """The first model of the table whose parameters have these names and shapes, if there is one.

    What shapes do not tell (rates, scales) has its default.
    """
    embedding, recurrent = shapes.get("embedding", ()), shapes.get("layer0/w_h", ())
    if len(embedding) != 2 or len(recurrent) != 2 or 0 in (*embedding, *recurrent):
        return None
    layers, tied = sum(name.endswith("/w_h") for name in shapes), "softmax_w" not in shapes
    for network in ROWS:
        spec = ModelSpec(*embedding, recurrent[0], layers, network=network, tied=tied)
        with suppress(HarnessError):  # no such model has tied weights
            if {p.name: p.shape for p in parameters(spec)} == dict(shapes):
                return spec
    return None


def restart_names(spec: ModelSpec, train: Any) -> tuple[str, ...]:
    """The tensors at the end of a step that a run of these can start again from (CHECKPOINT)."""
    names = [parameter.name for parameter in parameters(spec)]
    slots = [f"optimizer/{name}/{slot}" for name in names for slot in SLOTS[train.optimizer]]
    state = [f"state/out/{name}" for name in model_of(spec).state]
    return (*(f"params/{name}" for name in names), *slots, *state)


@lru_cache(maxsize=64)
def graph_of(spec: ModelSpec, train: Any) -> Graph:
    """All stages of a step in their order: forward, backward, gradients, update, state."""
    from harness.models.derive import backward  # with all ops, which only a graph needs

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
    tensors += [Tensor(RATE)]
    return [Stage(tensor, given) for tensor in tensors] + [
        Stage(
            Tensor(f"state/in/{name}", (BATCH, "unit")),
            node("carried", ref(f"state/out/{name}", back=1, first="zeros")),
        )
        for name in model.state
    ]
