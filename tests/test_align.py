"""The search for a map between two traces. Disguises are made apart from the search."""

from collections import Counter

import numpy as np
import pytest
from align_judge import judge
from disguises import Options, disguised

import harness
from harness.align.units import units
from harness.errors import HarnessError

FEW, ALL = 24, 200  # disguises


def searched(seeds, tmp_path):
    total = Counter()
    for seed in seeds:
        folder = tmp_path / str(seed)
        folder.mkdir()
        a, b, truths, swapped = disguised(seed, folder)
        found = judge(harness.align(a, b), truths, swapped)
        assert not found.wrong_certain, f"disguise {seed}"
        total.update(all=found.count, right=found.right, certain=found.certain)
    return total


def test_disguises_are_seen_through(tmp_path):
    total = searched(range(FEW), tmp_path)
    assert total["right"] >= 0.98 * total["all"]
    assert total["certain"] >= 0.8 * total["all"]


@pytest.mark.slow
def test_all_disguises_are_seen_through(tmp_path):
    total = searched(range(ALL), tmp_path)
    assert total["right"] >= 0.98 * total["all"]


def test_the_disguises_are_hard():
    options = [Options(np.random.default_rng(seed)) for seed in range(ALL)]
    for name in ("square", "zeros", "transposed", "shuffled", "bias_sum", "lstm_fused"):
        assert 0.2 < np.mean([getattr(o, name) for o in options]) < 0.8
    assert np.mean([o.perturbed > 0.05 for o in options]) > 0.5
    assert np.mean(["nothing" in o.names or "numbers" in o.names for o in options]) > 0.5


def write(path, steps, label=None, stages=None, **kwargs):
    with harness.TraceWriter(path, label=label or path.stem, dtype="float32", **kwargs) as trace:
        for number, tensors in enumerate(steps, start=1):
            trace.write(number, tensors, stages=stages or {})
    return path


def linears(draw, count=4, width=5):
    return [draw.normal(size=(width, width)).astype(np.float32) for _ in range(count)]


def test_a_start_weight_that_one_side_holds_transposed_lies_as_its_siblings_do(
    tmp_path,
):
    draw = np.random.default_rng(1)
    weights, grads = linears(draw), linears(draw)
    wrong = [weights[0].T, *weights[1:]]
    wrong_grads = [draw.normal(size=(5, 5)).astype(np.float32), *grads[1:]]
    names = [f"{k}/weight" for k in range(4)]
    a = {f"inputs/params/{n}": w for n, w in zip(names, wrong, strict=True)}
    a |= {f"grads/{n}": g for n, g in zip(names, wrong_grads, strict=True)}
    b = {f"inputs/params/d{n[0]}/kernel": w.T for n, w in zip(names, weights, strict=True)}
    b |= {f"grads/d{n[0]}/kernel": g.T for n, g in zip(names, grads, strict=True)}
    found = harness.align(write(tmp_path / "a.trace", [a]), write(tmp_path / "b.trace", [b]))
    first = found.params[0]
    assert (first.a, first.b, first.steps, first.sure) == (
        ("0/weight",),
        ("d0/kernel",),
        ("axes 1 0",),
        "likely",
    )
    assert first.note == "weights differ before training; equal when transposed"
    assert all(m.sure == "certain" for m in found.params[1:])
    result = harness.diff(tmp_path / "a.trace", tmp_path / "b.trace", alignment=found)
    assert result.first_divergence.tensor == "inputs/params/d0/kernel"
    assert any("equal when transposed" in note for note in result.notes)


def test_square_weights_that_no_side_turns_are_likely_where_the_layers_differ(tmp_path):
    draw = np.random.default_rng(10)
    x, weights = draw.normal(size=(3, 6)).astype(np.float32), linears(draw, 3, 6)
    a, b, h, k = {"inputs/x": x}, {"inputs/x": x}, x, x
    for n, w in enumerate(weights):
        a |= {f"inputs/params/l{n}/weight": w, f"grads/l{n}/weight": draw.normal(size=(6, 6))}
        b |= {f"inputs/params/d{n}/kernel": w, f"grads/d{n}/kernel": draw.normal(size=(6, 6))}
        h, k = h @ w.T, k @ w
        a[f"forward/l{n}"], b[f"forward/d{n}"] = h, k
    found = harness.align(write(tmp_path / "a.trace", [a]), write(tmp_path / "b.trace", [b]))
    assert {(m.steps, m.sure) for m in found.params} == {((), "likely")}
    assert "is one read transposed?" in found.params[0].note


def test_a_part_that_is_zero_but_for_rounding_goes_with_the_others(tmp_path):
    draw = np.random.default_rng(11)
    q, v = (draw.normal(size=8).astype(np.float32) for _ in range(2))
    noise = [draw.normal(size=8).astype(np.float32) * 1e-9 for _ in range(2)]
    a = {"inputs/params/in/bias": np.zeros(24, np.float32)}
    a["grads/in/bias"] = np.concatenate([q, noise[0], v])
    b = {}
    for name, grad in (("q", q), ("k", noise[1]), ("v", v)):
        b[f"inputs/params/{name}/bias"] = np.zeros((2, 4), np.float32)
        b[f"grads/{name}/bias"] = grad.reshape(2, 4)
    paths = write(tmp_path / "a.trace", [a]), write(tmp_path / "b.trace", [b])
    (match,) = harness.align(*paths).params
    assert (match.a, match.b) == (("in/bias",), ("q/bias", "k/bias", "v/bias"))
    assert (match.steps, match.sure) == (("split 0 8 8 8", "shape 8 to 2 4"), "likely")


def test_equal_tensors_are_told_apart_by_their_gradients_or_are_likely(tmp_path):
    draw = np.random.default_rng(2)
    grads = [draw.normal(size=6).astype(np.float32) for _ in range(3)]
    zeros = np.zeros(6, np.float32)
    a = {f"inputs/params/u{k}": zeros for k in range(3)}
    b = {f"inputs/params/v{k}": zeros for k in range(3)}
    told = {f"grads/u{k}": g for k, g in enumerate(grads)}
    told_b = {f"grads/v{2 - k}": g for k, g in enumerate(grads)}
    paths = tmp_path / "a.trace", tmp_path / "b.trace"
    write(paths[0], [a | told])
    write(paths[1], [b | told_b])
    found = harness.align(*paths)
    assert {(m.a[0], m.b[0], m.sure) for m in found.params} == {
        (f"u{k}", f"v{2 - k}", "certain") for k in range(3)
    }
    write(paths[0], [a])
    write(paths[1], [b])
    assert not [m for m in harness.align(*paths).params if m.sure == "certain"]


def test_a_residual_branch_is_not_taken_for_the_stream_that_has_its_gradient(tmp_path):
    draw = np.random.default_rng(3)
    stream, branch, back = (draw.normal(size=(3, 4)).astype(np.float32) for _ in range(3))
    a = {"inputs/x": stream, "forward/block": stream + branch, "backward/block": back}
    b = {"inputs/x": stream, "forward/dense_7": branch, "backward/dense_7": back}
    found = harness.align(write(tmp_path / "a.trace", [a]), write(tmp_path / "b.trace", [b]))
    assert not [m for m in found.points if m.sure == "certain"]


def test_a_large_model_takes_seconds(tmp_path):
    draw = np.random.default_rng(4)
    a, b = {}, {}
    for k in range(120):
        w = draw.standard_normal((400, 120), np.float32)
        a |= {f"inputs/params/l{k}/weight": w, f"grads/l{k}/weight": w * 2}
        b |= {f"inputs/params/d{k}/kernel": w.T, f"grads/d{k}/kernel": 2 * w.T}
    large = draw.standard_normal((4 * 512, 1024), np.float32)
    a["inputs/params/rnn"] = large
    b["inputs/params/lstm"] = large.reshape(4, 512, 1024)[[0, 2, 1, 3]].reshape(2048, 1024).T
    paths = write(tmp_path / "a.trace", [a]), write(tmp_path / "b.trace", [b])
    found = harness.align(*paths)
    assert len(found.params) == 121
    assert all(m.sure == "certain" for m in found.params)
    assert {m.steps for m in found.params} == {("axes 1 0",), ("axes 1 0", "blocks 1 0 2 1 3")}


def test_traces_without_a_common_step_are_refused(tmp_path):
    a = write(tmp_path / "a.trace", [{"forward/loss": 1.0}])
    with harness.TraceWriter(tmp_path / "b.trace", label="b", dtype="float32") as trace:
        trace.write(2, {"forward/loss": 1.0})
    with pytest.raises(HarnessError, match="trace the same steps"):
        harness.align(a, tmp_path / "b.trace")


def test_how_a_weight_lies_is_told_by_the_way_forward_alone(tmp_path):
    draw = np.random.default_rng(0)
    x, w = draw.normal(size=(2, 3, 3))
    with harness.TraceWriter(tmp_path / "t", label="t", dtype="float64") as trace:
        trace.write(
            1,
            {"inputs/x": x, "inputs/params/w": w, "forward/y": x @ w, "backward/x": x @ w.T},
            {
                "forward/y": harness.stage("linear", "inputs/x", "params/w@step-1|inputs/params/w"),
                "backward/x": harness.stage(
                    "linear",
                    "forward/y",
                    harness.stage("transpose", "params/w@step-1|inputs/params/w"),
                ),
            },
        )
    assert units(harness.open_trace(tmp_path / "t"), [1])["params"][0].read_as == (1, 0)


def test_weights_that_differ_are_placed_as_their_layer_is_or_as_the_last_of_their_shape(tmp_path):
    draw = np.random.default_rng(0)
    pairs = {
        "head": "3/weight",  # as PyTorch lists them: first those of no layer
        "off": "3/bias",
        "inward/weight": "0/weight",
        "inward/bias": "0/bias",
        "norm/weight": "1/weight",
        "norm/bias": "1/bias",
    }
    shapes = {"head": (8, 3), "off": (3,), "inward/weight": (8, 6)}
    for label in "ab":
        given = {}
        for name, other in sorted(pairs.items(), key=lambda pair: pair[label == "b"]):
            shape = shapes.get(name, (8,))
            drawn = draw.normal(size=shape[::-1] if label == "b" and name == "head" else shape)
            given[f"inputs/params/{name if label == 'a' else other}"] = drawn
        with harness.TraceWriter(tmp_path / label, label=label, dtype="float64") as trace:
            trace.write(1, {**given, "forward/loss": 1.0})
    found = harness.align(tmp_path / "a", tmp_path / "b").params
    assert {m.a[0]: m.b[0] for m in found} == pairs


def test_other_weights_under_other_names_are_paired_layer_by_layer(tmp_path):
    torch = pytest.importorskip("torch")
    nn = torch.nn

    class Port(nn.Module):
        def __init__(self):
            super().__init__()
            self.inward, self.norm = nn.Linear(6, 8), nn.LayerNorm(8)
            self.head, self.off = nn.Parameter(torch.randn(8, 3)), nn.Parameter(torch.randn(3))

        def forward(self, x):
            return nn.functional.gelu(self.norm(self.inward(x))) @ self.head + self.off

    torch.manual_seed(1)
    models = {
        "a": Port(),
        "b": nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 3)),
    }
    for label, model in models.items():
        adam = torch.optim.Adam(model.parameters())
        recorder = harness.record(model, adam, out=tmp_path / label)
        with recorder as rec, rec.step(x=torch.randn(16, 6)) as x:
            model(x).square().mean().backward()
            adam.step()
    found = harness.align(tmp_path / "a", tmp_path / "b").params
    assert {m.a[0]: m.b[0] for m in found} == {
        "inward/weight": "0/weight",
        "inward/bias": "0/bias",
        "norm/weight": "1/weight",
        "norm/bias": "1/bias",
        "head": "3/weight",
        "off": "3/bias",
    }


def test_biases_of_one_gradient_that_start_as_two_of_the_other_side_are_no_parts_of_one(tmp_path):
    draw = np.random.default_rng(0)
    out, narrow, gradient, other = draw.normal(size=(4, 8))
    for label, second in (("a", gradient), ("b", other)):  # a has detached the branch of `out`
        given = {"inputs/params/out/bias": out, "inputs/params/narrow/bias": narrow}
        grads = {"grads/out/bias": second, "grads/narrow/bias": gradient}
        with harness.TraceWriter(tmp_path / label, label=label, dtype="float64") as trace:
            trace.write(1, {**given, "forward/loss": 1.0, **grads})
    found = harness.align(tmp_path / "a", tmp_path / "b").params
    assert {(m.a, m.b) for m in found} == {((n,), (n,)) for n in ("out/bias", "narrow/bias")}
