"""The small model of the tests: all dimensions different, no bias zero, and how it is compared."""

from functools import cache

import msgspec
import numpy as np

from harness.compare import Tolerance, compare
from harness.data import corpus, weights
from harness.models.table import SLOTS, graph_of, model_of, parameters
from harness.spec import Follow, ModelSpec, RunSpec, TrainSpec
from harness.trace import open_trace
from harness.trace.statistics import describe

B, T, E, H, V, L = 3, 5, 7, 11, 29, 2
MODEL = ModelSpec(V, E, H, L, init_scale=0.4)
RUN_MODEL = ModelSpec(V, E, H, L)  # of whole runs, whose weights are drawn as users draw them
NAMES = [p.name for p in parameters(MODEL)]
SHAPES = {p.name: p.shape for p in parameters(MODEL)}
RUN_FIELDS = ("capture", "disturb", "start", "device")


SPEC = msgspec.to_builtins({"model": MODEL, "train": TrainSpec(batch_size=B, bptt=T)})
GRAPH = graph_of(
    msgspec.structs.replace(MODEL, dropout=0.3),
    TrainSpec(batch_size=B, bptt=T, optimizer="momentum"),
)


def train_spec(dtype, **fields):
    return TrainSpec(batch_size=B, bptt=T, dtype=dtype, **fields)


def rng(*seed):
    return np.random.default_rng(seed)


def random_weights(dtype, seed=1, model=MODEL):
    draw = rng(seed)
    return {p.name: draw.normal(0, 0.4, p.shape).astype(dtype) for p in parameters(model)}


def random_state(dtype, seed=2, zero=False, model=MODEL):
    draw = rng(seed)
    scale = 0.0 if zero else 0.7
    return {
        name: (scale * draw.normal(size=(B, size))).astype(dtype)
        for name, size in model_of(model).state.items()
    }


def random_slots(dtype, train, seed=12, model=MODEL):
    """What an optimizer may have kept; squares are not negative."""
    draw, scale = rng(seed), 0.1
    found = {}
    for p in parameters(model):
        for slot in SLOTS[train.optimizer]:
            array = scale * draw.normal(size=p.shape).astype(dtype)
            found[f"{p.name}/{slot}"] = array if slot in ("velocity", "m") else np.abs(array)
    return found


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


@cache
def _corpus(seed):
    return corpus.load(None, seed=seed)


def a_run(folder, label, model=RUN_MODEL, steps=10, seed=1, tokens=400, changed=None, **fields):
    """The RunSpec of a tiny run whose files are made in `folder`.

    `changed` is a weight to start from that is not the others': name, index, factor. `follow` is
    the label of a run in the same folder, `level` how closely. Other fields are of the RunSpec, or
    else of the TrainSpec.
    """
    own = {name: fields.pop(name) for name in RUN_FIELDS if name in fields}
    if follow := fields.pop("follow", None):
        own["follow"] = Follow(str(folder / f"{follow}.trace"), fields.pop("level", "stage"))
    train = train_spec(fields.pop("dtype", "float32"), seed=seed, **fields)
    drawn = weights.draw(model, seed)
    if changed:
        name, index, factor = changed
        drawn[name][index] *= np.float32(factor)
    weights.save(drawn, folder / f"{label}-start.npz")
    texts = {"train": _corpus(seed).train[:tokens], "valid": _corpus(seed).valid[:200]}
    for name, text in texts.items():
        file = folder / f"{name}-{seed}-{tokens}.npy"
        if not file.exists():  # another side may be reading it
            corpus.save_tokens(text % V, file)
        texts[name] = str(file)
    return RunSpec(
        label=label,
        model=model,
        train=train,
        steps=steps,
        weights=str(folder / f"{label}-start.npz"),
        tokens=texts["train"],
        valid=texts["valid"],
        trace=str(folder / f"{label}.trace"),
        final=str(folder / f"{label}.npz"),
        **own,
    )


def tensors_of(folder, label, step):
    """Every tensor of one step of a run's trace, by name."""
    opened = open_trace(folder / f"{label}.trace").step(step)
    return {entry.name: array for entry, array in opened.tensors()}
