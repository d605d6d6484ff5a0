"""Two plain PyTorch scripts, one with a mistake: their stages, recomputed, accuse the right one."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import harness

SCRIPT = Path(__file__).parent / "declaring_script.py"
VARIANTS = """
import json, sys
source, variants, folder = open(sys.argv[1]).read(), json.loads(sys.argv[2]), sys.argv[3]
for name, (old, new) in variants.items():
    assert old in source, name
    space = {"__name__": name}
    exec(compile(source.replace(old, new), name, "exec"), space)
    space["main"](f"{folder}/{name}.trace", "float32")
"""
NORMS = "(E,), *gains, EPSILON)"
POOL = 'f.max_pool2d(f.relu(keep("norm", norm)), 2, (2, 1))'
HEAD = 'f.linear(joined, p["head/w"], p["head/b"])'
SGD = "lr=LR, momentum=MOMENTUM)"
# What is changed in the script, where that shows, and what must be said of it.
MISTAKES = {
    "right": ("", "", "", ""),
    "epsilon": (NORMS, NORMS.replace("EPSILON", "1e-3"), "forward/layer_norm", "0.001 for epsilon"),
    "gelu": (
        "f.gelu(attention + embedding)",
        "f.gelu(attention + embedding, approximate='tanh')",
        "forward/mean",
        "has the GELU by tanh for the exact GELU",
    ),
    "mask": ("is_causal=True", "is_causal=False", "forward/attention", "masks nothing"),
    "pool": (POOL, POOL.replace("max", "avg"), "forward/pool", "takes the average of a window"),
    "relu": ("f.relu(keep", "(keep", "forward/pool", "leaves out the ReLU of forward/norm"),
    "mean": (".mean(1)", ".sum(1)", "forward/mean", "takes the sum, not the mean"),
    "residual": ("attention + embedding", "attention", "forward/mean", "leaves out forward/emb"),
    "bias": (HEAD, HEAD.replace('p["head/b"]', '0 * p["head/b"]'), "forward/logits", "leaves out"),
    "keys": ("(q, k, v, is", "(k, q, v, is", "forward/attention", "exchanges forward/query and"),
    "padding": ("padding_idx=0", "padding_idx=None", "grads/table", "gives the padding row a grad"),
    "zeroing": ("optimizer.zero_grad()", "pass", "grads/.*", "adds the value of the step before"),
    "nesterov": (SGD, SGD[:-1] + ", nesterov=True)", "params/.*", "takes Nesterov's step"),
    "rate": (SGD, SGD.replace("LR", "2 * LR"), "params/.*", "moves 2 times"),
}


@pytest.fixture(scope="module")
def traces(tmp_path_factory):
    if find_spec("torch") is None:
        pytest.skip("torch is not installed")
    import json

    folder = tmp_path_factory.mktemp("scripts")
    changes = json.dumps({name: change[:2] for name, change in MISTAKES.items()})
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parent.parent)}
    command = [sys.executable, "-c", VARIANTS, str(SCRIPT), changes, str(folder)]
    subprocess.run(command, check=True, env=environment)
    return folder


@pytest.mark.parametrize("first", [True, False], ids=["a", "b"])
@pytest.mark.parametrize("name", [name for name in MISTAKES if name != "right"])
def test_the_side_with_the_mistake_is_accused_and_told_what_it_does(traces, name, first):
    _, _, tensor, words = MISTAKES[name]
    pair = [traces / f"{name}.trace", traces / "right.trace"]
    verdict = harness.explain(*(pair if first else pair[::-1])).verdict
    wrong = "mine (A)" if first else "mine (B)"
    assert verdict.label == "bug", verdict
    assert verdict.side == wrong
    assert re.fullmatch(tensor, verdict.where.tensor)
    assert verdict.causes[0].sure == "certain"
    assert words in verdict.causes[0].sentence
    assert wrong in verdict.causes[0].claim


def test_the_same_script_twice_is_not_accused(traces):
    same = traces / "right.trace"
    assert harness.explain(same, same).verdict.label == "identical"
