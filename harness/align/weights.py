"""Layers that are partners because their weights are: what differs between them is to be seen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from harness.align.found import Found, fits
from harness.align.layouts import axis_chains
from harness.align.units import Unit
from harness.trace.chain import Chain, Move


def by_weights(a: Sequence[Unit], b: Sequence[Unit], params: Sequence[Found]) -> Iterator[Found]:
    """The layers whose only products read parameters that are known to be partners.

    So a fused projection is paired with the parts of it, also where their numbers differ.
    """
    of_a, of_b = _by_weight(a), _by_weight(b)
    for match in params:
        xs = tuple(of_a[u.name] for u in match.a if u.name in of_a)
        ys = tuple(of_b[u.name] for u in match.b if u.name in of_b)
        if not xs or not ys or (len(xs), len(ys)) != (len(match.a), len(match.b)):
            continue
        chain = _chain(xs, ys)
        if chain is not None:
            yield Found(xs, ys, chain, "likely", ("layer", "ops"), "", False)


def _by_weight(units: Sequence[Unit]) -> dict[str, Unit]:
    """The layers by the weight of their product, where one layer alone reads it."""
    count = Counter(unit.weight for unit in units)
    return {u.weight: u for u in units if u.weight is not None and count[u.weight] == 1}


def _chain(xs: Sequence[Unit], ys: Sequence[Unit]) -> Chain | None:
    """How the outputs of some layers are those of others; None where they cannot be."""
    if len(xs) == len(ys) == 1:
        chains = axis_chains(xs[0].shape, ys[0].shape)
        return chains[0] if chains else None
    parts = xs if len(ys) == 1 else ys
    axis = len(parts[0].shape) - 1
    sizes = tuple(unit.shape[-1] for unit in parts)
    chain = Chain((Move("join" if parts is xs else "split", (axis, *sizes)),))
    return chain if fits(chain, xs, ys) else None
