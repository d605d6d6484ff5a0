"""Norms of gradients, and clipping by them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from harness.models.ops.op import OPS, Array, kin, op, related

N = Any  # a number: a Python float, or an array of no axes


@op(over_time=True, says="the global norm")
def global_norm(*gradients: Array) -> Array:
    """The L2 norm of all gradients taken as one vector (Pascanu et al. 2013, algorithm 1)."""
    return np.asarray(np.sqrt(np.sum([np.sum(g * g) for g in gradients], axis=0)))


@op(over_time=True)
def global_norm_squared(*gradients: Array) -> Array:
    """The square of the global norm."""
    return np.asarray(np.sum([np.sum(g * g) for g in gradients], axis=0))


@op(over_time=True)
def absolute_norm(*gradients: Array) -> Array:
    """The sum of all absolute elements (L1)."""
    return np.asarray(np.sum([np.sum(np.abs(g)) for g in gradients], axis=0))


@op(over_time=True)
def largest_norm(*gradients: Array) -> Array:
    """The largest absolute element (L-infinity)."""
    return np.asarray(np.max([np.max(np.abs(g)) for g in gradients], axis=0))


@op(over_time=True)
def sum_of_norms(*gradients: Array) -> Array:
    """The sum of the tensors' own L2 norms."""
    return np.asarray(np.sum([np.sqrt(np.sum(g * g)) for g in gradients], axis=0))


@op(over_time=True)
def largest_of_norms(*gradients: Array) -> Array:
    """The largest of the tensors' own L2 norms."""
    return np.asarray(np.max([np.sqrt(np.sum(g * g)) for g in gradients], axis=0))


@op(over_time=True)
def root_mean_square(*gradients: Array) -> Array:
    """The root of the mean, not of the sum, of all squares."""
    count = sum(g.size for g in gradients)
    return np.asarray(global_norm(*gradients) / math.sqrt(count))


related(
    {
        "global_norm": "takes the L2 norm of all gradients",
        "global_norm_squared": "leaves out the root of the norm",
        "absolute_norm": "takes the L1 norm, the sum of absolute elements",
        "largest_norm": "takes the largest absolute element for the norm",
        "sum_of_norms": "adds up the norms of the tensors",
        "largest_of_norms": "takes the largest of the tensors' norms",
        "root_mean_square": "takes the root of the mean square, not of the sum",
    }
)


@op(over_time=True, says="the squares")
def squares(g: Array) -> Array:
    """The sum of the squares of all elements."""
    return np.asarray(np.sum(g * g))


@op(over_time=True)
def absolutes(g: Array) -> Array:
    """The sum of all absolute elements."""
    return np.asarray(np.sum(np.abs(g)))


@op(over_time=True)
def mean_of_squares(g: Array) -> Array:
    """The mean of the squares of all elements."""
    return np.asarray(np.mean(g * g))


@op(over_time=True)
def norm_of_one(g: Array) -> Array:
    """The root of the sum of the squares."""
    return np.asarray(np.sqrt(np.sum(g * g)))


related(
    {
        "absolutes": "adds up absolute elements, not squares",
        "mean_of_squares": "takes the mean of the squares, not their sum",
        "norm_of_one": "adds up norms, not squares",
    },
    base="squares",
)


@op(over_time=True, says="the root")
def root(x: Array) -> Array:
    """The square root of a number."""
    return np.asarray(np.sqrt(x))


@op(over_time=True)
def no_root(x: Array) -> Array:
    """A number itself."""
    return np.asarray(x)


related({"no_root": "leaves out the root"}, base="root")


@op(size=lambda g, norm, limit: g, says="clipping")
def clip_by_norm(g: Array, norm: N, limit: N) -> Array:
    """g limit / max(norm, limit): all gradients scaled so that their norm is at most `limit`."""
    return np.asarray(g * np.asarray(limit / np.maximum(norm, limit), g.dtype))


@op(size=lambda g, norm, limit: g, says="clipping")
def clip_elements(g: Array, norm: N, limit: N) -> Array:
    """Each element clamped to +-limit; `norm` is not read."""
    return np.asarray(np.clip(g, -limit, limit))


@op(size=lambda g, norm, limit: g, says="clipping")
def clip_tensor(g: Array, norm: N, limit: N) -> Array:
    """The tensor scaled so that its own norm is at most `limit`; `norm` is not read."""
    return clip_by_norm(g, np.sqrt(np.sum(g * g)), limit)


@op(size=lambda g, norm, limit: g, says="no clipping")
def unclipped(g: Array, norm: N, limit: N) -> Array:
    """g itself; neither `norm` nor `limit` is read."""
    return np.asarray(g)


@op(size=lambda g, norm, limit: g)
def clip_torch(g: Array, norm: N, limit: N) -> Array:
    """g min(1, limit / (norm + 1e-6)): torch.nn.utils.clip_grad_norm_'s coefficient."""
    return np.asarray(g * np.minimum(1, limit / (norm + 1e-6)))


@op(size=lambda g, norm, limit: g)
def scale_to_norm(g: Array, norm: N, limit: N) -> Array:
    """g limit / norm, also where the norm is under the limit."""
    return np.asarray(g * (limit / norm))


@op(size=lambda g, norm, limit: g)
def clip_from_above(g: Array, norm: N, limit: N) -> Array:
    """min(g, limit): nothing holds from below."""
    return np.asarray(np.minimum(g, limit))


@op(size=lambda g, norm, limit: g)
def clip_twice(g: Array, norm: N, limit: N) -> Array:
    """g (limit / max(norm, limit))^2."""
    return np.asarray(g * (limit / np.maximum(norm, limit)) ** 2)


@op(size=lambda g, norm, limit: g)
def clip_by_root(g: Array, norm: N, limit: N) -> Array:
    """g limit / max(norm^2, limit): the norm's root left out."""
    return np.asarray(g * (limit / np.maximum(norm * norm, limit)))


@op(size=lambda g, norm, limit: g)
def clip_by_sum(g: Array, norm: N, limit: N) -> Array:
    """g limit / (norm + limit)."""
    return np.asarray(g * (limit / (norm + limit)))


@op(size=lambda g, norm, limit: g)
def clip_by_power(g: Array, norm: N, limit: N) -> Array:
    """g sqrt(limit / max(norm, limit))."""
    return np.asarray(g * np.sqrt(limit / np.maximum(norm, limit)))


related(
    {
        "clip_by_norm": "scales all gradients by their global norm",
        "clip_elements": "clamps each element of the gradients",
        "clip_tensor": "clips each tensor by its own norm",
        "unclipped": "does not clip",
        "clip_torch": "adds 1e-6 to the norm before it divides by it (as torch does)",
        "scale_to_norm": "scales gradients to the limit also where their norm is under it",
        "clip_from_above": "clamps elements from above alone",
        "clip_twice": "clips twice, by the same norm",
        "clip_by_root": "leaves out the root of the norm",
        "clip_by_sum": "divides by the sum of norm and limit",
        "clip_by_power": "scales by the root of limit over norm",
    }
)


@kin("clip_by_norm", "scales to the limit, by norm + 1e-6, also where that is more", rare=True)
def _torch_always(g: Array, norm: N, limit: N) -> Array:
    return np.asarray(g * (limit / (norm + 1e-6)))


# Clipping goes element by element, but where it takes a norm of its own.
for _name in ("clip_by_norm", "clip_elements", "unclipped"):
    OPS[_name] = OPS[_name]._replace(rows="each")
