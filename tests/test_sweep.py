"""Sweeps: their points, what is kept and not run again, and the same bits wherever they are run."""

import ast
import json
import os
import signal
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest

from harness import HarnessError
from harness.cli.main import main
from harness.report.sweep import sweep_figure
from harness.runs.grid import parse_axis, points
from harness.runs.sweep import sweep_sides
from harness.runs.training import train_sides
from harness.side import loop, steps
from harness.side.points import Points
from harness.spec import TrainSpec, build

SMALL = ("hidden_size=8", "embed_size=7", "batch_size=10", "bptt=25", "num_layers=1")
GRID = "lr=0.1:0.6:0.1"


def swept(out, **changed):
    given = dict(sides=("np",), grid=(GRID,), settings=SMALL, steps=3)
    return sweep_sides(**{**given, **changed}, out=out)


def numbers(result):
    return [(p.side, p.point, p.mean, p.last) for p in result.points]


def test_the_original_sweep_has_198_rates_that_are_what_they_say():
    name, values = parse_axis("lr=0.01:1.98:0.01")
    assert name == "lr"
    assert [Decimal(v) for v in values] == [Decimal(k) / 100 for k in range(1, 199)]
    assert values[9] == "0.1"


@pytest.mark.parametrize(
    ("text", "values"),
    [("lr=1", ("1",)), ("lr=3:1:-1", ("3", "2", "1")), ("clip=none, elementwise", None)],
)
def test_values_are_ranges_or_lists(text, values):
    assert parse_axis(text)[1] == (values or ("none", "elementwise"))


@pytest.mark.parametrize(
    "text", ["lr", "lr=", "=1", "lr=1:2", "lr=a:b:c", "lr=1:2:0", "lr=2:1:1", "lr=0:1e9:1e-9"]
)
def test_what_is_no_grid_is_refused(text):
    with pytest.raises(HarnessError, match="--grid"):
        parse_axis(text)


def test_several_settings_make_all_pairs_or_some_of_them():
    axes = [("lr", ("1", "2", "3")), ("clip", ("none", "elementwise"))]
    every = points(axes, None, 1)
    assert len(set(every)) == 6
    assert every[1] == (("lr", "1"), ("clip", "elementwise"))
    some = points(axes, 4, 1)
    assert len(set(some)) == 4
    assert some == [p for p in every if p in some]
    assert some == points(axes, 4, 1)
    assert any(points(axes, 4, seed) != some for seed in range(2, 9))
    assert points(axes, 99, 1) == every
    with pytest.raises(HarnessError, match="given twice"):
        points([axes[0], axes[0]], None, 1)
    with pytest.raises(HarnessError, match="draw some of them"):
        points([("lr", tuple("0123456789"))] + [(f"x{k}", ("1",) * 99) for k in range(9)], None, 1)


def test_a_point_is_the_mean_loss_of_a_training_of_so_many_steps(tmp_path):
    whole = (*SMALL, "batch_size=250")
    result = swept(tmp_path / "a", steps=15, settings=whole)  # an epoch of such batches
    assert [p.point["lr"] for p in result.points] == ["0.1", "0.2", "0.3", "0.4", "0.5", "0.6"]
    means = [p.mean for p in result.points]
    assert len(set(means)) == 6
    for k in (0, 5):
        settings = (*whole, f"lr={result.points[k].point['lr']}")
        trained = train_sides(sides=("np",), epochs=1, out=tmp_path / str(k), settings=settings)
        (epoch,) = trained.curves["np"].epochs
        assert epoch.step == 15
        assert epoch.train == pytest.approx(means[k], rel=1e-12)
    single = swept(tmp_path / "b", steps=1)
    assert len({p.mean for p in single.points}) == 1  # each loss is before its update
    assert single.points[0].mean == pytest.approx(np.log(256), rel=0.01)


def test_what_is_finished_is_not_run_again(tmp_path):
    whole = swept(tmp_path / "whole")
    first = swept(tmp_path / "parts", grid=("lr=0.1:0.3:0.1",))
    file = Path(first.file)
    before = file.read_text()
    file.write_text(before + '{"side": "np", "poi')  # killed within a line
    second = swept(tmp_path / "parts")
    assert file.read_text().startswith(before)
    assert len(file.read_text().splitlines()) == 6
    assert numbers(second) == numbers(whole)
    stamp = file.stat().st_mtime_ns
    assert numbers(swept(tmp_path / "parts")) == numbers(whole)
    assert file.stat().st_mtime_ns == stamp
    with pytest.raises(HarnessError, match=r"np had train\.clip_limit = 5\.0, and has 1\.0"):
        swept(tmp_path / "parts", settings=(*SMALL, "clip_limit=1"))
    with pytest.raises(HarnessError, match="np had steps = 3"):
        swept(tmp_path / "parts", steps=4)
    file.write_text("junk\n")
    with pytest.raises(HarnessError, match="line 1 is no point of a sweep"):
        swept(tmp_path / "parts")


def test_many_workers_give_the_bits_of_one(tmp_path):
    sides = ("a=np", "b=np", "c=np", "d=np")
    given = dict(sides=sides, settings=(*SMALL, "b:clip=elementwise", "clip_limit=0.01"))
    one, four = (swept(tmp_path / str(n), workers=n, **given) for n in (1, 4))
    assert numbers(one) == numbers(four)
    by_side = {label: [p.mean for p in one.points if p.side == label] for label in "abcd"}
    assert by_side["a"] == by_side["c"] != by_side["b"]


def test_rates_share_a_compiled_step():
    """A side's process makes its graph once, whatever the rate, the schedule and the seed are."""
    made = []

    class Backend:
        scalar = staticmethod(lambda value, dtype: value)

        def compiled(self, step, train):
            made.append(train)
            return step

    def train_step(params, slots, lr, step, model, train, points):
        return lr, train, points.seen

    twin = loop.Mathematics(*[None] * 5, train_step, None)
    backend, rates = Backend(), []
    for rate in (0.1, 0.2, 0.3):
        train = build(TrainSpec, lr=rate, seed=int(10 * rate), flat_epochs=2, clip_limit=7)
        points = Points(backend, watch=False)
        found = steps.take_step(True, backend, twin, (1, 2, rate, 1), None, train, points)
        rates.append(found[0])
    assert rates == [0.1, 0.2, 0.3]
    assert len(made) == 1
    assert made[0].clip_limit == 7


@pytest.mark.parametrize("twin", ["pt_impl", "tf_impl"])
def test_no_step_of_a_twin_reads_what_compiled_steps_share(twin):
    read = set()
    for file in Path(twin).glob("*.py"):
        if file.name.startswith("faults"):  # none is planted in a compiled step
            continue
        for function in ast.walk(ast.parse(file.read_text())):
            if isinstance(function, ast.FunctionDef) and function.name != "learning_rate":
                read |= {
                    node.attr
                    for node in ast.walk(function)
                    if isinstance(node, ast.Attribute)
                    and isinstance(node.value, ast.Name)
                    and node.value.id == "train"
                }
    assert {"clip", "loss"} <= read
    assert not read & set(steps.NOT_OF_A_STEP)


def test_a_run_that_fails_is_named_and_the_others_are_kept(tmp_path):
    with pytest.raises(HarnessError, match=r"np at batch_size=1000000: .* tokens"):
        swept(tmp_path, grid=("batch_size=10,20,1000000",), workers=1)
    assert len((tmp_path / "points.jsonl").read_text().splitlines()) == 2


def test_bad_requests_end_in_one_line(tmp_path):
    script = tmp_path / "mine.py"
    script.write_text("")
    for given, words in (
        (dict(grid=()), "--grid: give a setting"),
        (dict(sides=(str(script),)), "a script has settings of its own"),
        (dict(grid=("hidden_size=8,9",)), "it changes the model"),
        (dict(grid=("rate=1",)), "no setting named 'rate'"),
        (dict(workers=0), "--workers 0"),
        (dict(random=0), "--random 0"),
        (dict(sides=tuple(f"s{k}=np" for k in range(13))), "at most 12"),
        (dict(scheduler="tcp://127.0.0.1:9"), "no Dask scheduler answers there"),
    ):
        with pytest.raises(HarnessError, match=words):
            swept(tmp_path / "out", **given)


def test_the_command_shows_the_best_of_each_and_draws_them(tmp_path, capsys):
    command = ["sweep", "--grid", GRID, "--steps", "3", "--side", "a=np", "--side", "b=np"]
    command += [f"--set={s}" for s in SMALL] + ["--out", str(tmp_path)]
    with pytest.raises(SystemExit) as ended:
        main([*command, "--plot", str(tmp_path / "sweep.svg")])
    assert ended.value.code == 0
    assert "a: least perplexity of 3 steps" in capsys.readouterr().out
    assert (tmp_path / "sweep.svg").read_text().startswith("<?xml")
    with pytest.raises(SystemExit):
        main([*command, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert [p["side"] for p in found["points"]] == ["a"] * 6 + ["b"] * 6


def test_a_curve_is_drawn_of_one_number(tmp_path):
    pytest.importorskip("matplotlib")
    figure = sweep_figure(swept(tmp_path / "a", sides=("a=np", "b=np")), [["a"], ["b"]])
    assert [len(axes.lines) for axes in figure.axes] == [1, 1]
    for grid, words in ((("clip=none,elementwise",), "no number"), ((GRID, "seed=1,2"), "one")):
        with pytest.raises(HarnessError, match=words):
            sweep_figure(swept(tmp_path / words, grid=grid))


def test_a_cluster_gives_the_same_bits_also_where_a_worker_is_killed(tmp_path):
    distributed = pytest.importorskip("distributed")
    here = swept(tmp_path / "here", grid=("lr=0.01:0.4:0.01",))
    cluster = distributed.LocalCluster(
        n_workers=0, dashboard_address=None, scheduler_port=0, processes=True, silence_logs=50
    )
    start = [sys.executable, "-m", "distributed.cli.dask_worker", cluster.scheduler_address]
    start += ["--nthreads", "1", "--no-dashboard", "--no-nanny"]
    workers = [subprocess.Popen(start, cwd=tmp_path, stderr=subprocess.DEVNULL) for _ in range(2)]
    try:
        with distributed.Client(cluster.scheduler_address) as client:
            client.wait_for_workers(2, timeout=60)

        def kill(count):
            if count == 8:
                os.kill(workers[0].pid, signal.SIGKILL)

        there = swept(
            tmp_path / "there",
            grid=("lr=0.01:0.4:0.01",),
            scheduler=cluster.scheduler_address,
            observer=Watching(kill),
        )
        # Other weights, on a worker that has those of the first.
        other = dict(grid=("lr=0.01,0.02",), settings=(*SMALL, "seed=2"))
        again = swept(tmp_path / "again", scheduler=cluster.scheduler_address, **other)
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
        cluster.close()
    assert workers[0].wait() == -signal.SIGKILL
    assert numbers(again) == numbers(swept(tmp_path / "other", **other))
    assert again.points[0].mean != there.points[0].mean
    assert numbers(there) == numbers(here)
    lines = (tmp_path / "there/points.jsonl").read_text().splitlines()
    assert len(lines) == len({json.dumps(json.loads(line)["point"]) for line in lines}) == 40


class Watching:
    """An observer that is told how many points are done."""

    def __init__(self, told):
        self._told = told

    def note(self, text):
        pass

    def begin(self, what, total):
        pass

    def advance(self, what, done):
        self._told(done)
