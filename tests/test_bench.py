"""The benchmark: its peers do the same work, its rounds are fair, and nothing is left out."""

import json
import sys
import time
from importlib import import_module
from types import SimpleNamespace

import numpy as np
import pytest
from twins import MODEL, B, T, a_run, train_spec

from harness.bench import commands, diffing, growth, main, recording, tracing, twins
from harness.bench.commands import launch
from harness.bench.paced import TimedSide, short
from harness.bench.pairs import Pair
from harness.bench.place import Place, check_room
from harness.bench.result import BenchResult, Fit, Row, Section, Spread, Target
from harness.bench.rounds import Progress, interleave
from harness.cli.main import main as command_line
from harness.errors import HarnessError
from harness.observer import Observer
from harness.report.bench import show_bench, write_bench
from harness.report.bench_plot import plot_bench
from harness.report.terminal import console
from harness.runs.processes import TWINS
from harness.spec import Capture
from harness.trace import TraceWriter, open_trace

STEPS = 6
# Small enough to clip at every step: a wrong norm would show.
CLIPPED = dict(steps=STEPS, clip_limit=0.3, lr=1.0)
NOTHING = main.Plan(
    (),
    (),
    recording.Plan((), 1, 1),
    diffing.Plan(1000, ("float32",), (), 2, 1),
    1,
    growth.Plan((), 1, 1, ()),
    {},
)


def losses_of(module, run):
    """The losses of a run, computed where the framework is."""
    lines = []
    import_module(module).train(run, lambda **said: lines.append(said["loss"]))
    return lines


def in_process(side, module, run):
    return side.pool.submit(losses_of, module, run).result()


def test_a_stock_model_computes_the_losses_of_the_twin(side, tmp_path):
    run = a_run(tmp_path, "side", model=MODEL, **CLIPPED)
    own = side("train", run)
    stock = in_process(side, f"{side.twin}_impl.bench.stock", run)
    assert len(stock) == STEPS
    assert len({round(loss, 3) for loss in own}) == STEPS  # the weights do change
    np.testing.assert_allclose(stock, own, rtol=5e-6)


@pytest.mark.slow
def test_a_compiled_stock_model_computes_the_losses_of_the_twin(side, tmp_path):
    own = side("train", a_run(tmp_path, "side", model=MODEL, **CLIPPED))
    compiled = a_run(tmp_path, "compiled", model=MODEL, compile=True, **CLIPPED)
    stock = in_process(side, f"{side.twin}_impl.bench.stock", compiled)
    np.testing.assert_allclose(stock, own, rtol=5e-6)


def test_a_stock_model_refuses_what_it_does_not_compute(side, tmp_path):
    run = a_run(tmp_path, "side", optimizer="adam")
    with pytest.raises(HarnessError, match="the stock models know sgd"):
        in_process(side, f"{side.twin}_impl.bench.stock", run)


def test_the_products_run_in_the_protocol_of_the_twins(side, tmp_path):
    run = a_run(tmp_path, "side", steps=2)
    assert in_process(side, f"{side.twin}_impl.bench.products", run) == [0.0, 0.0]


def test_the_products_are_those_of_the_forward_pass_and_twice_as_many_backwards():
    from harness.bench.products import shapes

    counted = sum(count * m * k * n for count, m, k, n in shapes(MODEL, train_spec("float32")))
    E, H, V = MODEL.embed_size, MODEL.hidden_size, MODEL.vocab_size
    forward = B * T * (E * 4 * H + H * 4 * H + 2 * H * 4 * H + H * V)  # layers 0 and 1, softmax
    assert counted == 3 * forward


@pytest.fixture
def numpy_side(tmp_path):
    side = TimedSide(TWINS["np"], "np", tmp_path, 1)
    yield side
    side.stop()


def test_a_run_stands_still_between_its_turns(numpy_side, tmp_path):
    numpy_side.begin(a_run(tmp_path, "np", steps=10**6, capture=Capture(first=10**9)), 2)
    time.sleep(0.1)  # what was said before it was stopped has arrived
    while not numpy_side._arrived.empty():
        numpy_side._next()
    time.sleep(0.3)
    assert numpy_side._arrived.empty()
    assert numpy_side.go_on(3) > 0


def test_a_whole_run_is_timed_with_its_trace(numpy_side, tmp_path):
    run = a_run(tmp_path, "np", steps=5, capture=Capture(first=3))
    span = numpy_side.whole(run, 2)
    files = {file.name: file.stat().st_size for file in (tmp_path / "np.trace").iterdir()}
    assert (span.steps, span.bytes) == (3, sum(files.values()))
    assert span.index_bytes == files["index.jsonl"]
    assert span.step > 0
    assert span.tail > 0


def test_a_run_that_fails_says_why_and_the_next_one_runs(numpy_side, tmp_path):
    run = a_run(tmp_path, "np", steps=2)
    (tmp_path / "np-start.npz").unlink()
    with pytest.raises(HarnessError, match=r"failed after step 0.*np-start.npz"):
        numpy_side.whole(run, 1)
    assert numpy_side.whole(a_run(tmp_path, "np", steps=2), 1).steps == 1


def test_the_places_of_this_machine_are_left_out_of_a_reason():
    assert short("side a: /usr/local/bin/python has no x; log: /tmp/a.log\n  more") == (
        "side a: python has no x"
    )


def test_rounds_are_interleaved_and_whoever_fails_is_missing_with_the_reason():
    called, ticks = [], []

    def one(name):
        called.append(name)
        if name == "c" and called.count("c") == 2:
            raise HarnessError("it broke")
        return float(called.count(name))

    turns = {name: lambda name=name: one(name) for name in "ab"} | {"c": lambda: one("c")}
    found = interleave(turns, 3, lambda: ticks.append(1))
    assert "".join(called) == "abcbcaab"  # another one starts every round
    assert found.missing == {"c": "it broke"}
    assert "c" not in found  # its first round neither: a ratio of some rounds is not one of all
    assert len(ticks) == 9


def test_ratios_are_taken_round_by_round():
    # The second round was ten times slower for both: the ratio does not see it.
    assert Spread.ratio([2.0, 20.0, 2.0], [1.0, 10.0, 1.0]) == Spread(2.0, 2.0, 2.0)
    assert Spread.of([3.0, 1.0, 2.0]) == Spread(2.0, 1.0, 3.0)


def test_a_target_is_met_or_missed_by_a_share_and_never_met_unmeasured():
    assert Target.of("speed", 1.0, 1.0, at_least=True).met
    assert Target.of("speed", 0.9, 1.0, at_least=True).missed_by == pytest.approx(0.1)
    assert Target.of("time", 3.0, 1.5).missed_by == pytest.approx(1)
    unmeasured = Target.of("time", None, 1.5)
    assert (unmeasured.met, unmeasured.missed_by) == (False, None)


def test_the_exponent_of_a_cost_is_its_slope_on_logarithmic_axes():
    fit = Fit.of("f", "x", "y", [(100, 1e4), (1, 1), (10, 100)])
    assert fit.exponent == pytest.approx(2)
    assert fit.x == (1, 10, 100)
    fixed = Fit.of("f", "x", "y", [(1, 11), (1000, 1010), (2000, 2010)])
    assert fixed.exponent < 0.8 < 0.99 < fixed.last < 1.01
    assert Fit.of("f", "x", "y", [(1, 1)]).exponent is None


def span(step, tail):
    return tracing.Span(step, tail, 10, 1000, 100)


def test_what_is_written_after_the_last_step_counts_and_saving_the_weights_does_not():
    found = interleave(
        {"untraced": lambda: span(1.0, 0.5), "full": lambda: span(1.2, 3.5)}, 2, lambda: None
    )
    assert tracing.step_seconds(found, "untraced") == [1.0, 1.0]
    assert tracing.step_seconds(found, "full") == pytest.approx([1.5, 1.5])


def test_a_twin_is_held_against_the_best_stock_model_of_its_framework():
    seconds = {"twin": 2.0, "twin, compiled": 1.0, "stock": 1.5, "stock, compiled": 1.2}
    found = interleave({n: lambda s=s: s for n, s in seconds.items()}, 2, lambda: None)
    found.missing["twin, autograd"] = "it broke"
    section = twins._section("small", [*seconds, "twin, autograd"], found, words=300)
    rows = {row.name: row for row in section.rows}
    assert rows["twin"].ratios["speed / stock, compiled"].median == pytest.approx(0.6)
    assert rows["twin"].rate == 150
    assert rows["twin, autograd"].missing == "not available: it broke"
    speed, time_of = section.targets
    assert speed.measured == pytest.approx(1.2)
    assert speed.met
    assert (time_of.measured, time_of.met) == (None, False)  # no products to hold it against


def test_a_command_is_timed_with_its_memory_and_its_failure_told(tmp_path):
    done = launch([sys.executable, "-c", "x = b'x' * 50_000_000; print(len(x))"], tmp_path)
    assert done.output == "50000000\n"
    assert done.peak > 50e6
    with pytest.raises(HarnessError, match="exit code 3: so"):
        launch([sys.executable, "-c", "import sys; sys.stderr.write('so'); sys.exit(3)"], tmp_path)


def test_arrays_are_compared_by_all_and_a_tool_that_is_not_there_is_said_to_be(monkeypatch):
    monkeypatch.setitem(commands.LIBRARIES, "polygraphy", ("nonsense",))
    monkeypatch.delitem(commands.LIBRARIES, "torch")
    plan = diffing.Plan(1000, ("float64",), (), 2, 1)
    section = diffing._arrays("float64", plan, lambda: None)
    rows = {row.name: row for row in section.rows}
    assert set(rows) == {"memory copy", "numpy.allclose", "harness compare", "nonsense"}
    assert rows["nonsense"].missing.startswith("not available: ")
    own = rows["harness compare"]
    assert own.rate == pytest.approx(16_000 / 1e9 / own.seconds.median)
    assert set(own.ratios) == {"speed / numpy.allclose", "speed / memory copy"}


def test_a_clean_pair_that_parts_is_kept_and_compared_again_without_numba(tmp_path):
    folder = tmp_path / "place"
    folder.mkdir()
    place = SimpleNamespace(folder=folder)
    for name, value in (("a", 1.0), ("b", 2.0)):
        with TraceWriter(folder / f"{name}.trace", label=name, dtype="float32") as trace:
            for step in (1, 2):
                trace.write(step, {"grads/w": np.full(3, value if step == 1 else 0, np.float32)})
    pair = Pair(folder / "a.trace", folder / "b.trace", 0, span(1, 1))
    with pytest.raises(HarnessError) as caught:
        diffing.diff_command(place, pair, 2)
    told = "diverged at step 1, grads/w (3 of 3 elements, 1.0 | 2.0)"
    kept = next(tmp_path.glob("harness-parted-*"))
    assert str(caught.value) == (
        f"it compared 1 steps of 2: {told}; without numba: {told}; both traces are kept in "
        f"{kept.name} of the temporary folder"
    )
    assert sorted(trace.name for trace in kept.iterdir()) == ["a.trace", "b.trace"]
    assert open_trace(kept / "a.trace").steps == (1, 2)
    pair.remove()  # as whoever made it does: what is kept stays
    assert len(list(kept.iterdir())) == 2


def test_a_part_that_fails_leaves_the_others(tmp_path, monkeypatch):
    def fails(*_):
        raise RuntimeError("no room")

    row = Row("start-up", "a", Spread(1.0, 1.0, 1.0))
    monkeypatch.setattr(main.twins, "time_twins", fails)
    monkeypatch.setattr(main.diffing, "time_startup", lambda *_: Section((row,)))
    kept = []
    only = ("startup", "twins")
    planned = NOTHING._replace(seconds={"twins": 1, "startup": 1})
    found = main.bench(tmp_path, only=only, planned=planned, keep=kept.append)
    assert found.sections["twins"].error == "twins: RuntimeError: no room"
    assert found.sections["startup"].rows == (row,)
    assert [list(result.sections) for result in kept] == [["twins"], ["twins", "startup"]]


def test_a_disk_without_room_is_refused_with_the_remedy(tmp_path):
    with pytest.raises(HarnessError, match="TMPDIR"):
        check_room(tmp_path, 10**18)


def test_without_a_corpus_there_are_tokens_of_a_zipf_law(tmp_path, monkeypatch):
    monkeypatch.delenv("HARNESS_DATA", raising=False)
    place = Place(tmp_path)
    tokens = np.load(tmp_path / "tokens.npy")
    counts = np.sort(np.bincount(tokens, minlength=10_000))[::-1]
    assert tokens.max() < 10_000
    assert 1.7 < counts[0] / counts[1] < 2.3
    assert "Zipf" in place.text


def test_progress_weighs_parts_by_the_time_they_take():
    told = []

    class Watcher(Observer):
        def advance(self, what, done):
            told.append(done)

    progress = Progress(Watcher(), {"long": 30, "short": 10})
    for part, ticks in (("long", 2), ("short", 1)):
        tick = progress.begin(part, ticks)
        for _ in range(ticks):
            tick()
    assert told == [15, 30, 40]


@pytest.fixture
def a_result():
    rows = (
        Row(
            "small, PyTorch",
            "twin",
            Spread(0.1, 0.09, 0.2),
            4000.0,
            {"speed / stock": Spread(1.25, 1.2, 1.3)},
        ),
        Row.without("small, PyTorch", "twin, compiled", "no | compiler"),
    )
    targets = (Target.of("speed", 0.5, 1.0, at_least=True), Target.of("time", None, 1.5))
    fits = (Fit.of("full: time of a step", "bytes", "s", [(1, 1), (10, 12)]),)
    return BenchResult(
        {"processor": "one"},
        {"text": "some"},
        {"twins": Section(rows, targets), "diff": Section(growth=fits, error="it broke")},
    )


def test_what_is_missing_is_shown_and_what_is_missed_by_how_much(a_result, tmp_path, capsys):
    show_bench(console(), a_result)
    write_bench(a_result, tmp_path / "bench.md", "bench.png")
    for text in (capsys.readouterr().out, (tmp_path / "bench.md").read_text("utf-8")):
        assert "not available: no" in text
        assert "missed by 50%" in text
        assert "1.25 (1.20 to 1.30)" in text
        assert "100.0 ms (90.0 to 200.0)" in text
        assert "1.08" in text  # the exponent
        assert "it broke" in text


def test_the_picture_is_drawn_of_whatever_there_is(a_result, tmp_path):
    plot_bench(a_result, tmp_path / "bench.png")
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")


def run(*arguments):
    with pytest.raises(SystemExit) as ended:
        command_line([str(argument) for argument in arguments])
    return ended.value.code


def test_the_command_prints_one_object_and_writes_its_report(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(main, "plan", lambda quick, rounds: NOTHING._replace(seconds={"diff": 1}))
    monkeypatch.delitem(commands.LIBRARIES, "torch")
    report = tmp_path / "logs" / "bench.md"
    assert run("bench", "--only", "diff", "--json", "--report", report) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == ["diff"]
    named = "1,000 pairs of float32 / numpy.allclose / speed / numpy.allclose"
    assert found["diff"]["ratios"][named] == 1
    missing = [row["name"] for row in found["diff"]["rows"] if row["missing"]]
    assert missing in ([], ["Polygraphy CompareFunc.simple"])
    assert "harness compare" in report.read_text("utf-8")
    assert report.with_suffix(".png").exists()


@pytest.mark.slow
def test_what_recording_costs_is_timed_against_the_bare_script(tmp_path):
    plan = recording.Plan((recording.TINY._replace(held=True),), 1, 2)
    ticked = []
    found = recording.time_recording(tmp_path, plan, lambda: ticked.append(1))
    assert [row.name for row in found.rows] == ["bare", "hash", "stats", "full"]
    assert all(row.seconds.median > 0 for row in found.rows)
    assert len(ticked) == recording.ticks(plan) == 4
    (target,) = found.targets
    assert target.measured == found.rows[2].ratios["time / bare"].median
    assert not list(tmp_path.glob("*.trace"))


def test_a_script_that_cannot_be_recorded_is_shown_as_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(recording, "PROGRAM", "harness.no_such_module")
    found = recording.time_recording(
        tmp_path, recording.Plan((recording.TINY,), 1, 1), lambda: None
    )
    assert all("no_such_module" in row.missing for row in found.rows)


def test_an_unknown_part_is_refused(capsys):
    assert run("bench", "--only", "nonsense") == 2
    assert "--only nonsense: there are: twins, tracing" in capsys.readouterr().err


@pytest.mark.slow
def test_the_quick_benchmark_times_everything(tmp_path, capsys):
    assert run("bench", "--quick", "--rounds", 1, "--json", "--report", tmp_path / "b.md") == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == ["twins", "tracing", "record", "diff", "startup"]
    missing = {row["missing"] for part in found.values() for row in part["rows"]}
    assert missing <= {None, "not available: not installed", "not available: left out of this plan"}
