"""Following: a run that is fed another's numbers, stage by stage or step by step; disturbances."""

import msgspec
import numpy as np
import pytest
from twins import NAMES, RUN_MODEL, a_run, assert_close, tensors_of

from harness import weights
from harness.compare import diff
from harness.errors import HarnessError
from harness.spec import Capture, Disturbance
from harness.trace import open_trace

UNSTABLE = dict(lr=8.0, steps=40)  # free runs part on the way, as the first test shows
# What a step can do: clipping that bites, dropout, slots, decay.
BUSY = dict(
    optimizer="adam",
    lr=0.01,
    weight_decay=0.01,
    clip_limit=0.3,
    model=msgspec.structs.replace(RUN_MODEL, dropout=0.3),
)


def together(*started):
    return [run.result() for run in started]


@pytest.fixture(scope="module")
def unstable(pt, tf, referee, tmp_path_factory):
    """A folder with free runs of all twins in both dtypes: "pt-float32.trace" and so on."""
    folder = tmp_path_factory.mktemp("unstable")
    for dtype in ("float32", "float64"):
        fields = dict(dtype=dtype, **UNSTABLE)
        together(
            *(
                t.start("train", a_run(folder, f"{t.twin}-{dtype}", **fields))
                for t in (tf, pt, referee)
            )
        )
    return folder


@pytest.fixture(scope="module")
def busy(tf, tmp_path_factory):
    """A folder with a free run "led" in which a step does all that it can; an epoch is 2 steps."""
    folder = tmp_path_factory.mktemp("busy")
    tf("train", a_run(folder, "led", steps=6, tokens=50, **BUSY))
    return folder


def test_free_runs_of_an_unstable_training_part(unstable):
    found = diff(unstable / "pt-float32.trace", unstable / "tf-float32.trace", all=True)
    assert found.status == "diverged"
    assert found.first_divergence.step > 3
    last = found.steps[-1]
    assert abs(last.loss_a - last.loss_b) > 0.01 * last.loss_b


FOLLOWERS = [("pt", "tf", 1), ("tf", "pt", 21), ("referee", "pt", 1), ("referee", "tf", 1)]


@pytest.mark.parametrize(("follower", "led", "start"), FOLLOWERS)
def test_a_side_that_follows_every_stage_stays_close_at_every_tensor_of_every_step(
    unstable, request, tmp_path, dtype, follower, led, start
):
    twin = request.getfixturevalue(follower)
    fields = dict(follow=f"{led}-{dtype}", start=start, dtype=dtype, **UNSTABLE)
    losses = twin("train", a_run(unstable, f"{follower}-after-{led}-{dtype}", **fields))
    traces = [unstable / f"{follower}-after-{led}-{dtype}.trace", unstable / f"{led}-{dtype}.trace"]
    found = diff(*traces, steps=(start, None), all=True)
    assert (found.status, found.divergences) == ("close", ())
    assert found.steps_compared == 41 - start
    led_losses = [
        tensors_of(unstable, f"{led}-{dtype}", s)["forward/loss"] for s in range(start, 41)
    ]
    assert losses == [float(loss) for loss in led_losses], "what goes on is the other side's loss"


def test_a_referee_in_float64_that_follows_a_trace_in_float32_is_close_to_it(referee, unstable):
    fields = dict(follow="tf-float32", dtype="float64", **UNSTABLE)
    referee("train", a_run(unstable, "precise", **fields))
    for step in range(1, 41):
        precise, led = (tensors_of(unstable, label, step) for label in ("precise", "tf-float32"))
        assert list(precise) == list(led)
        for name, b in led.items():
            assert precise[name].dtype == ("float64" if b.dtype == np.float32 else b.dtype)
            assert_close(precise[name].astype(b.dtype), b, f"step {step}, {name}")
    assert not np.array_equal(precise["params/softmax_w"], led["params/softmax_w"])


@pytest.mark.parametrize(("follower", "led"), [("pt", "tf"), ("tf", "pt"), ("referee", "tf")])
def test_a_side_that_follows_every_step_stays_close_within_it(unstable, request, follower, led):
    twin = request.getfixturevalue(follower)
    fields = dict(follow=f"{led}-float32", level="step", start=31, **UNSTABLE)
    twin("train", a_run(unstable, f"{follower}-steps-{led}", **fields))
    traces = [unstable / f"{follower}-steps-{led}.trace", unstable / f"{led}-float32.trace"]
    found = diff(*traces, steps=(31, None))
    assert found.status == "close", found.first_divergence
    own = tensors_of(unstable, f"{follower}-steps-{led}", 40)
    theirs = tensors_of(unstable, f"{led}-float32", 40)
    assert not np.array_equal(own["grads/layer0/w_h"], theirs["grads/layer0/w_h"])


@pytest.mark.parametrize("level", ["stage", "step"])
def test_a_start_later_gives_the_steps_that_a_start_at_1_gives(twin, busy, level):
    for start in (1, 4):
        run = a_run(
            busy,
            f"from-{start}",
            tokens=50,
            steps=6,
            follow="led",
            level=level,
            start=start,
            **BUSY,
        )
        twin("train", run)
    assert open_trace(busy / "from-4.trace").steps == (4, 5, 6)
    found = diff(busy / "from-4.trace", busy / "from-1.trace", steps=(4, None))
    assert (found.status, found.steps_compared) == ("identical", 3)
    assert weights.load(busy / "from-4.npz").keys() == set(NAMES)
    close = diff(busy / "from-1.trace", busy / "led.trace")
    assert (close.status, close.steps_compared) == ("close", 6)


def test_a_side_that_follows_every_stage_ends_with_the_weights_that_it_followed(twin, busy):
    twin("train", a_run(busy, "side", tokens=50, steps=6, follow="led", **BUSY))
    followed, own = weights.load(busy / "led.npz"), weights.load(busy / "side.npz")
    for name, array in followed.items():
        assert np.array_equal(own[name], array)
    assert "evaluate/loss" in tensors_of(busy, "side", 2)


POINTS = [
    "state/in/layer0/h",
    "state/in/layer1/c",
    "forward/embedding",
    "forward/layer0/gates",
    "forward/layer1/c",
    "forward/layer1/h",
    "forward/logits",
    "forward/loss",
    "backward/logits",
    "backward/layer1/h",
    "backward/layer0/c",
    "backward/layer1/gates",
    "backward/embedding",
    "grads/embedding",
    "grads/layer0/w_h",
    "update/global_norm",
    "update/clipped/softmax_w",
    "update/learning_rate",
    "optimizer/layer1/w_i/m",
    "optimizer/softmax_b/v",
    "params/embedding",
    "params/layer1/b_h",
    "state/out/layer1/h",
    "evaluate/loss",
]


def largest(array):
    return tuple(int(i) for i in np.unravel_index(np.argmax(np.abs(array)), array.shape))


@pytest.mark.parametrize("point", POINTS)
def test_a_disturbance_is_seen_where_it_is_planted_and_nowhere_else(twin, busy, point):
    index = largest(tensors_of(busy, "led", 4)[point])
    disturb = Disturbance(4, point, index, 0.01)
    fields = dict(tokens=50, steps=5, follow="led", start=4, disturb=disturb, **BUSY)
    twin("train", a_run(busy, "side", **fields))
    found = diff(busy / "side.trace", busy / "led.trace", all=True, steps=(4, 5))
    seen = [(d.step, d.tensor, d.index, d.mismatches) for d in found.divergences]
    assert seen == [(4, point, index, 1)]
    assert not found.structure
    assert found.divergences[0].max_rel_diff == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("point", ["forward/layer0/gates", "backward/layer1/c", "forward/layer1/h"])
def test_a_disturbance_can_take_a_whole_axis(twin, busy, point):
    fields = dict(tokens=50, steps=4, follow="led", start=4, **BUSY)
    twin("train", a_run(busy, "calm", **fields))
    twin(
        "train", a_run(busy, "side", disturb=Disturbance(4, point, (None, 3, None), 0.5), **fields)
    )
    calm, side = (tensors_of(busy, label, 4) for label in ("calm", "side"))
    changed = [name for name in calm if not np.array_equal(calm[name], side[name])]
    assert changed == [point]
    assert np.array_equal(side[point][:, 3], calm[point][:, 3] * np.float32(1.5))
    assert np.array_equal(np.delete(side[point], 3, 1), np.delete(calm[point], 3, 1))


# A disturbance, and a tensor that it must reach when nobody else's numbers take its place.
REACHED = {
    "state/in/layer0/h": "forward/layer0/gates",
    "forward/embedding": "forward/layer0/gates",
    "forward/layer0/c": "forward/layer0/h",
    "forward/layer1/h": "grads/softmax_w",
    "backward/logits": "grads/softmax_w",
    "backward/layer1/h": "backward/layer1/c",
    "backward/layer1/c": "backward/layer1/gates",
    "backward/layer0/gates": "grads/layer0/w_h",
    "backward/embedding": "grads/embedding",
    "grads/layer0/w_h": "update/global_norm",
    "update/global_norm": "update/clipped/embedding",
    "update/learning_rate": "params/softmax_b",
    "optimizer/softmax_b/m": "params/softmax_b",
}


@pytest.mark.parametrize("point", REACHED)
def test_a_disturbance_of_a_free_run_goes_on_from_where_it_is_planted(twin, busy, point):
    fields = dict(tokens=50, steps=2, **BUSY)
    twin("train", a_run(busy, "calm", **fields))
    index = largest(tensors_of(busy, "calm", 2)[point])
    twin("train", a_run(busy, "side", disturb=Disturbance(2, point, index, 0.5), **fields))
    found = diff(busy / "side.trace", busy / "calm.trace", all=True)
    assert (found.onset.step, found.onset.tensor, found.onset.index) == (2, point, index)
    calm, side = (tensors_of(busy, label, 2) for label in ("calm", "side"))
    assert not np.array_equal(calm[REACHED[point]], side[REACHED[point]])
    before = list(calm)[: list(calm).index(point)]
    assert all(np.array_equal(calm[name], side[name]) for name in before)


@pytest.mark.parametrize(
    "point", ["params/layer0/w_i", "optimizer/layer0/w_i/v", "state/out/layer1/c"]
)
def test_a_disturbance_of_what_a_step_leaves_is_where_the_next_one_starts(twin, busy, point):
    fields = dict(tokens=60, steps=2, **BUSY)
    twin("train", a_run(busy, "calm", **fields))
    index = largest(tensors_of(busy, "calm", 1)[point])
    twin("train", a_run(busy, "side", disturb=Disturbance(1, point, index, 0.5), **fields))
    steps = {step: [tensors_of(busy, label, step) for label in ("calm", "side")] for step in (1, 2)}
    differ = [n for n, array in steps[1][0].items() if not np.array_equal(array, steps[1][1][n])]
    assert differ == [point]
    assert not np.array_equal(*(tensors["params/layer0/w_i"] for tensors in steps[2]))


@pytest.mark.parametrize("left_out", ["params/*", "optimizer/softmax_b/v", "state/out/layer0/c"])
def test_a_trace_that_lacks_what_a_step_starts_from_cannot_be_followed(twin, busy, left_out):
    capture = Capture(exclude=(left_out,))
    twin("train", a_run(busy, "partial", tokens=50, steps=2, capture=capture, **BUSY))
    run = a_run(busy, "side", tokens=50, steps=2, follow="partial", **BUSY)
    with pytest.raises(HarnessError) as error:
        twin("train", run)
    start, _, remedy = str(error.value).partition(" in step 1: ")
    assert start.startswith(f"{busy / 'partial.trace'}: no {left_out.rstrip('*')}")
    assert remedy.startswith("to follow a trace it must hold every step, and all of params/*")


@pytest.mark.parametrize(("capture", "step"), [(Capture(every=2), 2), (Capture(last=3), 4)])
def test_a_trace_that_lacks_a_step_cannot_be_followed(twin, busy, capture, step):
    twin("train", a_run(busy, "partial", tokens=50, steps=4, capture=capture, **BUSY))
    with pytest.raises(HarnessError, match=f"partial.trace: no step {step}"):
        twin("train", a_run(busy, "side", tokens=50, steps=5, follow="partial", **BUSY))


def test_a_run_in_float32_cannot_follow_a_trace_in_float64(twin, unstable):
    run = a_run(unstable, "side", follow="np-float64", **UNSTABLE)
    with pytest.raises(HarnessError) as error:
        twin("train", run)
    assert str(error.value) == (
        f"{unstable / 'np-float64.trace'}: a float32 run cannot follow a float64 trace: run both "
        "in float64, or trace the other side in float32"
    )
