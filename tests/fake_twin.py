"""A side that does what a program may: run as a process of tests/test_sides.py.

What it does is named by the label of its run, up to the first dash.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from harness.side.serving import main
from harness.trace import TraceWriter

CHATTER = [
    b"177.38",
    b"null",
    b"true",
    b"[1, 2]",
    b'"text"',
    b"NaN",
    b"{}",
    b'{"step": 1, "loss": 5}',
    b'{"step": 1, "loss": 5, "unknown": 1}',
    b'{"ended": true, "failed": null}',
    b'{"ended": "x", "failed": "y"}',
    b"\xff\xfe\x00\x1b[31m",
    b"x" * (3 << 20),
    b"half a line",
]
NOISE = {
    "number": b"177.38\n",
    "null": b"null\n",
    "true": b"true\n",
    "list": b"[1, 2]\n",
    "text": b'"text"\n',
    "nothing": b"\n",
    "empty": b"{}\n",
    "binary": b"\xff\xfe\x00\x1b[31m\n",
    "nested": b"[" * 200_000 + b"\n",
    "digits": b"9" * 10_000 + b"\n",
    "lossless": b'{"step": 1}\n',
    "words": b'{"step": "1", "loss": 2}\n',
    "truth": b'{"step": true, "loss": 2}\n',
    "unknown": b'{"step": 1, "loss": 2, "unknown": 3}\n',
    "skipped": b'{"step": 2, "loss": 2}\n',
    "repeated": b'{"step": 1, "loss": 2}\n' * 2,
    "far": b'{"step": 99999999999999999999999, "loss": 1}\n',
    "huge": b'{"step": 1, "loss": 1' + b"0" * 400 + b"}\n",
    "endless": b"x" * (2 << 20),
    "ended": b'{"ended": true, "failed": null}\n',
    "another": b'{"ended": "another", "failed": null}\n',
    "half": b'{"step": 1, "lo',
}


def channel():
    return int(sys.argv[2])


def chatter(run, report):
    assert sys.stdin.read() == ""
    for line in CHATTER:
        os.write(1, line + b"\n")
        os.write(2, line + b"\n")
    print("printed, and no line's end", end="")
    steps(run, report)


def steps(run, report):
    with TraceWriter(run.trace, label=run.label, dtype="float32") as trace:
        for step in range(run.start, run.steps + 1):
            trace.write(step, {"forward/loss": 1.0 / step})
            report(step=step, loss=1.0 / step)


def noise(run, report):
    os.write(channel(), NOISE[run.label.split("-")[1]])
    if run.label.endswith("half"):
        os._exit(3)
    time.sleep(600)


def nan(run, report):
    for step, loss in enumerate((float("nan"), float("inf"), -float("inf")), start=1):
        report(step=step, loss=loss, valid=loss)


def early(run, report):
    report(step=1, loss=1.0)


def twice(run, report):
    steps(run, report)
    path = Path(run.trace).with_suffix(".json").resolve()
    report(ended=str(path), failed=None)


def late(run, report):
    steps(run, report)
    report(step=run.steps + 1, loss=1.0)


def closes(run, report):
    report(step=1, loss=1.0)
    os.close(channel())
    time.sleep(600)


def forks(run, report):
    report(step=1, loss=1.0)
    child = os.fork()
    if child == 0:
        os.setsid()
        time.sleep(600)
        os._exit(0)
    Path(run.final).write_text(str(child))
    os._exit(3)


def inherits(run, report):
    code = f"import os; os.fstat({channel()})"
    done = subprocess.run([sys.executable, "-c", code], close_fds=False, capture_output=True)
    assert b"Bad file descriptor" in done.stderr
    steps(run, report)


def killed(run, report):
    report(step=1, loss=1.0)
    os.kill(os.getpid(), signal.SIGKILL)


def exits(run, report):
    sys.exit(0)


def raises(run, report):
    report(step=1, loss=1.0)
    raise ValueError("x" * 5_000_000)


def forever(run, report):
    with TraceWriter(run.trace, label=run.label, dtype="float32") as trace:
        for step in range(run.start, run.steps + 1):
            trace.write(step, {"forward/loss": 1.0 / step})
            report(step=step, loss=1.0 / step)
            time.sleep(0.01)


def deaf(run, report):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    report(step=1, loss=1.0)
    time.sleep(600)


def pids(run, report):
    report(step=1, loss=float(os.getpid()))


def train(run, report):
    globals()[run.label.split("-")[0]](run, report)


if __name__ == "__main__":
    print(json.dumps(["starts"]))
    sys.exit(main(train))
