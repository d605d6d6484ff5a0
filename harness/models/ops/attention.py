"""Scaled dot-product attention, with its mask and its heads (Vaswani et al. 2017, section 3.2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from harness.models.graph import Node, node
from harness.models.ops.activations import softmax, softmax_backward
from harness.models.ops.op import Array, kin, op

HIDDEN = -1e30  # a score that no softmax sees: finite, so that a row of them has a softmax


class Rule(NamedTuple):
    """How scores are made of queries and keys, and weights of scores; programs differ in each."""

    scale: Callable[[int, int], float] = lambda d, heads: d**-0.5
    mask: Callable[[int, int], Array] | None = None
    over: int = -1
    interleaved: bool = False


RULE = Rule()


def _triangle(t: int, s: int, more: int = 0) -> Array:
    """Which of s keys each of t queries sees: those up to its own place (and `more`)."""
    return np.tri(t, s, more, dtype=bool)


def _split(x: Array, heads: int, interleaved: bool) -> Array:
    """[.., T, D] -> [.., heads, T, D / heads]."""
    if heads < 1 or x.shape[-1] % heads:
        raise ValueError(f"{heads} heads of {x.shape[-1]} units")
    if interleaved:
        parts = np.reshape(x, (*x.shape[:-1], -1, heads))
        return np.moveaxis(parts, -1, -3)
    return np.moveaxis(np.reshape(x, (*x.shape[:-1], heads, -1)), -2, -3)


def _joined(x: Array, interleaved: bool) -> Array:
    """[.., heads, T, d] -> [.., T, heads d]."""
    moved = np.moveaxis(x, -3, -1 if interleaved else -2)
    return np.reshape(moved, (*moved.shape[:-2], -1))


def _scores(q: Array, k: Array, heads: int, causal: bool, rule: Rule) -> Array:
    made = np.asarray(q @ np.swapaxes(k, -1, -2) * rule.scale(q.shape[-1], heads))
    seen = rule.mask or (_triangle if causal else None)
    if seen is not None:
        made = np.where(seen(*made.shape[-2:]), made, made.dtype.type(HIDDEN))
    return made


def _of(
    q: Array, k: Array, v: Array, *, heads: int = 1, causal: bool = False, rule: Rule = RULE
) -> Array:
    q, k, v = (_split(x, heads, rule.interleaved) for x in (q, k, v))
    weights = softmax(_scores(q, k, heads, causal, rule), rule.over)
    return _joined(weights @ v, rule.interleaved)


def _back(
    place: int,
    q: Array,
    k: Array,
    v: Array,
    dy: Array,
    *,
    heads: int = 1,
    causal: bool = False,
    rule: Rule = RULE,
) -> Array:
    """The gradient by q, k or v (`place` 0, 1, 2)."""
    q, k, v, dy = (_split(x, heads, rule.interleaved) for x in (q, k, v, dy))
    scores = _scores(q, k, heads, causal, rule)
    if place == 2:
        made = np.swapaxes(softmax(scores, rule.over), -1, -2) @ dy
    else:
        slope = softmax_backward(scores, dy @ np.swapaxes(v, -1, -2), rule.over)
        slope = slope * rule.scale(q.shape[-1], heads)
        made = np.swapaxes(slope, -1, -2) @ q if place else slope @ k
    return _joined(made, rule.interleaved)


def _rule(n: Node, dy: Node) -> tuple[Node | None, ...]:
    names = ("attention_queries", "attention_keys", "attention_values")
    return tuple(node(name, *n.inputs, dy, **dict(n.args)) for name in names)


@op(_rule, size=lambda q, k, v: v, cancels=True, says="the attention")
def attention(q: Array, k: Array, v: Array, heads: int = 1, causal: bool = False) -> Array:
    """softmax(q k^T / sqrt(d)) v for each head: q [.., T, D], k and v [.., S, D] -> [.., T, D].

    Heads are equal blocks of the last axis, of length d; with `causal`, a query sees no key after
    its own place.
    """
    return _of(q, k, v, heads=heads, causal=causal)


@op(cancels=True, says="the gradient of the queries")
def attention_queries(
    q: Array, k: Array, v: Array, dy: Array, heads: int = 1, causal: bool = False
) -> Array:
    """The gradient of attention by its queries."""
    return _back(0, q, k, v, dy, heads=heads, causal=causal)


@op(cancels=True, says="the gradient of the keys")
def attention_keys(
    q: Array, k: Array, v: Array, dy: Array, heads: int = 1, causal: bool = False
) -> Array:
    """The gradient of attention by its keys."""
    return _back(1, q, k, v, dy, heads=heads, causal=causal)


@op(size=lambda q, k, v, dy: dy, cancels=True, says="the gradient of the values")
def attention_values(
    q: Array, k: Array, v: Array, dy: Array, heads: int = 1, causal: bool = False
) -> Array:
    """The gradient of attention by its values."""
    return _back(2, q, k, v, dy, heads=heads, causal=causal)


def _put_rules() -> None:
    rules = {
        "does not scale the scores": Rule(scale=lambda d, heads: 1.0),
        "divides the scores by d, not by its root": Rule(scale=lambda d, heads: 1.0 / d),
        "multiplies the scores with the root of d": Rule(scale=lambda d, heads: d**0.5),
        "divides the scores by the root of all heads' width": Rule(
            scale=lambda d, heads: (d * heads) ** -0.5
        ),
        "masks nothing": Rule(mask=lambda t, s: np.ones((t, s), bool)),
        "masks keys after a query's place": Rule(mask=_triangle),
        "masks a query's own place too": Rule(mask=lambda t, s: _triangle(t, s, -1)),
        "lets a query see one key after its place": Rule(mask=lambda t, s: _triangle(t, s, 1)),
        "masks keys before a query's place, not after it": Rule(
            mask=lambda t, s: _triangle(s, t).T
        ),
        "takes the softmax over queries, not keys": Rule(over=-2),
        "takes every heads-th unit for a head, not a block of units": Rule(interleaved=True),
    }
    for does, rule in rules.items():

        def other(*x: Array, rule: Rule = rule, **args: Any) -> Array:
            return _of(*x, rule=rule, **args)

        kin("attention", does)(other)
        for place, name in enumerate(("queries", "keys", "values")):

            def back(*x: Array, rule: Rule = rule, place: int = place, **args: Any) -> Array:
                return _back(place, *x, rule=rule, **args)

            kin(f"attention_{name}", does)(back)


_put_rules()
