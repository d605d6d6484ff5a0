"""`harness run` with scripts as sides: what they are asked and handed, and what failures say."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import harness
from harness.cli.main import main
from harness.runs import processes
from harness.spec import Capture

# Fits a line by gradient descent in NumPy: no framework, so that a run takes a second.
PLAIN = """
import sys
import numpy as np
import harness

{top}
draw = np.random.default_rng({seed})
w = draw.normal(size=3)
with harness.record() as rec:
    for step in range({steps}):
        x = draw.normal(size=(8, 3))
        y = x @ np.array([1.0, -2.0, 3.0])
        with rec.step(x=x, y=y) as (x, y):
            {inside}
            before = w
            error = x @ w - y
            grad = {factor} * x.T @ error / len(y)
            w = w - 0.1 * grad
            rec.log(loss=float((error**2).mean()), grads={{"w": grad}}, params={{"w": w}})
            print("step", step, w)
"""
DEFAULTS = {"top": "", "seed": 1, "steps": 6, "inside": "pass", "factor": 2}


def script(folder, name, text=PLAIN, **changes):
    path = folder / f"{name}.py"
    path.write_text(text.format(**{**DEFAULTS, **changes}))
    return str(path)


def run(folder, *sides, trace=4, **options):
    return harness.run_sides(sides=sides, trace=trace, out=folder / "out", **options)


def failed(folder, *sides, **options):
    with pytest.raises(harness.HarnessError) as caught:
        run(folder, *sides, **options)
    return str(caught.value)


def test_two_scripts_are_run_and_compared_and_end_when_their_steps_are_done(tmp_path):
    mine, theirs = script(tmp_path, "mine", steps=10**9), script(tmp_path, "theirs")
    result = run(tmp_path, mine, theirs)
    assert result.diff.status == "identical"
    assert list(result.traces) == ["mine", "theirs"]
    assert len(result.losses["mine"]) == 4
    for path in result.traces.values():
        trace = harness.open_trace(path)
        assert (trace.header.complete, trace.steps) == (True, (1, 2, 3, 4))
        assert trace.header.program.kind == "script"
    assert (tmp_path / "out" / "mine.log").read_text().startswith("step 0 [")


def test_a_wrong_factor_is_placed_and_named(tmp_path):
    mine, theirs = script(tmp_path, "mine", factor=1), script(tmp_path, "theirs")
    result = run(tmp_path, mine, theirs)
    assert result.verdict.label == "bug"
    assert (result.verdict.where.step, result.verdict.where.tensor) == (1, "grads/w")
    assert "0.5" in result.verdict.causes[0].sentence


def test_arguments_labels_and_a_script_against_itself(tmp_path):
    text = PLAIN.replace("{factor}", "float(sys.argv[1])")
    path = script(tmp_path, "train", text)
    result = run(tmp_path, f"old={path} 2.0", f'new={path} "2"')
    assert result.diff.status == "identical"
    assert list(result.traces) == ["old", "new"]


def test_other_inputs_are_told_of_first_and_can_be_handed_over(tmp_path):
    mine = script(tmp_path, "mine", seed=2, inside="w = np.ones(3) if step == 0 else w")
    theirs = script(tmp_path, "theirs", inside="w = np.ones(3) if step == 0 else w")
    result = run(tmp_path, mine, theirs)
    assert result.verdict.sentence == "mine and theirs do not start from the same inputs"
    assert "--hand-over inputs" in result.verdict.next
    assert run(tmp_path, mine, theirs, hand_over="inputs").diff.status == "identical"


def test_a_constant_that_differs_is_not_said_to_be_handed_over(tmp_path):
    inside = "rec.log(**dict([('inputs/constant', np.full(3, %s))]))"
    mine = script(tmp_path, "mine", inside=inside % 1.0)
    theirs = script(tmp_path, "theirs", inside=inside % 2.0)
    found = run(tmp_path, mine, theirs).verdict
    assert found.sentence == "mine and theirs do not start from the same constants"
    assert "--hand-over" not in found.next
    assert "compare how the scripts make inputs/constant" in found.next


def test_the_loss_of_a_step_that_is_not_traced_is_its_own(tmp_path):
    one, two = script(tmp_path, "one"), script(tmp_path, "two")
    every = run(tmp_path, one, two).losses["one"]
    assert run(tmp_path, one, two, capture=Capture(every=2)).losses["one"] == every
    assert len(set(every)) == 4


def test_a_map_that_is_given_takes_the_place_of_one_of_an_earlier_run(tmp_path):
    mine = script(tmp_path, "mine", PLAIN.replace('"w": grad', '"v": grad'))
    theirs = script(tmp_path, "theirs")
    assert run(tmp_path, mine, theirs).diff.status == "identical"
    found = tmp_path / "out" / "mine-theirs.map.toml"
    given = tmp_path / "given.toml"
    given.write_text(found.read_text())
    found.write_text("stale")
    assert run(tmp_path, mine, theirs, map=given).diff.status == "identical"
    assert found.read_text() == given.read_text()
    assert run(tmp_path, mine, theirs, map=found).diff.status == "identical"
    run(tmp_path, f"mine={theirs}", f"theirs={theirs}")
    assert not found.exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"settings": ["lr=0.5"]}, "--set lr: no side is a twin"),
        ({"model": "tiny"}, "--model: no side is a twin"),
        ({"weights": "w.npz"}, "--weights: no side is a twin"),
    ],
)
def test_what_only_twins_take_is_refused_where_all_sides_are_scripts(options, words, tmp_path):
    said = failed(tmp_path, script(tmp_path, "mine"), script(tmp_path, "theirs"), **options)
    assert words in said
    assert "arguments of its own" in said


BROKEN = {
    "fails": (
        {"inside": "assert step < 2, 'wrong'"},
        r"side mine failed after step 2: exit code 1; log: .*mine\.log",
    ),
    "cannot be imported": (
        {"top": "import nothing_of_this_name"},
        "no module 'nothing_of_this_name'",
    ),
    "makes too few steps": ({"steps": 3}, r"ended after 3 of 4 steps: run fewer \(--trace 3\)"),
    "calls sys.exit": ({"inside": "sys.exit(0) if step == 2 else None"}, "after 2 of 4 steps"),
    "is killed": (
        {
            "top": "import os, signal",
            "inside": "os.kill(os.getpid(), signal.SIGKILL) if step == 1 else None",
        },
        r"after step 1: killed by SIGKILL \(out of memory, perhaps\)",
    ),
    "logs outside of a step": (
        {"top": "harness.record().log(loss=1.0)"},
        "rec.log outside of a step: put it inside",
    ),
    "gives parameters to a step alone": (
        {"inside": "pass\n        with rec.step(params={{'w': w}}):\n            pass".format()},
        r"rec\.step\(params=\.\.\): a dict is no array of numbers: give the model",
    ),
    "logs what no trace holds": ({"inside": "rec.log(odd=object())"}, "log/odd"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_script_that_fails_is_named_with_what_to_do_and_the_other_trace_is_kept(case, tmp_path):
    changes, words = BROKEN[case]
    sides = script(tmp_path, "theirs"), script(tmp_path, "mine", **changes)
    said = failed(tmp_path, *sides, sequential=True)
    assert re.search(words, said), said
    assert harness.open_trace(tmp_path / "out" / "theirs.trace").steps


def test_a_script_that_records_nothing_is_told_how(tmp_path):
    for text in ("print('done')", "import harness\nwith harness.record() as rec: pass"):
        (tmp_path / "mine.py").write_text(text)
        said = failed(tmp_path, str(tmp_path / "mine.py"), script(tmp_path, "theirs"))
        assert "side mine failed after step 0: it ended and recorded no step: put `with" in said


FINE = {
    "prints binary": {"inside": "sys.stdout.buffer.write(bytes(range(256)) * 100)"},
    "forks": {
        "inside": "import os; pid = os.fork(); pid or os._exit(0); os.waitpid(pid, 0)",
    },
    "forks and goes on recording there": {
        "top": "import os",
        "inside": "child = os.fork() if step == 1 else 1; child and step == 1 and os.wait()",
    },
    "catches everything": {"top": "", "steps": 6},
    "has children that outlive it": {
        "inside": "import subprocess; subprocess.Popen(['sleep', '3'])",
    },
}


@pytest.mark.parametrize("case", FINE)
def test_what_is_odd_about_a_script_and_does_no_harm(case, tmp_path):
    text = PLAIN
    if case == "catches everything":
        text = PLAIN.replace(
            "with harness.record() as rec:", "try:\n  with harness.record() as rec:"
        )
        head, body = text.split("try:\n", 1)
        lines = body.split("\n")
        text = head + "try:\n" + "\n".join(lines[:1] + [f"  {line}" for line in lines[1:]])
        text += "\nexcept BaseException: print('caught')\n"
    result = run(tmp_path, script(tmp_path, "mine", text, **FINE[case]), script(tmp_path, "theirs"))
    assert result.diff.status == "identical"


def test_a_script_that_goes_on_after_its_steps_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "PATIENCE", 0.5)
    text = PLAIN.replace(
        "        with rec.step(x=x, y=y) as (x, y):",
        "        try:\n          one = rec.step(x=x, y=y)\n          x, y = one.__enter__()\n"
        "        finally: pass\n        if True:",
    )
    text += (
        "            try: one.__exit__(None, None, None)\n            except BaseException: pass\n"
    )
    text += "import time\ntime.sleep(60)\n"
    result = run(tmp_path, script(tmp_path, "mine", text, steps=4), script(tmp_path, "theirs"))
    assert result.diff.status == "identical"


def test_bad_requests_end_in_one_line_and_2(tmp_path, capsys):
    path = script(tmp_path, "mine")
    for arguments, words in (
        (["--side", "gone.py", "--side", path], "no file gone.py: give a script, or a twin"),
        (["--side", path, "--side", path], "two sides named 'mine'; name them: --side old="),
        (
            ["--side", f"a={path}", "--side", f"b={path}", "--set", "a:lr=1"],
            "takes its own arguments",
        ),
        (
            ["--side", f"a={path}", "--side", f"b={path}", "--fault", "a:clip-elementwise"],
            "its own",
        ),
        (
            ["--side", f"a={path}", "--side", f"b={path}", "--hand-over", "all"],
            "there are: weights",
        ),
        (["--side", f"a={path} 'x", "--side", path], "quote it as for a shell"),
        (["--side", f"a={path}", "--side", f"b={path}", "--trace", "all"], "give a number"),
        (["--side", f"a={path}", "--side", "b=train"], "or give a script: --side mine=train.py"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(["run", *arguments, "--out", str(tmp_path / "out")])
        assert ended.value.code == 2, arguments
        assert words in capsys.readouterr().err.replace("\n", " "), arguments


def test_a_script_and_a_twin(tmp_path):
    result = run(tmp_path, script(tmp_path, "mine"), "np", settings=("bptt=3", "batch_size=2"))
    assert result.exit_code() == 1
    assert Path(result.traces["np"]).is_dir()


def test_nothing_is_asked_of_a_script_that_is_run_by_itself(tmp_path):
    path = script(tmp_path, "mine")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HARNESS_")}
    done = subprocess.run(
        [sys.executable, path],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "traces/mine.trace: 6 steps" in done.stderr
    assert len(harness.open_trace(tmp_path / "traces" / "mine.trace").steps) == 6
