"""The small model of the tests: all dimensions different, no bias zero, and how it is compared."""

import numpy as np

from harness.compare import Tolerance, compare
from harness.spec import ModelSpec, TrainSpec, parameters
from harness.trace.schema import describe

B, T, E, H, V, L = 3, 5, 7, 11, 29, 2
MODEL = ModelSpec(V, E, H, L, init_scale=0.4)


def train_spec(dtype, **fields):
    return TrainSpec(batch_size=B, bptt=T, dtype=dtype, **fields)


def rng(*seed):
    return np.random.default_rng(seed)


def random_weights(dtype, seed=1, model=MODEL):
    draw = rng(seed)
    return {p.name: draw.normal(0, 0.4, p.shape).astype(dtype) for p in parameters(model)}


def random_state(dtype, seed=2, zero=False):
    draw = rng(seed)
    scale = 0.0 if zero else 0.7
    return {
        f"layer{k}/{part}": (scale * draw.normal(size=(B, H))).astype(dtype)
        for k in range(L)
        for part in "hc"
    }


def random_tokens(seed=3):
    # Few tokens, so that rows of the embedding occur more than once and their gradients add up.
    return rng(seed).integers(0, 9, (2, B, T)).astype(np.int32)


def assert_close(a, b, name=""):
    """Close under the tolerance that users get: a number of roundings, whatever the dtype."""
    a, b = np.asarray(a), np.asarray(b)
    assert a.dtype == b.dtype, f"{name}: {a.dtype} and {b.dtype}"
    assert a.shape == b.shape, f"{name}: {a.shape} and {b.shape}"
    found = compare(a, b, Tolerance().allowance(describe(name or "tensor", b)))
    assert found.close, f"{name}: {found}"


def assert_all_close(a, b):
    assert list(a) == list(b)
    for name in a:
        value_a, value_b = a[name], b[name]
        if isinstance(value_a, list):
            value_a, value_b = np.stack(value_a, 1), np.stack(value_b, 1)
        assert_close(value_a, value_b, name)
