"""Penalties on activations: mean squares, and what programs make of them."""

from __future__ import annotations

import math

import numpy as np

from harness.models.graph import node
from harness.models.ops.op import Array, kin, op


@op(lambda n, dy: (node("scale", node("mean_square_slope", *n.inputs), dy),), over_time=True)
def mean_square(x: Array) -> Array:
    """The mean of x^2 over all elements: a scalar."""
    return np.asarray(np.mean(x * x))


@op(says="the slope of the mean square", size=lambda x: x)
def mean_square_slope(x: Array) -> Array:
    """2 x / N, the derivative of the mean of the N squares."""
    return np.asarray(x * (2 / x.size))


@kin("mean_square", "sums the squares, and does not average them")
def _sum_of_squares(x: Array) -> Array:
    return np.asarray(np.sum(x * x))


@kin("mean_square", "takes the root of the mean square")
def _root_of_mean(x: Array) -> Array:
    return np.asarray(np.sqrt(np.mean(x * x)))


@kin("mean_square", "averages over batch and time, and sums over all else")
def _mean_of_sums(x: Array) -> Array:
    return np.asarray(np.sum(x * x) / math.prod(x.shape[:2]))


@kin("mean_square", "divides by one timestep more")
def _one_timestep_more(x: Array) -> Array:
    return np.asarray(np.mean(x * x) * (x.shape[1] / (x.shape[1] + 1)))


@kin("mean_square", "halves it")
def _half_mean_square(x: Array) -> Array:
    return np.asarray(np.mean(x * x) / 2)


@kin("mean_square_slope", "sums the squares, and does not average them")
def _slope_of_sum(x: Array) -> Array:
    return np.asarray(2 * x)


@kin("mean_square_slope", "takes the root of the mean square")
def _slope_of_root(x: Array) -> Array:
    return np.asarray(x / (x.size * np.sqrt(np.mean(x * x))))


@kin("mean_square_slope", "averages over batch and time, and sums over all else")
def _slope_of_sums(x: Array) -> Array:
    return np.asarray(x * (2 / math.prod(x.shape[:2])))


@kin("mean_square_slope", "divides by one timestep more")
def _slope_of_one_more(x: Array) -> Array:
    return np.asarray(mean_square_slope(x) * (x.shape[1] / (x.shape[1] + 1)))


@kin("mean_square_slope", "leaves out the factor 2")
def _slope_halved(x: Array) -> Array:
    return np.asarray(x / x.size)
