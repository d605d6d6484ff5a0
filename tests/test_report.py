"""What the terminal shows: the verdict first, then place, values and figures of the result."""

import io
import re
import sys

import msgspec
import numpy as np
import pytest
from twins import GRAPH, SPEC

from harness import Capture, TraceWriter, diff, open_trace
from harness.compare import Structure
from harness.compare.axes import describe_index
from harness.report import terminal

GATES, LOSS, GRAD = "forward/layer0/gates", "forward/loss", "grads/softmax_w"
MARKUP = "[red]:smile:[/red]"


def tensors(step, dtype="float32"):
    random = np.random.default_rng(step)
    return {
        "inputs/x": random.integers(0, 9, (4, 5)),
        GATES: random.uniform(1, 2, (4, 5, 12)).astype(dtype),
        LOSS: np.array(100 / step, dtype),
        GRAD: random.uniform(1, 2, (3, 7)).astype(dtype),
        "update/global_norm": np.array(3 * step, dtype),
    }


def run(count=3, dtype="float32"):
    return {step: tensors(step, dtype) for step in range(1, count + 1)}


def write(path, steps, **options):
    options = {"label": path.stem, "dtype": "float32", "spec": SPEC, **options}
    with TraceWriter(path, **options) as trace:
        for step, found in steps.items():
            trace.write(step, found)
    return path


@pytest.fixture
def result(tmp_path):
    """The diff of a run in which `changes` were made with the run itself."""

    def make(*changes, dtype="float32", count=3, **options):
        steps = run(count, dtype)
        for step, name, index, value in changes:
            steps[step][name] = steps[step][name].copy()
            steps[step][name][index] = value
        a = write(tmp_path / "pt.trace", steps)
        return diff(a, write(tmp_path / "tf.trace", run(count, dtype)), **options)

    return make


def shown(show, *values, width=400):
    """The text that a reader sees, wide enough that nothing is folded."""
    out = terminal.console()
    out.file, out.width = io.StringIO(), width
    show(out, *values)
    return out.file.getvalue()


def row(text, name):
    """What stands beside `name`."""
    (found,) = re.findall(rf"^  {re.escape(name)}  +(.*?) *$", text, re.MULTILINE)
    return found


def numbers(text):
    return [float(n.replace(",", "")) for n in re.findall(r"-?\d[\d,.]*(?:e[+-]?\d+)?", text)]


def test_the_first_line_is_the_verdict(result):
    def first(found):
        return shown(terminal.show_diff, found).splitlines()[0]

    rounding = np.nextafter(tensors(2)[GRAD][1, 2], np.float32(9))
    assert first(result()) == "IDENTICAL: pt and tf agree bit for bit"
    assert first(result((2, GRAD, (1, 2), rounding))).startswith("CLOSE: pt and tf agree within")
    assert first(result((2, GRAD, (1, 2), 9))) == f"DIVERGED at step 2: {GRAD}"


def test_the_verdict_of_other_structure_says_whether_values_part_too(result):
    missing = Structure("missing tensor", 2, GRAD, "present", "missing", 1)
    for found, verdict in (
        (result(), "STRUCTURE: pt and tf do not hold the same tensors"),
        (
            result((3, LOSS, (), 9)),
            f"STRUCTURE: pt and tf do not hold the same tensors; values part at step 3: {LOSS}",
        ),
    ):
        found = msgspec.structs.replace(found, status="structure", structure=(missing,))
        text = shown(terminal.show_diff, found)
        assert text.splitlines()[0] == verdict
        assert f"  * missing tensor {GRAD} at step 2: present | missing\n" in text


def test_the_place_is_in_words_and_numbers(result):
    text = shown(terminal.show_diff, result((2, GATES, (2, 3, 4), 9)))
    where = f"step 2, {GATES} [2, 3, 4] (batch row 2, timestep 3, gate f, unit 1)"
    assert row(text, "where") == where
    assert row(text, "first bits to differ").startswith(f"{where}: 9 | ")
    assert row(text, "last that agreed") == "inputs/x of step 2"
    text = shown(terminal.show_diff, result((1, LOSS, (), 9)))
    assert row(text, "where") == f"step 1, {LOSS}"
    text = shown(terminal.show_diff, result((1, "inputs/x", (3, 4), 99)))
    assert row(text, "last that agreed") == "none"


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_both_values_are_shown_in_all_their_digits(result, dtype):
    found = result((2, GRAD, (1, 2), np.pi), dtype=dtype)
    a, b = row(shown(terminal.show_diff, found), "pt | tf").split(" | ")
    assert np.dtype(dtype).type(a) == np.dtype(dtype).type(np.pi)
    assert np.dtype(dtype).type(b) == tensors(2, dtype)[GRAD][1, 2]


def test_a_trace_shows_what_made_it(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["__main__"], "__file__", __file__, raising=False)
    path = write(tmp_path / "a.trace", {1: {"x": 1.0}})
    program = open_trace(path).header.program
    said = row(shown(terminal.show_trace, open_trace(path), None), "made by")
    assert said == f"script {program.name}, digest {program.digest}"


def test_large_integers_are_shown_in_all_their_digits(result):
    text = shown(terminal.show_diff, result((2, "inputs/x", (1, 2), 2**53 + 1)))
    assert row(text, "pt | tf") == f"{2**53 + 1} | {tensors(2)['inputs/x'][1, 2]}"


def test_the_figures_are_those_of_the_result(result):
    found = result((2, GATES, (2, 3, 4), 9), (2, GATES, (3, 0, 0), 9))
    first, text = found.first_divergence, shown(terminal.show_diff, found)
    greatest = [first.max_abs_diff, first.max_rel_diff]
    assert numbers(row(text, "greatest difference")) == pytest.approx(greatest, rel=1e-3)
    l2, _, eps = row(text, "relative L2").partition(" = ")
    assert float(l2) == pytest.approx(first.rel_l2, rel=1e-3)
    assert float(eps.removesuffix(" eps")) == pytest.approx(first.rel_l2_eps, rel=1e-2)
    assert row(text, "out of tolerance") == "2 of 240 elements (0.833%)"
    assert row(text, "compared") == "7 tensors in 2 steps"
    assert row(text, "sides") == f"pt: {found.a}   tf (reference): {found.b}"


def test_the_tolerance_is_shown(result):
    text = shown(terminal.show_diff, result())
    assert row(text, "tolerance").startswith("|a - b| <= K eps (|b| + max|b|), K by tensor: ")
    assert "inputs/* 0, forward/loss 16, update/global_norm 16, * 64" in row(text, "tolerance")
    text = shown(terminal.show_diff, result(rtol=0.25, atol=3e-7))
    assert row(text, "tolerance") == "|a - b| <= 3e-07 + 0.25 |b| (as numpy.allclose)"


def advised(text):
    """The tolerances that the text says would pass: as in --rtol 1e-3 --atol 1e-8."""
    advice = row(text, "would pass with")
    return [
        {name: float(value) for name, value in re.findall(r"--(rtol|atol) (\S+)", way)}
        for way in advice.split(", or ")
        if "--" in way
    ]


@pytest.mark.parametrize(
    ("given", "off"),
    [
        ({}, 1e-4),
        ({}, 2.5),
        ({}, 4e9),
        ({"rtol": 0, "atol": 0}, 1e-6),
        ({"rtol": 1e-9, "atol": 1e-9}, 7.7e-6),
        ({"rtol": 1e-9, "atol": 0.5}, 3.3),
        ({"rtol": 1.0004, "atol": 0}, 1.00045),  # of which four digits would be too few
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_tolerances_it_advises_do_pass(result, dtype, given, off):
    change = (2, GRAD, (1, 2), tensors(2, dtype)[GRAD][1, 2] * (1 + off))
    found = result(change, dtype=dtype, **given)
    ways = advised(shown(terminal.show_diff, found))
    assert len(ways) == (2 if given else 1)
    for way in ways:
        assert result(change, dtype=dtype, **given | way).status == "close"
        tighter = {name: value * 0.99 for name, value in way.items()}
        assert result(change, dtype=dtype, **given | tighter).status == "diverged"


@pytest.mark.parametrize("value", [1.001, 1.002, 1.003, 1.7, 9.0])
def test_the_factor_it_advises_is_not_below_the_least(result, value):
    found = result((2, GRAD, (1, 2), value))
    ways = row(shown(terminal.show_diff, found), "would pass with").split(", or ")
    factor = re.fullmatch(r"K = (\S+) \(allowed: 64\)", ways[0])
    least = found.first_divergence.least_factor
    assert 64 < least <= float(factor[1]) < 1.003 * least


def test_no_tolerance_is_advised_against_nan(result):
    text = shown(terminal.show_diff, result((2, GRAD, (1, 2), np.nan)))
    assert row(text, "would pass with").startswith("no tolerance: NaN or infinity")
    assert row(text, "pt | tf").startswith("nan | 1.")
    assert row(text, "out of tolerance") == "1 of 21 elements (4.762%), 1 not finite"


def test_figures_that_do_not_exist_are_not_shown(result):
    text = shown(terminal.show_diff, result((2, LOSS, (), -np.inf)))
    assert "greatest difference" not in text
    assert "relative L2" not in text
    assert row(text, "pt | tf") == "-inf | 50"
    assert row(text, "would pass with") == "no tolerance: NaN or infinity on one side only"


def test_nothing_is_advised_where_no_tolerance_is_known_to_pass(result):
    found = result((2, GRAD, (1, 2), 9))
    first = msgspec.structs.replace(
        found.first_divergence, least_rtol=None, least_atol=None, least_factor=None
    )
    text = shown(terminal.show_diff, msgspec.structs.replace(found, first_divergence=first))
    assert row(text, "would pass with") == "no tolerance"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, 3e38])
@pytest.mark.parametrize("width", [1, 20, 80, 400])
@pytest.mark.parametrize("options", [{}, {"all": True}, {"rtol": 1e-3}])
def test_no_value_and_no_width_breaks_the_report(result, value, width, options):
    found = result((1, GATES, (2, 3, 4), value), (2, LOSS, (), value), **options)
    assert "DIVERGED"[:width] in shown(terminal.show_diff, found, width=width)
    nothing = ("max_abs_diff", "max_rel_diff", "max_ulp_diff", "rel_l2", "index", "a", "b")
    bare = msgspec.structs.replace(found.first_divergence, **dict.fromkeys(nothing))
    shown(terminal.show_diff, msgspec.structs.replace(found, first_divergence=bare), width=width)


def test_the_steps_around_the_divergence_are_a_table(result):
    found = result((2, LOSS, (), 7), (3, "update/global_norm", (), np.nan), all=True)
    lines = shown(terminal.show_diff, found).splitlines()
    head = next(i for i, line in enumerate(lines) if "loss pt" in line and "norm tf" in line)
    rows = [line.split() for line in lines[head + 1 :]]
    assert [r[:6] for r in rows] == [
        ["1", "100", "100", "3", "3", "0/5"],
        ["2", "7", "50", "6", "6", "1/5"],
        ["3", "33.33333", "33.33333", "nan", "9", "1/5"],
    ]
    assert [r[6] for r in rows] == ["0", "1", "1"]
    eps = found.divergences[0].rel_l2_eps
    assert float(rows[1][7]) == pytest.approx(eps, rel=1e-2)


@pytest.mark.parametrize(("parted", "steps"), [(2, (1, 20)), (30, (20, 39)), (50, (31, 50))])
def test_a_long_table_of_steps_is_cut_around_the_divergence(result, parted, steps):
    text = shown(terminal.show_diff, result((parted, LOSS, (), 7), count=50, all=True))
    head = text[text.index("loss pt") :].splitlines()[1:]
    assert [int(line.split()[0]) for line in head] == list(range(steps[0], steps[1] + 1))


def test_all_divergences_are_listed_and_a_long_list_is_cut(result):
    changes = [(step, GRAD, (1, 2), 9) for step in range(1, 26)]
    text = shown(terminal.show_diff, result(*changes[:2], all=True))
    assert "2 tensors are not close" in text
    assert len(re.findall(rf"^ +[12] .* 4.76% +{GRAD}", text, re.MULTILINE)) == 2
    text = shown(terminal.show_diff, result(*changes, count=25, all=True))
    assert "25 tensors are not close" in text
    assert len(re.findall(rf" 4.76% +{GRAD}", text)) == 20
    assert "5 more (--json)" in text


def test_notes_and_structure_are_listed_and_a_long_list_is_cut(result):
    found = msgspec.structs.replace(
        result(),
        status="structure",
        structure=tuple(
            Structure("shape", step, GRAD, "[3]", "[4]", 1 + step) for step in range(1, 24)
        ),
        notes=("both sides hold NaN",),
    )
    text = shown(terminal.show_diff, found)
    assert f"  * shape {GRAD} at step 1 and 1 later step: [3] | [4]\n" in text
    assert f"  * shape {GRAD} at step 20 and 20 later steps: [3] | [4]\n" in text
    assert f"{GRAD} at step 21" not in text
    assert "  * both sides hold NaN\n" in text
    assert "  * and 3 more (--json lists all)\n" in text


def test_names_are_shown_as_they_are_and_never_read_as_markup(tmp_path):
    names = [f"grads/{MARKUP}", "[/]", "[bold]", "[red]x[/red]"]
    steps = {1: {name: np.zeros(3, "float32") for name in names}}
    other = {1: {name: np.ones(3, "float32") for name in names} | {"[link=x]y": np.zeros(2)}}
    spec = {"[blue]key[/blue]": {"[dim]": "[/dim]"}}
    framework = {"[u]": "[/u]"}
    a = write(tmp_path / "[i]a.trace", steps, label=MARKUP, spec=spec, framework=framework)
    found = diff(a, write(tmp_path / "b.trace", other), all=True)
    text = shown(terminal.show_diff, found)
    setting = "[blue]key[/blue].[dim] = '[/dim]' | None"
    for name in [*names, "[link=x]y", "[i]a.trace", f"loss {MARKUP}", setting]:
        assert name in text
    text = shown(terminal.show_trace, open_trace(a), open_trace(a).entry(1))
    for name in [*names, f"({MARKUP}, ", "[u] [/u]", "[blue]key[/blue]", "[dim]=[/dim]"]:
        assert name in text
    entry = open_trace(a).entry(1).tensors[0]
    assert f"grads/{MARKUP}" in shown(terminal.show_tensor, 1, entry, np.zeros(3))
    assert f"{MARKUP} loss" in shown(terminal.show_losses, {MARKUP: [1.0]})
    assert MARKUP in shown(terminal.show_arrays, {MARKUP: np.zeros(3)})


def loss_rows(losses, parted=None):
    lines = shown(terminal.show_losses, losses, parted).splitlines()
    assert lines[0].split()[0] == "Iteration"
    return [line.split() for line in lines[1:]]


def test_losses_stand_side_by_side():
    losses = {"pt": [184.22, 177.70591, 1e-9], "tf": [184.22, 164.65, np.nan]}
    assert loss_rows(losses) == [
        ["1", "184.2200", "184.2200"],
        ["2", "177.7059", "164.6500"],
        ["3", "0.0000", "nan"],
    ]
    head = shown(terminal.show_losses, losses).splitlines()[0].split()
    assert head == ["Iteration", "pt", "loss", "tf", "loss"]


def test_a_side_that_stopped_early_has_no_more_losses():
    assert loss_rows({"pt": [1.0, 2.0], "tf": [1.0]}) == [
        ["1", "1.0000", "1.0000"],
        ["2", "2.0000"],
    ]
    assert loss_rows({"pt": [], "tf": []}) == []
    assert loss_rows({}) == []
    assert loss_rows({"pt": [np.inf, -np.inf]}) == [["1", "inf"], ["2", "-inf"]]


def test_the_losses_of_a_long_run_are_cut_around_where_it_parted():
    losses = {"pt": [float(n) for n in range(1, 101)]}
    rows = loss_rows(losses, 50)
    around = [str(n) for n in range(47, 59)]
    assert [r[0] for r in rows] == ["1", "2", "3", "...", *around, "...", "99", "100"]
    assert [r[1] for r in rows if r[0] == "50"] == ["50.0000"]
    for parted in (None, 1, 2, 98, 100):
        kept = [r[0] for r in loss_rows(losses, parted)]
        assert {"1", "2", "3", "99", str(parted or 1)} <= set(kept)
        assert kept[-1] == "100"
        assert len(kept) < 20


def test_a_loss_that_exploded_is_told_in_a_few_digits():
    assert loss_rows({"pt": [3.4e38, -1e300]}) == [["1", "3.4e+38"], ["2", "-1e+300"]]


def test_a_trace_is_shown_with_the_statistics_of_a_step(tmp_path):
    steps = run(2)
    steps[2][GRAD] = np.array([[np.nan, -2.5, 0], [np.inf, 0, 8]], "float32")
    spec = {"train": {"lr": 0.5, "clip": "none"}}
    path = write(tmp_path / "pt.trace", steps, spec=spec, framework={"torch": "2.9"})
    trace = open_trace(path)
    text = shown(terminal.show_trace, trace, trace.entry(2))
    assert row(text, "trace") == f"{path} (pt, float32, torch 2.9)"
    assert row(text, "steps") == "2 (1 to 2), complete"
    assert row(text, "train") == "lr=0.5, clip=none"
    assert "step 2: 5 tensors, in execution order" in text
    grad = next(line.split() for line in text.splitlines() if GRAD in line)
    assert grad[:3] == [GRAD, "float32", "2x3"]
    assert [float(x) for x in grad[3:7]] == pytest.approx([-2.5, 8, 5.5 / 4, 8.38], rel=1e-2)
    assert " ".join(grad[7:]) == "1 NaN, 1 Inf, 2 zero"
    assert re.findall(r"^ (\S+) +(?:float32|int64)", text, re.MULTILINE) == list(tensors(2))


def test_a_trace_without_steps_is_shown(tmp_path):
    path = write(tmp_path / "pt.trace", run(2), capture=Capture(first=5))
    text = shown(terminal.show_trace, open_trace(path), None)
    assert row(text, "steps") == "0 (none), complete"
    assert "unknown" in row(text, "trace")


def test_a_trace_of_a_stopped_run_is_said_to_be_incomplete(tmp_path):
    writer = TraceWriter(tmp_path / "pt.trace", label="pt", dtype="float32")
    writer.write(1, {"nothing": np.empty((0, 3)), "all": np.full(2, np.nan)})
    writer.close(complete=False)
    trace = open_trace(tmp_path / "pt.trace")
    text = shown(terminal.show_trace, trace, trace.entry(1))
    assert row(text, "steps") == "1 (1 to 1), not complete: its run was stopped"
    cells = [line.split() for line in text.splitlines() if line.split()[0] in ("nothing", "all")]
    assert cells[0][1:6] == ["float64", "0x3", "-", "-", "-"]
    assert cells[1][1:] == ["float64", "2", "-", "-", "-", "0", "2", "NaN"]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_tensor_is_shown_in_all_its_digits(tmp_path, dtype):
    path = write(tmp_path / "pt.trace", {1: {GRAD: tensors(1, dtype)[GRAD] / 1000}})
    entry = open_trace(path).entry(1).tensors[0]
    values = open_trace(path).step(1).read(entry)
    head, _, body = shown(terminal.show_tensor, 1, entry, values[1:]).partition("\n")
    assert head == f"step 1, {GRAD}: {dtype} [3, 7], shown [2, 7]"
    found = np.array(re.findall(r"[\d.e+-]+", body), dtype)
    np.testing.assert_array_equal(found, values[1:].ravel())


def test_a_tensor_of_anything_is_shown(tmp_path):
    entry = open_trace(write(tmp_path / "pt.trace", run(1))).entry(1).tensors[0]
    for values, text in (
        (np.array(1.5), "1.5"),
        (np.array([np.nan, np.inf, -np.inf]), "nan inf -inf"),
        (np.empty((0, 3)), "[]"),
        (np.array([True, False]), "True False"),
        (np.arange(10**6), "..."),
    ):
        body = shown(terminal.show_tensor, 1, entry, values).partition("\n")[2]
        assert text in re.sub(" +", " ", body)
        assert len(body) < 5000


def test_arrays_of_a_file_are_listed_with_their_range():
    arrays = {"softmax_w": np.array([[1.5, -2.5, 0.0]]), "scale": np.array(2.0), "e": np.empty(0)}
    text = shown(terminal.show_arrays, arrays)
    cells = [line.split() for line in text.splitlines()]
    assert ["softmax_w", "1x3", "float64", "-2.5", "..", "1.5"] in cells
    assert ["scale", "-", "float64", "2", "..", "2"] in cells
    assert ["e", "0", "float64", "empty"] in cells
    assert "4 parameters" in text


@pytest.mark.parametrize(
    ("name", "shape", "index", "words"),
    [
        ("inputs/x", (4, 5), (3, 1), "batch row 3, timestep 1"),
        ("inputs/y", (4, 5), (0, 4), "batch row 0, timestep 4"),
        ("inputs/mask/layer0", (4, 5, 3), (3, 4, 2), "batch row 3, timestep 4, unit 2"),
        ("state/in/layer0/h", (4, 3), (3, 2), "batch row 3, unit 2"),
        ("state/out/layer1/c", (4, 3), (1, 0), "batch row 1, unit 0"),
        ("forward/layer0/gates", (4, 5, 12), (2, 3, 0), "batch row 2, timestep 3, gate i, unit 0"),
        ("forward/layer0/gates", (4, 5, 12), (2, 3, 4), "batch row 2, timestep 3, gate f, unit 1"),
        ("forward/layer1/gates", (4, 5, 12), (2, 3, 8), "batch row 2, timestep 3, gate g, unit 2"),
        ("backward/layer0/gates", (4, 5, 12), (0, 1, 9), "batch row 0, timestep 1, gate o, unit 0"),
        ("forward/logits", (4, 5, 11), (1, 2, 10), "batch row 1, timestep 2, token 10"),
        ("backward/logits", (4, 5, 11), (1, 2, 0), "batch row 1, timestep 2, token 0"),
        ("forward/embedding", (4, 5, 6), (1, 2, 5), "batch row 1, timestep 2, unit 5"),
        ("backward/layer1/h", (4, 5, 3), (1, 2, 0), "batch row 1, timestep 2, unit 0"),
        ("grads/embedding", (11, 6), (10, 5), "token 10, unit 5"),
        ("update/clipped/layer0/w_i", (6, 12), (5, 7), "input 5, gate g, unit 1"),
        ("params/layer1/w_h", (3, 12), (2, 11), "hidden 2, gate o, unit 2"),
        ("params/layer0/b_i", (12,), (3,), "gate f, unit 0"),
        ("grads/layer1/b_h", (12,), (2,), "gate i, unit 2"),
        ("grads/softmax_w", (3, 11), (2, 9), "hidden 2, token 9"),
        ("params/softmax_b", (11,), (4,), "token 4"),
        ("forward/loss", (), (), ""),
        ("an/unknown/name", (4, 5), (3, 1), "[3, 1]"),
        ("optimizer/layer0/w_i/velocity", (6, 12), (5, 7), "input 5, gate g, unit 1"),
        ("inputs/x", (4, 5, 6), (3, 1, 0), "[3, 1, 0]"),  # more axes than are known
        ("forward/layer0/gates", (4, 5, 13), (2, 3, 4), "[2, 3, 4]"),  # no four blocks
    ],
)
def test_an_index_is_told_in_the_words_of_its_axes(name, shape, index, words):
    assert describe_index(GRAPH.axes(name), shape, index) == words
