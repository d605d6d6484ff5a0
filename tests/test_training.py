"""Training to the end: curves, checkpoints that go on to the same bits, refusals."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest
from some import some

from harness import HarnessError
from harness.cli.main import main
from harness.data import corpus, weights
from harness.data.checkpoint import load_checkpoint, save_checkpoint
from harness.report.training import Events, training_figure
from harness.runs.training import train_sides

SMALL = ("hidden_size=8", "embed_size=7", "batch_size=10", "bptt=25")
TEXT = "the cat sat on the mat and the dog ate the rat\n"


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A corpus of three short texts, in words."""
    folder = tmp_path_factory.mktemp("text")
    for name, count in (("train", 120), ("valid", 25), ("test", 25)):
        words = (TEXT * count).split(" ")
        turned = words[len(name) :] + words[: len(name)]
        (folder / f"{name}.txt").write_text(" ".join(turned))
    return folder


def trained(text, out, **changed):
    given = dict(sides=("np",), data=text, settings=SMALL, epochs=2, every=3)
    return train_sides(**{**given, **changed}, out=out)


def bits(path):
    with np.load(path) as arrays:
        return {name: arrays[name].tobytes() for name in arrays}


def test_twins_trained_from_one_file_have_one_curve(text, tmp_path):
    result = trained(text, tmp_path, sides=("pt", "tf"), epochs=3)
    pt, tf = result.curves["pt"], result.curves["tf"]
    assert [e.epoch for e in pt.epochs] == [e.epoch for e in tf.epochs] == [1, 2, 3]
    assert result.gap.relative < 1e-5
    assert (result.gap.a, result.gap.b) == ("pt", "tf")
    assert pt.epochs[2].train < pt.epochs[0].train  # it learns
    assert pt.test == pytest.approx(tf.test, rel=1e-6)
    assert pt.speed > 0


def test_perplexities_are_means_over_tokens(text, tmp_path):
    """Of the epoch's steps, each before its update, and of the whole windows of the other texts."""
    result = trained(text, tmp_path, settings=(*SMALL, "lr=1e-6"), epochs=1)
    (epoch,) = result.curves["np"].epochs
    vocabulary = len(corpus.load(text).vocabulary)
    # At a rate so small all of them are those of the weights that it started from.
    for nats in (epoch.train, epoch.valid, result.curves["np"].test):
        assert nats == pytest.approx(np.log(vocabulary), rel=0.01)
    mean = trained(text, tmp_path / "mean", settings=(*SMALL, "lr=25e-6", "loss=mean"), epochs=1)
    assert mean.curves["np"].epochs[0].train == pytest.approx(epoch.train, rel=1e-5)


def test_the_rate_falls_as_the_schedule_says(text, tmp_path):
    settings = (*SMALL, "flat_epochs=1", "lr=0.5")
    epochs = trained(text, tmp_path, settings=settings, epochs=3).curves["np"].epochs
    assert [e.lr for e in epochs] == [0.5, 0.25, 0.125]


def test_every_epoch_is_a_line_of_the_metrics(text, tmp_path):
    curve = trained(text, tmp_path).curves["np"]
    *lines, last = map(json.loads, Path(curve.metrics).read_text().splitlines())
    assert [line["valid_perplexity"] for line in lines] == [
        e.valid_perplexity for e in curve.epochs
    ]
    assert last == {"test_perplexity": curve.test_perplexity}
    assert set(bits(curve.weights)) == set(bits(tmp_path / "weights.npz"))


@pytest.mark.parametrize("setting", ["optimizer=adam", "dropout=0.3", "schedule=plateau"])
def test_one_that_was_resumed_has_the_bits_of_one_that_was_not(text, tmp_path, setting):
    settings = (*SMALL, setting)
    whole = trained(text, tmp_path / "whole", settings=settings, epochs=3)
    for epochs in (1, 2, 3):  # each goes on where the one before has ended
        parts = trained(
            text, tmp_path / "parts", settings=settings, epochs=epochs, resume=epochs > 1
        )
    assert bits(parts.curves["np"].weights) == bits(whole.curves["np"].weights)
    assert _without_times(parts) == _without_times(whole)


def _without_times(result):
    curve = result.curves["np"]
    return curve.test, [(e.epoch, e.step, e.lr, e.train, e.valid) for e in curve.epochs]


COMMAND = """if True:
    import sys
    from harness.cli.main import main
    main(sys.argv[1:])
"""


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL], ids=["stopped", "killed"])
@pytest.mark.parametrize("side", some(["np", "pt", "tf"], fast=["np"]))
def test_one_that_was_ended_within_an_epoch_goes_on_to_the_same_bits(text, tmp_path, side, sent):
    options = [f"--set={setting}" for setting in SMALL]
    options += ["--side", side, "--data", str(text), "--epochs", "40", "--checkpoint-every", "1"]
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, "train", *options, "--out", str(tmp_path / "parts")],
        stderr=subprocess.PIPE,
    )
    kept = tmp_path / f"parts/{side}.checkpoint.safetensors"
    try:
        while not kept.exists() or load_checkpoint(kept)[0].step < 2:
            assert process.poll() is None
            time.sleep(0.01)
        sides = children(process.pid)
        os.kill(process.pid, sent)
        said = process.communicate(timeout=60)[1].decode()
    finally:
        process.kill()
    if sent == signal.SIGINT:
        assert "error: stopped; what was finished stays readable" in said
    while any(Path(f"/proc/{pid}").exists() for pid in sides):  # it notices by itself
        time.sleep(0.02)
    progress, _ = load_checkpoint(kept)
    steps = corpus.Batches(corpus.load(text).train, _spec(progress)).steps_per_epoch
    assert 2 <= progress.step < 40 * steps
    epochs = progress.step // steps + 1
    given = dict(sides=(side,), epochs=epochs)
    parts = trained(text, tmp_path / "parts", **given, resume=True)
    whole = trained(text, tmp_path / "whole", **given)
    assert bits(parts.curves[side].weights) == bits(whole.curves[side].weights)


def children(pid):
    """The processes that a process has started."""
    (task,) = Path(f"/proc/{pid}/task").glob(str(pid))
    return (task / "children").read_text().split()


def _spec(progress):
    from harness.spec import TrainSpec, build

    fields = {k.removeprefix("train."): v for k, v in progress.settings.items() if "train." in k}
    return build(TrainSpec, **fields)


def test_a_training_is_not_overwritten_nor_changed(text, tmp_path):
    trained(text, tmp_path, epochs=1)
    before = bits(tmp_path / "np.npz")
    with pytest.raises(HarnessError, match=r"np\.checkpoint.*a training is kept here.*--resume"):
        trained(text, tmp_path)
    with pytest.raises(HarnessError, match=r"trained with train\.lr = 1\.0, and 0\.5 is asked for"):
        trained(text, tmp_path, settings=(*SMALL, "lr=0.5"), resume=True)
    assert bits(tmp_path / "np.npz") == before
    other = tmp_path / "other"
    other.mkdir()
    for file in text.iterdir():
        (other / file.name).write_text(file.read_text().replace("the cat", "cat the"))
    with pytest.raises(HarnessError, match="was trained with tokens = "):
        trained(other, tmp_path, epochs=2, resume=True)


def test_nothing_to_compare_is_no_success(text, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["train", "--side", "np", "--data", str(text), "--epochs", "1", "--within", "1",
              "--out", str(tmp_path), *(f"--set={s}" for s in SMALL)])  # fmt: skip
    assert ended.value.code == 2
    assert "no two validation perplexities to compare" in capsys.readouterr().err


def test_one_that_is_complete_is_not_run_again(text, tmp_path):
    first = trained(text, tmp_path)
    assert trained(text, tmp_path, resume=True) == first


def test_a_damaged_checkpoint_is_named(text, tmp_path):
    trained(text, tmp_path, epochs=1)
    path = tmp_path / "np.checkpoint.safetensors"
    whole = path.read_bytes()
    for damaged in (whole[:-7], whole[:-9] + b"\0" + whole[-8:], b"", b"junk" * 9):
        path.write_bytes(damaged)
        with pytest.raises(HarnessError, match=r"np\.checkpoint\.safetensors"):
            trained(text, tmp_path, resume=True)
    progress, arrays = _kept(path, whole)
    arrays.pop("state/out/layer1/c")
    save_checkpoint(arrays, progress, path)
    with pytest.raises(HarnessError, match="it keeps no state/out/layer1/c"):
        trained(text, tmp_path, resume=True)
    weights.save(arrays, path)
    with pytest.raises(HarnessError, match="no checkpoint of harness train"):
        trained(text, tmp_path, resume=True)


def _kept(path, whole):
    path.write_bytes(whole)
    return load_checkpoint(path)


def test_a_loss_that_is_not_finite_is_kept_and_shown(text, tmp_path, capsys):
    options = [f"--set={s}" for s in (*SMALL, "lr=1e30", "clip=none")]
    with pytest.raises(SystemExit) as ended:
        main(["train", "--side", "np", "--data", str(text), "--epochs", "1", *options,
              "--out", str(tmp_path)])  # fmt: skip
    assert ended.value.code == 0
    assert capsys.readouterr().out.count("inf") == 3
    progress, arrays = load_checkpoint(tmp_path / "np.checkpoint.safetensors")
    assert progress.epochs[0].train > 1e20
    nan = msgspec.structs.replace(progress.epochs[0], train=np.nan, valid=np.nan)
    progress = msgspec.structs.replace(progress, epochs=(nan,))
    save_checkpoint(arrays, progress, tmp_path / "np.checkpoint.safetensors")
    assert np.isnan(load_checkpoint(tmp_path / "np.checkpoint.safetensors")[0].epochs[0].valid)
    with pytest.raises(SystemExit):
        main(["train", "--side", "np", "--data", str(text), "--epochs", "1", *options,
              "--out", str(tmp_path), "--resume"])  # fmt: skip
    assert capsys.readouterr().out.count("nan") == 2


def test_sides_that_differ_are_told_of_and_end_with_1_where_that_is_asked_for(
    text, tmp_path, capsys
):
    command = ["train", "--side", "a=np", "--side", "b=np", "--data", str(text), "--epochs", "2"]
    command += [f"--set={s}" for s in (*SMALL, "a:clip=elementwise", "clip_limit=0.01")]
    command += ["--out", str(tmp_path), "--plot", str(tmp_path / "curves.svg")]
    for within, code in ((["--within", "0.001"], 1), (["--resume", "--within", "99"], 0)):
        with pytest.raises(SystemExit) as ended:
            main([*command, *within])
        assert ended.value.code == code
    out = capsys.readouterr().out
    assert "a and b: validation perplexities at most" in out
    assert "test" in out
    assert (tmp_path / "curves.svg").read_text().startswith("<?xml")


def test_bad_requests_end_in_one_line(tmp_path):
    script = tmp_path / "mine.py"
    script.write_text("")
    for given, words in (
        (dict(sides=(str(script),)), "a script trains by itself"),
        (dict(epochs=0), "--epochs 0"),
        (dict(every=0), "--checkpoint-every 0"),
        (dict(sides=("np", "np")), "two sides named 'np'"),
        (dict(settings=("hidden=8",)), "no setting named 'hidden'"),
    ):
        with pytest.raises(HarnessError, match=words):
            train_sides(**{"sides": ("np",), "out": tmp_path / "out", **given})
    assert not list((tmp_path / "out").glob("*.checkpoint*"))


def test_events_have_the_numbers_of_the_curve(text, tmp_path):
    reader = pytest.importorskip("tensorboardX.event_file_writer")
    from tensorboardX.proto.event_pb2 import Event

    assert reader
    events = Events(tmp_path)
    result = trained(text, tmp_path, listener=events)
    events.close()
    (file,) = (tmp_path / "tensorboard/np").iterdir()
    data, found = file.read_bytes(), {}
    while data:  # length, its checksum, the event, its checksum
        size = int.from_bytes(data[:8], "little")
        event = Event.FromString(data[12 : 12 + size])
        for value in event.summary.value:
            found[value.tag, event.step] = value.simple_value
        data = data[16 + size :]
    epochs = result.curves["np"].epochs
    assert len(found) == 3 * len(epochs)
    for epoch in epochs:
        assert found["perplexity/valid", epoch.epoch] == pytest.approx(
            epoch.valid_perplexity, rel=1e-6
        )


def test_a_figure_has_a_line_of_every_text(text, tmp_path):
    pytest.importorskip("matplotlib")
    result = trained(text, tmp_path, sides=("a=np", "b=np"))
    top, bottom = training_figure(result).axes
    assert [line.get_label() for line in top.lines] == ["a valid", "a train", "b valid", "b train"]
    assert list(bottom.lines[0].get_ydata()) == [0.0, 0.0]
