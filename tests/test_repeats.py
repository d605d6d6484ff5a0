"""A side that does not repeat itself is told of, with the tensor, before anything else is made."""

import msgspec
import pytest
from some import some
from twins import a_run

import harness.runs.investigation
from harness import Observer
from harness.compare import diff
from harness.explain import judge
from harness.runs.investigation import Investigation
from harness.runs.processes import TWINS, Twin
from harness.runs.session import Session, Side
from harness.spec import Capture

# Twins in NumPy with something between the gradients and what is made of their norm.
CHANGED = """
import os, sys
import numpy as np
import np_impl.train as twin
from harness.side.serving import main

RUNS, calls = [], []

def drawn():
    return int.from_bytes(os.urandom(4), "big") / 2**32

def noisy(norm):
    return norm * np.float32(1 + drawn())

def remembers(norm):
    return norm * np.float32(1 + 1e-3 * len(RUNS))

def late(norm):
    return norm * np.float32(1 + drawn()) if len(calls) > 2 else norm

def clean(norm):
    return norm * np.float32(1.5)

class Changed(twin.Execution):
    def run(self, stages, see):
        def seen(name, value, t):
            if name == "update/global_norm":
                calls.append(0)
                value = np.asarray({change}(value))
            return see(name, value, t)
        super().run(stages, seen)

plain, twin.Execution = twin.train, Changed

def train(run, report):
    RUNS.append(run.label)
    calls.clear()
    open(os.environ["WHO_RAN"], "a").write(f"{{os.getpid()}} {{run.label}}\\n")
    plain(run, report)

if __name__ == "__main__":
    sys.exit(main(train))
"""
KINDS = ("noisy", "remembers", "late", "clean")


@pytest.fixture
def planted(tmp_path, monkeypatch):
    """Twins by the names of KINDS, from a package folder of their own."""
    package = tmp_path / "packages"
    package.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(package))
    monkeypatch.setenv("WHO_RAN", str(tmp_path / "who-ran"))
    for kind in KINDS:
        (package / f"{kind}_twin.py").write_text(CHANGED.format(change=kind))
        monkeypatch.setitem(TWINS, kind, Twin(f"{kind}_twin", "NumPy", "all"))
    return tmp_path / "who-ran"


def investigate(folder, monkeypatch, *twins, steps=6, **fields):
    """The evidence that is judged of sides "a" and "b" of these twins, and the session's folder."""
    seen = []
    monkeypatch.setattr(
        harness.runs.investigation,
        "judge",
        lambda evidence, referee=None: seen.append(evidence) or evidence,
    )
    runs = tuple(a_run(folder, label, steps=steps, clip_limit=0.5, **fields) for label in "ab")
    runs = tuple(msgspec.structs.replace(run, weights=runs[0].weights) for run in runs)
    with Session(
        [Side(label, twin) for label, twin in zip("ab", twins, strict=True)], folder, Observer()
    ) as session:
        session.run_all([(run.label, run) for run in runs])
        found = diff(runs[0].trace, runs[1].trace)
        Investigation(session, runs, found).verdict()
    assert not list(folder.glob("*-again*"))
    return seen[0], found


def test_sides_that_repeat_themselves_are_told_nothing_of(tmp_path, monkeypatch, planted):
    evidence, found = investigate(tmp_path, monkeypatch, "clean", "np")
    assert found.first_divergence.step == 1
    assert evidence.repeats == ()
    assert evidence.wide
    processes = {line.split()[0] for line in planted.read_text().splitlines()}
    assert len(processes) == 1


@pytest.mark.parametrize("side", some(["a", "b"], fast=["b"]))
def test_noise_without_a_seed_is_told_with_its_tensor(tmp_path, monkeypatch, planted, side):
    twins = ("noisy", "np") if side == "a" else ("np", "noisy")
    evidence, _ = investigate(tmp_path, monkeypatch, *twins)
    assert evidence.repeats == ((side, side, 1, "update/global_norm", False, False),)


def test_noise_is_seen_at_the_step_where_it_begins(tmp_path, monkeypatch, planted):
    evidence, found = investigate(tmp_path, monkeypatch, "late", "np")
    assert found.first_divergence.step == 3
    assert evidence.repeats == (("a", "a", 3, "update/global_norm", False, False),)


def test_both_sides_may_be_noisy(tmp_path, monkeypatch, planted):
    evidence, _ = investigate(tmp_path, monkeypatch, "noisy", "remembers")
    assert [(r.side, r.fresh) for r in evidence.repeats] == [("a", False), ("b", True)]


def test_state_left_in_the_process_is_told_and_judging_runs_get_fresh_ones(
    tmp_path, monkeypatch, planted
):
    evidence, _ = investigate(tmp_path, monkeypatch, "remembers", "np")
    assert evidence.repeats == (("a", "a", 1, "update/global_norm", True, False),)
    assert "every further run of a had a process of its own" in evidence.lacking
    ran = [line.split() for line in planted.read_text().splitlines()]
    first, again, fresh, *judging = ran
    assert first[0] == again[0] != fresh[0]
    processes = [pid for pid, _ in judging]
    assert len(processes) == len(set(processes)) >= 3
    assert not {first[0], fresh[0]} & set(processes)


@pytest.mark.parametrize("level", some(["stats", "hash"], fast=["hash"]))
def test_hashes_are_enough_to_tell(tmp_path, monkeypatch, planted, level):
    evidence, _ = investigate(tmp_path, monkeypatch, "noisy", "np", capture=Capture(level=level))
    assert [repeat.tensor for repeat in evidence.repeats] == ["update/global_norm"]


def test_a_long_run_is_repeated_for_few_steps(tmp_path, monkeypatch, planted):
    evidence, found = investigate(tmp_path, monkeypatch, "np", "remembers", steps=40)
    assert found.first_divergence.step == 1
    assert [(r.side, r.step) for r in evidence.repeats] == [("b", 1)]


def test_a_side_that_cannot_be_run_again_is_told_of(tmp_path, monkeypatch, planted):
    calls = []
    plain = Session.run_all

    def fails_once(self, runs, sequential=False):
        calls.append(runs)
        if len(calls) == 2:
            raise harness.HarnessError("side a failed after step 0: gone\ntraces kept: none")
        return plain(self, runs, sequential)

    monkeypatch.setattr(Session, "run_all", fails_once)
    evidence, _ = investigate(tmp_path, monkeypatch, "clean", "np")
    assert evidence.repeats == ()
    assert "not run again: side a failed after step 0: gone" in evidence.lacking
    assert evidence.wide


def test_what_does_not_repeat_itself_is_said_first_and_nothing_else_is_claimed(
    tmp_path, monkeypatch, planted
):
    evidence, _ = investigate(tmp_path, monkeypatch, "noisy", "np")
    found = judge(evidence)
    assert (found.label, found.side) == ("bug", "a")
    assert found.sentence == "a does not repeat itself, first at step 1, update/global_norm"
    assert found.evidence[0].startswith("a does not repeat itself: run again from the same start")
    assert [cause.name for cause in found.causes] == ["not-repeatable"]
    fresh, _ = investigate(tmp_path, monkeypatch, "remembers", "np")
    assert "a keeps something in its process from run to run" in judge(fresh).evidence[0]


def test_last_bits_that_vary_accuse_nobody(tmp_path, monkeypatch, planted):
    evidence, _ = investigate(tmp_path, monkeypatch, "noisy", "np")
    varying = evidence.repeats[0]._replace(close=True)
    verdict = judge(evidence._replace(repeats=(varying,)))
    assert "has other bits, by no more than rounding" in verdict.evidence[0]
    assert "not-repeatable" not in [cause.name for cause in verdict.causes]
