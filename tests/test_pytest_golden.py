"""Golden traces of the pytest plugin, run by pytest itself on tests as users write them."""

import json
import re
from pathlib import Path

import pytest
from plugin_runs import GOLDEN, TRAIN, VERSIONED, files, message
from plugin_runs import run as run

import harness
from harness.trace import Program, open_trace
from harness.trace.sketched import write_sketched

pytest_plugins = ["pytester"]


def test_a_golden_trace_that_is_missing_fails_with_the_command_that_makes_it(run, pytester):
    result = run(GOLDEN)
    result.assert_outcomes(failed=1)
    command = "pytest test_it.py::test_run --harness-update"
    path = Path("golden/run.trace")
    assert message(result) == [
        f"harness.errors.HarnessError: no golden trace {path}: make it with  {command}"
    ]
    assert not (pytester.path / "golden").exists()
    result = run(None, *command.split()[1:])
    result.assert_outcomes(passed=1)
    result.stdout.re_match_lines(
        [
            r"=+ harness: golden traces =+",
            r"written golden/run.trace: 3 steps, 15 tensors, \d+\.\d KB  \(test_it.py::test_run\)",
        ]
    )
    assert set(files(pytester.path / path)) == {"trace.json", "index.jsonl"}
    run(None).assert_outcomes(passed=1)


def test_a_golden_trace_that_is_written_twice_is_the_same_bytes(run, pytester):
    run(GOLDEN, "--harness-update").assert_outcomes(passed=1)
    first = files(pytester.path / "golden/run.trace")
    result = run(None, "--harness-update", "-p", "no:cacheprovider", "-v")
    result.stdout.fnmatch_lines(["unchanged golden/run.trace: *"])
    again = files(pytester.path / "golden/run.trace")
    assert again == first
    # Nor do a line more in the test, the path of the run, or the level that it is recorded at.
    body = "\n\n" + GOLDEN.replace('name="run"', 'name="other", level="stats"')
    result = run(body, "--harness-update", "-x", "--basetemp", pytester.path / "elsewhere")
    result.stdout.fnmatch_lines(["unchanged golden/run.trace: *"])
    assert str(pytester.path).encode() not in b"".join(first.values())


def test_a_run_that_leaves_its_golden_trace_fails_until_that_is_replaced(run, pytester):
    run(GOLDEN, "--harness-update")
    result = run(None, LR=0.2)
    result.assert_outcomes(failed=1)
    lines = message(result)
    assert lines[0] == "AssertionError: DIVERGED at step 1: params/w"
    assert lines[2].startswith("run | golden      L2 9.51982517 | 9.52959442, mean 3.48757")
    assert lines[-1] == "if meant          pytest test_it.py::test_run --harness-update"
    assert any(line.startswith("made with         python ") for line in lines)
    result = run(None, "--harness-update", LR=0.2)
    result.stdout.fnmatch_lines(["replaced golden/run.trace: *"])
    run(None, LR=0.2).assert_outcomes(passed=1)
    assert [path.name for path in (pytester.path / "golden").iterdir()] == ["run.trace"]


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"STEPS": 5}, "2 steps not in golden, the first is 4"),
        ({"STEPS": 2}, "1 step not in run, the first is 3"),
        ({"EXTRA": 1}, "1 tensor not in golden: log/more"),
    ],
)
def test_other_steps_and_tensors_than_the_golden_trace_are_structure(run, environment, said):
    run(GOLDEN, "--harness-update")
    result = run(None, **environment)
    result.assert_outcomes(failed=1)
    lines = message(result)
    assert lines[0].startswith("AssertionError: STRUCTURE: run and golden do not hold the same")
    assert any(line.split(None, 1) == ["structure", said] for line in lines)


def test_nan_where_the_golden_trace_has_numbers_fails(run):
    run(GOLDEN, "--harness-update")
    result = run(None, BAD="nan")
    result.assert_outcomes(failed=1)
    assert message(result)[0] == "AssertionError: DIVERGED at step 1: params/w"
    assert "NaN 6 | 0" in " ".join(message(result))


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("trace.json", lambda text: text[:40]),
        ("trace.json", lambda text: b""),
        ("index.jsonl", lambda text: text.replace(b'"hash":"', b'"hash":"x', 1)),
        ("index.jsonl", lambda text: text[: len(text) // 2]),
        ("index.jsonl", None),
    ],
)
def test_a_golden_trace_that_is_damaged_is_told_of_and_can_be_made_anew(
    run, pytester, file, change
):
    run(GOLDEN, "--harness-update")
    path = pytester.path / "golden/run.trace" / file
    whole = path.read_bytes()
    if change:
        path.write_bytes(change(whole))
    else:
        path.unlink()
    result = run(None)
    result.assert_outcomes(failed=1)
    (line,) = message(result)
    assert "the golden trace golden/run.trace is damaged (" in line
    assert line.endswith("make it anew with  pytest test_it.py::test_run --harness-update")
    run(None, "--harness-update").assert_outcomes(passed=1)
    assert path.read_bytes() == whole


def test_what_is_no_golden_trace_is_not_replaced(run, pytester):
    folder = pytester.path / "golden/run.trace"
    folder.mkdir(parents=True)
    (folder / "thesis.tex").write_text("years of work")
    result = run(GOLDEN, "--harness-update")
    result.assert_outcomes(failed=1)
    assert "holds 'thesis.tex', which is no part of a golden trace" in message(result)[0]
    assert files(folder) == {"thesis.tex": b"years of work"}
    assert [path.name for path in folder.parent.iterdir()] == ["run.trace"]


def test_another_version_of_the_framework_is_named_in_the_first_line(run, pytester):
    run(VERSIONED, "--harness-update")
    run(None, VERSION="2.13.0").assert_outcomes(passed=1)
    result = run(None, VERSION="2.13.0", LOSS="2.6")
    lines = message(result)
    assert lines[0] == "AssertionError: DIVERGED at step 1: forward/loss (torch 2.12.0 -> 2.13.0)"
    assert lines[2].split() == ["run", "|", "golden", "2.5999999", "|", "2.5"]
    made = " ".join(lines).partition("made with ")[2]
    assert made.strip().startswith("torch 2.13.0 | 2.12.0 (run | golden); the same: python ")
    header = json.loads((pytester.path / "golden/run.trace/trace.json").read_text())
    assert header["framework"] == {"torch": "2.12.0"}
    assert header["versions"]["twin-harness"]


def test_the_folder_of_golden_traces_is_a_setting_and_the_name_is_the_tests_own(run, pytester):
    pytester.makeini("[pytest]\nharness_golden = ../kept/here\n")
    pytester.mkdir("tests")
    body = """
@pytest.mark.parametrize("lr", [0.1, 0.2], ids=["one/a", "two a"])
class TestIt:
    def test_run(self, harness, lr):
        harness.assert_golden(train(harness.record(), lr))
        harness.assert_golden({"w": np.ones(3) + setting("BAD", 0.0)}, "weights")
"""
    (pytester.path / "tests/test_it.py").write_text(TRAIN + body)
    result = run(None, "--harness-update", "--import-mode=importlib", "--strict-config")
    result.assert_outcomes(passed=2)
    kept = sorted(path.name for path in (pytester.path / "kept/here").iterdir())
    assert len(kept) == 3
    assert re.fullmatch(r"TestIt.test_run-one-a-\w{8}.trace", kept[0])
    assert re.fullmatch(r"TestIt.test_run-two-a-\w{8}.trace", kept[1])
    result = run(None, "--import-mode=importlib", "-k", "two")
    result.assert_outcomes(passed=1, deselected=1)
    result = run(None, "--import-mode=importlib", "-k", "one", BAD=1.0)
    command = "pytest 'tests/test_it.py::TestIt::test_run[one/a]' --harness-update"
    assert message(result)[-1].endswith(command)


def test_tensors_that_roles_name_are_held_against_their_sketches(run):
    body = """
def test_run(harness, tmp_path):
    path, roles = tmp_path / "run.trace", ["GRAD/*=grads"]
    with harness.TraceWriter(path, label="run", dtype="float64", roles=roles) as trace:
        draw = np.random.default_rng(0).normal(size=(20, 30))
        trace.write(1, {"GRAD/w": draw * (1 + setting("BAD", 0.0)), "forward/loss": 1.0})
    harness.assert_golden(path, "run")
"""
    run(body, "--harness-update")
    run(None).assert_outcomes(passed=1)
    run(None, BAD=1e-15).assert_outcomes(passed=1)
    result = run(None, BAD=1e-9)
    result.assert_outcomes(failed=1)
    lines = message(result)
    assert lines[0] == "AssertionError: DIVERGED at step 1: grads/w"
    assert re.match(r"relative L2 +~(9|1)\.?\d*e-(09|10) = ", lines[4])


def test_two_runs_of_one_golden_trace_have_to_agree_when_it_is_written(run, pytester):
    body = """
@pytest.mark.parametrize("lr", [0.1, 0.1, 0.2])
def test_run(harness, lr):
    harness.assert_golden(train(harness.record(), lr), "run")
"""
    result = run(body, "--harness-update")
    result.assert_outcomes(passed=2, failed=1)
    assert message(result)[0] == "AssertionError: DIVERGED at step 1: params/w"
    assert message(result)[-1].split(None, 2) == ["if", "meant", "give each its own golden trace"]
    assert len([line for line in result.outlines if line.startswith("written golden/")]) == 1


def test_where_no_golden_trace_can_be_is_said(run, pytester):
    (pytester.path / "golden").write_text("a file")
    result = run(GOLDEN, "--harness-update")
    result.assert_outcomes(failed=1)
    assert "HarnessError: golden/run.trace cannot be written: " in message(result)[0]
    assert (pytester.path / "golden").read_text() == "a file"
    result = run(GOLDEN.replace('name="run"', 'name="run", level="hash"'), "-o", "harness_golden=x")
    assert "no golden trace x/run.trace" in message(result)[0]
    options = "--harness-update", "-o", "harness_golden=x"
    assert (
        "the hash alone is known: trace at level full or stats" in message(run(None, *options))[0]
    )
    assert list((pytester.path / "x").iterdir()) == []


@pytest.mark.slow
def test_workers_may_write_the_same_golden_trace(run, pytester):
    body = """
@pytest.mark.parametrize("number", range(6))
def test_run(harness, number):
    harness.assert_golden(asked(harness.record(name="run")), "run")
"""
    workers = "-p", "xdist", "-n", "2"
    result = run(body, *workers, "--harness-update", "-p", "no:cacheprovider", process=True)
    result.assert_outcomes(passed=6)
    lines = [line for line in result.outlines if "golden/run.trace" in line]
    states = sorted(line.split()[0] for line in lines)  # each worker writes once, then compares
    assert states in (["written"], ["unchanged", "written"])
    result = run(None, *workers, process=True)
    result.assert_outcomes(passed=6)
    assert [path.name for path in (pytester.path / "golden").iterdir()] == ["run.trace"]


def test_a_script_of_pytorch(run):
    pytest.importorskip("torch")
    body = """
import torch

def fit(recorder, model, lr):
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    recorder = recorder(model, optimizer)
    with recorder as rec:
        for step in range(2):
            with rec.step(x=torch.ones(4, 3)) as x:
                optimizer.zero_grad()
                loss = model(x).square().mean()
                loss.backward()
                optimizer.step()
                rec.log(loss=loss)
    return recorder

def test_it(harness):
    torch.manual_seed(0)
    models = [torch.nn.Linear(3, 2) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    a = fit(lambda *given: harness.record(*given, name="a"), models[0], 0.1)
    b = fit(lambda *given: harness.record(*given, name="b"), models[1], 0.2)
    harness.assert_golden(a, "a")
    harness.assert_close(a, b)
"""
    result = run(body, "--harness-update", "-W", "error", process=True)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["written golden/a.trace: *"])
    lines = message(result)
    assert lines[0] == "AssertionError: DIVERGED at step 1: update/learning_rate"
    assert any("settings differ" in line for line in lines)


def test_a_trace_without_elements_is_the_same_from_full_and_from_stats(tmp_path):
    written = []
    for level in ("full", "stats"):
        capture = harness.Capture(level=level)
        path = tmp_path / f"{level}.trace"
        with harness.TraceWriter(path, label="x", dtype="float32", capture=capture) as trace:
            for step in (1, 2):
                table = [[0.0, 0.0], [1.5, step]] + [[0.0, 0.0]] * 20  # is stored as rows
                tensors = {"inputs/x": table, "forward/y": [1.0, float("nan")], "forward/n": 3}
                made = {"forward/y": harness.stage("relu", "inputs/x")}
                trace.write(step, tensors, made, {"forward/y": "net.py:31"})
        write_sketched(open_trace(path), tmp_path / level, "golden", Program("script", "t.py", ""))
        assert harness.check_trace(tmp_path / level).faults == ()
        assert harness.diff(path, tmp_path / level).status == "identical"
        written.append(files(tmp_path / level))
    assert written[0] == written[1]
    assert b"net.py" not in written[0]["index.jsonl"]
    assert b'"op":"relu"' in written[0]["index.jsonl"]


def test_hashes_alone_make_no_golden_trace(tmp_path):
    capture = harness.Capture(level="hash")
    with harness.TraceWriter(tmp_path / "a", label="x", dtype="float32", capture=capture) as trace:
        trace.write(1, {"forward/y": [1.0]})
    with pytest.raises(harness.HarnessError, match="trace at level full or stats"):
        write_sketched(open_trace(tmp_path / "a"), tmp_path / "b", "x", Program("script", "", ""))
    assert not (tmp_path / "b").exists()
