"""The scoreboard and the injections: what they count, and that they count failures too."""

import json
import re
import subprocess
import sys

import msgspec
import numpy as np
import pytest

from harness.cli.main import main
from harness.errors import HarnessError
from harness.explain import Cause, Verdict
from harness.faults.catalogue import specs
from harness.models.faults import CATALOGUE, MODELS
from harness.models.table import fields_of
from harness.observer import Observer
from harness.scoreboard import fuzz as fuzzing
from harness.scoreboard.baselines import BASELINES, NUMPY, TORCH, Baseline, first_failure
from harness.scoreboard.bench import bench, clean_pairs, record
from harness.spec import Disturbance
from harness.trace import TraceWriter, open_trace


def place_at(tmp_path, step=3, tensor="update/clipped/softmax_w"):
    """A divergence there, as a diff reports it."""
    from harness.compare import diff

    for label, value in (("a", 1.0), ("b", 2.0)):
        with TraceWriter(tmp_path / f"{label}.trace", label=label, dtype="float64") as trace:
            trace.write(step, {tensor: np.full((2, 3), value)})
    return diff(tmp_path / "a.trace", tmp_path / "b.trace").first_divergence


def cause(words, name="formula"):
    """A cause that claims these words."""
    return Cause(name, f"{words}: recomputed so, it agrees", 1.0, claim=words)


RIGHT = cause("pt clamps each element of the gradients")
WRONG = (
    cause("tf clamps each element of the gradients"),
    cause("pt clamps elements from above alone"),
    cause("pt clamps each element of the gradients", "argument"),
    cause("pt clamps each element of the gradients, at gate f alone"),
    cause(""),
)


def scored(tmp_path, label="bug", step=3, tensor="update/clipped/softmax_w", found=()):
    place = place_at(tmp_path, step, tensor)
    verdict = Verdict(label, "", place, "pt", (), found)
    return record(CATALOGUE["clip-elementwise"], "pt", 3, verdict, {})


def test_a_fault_that_is_found_at_its_place_with_its_cause_scores_everywhere(tmp_path):
    r = scored(tmp_path, found=(RIGHT,))
    assert (r.detected, r.step_right, r.tensor_right, r.verdict_right) == (True,) * 4
    assert (r.cause_rank, r.found_side) == (1, "pt")
    assert r.found_causes == ("formula: pt clamps each element of the gradients",)
    assert r.causes[0] == r.found_causes[0]


def test_another_tensor_another_step_and_another_verdict_do_not_score(tmp_path):
    tensor = scored(tmp_path, tensor="params/softmax_w")
    assert (tensor.detected, tensor.step_right, tensor.tensor_right) == (True, True, False)
    late = scored(tmp_path, step=4)
    assert (late.detected, late.step_right, late.tensor_right) == (True, False, False)
    noise = scored(tmp_path, label="rounding")
    assert (noise.detected, noise.step_right, noise.verdict_right) == (False, False, False)
    imprecise = scored(tmp_path, label="precision")
    assert (imprecise.detected, imprecise.verdict_right) == (True, False)


def test_a_cause_scores_by_its_rank(tmp_path):
    third = scored(tmp_path, found=(*WRONG[:2], RIGHT))
    assert (third.cause_within(1), third.cause_within(2), third.cause_within(3)) == (0, 0, 1)


@pytest.mark.parametrize("wrong", WRONG, ids=range(len(WRONG)))
def test_a_cause_that_says_anything_else_does_not_score(tmp_path, wrong):
    assert scored(tmp_path, found=(wrong,)).cause_rank is None


def test_no_fault_is_explained_by_the_cause_of_another():
    """Patterns match what is expected of a fault where they are the same, and nowhere else."""
    said = {
        name: re.sub(r"\\(.)", r"\1", pattern)
        for name, fault in CATALOGUE.items()
        for pattern in fault.patterns("pt", "tf")[:1]
        if not re.search(r"[*+?|]|\\[dS]", pattern.replace(r"\+", "").replace(r"\?", ""))
    }
    assert len(said) > 30
    for name, words in said.items():
        for other, fault in CATALOGUE.items():
            same = CATALOGUE[name].causes[0] in fault.causes
            assert fault.explained(words, "pt", "tf") == same, (name, other)


def injected(disturbance, accused, noise=2.0):
    place = fuzzing._Place("pt", "float32", 0, Disturbance(2, "grads/w", (0,), 0.1), "element")
    return fuzzing.fuzz_case(place, disturbance, noise, accused)


def test_an_injection_counts_as_placed_only_where_its_place_alone_is_named():
    own, other = (2, "grads/w"), (2, "params/w")
    assert injected(7.0, (own,)).placed
    assert not injected(7.0, ()).placed
    assert not injected(7.0, (own, other)).placed
    assert not injected(7.0, ((3, "grads/w"),)).placed


def test_an_injection_is_above_the_noise_from_three_times_it_on():
    assert injected(6.0, ()).above
    assert not injected(5.9, ()).above


def test_naming_what_was_not_disturbed_is_wrong_and_so_is_naming_what_is_far_under_the_noise():
    own = (2, "grads/w")
    assert injected(7.0, ((2, "params/w"),)).wrong
    assert injected(0.4, (own,)).wrong
    assert not injected(3.0, (own,)).wrong, "found under the bound: lucky, not wrong"
    assert not injected(0.4, ()).wrong


@pytest.mark.slow
def test_injections_above_the_noise_are_found_and_a_bound_that_is_too_low_accuses(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(fuzzing, "SETTINGS", fuzzing.SETTINGS[1:2])
    monkeypatch.setattr(fuzzing, "NOISE_SEEDS", (1,))
    monkeypatch.setattr(fuzzing, "STEPS", 3)
    found = fuzzing.fuzz(12, 5, tmp_path / "a", Observer())
    assert found.cases == len(found.records) == 12
    assert found.above > 4
    assert (found.placed, found.wrong) == (found.above, 0)
    assert {case.side for case in found.records} == {"pt", "tf"}
    assert sum(row.cases for row in found.curve) == 12
    assert not list((tmp_path / "a").glob("case-*.trace")), "traces of cases are removed"
    again = fuzzing.fuzz(2, 5, tmp_path / "a", Observer())
    assert again.records == found.records[:2]
    monkeypatch.setattr(fuzzing, "BOUND", 0.01)
    accused = fuzzing.fuzz(3, 5, tmp_path / "b", Observer())
    assert accused.wrong == 3


def test_there_are_at_least_200_clean_pairs_of_every_kind():
    pairs = clean_pairs()
    assert len(pairs) >= 200
    for key in ("optimizer", "dtype", "seed", "lr"):
        assert len({pair.settings.get(key) for pair in pairs}) > 1
    assert max(pair.steps for pair in pairs) == 200
    assert {pair.follow for pair in pairs} == {None, "step", "stage"}


def command(*arguments):
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return ended.value.code


@pytest.mark.slow
def test_the_scoreboard_of_a_few_cases_is_whole_and_written_where_it_is_asked_for(tmp_path, capsys):
    report = tmp_path / "logs" / "faults.md"
    only = ("--only", "gates-igfo", "--only", "norm-duplicates", "--clean", 3)
    code = command("faults", "bench", *only, "--json", "--report", report)
    found = json.loads(capsys.readouterr().out)
    assert code == 0
    keys = [
        "faults",
        "detected",
        "step_right",
        "tensor_right",
        "verdict_right",
        "cause_first",
        "cause_top3",
    ]
    assert [found[key] for key in keys] == [4] * 7
    assert (found["clean_runs"], found["false_alarms"]) == (3, 0)
    assert len(found["records"]) == 4
    assert set(found["baselines"]) == set(BASELINES)
    text = report.read_text("utf-8")
    assert "| lstm | gates-igfo | pt | 1 | forward/layer0/c | bug | block-order: pt reads" in text
    assert "Nothing." in text


def test_a_fault_that_is_not_found_is_told_of_and_the_exit_code_says_so(
    tmp_path, capsys, monkeypatch
):
    from harness.scoreboard import bench as board

    monkeypatch.setattr(board, "planted_names", lambda name: ())
    code = command("faults", "bench", "--only", "gates-igfo", "--clean", 0)
    assert code == 1
    said = capsys.readouterr().out
    assert "gates-igfo on pt of lstm: expected bug at step 1; found close at step None" in said


def test_unknown_faults_and_senseless_counts_are_refused(tmp_path, capsys):
    assert command("faults", "bench", "--only", "nonsense") == 2
    assert "no fault named 'nonsense'" in capsys.readouterr().err
    assert command("faults", "fuzz", "--cases", 0) == 2
    assert "--cases 0" in capsys.readouterr().err
    with pytest.raises(HarnessError, match="nonsense"):
        bench(tmp_path, Observer(), ("nonsense",), 0)


def test_a_fault_of_what_a_model_has_not_is_refused(tmp_path, capsys):
    for fault, setting in (("gru-without-reset", "lr=1"), ("gradient-scaled", "tied=true")):
        planted = ("--fault", f"pt:{fault}", "--set", setting, "--out", tmp_path)
        assert command("run", "--model", "zaremba-small", *planted, "--steps", 1) == 2
        assert f"--fault pt:{fault}: this model (lstm) has nothing" in capsys.readouterr().err


@pytest.mark.slow
def test_a_bench_of_several_models_counts_each_and_plants_only_what_reaches_it(tmp_path, capsys):
    only = ("--only", "rnn-relu", "--only", "clip-never", "--models", "lstm,rnn", "--clean", 0)
    report = tmp_path / "faults.md"
    assert command("faults", "bench", *only, "--json", "--report", report) == 0
    found = json.loads(capsys.readouterr().out)
    planted = [(r["model"], r["fault"], r["side"]) for r in found["records"]]
    assert planted == [
        *(("lstm", "clip-never", side) for side in ("pt", "tf")),
        *(("rnn", "rnn-relu", side) for side in ("pt", "tf")),
        *(("rnn", "clip-never", side) for side in ("pt", "tf")),
    ]
    whole = {"faults": 4, "detected": 4, "cause_first": 4, "certain_and_false": 0}
    assert {k: found["models"]["rnn"][k] for k in whole} == whole
    assert "| rnn | 4 | 4 | 4 | 4 | 4 | 4 | 0 | 0 | 0 |" in report.read_text("utf-8")
    assert command("faults", "bench", "--models", "lstm,grru") == 2
    assert "no model 'grru'; there are: lstm, rnn, gru" in capsys.readouterr().err


def test_a_first_cause_that_is_certain_and_wrong_is_counted(tmp_path):
    assert scored(tmp_path, found=(WRONG[0], RIGHT)).certain_and_false
    assert not scored(tmp_path, found=(RIGHT, WRONG[0])).certain_and_false
    unsure = msgspec.structs.replace(WRONG[0], sure="likely")
    assert not scored(tmp_path, found=(unsure,)).certain_and_false
    assert not scored(tmp_path).certain_and_false


def test_clean_pairs_of_all_models_draw_all_that_they_can_draw():
    pairs = clean_pairs([model for model in MODELS if model != "lstm"])
    assert len(pairs) >= 60
    assert {pair.model for pair in pairs} == set(MODELS) - {"lstm"}
    assert {pair.follow for pair in pairs} == {None, "step", "stage"}
    for pair in pairs:
        model, _ = specs(pair.model, pair.settings)
        rates = [name for name in fields_of(model.network) if "dropout" in name]
        assert all(getattr(model, name) > 0 for name in rates), pair


def test_the_catalogue_is_listed_with_what_each_fault_must_lead_to(capsys):
    assert command("faults", "list", "--json") == 0
    listed = {fault["name"]: fault for fault in json.loads(capsys.readouterr().out)}
    assert len(listed) >= 48
    assert listed["clip-elementwise"]["bites"] == "norm over limit"
    assert command("faults", "list") == 0
    assert "clip-elementwise" in capsys.readouterr().out


def test_the_report_of_injections_has_its_curve_and_its_picture(tmp_path):
    from harness.report.plots import plot_fuzz
    from harness.report.scores import write_fuzz

    records = [injected(7.0, ((2, "grads/w"),)), injected(0.1, ())]
    result = fuzzing._result(1, records)
    write_fuzz(result, tmp_path / "fuzz.md", "fuzz.png")
    plot_fuzz(result, tmp_path / "fuzz.png")
    text = (tmp_path / "fuzz.md").read_text("utf-8")
    assert "1 of the 1 above the noise placed at their step and tensor (100.00%)" in text
    assert (tmp_path / "fuzz.png").stat().st_size > 5000


def close_to(values, dtype):
    draw = np.random.default_rng(3)
    array = np.asarray(values, dtype)
    for size in 10.0 ** draw.uniform(-12, -2, 60):
        yield array, (array * (1 + size * draw.choice((-1, 1), array.shape))).astype(dtype)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_baselines_fail_where_the_functions_they_stand_for_do(tmp_path, dtype):
    pairs = list(close_to([3.0, -0.02, 1e-9, 0.0, 40.0], dtype))
    np.savez(tmp_path / "pairs.npz", a=[a for a, _ in pairs], b=[b for _, b in pairs])
    code = (
        "import json, numpy, torch; from torch.testing import assert_close\n"
        f"pairs = numpy.load({str(tmp_path / 'pairs.npz')!r}); found = []\n"
        "for a, b in zip(pairs['a'], pairs['b']):\n"
        "    try: assert_close(torch.tensor(a), torch.tensor(b)); found.append(True)\n"
        "    except AssertionError: found.append(False)\n"
        "print(json.dumps(found))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    expected = {"torch": json.loads(done.stdout), "numpy": [bool(np.allclose(*p)) for p in pairs]}
    for name, table in (("torch", TORCH), ("numpy", NUMPY)):
        assert 0 < sum(expected[name]) < len(pairs), "some must pass and some fail"
        for (a, b), passes in zip(pairs, expected[name], strict=True):
            for label, array in (("a", a), ("b", b)):
                with TraceWriter(tmp_path / f"{label}.trace", label=label, dtype=dtype) as trace:
                    trace.write(1, {"params/w": array})
            traces = (open_trace(tmp_path / "a.trace"), open_trace(tmp_path / "b.trace"))
            failure = first_failure(Baseline(table), *traces)
            assert failure == (None if passes else (1, "params/w"))
            assert first_failure(Baseline(table, loss_only=True), *traces) is None
