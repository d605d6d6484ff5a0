"""A full disk or a kill at any instant costs the step in hand, and no finished one."""

import errno
import inspect
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from some import some
from test_trace_format import read

import harness
from harness.trace import TraceError, TraceWriter, check_trace, open_trace


@pytest.mark.parametrize("fails", ["save_file", "replace", "write", "short write"])
def test_a_full_disk_costs_the_step_and_nothing_else(tmp_path, monkeypatch, fails):
    full = OSError(errno.ENOSPC, "No space left on device")
    real_write = os.write

    def refuse(*args, **kwargs):
        if fails == "save_file":
            assert args[1].suffix == ".partial"  # never under the name of a finished step
            args[1].write_bytes(b"the first half")
        if fails == "short write":
            return real_write(args[0], args[1][:50])
        raise full

    with TraceWriter(tmp_path / "a.trace", label="a", dtype="float32") as trace:
        trace.write(1, {"x": np.ones(3)})
        with monkeypatch.context() as patch:
            home = "harness.trace.writer." + ("" if fails == "save_file" else "os.")
            patch.setattr(home + fails.split()[-1], refuse)
            with pytest.raises(TraceError, match=r"1 finished steps stay readable\. Free space"):
                trace.write(2, {"x": np.ones(3)})
        assert list(read(tmp_path / "a.trace")) == [1]
        assert len(os.listdir(tmp_path / "a.trace")) == 3  # header, index, and the first step
        trace.write(2, {"x": np.zeros(3)})  # space was freed
    assert check_trace(tmp_path / "a.trace") == harness.CheckResult(
        str(tmp_path / "a.trace"), complete=True, steps=2, faults=()
    )


def test_a_disk_that_is_full_at_the_start_or_the_end_is_reported(tmp_path, monkeypatch):
    def refuse(path, data):
        with open(path, "wb") as file:
            file.write(data[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    writer = TraceWriter(tmp_path / "end.trace", label="a", dtype="float32")
    writer.write(1, {"x": 1})
    monkeypatch.setattr("pathlib.Path.write_bytes", refuse)
    with pytest.raises(TraceError, match=r"No space left on device.*Free space"):
        writer.close()
    with pytest.raises(TraceError, match=r"No space left on device.*Free space"):
        TraceWriter(tmp_path / "start.trace", label="a", dtype="float32")
    assert not list(tmp_path.rglob("*.partial"))
    assert read(tmp_path / "end.trace") == {1: {"x": 1}}
    assert not open_trace(tmp_path / "end.trace").header.complete


FILL = """
import json, os, sys
import numpy as np
from harness.trace import TraceError, TraceWriter, check_trace, open_trace
{before}
path = sys.argv[1] + "/a.trace"
said, done = "", 0
try:
    with TraceWriter(path, label="a", dtype="float32") as trace:
        for done in range(1000):
            trace.write(done + 1, {tensors})
except TraceError as error:
    said = str(error)
read = open_trace(path)
right = [(array == s).all() for s in read.steps for _, array in read.step(s).tensors()]
print(json.dumps(dict(said=said, done=done, steps=open_trace(path).steps, right=bool(all(right)),
    faults=check_trace(path).faults, files=sorted(os.listdir(path)))))
"""
LIMIT = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))"
MOUNT = "os.system('mount -t tmpfs -o size=2m none ' + sys.argv[1]) == 0 or sys.exit('no mount')"
LARGE = "{'x': np.full(40_000 * (done // 2), done + 1, np.uint8)}"  # 0, 0, 40, 40, 80 kB, ...
LONG = "{f'{i}/' + 100 * 'n': np.full(4, done + 1) for i in range(30)}"  # 9 kB a line of the index


def _check_filled(tmp_path, before, tensors, *wrapper):
    script = FILL.format(before=before, tensors=tensors)
    command = [*wrapper, sys.executable, "-c", script, tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert 0 < found["done"] < 1000
    assert (
        f"{found['done']} finished steps stay readable. Free space, or trace less" in found["said"]
    )
    assert found["steps"] == list(range(1, found["done"] + 1))
    assert (found["right"], found["faults"]) == (True, [])
    assert len(found["files"]) == found["done"] + 2  # header and index; nothing half, no orphan


def test_a_file_size_limit_met_by_the_tensors_leaves_the_finished_steps(tmp_path):
    _check_filled(tmp_path, LIMIT, LARGE)


def test_a_file_size_limit_met_by_the_index_leaves_the_finished_steps(tmp_path):
    _check_filled(tmp_path, LIMIT, LONG)


def test_a_disk_that_is_really_full_leaves_the_finished_steps(tmp_path):
    wrapper = ("unshare", "--user", "--map-root-user", "--mount")  # the mount dies with the process
    try:
        tried = ["mount", "-t", "tmpfs", "none", tmp_path]
        subprocess.run([*wrapper, *tried], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no small disk can be mounted here: {error}")
    _check_filled(tmp_path, MOUNT, LARGE, *wrapper)


def content(seed, step):
    """What the killed process writes: small tensors, a large one, and a long line of the index."""
    draw = np.random.default_rng([seed, step])
    tensors = {f"grads/{i}": draw.standard_normal((3, i), np.float32) for i in range(40)}
    return {**tensors, "forward/logits": draw.standard_normal((20, 1500)), "step": np.int64(step)}


ENDLESS = f"""
import itertools, os, signal, sys
import numpy as np
from harness.trace import TraceWriter, writer
{inspect.getsource(content)}
def kill_itself(home, name, moment):
    real, calls = getattr(home, name), itertools.count(1)
    def call(first, second):
        if name == "write" or str(second).count("step-"):  # the header's calls are not counted
            if next(calls) == 4:
                if moment == "in":  # half of it is done
                    if name == "save_file":
                        real(first, second)
                        os.truncate(second, os.path.getsize(second) // 2)
                    else:
                        real(first, second[: len(second) // 2])
                if moment == "after":
                    real(first, second)
                os.kill(os.getpid(), signal.SIGKILL)
        return real(first, second)
    setattr(home, name, call)
if len(sys.argv) > 4:
    kill_itself(dict(writer=writer, os=os)[sys.argv[4]], *sys.argv[5:])
with TraceWriter(sys.argv[1], label="a", dtype="float32", queue=eval(sys.argv[3])) as trace:
    for step in itertools.count(1):
        trace.write(step, content(int(sys.argv[2]), step))
"""


@pytest.mark.parametrize("seed", some(range(30), fast=range(12)))
def test_a_killed_writer_leaves_every_finished_step(tmp_path, seed):
    path = tmp_path / "a.trace"
    queue = "None" if seed % 2 else "1_000_000"  # bytes: four steps
    process = subprocess.Popen([sys.executable, "-c", ENDLESS, path, str(seed), queue])
    try:
        while not (path / "index.jsonl").exists() and process.poll() is None:
            time.sleep(0.001)
        time.sleep(np.random.default_rng(seed).uniform(0, 0.1))
    finally:
        process.kill()
    assert process.wait() == -signal.SIGKILL
    sound(path, seed)


@pytest.mark.parametrize("queue", ["None", "1_000_000"])
@pytest.mark.parametrize(
    ("call", "steps", "files"),
    [
        *(("writer save_file before", 3, 3), ("writer save_file in", 3, 3)),
        *(("writer save_file after", 3, 3), ("os replace before", 3, 3)),
        *(("os replace after", 3, 4), ("os write before", 3, 4)),
        *(("os write in", 3, 4), ("os write after", 4, 4)),
    ],
)
def test_a_writer_killed_between_any_two_of_its_acts_leaves_every_finished_step(
    tmp_path, call, steps, files, queue
):
    path = tmp_path / "a.trace"
    command = [sys.executable, "-c", ENDLESS, path, "1", queue, *call.split()]
    assert subprocess.run(command, timeout=60).returncode == -signal.SIGKILL
    assert sound(path, 1) == (steps, files)


def sound(path, seed):
    """Check what a killed process left; how many steps it finished, and how many files it made."""
    trace = open_trace(path)
    assert not trace.header.complete
    assert trace.steps == tuple(range(1, len(trace.steps) + 1))
    files = sorted(path.glob("step-*.safetensors"))
    assert len(files) - len(trace.steps) in (0, 1)  # a step's line follows its file
    for step, file in enumerate(files, start=1):
        assert safetensors.numpy.load_file(file)["step"] == step
    for step, tensors in read(path).items():
        expected = content(seed, step)
        assert list(tensors) == list(expected)
        assert all(tensors[name].tobytes() == a.tobytes() for name, a in expected.items())
    assert check_trace(path).faults == ()
    return len(trace.steps), len(files)


def test_a_trace_that_is_being_replaced_opens_at_every_moment(tmp_path, monkeypatch):
    path = tmp_path / "a.trace"
    opened = []
    unlink = Path.unlink

    def watched(self, *arguments, **options):
        unlink(self, *arguments, **options)
        if (path / "trace.json").exists():
            opened.append(len(open_trace(path).steps))

    for steps in (3, 1):
        with TraceWriter(path, label="a", dtype="float32") as trace:
            for step in range(1, steps + 1):
                trace.write(step, {"x": [1.0]})
        monkeypatch.setattr(Path, "unlink", watched)
    assert opened
    assert set(opened) == {0}
    assert open_trace(path).steps == (1,)


def test_a_writer_is_closed_once_and_writes_no_more(tmp_path):
    trace = TraceWriter(tmp_path / "a.trace", label="a", dtype="float32")
    trace.write(1, {"x": [1.0]})
    trace.close()
    trace.close(complete=False)
    assert open_trace(tmp_path / "a.trace").header.complete
    with pytest.raises(TraceError, match="step 2 after the writer was closed"):
        trace.write(2, {"x": [1.0]})


@pytest.mark.parametrize("file", ["trace.json", "index.jsonl"])
def test_a_pipe_in_a_trace_is_refused_and_not_waited_for(tmp_path, file):
    TraceWriter(tmp_path / "a.trace", label="a", dtype="float32").close()
    (tmp_path / "a.trace" / file).unlink()
    os.mkfifo(tmp_path / "a.trace" / file)
    with pytest.raises(TraceError, match="no regular file"):
        open_trace(tmp_path / "a.trace")
