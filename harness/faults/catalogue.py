"""The faults of the catalogue by name, where they can be planted, and when they show."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from harness.data.corpus import Batches
from harness.errors import HarnessError
from harness.models.faults import BASE, CATALOGUE, MODELS, Fault
from harness.models.table import fields_of, graph_of, model_of
from harness.spec import ModelSpec, TrainSpec, build, override

VOCABULARY, LAYERS = 256, 2  # of the built-in corpus; where a model of the laboratory says nothing
CHOICES = ("network", "reset", "tied")  # what a model is, and no size or rate


def named(name: str) -> Fault:
    """The fault of that name. Raises HarnessError that lists those that there are."""
    if name not in CATALOGUE:
        raise HarnessError(f"no fault named {name!r}; there are: {', '.join(sorted(CATALOGUE))}")
    return CATALOGUE[name]


def planted_names(name: str) -> tuple[str, ...]:
    """What RunSpec.faults must be for the fault of that name."""
    return named(name).parts or (name,)


def specs(model: str, settings: Mapping[str, str]) -> tuple[ModelSpec, TrainSpec]:
    """A model of the laboratory and its training, with `settings` beyond its own."""
    sizes = {"embed_size": 1, "hidden_size": 1, "num_layers": LAYERS}
    plain = build(ModelSpec, vocab_size=VOCABULARY, **sizes)
    return override(plain, TrainSpec(), {**BASE, **MODELS[model], **settings})


def within(fault: Fault, model: str) -> Fault | None:
    """The fault as it is in a model of the laboratory; None where it cannot be planted there.

    It can where the model has what it needs: settings that it takes and that are not against what
    it is, and all that `reaches` asks for.
    """
    changes, own = fault.of.get(model, {}), MODELS[model]
    if changes is None:
        return None
    fault = fault._replace(**changes)
    known = fields_of(own.get("network", "lstm"))
    for name, value in fault.settings.items():
        if name in ModelSpec.__struct_fields__ and name not in known:
            return None
        if name in CHOICES and str(getattr(specs(model, {})[0], name)).lower() != value:
            return None
    if not all(within(CATALOGUE[part], model) for part in fault.parts):
        return None
    return fault if reaches(fault, *specs(model, fault.settings)) else None


def reaches(fault: Fault, model: ModelSpec, train: TrainSpec) -> bool:
    """Whether a model has what a fault needs: a kind of block, so many layers, a tensor."""
    blocks = model_of(model, train).blocks
    layers = sum(bool(block.state) for block in blocks)
    of_kind = not fault.blocks or any(block.kind in fault.blocks for block in blocks)
    if layers < fault.layers or not of_kind:
        return False
    return any(map(fault.first_at, (*graph_of(model, train).stages, "evaluate/loss")))


def home(fault: Fault) -> str:
    """The first model of the laboratory that a fault can be planted in."""
    return next(model for model in MODELS if within(fault, model))


def first_step(
    fault: Fault, batches: Batches, norm: Callable[[int], float], model: str = "lstm"
) -> int:
    """The first of the fault's steps at which the sides part. Raises HarnessError if none does.

    `batches` are of the training text, cut to `fault.tokens`; norm(step) is the global norm in a
    run of `model` without the fault.
    """
    kind, *rest = fault.bites.split()
    limit = float({**BASE, **MODELS[model], **fault.settings}["clip_limit"])
    steps = range(1, fault.steps + 1)
    if kind == "norm":
        bitten = (s for s in steps if norm(s) > limit)
    elif kind == "token":
        bitten = (s for s in steps if (batches.window(s).x == int(rest[0])).any())
    elif kind == "epoch":
        epochs = int(rest[0]) - 1
        step = epochs * batches.steps_per_epoch + 1
        if rest[1:] == ["end"]:
            step += batches.steps_per_epoch - 1
        bitten = (s for s in steps if s == step)
    else:
        bitten = (s for s in steps if s == int(rest[0]))
    for step in bitten:
        return step
    raise HarnessError(f"{fault.name}: in none of the steps 1 to {fault.steps}: {fault.bites}")
