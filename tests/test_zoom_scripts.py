"""Zoom into runs of scripts: exact, or said not to be; what resumes, and what is handed over."""

import json

import numpy as np
import pytest
from test_scripts_as_sides import PLAIN, failed, run, script
from test_zoom import run_cli

import harness
from harness.capture.replay import Replay
from harness.explain import Verdict
from harness.explain.case import Case
from harness.explain.confined import hints
from harness.explain.trial import Trial
from harness.runs.handed import unreached
from harness.runs.lockstep import run_in_lockstep
from harness.runs.session import Session, Side
from harness.runs.suspects import jumps
from harness.runs.windows import cannot_restore, doubted
from harness.runs.zoom import zoom_traces
from harness.spec import Capture, Follow, HandOver, Resume, ScriptSpec
from harness.trace import TraceWriter, open_trace

STATS = Capture(level="stats", checkpoint_every=10)
LATE = {"factor": "(1 if step >= 36 else 2)"}

# A small network in PyTorch, with what a script's arguments ask for.
TORCH = """
import sys
import torch
from torch import nn
from torch.nn import functional
import harness

asked = sys.argv[1:]
torch.manual_seed(0)
if "weights" in asked:
    torch.seed()
layers = [nn.Linear(6, 8), nn.BatchNorm1d(8), nn.GELU(), nn.Dropout(0.3), nn.Linear(8, 3)]
model = nn.Sequential(*layers)
torch.manual_seed(1)
if "masks" in asked:
    torch.seed()
adam = torch.optim.AdamW(model.parameters(), lr=0.01)
late = lambda k: 0.5 if "late" in asked and k >= 36 else 1.0
schedule = torch.optim.lr_scheduler.LambdaLR(adam, late)
draw = torch.Generator().manual_seed(3)
with harness.record(model, adam) as rec:
    for step in range(60):
        x, y = torch.randn(16, 6, generator=draw), torch.randint(3, (16,), generator=draw)
        with rec.step(x=x, y=y) as (x, y):
            adam.zero_grad()
            loss = functional.cross_entropy(model(x), y)
            loss.backward()
            adam.step()
            schedule.step()
            rec.log(loss=loss)
"""


def zoomed(folder, *sides, trace=60, **options):
    return run(folder, *sides, trace=trace, capture=STATS, zoom=True, **options)


def network(folder):
    path = folder / "net.py"
    path.write_text(TORCH)
    return path


def hashes(path, step):
    return {entry.name: entry.hash for entry in open_trace(path).entry(step).tensors}


def test_a_mistake_that_starts_late_is_found_and_traced_in_full_to_the_same_bits(tmp_path, capsys):
    mine, theirs = script(tmp_path, "mine", steps=60, **LATE), script(tmp_path, "theirs", steps=60)
    result = zoomed(tmp_path, mine, theirs)
    assert (result.verdict.label, result.verdict.where.step) == ("bug", 37)
    assert result.verdict.where.tensor == "grads/w"
    assert "mine is 0.5 times theirs" in result.verdict.causes[0].sentence
    window = result.zoom.windows[0]
    assert (window.step, window.first, window.last, window.same_bits) == (37, 35, 38, True)
    assert not window.said
    for label, path in window.traces.items():
        short = open_trace(path)
        assert short.steps == (35, 36, 37, 38)
        assert all(entry.stored for entry in short.entry(37).tensors)
        assert hashes(path, 37) == hashes(result.traces[label], 37)
    code, out, _ = run_cli(
        capsys, "zoom", result.traces["mine"], result.traces["theirs"], "--step", 20, "--json"
    )
    found = json.loads(out)["found"]
    assert (found["zoom"]["windows"][0]["first"], found["verdict"]["label"]) == (18, "identical")
    assert code == 1  # the runs part all the same


def test_a_script_that_does_not_repeat_itself_is_named_and_nobody_is_acquitted(tmp_path):
    noisy = "grad = grad + np.random.default_rng().normal() * 1e-9 if step > 10 else grad"
    text = PLAIN.replace("            w = w - 0.1", f"            {noisy}\n            w = w - 0.1")
    mine = script(tmp_path, "mine", text, steps=30)
    result = zoomed(tmp_path, mine, script(tmp_path, "theirs", steps=30), trace=30)
    window = result.zoom.windows[0]
    assert not window.same_bits
    assert window.label != "rounding"
    (said,) = window.said
    assert said.startswith("mine does not repeat itself: run again, grads/w of step ")
    assert "records no model of a framework" in said
    assert "zoom cannot be exact" in said
    assert said in result.verdict.evidence
    assert any("NOT TO THE SAME BITS" in line for line in result.verdict.evidence)


def test_a_window_that_is_not_the_long_run_again_acquits_nobody(tmp_path):
    inside = "rec.log(noise=1.0 + np.random.default_rng().normal() * 1e-15)"
    mine, theirs = (script(tmp_path, name, inside=inside) for name in ("mine", "theirs"))
    result = run(tmp_path, mine, theirs, trace=6, capture=STATS)
    _, found = zoom_traces(*result.traces.values(), step=6)
    assert found.zoom.windows[0].label == found.verdict.label == "undecided"
    assert found.verdict.next.startswith("give mine and theirs a seed")


def test_only_what_acquits_is_doubted():
    for label in ("identical", "close", "rounding"):
        found = doubted(Verdict(label, "fine"), ("a", "b"), ["a"])
        assert (found.label, found.sentence) == (
            "undecided",
            "the evidence on a and b does not decide",
        )
        assert "give a a seed" in found.next
    bug = Verdict("bug", "wrong")
    assert doubted(bug, ("a", "b"), ["a"]) is bug


def test_a_side_that_is_killed_leaves_a_trace_that_can_be_read_and_zoomed_into(tmp_path):
    killed = "time.sleep(0.3) or os.kill(os.getpid(), 9) if step == 12 else None"
    mine = script(tmp_path, "mine", top="import os, time", inside=killed, steps=30)
    theirs = script(tmp_path, "theirs", steps=30)
    said = failed(tmp_path, theirs, mine, trace=30, capture=STATS, zoom=True, sequential=True)
    assert "side mine failed after step 12: killed by SIGKILL" in said
    path = tmp_path / "out" / "mine.trace"
    trace = open_trace(path)
    assert (trace.header.complete, trace.steps) == (False, tuple(range(1, 13)))
    step = trace.step(10)  # a checkpoint
    assert step.read(step.find("params/w")).shape == (3,)
    _, found = zoom_traces(tmp_path / "out" / "theirs.trace", path, step=6)
    assert found.zoom.windows[0].same_bits
    assert found.verdict.label == "identical"


def test_without_a_framework_or_where_the_start_differs_there_is_no_closer_look(tmp_path):
    mine, theirs = script(tmp_path, "mine", seed=2), script(tmp_path, "theirs")
    result = zoomed(tmp_path, mine, theirs, trace=4)
    assert result.zoom is None
    assert result.verdict.sentence == "mine and theirs do not start from the same inputs"
    assert "--hand-over inputs" in result.verdict.next


def test_at_level_stats_the_first_step_and_what_is_handed_over_are_kept(tmp_path):
    start = "w = np.ones(3) if step == 0 else w"
    mine = script(tmp_path, "mine", seed=2, inside=start)
    theirs = script(tmp_path, "theirs", inside=start)
    result = run(tmp_path, mine, theirs, hand_over="inputs", capture=STATS)
    assert result.diff.status == "identical"
    stored = {
        label: [
            {entry.name for entry in open_trace(path).entry(step).tensors if entry.stored}
            for step in (1, 3)
        ]
        for label, path in result.traces.items()
    }
    assert stored["mine"][0] == stored["theirs"][0] == set(hashes(result.traces["mine"], 1))
    assert (stored["mine"][1], stored["theirs"][1]) == (set(), {"inputs/x", "inputs/y"})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"zoom": True}, "--level full --zoom: full traces hold everything"),
        ({"zoom": True, "capture": Capture(level="hash")}, "hashes cannot tell"),
        ({"data": "ptb"}, "--data: no side is a twin"),
        ({"tokens": "char"}, "--tokens: no side is a twin"),
        ({"device": "gpu"}, "--device: no side is a twin"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_runs(options, words, tmp_path):
    said = failed(tmp_path, script(tmp_path, "mine"), script(tmp_path, "theirs"), **options)
    assert words in said
    assert "\n" not in said
    assert not (tmp_path / "out" / "mine.trace").exists()


def test_a_hand_over_that_reaches_nobody_is_refused(tmp_path):
    mine = script(tmp_path, "mine")
    for sides, what, words in (
        (
            (mine,),
            "weights",
            "nothing would be handed over: scripts get it from the last side, mine",
        ),
        (("np", mine), "weights,masks", "no other side is a script"),
        (("pt", "np"), "masks", "no side is a script"),
    ):
        said = failed(tmp_path, *sides, hand_over=what)
        assert words in said
        assert said.startswith(f"--hand-over {what}: ")
    assert run(tmp_path, mine, hand_over="masks").traces  # which the harness draws


def test_traces_whose_scripts_cannot_be_run_again_are_told_of(tmp_path, capsys):
    one, two = script(tmp_path, "one"), script(tmp_path, "two")
    result = run(tmp_path, one, two, capture=Capture(level="stats"))
    a, b = result.traces.values()

    def said(*arguments):
        code, _, err = run_cli(capsys, "zoom", *arguments)
        assert code == 2
        return " ".join(err.split())

    assert "both are of side one" in said(a, a, "--step", 2)
    assert "--step 9: " in said(a, b, "--step", 9)
    (tmp_path / "two.py").unlink()
    assert "two.py is not there" in said(a, b, "--step", 2)
    (tmp_path / "out" / "one.json").unlink()
    assert "there is no one.json" in said(a, b, "--step", 2)


def traced(path, steps, tensors, level="full", **options):
    """A trace of a script, of which each step holds what `tensors` gives for it."""
    fields = {"framework": {"torch": "2"}, "capture": Capture(level=level), **options}
    with TraceWriter(path, label=path.stem, dtype="float32", **fields) as trace:
        for step in range(1, steps + 1):
            trace.write(step, tensors(step))
    return str(path)


def spec(path, **fields):
    return ScriptSpec(label=path.stem, argv=("x.py",), steps=9, trace=str(path), **fields)


def test_a_run_goes_on_from_what_is_kept_and_is_fed_from_its_start_on(tmp_path):
    names = ("params/w", "buffers/m", "optimizer/w/m", "grads/w", "inputs/x")
    path = traced(
        tmp_path / "kept.trace", 4, lambda s: {n: np.full(2, s, np.float32) for n in names}
    )
    resumed = Replay(spec(tmp_path / "a.trace", start=4, resume=Resume(path, 3)))
    assert set(resumed.restart(4)) == {"params/w", "buffers/m", "optimizer/w/m"}
    assert resumed.restart(4)["params/w"].tolist() == [3, 3]
    assert resumed.restart(3) == resumed.restart(5) == {}
    # Of the steps before its start a follower is handed nothing that there is not.
    with TraceWriter(tmp_path / "late.trace", label="late", dtype="float32") as trace:
        for step in (5, 6):
            trace.write(step, {n: np.full(2, step, np.float32) for n in names})
    follow = Follow(str(tmp_path / "late.trace"), "stage", exclude=("grads/*",))
    late = Replay(spec(tmp_path / "a.trace", start=6, follow=follow))
    assert late.weights() == {}
    assert late.input(2, "x") is None
    assert late.feed(2) is None
    assert not late.within(2)
    assert late.feed(6)("params/w").tolist() == [6, 6]
    assert late.feed(6)("grads/w") is None
    with pytest.raises(harness.HarnessError, match="no step 7"):
        late.input(7, "x")


def test_masks_are_handed_to_the_steps_that_are_not_traced_too(tmp_path):
    masks = spec(tmp_path / "a.trace", replay=(HandOver(("masks",)),))
    assert Replay(masks).within(3)
    assert not Replay(spec(tmp_path / "a.trace")).within(3)


def test_checkpoints_of_scripts_have_their_buffers():
    assert STATS.keeps(20, "buffers/1/running_mean")
    assert not STATS.keeps(21, "buffers/1/running_mean")


def test_what_has_other_names_or_types_is_no_jump(tmp_path):
    def entries(name, width, weight, seed, **how):
        draw = np.random.default_rng(seed)
        path = traced(
            tmp_path / f"{name}.trace",
            3,
            lambda step: {
                "inputs/x": np.arange(3, dtype=width) + step,
                f"params/{weight}": draw.normal(size=6).astype(np.float32),
            },
            level="stats",
        )
        trace = harness.open_trace(path, **how)
        return [trace.entry(step) for step in trace.steps]

    names = tmp_path / "map.toml"
    names.write_text('[[params]]\na = "w"\nb = "v"\nsure = "certain"\nby = ["name"]\n')
    b = entries("b", np.int64, "v", 0)
    renamed = entries("renamed", np.int64, "w", 1, alignment=str(names))
    assert {e.name for e in renamed[0].tensors} >= {"params/v"}
    assert jumps(zip(renamed, b, strict=True)) == []
    assert jumps(zip(entries("narrow", np.int32, "v", 0), b, strict=True)) == []
    other = entries("other", np.int64, "v", 1)
    assert [found.step for found in jumps(zip(other, b, strict=True))] == [1]
    assert jumps(zip(other, b, strict=True), exclude=("params/*",)) == []


def test_weights_and_inputs_that_a_hand_over_does_not_reach_are_listed(tmp_path):
    x, zeros = np.ones(2, np.float32), np.zeros(2, np.float32)
    own = ("inputs/params/w", "inputs/params/e", "inputs/buffers/m", "inputs/x", "inputs/z")
    leader = traced(tmp_path / "b.trace", 2, lambda s: dict.fromkeys(own[:1] + own[3:4], x))
    traced(tmp_path / "a.trace", 2, lambda s: dict.fromkeys((*own, "inputs/mask/0"), zeros))
    hand = HandOver(("weights", "inputs"), leader)
    runs = spec(tmp_path / "a.trace", replay=(hand,)), spec(tmp_path / "b.trace")
    assert unreached(runs) == [
        "--hand-over weights: 2 of 3 tensors of a have no partner in b and stay the script's own: "
        "buffers/m, params/e",
        "--hand-over inputs: 1 of 2 tensors of a have no partner in b and stay the script's own: z",
    ]
    whole = dict.fromkeys(own, x)
    traced(tmp_path / "b.trace", 2, lambda s: whole)
    assert unreached(runs) == []


def test_what_a_hand_over_does_not_reach_is_in_the_report(tmp_path):
    mine, theirs = script(tmp_path, "mine", factor=1), script(tmp_path, "theirs")
    evidence = run(tmp_path, mine, theirs, hand_over="weights").verdict.evidence
    assert evidence[0].startswith("--hand-over weights: mine records no model of a framework")


def test_a_checkpoint_is_put_in_place_whole_or_not_at_all(tmp_path):
    def tensors(*names):
        return lambda step: {name: np.full(2, step, np.float32) for name in names}

    kept = Capture(level="stats", checkpoint_every=2)
    names = ("params/w", "buffers/m", "grads/w")
    long = traced(tmp_path / "long.trace", 4, tensors(*names), capture=kept)
    holed = traced(tmp_path / "holed.trace", 4, tensors(*names[:1]), capture=kept)
    bare = traced(tmp_path / "bare.trace", 4, tensors(*names), capture=kept, framework={})
    short = open_trace(traced(tmp_path / "short.trace", 1, tensors(*names)))
    assert cannot_restore(open_trace(long), short, 2) is None
    assert "no checkpoint was kept" in cannot_restore(open_trace(long), short, 0)
    assert "of step 2 has no buffers/m (--incl" in cannot_restore(open_trace(holed), short, 2)
    assert "no model of a framework" in cannot_restore(open_trace(bare), short, 2)


def test_a_trace_without_a_step_is_nothing_to_zoom_into(tmp_path):
    path = traced(tmp_path / "a.trace", 0, dict, level="stats")
    with pytest.raises(harness.HarnessError, match=r"a\.trace: no step of it was finished"):
        zoom_traces(path, path)


def test_a_learning_rate_that_is_set_is_said_with_where_it_parts():
    rates = {("a", 4): 0.01, ("b", 4): 0.01, ("a", 5): 0.005, ("b", 5): 0.01}

    def case(step, name="update/learning_rate"):
        def lookup(side, at, _):
            return np.array(rates[side, at]) if (side, at) in rates else None

        return Case(step, name, lookup("a", step, ""), lookup("b", step, ""), lookup)

    assert hints(Trial(case(5)))[0].sentence == (
        "update/learning_rate: a takes 0.005, 0.5 times the 0.01 of b; both took 0.01 at step 4: "
        "compare how the schedules change it there"
    )
    rates["a", 4] = 0.005
    assert hints(Trial(case(5)))[0].sentence.endswith("0.5 times the 0.01 of b")
    assert hints(Trial(case(5, "log/loss"))) == []


@pytest.mark.slow
def test_a_schedule_that_changes_late_is_named_also_with_dropout(tmp_path):
    net = network(tmp_path)
    result = zoomed(tmp_path, f"a={net} late", f"b={net}")
    assert (result.verdict.label, result.verdict.where.step) == ("bug", 37)
    assert result.verdict.where.tensor == "update/learning_rate"
    cause = result.verdict.causes[0]
    assert cause.name == "learning-rate"
    assert "a takes 0.005, 0.5 times the 0.01 of b; both took 0.01 at step 36" in cause.sentence
    assert result.zoom.windows[0].same_bits


@pytest.mark.slow
def test_a_checkpoint_is_put_in_place_where_a_script_draws_other_weights(tmp_path):
    net = network(tmp_path)
    result = zoomed(tmp_path, f"a={net} late", f"b={net} weights", hand_over="weights")
    assert (result.verdict.label, result.verdict.where.step) == ("bug", 37)
    window = result.zoom.windows[0]
    assert window.same_bits
    (said,) = window.said
    assert said.startswith("b does not repeat itself: run again, ")
    assert said.endswith(
        "with weights, buffers and slots of the checkpoint of step 30 put in place, all of the "
        "window has the same bits"
    )


@pytest.mark.slow
def test_dropout_without_a_seed_cannot_be_zoomed_into_exactly_and_handed_masks_can(tmp_path):
    net = network(tmp_path)
    sides = f"a={net} late masks", f"b={net}"
    result = zoomed(tmp_path, *sides, hand_over="masks")
    assert (result.verdict.label, result.verdict.where.step) == ("bug", 37)
    assert result.zoom.windows[0].same_bits
    result = zoomed(tmp_path, *sides)
    assert result.verdict.sentence == "a and b do not start from the same masks of dropout"
    _, found = zoom_traces(*result.traces.values(), step=37)
    (said,) = found.zoom.windows[0].said
    assert "of the checkpoint of step 30 put in place, inputs/mask/3 of step 35 has still" in said
    assert "zoom cannot be exact" in said


# The twin's LSTM in PyTorch: the same start is handed over.
LSTM = """
import sys
import torch
from torch import nn
from torch.nn import functional
import harness

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Embedding(256, 7)
        self.rnn = nn.LSTM(7, 11, batch_first=True)
        self.decoder = nn.Linear(11, 256)

    def forward(self, x, state):
        out, state = self.rnn(self.encoder(x), state)
        return self.decoder(out), state

net, state = Net(), None
sgd = torch.optim.SGD(net.parameters(), lr=0.5)
with harness.record(net, sgd) as rec:
    for step in range(10**6):
        x = torch.zeros(3, 5, dtype=torch.int64)
        with rec.step(x=x, y=x) as (x, y):
            sgd.zero_grad()
            logits, state = net(x, state)
            state = tuple(s.detach() * (0 if step >= 14 else 1) for s in state)
            each = functional.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="sum")
            loss = each / 3
            loss.backward()
            sgd.step()
            rec.log(loss=loss)
"""
TWIN = ("embed_size=7", "hidden_size=11", "num_layers=1", "batch_size=3", "bptt=5", "lr=0.5")


@pytest.mark.slow
def test_a_script_against_a_twin_loses_its_state_at_a_late_step(tmp_path):
    mine = script(tmp_path, "mine", LSTM)
    # What a twin calls the gradient of h comes from later timesteps too.
    capture = Capture(level="stats", exclude=("backward/*",))
    options = {"settings": (*TWIN, "clip=none"), "hand_over": "weights,inputs", "zoom": True}
    result = run(tmp_path, mine, "np", trace=20, capture=capture, **options)
    found = result.verdict
    assert (found.label, found.side) == ("bug", "mine")
    assert (found.where.step, found.where.tensor) == (16, "forward/layer0/h")
    (window,) = result.zoom.windows
    assert (window.checkpoint, window.same_bits) == (10, True)
    assert any("(mine: the start) to the same bits" in line for line in found.evidence)
    assert not [line for line in found.evidence if "failed" in line]


@pytest.mark.slow
def test_in_step_scripts_start_each_step_from_one_state(tmp_path, monkeypatch):
    monkeypatch.setattr("harness.runs.lockstep.STRETCH", 1)  # several stretches, of four steps
    net = network(tmp_path)
    text = net.read_text().replace("k >= 36", "k >= 7")
    net.write_text(text)
    fields = {"steps": 12, "capture": STATS}
    runs = tuple(
        ScriptSpec(label=label, argv=argv, trace=str(tmp_path / f"{label}.trace"), **fields)
        for label, argv in (("a", (str(net), "late")), ("b", (str(net),)))
    )
    sides = [Side(one.label, "", script=one.argv) for one in runs]
    with Session(sides, tmp_path, harness.Observer()) as session:
        session.run_all([(one.label, one) for one in runs])
        pairs = list(run_in_lockstep(session, runs))
    assert [(a.step, b.step) for a, b in pairs] == [(s, s) for s in range(1, 13)]
    for _, entry in pairs:  # the leader is the long run again, to the last bit
        assert {e.name: e.hash for e in entry.tensors} == hashes(runs[1].trace, entry.step)
    for a, b in pairs:
        other = {e.name for e in a.tensors if e.hash != {f.name: f.hash for f in b.tensors}[e.name]}
        learned = {name for name in other if name.startswith(("update/", "params/"))}
        assert other == learned, a.step  # nothing of the step before is left of it
        assert bool(other) == (a.step >= 8)
    assert not [p for p in tmp_path.iterdir() if "-lockstep-" in p.name]
