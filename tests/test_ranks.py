"""The traces of several ranks, read as one."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import harness
from harness.capture.ranks import which_rank
from harness.models.graph import name_of, references
from harness.trace import check_trace, remove_trace
from harness.trace.ranks import names_of_rank, rank_steps
from harness.trace.sketched import write_sketched


def _write(folder: Path, monkeypatch: pytest.MonkeyPatch, drift: bool = False) -> Path:
    """Two ranks that share a weight and have inputs of their own."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        with harness.record(out=folder) as rec:
            for step in range(1, 4):
                with rec.step(x=np.full(3, float(rank))):
                    w = np.full(2, step + (rank * drift if step > 1 else 0.0))
                    rec.log(params={"w": w})
    return folder


def test_ranks_are_read_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is shared comes once, what is a rank's own under its name, with its own elements."""
    step = harness.open_trace(_write(tmp_path / "a.trace", monkeypatch)).step(2)
    assert [e.name for e in step.entries] == ["inputs/rank0/x", "inputs/rank1/x", "params/w"]
    assert step.read(step.find("inputs/rank1/x")).tolist() == [1.0, 1.0, 1.0]
    checked = check_trace(tmp_path / "a.trace")
    assert (checked.complete, checked.faults) == (True, ())


def test_ranks_that_drift_apart_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A weight that is not the same on all ranks is a difference and a note."""
    a = _write(tmp_path / "a.trace", monkeypatch, drift=True)
    b = _write(tmp_path / "b.trace", monkeypatch)
    found = harness.diff(a, b)
    assert any("ranks differ in params/w from step 2 on" in note for note in found.notes)
    assert [s.tensor for s in found.structure] == ["params/rank1/w"]


def test_two_sides_that_drift_alike_are_identical_and_said_to_drift(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The note does not depend on the other side."""
    a, b = (_write(tmp_path / f"{n}.trace", monkeypatch, drift=True) for n in "ab")
    found = harness.diff(a, b)
    assert found.status == "identical"
    assert len([note for note in found.notes if "ranks differ in params/w" in note]) == 2


def test_a_rank_that_is_short_or_gone_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What all ranks finished is read; the report says how far each came."""
    a = _write(tmp_path / "a.trace", monkeypatch)
    monkeypatch.setenv("RANK", "1")
    rec = harness.record(out=a).__enter__()
    with rec.step(x=np.full(3, 1.0)):
        rec.log(params={"w": np.full(2, 1.0)})
    rec.__exit__(RuntimeError, RuntimeError(), None)  # as where the block ends in one
    assert harness.open_trace(a).steps == (1,)
    assert rank_steps(a) == " (rank 0: 3 steps, rank 1: 1 step)"
    assert not check_trace(a).complete
    shutil.rmtree(a / "rank-1.trace")
    assert rank_steps(a) == " (rank 0: 3 steps, rank 1: no trace)"
    b = _write(tmp_path / "b.trace", monkeypatch)
    assert any("rank 1 left no trace" in note for note in harness.diff(a, b).notes)


def test_a_rank_that_ended_well_and_early_is_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that stopped is."""
    a, b = (_write(tmp_path / f"{n}.trace", monkeypatch) for n in "ab")
    monkeypatch.setenv("RANK", "1")
    with harness.record(out=a) as rec, rec.step(x=np.full(3, 1.0)):
        rec.log(params={"w": np.full(2, 1.0)})
    assert f"{a}: rank 1 stopped after 1 of 3 steps" in harness.diff(a, b).notes
    assert not check_trace(a).complete


def test_sketches_of_a_rank_are_compared_with_its_elements(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever of two traces keeps them: a sketch is that of the name which the rank has."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        for name in ("full", "stats"):
            x = np.random.default_rng(rank).normal(size=1000) * (1 + 1e-15 * (name == "full"))
            with harness.record(out=tmp_path / name, level=name) as rec, rec.step():
                rec.log(params={"w": x[:3].round()}, forward={"x": x})
    found = harness.diff(tmp_path / "full", tmp_path / "stats")
    assert found.status == "close"
    assert found.onset.tensor == "forward/rank0/x"


def test_a_golden_trace_of_ranks_is_one_trace_with_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is kept of them in a test is compared with what they leave later."""
    trace = harness.open_trace(_torch(tmp_path / "a.trace", monkeypatch, 2))
    assert trace.header.program is not None
    write_sketched(trace, tmp_path / "golden", "golden", trace.header.program)
    assert check_trace(tmp_path / "golden").faults == ()
    found = harness.diff(trace.path, tmp_path / "golden")
    assert (found.status, found.structure) == ("identical", ())


def test_a_damaged_rank_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every rank's files are read by trace check."""
    a = _write(tmp_path / "a.trace", monkeypatch)
    file = a / "rank-1.trace" / "step-00000002.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert any("rank-1.trace" in fault for fault in check_trace(a).faults)


def test_a_trace_of_ranks_is_removed_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As that of one process is: what is no trace stays."""
    a = _write(tmp_path / "a.trace", monkeypatch)
    (a / "notes.txt").write_text("mine")
    with pytest.raises(harness.HarnessError, match=r"holds 'notes\.txt'"):
        remove_trace(a)
    (a / "notes.txt").unlink()
    remove_trace(a)
    assert not a.exists()


def test_a_rank_that_is_known_too_late_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else all ranks would write one trace."""
    with harness.record(out=tmp_path / "a.trace") as rec:
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setenv("RANK", "1")
        with pytest.raises(harness.HarnessError, match="set up the process group first"):
            rec.step(x=np.ones(3)).__enter__()


@pytest.mark.parametrize("rank", ["2", "-1", "x", ""])
def test_variables_that_say_no_rank_are_no_ranks(
    monkeypatch: pytest.MonkeyPatch, rank: str
) -> None:
    """They may be of another program."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", rank)
    assert which_rank() == (0, 1)


def test_a_rank_goes_on_with_what_is_its_own() -> None:
    """By its own names; with what drifted, and with no batch of another number of rows."""
    whole = {"params/w": 0, "params/rank1/w": 1, "inputs/rank0/x": 2, "inputs/rank1/x": 3}
    assert names_of_rank(whole, 0) == {"params/w": 0, "inputs/x": 2}
    assert names_of_rank(whole, 1) == {"params/w": 1, "inputs/x": 3}
    assert names_of_rank({"params/w": 0, "inputs/x": 1, "forward/a": 2}, 1) == {"params/w": 0}


def _torch(folder: Path, monkeypatch: pytest.MonkeyPatch, ranks: int) -> Path:
    """A small model, once by each rank with its part of the batch; gradients are averaged by hand.

    All run here one after the other, so each is given what it would have been sent.
    """
    torch.manual_seed(0)
    batches = torch.randn(2, 8, 6)
    sent = [[torch.zeros(())] * 4, [torch.zeros(())] * 4]
    for sending in (True, False) if ranks > 1 else (False,):
        for rank in range(ranks):
            if ranks > 1:
                monkeypatch.setenv("WORLD_SIZE", str(ranks))
                monkeypatch.setenv("RANK", str(rank))
            torch.manual_seed(1)
            model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 1))
            sgd = torch.optim.SGD(model.parameters(), lr=0.1)
            with harness.record(model, sgd, out=folder) as rec:
                for k, batch in enumerate(batches[:1]):
                    with rec.step(x=batch.chunk(ranks)[rank]) as x:
                        loss = (model(x) ** 2).mean()
                        sgd.zero_grad()
                        loss.backward()
                        for i, p in enumerate(model.parameters() if ranks > 1 else ()):
                            assert p.grad is not None
                            if sending:
                                sent[k][i] = sent[k][i] + p.grad.clone() / ranks
                            else:
                                p.grad.copy_(sent[k][i])
                        sgd.step()
                        rec.log(loss=loss)
    monkeypatch.delenv("RANK", raising=False)
    return folder


def test_stages_of_ranks_are_of_their_own_tensors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A forward stage reads its rank's tensors and the shared weights; a gradient has none."""
    graph = harness.open_trace(_torch(tmp_path / "a.trace", monkeypatch, 2)).graph
    assert graph is not None
    found = graph.value("forward/rank1/2")
    assert found is not None
    operands = {name_of(x) for x in references(found)}
    assert operands == {"forward/rank1/1", "params/2/weight", "params/2/bias"}
    assert not [name for name in graph.stages if name.startswith("grads/")]
    assert graph.value("params/2/weight") is not None


def test_gradients_that_the_script_averages_itself_are_no_drift(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a rank made is its own until it is reduced; the weights are the same."""
    trace = harness.open_trace(_torch(tmp_path / "a.trace", monkeypatch, 2))
    names = {entry.name for entry in trace.entry(1).tensors}
    assert {"grads/rank0/0/weight", "grads/rank1/0/weight", "update/clipped/0/weight"} <= names
    assert not {"grads/0/weight", "params/rank1/0/weight"} & names
    assert not any("ranks differ" in note for note in harness.diff(trace.path, trace.path).notes)


def test_ranks_are_mapped_to_one_process_that_has_the_whole_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their batches are joined; gradients of their own losses are other numbers, and no pair."""
    two = _torch(tmp_path / "two.trace", monkeypatch, 2)
    one = _torch(tmp_path / "one.trace", monkeypatch, 1)
    map_ = harness.align(two, one)
    for a, b, way in ((two, one, map_), (one, two, map_.turned)):
        found = harness.diff(a, b, alignment=way)
        assert found.status == "close", found.first_divergence
    opened = harness.open_trace(two, alignment=map_).step(1)
    assert opened.find("forward/2").shape == (8, 1)
    assert opened.read(opened.find("inputs/x")).shape == (8, 6)
    names = {entry.name for entry in opened.entries}
    assert {"params/0/weight", "forward/0"} <= names
    assert not {"backward/2", "forward/loss"} & names
    assert any(name.startswith("backward/rank1/2") for name in names)
