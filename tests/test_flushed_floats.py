"""A program that flushes denormals to zero is traced and compared as any other."""

import os
import subprocess
import sys

import numpy as np
import pytest
from some import some

from harness.kernels import floats

BEGIN = """if True:
    import sys, threading
    import numpy as np
    import torch
    import harness
    from harness import kernels
    from harness.compare import compare
    from harness.compare.tolerance import Allowance
    from harness.kernels.floats import standard_floats
    from harness.spec import Capture
    from harness.trace.statistics import describe

    def flushes():
        return bool(np.float32(1e-40) * np.float32(1) == 0)

    def inherited():
        found = []
        thread = threading.Thread(target=lambda: found.append(flushes()))
        thread.start()
        thread.join()
        return found[0]

    folder = sys.argv[1]
    kernels.choose({"numpy": False, "compiled": True}[sys.argv[2]])
    tiny = np.full(5000, 1e-40, "float32")
    assert not flushes()
    assert torch.set_flush_denormal(True)
    assert flushes() and inherited()  # the mode is really on
"""
END = """
    assert flushes() and inherited()  # and it still is
    print("done")
"""


@pytest.fixture(params=some(["numpy", "compiled"], fast=["compiled"]))
def flushing(request, tmp_path):
    """Runs code in a process whose floats flush to zero."""

    def run(code):
        command = [sys.executable, "-c", BEGIN + code + END, str(tmp_path), request.param]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
        assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr

    return run


def test_the_mode_is_standard_within_and_restored_after(flushing):
    flushing("""
    with standard_floats():
        assert not flushes() and not inherited()
        with standard_floats():
            assert not flushes()
        assert not flushes()
    assert flushes()
    try:
        with standard_floats():
            raise KeyError
    except KeyError:
        assert flushes()
    """)


def test_statistics_and_sketches_are_those_of_the_numbers(flushing):
    flushing("""
    found = describe("w", tiny, "stats")
    value = found.min, found.max, found.mean, found.l2, found.zero, found.sketch
    with standard_floats():
        again = describe("w", tiny, "stats")
        assert found.min == float(tiny[0]) > 0 and found.zero == 0, found
        assert value == (again.min, again.max, again.mean, again.l2, again.zero, again.sketch)
        assert found.l2 > 0 and any(np.frombuffer(found.sketch))
    """)


def test_comparisons_are_those_of_the_numbers(flushing):
    flushing("""
    for dtype in ("float32", "float64", "bfloat16", "float16"):
        b = np.zeros(5000, dtype)
        a = b.copy()
        words = a.view(f"u{a.itemsize}")
        words[7] = 3  # the third number above zero
        for threads in (1, 2):
            found = compare(a, b, Allowance(0.0, 0.0), threads=threads)
            assert (found.mismatches, found.index, found.max_ulp_diff) == (1, (7,), 3), found
            with standard_floats():
                assert found.max_abs_diff > 0, found
    """)


@pytest.mark.parametrize(("queue", "threads"), [(None, 1), (1 << 20, 3)])
def test_a_trace_of_denormals_is_sound_and_compared(flushing, queue, threads):
    flushing(f"""
    for name, factor in (("a", 3), ("b", 1)):
        with harness.TraceWriter(
            f"{{folder}}/{{name}}.trace", label=name, dtype="float32",
            queue={queue}, threads={threads},
        ) as trace:
            for step in (1, 2):
                words = (tiny.view("u4") * np.uint32(factor if step == 2 else 1)).view("f4")
                torch_words = torch.from_numpy(words.copy())
                trace.write(step, {{"x": words, "y": torch_words, "loss": 1e-40}})
        path = f"{{folder}}/{{name}}.trace"
        assert harness.check_trace(path).faults == ()
        for step in (1, 2):
            for _, faults in harness.open_trace(path).check():
                assert faults == [], faults
                assert flushes()
        entries = harness.open_trace(path).step(1).entries
        with standard_floats():
            assert all(entry.min > 0 and entry.zero == 0 for entry in entries), entries
    found = harness.diff(f"{{folder}}/a.trace", f"{{folder}}/b.trace")
    assert (found.status, found.first_divergence.step) == ("diverged", 2), found
    with standard_floats():
        assert abs(found.first_divergence.max_abs_diff - 2e-40) < 1e-44, found
    """)


def test_sketches_of_denormals_are_compared(flushing):
    flushing("""
    for name, factor in (("a", 3), ("b", 1)):
        with harness.TraceWriter(
            f"{folder}/{name}.trace", label=name, dtype="float32", capture=Capture(level="stats")
        ) as trace:
            trace.write(1, {"x": (tiny.view("u4") * np.uint32(factor)).view("f4")})
    found = harness.diff(f"{folder}/a.trace", f"{folder}/b.trace")
    assert (found.status, found.divergences) == ("diverged", ()), found
    assert 1.3 < found.first_divergence.rel_l2 < 2.7, found
    """)


def test_without_the_functions_of_c_all_is_computed_as_before(monkeypatch):
    monkeypatch.setattr(floats, "_ENVIRONMENT", None)
    with floats.standard_floats():
        assert np.float32(1) + np.float32(1) == 2


@pytest.mark.skipif(sys.platform != "linux", reason="where the C library is known to have them")
def test_the_functions_of_c_are_found():
    assert floats._environment() is not None
