"""The weights that both GPTs start from: drawn once, kernels [in, out], the projections apart."""

import numpy as np
from text import CHARACTERS

WIDTH, HEADS, LAYERS, LENGTH = 32, 4, 2, 16


def initial(seed=2):
    """A tree of arrays, float32."""
    draw = np.random.default_rng(seed)

    def normal(*shape):
        return draw.normal(0, 0.1, shape).astype(np.float32)

    def dense(inward, outward):
        return {"kernel": normal(inward, outward), "bias": normal(outward)}

    def norm():
        return {"scale": 1 + normal(WIDTH), "bias": normal(WIDTH)}

    def block():
        parts = {name: dense(WIDTH, WIDTH) for name in ("query", "key", "value", "out")}
        wide, narrow = dense(WIDTH, 4 * WIDTH), dense(4 * WIDTH, WIDTH)
        return {**parts, "norm1": norm(), "norm2": norm(), "wide": wide, "narrow": narrow}

    return {
        "tokens": normal(len(CHARACTERS), WIDTH),
        "places": normal(LENGTH, WIDTH),
        "blocks": [block() for _ in range(LAYERS)],
        "norm": norm(),
        "head": normal(WIDTH, len(CHARACTERS)),
    }
