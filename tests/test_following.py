"""Following: a run that is fed another's numbers, stage by stage or step by step; disturbances."""

import msgspec
import numpy as np
import pytest
from twins import NAMES, RUN_MODEL, a_run, tensors_of

from harness.compare import Tolerance, compare, diff
from harness.data import weights
from harness.errors import HarnessError
from harness.spec import Capture, Disturbance
from harness.trace import open_trace
from harness.trace.statistics import describe

LAST = 30
UNSTABLE = dict(lr=8.0, steps=LAST)  # free runs part on the way, as the first test shows
# All that a step can do: clipping that bites, dropout, slots, decay; an epoch is 3 steps.
BUSY = dict(
    optimizer="adam",
    lr=0.01,
    weight_decay=0.01,
    clip_limit=0.3,
    tokens=50,
    model=msgspec.structs.replace(RUN_MODEL, dropout=0.3),
)


@pytest.fixture(scope="module")
def unstable(pt, tf, tmp_path_factory):
    """A folder with free runs of both frameworks in both dtypes: "pt-float32.trace" and so on."""
    folder = tmp_path_factory.mktemp("unstable")
    runs = [(twin, dtype) for twin in (tf, pt) for dtype in ("float32", "float64")]
    running = [
        twin.start("train", a_run(folder, f"{twin.twin}-{dtype}", dtype=dtype, **UNSTABLE))
        for twin, dtype in runs
    ]
    for run in running:
        run.result()
    return folder


@pytest.fixture(scope="module")
def busy(tf, tmp_path_factory):
    """A folder with a free run "led" in which a step does all that it can."""
    folder = tmp_path_factory.mktemp("busy")
    tf("train", a_run(folder, "led", steps=6, **BUSY))
    return folder


def calm(twin, folder):
    """The tensors of each step of a free run of `twin`, made once."""
    label = f"calm-{twin.twin}"
    if not (folder / f"{label}.trace").exists():
        twin("train", a_run(folder, label, steps=2, **BUSY))
    return {step: tensors_of(folder, label, step) for step in (1, 2)}


def local_diff(folder, a, b, **fields):
    traces = [folder / f"{label}.trace" for label in (a, b)]
    return diff(*traces, tolerance=Tolerance.local(), all=True, **fields)


def test_free_runs_of_an_unstable_training_part(unstable):
    found = diff(unstable / "pt-float32.trace", unstable / "tf-float32.trace", all=True)
    assert found.status == "diverged"
    assert found.first_divergence.step > 3
    assert max(abs(row.loss_a - row.loss_b) / row.loss_b for row in found.steps) > 1e-3


FOLLOWERS = [("pt", "tf", 1), ("tf", "pt", 22), ("referee", "pt", 1), ("referee", "tf", 1)]


@pytest.mark.parametrize(("follower", "led", "start"), FOLLOWERS)
def test_a_side_that_follows_every_stage_stays_close_at_every_tensor_of_every_step(
    unstable, request, dtype, follower, led, start
):
    twin, own, led = request.getfixturevalue(follower), f"{follower}-after-{led}", f"{led}-{dtype}"
    losses = twin("train", a_run(unstable, own, follow=led, start=start, dtype=dtype, **UNSTABLE))
    found = local_diff(unstable, own, led, steps=(start, None))
    assert (found.status, found.divergences) == ("close", ())
    assert found.steps_compared == len(losses) == LAST + 1 - start
    for step, loss in enumerate(losses, start):
        assert loss == tensors_of(unstable, led, step)["forward/loss"], (
            "what goes on is the other's"
        )


def test_a_referee_in_float64_that_follows_a_trace_in_float32_is_close_to_it(referee, unstable):
    fields = dict(follow="tf-float32", dtype="float64", **UNSTABLE)
    referee("train", a_run(unstable, "precise", **fields))
    graph = open_trace(unstable / "tf-float32.trace").graph
    for step in range(1, LAST + 1):
        precise, led = (tensors_of(unstable, label, step) for label in ("precise", "tf-float32"))
        assert list(precise) == list(led)
        entries = {name: describe(name, b) for name, b in led.items()}
        for name, b in led.items():
            assert precise[name].dtype == ("float64" if b.dtype == np.float32 else b.dtype)
            allowed = Tolerance.local().allowance(entries[name], entries, graph=graph)
            found = compare(precise[name].astype(b.dtype), b, allowed)
            assert found.close, f"step {step}, {name}: {found}"
    assert not np.array_equal(precise["grads/softmax_w"], led["grads/softmax_w"])


@pytest.mark.parametrize(("follower", "led"), [("pt", "tf"), ("tf", "pt"), ("referee", "tf")])
def test_a_side_that_follows_every_step_stays_close_within_it(unstable, request, follower, led):
    twin, own, led = request.getfixturevalue(follower), f"{follower}-steps", f"{led}-float32"
    fields = {**UNSTABLE, "steps": 8}
    twin("train", a_run(unstable, own, follow=led, level="step", **fields))
    found = diff(unstable / f"{own}.trace", unstable / f"{led}.trace", steps=(1, 8))
    assert (found.status, found.steps_compared) == ("close", 8)
    last = [tensors_of(unstable, label, 8)["grads/layer0/w_h"] for label in (own, led)]
    assert not np.array_equal(*last), "within a step it goes on with its own numbers"


@pytest.mark.parametrize("level", ["stage", "step"])
def test_a_later_start_gives_the_steps_that_a_start_at_1_gives(twin, busy, level):
    fields = dict(steps=6, follow="led", level=level, **BUSY)
    for start in (1, 5):
        twin("train", a_run(busy, f"from-{start}", start=start, **fields))
    assert open_trace(busy / "from-5.trace").steps == (5, 6)
    found = diff(busy / "from-5.trace", busy / "from-1.trace", steps=(5, None))
    assert (found.status, found.steps_compared) == ("identical", 2)
    close = diff(busy / "from-1.trace", busy / "led.trace")
    assert (close.equivalent, close.steps_compared) == (True, 6)


def test_a_side_that_follows_every_stage_ends_with_the_weights_that_it_followed(twin, busy):
    twin("train", a_run(busy, "side", steps=6, follow="led", start=4, **BUSY))
    followed, own = weights.load(busy / "led.npz"), weights.load(busy / "side.npz")
    assert set(own) == set(NAMES)
    for name, array in followed.items():
        assert np.array_equal(own[name], array)


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
    step = 6 if point == "evaluate/loss" else 5
    index = largest(tensors_of(busy, "led", step)[point])
    disturb = Disturbance(step, point, index, 0.01)
    fields = dict(follow="led", start=step, steps=step, **BUSY)
    twin("train", a_run(busy, "side", disturb=disturb, **fields))
    found = local_diff(busy, "side", "led", steps=(step, step))
    seen = [(d.step, d.tensor, d.index, d.mismatches) for d in found.divergences]
    assert seen == [(step, point, index, 1)]
    assert not found.structure
    assert found.divergences[0].max_rel_diff == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("point", ["forward/layer0/gates", "backward/layer1/c", "forward/layer1/h"])
def test_a_disturbance_can_take_a_whole_axis(twin, busy, point):
    fields = dict(steps=5, follow="led", start=5, **BUSY)
    twin("train", a_run(busy, "undisturbed", **fields))
    disturb = Disturbance(5, point, (None, 3, None), 0.5)
    twin("train", a_run(busy, "side", disturb=disturb, **fields))
    own, side = (tensors_of(busy, label, 5) for label in ("undisturbed", "side"))
    assert [name for name in own if not np.array_equal(own[name], side[name])] == [point]
    assert np.array_equal(side[point][:, 3], own[point][:, 3] * np.float32(1.5))
    assert np.array_equal(np.delete(side[point], 3, 1), np.delete(own[point], 3, 1))


# A disturbance, and a tensor that it must reach when nobody else's numbers take its place.
REACHED = {
    "state/in/layer0/h": "forward/layer0/gates",
    "forward/embedding": "forward/layer0/gates",
    "forward/layer0/c": "forward/layer0/h",
    "forward/layer1/h": "grads/softmax_w",
    "backward/logits": "grads/softmax_w",
    "backward/layer1/h": "backward/layer1/c",
    "backward/layer1/c": "backward/layer1/gates",
    "backward/layer0/gates": "grads/layer0/w_i",
    "backward/embedding": "grads/embedding",
    "grads/layer0/w_h": "update/global_norm",
    "update/global_norm": "update/clipped/embedding",
    "update/learning_rate": "params/softmax_b",
    "optimizer/softmax_b/m": "params/softmax_b",
}


def last_in_time(array, point):
    """The largest element of the timestep that comes last in the execution of its stage."""
    if array.ndim < 3 or not point.startswith(("forward/", "backward/")):
        return largest(array)
    t = 0 if point.startswith("backward/") else array.shape[1] - 1
    row, unit = largest(array[:, t])
    return row, t, unit


@pytest.mark.parametrize("point", REACHED)
def test_a_disturbance_of_a_free_run_goes_on_from_where_it_is_planted(twin, busy, point):
    own = calm(twin, busy)
    index = last_in_time(own[2][point], point)
    disturb = Disturbance(2, point, index, 0.5)
    twin("train", a_run(busy, "side", steps=2, disturb=disturb, **BUSY))
    found = diff(busy / "side.trace", busy / f"calm-{twin.twin}.trace", all=True)
    assert (found.onset.step, found.onset.tensor, found.onset.index) == (2, point, index)
    side = tensors_of(busy, "side", 2)
    assert not np.array_equal(own[2][REACHED[point]], side[REACHED[point]])


@pytest.mark.parametrize("point", [p for p in REACHED if p.startswith(("forward/", "backward/"))])
def test_a_disturbed_step_agrees_with_the_referees(side, referee, busy, point):
    """Derivatives are taken where the step went on, not at what it had made."""
    disturb = Disturbance(2, point, last_in_time(calm(referee, busy)[2][point], point), 0.5)
    for twin in (side, referee):
        twin("train", a_run(busy, f"both-{twin.twin}", steps=2, disturb=disturb, **BUSY))
    found = diff(busy / f"both-{side.twin}.trace", busy / "both-np.trace")
    assert (found.status, found.steps_compared) == ("close", 2), found.first_divergence


LEFT = {
    "params/layer0/w_i": ["params/layer0/w_i"],
    "optimizer/layer0/w_i/v": ["optimizer/layer0/w_i/v", "params/layer0/w_i"],
    "state/out/layer1/c": ["state/out/layer1/c"],
}


@pytest.mark.parametrize("point", LEFT)
def test_a_disturbance_of_what_a_step_leaves_is_where_the_next_one_starts(twin, busy, point):
    own = calm(twin, busy)
    disturb = Disturbance(1, point, largest(own[1][point]), 0.5)
    twin("train", a_run(busy, "side", steps=2, disturb=disturb, **BUSY))
    side = {step: tensors_of(busy, "side", step) for step in (1, 2)}
    differ = [name for name, a in own[1].items() if not np.array_equal(a, side[1][name])]
    assert differ == LEFT[point]
    assert not np.array_equal(own[2]["params/layer0/w_i"], side[2]["params/layer0/w_i"])


@pytest.mark.parametrize("left_out", ["params/*", "optimizer/softmax_b/v", "state/out/layer0/c"])
def test_a_trace_that_lacks_what_a_step_starts_from_cannot_be_followed(twin, busy, left_out):
    capture = Capture(exclude=(left_out,))
    twin("train", a_run(busy, "partial", steps=2, capture=capture, **BUSY))
    run = a_run(busy, "side", steps=2, follow="partial", **BUSY)
    with pytest.raises(HarnessError) as error:
        twin("train", run)
    start, _, remedy = str(error.value).partition(" in step 1: ")
    assert start.startswith(f"{busy / 'partial.trace'}: no {left_out.rstrip('*')}")
    assert remedy.startswith("a trace to follow must hold every step, and all of params/*")


@pytest.mark.parametrize(("capture", "step"), [(Capture(every=2), 2), (Capture(last=3), 4)])
def test_a_trace_that_lacks_a_step_cannot_be_followed(twin, busy, capture, step):
    twin("train", a_run(busy, "partial", steps=4, capture=capture, **BUSY))
    with pytest.raises(HarnessError, match=f"partial.trace: no step {step}"):
        twin("train", a_run(busy, "side", steps=5, follow="partial", **BUSY))


def test_a_run_in_float32_cannot_follow_a_trace_in_float64(twin, unstable):
    run = a_run(unstable, "side", follow="tf-float64", **UNSTABLE)
    with pytest.raises(HarnessError) as error:
        twin("train", run)
    assert str(error.value) == (
        f"{unstable / 'tf-float64.trace'}: a float32 run cannot follow a float64 trace: run both "
        "in float64, or trace the other side in float32"
    )
