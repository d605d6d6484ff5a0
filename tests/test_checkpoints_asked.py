"""What a filter may not drop is told before anything runs, and not when it is missed."""

import msgspec
import pytest
from test_run import TINY

import harness
from harness import HarnessError, Observer
from harness.models.table import restart_names
from harness.spec import CHECKPOINT, Capture
from harness.trace import open_trace

SETTINGS = (*TINY, "num_layers=1")


def run(folder, capture, trace=4, **options):
    told = []
    observer = Observer()
    observer.note = told.append
    fields = dict(trace=trace, settings=(*SETTINGS, *options.pop("settings", ())), out=folder)
    result = harness.run_sides(capture=capture, observer=observer, **fields, **options)
    return result, told


STATS = Capture(level="stats")


@pytest.mark.parametrize(
    ("filters", "dropped"),
    [
        ({"include": ("grads/*",)}, "params/embedding"),
        ({"include": ("params/*", "state/*")}, "optimizer/embedding/velocity"),
        ({"include": ("params/*", "optimizer/*")}, "state/out/layer0/h"),
        ({"exclude": ("*/b_?",)}, "params/layer0/b_i"),
        ({"exclude": ("optimizer/softmax_b/*",)}, "optimizer/softmax_b/velocity"),
        ({"exclude": ("*/c",)}, "state/out/layer0/c"),
    ],
)
@pytest.mark.parametrize(
    ("option", "wanted", "how"),
    [
        ("--zoom", STATS, {"zoom": True}),
        ("--checkpoint-every 2", Capture(level="stats", checkpoint_every=2), {}),
        ("--checkpoint-every 2", Capture(level="hash", checkpoint_every=2), {}),
        ("--follow", Capture(), {"follow": "step"}),
        ("--follow", Capture(), {"follow": "stage"}),
    ],
    ids=["zoom", "stats", "hash", "follow", "follow stage"],
)
def test_a_filter_that_drops_what_a_restart_needs_is_refused_at_the_start(
    tmp_path, filters, dropped, option, wanted, how
):
    capture = msgspec.structs.replace(wanted, **filters)
    with pytest.raises(HarnessError, match=f"^{option}: .* drop {dropped}, .*leave {option[:6]}"):
        run(tmp_path, capture, settings=("optimizer=momentum",), **how)
    assert not list(tmp_path.glob("*.log"))


@pytest.mark.parametrize("steps", [{"every": 2}, {"first": 2}, {"last": 3}], ids=str)
def test_steps_that_following_needs_are_not_left_out(tmp_path, steps):
    with pytest.raises(HarnessError, match=r"--follow: .* every step: leave --every and --steps"):
        run(tmp_path, Capture(**steps), follow="step")
    assert not list(tmp_path.glob("*.log"))


def test_one_side_that_has_slots_is_enough_to_refuse(tmp_path):
    capture = Capture(level="stats", exclude=("optimizer/*",))
    with pytest.raises(HarnessError, match="drop optimizer/embedding/m"):
        run(tmp_path, capture, zoom=True, settings=("pt:optimizer=adam",))
    assert not list(tmp_path.glob("*.log"))


def test_without_being_asked_for_checkpoints_are_left_out_with_a_note(tmp_path):
    capture = Capture(level="stats", exclude=("params/*",))
    result, told = run(tmp_path, capture, sides=["np"])
    assert [
        note for note in told if "no checkpoints are kept" in note and "params/embedding" in note
    ]
    trace = open_trace(result.traces["np"])
    assert trace.header.capture.checkpoint_every is None
    assert trace.header.complete


def test_a_filter_that_drops_nothing_of_them_keeps_checkpoints(tmp_path):
    capture = Capture(level="stats", exclude=("grads/*", "optimizer/*"))
    result, told = run(tmp_path, capture, sides=["np"], trace=5)
    assert not [note for note in told if "checkpoint" in note]
    trace = open_trace(result.traces["np"])
    kept = [s for s in trace.steps if any(e.stored for e in trace.entry(s).tensors)]
    assert kept == [2, 4]
    stored = {entry.name for entry in trace.entry(2).tensors if entry.stored}
    spec = trace.header.spec
    model = harness.ModelSpec(**spec["model"])
    assert stored == set(restart_names(model, harness.TrainSpec(**spec["train"])))
    assert all(name.startswith(CHECKPOINT) for name in stored)
