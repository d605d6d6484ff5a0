"""The loop of a side's process, over a framework that has ten functions and a twin that counts."""

from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
from twins import RUN_MODEL, B, H, T, a_run, tensors_of

from harness.compare import diff
from harness.data import randomness, weights
from harness.data.randomness import dropout_masks
from harness.models.table import restart_names
from harness.side import loop, steps
from harness.side.points import Points, like, to_array
from harness.spec import Capture, Disturbance, Resume
from harness.trace import Intervention, Rows, open_trace


class Tensor:
    """Only the backend and the twin look inside: as an array it is nothing that a trace takes."""

    def __init__(self, inside):
        self.inside = np.array(inside)

    def __float__(self):
        return float(self.inside)


class Backend:
    """The ten functions, and what was asked of them."""

    __package__ = "counting"

    def __init__(self, graph=False):
        self.graph, self.said, self.compilations = graph, [], 0

    def prepare(self, run):
        self.said.append("prepare")

    def versions(self):
        return {"counting": "1"}

    def flush_denormals(self):
        self.said.append("flush")

    def to_array(self, tensor):
        return tensor.inside

    def to_tensor(self, array):
        assert isinstance(array, np.ndarray | np.generic)
        return Tensor(array)

    def scalar(self, value, dtype):
        return Tensor(np.asarray(value, dtype))

    def compiles(self, run):
        return self.graph

    def compiled(self, step, train):
        self.compilations += 1
        return step

    def differentiate(self, function, params):
        raise NotImplementedError

    def swap(self, value, onward, backward):
        return SimpleNamespace(value=value, onward=onward, backward=backward)


def train_step(params, slots, state, x, y, masks, lr, step, model, train, points):
    """Everything grows by one a step; the loss is the step's rate."""
    loss = points.see("forward/loss", Tensor(np.float32(float(lr))))
    slots = {n: points.see(f"optimizer/{n}", Tensor(s.inside + 1)) for n, s in slots.items()}
    params = {n: points.see(f"params/{n}", Tensor(p.inside + 1)) for n, p in params.items()}
    state = {n: points.see(f"state/out/{n}", Tensor(s.inside + 1)) for n, s in state.items()}
    return params, slots, state, loss


def carry(state, first, model, train):
    names = [f"layer{k}/{part}" for k in range(2) for part in "hc"]
    return {n: Tensor(np.zeros((B, H), train.dtype)) for n in names} if first else state


COUNTING = loop.Mathematics(
    tokens_of=lambda window: (Tensor(window.x), Tensor(window.y)),
    zero_slots=lambda params, train: {
        f"{n}/velocity": Tensor(0 * p.inside) for n, p in params.items()
    },
    carry=carry,
    plateaus=len,
    learning_rate=lambda train, epoch, plateaus: epoch + 0.25 * plateaus,
    train_step=train_step,
    evaluate=lambda params, batches, model, train: float(params["softmax_b"].inside[0]),
)
# An epoch is 3 steps.
FIELDS = dict(tokens=50, steps=7, optimizer="momentum", schedule="plateau")
MODEL = msgspec.structs.replace(RUN_MODEL, dropout=0.3)


def go(run, backend=None, twin=COUNTING):
    """What the loop reported of a run."""
    reports = []
    loop.train(run, lambda **said: reports.append(said), backend or Backend(), twin)
    return reports


def test_what_a_step_leaves_is_traced_reported_and_where_the_next_one_starts(tmp_path):
    backend, run = Backend(), a_run(tmp_path, "a", MODEL, **FIELDS)
    reports = go(run, backend)
    assert backend.said == ["prepare", "flush"]
    trace, start = open_trace(tmp_path / "a.trace"), weights.load(run.weights)
    assert trace.header.framework == {"counting": "1"}
    assert trace.header.program.name == "counting"
    assert trace.steps == tuple(range(1, 8))
    for step in trace.steps:
        found = tensors_of(tmp_path, "a", step)
        since = (step - 1) % 3  # steps in this epoch before this one
        assert (found["state/in/layer1/c"] == since).all()
        assert (found["state/out/layer1/c"] == since + 1).all()
        assert ("inputs/params/softmax_b" in found) == (step == 1)
        assert np.array_equal(found["params/softmax_b"], grown(start["softmax_b"], step))
        masks = dropout_masks(MODEL, run.train, step)
        assert all(np.array_equal(found[f"inputs/mask/{n}"], mask) for n, mask in masks.items())
        rate = 1 + (step - 1) // 3 * 1.25  # an epoch ended, and its validation loss was handed on
        valid = float(found["params/softmax_b"][0]) if step % 3 == 0 else None
        expected = {"step": step, "epoch": (step + 2) // 3, "lr": rate, "loss": rate}
        assert reports[step - 1] == {**expected, "valid": valid}
        assert ("evaluate/loss" in found) == (valid is not None)
    final = weights.load(run.final)
    assert all(np.array_equal(final[name], grown(w, 7)) for name, w in start.items())


def grown(array, steps):
    for _ in range(steps):
        array = array + 1
    return array


def test_a_run_that_resumes_leaves_what_the_whole_one_does(tmp_path):
    whole = a_run(tmp_path, "whole", **FIELDS)
    go(whole)
    rest = msgspec.structs.replace(
        a_run(tmp_path, "rest", start=5, **FIELDS), resume=Resume(whole.trace, 4)
    )
    assert [said["step"] for said in go(rest)] == [5, 6, 7]
    found = diff(rest.trace, whole.trace, steps=(5, None))
    assert (found.status, found.steps_compared) == ("identical", 3)
    first, second = weights.load(whole.final), weights.load(rest.final)
    assert all(np.array_equal(first[name], array) for name, array in second.items())


def test_state_and_draws_have_the_names_that_the_model_gives_them(tmp_path, monkeypatch):
    names = [p for p in restart_names(RUN_MODEL, a_run(tmp_path, "x").train) if "params" in p]
    monkeypatch.setattr(steps, "restart_names", lambda model, train: (*names, "state/out/memory"))
    monkeypatch.setattr(randomness, "dropout_masks", lambda m, t, s: {"noise": np.full(2, s)})
    fields = {**FIELDS, "optimizer": "sgd"}
    twin = COUNTING._replace(
        zero_slots=lambda params, train: {},
        carry=lambda state, first, model, train: state or {"memory": Tensor(np.zeros(3))},
    )
    whole = a_run(tmp_path, "whole", **fields)
    go(whole, twin=twin)
    rest = msgspec.structs.replace(
        a_run(tmp_path, "rest", start=3, **fields), resume=Resume(whole.trace, 2)
    )
    go(rest, twin=twin)
    found = tensors_of(tmp_path, "rest", 7)
    assert found["state/out/memory"].tolist() == [7, 7, 7]
    assert found["inputs/mask/noise"].tolist() == [7, 7]


def test_every_step_of_a_side_that_follows_starts_from_the_others(tmp_path):
    go(a_run(tmp_path, "led", **FIELDS))

    def twice(*arguments):
        return train_step(*train_step(*arguments)[:3], *arguments[3:])

    twin = COUNTING._replace(train_step=twice)
    go(a_run(tmp_path, "own", follow="led", level="step", **FIELDS), twin=twin)
    for step in (1, 5):
        own, led = (tensors_of(tmp_path, label, step) for label in ("own", "led"))
        for name in ("params/softmax_b", "optimizer/softmax_b/velocity"):
            assert np.array_equal(own[name], led[name] + 1)


def test_a_step_is_compiled_once_for_watching_and_once_without(tmp_path):
    backend = Backend(graph=True)
    capture = Capture(first=3, every=2)
    go(a_run(tmp_path, "graph", capture=capture, **FIELDS), backend)
    assert backend.compilations == 2
    go(a_run(tmp_path, "again", capture=capture, **FIELDS), backend)
    assert backend.compilations == 2
    go(a_run(tmp_path, "eager", capture=capture, **FIELDS))
    assert diff(tmp_path / "graph.trace", tmp_path / "eager.trace").status == "identical"
    # What the compiler makes of a step must not depend on whether this one is watched.
    go(a_run(tmp_path, "compiled", compile=True, capture=capture, **FIELDS), backend)
    assert backend.compilations == 3


def test_a_step_with_an_intervention_in_it_is_not_compiled(tmp_path):
    backend = Backend(graph=True)
    disturb = Disturbance(2, "params/softmax_b", (3,), 1.0)
    go(a_run(tmp_path, "side", disturb=disturb, **FIELDS), backend)
    go(a_run(tmp_path, "calm", **FIELDS))
    assert backend.compilations == 0
    side, calm = (tensors_of(tmp_path, label, 2)["params/softmax_b"] for label in ("side", "calm"))
    assert np.flatnonzero(side != calm).tolist() == [3]


@pytest.fixture
def disturbed(tmp_path):
    """An intervention that doubles one element of a point at step 1."""

    def of(point, index):
        intervention = Intervention.of(
            a_run(tmp_path, "side", disturb=Disturbance(1, point, index, 1.0))
        )
        intervention.begin(1)
        return intervention

    return of


def test_points_over_time_are_put_together_in_the_order_of_time(disturbed):
    points = Points(Backend(), disturbed("forward/h", (0, 1)))
    gone = [points.within("forward")("h", Tensor(np.full(B, 1.0 + t)), t) for t in range(T)]
    assert [tensor.inside[0] for tensor in gone] == [1, 4, 3, 4, 5]
    for t in reversed(range(T)):
        points.see("backward/h", Tensor(np.full(B, 1.0 + t)), t)
    assert to_array(points.backend, points.seen["backward/h"])[0].tolist() == [1, 2, 3, 4, 5]
    assert to_array(points.backend, points.seen["forward/h"])[:2].tolist() == [
        [1, 4, 3, 4, 5],
        [1, 2, 3, 4, 5],
    ]
    assert points.gone_on["forward/h"] == gone


def test_points_that_nobody_watches_keep_what_back_propagation_reads():
    points = Points(Backend(), watch=False)
    made = points.see("forward/h", Tensor(1)), points.see("grads/w", Tensor(2))
    assert (points.seen, points.gone_on) == ({}, {"forward/h": made[0]})


def test_a_framework_that_differentiates_goes_on_with_what_is_put_in_place(disturbed):
    points = Points(Backend(), disturbed("backward/logits", (2,)))
    value, gradient = Tensor(np.ones(3)), Tensor(np.ones(3))
    assert points.see("forward/logits", value) is value
    points.differentiate()
    swapped = points.see("forward/logits", value)
    assert (swapped.value, swapped.onward) == (value, value)
    assert swapped.backward(gradient).inside.tolist() == [1, 1, 2]
    points.see_gradients({"forward/embedding": gradient, "forward/logits": gradient})
    names = [name for name in points.seen if name.startswith("backward/")]
    assert names == ["backward/logits", "backward/embedding"]
    assert points.seen["backward/logits"].inside.tolist() == [1, 1, 2]
    assert points.seen["backward/embedding"].inside.tolist() == [1, 1, 1]


def test_rows_stay_rows_where_the_others_are_zero(disturbed):
    backend = Backend()
    rows = Rows(Tensor([2, 0]), Tensor(np.ones((2, 3))), (4, 3))
    points = Points(backend, disturbed("grads/embedding", (2, 1)))
    onward = points.see("grads/embedding", rows)
    assert isinstance(onward, Rows)
    assert to_array(backend, onward).tolist() == [[1] * 3, [0] * 3, [1, 2, 1], [0] * 3]
    assert isinstance(like(backend, rows, np.ones((4, 3))), Tensor)
