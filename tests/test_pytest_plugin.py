"""The pytest plugin, run by pytest itself on tests as users write them."""

import json
import os
import re
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

import harness
import harness.pytest_plugin
import harness.testing.golden  # the runs in this process find it and NumPy imported
from harness.testing.names import file_name
from harness.trace import Program, open_trace
from harness.trace.sketched import write_sketched

pytest_plugins = ["pytester"]

INSTALLED = any(point.name == "harness" for point in entry_points(group="pytest11"))
ROOT = Path(__file__).parent.parent

# A training script in NumPy. LR, STEPS, EXTRA, BAD and VERSION in the environment change it.
TRAIN = """
import os
import numpy as np
import pytest

def setting(name, otherwise):
    return type(otherwise)(os.environ.get(name, otherwise))

def train(recorder, lr=0.1, steps=3, extra=False, bad=0.0):
    w, x = np.arange(6.0).reshape(2, 3) + 1, np.linspace(-1, 1, 8).reshape(4, 2)
    with recorder as rec:
        for step in range(steps):
            with rec.step(x=x) as given:
                y = np.tanh(given @ w)
                g = given.T @ (y * (1 - y * y))
                w = w - lr * g + bad
                rec.log(loss=float((y**2).sum()))
                rec.log(**{"forward/y": y, "grads/w": g, "params/w": w})
                if extra:
                    rec.log(more=1.0)
    return rec

def asked(recorder):
    return train(
        recorder, setting("LR", 0.1), setting("STEPS", 3), bool(setting("EXTRA", "")),
        setting("BAD", 0.0),
    )
"""

GOLDEN = """
def test_run(harness):
    harness.assert_golden(asked(harness.record(name="run")), "run")
"""

VERSIONED = """
def test_run(harness, tmp_path):
    version = {"torch": setting("VERSION", "2.12.0")}
    path = tmp_path / "run.trace"
    with harness.TraceWriter(path, label="run", dtype="float32", framework=version) as trace:
        trace.write(1, {"forward/loss": np.float32(setting("LOSS", 2.5))})
    harness.assert_golden(path, "run")
"""


@pytest.fixture
def run(pytester, monkeypatch):
    """Runs pytest, with the plugin, on a test module that has the training script before it."""
    for name in ("LR", "STEPS", "EXTRA", "BAD", "VERSION", "LOSS", "PYTEST_ADDOPTS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # other plugins take their time
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("XDG_CACHE_HOME", str(pytester.path / "cache"))

    def run(body=None, *options, process=False, **environment):
        if body is not None:
            pytester.makepyfile(test_it=TRAIN + body)
        with monkeypatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, str(value))
            how = pytester.runpytest_subprocess if process else pytester.runpytest_inprocess
            return how("-p", "harness.pytest_plugin", *options)

    return run


def message(result):
    """The lines of the assertion's message."""
    return [line[1:].strip() for line in result.outlines if re.match(r"E  ", line)]


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# Traces that are compared


def test_runs_that_are_alike_pass_and_the_module_is_there_beside_the_fixture(run):
    result = run(
        """
import harness

MODULE = harness

def test_alike(harness):
    one, two = train(harness.record()), train(harness.record())
    harness.assert_close(one, two)
    assert one.run.label == "test_alike" and two.run.label == "test_alike-2"
    assert harness is not MODULE and harness.diff is MODULE.diff
    assert MODULE.diff(one.run.trace, two.run.trace).status == "identical"
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        harness.nonsense

def test_not_asked_for():
    assert harness is MODULE and harness.record

class TestClass:
    @pytest.mark.parametrize("lr", [0.1, 0.2])
    def test_in_a_class(self, harness, lr):
        rec = train(harness.record(), lr)
        assert rec.run.label == f"TestClass.test_in_a_class-{lr}"
        harness.assert_close(rec, train(harness.record(name="again"), lr))
""",
        "-W",
        "error",
        "--strict-config",
        "--strict-markers",
    )
    result.assert_outcomes(passed=4)


def test_a_failure_says_in_its_first_lines_what_differs(run):
    result = run(
        """
def test_other(harness):
    mine = train(harness.record(name="mine"), bad=1e-3)
    harness.assert_close(mine, train(harness.record(name="theirs")))
"""
    )
    result.assert_outcomes(failed=1)
    lines = message(result)
    wanted = [  # the last digits are those of a processor
        r"AssertionError: DIVERGED at step 1: params/w",
        r"where                step 1, params/w \[0, 0\]",
        r"mine \| theirs        0\.98582684755848\d* \| 0\.98482684755848\d*",
        r"greatest difference  0\.001 absolute, 0\.001015 relative, 9,007,199,\d+,\d+ ULPs",
        r"relative L2          0\.000257 = 1\.16e\+12 eps",
    ]
    for line, pattern in zip(lines, wanted, strict=False):
        assert re.fullmatch(pattern, line)
    rest = "\n".join(lines)
    assert "cause" in rest
    assert "by 0.001" in rest
    (command,) = (line.split()[1:] for line in lines if line.startswith("next"))
    assert command[:2] == ["harness", "explain"]
    assert [Path(path).name for path in command[2:]] == ["mine.trace", "theirs.trace"]
    assert all(open_trace(path).header.complete for path in command[2:])
    # Of the stack there is the line of the test alone.
    shown = result.stdout.str()
    assert re.findall(r"^\S+\.py:\d+: .*", shown, re.MULTILINE) == ["test_it.py:30: AssertionError"]


@pytest.mark.parametrize(
    ("a", "b", "first", "said"),
    [
        ("extra=True", "", "STRUCTURE", "1 tensor not in b: log/more"),
        ("", "extra=True", "STRUCTURE", "1 tensor not in a: log/more"),
        ("steps=5", "", "STRUCTURE", "2 steps not in b, the first is 4"),
        ("lr=float('nan')", "", "DIVERGED at step 1: params/w", "6 of 6 elements.*not finite"),
    ],
)
def test_what_differs_is_said(run, a, b, first, said):
    result = run(
        f"""
def test_it(harness):
    harness.assert_close(train(harness.record(name="a"), {a}), train(harness.record(name="b"), {b}))
"""
    )
    result.assert_outcomes(failed=1)
    lines = message(result)
    assert lines[0].startswith(f"AssertionError: {first}")
    assert re.search(said, " ".join(lines))


def test_nan_on_both_sides_is_equal_and_exclude_steps_and_factor_are_those_of_diff(run):
    result = run(
        """
def test_nan(harness):
    nan = float("nan")
    harness.assert_close(train(harness.record(), nan), train(harness.record(), nan))

def test_rules(harness):
    a, b = train(harness.record(name="a"), bad=1e-9), train(harness.record(name="b"))
    with pytest.raises(AssertionError, match="DIVERGED"):
        harness.assert_close(a, b)
    harness.assert_close(a, b, rtol=1e-5, atol=1e-8)
    harness.assert_close(a, b, factor=1e9)
    harness.assert_close(a, b, include=["forward/*"], steps=(1, 1))
    harness.assert_close(a, b, exclude=["params/*"], steps=(1, 1))
    with pytest.raises(AssertionError, match=r"--factor 2.5 --exclude 'grads/\\*' --steps 2:3"):
        harness.assert_close(a, b, factor=2.5, exclude=["grads/*"], steps=(2, 3))

def test_float64_runs_go_into_the_message(harness):
    runs = [train(harness.record(name=name), bad=bad) for name, bad in
        [("a", 1e-3), ("b", 0.0), ("a64", 1e-3), ("b64", 0.0)]]
    with pytest.raises(AssertionError, match="--referee-a .*a64.trace --referee-b .*b64.trace"):
        harness.assert_close(*runs[:2], reference_float64=runs[2:])
"""
    )
    result.assert_outcomes(passed=3)


def test_names_that_differ_need_a_map(run):
    result = run(
        """
def write(harness, path, names):
    with harness.TraceWriter(path, label=path.stem, dtype="float64") as trace:
        for step in (1, 2):
            draw = np.random.default_rng(step).normal
            trace.write(step, {name: draw(size=(3 + k, 5)) for k, name in enumerate(names)})
    return path

def test_map(harness, tmp_path):
    a = write(harness, tmp_path / "a.trace", ["params/w", "params/v"])
    b = write(harness, tmp_path / "b.trace", ["params/kernel", "params/other"])
    with pytest.raises(harness.HarnessError, match="harness align .*a.trace .*b.trace"):
        harness.assert_close(a, b)
    harness.assert_close(a, b, map="search")
    harness.assert_close(a, b, map=harness.align(harness.open_trace(a), harness.open_trace(b)))
"""
    )
    result.assert_outcomes(passed=1)


def test_what_cannot_be_compared_is_said_with_the_remedy(run):
    result = run(
        """
def trouble(harness, words):
    return pytest.raises(harness.HarnessError, match=words)

def test_it(harness, tmp_path):
    done = train(harness.record(name="done"))
    with trouble(harness, "no such trace: a trace is a folder with trace.json"):
        harness.assert_close("nothing.trace", done)
    with trouble(harness, "given twice"):
        harness.assert_close(done, done.run.trace)
    with trouble(harness, "'done' is taken"):
        harness.record(name="done")
    with trouble(harness, "name='a/b': letters, digits"):
        harness.record(name="a/b")
    with trouble(harness, "nothing was recorded: put every step into"):
        harness.assert_close(train(harness.record(name="empty"), steps=0), done)
    with harness.record(name="open") as rec:
        with rec.step(x=1.0):
            rec.log(loss=1.0)
        with trouble(harness, "is not complete .* compare after the block"):
            harness.assert_close(rec, done)
    with trouble(harness, "a trace beside a float: give two traces"):
        harness.assert_close(done, 1.0)
    with trouble(harness, r"steps=3: give the first and the last, such as \\(1, 10\\)"):
        harness.assert_close(done, "x", steps=3)
    with trouble(harness, r"include='a\\*': give a list"):
        harness.assert_close(done, "x", include="a*")
    with trouble(harness, "reference_float64: give two traces"):
        harness.assert_close(done, train(harness.record()), reference_float64=done)
    with trouble(harness, "cannot name a golden trace"):
        harness.assert_golden(done, "../up")
"""
    )
    result.assert_outcomes(passed=1)


def test_arrays_numbers_and_mappings_are_compared_by_the_same_tolerance(run):
    result = run(
        """
def test_close(harness, tmp_path):
    harness.assert_close(0.1 + 0.2, 0.3)
    harness.assert_close(np.float32(0.1), 0.1)
    harness.assert_close(np.arange(3), [0, 1, 2])
    harness.assert_close(np.int32(3), 3)
    harness.assert_close(float("nan"), np.float32("nan"))
    harness.assert_close({"w": np.ones(3), "b": {"c": 1}}, {"w": np.ones(3) + 1e-16, "b": {"c": 1}})
    harness.assert_close({"w": np.ones(3)}, {"w": np.ones(3) + 1e-6}, rtol=1e-5)
    assert list(tmp_path.iterdir()) == []

@pytest.mark.parametrize(("a", "b", "said"), [
    (1.0, 1.1, "DIVERGED at step 1: value"),
    (3, 4, "DIVERGED at step 1: value"),
    (np.int32(3), 3.5, r"another dtype: value int32 \\| float64"),
    (np.ones((2, 3)), np.ones((3, 2)), r"another shape: value \\[2, 3\\] \\| \\[3, 2\\]"),
    ({"w": 1.0}, {"w": 1.0, "v": 1.0}, "1 tensor not in a: v"),
    ({"w": 1.0}, {"v": 1.0}, "not in a: v"),
    ({"w": {"x": np.zeros(3)}}, {"w": {"x": np.array([0, np.nan, 0])}}, "DIVERGED .* w/x"),
])
def test_not_close(harness, a, b, said):
    with pytest.raises(AssertionError, match=said) as caught:
        harness.assert_close(a, b)
    assert ("arrays-1-a.trace" in str(caught.value)) == ("same arrays" not in str(caught.value))

def test_trouble(harness):
    for a, b, said in [
        ("w" * 3, 1.0, "a trace beside a float"),
        ([[1], [1, 2]], 1.0, "value: .*no array of numbers"),
        (np.array(["x"]), 1.0, "cannot be stored"),
        ({}, {}, "nothing to compare"),
        (2**70, 1.0, None),
    ]:
        with pytest.raises((harness.HarnessError, AssertionError), match=said):
            harness.assert_close(a, b)
"""
    )
    result.assert_outcomes(passed=9)


# Golden traces


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


# Around it


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


def test_the_plugin_can_be_left_out_and_costs_nothing_where_it_is_not_used(
    run, pytester, monkeypatch
):
    plain = pytester.mkdir("site")
    if not INSTALLED:
        info = plain / "plugin-1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin\nVersion: 1\n")
        (info / "entry_points.txt").write_text("[pytest11]\nharness = harness.pytest_plugin\n")
    monkeypatch.delenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD")
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{plain}")
    pytester.makepyfile(
        test_plain="""
import sys

def test_nothing_is_imported():
    assert "harness.pytest_plugin" in sys.modules
    ours = {name for name in sys.modules if name.split(".")[0] == "harness"}
    assert ours == {"harness", "harness.pytest_plugin"}

def test_with(harness):
    harness.assert_close(1.0, 1.0)
"""
    )
    result = pytester.runpytest_subprocess("-W", "error", "--strict-config")
    result.assert_outcomes(passed=2)
    result = pytester.runpytest_subprocess("-p", "no:harness")
    assert result.parseoutcomes() == {"failed": 1, "errors": 1}
    result.stdout.fnmatch_lines(["*fixture 'harness' not found"])
    result = pytester.runpytest_subprocess("-p", "no:harness", "--harness-update")
    assert "unrecognized arguments: --harness-update" in result.stderr.str()


def test_traces_of_failed_tests_are_kept(run, pytester):
    body = """
def test_good(harness):
    harness.assert_close(train(harness.record(name="a")), train(harness.record(name="b")))

def test_bad(harness):
    harness.assert_close(train(harness.record(name="a"), 0.2), train(harness.record(name="b")))
"""
    kept = "-o", "tmp_path_retention_policy=failed", "--basetemp", pytester.path / "kept"
    run(body, *kept).assert_outcomes(passed=1, failed=1)
    traces = {path.parts[-2:] for path in pytester.path.glob("kept/*[0-9]/*.trace")}
    assert traces == {("test_bad0", "a.trace"), ("test_bad0", "b.trace")}
    result = run(None, "-o", "tmp_path_retention_policy=none")
    assert message(result)[-1].startswith("(by its tmp_path_retention settings pytest removes")


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


# The parts


def test_names_of_tests_make_names_of_files():
    assert file_name("test_a") == "test_a"
    assert file_name("TestA::test_b[1-x]") == "TestA.test_b-1-x"
    odd = ["test[a/b]", "test[a b]", "test[a-b]", "test[\u00e9]", "test[]", "test", "a" * 300]
    odd += ["test[..]", "test[-]", "test[a]]", "test[\x00]", "test[[a]", "-x", ""]
    names = [file_name(node) for node in odd]
    assert len(set(names)) == len(names)
    for name in names:
        assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.=+-]{,120}", name), name


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


def test_the_plugin_is_small_to_import():
    code = "import pytest, sys, time; t = time.perf_counter(); import harness.pytest_plugin; "
    code += "print(time.perf_counter() - t); assert not {'numpy', 'rich'} & set(sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert float(done.stdout) < 0.1
