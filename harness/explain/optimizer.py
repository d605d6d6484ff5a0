"""Causes in the optimizer: its slots and the new parameters, recomputed from what goes in.

Formulas are those of the twins (pt_impl/optim.py and its mirrors, with their sources); what differs
between programs is where epsilon stands, what is bias-corrected, and what weight decay is added to.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from harness.explain.case import Array, Case, Cause, Side
from harness.explain.trial import (
    ALL,
    Guess,
    figure,
    number,
    numbers,
    setting,
    tell,
    wide,
)

SLOTS = {
    "momentum": ("velocity",),
    "adam": ("m", "v"),
    "rmsprop": ("square",),
    "adagrad": ("accumulator",),
    "sgd": (),
}
EPSILONS = (1e-7, 1e-8, 1e-6, 1e-5, 1e-3, 1e-10, 1e-12, 1e-16, 0.0)
STARTS = (0.1, 1.0, 0.01, 1e-6)  # what programs start an accumulator from


class Inputs(NamedTuple):
    """What goes into the update of a parameter on one side: float64 arrays of its shape.

    `g` is the clipped gradient, `raw` the one before clipping, `old` and `new` the slots before and
    after the step, `seen` whether a row's token was in the batch (embedding only).
    """

    p: Array
    g: Array
    raw: Array
    old: dict[str, Array]
    new: dict[str, Array]
    lr: float
    lr_before: float | None
    seen: Array | None


class How(NamedTuple):
    """One way to compute an update: the settings of the optimizer, and where they act."""

    optimizer: str
    step: int
    mu: float = 0.9
    beta1: float = 0.9
    beta2: float = 0.999
    rho: float = 0.99
    eps: float = 1e-8
    decay: float = 0.0
    decoupled: bool = False
    place: str = "root"
    correct_m: bool = True
    correct_v: bool = True
    convention: str = "torch"
    decays: str = "lr"
    raw: bool = False
    lazy: bool = False
    lr: str = "now"


FIELDS = dict(
    mu="momentum", beta1="beta1", beta2="beta2", rho="rho", eps="epsilon", decay="weight_decay"
)
Variant = tuple[str, How]


def usual(case: Case) -> How:
    """The update as the settings of the reference say, or as its slots tell."""
    name = parameter(case)
    kinds = [k for k, slots in SLOTS.items() if slots and _has(case, name, slots)]
    kind = str(setting(case, "optimizer", kinds[0] if kinds else "sgd"))
    how = How(kind, case.step)
    for field, key in FIELDS.items():
        value = number(case, key)
        how = how if value is None else _with(how, field, value)
    return how._replace(decoupled=bool(setting(case, "decoupled", False)))


def _with(how: How, field: str, value: float) -> How:
    changed: dict[str, Any] = {field: value}
    return how._replace(**changed)


def _has(case: Case, name: str, slots: tuple[str, ...]) -> bool:
    return all(case.get(f"optimizer/{name}/{slot}") is not None for slot in slots)


def parameter(case: Case) -> str:
    """The parameter whose new value or slot the tensor is."""
    if case.tensor.startswith("params/"):
        return case.tensor.removeprefix("params/")
    return case.tensor.removeprefix("optimizer/").rpartition("/")[0]


def gather(case: Case, side: Side, rows: slice) -> Inputs | None:
    """What the update of a side starts from; None where it is not traced."""
    name = parameter(case)
    p, raw = case.before(name, side), case.get(f"grads/{name}", side)
    g = case.get(f"update/clipped/{name}", side)
    g, raw = (raw if g is None else g), (g if raw is None else raw)
    lr = _rate(case, side, 0)
    if p is None or g is None or raw is None or lr is None:
        return None
    if not p.shape == g.shape == raw.shape == case.b.shape:
        return None
    old: dict[str, Array] = {}
    new: dict[str, Array] = {}
    for slot in (slot for slots in SLOTS.values() for slot in slots):
        full = f"optimizer/{name}/{slot}"
        after = case.get(full, side)
        before = case.get(full, side, back=1) if case.step > 1 else None
        if before is None and case.step == 1 and after is not None:
            before = np.zeros_like(after)
        for store, value in ((old, before), (new, after)):
            if value is not None and value.shape == p.shape:
                store[slot] = np.asarray(value[rows], np.float64)
    x = case.get("inputs/x", side) if name == "embedding" else None
    seen = None
    if x is not None:
        seen = np.isin(np.arange(len(p)), x)[rows][:, None]
    p, g, raw = (np.asarray(v[rows], np.float64) for v in (p, g, raw))
    return Inputs(p, g, raw, old, new, lr, _rate(case, side, 1), seen)


def _rate(case: Case, side: Side, back: int) -> float | None:
    traced = case.get("update/learning_rate", side, back)
    if traced is not None and traced.size == 1:
        return float(traced.reshape(()))
    settings = case.settings_a if side == "a" else case.settings_b
    value = settings.get("lr", setting(case, "lr"))
    return float(value) if isinstance(value, int | float) and not back else None


def gradient(u: Inputs, how: How) -> Array:
    """The gradient that the rule is fed: with L2 weight decay in it, if that is coupled."""
    g = u.raw if how.raw else u.g
    return g + how.decay * u.p if how.decay and not how.decoupled else g


def new_slot(u: Inputs, slot: str, how: How) -> Array | None:
    """A slot after the step, from the slot before; None where that is not traced."""
    if slot not in u.old:
        return None
    g, old = gradient(u, how), u.old[slot]
    if slot == "velocity":
        made = how.mu * old + _pushed(u, g, how)
    elif slot == "m":
        made = how.beta1 * old + (1 - how.beta1) * g
    elif slot == "v":
        made = how.beta2 * old + (1 - how.beta2) * g * g
    elif slot == "square":
        made = how.rho * old + (1 - how.rho) * g * g
    else:
        made = old + g * g
    if how.lazy and u.seen is not None:
        made = np.where(u.seen, made, old)
    return np.asarray(made)


def _pushed(u: Inputs, g: Array, how: How) -> Array:
    """What a step adds to the velocity, by convention."""
    if how.convention == "keras":
        return -u.lr * g
    if how.convention == "inside":
        return u.lr * g
    return (1 - how.mu) * g if how.convention == "dampened" else g


def new_parameter(u: Inputs, how: How) -> Array | None:
    """The parameter after the step, from the slots after it; None where they are not traced."""
    moved = _direction(u, how)
    lr = {"now": u.lr, "before": u.lr_before, "twice": 2 * u.lr}[how.lr]
    if moved is None or lr is None:
        return None
    p = u.p - lr * moved
    if how.decay and how.decoupled:
        share = {"lr": lr * how.decay, "alone": how.decay, "after": lr * how.decay}[how.decays]
        p = p - share * (p if how.decays == "after" else u.p)
    if how.lazy and u.seen is not None:
        p = np.where(u.seen, p, u.p)
    return np.asarray(p)


def _direction(u: Inputs, how: How) -> Array | None:
    """What is multiplied by the learning rate and taken off."""
    g = gradient(u, how)
    if how.optimizer == "sgd":
        return g
    slots = [u.new.get(slot) for slot in SLOTS.get(how.optimizer, ())]
    if not slots or any(s is None for s in slots):
        return None
    if how.optimizer == "momentum":
        return _along_velocity(u, g, slots[0], how)
    if how.optimizer == "adam":
        return _adam(slots[0], slots[1], how)
    return g / _root(slots[0], how.eps, how.place)


def _along_velocity(u: Inputs, g: Array, velocity: Array | None, how: How) -> Array:
    v = np.asarray(velocity)
    if how.convention in ("keras", "inside", "keras-nesterov") and not u.lr:
        return v
    ways: dict[str, Callable[[], Array]] = {
        "torch": lambda: v,
        "dampened": lambda: v,
        "keras": lambda: -v / u.lr,
        "inside": lambda: v / u.lr,
        "nesterov": lambda: g + how.mu * v,
        "keras-nesterov": lambda: g - how.mu * v / u.lr,
        "old": lambda: u.old.get("velocity", v),
    }
    return ways[how.convention]()


def _adam(m: Array | None, v: Array | None, how: How) -> Array | None:
    m, v = np.asarray(m), np.asarray(v)
    if how.step < 1:
        return None
    of_m = 1 - how.beta1**how.step if how.correct_m else 1.0
    of_v = 1 - how.beta2**how.step if how.correct_v else 1.0
    if not of_m or not of_v:
        return None
    if how.place in ("root", "inside"):
        return m / of_m / _root(v / of_v, how.eps, how.place)
    # The corrections are moved into the learning rate (Kingma and Ba 2015, section 2, the last
    # lines; Keras does so), so that epsilon stands beside the root that is not corrected.
    place = how.place.removesuffix("-uncorrected") if how.place != "uncorrected" else "root"
    return m * (math.sqrt(of_v) / of_m) / _root(v, how.eps, place)


def _root(v: Array | None, eps: float, place: str) -> Array:
    v = np.asarray(v)
    return np.asarray(np.sqrt(v + eps) if place == "inside" else np.sqrt(v) + eps)


def guess(case: Case, words: str, how: How) -> Guess:
    """A guess that the tensor of the case is computed in the way `how`."""

    def value(side: Side, rows: slice) -> Array | None:
        u = gather(case, side, rows)
        if u is None:
            return None
        if case.tensor.startswith("params/"):
            return new_parameter(u, how)
        return new_slot(u, case.tensor.rpartition("/")[2], how)

    return Guess(words, value)


def tried(case: Case, name: str, base: Variant, ways: Iterator[Variant]) -> Cause | None:
    """The cause that one side updates in one of the `ways`, the other in the way `base`."""
    return tell(case, name, [guess(case, words, how) for words, how in (base, *ways)])


def epsilon(case: Case) -> Cause | None:
    """Epsilon of another size, or in another place."""
    how = usual(case)
    if how.optimizer not in ("adam", "rmsprop", "adagrad"):
        return None
    places = {"root": "beside the root", "inside": "inside the root"}
    if how.optimizer == "adam":
        places |= {
            "uncorrected": "beside the root that is not bias-corrected (as Keras does)",
            "inside-uncorrected": "inside the root that is not bias-corrected",
        }
    base = f"adds epsilon {figure(how.eps)} {places['root']}", how

    def ways() -> Iterator[Variant]:
        for eps in numbers(case, "epsilon", *EPSILONS):
            for place, words in places.items():
                # A large epsilon inside a root swallows what stands beside it: anything fits.
                usual_size = eps in (*numbers(case, "epsilon"), *EPSILONS[:3])
                if (eps, place) != (how.eps, "root") and (usual_size or place == "root"):
                    says = f"adds epsilon {figure(eps)} {words}" if eps else "adds no epsilon"
                    yield says, how._replace(eps=eps, place=place)

    return tried(case, "epsilon", base, ways())


def bias_correction(case: Case) -> Cause | None:
    """Adam's bias correction left out, or with another count of steps."""
    how = usual(case)
    if how.optimizer != "adam":
        return None
    ways: list[Variant] = [
        ("corrects no bias", how._replace(correct_m=False, correct_v=False)),
        ("corrects the bias of v alone", how._replace(correct_m=False)),
        ("corrects the bias of m alone", how._replace(correct_v=False)),
        (f"counts one step more (step {case.step + 1})", how._replace(step=case.step + 1)),
    ]
    if case.step > 1:
        words = f"counts one step less (step {case.step - 1})"
        ways.append((words, how._replace(step=case.step - 1)))
        ways.append(("counts step 1 still", how._replace(step=1)))
    base = f"corrects the bias of both moments at step {case.step}", how
    return tried(case, "bias-correction", base, iter(ways))


def momentum_convention(case: Case) -> Cause | None:
    """The learning rate inside the velocity, dampening, or Nesterov's step."""
    how = usual(case)
    if how.optimizer != "momentum":
        return None
    base = "keeps the learning rate outside the velocity (as torch does)", how
    words = {
        "keras": "keeps -lr g inside the velocity (as Keras does)",
        "inside": "keeps lr g inside the velocity",
        "dampened": "dampens, (1 - momentum) g goes into the velocity",
        "nesterov": "takes Nesterov's step, g + momentum v",
        "keras-nesterov": "takes Nesterov's step with lr inside the velocity (as Keras does)",
        "old": "moves along the velocity of the step before",
    }
    ways = ((says, how._replace(convention=key)) for key, says in words.items())
    return tried(case, "momentum-convention", base, ways)


def initial_accumulator(case: Case) -> Cause | None:
    """A slot that starts from another number than zero."""
    if case.step != 1 or not case.tensor.endswith(("/accumulator", "/square", "/v")):
        return None
    how, slot = usual(case), case.tensor.rpartition("/")[2]

    def start(words: str, first: float) -> Guess:
        def value(side: Side, rows: slice) -> Array | None:
            u = gather(case, side, rows)
            if u is None or slot not in u.old:
                return None
            return new_slot(u._replace(old={slot: np.full(u.p.shape, first)}), slot, how)

        return Guess(words, value)

    guesses = [start(f"starts its {slot} from {figure(first)}", first) for first in (0.0, *STARTS)]
    return tell(case, "initial-accumulator", guesses)


def weight_decay(case: Case) -> Cause | None:
    """Weight decay left out, decoupled or coupled, of another size, or at another place."""
    if case.tensor.startswith(("grads/", "update/clipped/")):
        return _decayed_gradient(case)
    how = usual(case)
    sizes = [d for d in numbers(case, "weight_decay") if d > 0]
    kinds = {False: "into the gradient (L2)", True: "decoupled, lr * decay * p"}

    def words(h: How) -> str:
        if not h.decay:
            return "does not decay this parameter"
        return f"decays by {figure(h.decay)}, {kinds[h.decoupled]}"

    def ways() -> Iterator[Variant]:
        if how.decay:
            yield words(how._replace(decay=0.0)), how._replace(decay=0.0)
        for size in sizes:
            for way in (how._replace(decay=size, decoupled=d) for d in (False, True)):
                if way != how:
                    yield words(way), way
            alone = how._replace(decay=size, decoupled=True, decays="alone")
            yield f"decays by {figure(size)} p, without the learning rate", alone
            yield f"decays by {figure(size)} after the step", alone._replace(decays="after")

    return tried(case, "weight-decay", (words(how), how), ways())


def _decayed_gradient(case: Case) -> Cause | None:
    """A gradient with a share of the parameter in it: L2 regularisation inside the loss."""
    name = case.tensor.removeprefix("grads/").removeprefix("update/clipped/")
    a, b, p = (wide(x) for x in (case.a, case.b, case.before(name)))
    if p is None or a is None or b is None or p.shape != b.shape or p.size < 3:
        return None
    square = float(np.vdot(p, p))
    share = float(np.vdot(a - b, p)) / square if square else 0.0
    left = case.settled(b + share * p, case.a) if share else None
    if left is None:
        return None
    odd, plain = case.labels if share > 0 else case.labels[::-1]
    known = [d for d in numbers(case, "weight_decay") if d]
    named = " (the weight decay)" if any(abs(abs(share) / d - 1) < 1e-3 for d in known) else ""
    words = (
        f"{odd} has {figure(abs(share))}{named} times the parameter in its gradient, {plain} not"
    )
    claim = f"{odd} has {abs(share):.3g} times the parameter in its gradient"
    return Cause("weight-decay", f"{case.tensor}: {words} (to {left:.2g} eps)", left, claim=claim)


def optimizer_formula(case: Case) -> Cause | None:
    """Another rule of update, or one that is fed something else."""
    how = usual(case)
    base = f"updates by {how.optimizer}", how
    found = tried(case, "optimizer-formula", base, _rules(case, how))
    if found or not case.tensor.startswith("params/"):
        return found or tell(case, "optimizer-formula", list(_slot_guesses(case, how)))
    return tell(case, "optimizer-formula", [guess(case, *base), *_frozen(case, how)])


def _rules(case: Case, how: How) -> Iterator[Variant]:
    """The same rule with other numbers or inputs, and other rules."""
    yield "feeds the gradient before clipping", how._replace(raw=True)
    if how.optimizer == "adam":
        swapped = how._replace(beta1=how.beta2, beta2=how.beta1)
        slot = case.tensor.rpartition("/")[2]
        words = {"m": "averages gradients with beta2", "v": "averages squares with beta1"}
        yield words.get(slot, "swaps beta1 and beta2"), swapped
    for field, key in list(FIELDS.items())[:4]:
        for value in numbers(case, key, 0.9, 0.99, 0.95, 0.999):
            if value != getattr(how, field):
                yield f"takes {key} {figure(value)}", _with(how, field, value)
    if parameter(case) == "embedding":
        yield "leaves rows of tokens that are not in the batch alone", how._replace(lazy=True)
    if case.tensor.startswith("params/"):
        yield "moves twice as far (an update or a learning rate twice)", how._replace(lr="twice")
        yield "takes the learning rate of the step before", how._replace(lr="before")
        for kind in SLOTS:
            if kind != how.optimizer:
                yield f"updates by {kind}", how._replace(optimizer=kind)


def _slot_guesses(case: Case, how: How) -> Iterator[Guess]:
    """Slots that are not averaged, not squared, not kept."""
    slot = case.tensor.rpartition("/")[2]
    yield guess(case, f"updates by {how.optimizer}", how)
    rate = {"m": how.beta1, "v": how.beta2, "square": how.rho, "velocity": how.mu}.get(slot, 1.0)
    formulas: dict[str, Callable[[Array, Array], Array]] = {
        "keeps the gradient itself": lambda old, g: g,
        "keeps the square of the gradient, not averaged": lambda old, g: g * g,
        "adds the square of the gradient, not averaged": lambda old, g: rate * old + g * g,
        "adds up squares for ever": lambda old, g: old + g * g,
        "averages the gradient, not its square": lambda old, g: rate * old + (1 - rate) * g,
        "averages absolute gradients": lambda old, g: rate * old + (1 - rate) * np.abs(g),
        "swaps its weights": lambda old, g: (
            (1 - rate) * old + rate * (g if slot in ("m", "velocity") else g * g)
        ),
        "does not update it": lambda old, g: old,
        "starts from zero at every step": lambda old, g: (
            (1 - rate) * (g if slot in ("m", "velocity") else g * g)
        ),
    }

    def made(words: str, formula: Callable[[Array, Array], Array]) -> Guess:
        def value(side: Side, rows: slice) -> Array | None:
            u = gather(case, side, rows)
            return (
                None if u is None or slot not in u.old else formula(u.old[slot], gradient(u, how))
            )

        return Guess(words, value)

    for words, formula in formulas.items():
        yield made(words, formula)


def _frozen(case: Case, how: How) -> Iterator[Guess]:
    """Rows of a parameter that do not move (of one that is still as a whole, `stale` tells)."""

    if case.b.ndim != 2:
        return
    before = {side: case.before(parameter(case), side) for side in ("a", "b")}
    for side, mine in (("a", case.a), ("b", case.b)):
        p = before[side]
        if p is None or p.shape != mine.shape:
            continue
        fixed = np.flatnonzero((mine == p).all(axis=1))
        if not 0 < fixed.size < len(p):
            continue

        def partly(at: Side, rows: slice, fixed: Array = fixed) -> Array | None:
            u = gather(case, at, ALL)
            made = None if u is None else new_parameter(u, how)
            if u is None or made is None:
                return None
            made[fixed] = u.p[fixed]
            return made[rows]

        some = ", ".join(map(str, fixed[:6])) + (", .." if fixed.size > 6 else "")
        yield Guess(f"does not update row{'s' * (fixed.size > 1)} {some} of it", partly)
