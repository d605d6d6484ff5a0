"""Machine code proves itself in every process, and is kept where nothing stale is found."""

import itertools
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from some import some

import harness.trace.sketch
from harness import TraceWriter, diff, kernels
from harness.compare import metrics
from harness.compare.tolerance import Allowance
from harness.kernels import PIECE, cache, layout, passes
from harness.trace import statistics

DTYPES = ("float32", "float64")
PROOFS = (statistics.proof, statistics.proof_many, metrics.proof)
PLACES = [name for name in vars(layout) if name.isupper() and name != "MARK"]
# What reads the constants outside of the machine code, which has them frozen.
READERS = (metrics, statistics, passes, harness.trace.sketch)


@pytest.fixture
def compiled():
    """The compiled passes, all of them made and proven."""
    kernels.choose(True)
    for dtype, proof in itertools.product(DTYPES, PROOFS):
        assert kernels.kernels_for(np.zeros(1, dtype), proof) is passes
    yield passes
    kernels.choose(None)


def wrong(kernel):
    """The dtypes for which some proof fails, by a figure or by an error."""
    found = []
    for dtype, proof in itertools.product(DTYPES, PROOFS):
        try:
            said = proof(kernel, np.dtype(dtype))
        except Exception as error:
            said = repr(error)
        if said:
            found.append((dtype, proof.__module__, said))
    return found


def test_the_proofs_hold_for_what_numba_makes_of_the_source(compiled):
    assert wrong(compiled) == []


PAIRS = list(itertools.combinations(PLACES, 2))


@pytest.mark.parametrize("pair", some(PAIRS, fast=PAIRS[::8]), ids="-".join)
def test_machine_code_of_other_constants_fails_its_proof(compiled, monkeypatch, pair):
    # As after an edit of layout.py: Python reads the places as they are now, and the machine code
    # writes them where they were.
    source = Path(layout.__file__).read_text() + f"\n{pair[0]}, {pair[1]} = {pair[1]}, {pair[0]}\n"
    edited = {}
    exec(source.replace("MARK = crc32", "_ = crc32"), edited)
    constants = {name: edited[name] for name in PLACES}
    if all(constants[name] == getattr(layout, name) for name in pair):
        pytest.skip("the same number under two names")
    values = repr([*constants.items()]).encode()
    constants["MARK"] = layout.crc32(values)
    for reader, (name, value) in itertools.product(READERS, constants.items()):
        if hasattr(reader, name):
            monkeypatch.setattr(reader, name, value)
    assert {dtype for dtype, _, _ in wrong(compiled)} == set(DTYPES)


GROUPS = [
    ("LOW", "HIGH", "TOTAL", "SQUARES", "NAN", "INF", "ZERO"),
    ("GOLDEN", "MIX_1", "MIX_2"),
    *[tuple(name for name in PLACES[PLACES.index("MISMATCHES") :][:7])],
    *[tuple(name for name in PLACES[PLACES.index("ABS") :][:8])],
]


@pytest.mark.parametrize(
    "pair", [p for group in GROUPS for p in itertools.combinations(group, 2)], ids="-".join
)
def test_the_figures_alone_tell_two_places_apart(compiled, monkeypatch, pair):
    first, second = (getattr(layout, name) for name in pair)
    for reader in READERS:
        for name, value in ((pair[0], second), (pair[1], first)):
            if hasattr(reader, name):
                monkeypatch.setattr(reader, name, value)
    assert {dtype for dtype, _, _ in wrong(compiled)} == set(DTYPES)


@pytest.mark.parametrize("figures", ["best", "counts", "ulps"])
@pytest.mark.parametrize("place", range(8))
def test_no_figure_of_a_comparison_may_be_wrong(compiled, monkeypatch, figures, place):
    if place >= {"best": 8, "counts": 7, "ulps": 1}[figures]:
        pytest.skip("no such place")

    class Liar(passes.Pass):
        def add(self, *args):
            super().add(*args)
            array = getattr(self, figures)
            array[place] += 1 if array.dtype != float else max(1e-6, abs(array[place]) * 1e-6)

    monkeypatch.setattr(passes, "Pass", Liar)
    assert {dtype for dtype, _, _ in wrong(compiled)} == set(DTYPES)


@pytest.mark.parametrize("place", range(7 + 64))
def test_no_figure_of_a_tensor_may_be_wrong(compiled, monkeypatch, place):
    class Liar(passes.Description):
        @property
        def figures(self):
            found = list(super().figures)
            if place < 7:
                found[place] += 1
            return tuple(found)

        @property
        def sketch(self):
            found = np.array(super().sketch)
            if place >= 7:
                found[place - 7] += 1e-3
            return found

    monkeypatch.setattr(passes, "Description", Liar)
    assert {dtype for dtype, _, _ in wrong(compiled)} == set(DTYPES)


def test_a_pass_that_fails_its_proof_is_never_used_and_that_is_said_once(compiled, monkeypatch):
    class Liar(passes.Pass):
        def add(self, a, b, start):
            super().add(b, b, start)

    kernels.choose(True)
    monkeypatch.setattr(passes, "Pass", Liar)
    ones = [np.ones(5, dtype) for dtype in DTYPES * 3]
    with pytest.warns(RuntimeWarning, match="float32 is wrong on a known case.*NumPy") as said:
        found = [compare_by_default(b + 1, b).mismatches for b in ones]
    assert found == [5] * 6
    assert len(said) == 1
    assert not kernels.in_use(PIECE)


def compare_by_default(a, b):
    return metrics.compare(a, b, Allowance(1e-5, 1e-8))


def traces(folder, *sides):
    for name, tensors in zip("ab", sides, strict=True):
        with TraceWriter(folder / f"{name}.trace", label=name, dtype="float32") as trace:
            trace.write(1, tensors)
    return folder / "a.trace", folder / "b.trace"


def test_a_divergence_is_confirmed_without_compiled_code(compiled, monkeypatch, tmp_path):
    # Machine code that is right on the known case and wrong elsewhere.
    class Liar(passes.Pass):
        def add(self, a, b, start):
            super().add(a + (a.size == 5), b, start)

    pair = traces(
        tmp_path,
        {"x": np.ones(5, "float32"), "y": np.full(5, 3, "float32"), "z": np.ones(9, "float32")},
        {"x": np.ones(5, "float32") * (1 + 2.0**-23), "y": np.full(5, 2, "float32"), "z": 1.5},
    )
    monkeypatch.setattr(passes, "Pass", Liar)
    found = diff(*pair)
    assert (found.first_divergence.tensor, found.first_divergence.max_abs_diff) == ("y", 1)
    assert [note for note in found.notes if "disagreed" in note] == [
        "compiled code and NumPy disagreed about close of x of step 1: the figures are those of "
        "NumPy, which compared the rest too"
    ]
    assert not kernels.in_use(PIECE)


def test_a_divergence_that_both_find_is_not_noted(compiled, tmp_path):
    found = diff(*traces(tmp_path, {"x": np.ones(5, "float32")}, {"x": np.zeros(5, "float32")}))
    assert found.status == "diverged"
    assert not any("disagreed" in note for note in found.notes)
    assert kernels.in_use(PIECE)


def run_python(code, *args, cwd=None, **environment):
    """What a fresh interpreter says, with what `cwd` holds; that it fails is an error here."""
    command = [sys.executable, "-W", "error", "-c", code, *map(str, args)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
        cwd=cwd,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


PROVE = """if True:
    import numpy as np, sys
    from harness import kernels
    from harness.compare import compare
    from harness.compare.tolerance import Allowance
    kernels.choose(True)
    b = np.ones(9, "float32")
    print(compare(b + 1, b, Allowance(0.0, 0.5)).mismatches, kernels.in_use(9))
"""


def kept(folder):
    return sorted(p.suffix for p in Path(folder).rglob("*") if p.suffix in (".nbc", ".nbi"))


@pytest.mark.slow
def test_machine_code_is_kept_in_a_folder_named_by_what_it_depends_on(tmp_path):
    assert run_python(PROVE, NUMBA_CACHE_DIR=str(tmp_path)) == ["9", "True"]
    (folder,) = tmp_path.iterdir()
    assert folder.name == f"kernels-{cache.digest(Path(layout.__file__).parent)}"
    assert kept(tmp_path) == [".nbc", ".nbi"]
    times = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.nb?")}
    assert run_python(PROVE, NUMBA_CACHE_DIR=str(tmp_path)) == ["9", "True"]
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.nb?")} == times


@pytest.mark.slow
def test_without_a_word_it_is_kept_in_the_users_own_folder(tmp_path):
    home = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "own"), "NUMBA_CACHE_DIR": ""}
    assert run_python(PROVE, **home) == ["9", "True"]
    assert kept(tmp_path / "own/twin-harness") == [".nbc", ".nbi"]


@pytest.mark.parametrize("name", sorted(p.name for p in Path(layout.__file__).parent.glob("*.py")))
def test_every_source_of_the_kernels_is_in_the_digest(tmp_path, name):
    for file in Path(layout.__file__).parent.glob("*.py"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    before = cache.digest(tmp_path)
    assert before == cache.digest(Path(layout.__file__).parent)
    with open(tmp_path / name, "a") as file:
        file.write("\n")
    assert cache.digest(tmp_path) != before


@pytest.mark.slow
def test_machine_code_that_was_damaged_is_made_anew(tmp_path):
    run_python(PROVE, NUMBA_CACHE_DIR=str(tmp_path))
    for file in tmp_path.rglob("*.nb?"):
        file.write_bytes(file.read_bytes()[:50])
    assert run_python(PROVE, NUMBA_CACHE_DIR=str(tmp_path)) == ["9", "True"]


def before_and_after_an_edit(folder, code):
    """What a copy of the project says before two constants change their places, and after."""
    shutil.copytree(Path(layout.__file__).parents[1], folder / "harness")
    options = {"cwd": folder, "NUMBA_CACHE_DIR": str(folder / "kept")}
    before = run_python(code, **options)
    file = folder / "harness/kernels/layout.py"
    text = file.read_text()
    edited = text.replace("ABS, REL, LEAST_RTOL, LEAST_ATOL", "LEAST_ATOL, REL, LEAST_RTOL, ABS")
    assert edited != text
    file.write_text(edited)
    times = {p: p.stat().st_mtime_ns for p in folder.rglob("*.nb?")}
    after = run_python(code, **options)
    assert {p: p.stat().st_mtime_ns for p in times} == times
    return before, after


@pytest.mark.slow
def test_an_edit_of_the_constants_is_not_answered_by_older_machine_code(tmp_path):
    assert before_and_after_an_edit(tmp_path, PROVE) == (["9", "True"], ["9", "True"])
    assert len(list((tmp_path / "kept").iterdir())) == 2


@pytest.mark.slow
def test_older_machine_code_that_is_found_all_the_same_is_made_anew(tmp_path):
    code = "from harness.kernels import cache\ncache.digest = lambda sources: 'same'\n" + PROVE
    assert before_and_after_an_edit(tmp_path, code) == (["9", "True"], ["9", "True"])
    assert len(list((tmp_path / "kept").iterdir())) == 1
    assert kept(tmp_path) == [".nbc", ".nbi"]  # and nothing was made that lies there too


@pytest.mark.slow
def test_older_machine_code_is_found_out_by_its_figures_alone(tmp_path):
    code = "from harness.kernels import cache\ncache.digest = lambda sources: 'same'\n"
    code += "from harness.kernels import layout\nlayout.MARK = 1\n" + PROVE
    code = code.replace(
        "    kernels.choose(True)",
        "    import warnings\n    warnings.simplefilter('ignore')\n    kernels.choose(True)",
    )
    assert before_and_after_an_edit(tmp_path, code) == (["9", "True"], ["9", "False"])


def test_where_numba_is_told_not_to_compile_numpy_does_the_work(tmp_path):
    assert run_python(PROVE, NUMBA_DISABLE_JIT="1") == ["9", "False"]


@pytest.mark.slow
def test_where_nothing_can_be_kept_each_process_compiles(tmp_path):
    (tmp_path / "file").write_text("no folder")
    assert run_python(PROVE, NUMBA_CACHE_DIR=str(tmp_path / "file/x")) == ["9", "True"]


def test_processes_that_fill_the_folder_at_once_all_get_right_kernels(tmp_path):
    said = []

    def run():
        said.append(run_python(PROVE, NUMBA_CACHE_DIR=str(tmp_path)))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert said == [["9", "True"]] * 4
    assert kept(tmp_path) == [".nbc", ".nbi"]


HIDDEN = """if True:
    import sys
    sys.modules["numba"] = None
    import numpy as np, harness
    from harness.kernels import LARGE
    for name, size, value in (("a", int(sys.argv[2]), 1), ("b", int(sys.argv[2]), 2)):
        path = f"{sys.argv[1]}/{name}.trace"
        with harness.TraceWriter(path, label=name, dtype="float32") as trace:
            trace.write(1, {"w": np.full(size, value, "float32")})
    found = harness.diff(f"{sys.argv[1]}/a.trace", f"{sys.argv[1]}/b.trace")
    print(found.status, sum("twin-harness[fast]" in note for note in found.notes))
"""


@pytest.mark.parametrize(("size", "notes"), [(100, "0"), (PIECE, "1")])
def test_without_numba_a_large_comparison_says_what_it_would_gain(tmp_path, size, notes):
    assert run_python(HIDDEN, tmp_path, size) == ["diverged", notes]
