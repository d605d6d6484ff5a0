"""The text that the language models are trained on: windows of characters, the same for all."""

import numpy as np

TEXT = (
    "the cat sat on the mat and the dog sat on the log while a rat ran around the hat of a man "
    "who sang to the cat and the dog and the rat that a song is as long as a log on a mat "
) * 8
CHARACTERS = sorted(set(TEXT))


def batches(steps, rows=8, length=16, seed=1):
    """For each step, tokens and the tokens that follow them: two arrays [rows, length]."""
    tokens = np.array([CHARACTERS.index(c) for c in TEXT], np.int32)
    draw = np.random.default_rng(seed)
    for _ in range(steps):
        starts = draw.integers(0, len(tokens) - length - 1, rows)
        window = np.stack([tokens[s : s + length + 1] for s in starts])
        yield window[:, :-1], window[:, 1:]
