"""What a side's process says, prints and does: no run is lost, and none waits for ever."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import fake_twin
import msgspec
import pytest
from twins import a_run

from harness import HarnessError, Observer
from harness.runs import processes
from harness.runs.processes import TWINS, SideProcess, Twin, program_of
from harness.runs.session import Session, Side
from harness.trace import open_trace

LIMIT = 30.0  # seconds that a test waits
HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def little_patience(monkeypatch):
    """What does not end when it is told to is waited for less long than by default."""
    monkeypatch.setattr(processes, "PATIENCE", 1.0)


@pytest.fixture(autouse=True)
def fake(monkeypatch):
    """A twin named "fake", tests/fake_twin.py."""
    monkeypatch.setenv("PYTHONPATH", str(HERE))
    monkeypatch.setitem(TWINS, "fake", Twin("fake_twin", "NumPy", "all"))


@pytest.fixture
def side(tmp_path):
    process = SideProcess(program_of(TWINS["fake"]), sys.executable, "fake", tmp_path)
    yield process
    process.stop()


def spec(folder, label, steps=3):
    return a_run(folder, label, steps=steps)


def ended(job):
    """The error of a job, which must end in time."""
    assert job._ended.wait(LIMIT), "the run did not end"
    return job.error


def test_whatever_a_side_prints_is_no_message(side, tmp_path):
    job = side.run(spec(tmp_path, "chatter"))
    assert ended(job) is None
    assert job.losses == [1, 1 / 2, 1 / 3]
    log = side.log.read_bytes()
    for line in fake_twin.CHATTER:
        assert log.count(line) >= 2
    assert b"printed, and no line's end" in log
    assert ended(side.run(spec(tmp_path, "steps"))) is None


@pytest.mark.parametrize("kind", fake_twin.NOISE)
def test_a_message_that_is_none_ends_the_run_with_side_and_log(side, tmp_path, kind):
    waiting = [side.run(spec(tmp_path, f"noise-{kind}")), side.run(spec(tmp_path, "steps"))]
    for job in waiting:
        error = ended(job)
        assert error.startswith("side fake failed after step ")
        assert f"; log: {tmp_path / 'fake.log'}" in error
        assert kind == "half" or "it said" in error or "it ended" in error
        assert max(map(len, error.splitlines())) < 1000
        assert error.replace("\n", "").isprintable()
    assert side._process.wait(LIMIT) is not None
    assert side.gone


@pytest.mark.parametrize("kind", ["early", "twice", "late"])
def test_an_end_that_cannot_be_is_none(side, tmp_path, kind):
    run = spec(tmp_path, kind)
    first, second = side.run(run), side.run(spec(tmp_path, "steps"))
    assert (ended(first) is None) == (kind == "twice")
    assert "side fake failed after step" in ended(second)


def test_a_message_for_no_run_is_noticed_and_the_session_goes_on(tmp_path):
    with Session([Side("fake", "fake")], tmp_path, Observer()) as session:
        session.wait([session.start("fake", spec(tmp_path, "twice"))])
        deadline = time.monotonic() + LIMIT
        while not session._processes["fake"].gone:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        session.wait([session.start("fake", spec(tmp_path, "steps"))])


def test_losses_that_are_not_finite_are_losses(side, tmp_path):
    job = side.run(spec(tmp_path, "nan"))
    assert ended(job) is None
    assert [str(loss) for loss in job.losses] == ["nan", "inf", "-inf"]
    assert [str(loss) for loss in job.valid] == ["nan", "inf", "-inf"]


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("closes", "it closed its channel and went on"),
        ("killed", "killed by SIGKILL"),
        ("exits", "exit code 0"),
        ("forks", "exit code 3"),
    ],
)
def test_a_side_that_is_gone_is_noticed(side, tmp_path, kind, why):
    begin = time.monotonic()
    run = spec(tmp_path, kind)
    job = side.run(run)
    error = ended(job)
    assert time.monotonic() - begin < processes.PATIENCE + LIMIT / 2
    assert f"side fake failed after step {0 if kind == 'exits' else 1}: {why}" in error
    assert side.run(spec(tmp_path, "steps")).wait() is not None
    if kind == "forks":
        os.kill(int(Path(run.final).read_text()), signal.SIGKILL)


def test_programs_that_a_side_starts_hold_no_end_of_its_channel(side, tmp_path):
    assert ended(side.run(spec(tmp_path, "inherits"))) is None


def test_a_run_that_raises_ends_with_its_reason_and_the_next_one_runs(side, tmp_path):
    failed, next_one = side.run(spec(tmp_path, "raises")), side.run(spec(tmp_path, "steps"))
    assert "side fake failed after step 1: ValueError: xxx" in ended(failed)
    assert ended(next_one) is None


@pytest.mark.parametrize("error", [ValueError, KeyError, RuntimeError])
def test_an_observer_that_raises_ends_the_run_with_side_and_log(side, tmp_path, error):
    def observe(step):
        raise error("no terminal")

    said = ended(side.run(spec(tmp_path, "forever", steps=10**6), observe))
    assert f"side fake failed after step 1: what observes it failed: {error.__name__}" in said
    assert f"log: {side.log}" in said
    assert side._process.wait(LIMIT) is not None


def test_a_note_that_raises_leaves_nobody_waiting(tmp_path):
    def note(text):
        raise BrokenPipeError("nobody reads")

    side = SideProcess(program_of(TWINS["fake"]), sys.executable, "fake", tmp_path, note)
    jobs = [side.run(spec(tmp_path, kind)) for kind in ("raises", "steps")]
    assert "ValueError" in ended(jobs[0])
    ended(jobs[1])
    side.stop()


def test_a_side_that_does_not_listen_is_killed(side, tmp_path):
    job = side.run(spec(tmp_path, "deaf"))
    while not job.losses:
        time.sleep(0.01)
    begin = time.monotonic()
    side.stop()
    assert time.monotonic() - begin < 3 * processes.PATIENCE
    assert ended(job) == "side fake was stopped after step 1"


def two(folder):
    return Session([Side("one", "fake"), Side("two", "fake")], folder, Observer())


def test_a_side_that_fails_stops_the_others_whose_traces_stay(tmp_path):
    with two(tmp_path) as session:
        jobs = [("one", spec(tmp_path, "forever-1", 10**6)), ("two", spec(tmp_path, "raises-2"))]
        # The first is to have finished steps when the second fails.
        first = session.start(*jobs[0])
        while len(first.losses) < 3:
            time.sleep(0.01)
        second = session.start(*jobs[1])
        begin = time.monotonic()
        with pytest.raises(HarnessError) as caught:
            session.wait([first, second])
        assert time.monotonic() - begin < LIMIT
        lines = str(caught.value).splitlines()
        assert lines[0].startswith("side two failed after step 1: ValueError")
        assert f"side one was stopped after step {len(first.losses)}" in lines
        assert f"traces kept: {tmp_path / 'forever-1.trace'}" in lines
        trace = open_trace(tmp_path / "forever-1.trace")
        assert not trace.header.complete
        assert len(trace.steps) >= 3
        # And the session goes on: the stopped side in a new process.
        again = [(label, spec(tmp_path, f"steps-{label}")) for label in ("one", "two")]
        found = session.run_all(again)
        assert [job.error for job in found.values()] == [None, None]
    assert "starts" in (tmp_path / "one.log").read_text().split("\n", 1)[1]


def test_of_two_that_fail_the_first_is_named_first(tmp_path):
    with two(tmp_path) as session:
        slow, quick = spec(tmp_path, "closes-1"), spec(tmp_path, "raises-2")
        with pytest.raises(HarnessError, match=r"^side two failed after step 1: ValueError"):
            session.run_all([("one", slow), ("two", quick)])


def test_sides_one_after_the_other_stop_at_the_first_that_fails(tmp_path):
    with two(tmp_path) as session:
        runs = [("one", spec(tmp_path, "raises-1")), ("two", spec(tmp_path, "steps-2"))]
        with pytest.raises(HarnessError, match=r"^side one failed"):
            session.run_all(runs, sequential=True)
    assert not (tmp_path / "steps-2.trace").exists()


INTERRUPTED = """
import sys
from harness import Observer
from harness.runs.session import Session, Side
from harness.runs.processes import TWINS, Twin
from harness.spec import load_run
TWINS["fake"] = Twin("fake_twin", "NumPy", "all")
folder, *runs = sys.argv[1:]
from pathlib import Path
with Session([Side("one", "fake"), Side("two", "fake")], Path(folder), Observer()) as session:
    session.run_all(list(zip(("one", "two"), map(load_run, runs))))
"""


@pytest.mark.parametrize("how", ["the terminal's", "the parent's alone", "killed"])
def test_an_interrupt_leaves_finished_steps_readable_and_no_process(tmp_path, how):
    files = []
    for label in ("forever-1", "forever-2"):
        file = tmp_path / f"{label}.told"
        file.write_bytes(msgspec.json.encode(spec(tmp_path, label, 10**6)))
        files.append(str(file))
    command = [sys.executable, "-c", INTERRUPTED, str(tmp_path), *files]
    traces = [tmp_path / f"forever-{n}.trace" for n in (1, 2)]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, cwd=HERE.parent, start_new_session=True
    ) as running:
        try:
            wait_for(lambda: all(len(steps_of(trace)) > 2 for trace in traces))
            if how == "the terminal's":
                os.killpg(running.pid, signal.SIGINT)
            else:
                number = signal.SIGKILL if how == "killed" else signal.SIGINT
                os.kill(running.pid, number)
            running.wait(LIMIT)
            wait_for(lambda: not group_is_there(running.pid))
        finally:
            with suppress(ProcessLookupError):
                os.killpg(running.pid, signal.SIGKILL)
    for trace in traces:
        assert len(open_trace(trace).steps) > 2
        assert not open_trace(trace).header.complete


def steps_of(trace):
    index = trace / "index.jsonl"
    return index.read_bytes().splitlines() if index.exists() else []


def group_is_there(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def wait_for(condition):
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def test_one_run_by_hand_has_its_steps_on_standard_output(tmp_path):
    file = tmp_path / "steps.told"
    file.write_bytes(msgspec.json.encode(a_run(tmp_path, "np", steps=2)))
    command = [sys.executable, "-m", "np_impl"]
    done = subprocess.run(
        [*command, str(file)], capture_output=True, cwd=HERE.parent, timeout=LIMIT, check=True
    )
    lines = [msgspec.json.decode(line) for line in done.stdout.splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    none = subprocess.run([*command, "/none.json"], capture_output=True, cwd=HERE.parent)
    assert none.returncode == 2
    assert b"error: /none.json: not a run specification" in none.stderr
    none = subprocess.run(command, capture_output=True, cwd=HERE.parent, stdin=subprocess.DEVNULL)
    assert none.returncode == 2
    assert b"give one run" in none.stderr


def test_a_channel_that_is_not_open_is_said_to_be_closed():
    command = [sys.executable, "-m", "np_impl", "--channel", "77"]
    done = subprocess.run(command, capture_output=True, cwd=HERE.parent, timeout=LIMIT)
    assert done.returncode == 2
    assert b"channel 77 is not open" in done.stderr
