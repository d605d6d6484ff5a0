"""The pytest plugin, run by pytest on tests as users write them: traces that are compared."""

import os
import re
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from plugin_runs import ROOT, message
from plugin_runs import run as run

from harness.testing.names import file_name
from harness.trace import open_trace

pytest_plugins = ["pytester"]

INSTALLED = any(point.name == "harness" for point in entry_points(group="pytest11"))


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


def test_names_of_tests_make_names_of_files():
    assert file_name("test_a") == "test_a"
    assert file_name("TestA::test_b[1-x]") == "TestA.test_b-1-x"
    odd = ["test[a/b]", "test[a b]", "test[a-b]", "test[\u00e9]", "test[]", "test", "a" * 300]
    odd += ["test[..]", "test[-]", "test[a]]", "test[\x00]", "test[[a]", "-x", ""]
    names = [file_name(node) for node in odd]
    assert len(set(names)) == len(names)
    for name in names:
        assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.=+-]{,120}", name), name


def test_the_plugin_is_small_to_import():
    code = "import pytest, sys, time; t = time.perf_counter(); import harness.pytest_plugin; "
    code += "print(time.perf_counter() - t); assert not {'numpy', 'rich'} & set(sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert float(done.stdout) < 0.1
