"""Updates of a parameter that are one optimizer's step, as its stages say."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from harness.models.evaluate import FILL
from harness.models.graph import Graph, Node, is_ref, name_of

PARAMS, SLOTS = "params/", "optimizer/"
Kind = Literal["sgd", "momentum", "adam", "rmsprop", "adagrad"]
# Rules by the op of the new weights: the kind, and whether Nesterov's step is taken.
VELOCITIES = {
    "along_velocity": ("velocity", False),
    "nesterov": ("velocity", True),
    "along_velocity_keras": ("velocity_keras", False),
    "nesterov_keras": ("velocity_keras", True),
}


class Update(NamedTuple):
    """One step of an optimizer on one parameter.

    `rule` is the op that makes the new weights; `before` the slots before the step by name, and
    `numbers` the hyperparameters; `decay` is decoupled weight decay, `l2` what is added to the
    gradient. `wanted` is "params", or the slot that is asked for.
    """

    kind: Kind
    rule: str
    p: Node
    g: Node
    lr: Node
    before: dict[str, Node]
    numbers: dict[str, Any]
    decay: float = 0.0
    l2: float = 0.0
    wanted: str = "params"


def update_of(graph: Graph, tensor: str) -> Update | None:
    """The step that makes a parameter, or a slot of one; None where it is no optimizer's whole."""
    if tensor.startswith(PARAMS):
        return _step(graph, tensor)
    if not tensor.startswith(SLOTS):
        return None
    name, _, slot = tensor.removeprefix(SLOTS).rpartition("/")
    found = _step(graph, PARAMS + name)
    return found._replace(wanted=slot) if found and slot in found.before else None


def _step(graph: Graph, tensor: str) -> Update | None:
    value, decay = graph.value(tensor), 0.0
    if value is None:
        return None
    if value.op == "decay_weights":
        value, old, _, share = value.inputs
        if not value.inputs or value.inputs[0] is not old or share.op != "const":
            return None
        decay = share.arg("value")
    found = _rule(graph, value)
    if found is None or not is_ref(found.p) or not name_of(found.p).startswith(PARAMS):
        return None
    if found.g.op == "decay_gradient" and found.g.inputs[1] is found.p:
        g, _, share = found.g.inputs
        if share.op != "const":
            return None
        found = found._replace(g=g, l2=share.arg("value"))
    return found._replace(decay=decay)


def _rule(graph: Graph, x: Node) -> Update | None:
    if x.op == "descend":
        p, g, lr = x.inputs
        return Update("sgd", x.op, p, g, lr, {}, {})
    if x.op in VELOCITIES:
        return _velocity(graph, x)
    if x.op in ("adam", "adam_keras"):
        return _adam(graph, x)
    return _over_root(graph, x) if x.op in ("over_root", "over_root_inside") else None


def _velocity(graph: Graph, x: Node) -> Update | None:
    p, v, g, lr, momentum = x.inputs
    slot = _slot(graph, v)
    op, nesterov = VELOCITIES[x.op]
    if slot is None or slot.op != op or slot.inputs[1:] != (g, momentum, lr):
        return None
    numbers = {"momentum": _number(momentum), "nesterov": nesterov}
    return _known(Update("momentum", x.op, p, g, lr, {_last(v): slot.inputs[0]}, numbers))


def _adam(graph: Graph, x: Node) -> Update | None:
    p, m, v, lr, *numbers = x.inputs
    first, second = _slot(graph, m), _slot(graph, v)
    if first is None or second is None or first.op != "average" or second.op != "average":
        return None
    g, squared = first.inputs[1], second.inputs[1]
    if squared.op != "square" or squared.inputs[0] is not g or numbers[3].op != "step":
        return None
    named = dict(zip(("beta1", "beta2", "epsilon"), map(_number, numbers), strict=False))
    if (_number(first.inputs[2]), _number(second.inputs[2])) != (named["beta1"], named["beta2"]):
        return None
    named["more"] = numbers[3].arg("more", 0)
    before = {_last(m): first.inputs[0], _last(v): second.inputs[0]}
    return _known(Update("adam", x.op, p, g, lr, before, named))


def _over_root(graph: Graph, x: Node) -> Update | None:
    p, g, s, lr, epsilon = x.inputs
    slot = _slot(graph, s)
    if slot is None or slot.op not in ("average", "add") or len(slot.inputs) < 2:
        return None
    if slot.inputs[1].op != "square" or slot.inputs[1].inputs[0] is not g:
        return None
    numbers = {"epsilon": _number(epsilon)}
    if slot.op == "average":
        numbers["rho"] = _number(slot.inputs[2])
    kind: Kind = "rmsprop" if slot.op == "average" else "adagrad"
    return _known(Update(kind, x.op, p, g, lr, {_last(s): slot.inputs[0]}, numbers))


def _known(made: Update) -> Update | None:
    """The same, where all numbers are known and slots are read from the step before."""
    fine = all(is_ref(x) for x in made.before.values()) and None not in made.numbers.values()
    return made if fine else None


def _slot(graph: Graph, x: Node) -> Node | None:
    """How a slot was made that is read after this step."""
    if not is_ref(x) or x.arg("back") or not name_of(x).startswith(SLOTS):
        return None
    return graph.value(name_of(x))


def _last(x: Node) -> str:
    return name_of(x).rpartition("/")[2]


def _number(x: Node) -> Any:
    return x.arg("value") if x.op == "const" else None


def is_new(update: Update, step: int) -> bool:
    """Whether the slots are those with which an optimizer begins: zeros."""
    return all(
        x.arg("first") == "zeros" and x.arg("back") >= step for x in update.before.values()
    ) and not any(str(x.arg("first")).startswith(FILL) for x in update.before.values())
