"""The images that both programs are trained on: bright squares, to be told by where they are."""

import numpy as np

SIZE, CLASSES = 12, 4


def batches(steps, rows=16, seed=1):
    """For each step, images [rows, SIZE, SIZE, 3] and the quarters that their squares are in."""
    draw = np.random.default_rng(seed)
    for _ in range(steps):
        y = draw.integers(0, CLASSES, rows)
        x = draw.normal(0, 0.5, (rows, SIZE, SIZE, 3)).astype(np.float32)
        for image, quarter in zip(x, y, strict=True):
            top, left = 6 * (quarter // 2) + draw.integers(0, 3), 6 * (quarter % 2)
            image[top : top + 4, left : left + 4] += 1.0
        yield x, y.astype(np.int32)
