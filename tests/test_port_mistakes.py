"""Mistakes that ports have, in a GPT and a CNN, on either side: the cause that is named first."""

import re
from pathlib import Path

import pytest

import harness

SCRIPT = Path(__file__).parent / "recorded" / "mistakes.py"
# What is said of the side with the mistake, and of the other one where that is the first.
MISTAKES = {
    "norm-epsilon": ("takes 0.001 for epsilon 1e-05", "takes 1e-05 for epsilon 0.001"),
    "adam-epsilon": ("takes 1e-06 for epsilon 1e-08", "takes 1e-08 for epsilon 1e-06"),
    "kernel": ("transposed|axes permuted \\(1, 0, 2, 3\\)",) * 2,
    "loss-summed": ("sums the loss over all elements", "averages the loss over all elements"),
    "detached": (
        "leaves out the (gradient of the layer normalisation|product with forward/norm1)",
        "never said of the other side",
    ),
    "dropout-scaled-twice": ("multiplies .*drop by 1\\.(11|25)", "leaves out the factor"),
    "bias-decayed": ("decays this parameter", "does not decay this parameter"),
    "gelu": ("has the GELU by tanh for the exact GELU", "has the exact GELU for the GELU by tanh"),
    "norm-momentum": ("takes 0.01 for momentum 0.1", "takes 0.1 for momentum 0.01"),
}
CASES = [
    *(("gpt", name) for name in MISTAKES if name != "norm-momentum"),
    *(("cnn", name) for name in MISTAKES if name != "gelu"),
]


@pytest.mark.slow
@pytest.mark.parametrize("first", [True, False], ids=["mistaken first", "mistaken last"])
@pytest.mark.parametrize(("kind", "mistake"), CASES)
def test_the_mistake_is_named_first(kind, mistake, first, tmp_path):
    sides = [f"mine={SCRIPT} {kind} {mistake}", f"theirs={SCRIPT} {kind}"]
    found = harness.run_sides(
        sides=sides if first else sides[::-1], trace=3, out=tmp_path, hand_over="masks"
    ).verdict
    assert found.label == "bug"
    assert found.where.step == 1
    assert found.causes, found
    said = found.causes[0].sentence
    about = "mine" if re.search(r"\bmine\b", said.split(":")[0]) else "theirs"
    assert re.search(MISTAKES[mistake][about == "theirs"], said), said
