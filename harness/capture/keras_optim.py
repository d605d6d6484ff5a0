"""What Keras' optimizers make of a gradient, in the terms of the graph (keras.optimizers)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import keras  # type: ignore[import-untyped]
import tensorflow as tf  # type: ignore[import-untyped]

from harness.models.entries import Made

# The names of slots in a trace: those of the twins, where the twins have them.
SLOTS: Mapping[str, Mapping[str, str]] = {
    "SGD": {"momentums": "velocity"},
    "Adam": {"_momentums": "m", "_velocities": "v", "_velocity_hats": "v_hat"},
    "AdamW": {"_momentums": "m", "_velocities": "v", "_velocity_hats": "v_hat"},
    "RMSprop": {"_velocities": "square", "_momentums": "velocity", "_average_gradients": "mean"},
    "Adagrad": {"_accumulators": "accumulator"},
}


def slots(optimizer: Any) -> Iterator[tuple[Any, str, Any]]:
    """The slots of an optimizer: a variable of the model, the slot's name, its own variable."""
    variables = list(getattr(optimizer, "_trainable_variables", ()) or ())
    names = SLOTS.get(kind_of(optimizer), {})
    for attribute, values in vars(inner(optimizer)).items():
        if attribute in ("_trainable_variables", "_variables") or not variables:
            continue
        if not isinstance(values, list | tuple) or len(values) != len(variables):
            continue
        if any(v is not None and not hasattr(v, "assign") for v in values):
            continue
        for variable, slot in zip(variables, values, strict=True):
            if slot is not None and tuple(slot.shape) == tuple(variable.shape):
                yield variable, names.get(attribute, attribute.strip("_")), slot


def inner(optimizer: Any) -> Any:
    """The optimizer itself, where one that scales the loss is around it."""
    return getattr(optimizer, "inner_optimizer", optimizer)


def kind_of(optimizer: Any) -> str:
    """The name of an optimizer's class."""
    return type(inner(optimizer)).__name__


def hyperparameters(optimizer: Any) -> dict[str, Any]:
    """The numbers of an optimizer by the field's names."""
    own = inner(optimizer)
    found: dict[str, Any] = {"optimizer": kind_of(own)}
    for name, attribute in (
        *(("momentum", "momentum"), ("nesterov", "nesterov"), ("epsilon", "epsilon")),
        *(("beta1", "beta_1"), ("beta2", "beta_2"), ("rho", "rho"), ("clip_norm", "clipnorm")),
        *(("weight_decay", "weight_decay"), ("clip_value", "clipvalue")),
        ("clip_global_norm", "global_clipnorm"),
    ):
        value = getattr(own, attribute, None)
        if isinstance(value, int | float):
            found[name] = value
    return found


def update_of(
    optimizer: Any, variable: Any, name: str, gradient: str, rate: str, step: Made | float
) -> dict[str, Made]:
    """How the slots and the new value of a parameter are made; nothing for unknown optimizers."""
    own = inner(optimizer)
    rule = RULES.get(kind_of(own))
    odd = own.gradient_accumulation_steps or (own.use_ema and own.ema_overwrite_frequency)
    if rule is None or odd or getattr(variable, "constraint", None) is not None:
        return {}
    old = f"params/{name}@step-1|inputs/params/{name}"
    made: dict[str, Made] = rule(own, name, old, gradient, rate, step)
    if made and own.weight_decay and own._use_weight_decay(variable):
        new = made[f"params/{name}"]
        decayed = Made("decay_weights", (new, old, rate, float(own.weight_decay)), {})
        made[f"params/{name}"] = decayed
    return made


def _before(name: str, slot: str, start: float = 0.0) -> str:
    first = f"all {start}" if start else "zeros"
    return f"optimizer/{name}/{slot}@step-1|{first}"


def _sgd(o: Any, name: str, old: str, g: str, rate: str, step: Any) -> dict[str, Made]:
    momentum = float(o.momentum)
    if not momentum:
        return {f"params/{name}": Made("descend", (old, g, rate), {})}
    slot = f"optimizer/{name}/velocity"
    op = "nesterov_keras" if o.nesterov else "along_velocity_keras"
    return {
        slot: Made("velocity_keras", (_before(name, "velocity"), g, momentum, rate), {}),
        f"params/{name}": Made(op, (old, slot, g, rate, momentum), {}),
    }


def _adam(o: Any, name: str, old: str, g: str, rate: str, step: Any) -> dict[str, Made]:
    if o.amsgrad:
        return {}
    beta1, beta2 = float(o.beta_1), float(o.beta_2)
    m, v = f"optimizer/{name}/m", f"optimizer/{name}/v"
    powers = (_cast(beta1), _cast(beta2))
    operands = (old, m, v, rate, *powers, float(o.epsilon), step)
    return {
        m: Made("average", (_before(name, "m"), g, beta1), {}),
        v: Made("average", (_before(name, "v"), Made("square", (g,), {}), beta2), {}),
        f"params/{name}": Made("adam_keras", operands, {}),
    }


def _cast(beta: float) -> float:
    """A number as Adam raises it to the power of the step: ops.cast makes a float32 of it first."""
    with tf.init_scope():
        return float(keras.ops.cast(beta, "float64"))


def _rmsprop(o: Any, name: str, old: str, g: str, rate: str, step: Any) -> dict[str, Made]:
    if o.centered or o.momentum:
        return {}
    slot, rho = f"optimizer/{name}/square", float(o.rho)
    return {
        slot: Made("average", (_before(name, "square"), Made("square", (g,), {}), rho), {}),
        f"params/{name}": Made("over_root_inside", (old, g, slot, rate, float(o.epsilon)), {}),
    }


def _adagrad(o: Any, name: str, old: str, g: str, rate: str, step: Any) -> dict[str, Made]:
    slot = f"optimizer/{name}/accumulator"
    before = _before(name, "accumulator", float(o.initial_accumulator_value))
    return {
        slot: Made("add", (before, Made("square", (g,), {})), {}),
        f"params/{name}": Made("over_root_inside", (old, g, slot, rate, float(o.epsilon)), {}),
    }


RULES = {
    "SGD": _sgd,
    "Adam": _adam,
    "AdamW": _adam,
    "RMSprop": _rmsprop,
    "Adagrad": _adagrad,
}
