"""The stages of an update: gradient norm, clipping, what the optimizer keeps, and the weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from harness.models.build import Parameter
from harness.models.graph import Node, Stage, Tensor, const, node, ref

NORM, RATE = "update/global_norm", "update/learning_rate"
CLIPPING = {"global_norm": "clip_by_norm", "elementwise": "clip_elements", "none": "unclipped"}
# What each optimizer keeps for each parameter from step to step.
SLOTS: dict[str, tuple[str, ...]] = {
    "sgd": (),
    "momentum": ("velocity",),
    "adam": ("m", "v"),
    "rmsprop": ("square",),
    "adagrad": ("accumulator",),
}


def update(params: Sequence[Parameter], train: Any) -> list[Stage]:
    """The stages of one step of the optimizer that `train` (TrainSpec) names, on all parameters."""
    gradients = [ref(f"grads/{p.name}") for p in params]
    squares = node("add", *(node("squares", g) for g in gradients))
    stages = [Stage(Tensor(NORM), node("root", squares))]
    limit = const(train.clip_limit, "clip_limit")
    for p in params:
        clipped = node(CLIPPING[train.clip], ref(f"grads/{p.name}"), ref(NORM), limit)
        stages.append(Stage(Tensor(f"update/clipped/{p.name}", p.axes), clipped))
    moved = [_of_one(p, train) for p in params]
    return [*stages, *(s for of_one in moved for s in of_one[:-1]), *(s[-1] for s in moved)]


def _of_one(p: Parameter, train: Any) -> list[Stage]:
    """The slots of one parameter and its new value."""
    old, g = before(p.name), ref(f"update/clipped/{p.name}")
    lr, decay = ref(RATE), const(train.weight_decay, "weight_decay")
    if train.weight_decay and not train.decoupled:
        g = node("decay_gradient", g, old, decay)
    slots = {
        slot: Stage(Tensor(f"optimizer/{p.name}/{slot}", p.axes), value)
        for slot, value in _slots(p.name, g, lr, train).items()
    }
    new = {slot: ref(stage.out.name) for slot, stage in slots.items()}
    value = _moved(old, g, lr, new, train)
    if train.weight_decay and train.decoupled:
        value = node("decay_weights", value, old, lr, decay)
    return [*slots.values(), Stage(Tensor(f"params/{p.name}", p.axes), value)]


def before(name: str) -> Node:
    """A parameter as it was before the step."""
    return ref(f"params/{name}", back=1, first=f"inputs/params/{name}")


def _slots(name: str, g: Node, lr: Node, train: Any) -> dict[str, Node]:
    """The new value of each slot."""

    def old(slot: str) -> Node:
        return ref(f"optimizer/{name}/{slot}", back=1, first="zeros")

    square = node("square", g)
    if train.optimizer == "momentum":
        mu = const(train.momentum, "momentum")
        return {"velocity": node("velocity", old("velocity"), g, mu, lr)}
    if train.optimizer == "adam":
        beta1, beta2 = const(train.beta1, "beta1"), const(train.beta2, "beta2")
        return {
            "m": node("average", old("m"), g, beta1),
            "v": node("average", old("v"), square, beta2),
        }
    if train.optimizer == "rmsprop":
        return {"square": node("average", old("square"), square, const(train.rho, "rho"))}
    if train.optimizer == "adagrad":
        return {"accumulator": node("add", old("accumulator"), square)}
    return {}


def _moved(old: Node, g: Node, lr: Node, slots: dict[str, Node], train: Any) -> Node:
    """The parameter after the rule's step."""
    epsilon = const(train.epsilon, "epsilon")
    if train.optimizer == "momentum":
        mu = const(train.momentum, "momentum")
        return node("along_velocity", old, slots["velocity"], g, lr, mu)
    if train.optimizer == "adam":
        betas = const(train.beta1, "beta1"), const(train.beta2, "beta2")
        return node("adam", old, slots["m"], slots["v"], lr, *betas, epsilon, node("step"))
    if train.optimizer in ("rmsprop", "adagrad"):
        (slot,) = slots.values()
        return node("over_root", old, g, slot, lr, epsilon)
    return node("descend", old, g, lr)
