"""Every random draw of a run, from counters: the same bytes for both sides, whatever framework.

NumPy guarantees the raw stream of a bit generator but not that of its distributions, so the draws
are made from raw Philox words by integer and exact floating-point arithmetic written out here. Two
interpreters with different NumPy versions draw the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from harness.models.graph import BATCH, TIME
from harness.models.table import model_of
from harness.spec import ModelSpec, TrainSpec

# One stream a purpose, so that drawing more of one thing never moves another.
STREAM_WEIGHTS, STREAM_SHUFFLE, STREAM_CORPUS, STREAM_DROPOUT = 0, 1, 2, 16


def words(seed: int, stream: int, block: int, count: int) -> NDArray[np.uint64]:
    """`count` raw 64-bit words of stream `stream`, from the start of its block `block`."""
    philox = np.random.Philox(key=[seed, stream], counter=[0, 0, block, 0])
    raw: NDArray[np.uint64] = philox.random_raw(count)
    return raw


def uniform(seed: int, stream: int, block: int, count: int) -> NDArray[np.float64]:
    """`count` numbers of [0, 1): the upper 53 bits of each word, exact in float64."""
    return (words(seed, stream, block, count) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permutation(seed: int, stream: int, count: int) -> NDArray[np.int64]:
    """A random order of 0..count-1: the stable order of as many random words."""
    return np.argsort(words(seed, stream, 0, count), kind="stable")


def dropout_masks(model: ModelSpec, train: TrainSpec, step: int) -> dict[str, NDArray[np.bool_]]:
    """The masks of one step, by site: boolean arrays, True where kept.

    Sites, rates and shapes are those of the model's row ([B, T, width], [B, 1, width], ..). The
    scaling by 1 / (1 - rate) is left to the twins: it is arithmetic, and arithmetic that both sides
    shared could be wrong in both.
    """
    masks = {}
    for draw in model_of(model).draws.values():
        window = {BATCH: train.batch_size, TIME: train.bptt}
        axes = zip(draw.shape, draw.axes, strict=True)
        shape = [window[str(axis)] if size < 0 else size for size, axis in axes]
        masks[draw.site] = mask(train.seed, draw.stream, step, shape, draw.rate)
    return masks


def mask(seed: int, site: int, step: int, shape: Sequence[int], rate: float) -> NDArray[np.bool_]:
    """The mask of the dropout number `site` of a step: True where kept, dropped with `rate`."""
    limit, count = np.uint64(round((1 - rate) * 2**32)), int(np.prod(shape))
    raw = words(seed, STREAM_DROPOUT + site, step, (count + 1) // 2)
    # Little-endian halves of each word, on any machine.
    halves = raw.astype("<u8").view("<u4")[:count]
    return (halves < limit).reshape(shape)
