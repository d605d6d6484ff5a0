"""From planted faults to verdicts, through every further run that a verdict needs."""

import json
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from harness.cli.main import main
from harness.compare import diff
from harness.errors import HarnessError
from harness.explain import explain_traces
from harness.observer import Observer
from harness.runs.files import step_bytes
from harness.runs.investigation import Investigation
from harness.scoreboard.lab import Lab
from harness.spec import Capture, Follow
from harness.trace import open_trace


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    with Lab(tmp_path_factory.mktemp("lab"), Observer()) as made:
        yield made


def run(lab, settings=None, steps=4, faults=None, **fields):
    """Both sides to their ends, and the diff."""
    planted = faults or {}
    runs = tuple(
        msgspec.structs.replace(
            lab.run_spec(side, settings or {}, steps, faults=planted.get(side, ())), **fields
        )
        for side in ("pt", "tf")
    )
    lab.session.run_all([(spec.label, spec) for spec in runs])
    return runs, diff(runs[0].trace, runs[1].trace)


def verdict(lab, *args, **kwargs):
    runs, found = run(lab, *args, **kwargs)
    return Investigation(lab.session, runs, found).verdict()


@pytest.mark.parametrize("side", ["pt", "tf"])
def test_a_planted_fault_is_a_bug_of_its_side_at_its_place_with_its_cause(lab, side):
    found = verdict(lab, faults={side: ("clip-elementwise",)})
    assert (found.label, found.side) == ("bug", side)
    assert (found.where.step, found.where.tensor.rpartition("/")[0]) == (3, "update/clipped")
    # Where no element reaches the limit, both leave the gradient as it is: neither is certain.
    likely = {cause.claim for cause in found.causes if cause.sure == "likely"}
    assert {f"{side} does not clip", f"{side} clamps each element of the gradients"} <= likely
    assert not [cause for cause in found.causes if cause.sure == "certain"]


@pytest.mark.parametrize("side", ["pt", "tf"])
def test_a_fault_between_steps_is_seen_although_following_starts_each_step_anew(lab, side):
    # The side computes on with other weights than those that its own trace says it has.
    found = verdict(lab, faults={side: ("old-weights",)})
    assert (found.label, found.where.step) == ("bug", 2)


def test_products_in_less_precision_are_told_from_a_bug_and_the_side_is_named(lab):
    found = verdict(lab, faults={"tf": ("products-bfloat16",)})
    assert (found.label, found.side, found.where.step) == ("precision", "tf", 1)
    assert found.where.dtype == "float32"


@pytest.mark.slow
def test_free_runs_past_the_edge_of_stability_are_rounding_in_both_precisions(lab):
    for dtype in ("float32", "float64"):
        runs, found = run(lab, {"lr": "30", "dtype": dtype}, steps=12)
        assert found.status == "diverged", "the runs must part, or this shows nothing"
        judged = Investigation(lab.session, runs, found).verdict()
        assert judged.label == "rounding"
        assert any("no stage of 12 steps differs" in line for line in judged.evidence)


def test_a_clean_side_that_starts_each_step_from_the_others_is_not_accused(lab):
    # Within one step RMSprop makes much of the rounding of small gradients.
    settings = {"optimizer": "rmsprop", "lr": "0.05", "seed": "2"}
    leader = lab.run_spec("tf", settings, 8)
    follow = Follow(leader.trace, "step")
    follower = msgspec.structs.replace(lab.run_spec("pt", settings, 8), follow=follow)
    lab.session.run_all([("tf", leader)])
    lab.session.run_all([("pt", follower)])
    found = diff(follower.trace, leader.trace, all=True)
    assert found.status == "diverged", "or this shows nothing"
    assert Investigation(lab.session, (follower, leader), found).verdict().label == "rounding"


def test_a_fault_smaller_than_the_tolerance_of_float32_is_found_by_a_closer_look(lab):
    runs, found = run(lab, faults={"pt": ("logits-scaled",)})
    assert found.equivalent
    judged = Investigation(lab.session, runs, found).verdict()
    assert (judged.label, judged.where.step, judged.where.tensor) == ("bug", 1, "forward/logits")


def test_a_run_that_traced_little_is_judged_from_runs_that_trace_all(lab):
    capture = Capture(include=("forward/loss", "params/*"), every=2)
    found = verdict(lab, faults={"tf": ("clip-elementwise",)}, capture=capture)
    assert (found.label, found.where.step) == ("bug", 3)
    assert found.where.tensor.startswith("update/clipped/")


def test_a_run_that_fails_in_float64_is_told_of_and_float32_is_judged_alone(lab, tmp_path):
    runs, found = run(lab, faults={"pt": ("gates-igfo",)})
    gone = tmp_path / "gone.npz"
    broken = tuple(msgspec.structs.replace(spec, weights=str(gone)) for spec in runs)
    judged = Investigation(lab.session, broken, found).verdict()
    assert any("failed after step 0" in line and "gone.npz" in line for line in judged.evidence)


@pytest.mark.slow
def test_the_steps_that_are_judged_are_limited_where_the_traces_would_be_large(lab, monkeypatch):
    monkeypatch.setattr("harness.runs.investigation.LARGE", 1000)
    runs, found = run(lab, steps=6, faults={"pt": ("clip-elementwise",)})
    judged = Investigation(lab.session, runs, found).verdict()
    assert judged.label == "bug"
    assert any("only steps 1 to 3 were judged" in line for line in judged.evidence)
    assert not list(lab.folder.glob("*-follows-*.trace")), "large traces are not kept"


def test_what_a_full_step_takes_at_most_is_known_without_a_full_trace(lab):
    # Rows of zeros, and what has not changed, are not stored.
    for settings in ({}, {"optimizer": "adam", "lr": "0.01"}):
        runs, _ = run(lab, settings, steps=2)
        whole = open_trace(runs[1].trace).entry(2).bytes
        assert whole < step_bytes(runs[1].model, runs[1].train) < 1.5 * whole


def test_a_disk_without_room_is_told_of_and_nothing_is_run(lab, monkeypatch):
    runs, found = run(lab, faults={"pt": ("clip-elementwise",)})
    monkeypatch.setattr(
        "harness.runs.investigation.shutil.disk_usage", lambda path: SimpleNamespace(free=1)
    )
    monkeypatch.setattr(lab.session, "run_all", None)
    judged = Investigation(lab.session, runs, found).verdict()
    assert any("MiB of traces" in line for line in judged.evidence)


def test_explain_reads_traces_made_elsewhere_and_says_what_is_missing(lab):
    runs, _ = run(lab, faults={"pt": ("gates-hard",)})
    found, alone = explain_traces(runs[0].trace, runs[1].trace)
    assert (found.status, found.first_divergence.step) == ("diverged", 1)
    assert sum("not given" in line for line in alone.evidence) == 2
    Investigation(lab.session, runs, found).verdict()  # leaves the traces that are handed on
    traces = {
        "referee_a": lab.folder / "pt-float64.trace",
        "referee_b": lab.folder / "tf-float64.trace",
        "followed_a": lab.folder / "pt-follows-tf-float32.trace",
        "followed_b": lab.folder / "tf-follows-pt-float32.trace",
    }
    _, full = explain_traces(runs[0].trace, runs[1].trace, **traces)
    assert full.label == "bug"
    assert not any("not given" in line for line in full.evidence)
    with pytest.raises(HarnessError, match="give both, or neither"):
        explain_traces(runs[0].trace, runs[1].trace, referee_a=traces["referee_a"])


def test_a_following_step_shows_a_fault_at_each_step_that_exercises_it(lab):
    settings = {"lr": "8"}
    leader = lab.run_spec("tf", settings, 10)
    faulty = lab.run_spec("pt", settings, 10, faults=("clip-elementwise",))
    follower = msgspec.structs.replace(faulty, follow=Follow(leader.trace, "step"))
    lab.session.run_all([("tf", leader)])
    lab.session.run_all([("pt", follower)])
    found = diff(follower.trace, leader.trace, all=True)
    steps = {d.step for d in found.divergences}
    trace = open_trace(leader.trace)
    norms = {n: trace.step(n).read(trace.step(n).find("update/global_norm")) for n in trace.steps}
    limit = leader.train.clip_limit
    assert steps == {n for n, norm in norms.items() if norm > limit}
    assert 1 < len(steps) < 10
    assert not [d for d in found.divergences if d.tensor.startswith("grads/")]


TINY = ("--batch-size", "3", "--bptt", "5", "--set", "embed_size=7", "--set", "hidden_size=11")
TINY += ("--set", "init_scale=0.4", "--set", "clip_limit=1.83", "--lr", "2", "--trace", "4")


def command(*arguments):
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return ended.value.code


def test_the_answer_is_in_the_first_24_lines_and_names_what_to_do_next(tmp_path, capsys):
    code = command("run", *TINY, "--out", tmp_path, "--fault", "tf:clip-elementwise")
    screen = capsys.readouterr().out.splitlines()[:24]
    assert code == 1
    assert screen[0].startswith("BUG: pt and tf compute different things, first at step 3")
    answer = "\n".join(screen)
    for word in ("where", "cause", "next", "does not clip", "tf is off", "harness show"):
        assert word in answer


def test_a_third_side_votes_and_no_verdict_stops_the_further_runs(tmp_path, capsys):
    sides = ("--side", "pt", "--side", "tf", "--side", "np", "--no-verdict")
    fault = ("--fault", "pt:gates-igfo", "--json")
    code = command("run", *TINY, "--out", tmp_path, *sides, *fault)
    found = json.loads(capsys.readouterr().out)
    assert code == 1
    assert found["pairs"] == {"pt|np": "diverged", "tf|np": "close", "pt|tf": "diverged"}
    assert found["verdict"] is None
    assert sorted(Path(found["traces"][label]).name for label in found["traces"]) == [
        "np.trace",
        "pt.trace",
        "tf.trace",
    ]
    assert not list(tmp_path.glob("*float64*"))


def test_following_by_stage_reports_each_of_two_faults_at_its_own_place(tmp_path, capsys):
    faults = ("--fault", "pt:gates-igfo", "--fault", "pt:clip-elementwise", "--follow=stage")
    code = command("run", *TINY, "--out", tmp_path, *faults, "--json")
    found = json.loads(capsys.readouterr().out)
    assert code == 1
    assert found["verdict"]["label"] == "bug"
    places = {place["tensor"]: place["step"] for place in found["verdict"]["places"]}
    assert places["forward/layer0/c"] == 1
    assert places["update/clipped/softmax_w"] == 3
    assert not [name for name in places if name.startswith(("params/", "forward/loss"))]
    assert found["verdict"]["causes"][0]["name"] == "block-order"


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("clip-elementwise", "give LABEL:NAME"),
        ("jax:clip-elementwise", "no side named 'jax'"),
        ("pt:clip-elementwize", "clip-elementwise"),
    ],
)
def test_a_fault_that_cannot_be_planted_is_refused_before_anything_runs(
    tmp_path, capsys, fault, said
):
    assert command("run", *TINY, "--out", tmp_path / "o", "--fault", fault) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "o").exists()
