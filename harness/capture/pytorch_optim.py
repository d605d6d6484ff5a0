"""What PyTorch's optimizers make of a gradient, in the terms of the graph (torch.optim)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.models.entries import Made

# The names of torch's slots in a trace: those of the twins, where the twins have them.
SLOTS = {
    "momentum_buffer": "velocity",
    "exp_avg": "m",
    "exp_avg_sq": "v",
    "square_avg": "square",
    "sum": "accumulator",
}


def hyperparameters(optimizer: Any, group: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of a group by the field's names."""
    found: dict[str, Any] = {"optimizer": type(optimizer).__name__}
    for name, own in (
        *(("lr", "lr"), ("momentum", "momentum"), ("epsilon", "eps"), ("rho", "alpha")),
        *(("weight_decay", "weight_decay"), ("dampening", "dampening"), ("nesterov", "nesterov")),
    ):
        if own in group and isinstance(group[own], int | float):
            found[name] = group[own]
    if "betas" in group:
        found["beta1"], found["beta2"] = map(float, group["betas"])
    return found


def update_of(
    optimizer: Any, group: Mapping[str, Any], name: str, gradient: str, rate: str
) -> dict[str, Made]:
    """How the slots and the new value of a parameter are made; nothing for unknown optimizers."""
    rule = RULES.get(type(optimizer).__name__)
    if rule is None or group.get("maximize"):
        return {}
    old = f"params/{name}@step-1|inputs/params/{name}"
    g: Any = gradient
    decay = float(group.get("weight_decay", 0) or 0)
    decoupled = type(optimizer).__name__ == "AdamW" or group.get("decoupled_weight_decay")
    if decay and not decoupled:
        g = Made("decay_gradient", (g, old, decay), {})
    made: dict[str, Made] = rule(group, name, old, g, rate)
    if decay and decoupled and made:
        new = made[f"params/{name}"]
        made[f"params/{name}"] = Made("decay_weights", (new, old, rate, decay), {})
    return made


def _before(name: str, slot: str) -> str:
    return f"optimizer/{name}/{slot}@step-1|zeros"


def _sgd(group: Mapping[str, Any], name: str, old: str, g: Any, rate: str) -> dict[str, Made]:
    momentum = float(group["momentum"])
    if not momentum:
        return {f"params/{name}": Made("descend", (old, g, rate), {})}
    if group["dampening"]:
        return {}
    slot = f"optimizer/{name}/velocity"
    op = "nesterov" if group["nesterov"] else "along_velocity"
    return {
        slot: Made("velocity", (_before(name, "velocity"), g, momentum, rate), {}),
        f"params/{name}": Made(op, (old, slot, g, rate, momentum), {}),
    }


def _adam(group: Mapping[str, Any], name: str, old: str, g: Any, rate: str) -> dict[str, Made]:
    if group.get("amsgrad"):
        return {}
    beta1, beta2 = map(float, group["betas"])
    m, v = f"optimizer/{name}/m", f"optimizer/{name}/v"
    operands = (old, m, v, rate, beta1, beta2, float(group["eps"]), Made("step", (), {}))
    return {
        m: Made("average", (_before(name, "m"), g, beta1), {}),
        v: Made("average", (_before(name, "v"), Made("square", (g,), {}), beta2), {}),
        f"params/{name}": Made("adam", operands, {}),
    }


def _rmsprop(group: Mapping[str, Any], name: str, old: str, g: Any, rate: str) -> dict[str, Made]:
    if group["centered"] or group["momentum"]:
        return {}
    slot, rho = f"optimizer/{name}/square", float(group["alpha"])
    return {
        slot: Made("average", (_before(name, "square"), Made("square", (g,), {}), rho), {}),
        f"params/{name}": Made("over_root", (old, g, slot, rate, float(group["eps"])), {}),
    }


def _adagrad(group: Mapping[str, Any], name: str, old: str, g: Any, rate: str) -> dict[str, Made]:
    if group["lr_decay"]:
        return {}
    slot = f"optimizer/{name}/accumulator"
    start = float(group["initial_accumulator_value"])
    before = _before(name, "accumulator").replace("zeros", f"all {start}" if start else "zeros")
    return {
        slot: Made("add", (before, Made("square", (g,), {})), {}),
        f"params/{name}": Made("over_root", (old, g, slot, rate, float(group["eps"])), {}),
    }


RULES = {
    "SGD": _sgd,
    "Adam": _adam,
    "AdamW": _adam,
    "RMSprop": _rmsprop,
    "Adagrad": _adagrad,
}
