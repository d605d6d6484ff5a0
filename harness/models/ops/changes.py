"""What can be done to a tensor: the ops that an edit of an expression puts in.

None of these is part of a model; each is a way in which a program's tensor can be another's.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from harness.models.ops.op import Array, op

# Explicit bits of significand. TF32 has float32's range, float16 a range of its own.
FORMATS = {"bfloat16": 7, "tf32": 10, "float16": 10, "float32": 23}


def same_size(x: float | None) -> float | None:
    """What is only put elsewhere is as large as it was."""
    return x


@op()
def rounded(x: Array, to: str, cut: bool = False) -> Array:
    """x rounded to the nearest number of a format, ties to even; or cut off, toward zero."""
    x = np.asarray(x)
    if x.dtype.kind != "f":
        return x
    if to == "float16" and not cut:
        with np.errstate(over="ignore"):
            return x.astype(np.float16).astype(x.dtype)
    word: Any = np.uint32 if x.dtype == np.float32 else np.uint64
    width = 23 if x.dtype == np.float32 else 52
    if x.dtype not in (np.float32, np.float64) or FORMATS[to] >= width:
        return x
    drop, one = word(width - FORMATS[to]), word(1)
    bits: Array = np.ascontiguousarray(x).view(word)
    if not cut:
        bits = bits + ((one << (drop - one)) - one) + ((bits >> drop) & one)
    made = ((bits >> drop) << drop).view(x.dtype).reshape(x.shape)
    return np.where(np.isfinite(x), made, x)


@op()
def rows(x: Array, which: tuple[int, ...]) -> Array:
    """Some rows of the first axis."""
    return np.asarray(x[list(which)])


@op()
def columns(x: Array, which: tuple[int, ...]) -> Array:
    """Some places of the last axis."""
    return np.asarray(x[..., list(which)])


@op()
def times(x: Array, by: float) -> Array:
    """x times a number."""
    return np.asarray(x * by)


@op()
def reciprocal(s: Array) -> Array:
    """1 over a scalar."""
    return np.asarray(1 / np.asarray(s))


@op()
def plus(x: Array, by: float) -> Array:
    """x plus a number."""
    return np.asarray(x + by)


@op()
def zeros(x: Array) -> Array:
    """Zeros of x's shape."""
    return np.zeros_like(x)


@op()
def moved(x: Array, axis: int, by: int) -> Array:
    """x moved by one along an axis; NaN, which may be anything, where nothing is moved to."""
    made = np.full(x.shape, np.nan)
    to, source = [slice(None)] * x.ndim, [slice(None)] * x.ndim
    to[axis] = slice(by, None) if by > 0 else slice(None, by)
    source[axis] = slice(None, -by) if by > 0 else slice(-by, None)
    made[tuple(to)] = x[tuple(source)]
    return made


@op()
def rolled(x: Array, axis: int, by: int) -> Array:
    """x moved along an axis, what leaves it at one end coming in at the other."""
    return np.roll(x, by, axis)


@op(size=same_size, says="the tensor in reverse order")
def flipped(x: Array, axis: int) -> Array:
    """x in reverse order along an axis."""
    return np.flip(x, axis)


@op()
def blanked(x: Array, axis: int, start: int | None, stop: int | None) -> Array:
    """x with zeros for a part along an axis."""
    made = np.array(x)
    at = [slice(None)] * x.ndim
    at[axis] = slice(start, stop)
    made[tuple(at)] = 0
    return made


@op()
def axes_ordered(x: Array, order: tuple[int, ...]) -> Array:
    """x with its axes permuted; read in the old shape where that is another."""
    return np.reshape(np.transpose(x, order), x.shape)


@op()
def axes_read(x: Array, order: tuple[int, ...]) -> Array:
    """x read as if its axes lay in memory in another order."""
    shape = tuple(x.shape[k] for k in order)
    return np.transpose(np.reshape(x, shape), np.argsort(order))


@op(size=same_size, says="the tensor in another order")
def reordered(x: Array, axis: int, order: tuple[int, ...]) -> Array:
    """x with the rows along an axis in another order."""
    return np.take(x, np.asarray(order), axis=axis)


@op(size=same_size, says="the tensor with its blocks in another order")
def blocks(x: Array, order: tuple[int, ...], axis: int = -1) -> Array:
    """x with the equal blocks along an axis in another order."""
    parts = np.split(x, len(order), axis=axis)
    return np.concatenate([parts[k] for k in order], axis=axis)


@op()
def block_turned(x: Array, index: int, of: int) -> Array:
    """x [H, of H] with one square block of its last axis transposed."""
    parts = np.split(x, of, axis=-1)
    parts[index] = parts[index].T
    return np.concatenate(parts, axis=-1)


@op()
def next_class(y: Array, by: int, of: int) -> Array:
    """Classes `by` later, the first after the last of `of`."""
    return (np.asarray(y).astype(np.int64) + by) % of


@op()
def held(x: Array, first: Array) -> Array:
    """What stands at the first timestep [B, ..], at every one of x [B, T, ..]."""
    return np.broadcast_to(np.asarray(first)[:, None], x.shape)


@op()
def centred(x: Array, axis: int) -> Array:
    """x without its mean along an axis."""
    return np.asarray(x - x.mean(axis=axis, keepdims=True))


@op()
def blended(old: Array, new: Array, beta: Array, share: Array) -> Array:
    """beta old + share new."""
    return np.asarray(beta * old + share * new)


@op()
def decayed_largest(old: Array, new: Array, beta: Array) -> Array:
    """The larger of beta old and new."""
    return np.asarray(np.maximum(beta * old, new))


@op()
def corrected(x: Array, beta: Array, step: Array) -> Array:
    """x / (1 - beta^step): an average that started from zeros."""
    return np.asarray(x / (1 - beta**step))


@op()
def clamped(x: Array, limit: float) -> Array:
    """x, no element larger than a limit in absolute value."""
    return np.clip(x, -abs(limit), abs(limit))


@op()
def chosen(x: Array, other: Array, axis: int, places: tuple[int, ...]) -> Array:
    """x, with `other` in its place at some places along an axis."""
    made = np.array(x, dtype=np.result_type(x, other))
    at: list[Any] = [slice(None)] * x.ndim
    at[axis] = np.asarray(places)
    made[tuple(at)] = other[tuple(at)]
    return made


@op()
def where_token(x: Array, other: Array, tokens: Array, which: tuple[int, ...]) -> Array:
    """x [B, T, ..], with `other` in its place where the token [B, T] is one of some."""
    at = np.isin(np.asarray(tokens), which)
    return np.where(at.reshape(*at.shape, *[1] * (x.ndim - at.ndim)), other, x)


@op()
def rows_read(new: Array, old: Array, tokens: Array) -> Array:
    """New rows of a table for the tokens that were read, old ones for all others."""
    seen = np.isin(np.arange(len(new)), np.asarray(tokens))
    return np.where(seen.reshape(-1, *[1] * (new.ndim - 1)), new, old)


@op()
def signs(x: Array) -> Array:
    """The sign of each element."""
    return np.sign(x)
