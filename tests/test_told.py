"""What a side was told to compute otherwise, in words, where two expressions part."""

import pytest

from harness.explain.told import told_words
from harness.models.graph import const, node, ref

G, NORM = ref("grads/w"), ref("update/global_norm")


def clip(op, limit, norm=NORM):
    return node(op, G, norm, const(limit, "limit"))


@pytest.mark.parametrize(
    ("base", "other", "words"),
    [
        (
            clip("clip_by_norm", 1.0),
            clip("clip_torch", 0.1),
            "takes 0.1 for limit 1, and adds 1e-6 to the norm that it divides by (as torch does)",
        ),
        (
            clip("clip_by_norm", 1.0),
            clip("clip_elements", 0.01, const(0.0)),
            "takes 0.01 for limit 1, and clamps each element of the gradients",
        ),
        (clip("clip_by_norm", 1.0), clip("clip_by_norm", 0.5), "takes 0.5 for limit 1"),
        (
            clip("clip_by_norm", 1.0),
            clip("clip_torch", 1.0),
            "adds 1e-6 to the norm that it divides by (as torch does)",
        ),
    ],
)
def test_another_limit_is_told_beside_another_way_of_clipping(base, other, words):
    assert told_words(base, other) == (words, True)
