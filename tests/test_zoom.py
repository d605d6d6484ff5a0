"""Zoom: from the statistics of a long run to the full trace of the steps that matter."""

import json

import msgspec
import pytest
from some import some

from harness.cli.main import main
from harness.compare import diff
from harness.errors import HarnessError
from harness.observer import Observer
from harness.runs.checkpoints import require_zoomable
from harness.runs.investigation import Investigation
from harness.runs.lockstep import run_in_lockstep
from harness.runs.rerun import twin_of
from harness.runs.suspects import jumps, suspects
from harness.runs.zoom import zoom
from harness.scoreboard.lab import Lab
from harness.spec import Capture
from harness.trace import Program, TraceWriter, open_trace

EPOCH = 500  # tokens: with the lab's batches the second epoch starts at step 34
STATS = Capture(level="stats", checkpoint_every=10)


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    with Lab(tmp_path_factory.mktemp("lab"), Observer()) as made:
        yield made


def run(lab, steps, capture, settings=None, **faults):
    """Both sides to their ends, and the diff."""
    runs = tuple(
        msgspec.structs.replace(
            lab.run_spec(
                side, settings or {}, steps, tokens=EPOCH, faults=tuple(faults.get(side, ()))
            ),
            capture=capture,
        )
        for side in ("pt", "tf")
    )
    lab.session.run_all([(spec.label, spec) for spec in runs])
    return runs, diff(runs[0].trace, runs[1].trace)


def zoomed(lab, steps, settings=None, **faults):
    runs, found = run(lab, steps, STATS, settings, **faults)
    assert found.status in ("close", "diverged")
    return zoom(lab.session, runs, found)


def conclusion(verdict):
    """Step, tensor, verdict, side, and what is said of the first cause."""
    place = verdict.where
    causes = [(cause.name, cause.sentence) for cause in verdict.causes[:1]]
    return verdict.label, verdict.side, place and (place.step, place.tensor, place.index), causes


LATE = {
    "state-not-reset": ("tf", 34),
    "rare-token-scaled": ("pt", 4),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LATE)
def test_a_zoomed_run_ends_as_a_full_trace_does(lab, name):
    side, step = LATE[name]
    found = zoomed(lab, step + 5, **{side: [name]})
    runs, free = run(lab, step + 2, Capture(), **{side: [name]})
    full = Investigation(lab.session, runs, free).verdict()
    assert full.where.step == step
    assert conclusion(found.verdict) == conclusion(full)
    assert found.diff.first_divergence == free.first_divergence
    (window,) = found.zoom.windows
    assert (window.step, window.label) == (step, "bug")
    assert window.same_bits
    assert window.checkpoint == max(0, (step - 3) // 10 * 10)
    assert open_trace(window.traces["pt"]).steps == tuple(range(max(1, step - 2), step + 2))


@pytest.mark.slow
def test_a_bug_behind_rounding_that_has_passed_the_tolerance_is_found_by_its_jump(lab):
    found = zoomed(lab, 40, {"lr": "15"}, tf=["state-not-reset"])
    first, second = found.zoom.windows
    assert (first.label, second.label, second.step) == ("rounding", "bug", 34)
    assert "over the tolerance" in first.reason
    assert "state/in/layer0/h jumps" in second.reason
    assert (found.verdict.label, found.verdict.side) == ("bug", "tf")
    claim = "tf goes on with state/out/layer0/h of the step before"
    assert [cause.claim for cause in found.verdict.causes] == [claim]


def test_rounding_that_passes_the_tolerance_is_called_rounding_and_nothing_jumps(lab):
    found = zoomed(lab, 40, {"lr": "8"})
    (window,) = found.zoom.windows
    assert (window.label, found.verdict.label) == ("rounding", "rounding")
    assert found.zoom.in_step == 40
    assert "no bug hides behind the rounding" in " ".join(found.verdict.evidence)


@pytest.mark.parametrize("side", some(["pt", "tf"], fast=["pt"]))
def test_in_step_a_late_bug_jumps_although_the_free_runs_have_grown_apart(lab, monkeypatch, side):
    monkeypatch.setattr("harness.runs.lockstep.LONGEST", 7)  # several stretches
    runs, _ = run(lab, 40, STATS, {"lr": "30"}, **{side: ["state-not-reset"]})
    pairs = list(run_in_lockstep(lab.session, runs))
    assert [(a.step, b.step) for a, b in pairs] == [(s, s) for s in range(1, 41)]
    found = max(jumps(pairs, lockstep=True), key=lambda suspect: suspect.size)
    assert (found.step, found.reason.split()[0]) == (34, "state/in/layer0/h")
    # The leader is the long run again, to the last bit, and nothing is left of it.
    long = open_trace(runs[1].trace)
    for _, entry in pairs:
        hashes = {e.name: e.hash for e in long.entry(entry.step).tensors}
        assert {e.name: e.hash for e in entry.tensors} == hashes
    assert not [p for p in lab.folder.iterdir() if "-lockstep-" in p.name]


def test_in_step_a_side_that_fails_is_told_of_and_leaves_nothing(lab):
    runs, _ = run(lab, 3, STATS)
    broken = msgspec.structs.replace(runs[0], weights="nowhere.npz")
    with pytest.raises(HarnessError, match="side pt failed"):
        list(run_in_lockstep(lab.session, (broken, runs[1])))
    assert not [p for p in lab.folder.iterdir() if "-lockstep-" in p.name]


def test_where_nothing_parts_there_is_nothing_to_zoom_into(lab):
    assert zoomed(lab, 8) is None


def test_a_window_that_is_not_the_long_run_again_is_called_so(lab):
    # Its memory of the step before is no part of a checkpoint.
    runs, free = run(lab, 24, STATS, tf=["gradients-stale"])
    found = zoom(lab.session, runs, free, step=20)
    assert not found.zoom.windows[0].same_bits
    assert any("NOT TO THE SAME BITS" in line for line in found.verdict.evidence)


def test_every_tensor_of_a_clean_run_keeps_its_usual_gap(lab):
    (a, b), free = run(lab, 40, STATS, {"lr": "4"})
    assert suspects(open_trace(a.trace), open_trace(b.trace), free) == ()


@pytest.mark.parametrize(
    ("level", "reason"), [("full", "full traces hold everything"), ("hash", "cannot tell")]
)
def test_only_statistics_are_zoomed_into(level, reason):
    with pytest.raises(HarnessError, match=f"^--level {level} --zoom: .*{reason}"):
        require_zoomable(Capture(level=level))


TINY = ["--set", "hidden_size=11", "--set", "embed_size=7", "--batch-size", "3", "--bptt", "5"]


def run_cli(capsys, *arguments):
    with pytest.raises(SystemExit) as exit_:
        main([str(a) for a in arguments])
    return exit_.value.code, *capsys.readouterr()


def test_the_commands_zoom_and_say_what_they_stored(tmp_path, capsys):
    options = [*TINY, "--out", tmp_path, "--fault", "tf:rare-token-scaled"]
    code, out, _ = run_cli(capsys, "run", "--trace", 9, "--zoom", *options)
    assert code == 1
    assert "BUG: pt and tf compute different things, first at step 5, forward/embedding" in out
    assert "stored: pt 0." in out
    code, out, _ = run_cli(
        capsys, "zoom", tmp_path / "pt.trace", tmp_path / "tf.trace", "--step", 6, "--json"
    )
    found = json.loads(out)["found"]
    assert code == 1
    assert found["zoom"]["windows"][0]["first"] == 4
    assert found["zoom"]["kept"]["pt"] > found["zoom"]["windows"][0]["step"]


def test_traces_that_were_moved_cannot_be_run_again(tmp_path, capsys):
    options = [*TINY, "--out", tmp_path / "there", "--level", "stats", "--side", "np"]
    run_cli(capsys, "run", "--trace", 2, *options)
    moved = tmp_path / "np.trace"
    (tmp_path / "there" / "np.trace").rename(moved)
    code, _, err = run_cli(capsys, "zoom", moved, moved)
    assert code == 2
    assert "np.json" in err


@pytest.mark.parametrize(
    ("program", "framework", "twin"),
    [
        (Program("twin", "pt_impl", "x"), {"numpy": "2"}, "pt"),
        (Program("twin", "np_impl", "x"), {"torch": "2"}, "np"),
        (Program("twin", "my_impl", "x"), {"torch": "2"}, None),
        (Program("script", "pt_impl", "x"), {"torch": "2"}, None),
        (Program("script", "train.py", "x"), {"tensorflow": "2"}, None),
        (None, {"tensorflow": "2"}, "tf"),
        (None, {}, None),
    ],
)
def test_the_twin_that_made_a_trace_is_known_by_its_header(tmp_path, program, framework, twin):
    path = tmp_path / "a.trace"
    TraceWriter(path, label="a", dtype="float32", framework=framework, program=program).close()
    if program is None:  # of an earlier version
        header = json.loads((path / "trace.json").read_text()) | {"version": 2}
        del header["program"]
        (path / "trace.json").write_text(json.dumps(header))
    trace = open_trace(path)
    if twin:
        assert twin_of(trace) == twin
    else:
        with pytest.raises(HarnessError, match=r"is no twin of ours .pt_impl, tf_impl, np_impl."):
            twin_of(trace)
