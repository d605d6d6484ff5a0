"""What a side was told to compute otherwise, in words, where two expressions part."""

import pytest

from harness.explain.told import detached, told_words
from harness.models.graph import Graph, Stage, const, node, ref

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


def test_parts_that_make_the_same_numbers_are_not_told_of():
    x, gain = ref("forward/x"), ref("params/gain")
    base = node(
        "layer_norm", node("add", x, ref("forward/place")), gain, gain, const(1e-5, "epsilon")
    )
    rows = node("add", x, ref("forward/row"))
    other = node("layer_norm", rows, gain, gain, const(1e-3, "epsilon"))
    named = "takes 0.001 for epsilon 1e-05"
    words, _ = told_words(base, other)
    assert words == f"computes forward/row for forward/place, and {named}"
    parts = {"forward/place", "forward/row"}
    assert told_words(base, other, lambda p, q: {str(p), str(q)} == parts) == (named, True)


def test_what_the_optimizer_is_given_is_the_gradient_where_nothing_came_between():
    w, rate = ref("params/w", back=1), ref("update/learning_rate")
    base = node("descend", w, G, rate)
    given = node("decay_gradient", ref("update/clipped/w"), w, const(0.01, "weight_decay"))
    words = "decays this parameter (weight decay 0.01, added to its gradient)"
    assert told_words(base, node("descend", w, given, rate)) == (words, True)


def test_an_update_by_clipped_gradients_is_told_where_the_other_clips_nothing():
    w, rate = ref("params/w", back=1), ref("update/learning_rate")
    clipped = node("descend", w, ref("update/clipped/w"), rate)
    words, plain = told_words(node("descend", w, G, rate), clipped)
    assert (words.startswith("updates by what it has made of the gradient"), plain) == (True, True)


def test_what_is_detached_elsewhere_explains_no_weight():
    x = ref("forward/x")
    made = {
        "forward/x": node("product", ref("inputs/x"), ref("params/a")),
        "forward/y": node("product", node("stop_gradient", x), ref("params/b")),
    }
    plain = {**made, "forward/y": node("product", x, ref("params/b"))}
    mine, theirs = (Graph({n: Stage(n, v) for n, v in g.items()}) for g in (made, plain))
    assert "detached in forward/y" in detached(theirs, mine)
    assert "detached in forward/y" in detached(theirs, mine, "params/a")
    assert detached(theirs, mine, "params/b") is None
