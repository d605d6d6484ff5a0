"""`harness run` with scripts that train in several processes."""

import re
from pathlib import Path

import pytest
import test_scripts_as_sides
from test_scripts_as_sides import failed, run

import harness

# Fits a line with plain gradients in several processes: each has its rows, and computes the
# gradients of all, as if it had been told.
WORKER = """
import os
import sys
import numpy as np
import harness

draw = np.random.default_rng(1)
w = draw.normal(size=3)
rank, ranks = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
with harness.record() as rec:
    for step in range(1, 100):
        every = draw.normal(size=(8, 3))
        with rec.step(x=np.split(every, ranks)[rank]) as x:
            error = x @ w - x @ np.array([1.0, -2.0, 3.0])
            parts = np.split(every, ranks)
            parts[rank] = x
            made = [2 * p.T @ (p @ w - p @ np.array([1.0, -2.0, 3.0])) / len(p) for p in parts]
            grad = np.mean(made, axis=0)
            w = w - 0.1 * grad
            {inside}
            rec.log(loss=float((error**2).mean()), grads={{"w": grad}}, params={{"w": w}})
"""
LAUNCH = """
import os
import subprocess
import sys

if __name__ == "__main__":
    ranks = [
        subprocess.Popen(
            [sys.executable, {worker!r}], env={{**os.environ, "RANK": str(k), "WORLD_SIZE": "2"}}
        )
        for k in range(2)
    ]
    sys.exit(max(rank.wait() for rank in ranks))
"""


def worker(folder: Path, name: str, inside: str = "pass") -> str:
    path = folder / f"{name}.py"
    path.write_text(WORKER.format(inside=inside))
    return str(path)


def two(folder: Path, name: str, inside: str = "pass") -> str:
    """A script that starts two ranks of another."""
    path = folder / f"{name}.py"
    path.write_text(LAUNCH.format(worker=worker(folder, f"{name}_rank", inside)))
    return str(path)


def test_all_ranks_are_told_and_rank_0_speaks_for_them(tmp_path):
    result = run(tmp_path, two(tmp_path, "mine"), two(tmp_path, "theirs"))
    assert result.diff.status == "identical"
    assert result.diff.tensors_compared == 4 * 6
    assert len(result.losses["mine"]) == 4
    trace = harness.open_trace(result.traces["mine"])
    assert (trace.header.complete, trace.steps) == (True, (1, 2, 3, 4))
    for rank in range(2):
        one = harness.open_trace(Path(result.traces["mine"]) / f"rank-{rank}.trace")
        assert (one.header.complete, one.header.label) == (True, "mine")
        assert one.header.program.name == "mine_rank.py"


def test_two_ranks_are_compared_with_one_process(tmp_path):
    mine, theirs = two(tmp_path, "mine"), worker(tmp_path, "theirs")
    result = run(tmp_path, mine, theirs)
    assert result.diff.status == "close"
    notes = "\n".join(result.diff.notes)
    assert "of mine have no partner: forward/rank0/loss, forward/rank1/loss" in notes
    assert "of theirs have no partner: forward/loss" in notes
    wrong = worker(tmp_path, "wrong", "w = w + 0.001 * grad")
    found = run(tmp_path, mine, wrong, verdict=False).diff
    assert found.first_divergence.tensor == "params/w"


def test_each_rank_is_handed_what_is_its_own(tmp_path):
    other = "w = w + 0 if step > 1 else w"
    mine = two(tmp_path, "mine", other)
    path = tmp_path / "mine_rank.py"
    path.write_text(path.read_text().replace("default_rng(1)", "default_rng(2)"))
    path.write_text(path.read_text().replace("w = draw.normal(size=3)", "w = np.ones(3)"))
    theirs = two(tmp_path, "theirs")
    path = tmp_path / "theirs_rank.py"
    path.write_text(path.read_text().replace("w = draw.normal(size=3)", "w = np.ones(3)"))
    result = run(tmp_path, mine, theirs, hand_over="inputs", trace=1, verdict=False)
    for rank in range(2):
        name = f"inputs/rank{rank}/x"
        steps = [harness.open_trace(trace).step(1) for trace in result.traces.values()]
        a, b = (step.find(name).hash for step in steps)
        assert a == b, name


def test_ranks_that_drift_apart_are_the_finding(tmp_path):
    inside = "w = w + 1e-3 * (rank == 1 and step == 2)"
    result = run(tmp_path, two(tmp_path, "mine", inside), two(tmp_path, "theirs"))
    assert result.verdict.label == "structure"
    assert "from step 2 on rank 1 of mine has params/w of its own" in result.verdict.next
    assert any("ranks differ in params/w from step 2 on" in note for note in result.diff.notes)


@pytest.mark.parametrize("end", ["1 / 0", "sys.exit(0)"])
def test_a_rank_that_ends_early_is_named_and_what_was_finished_stays(tmp_path, end):
    mine = two(tmp_path, "mine", "rank == 1 and step == 3 and {end}".replace("{end}", end))
    path = tmp_path / "mine_rank.py"
    soon = "import harness.capture.ranks\nharness.capture.ranks.PATIENCE = 0.3\n"
    path.write_text(path.read_text().replace("import harness\n", soon))
    text = failed(tmp_path, mine, trace=6)
    assert "side mine failed after step 6: rank 1 stopped before its last step" in text
    assert re.search(r"traces kept: .*mine\.trace \(rank 0: 6 steps, rank 1: 2 steps\)", text)
    assert harness.open_trace(tmp_path / "out" / "mine.trace").steps == (1, 2)


def test_a_module_is_a_side_and_an_earlier_trace_of_ranks_is_replaced(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    two(tmp_path, "mine")
    run(tmp_path, "mine=-m mine", trace=2)
    assert (tmp_path / "out" / "mine.trace" / "rank-1.trace").is_dir()
    worker(tmp_path, "mine")
    result = run(tmp_path, "-m mine", trace=2)
    assert list(result.traces) == ["mine"]
    assert harness.open_trace(result.traces["mine"]).steps == (1, 2)
    assert not (tmp_path / "out" / "mine.trace" / "rank-1.trace").exists()


def test_a_process_that_comes_second_is_told_what_to_do(tmp_path):
    mine = two(tmp_path, "mine")
    path = Path(mine)
    path.write_text(path.read_text().replace('"RANK": str(k), "WORLD_SIZE": "2"', ""))
    result = run(tmp_path, mine)  # that of the first that came
    assert harness.open_trace(result.traces["mine"]).header.complete
    log = (tmp_path / "out" / "mine.log").read_text()
    assert "each must know its rank: set up the process group" in log


def test_a_port_that_is_taken_says_what_to_do(tmp_path):
    top = """import socket
one = socket.create_server(("127.0.0.1", 0))
two = socket.create_server(one.getsockname())"""
    text = failed(tmp_path, test_scripts_as_sides.script(tmp_path, "mine", top=top))
    assert "run them one after the other (--sequential)" in text


DDP = """
import os
import sys
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
import harness

ranks, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
if ranks > 1:
    dist.init_process_group("gloo")
torch.manual_seed(0)
net = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8, eps={eps}), nn.Tanh(), nn.Linear(8, 1))
x, y = torch.randn(8, 2, 8, 6), torch.randn(8, 2, 8, 1)
mine = [(a[:, k::ranks], b[:, k::ranks]) for a, b in zip(x, y) for k in [rank]]
model = nn.parallel.DistributedDataParallel(net) if ranks > 1 else net
adam = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
skip = model.no_sync if ranks > 1 else torch.enable_grad
batches = DataLoader(mine, batch_size=None, num_workers={workers}, multiprocessing_context="fork")
with harness.record(model, adam) as rec:
    for x, y in batches:
        with rec.step(x=x, y=y) as (x, y):
            adam.zero_grad()
            with skip():
                (((model(x[0]) - y[0]) ** 2).mean() / 2).backward()
            loss = ((model(x[1]) - y[1]) ** 2).mean() / 2
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            adam.step()
            rec.log(loss=loss)
"""


@pytest.mark.slow
def test_data_parallel_processes_of_torchrun_against_one(tmp_path):
    text = DDP.replace("{eps}", "1e-5").replace("{workers}", "1")
    (tmp_path / "two.py").write_text(text)
    (tmp_path / "one.py").write_text(
        text.replace('num_workers=1, multiprocessing_context="fork"', "num_workers=0")
    )
    launch = f"two=torchrun --standalone --nproc-per-node 2 {tmp_path / 'two.py'}"
    result = run(tmp_path, launch, str(tmp_path / "one.py"))
    assert result.diff.status == "close"
    trace = harness.open_trace(result.traces["two"])
    names = [entry.name for entry in trace.entry(1).tensors]
    assert "grads/0/weight" in names  # reduced: the same on both ranks, with no "module" before
    assert not [n for n in names if re.match(r"(grads|params|optimizer|update)/rank", n)]
    assert [n for n in names if n.startswith("forward/rank1/0")]


@pytest.mark.slow
def test_the_cause_is_named_where_both_sides_have_ranks(tmp_path):
    for name, eps in (("a", "1e-5"), ("b", "1e-3")):
        text = DDP.replace("{eps}", eps).replace("{workers}", "0")
        (tmp_path / f"{name}.py").write_text(text.replace(', multiprocessing_context="fork"', ""))
    sides = [f"{n}=torchrun --nproc-per-node 2 {tmp_path / n}.py" for n in "ab"]
    found = run(tmp_path, *sides, trace=2).verdict
    assert (found.label, found.where.tensor) == ("bug", "forward/rank0/1")
    assert "epsilon" in found.causes[0].sentence
