"""Writing in the background: the same trace, in bounded memory, and no error is lost."""

import errno
import filecmp
import os
import signal
import threading
import weakref

import numpy as np
import pytest
from test_trace_format import read
from twins import MODEL, train_spec

from harness.spec import Capture, RunSpec
from harness.trace import Rows, Timesteps, TraceError, TraceWriter, check_trace, open_trace, writer

SIZE = 8000  # bytes of a step


def tensors(step):
    draw = np.random.default_rng(step)
    return {"grads/x": draw.standard_normal((10, 50)), "grads/y": draw.standard_normal((10, 50))}


def start(path, queue=4 * SIZE, **options):
    return TraceWriter(path, label="mine", dtype="float64", queue=queue, **options)


@pytest.fixture
def gate(monkeypatch):
    """Lets no step be written before it is opened; `gate.entered` says that one waits there."""
    opened, real = threading.Event(), writer.save_file
    opened.entered = threading.Event()

    def wait(arrays, path):
        opened.entered.set()
        assert opened.wait(60)
        real(arrays, path)

    monkeypatch.setattr(writer, "save_file", wait)
    yield opened
    opened.set()


def full_disk(monkeypatch, step):
    real = writer.save_file

    def refuse(arrays, path):
        if f"{step:08d}" in path.name:
            path.write_bytes(b"the first half")
            raise OSError(errno.ENOSPC, "No space left on device")
        real(arrays, path)

    monkeypatch.setattr(writer, "save_file", refuse)


@pytest.mark.parametrize("queue", [1, 3 * SIZE, 1 << 30])
def test_the_trace_is_the_same_to_the_byte_as_one_written_at_once(tmp_path, queue):
    part = np.arange(12.0).reshape(3, 4)
    more = {"h": Timesteps([part, part + 1]), "e": Rows(np.array([3]), part[:1], (9, 4)), "n": 1.5}
    for name, limit in (("a.trace", queue), ("b.trace", None)):
        with start(tmp_path / name, limit) as trace:
            for step in range(1, 20):
                trace.write(step, tensors(1 + step // 2) | more)
    names = sorted(os.listdir(tmp_path / "a.trace"))
    assert names == sorted(os.listdir(tmp_path / "b.trace"))
    assert filecmp.cmpfiles(tmp_path / "a.trace", tmp_path / "b.trace", names, False)[0] == names
    assert check_trace(tmp_path / "a.trace").faults == ()


def test_no_more_waits_than_the_queue_may_hold(tmp_path, gate):
    with start(tmp_path / "a.trace", 3 * SIZE) as trace:
        for step in (1, 2, 3):  # return at once, though none can be written
            trace.write(step, tensors(step))
        fourth = threading.Thread(target=trace.write, args=(4, tensors(4)))
        fourth.start()
        fourth.join(0.2)
        assert fourth.is_alive()
        gate.set()
        fourth.join()
    assert list(read(tmp_path / "a.trace")) == [1, 2, 3, 4]


def test_a_step_larger_than_the_queue_is_taken_when_nothing_else_is_in_hand(tmp_path, gate):
    with start(tmp_path / "a.trace", SIZE - 1) as trace:
        trace.write(1, tensors(1))  # returns, though it is not written
        second = threading.Thread(target=trace.write, args=(2, {"small": 1.0}))
        second.start()
        second.join(0.2)
        assert second.is_alive()
        gate.set()
        second.join()
        trace.write(3, tensors(3))
    assert open_trace(tmp_path / "a.trace").steps == (1, 2, 3)


def test_an_error_is_raised_by_the_next_write_and_only_there(tmp_path, monkeypatch):
    full_disk(monkeypatch, 3)
    trace = start(tmp_path / "a.trace", 1)  # one at a time, so the error is there when step 5 comes
    said = []
    for step in range(1, 8):
        try:
            trace.write(step, tensors(step))
        except TraceError as error:
            said.append((step, str(error)))
    trace.close()
    assert 4 <= said[0][0] <= 5
    assert "No space left on device; 2 finished steps stay readable. Free space" in said[0][1]
    assert all("nothing is written after a step that failed" in text for _, text in said[1:])
    assert [step for step, _ in said] == list(range(said[0][0], 8))
    assert list(read(tmp_path / "a.trace")) == [1, 2]
    assert not list(tmp_path.rglob("*.partial"))
    assert not open_trace(tmp_path / "a.trace").header.complete


def test_an_error_of_the_last_step_is_raised_by_close_and_once(tmp_path, monkeypatch):
    full_disk(monkeypatch, 2)
    trace = start(tmp_path / "a.trace")
    trace.write(1, tensors(1))
    trace.write(2, tensors(2))
    with pytest.raises(TraceError, match="1 finished steps stay readable"):
        trace.close()
    trace.close()
    with pytest.raises(TraceError, match="closed"):
        trace.write(3, tensors(3))
    opened = open_trace(tmp_path / "a.trace")
    assert (opened.steps, opened.header.complete) == ((1,), False)
    assert check_trace(tmp_path / "a.trace").faults == ()


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
def test_a_block_left_by_an_exception_still_writes_what_was_handed_over(tmp_path, gate, kind):
    def fail():
        with start(tmp_path / "a.trace") as trace:
            for step in (1, 2, 3):
                trace.write(step, tensors(step))
            threading.Timer(0.1, gate.set).start()
            raise kind

    with pytest.raises(kind):
        fail()
    opened = open_trace(tmp_path / "a.trace")
    assert (opened.steps, opened.header.complete) == ((1, 2, 3), False)
    assert check_trace(tmp_path / "a.trace").faults == ()


def test_what_ends_the_block_is_not_hidden_by_an_error_of_the_background(tmp_path, monkeypatch):
    def fail():
        with start(tmp_path / "a.trace") as trace:
            trace.write(1, tensors(1))
            raise ValueError("the training")

    full_disk(monkeypatch, 1)
    with pytest.raises(ValueError, match="the training") as error:
        fail()
    assert "No space left on device" in error.value.__notes__[0]


def test_an_interrupt_while_the_queue_is_full_ends_the_wait_and_loses_no_step(tmp_path, gate):
    def interrupt():
        assert gate.entered.wait(60)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        threading.Timer(0.2, gate.set).start()

    def run(written):
        with start(tmp_path / "a.trace", SIZE) as trace:
            trace.write(1, tensors(1))
            threading.Thread(target=interrupt).start()
            trace.write(2, tensors(2))
            written.append(2)

    written = []
    with pytest.raises(KeyboardInterrupt):
        run(written)
    assert written == []
    assert list(read(tmp_path / "a.trace")) == [1]
    assert check_trace(tmp_path / "a.trace").faults == ()


def test_what_cannot_be_stored_is_refused_at_once_and_the_writer_goes_on(tmp_path):
    with start(tmp_path / "a.trace") as trace:
        trace.write(1, tensors(1))
        for bad in ({"x": 1j}, {"../x": 1.0}, {"x": Timesteps([])}):
            with pytest.raises(TraceError):
                trace.write(2, bad)
        trace.write(2, tensors(2))
        with pytest.raises(TraceError, match="step 2 after step 2"):
            trace.write(2, tensors(2))
    assert list(read(tmp_path / "a.trace")) == [1, 2]
    assert open_trace(tmp_path / "a.trace").header.complete


class Holder:
    """Hands out its own array, as a tensor of a framework does."""

    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return self.array


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("queue", [None, 1, 1 << 20])
def test_arrays_that_change_after_a_write_are_stored_as_they_were(tmp_path, queue, threads):
    array, scalar, row = np.zeros((4, 20)), np.zeros(()), np.array([0])
    with start(tmp_path / "a.trace", queue, threads=threads) as trace:
        for step in range(1, 21):
            array += 1
            scalar += 1
            row[0] = step
            given = {
                "x": array,
                "t": array.T,
                "y": array[:, ::2],
                "scalar": scalar,
                "last": array[3],
            }
            given |= {
                "steps": Timesteps([array, array]),
                "held": Holder(array),
                "memory": array.data,
            }
            given |= {"rows": Rows(row, array[:1], (30, 20)), "back": array[::-1]}
            trace.write(step, given)
            array *= -1  # as it never was at a write
            array *= -1
    for step, found in read(tmp_path / "a.trace").items():
        rows = found.pop("rows")
        assert np.flatnonzero(rows[:, 0]).tolist() == [step]
        assert {*rows[step], *(x for array in found.values() for x in array.ravel())} == {step}
    assert check_trace(tmp_path / "a.trace").faults == ()


def test_what_changes_while_a_step_waits_for_the_queue_is_stored_as_it_was(tmp_path, gate):
    array = np.zeros((10, 100))
    with start(tmp_path / "a.trace", 3 * SIZE) as trace:
        for step in (1, 2, 3):
            array[:] = step
            trace.write(step, {"x": array})
        array[:] = -1
        gate.set()
    assert [set(found["x"].ravel()) for found in read(tmp_path / "a.trace").values()] == [
        *({1.0}, {2.0}, {3.0})
    ]


def test_a_twin_that_makes_new_tensors_pays_for_no_copy(tmp_path, gate):
    array = np.ones((10, 100), "float32")
    kept = weakref.ref(array)
    files = dict.fromkeys(("weights", "tokens", "valid", "final"), "")
    run = RunSpec("x", MODEL, train_spec("float32"), 1, trace=str(tmp_path / "a.trace"), **files)
    with TraceWriter.for_run(run, {}, {}, np.zeros(3), "harness.trace") as trace:
        trace.write(1, {"x": array})
        assert gate.entered.wait(60)
        del array
        assert kept() is not None  # what waits is the array itself
        gate.set()
    program = open_trace(run.trace).header.program
    assert (program.kind, program.name) == ("twin", "harness.trace")


@pytest.mark.parametrize("level", ["full", "stats"])
def test_several_threads_write_the_same_bytes_as_one(tmp_path, level):
    drawn = np.random.default_rng(1)
    steps = [{f"grads/{i}": drawn.normal(size=(7, i + 1)) for i in range(20)} for _ in range(3)]
    for threads in (1, 3):
        folder = tmp_path / f"{threads}.trace"
        capture = Capture(level=level)
        with TraceWriter(
            folder, label="x", dtype="float64", capture=capture, queue=1 << 20, threads=threads
        ) as trace:
            for step, tensors in enumerate(steps, start=1):
                trace.write(step, tensors)
    one, three = (sorted((tmp_path / f"{n}.trace").iterdir()) for n in (1, 3))
    assert [p.name for p in one] == [p.name for p in three]
    assert len(one) == (5 if level == "full" else 2)
    for a, b in zip(one, three, strict=True):
        assert a.read_bytes() == b.read_bytes(), a.name
