"""Whole runs through `harness run`: a process a side, and what happens when one fails."""

import json
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest

import harness
from harness import HarnessError
from harness.cli.main import main
from harness.explain import Verdict
from harness.runs.result import RunResult
from harness.trace import open_trace

TINY = ("embed_size=7", "hidden_size=11", "batch_size=3", "bptt=5")
SMALL = [word for setting in TINY for word in ("--set", setting)]


def run_json(folder, capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        main(["run", *SMALL, "--out", str(folder), "--json", *map(str, arguments)])
    return ended.value.code, json.loads(capsys.readouterr().out)


def test_a_clean_run_is_close_and_leaves_all_it_promises(tmp_path, capsys):
    code, found = run_json(tmp_path, capsys, "--trace", 4)
    assert code == 0
    assert found["diff"]["status"] == "close"
    assert (found["verdict"]["label"], found["verdict"]["causes"]) == ("close", [])
    assert found["pairs"] == {"pt|tf": "close"}
    assert set(found["losses"]) == set(found["traces"]) == {"pt", "tf"}
    assert all(len(losses) == 4 for losses in found["losses"].values())
    assert np.allclose(found["losses"]["pt"], found["losses"]["tf"], rtol=1e-5)
    for label in ("pt", "tf"):
        trace = open_trace(found["traces"][label])
        assert trace.header.complete
        assert trace.steps == (1, 2, 3, 4)
        step = trace.step(2)
        loss = float(step.read(step.find("forward/loss")))
        assert loss == found["losses"][label][1]
        for file in (f"{label}.npz", f"{label}.log", f"{label}.json"):
            assert (tmp_path / file).exists()
    assert harness.load_weights(tmp_path / "weights.npz").keys()


def test_clipping_on_one_side_is_found_where_it_first_bites(tmp_path, capsys):
    settings = ("--trace", 12, "--lr", 2, "--set", "clip_limit=1.38")
    code, found = run_json(tmp_path, capsys, *settings, "--set", "pt:clip=elementwise")
    assert code == 1
    first = found["diff"]["first_divergence"]
    assert first["tensor"].startswith("update/clipped/")
    trace = open_trace(found["traces"]["tf"])
    norms = []
    for number in trace.steps:
        step = trace.step(number)
        norms.append(float(step.read(step.find("update/global_norm"))))
    assert first["step"] == 1 + next(i for i, norm in enumerate(norms) if norm > 1.38)
    notes = " ".join(found["diff"]["notes"])
    assert "train.clip = 'elementwise' | 'global_norm'" in notes


def test_one_twin_under_two_names_is_identical_to_itself(tmp_path, capsys):
    sides = ("--side", "old=np", "--side", "new=np", "--python", f"old={sys.executable}")
    code, found = run_json(tmp_path, capsys, "--trace", 3, *sides, "--sequential")
    assert code == 0
    assert found["diff"]["status"] == "identical"
    assert sorted(found["traces"]) == ["new", "old"]


def test_a_filtered_run_traces_only_what_was_asked_for(tmp_path, capsys):
    filters = ("--every", 2, "--steps", "2:5", "--include", "grads/*", "--exclude", "*/b_?")
    code, found = run_json(tmp_path, capsys, "--trace", 6, "--side", "np", *filters)
    assert code == 0
    assert found["diff"] is None
    trace = open_trace(found["traces"]["np"])
    assert trace.steps == (2, 4)
    names = [entry.name for entry in trace.step(2).entries]
    assert "grads/softmax_w" in names
    assert all(name.startswith("grads/") and not name.endswith("/b_i") for name in names)


def without(module, folder):
    """An interpreter that does not have `module`, as a script that hides it."""
    hidden = folder / "hidden"
    hidden.mkdir()
    message = f"No module named '{module}'"
    (hidden / f"{module}.py").write_text(f"raise ModuleNotFoundError({message!r})\n")
    script = folder / "python"
    script.write_text(f'#!/bin/sh\nPYTHONPATH="{hidden}" exec "{sys.executable}" "$@"\n')
    script.chmod(0o755)
    return script


def test_a_missing_framework_is_named_with_the_remedy_and_the_other_side_is_stopped(tmp_path):
    python = without("torch", tmp_path)
    told = []
    observer = harness.Observer()
    observer.note = told.append
    with pytest.raises(HarnessError) as caught:
        harness.run_sides(
            trace=10**6,
            settings=TINY,
            out=tmp_path / "o",
            pythons=[f"pt={python}"],
            observer=observer,
        )
    assert f"side pt failed after step 0; log: {tmp_path / 'o' / 'pt.log'}" in told
    said = str(caught.value)
    assert "side pt failed after step 0" in said
    assert "no module 'torch'" in said
    assert "pip install 'twin-harness[torch]'" in said
    assert f"log: {tmp_path / 'o' / 'pt.log'}" in said
    assert "side tf was stopped after step" in said


def test_an_interpreter_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(HarnessError, match=r"side pt: cannot start '/none/python'.*--python pt="):
        harness.run_sides(trace=3, sides=["pt"], out=tmp_path, pythons=["pt=/none/python"])


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def only_child(pid):
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=True)
    return int(found.stdout)


def test_a_killed_side_is_named_and_its_finished_steps_stay(tmp_path):
    arguments = ["--side", "np", "--trace", "100000", "--out", str(tmp_path), *SMALL]
    index = tmp_path / "np.trace" / "index.jsonl"
    command = [sys.executable, "-m", "harness.run", *arguments]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as running:
        try:
            wait_for(lambda: index.exists() and index.read_bytes().count(b"\n") >= 3)
            os.kill(only_child(running.pid), signal.SIGKILL)
            said = running.communicate(timeout=60)[1]
        finally:
            running.kill()
    assert running.returncode == 2
    assert "side np failed after step" in said
    assert "killed by SIGKILL (out of memory, perhaps)" in said
    trace = open_trace(tmp_path / "np.trace")
    assert len(trace.steps) >= 3
    assert not trace.header.complete
    assert not harness.check_trace(tmp_path / "np.trace").faults


def test_a_failing_side_does_not_leave_the_trace_of_an_earlier_run(tmp_path):
    settings = dict(trace=2, sides=["pt"], settings=TINY, out=tmp_path / "o")
    harness.run_sides(**settings)
    assert (tmp_path / "o" / "pt.trace").exists()
    with pytest.raises(HarnessError):
        harness.run_sides(**settings, pythons=[f"pt={without('torch', tmp_path)}"])
    assert not (tmp_path / "o" / "pt.trace").exists()


def test_a_folder_that_is_no_trace_is_never_deleted(tmp_path):
    precious = tmp_path / "np.trace" / "precious.txt"
    precious.parent.mkdir()
    precious.write_text("keep me")
    with pytest.raises(HarnessError, match=r"precious\.txt.*no part of a trace"):
        harness.run_sides(trace=2, sides=["np"], settings=TINY, out=tmp_path)
    assert precious.read_text() == "keep me"


def test_weights_that_do_not_fit_are_named_before_anything_is_started(tmp_path):
    harness.save_weights({"embedding": np.zeros((3, 2), np.float32)}, tmp_path / "w.npz")
    with pytest.raises(HarnessError, match=r"w\.npz: missing layer0/b_h"):
        harness.run_sides(trace=2, weights=tmp_path / "w.npz", out=tmp_path)
    assert not (tmp_path / "pt.log").exists()


def test_weights_without_a_model_say_the_sizes_themselves(tmp_path, capsys):
    weights = tmp_path / "w.npz"
    with pytest.raises(SystemExit):
        main(["weights", "init", str(weights), "--set", "hidden_size=5", "--set", "embed_size=4"])
    code = main_code("run", "--weights", weights, "--trace", 2, "--side", "np", "--out", tmp_path)
    assert code == 0
    assert open_trace(tmp_path / "np.trace").header.spec["model"]["hidden_size"] == 5
    code = main_code("run", "--weights", weights, "--model", "zaremba-small", "--out", tmp_path)
    assert code == 2
    assert "expected [256, 200]" in capsys.readouterr().err


def main_code(*arguments):
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return ended.value.code


def test_a_run_draws_the_same_weights_from_the_same_seed(tmp_path):
    for out in ("one", "two"):
        harness.run_sides(trace=1, sides=["np"], settings=(*TINY, "seed=7"), out=tmp_path / out)
    one, two = (tmp_path / out / "weights.npz" for out in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()


def test_a_corpus_larger_than_the_vocabulary_of_the_weights_is_refused(tmp_path):
    text = " ".join(f"word{i}" for i in range(400))
    (tmp_path / "text.txt").write_text(f"{text}\n" * 20)
    spec = harness.ModelSpec(29, 7, 11, 2)
    harness.save_weights(harness.draw_weights(spec, 1), tmp_path / "w.npz")
    with pytest.raises(HarnessError, match=r"vocabulary of 29, and the corpus .* has 401"):
        harness.run_sides(
            trace=1, weights=tmp_path / "w.npz", data=tmp_path / "text.txt", out=tmp_path / "o"
        )


def test_the_exit_code_is_the_verdicts_unless_another_pair_parts(tmp_path):
    def ended(label, pairs, strict=False):
        found = SimpleNamespace(labels=("pt", "np"))
        verdict = Verdict(label, "") if label else None
        return RunResult({}, {}, {}, None, found, verdict, pairs).exit_code(strict)

    one = {"pt|np": "diverged"}
    fine = ("identical", "close", "rounding")
    assert [ended(label, one) for label in fine] == [0, 0, 0]
    assert [ended(label, one, strict=True) for label in fine] == [0, 0, 1]
    wrong = ("bug", "precision", "structure", "undecided")
    assert [ended(label, one) for label in wrong] == [1, 1, 1, 1]
    assert ended("rounding", one | {"tf|np": "close"}) == 0
    assert ended("rounding", one | {"tf|np": "diverged"}) == 1
    assert [ended(None, one), ended(None, {"pt|np": "close"})] == [1, 0]
