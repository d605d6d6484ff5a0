"""Where the first number that is not finite arose, and from what, as a note of the diff says it."""

import msgspec
import numpy as np
import pytest
from twins import a_run

from harness.compare import diff
from harness.compare.nonfinite import KEYS, first_nonfinite, nonfinite_notes
from harness.spec import Capture, ModelSpec, TrainSpec
from harness.trace import TraceWriter, open_trace

NAN, INF = np.nan, np.inf
# Of a model that is known: what its loss is made of is, too.
SPEC = {"model": ModelSpec(5, 2, 3, 1), "train": TrainSpec()}
SPEC = {name: msgspec.to_builtins(spec) for name, spec in SPEC.items()}


def trace(folder, steps, label="pt", level="full", dtype="float32", spec=SPEC):
    """A trace of these steps: names and values, in execution order."""
    path = folder / f"{label}.trace"
    capture = Capture(level=level)
    with TraceWriter(path, label=label, dtype=dtype, capture=capture, spec=spec) as writer:
        for step, tensors in steps.items():
            kept = {name: np.asarray(value) for name, value in tensors.items()}
            writer.write(
                step, {n: t.astype(dtype) if t.dtype.kind == "f" else t for n, t in kept.items()}
            )
    return open_trace(path)


def sentence(folder, steps, **fields):
    found = first_nonfinite(trace(folder, steps, **fields))
    return found and found.sentence("pt")


@pytest.mark.parametrize("level", ["full", "stats"])
def test_a_norm_overflows_where_the_square_of_a_gradient_does(tmp_path, level):
    grads = {"grads/embedding": [0.5, -1.0], "grads/softmax_w": [3.1e30, 2.0]}
    steps = {1: {"grads/softmax_w": [1.0]}, 3: {**grads, "update/global_norm": INF}}
    assert sentence(tmp_path, steps, level=level) == (
        "pt: the first number that is not finite is Inf in update/global_norm of step 3 (1 of 1 "
        "elements); before it, the largest number is 3.1e+30 in grads/softmax_w, whose square "
        "float32 cannot hold (largest 3.4e+38)"
    )


def test_what_is_larger_elsewhere_is_named_beside_what_overflows(tmp_path):
    step = {"forward/logits": [2e38], "grads/w": [-1e20], "update/global_norm": INF}
    found = sentence(tmp_path, {1: step})
    assert "the largest number is 2e+38 in forward/logits; grads/w reaches 1e+20, whose sq" in found


def test_squares_that_add_up_to_an_overflow_are_told_as_a_sum(tmp_path):
    step = {"grads/w": [1.5e19] * 3, "update/global_norm": INF}
    assert "the squares of all of grads/* add up to 6.75e+38, which" in sentence(
        tmp_path, {1: step}
    )


def test_no_overflow_is_claimed_that_is_none(tmp_path):
    for number, step in enumerate(
        [
            {"grads/w": [1e10], "update/global_norm": INF},
            {"update/clipped/w": [2.0], "update/learning_rate": 3.0, "params/w": [INF]},
            {"update/clipped/other": [1e38], "update/learning_rate": 9.0, "params/w": [INF]},
            {"update/clipped/w": [1e10], "optimizer/w/v": [INF]},
            {"update/clipped/w": [1e30], "optimizer/w/m": [INF]},
            {"forward/logits": [50.0, -200.0], "forward/loss": INF},
            {"forward/logits": [3e38, -3e38], "forward/loss": INF},
            {"forward/embedding": [3e38], "forward/layer0/gates": [INF]},
        ]
    ):
        found = sentence(tmp_path, {1: step}, label=f"side{number}")
        assert "cannot hold" not in found, found
        assert "the largest number is" in found


def test_a_product_with_the_rate_a_square_of_a_slot_and_an_exponential_are_told(tmp_path):
    step = {"update/clipped/w": [5.0], "update/learning_rate": 1e38, "params/w": [-INF]}
    found = sentence(tmp_path, {1: step}, label="one")
    # The rate is the largest number; what it is multiplied with is what overflows.
    assert "largest number is 1e+38 in update/learning_rate; update/clipped/w reaches 5" in found
    assert "whose product with the learning rate 1e+38 float32 cannot hold" in found
    step["optimizer/w/velocity"] = [5.0]
    step = {name: step[name] for name in sorted(step, key=lambda n: n.startswith("params"))}
    assert "product" not in sentence(tmp_path, {1: step}, label="two")
    step = {"update/clipped/w": [1e20], "optimizer/w/accumulator": [INF]}
    assert "1e+20 in update/clipped/w, whose square" in sentence(tmp_path, {1: step}, label="three")
    step = {"forward/logits": [[90.0, 1.0]], "forward/loss": INF}
    found = sentence(tmp_path, {1: step}, label="four")
    assert "whose exp float32 cannot hold (of 88.7 and less), unless the largest is" in found
    assert (
        "exp" not in sentence(tmp_path, {1: step}, label="five", dtype="float64").split("why")[-1]
    )
    assert "exp" not in sentence(tmp_path, {1: step}, label="six", spec={})


def test_bounds_are_those_of_the_dtype(tmp_path):
    step = {"grads/w": [1e200], "update/global_norm": INF}
    found = sentence(tmp_path, {1: step}, dtype="float64")
    assert "whose square float64 cannot hold (largest 1.8e+308)" in found
    assert "cannot hold" not in sentence(
        tmp_path, {1: {"grads/w": [1e30], "update/global_norm": INF}}, label="b", dtype="float64"
    )


def test_the_first_tensors_of_a_step_come_from_the_step_before(tmp_path):
    before = {"grads/w": [1e37], "params/w": [4e30], "state/out/h": [1.0]}
    after = {"inputs/x": [70_000], "forward/embedding": [NAN, INF, INF], "forward/logits": [NAN]}
    found = first_nonfinite(trace(tmp_path, {4: before, 5: after}))
    assert (found.step, found.tensor, found.what) == (5, "forward/embedding", "Inf")
    assert (found.nan, found.inf, found.size, found.before) == (1, 2, 3, "inputs/x")
    assert msgspec.structs.astuple(found.largest)[:2] == (4, "params/w")
    assert "(2 of 3 elements, and 1 NaN)" in found.sentence("pt")
    assert "4e+30 in params/w of step 4" in found.sentence("pt")
    gap = first_nonfinite(trace(tmp_path, {3: before, 5: after}, label="gap"))
    assert gap.largest is None
    assert gap.sentence("gap").endswith("and 1 NaN)")
    first = first_nonfinite(trace(tmp_path, {5: {"a": [NAN]}}, label="first"))
    assert (first.before, first.largest, first.what) == (None, None, "NaN")


def test_an_infinity_that_came_before_a_nan_is_the_first(tmp_path):
    steps = {1: {"a": [1.0], "b": [INF], "c": [NAN]}, 2: {"a": [NAN]}}
    found = first_nonfinite(trace(tmp_path, steps))
    assert (found.step, found.tensor, found.what) == (1, "b", "Inf")


def test_finite_traces_hashes_and_names_that_look_like_counts_have_none(tmp_path):
    steps = {1: {"a": [1.0], "nan": [2.0], "x/inf": [3.0]}, 2: {"a": [0.0]}}
    assert first_nonfinite(trace(tmp_path, steps)) is None
    assert first_nonfinite(trace(tmp_path, {1: {"a": [NAN]}}, label="b", level="hash")) is None
    assert first_nonfinite(trace(tmp_path, {}, label="c")) is None


def test_an_index_with_spaces_is_read_too_and_lines_of_finite_steps_are_not(tmp_path, monkeypatch):
    made = trace(tmp_path, {**{n: {"a": [1.0]} for n in range(1, 9)}, 9: {"a": [INF]}})
    decoded = []
    plain = type(made).entry
    monkeypatch.setattr(
        type(made), "entry", lambda self, step: decoded.append(step) or plain(self, step)
    )
    assert first_nonfinite(made).step == 9
    assert decoded == [9, 8]
    index = made.path / "index.jsonl"
    text = index.read_bytes()
    for key in KEYS:
        text = text.replace(key, key + b" ")
    index.write_bytes(text)
    assert first_nonfinite(open_trace(made.path)).step == 9


def test_both_sides_are_told_of_after_the_first_divergence_too(tmp_path):
    grads = {"grads/w": [1.0], "update/global_norm": 1.0}
    late = {"grads/w": [1e30], "update/global_norm": INF}
    a = trace(tmp_path, {1: grads, 2: {**grads, "grads/w": [2.0]}, 3: late}, label="pt")
    b = trace(tmp_path, {1: grads, 2: grads, 3: grads}, label="tf")
    found = diff(a, b)
    assert found.first_divergence.step == 2
    notes = [note for note in found.notes if "not finite" in note]
    assert len(notes) == 1
    assert notes[0].startswith("pt: the first number that is not finite is Inf in update/glo")
    assert len(nonfinite_notes(a, a)) == 2
    assert nonfinite_notes(a, a)[0].startswith(str(a.path))


def test_a_damaged_step_is_no_end_of_the_diff(tmp_path):
    made = trace(tmp_path, {1: {"a": [1.0]}, 2: {"a": [INF]}})
    (made.path / "step-00000002.safetensors").unlink()
    assert "not searched for NaN and Inf" in nonfinite_notes(made, made)[0]


@pytest.mark.parametrize(
    ("lr", "place", "largest"),
    [
        (1e39, (1, "update/learning_rate"), "forward/loss"),
        (1e30, (2, "forward/layer0/gates"), "params/softmax_b of step 1"),
    ],
)
def test_a_run_that_explodes_says_from_what(twin, tmp_path, lr, place, largest):
    twin("train", a_run(tmp_path, "side", steps=3, lr=lr, clip="none"))
    found = first_nonfinite(open_trace(tmp_path / "side.trace"))
    assert (found.step, found.tensor) == place
    assert found.sentence("side").endswith(f" in {largest}")
