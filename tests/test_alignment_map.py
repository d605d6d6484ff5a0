"""Maps as data: chains of steps, the file, a trace read through a map, causes, commands."""

import json
from collections import Counter
from dataclasses import dataclass

import msgspec
import numpy as np
import pytest
from align_judge import judge
from disguises import disguised

import harness
from harness.errors import HarnessError
from harness.spec import Capture
from harness.trace import Match, open_trace, read_alignment, write_alignment
from harness.trace.alignment_file import written
from harness.trace.chain import MisfitError, parse_chain


@pytest.fixture(scope="module")
def one_pair(tmp_path_factory):
    """A disguise of many kinds of layers, with nothing changed: traces, truth, map."""
    folder = tmp_path_factory.mktemp("pair")
    a, b, truths, swapped = disguised(13, folder, changed=False)
    return a, b, truths, harness.align(a, b), swapped


def write(path, steps, label=None, stages=None, **kwargs):
    with harness.TraceWriter(path, label=label or path.stem, dtype="float32", **kwargs) as trace:
        for number, tensors in enumerate(steps, start=1):
            trace.write(number, tensors, stages=stages or {})
    return path


# Chains


CHAINS = (
    (("axes 2 0 1",), [(2, 3, 4)]),
    (("shape -1 6 to -1 2 3", "axes 0 2 1", "shape -1 3 2 to -1 6"), [(4, 6)]),
    (("blocks 0 2 0 1", "reverse 1"), [(6, 5)]),
    (("order 1 2 0 1",), [(2, 3)]),
    (("split 0 1 2 3", "axes 1 0"), [(6, 4)]),
    (("axes 1 0", "join 1 2 3"), [(2, 4), (3, 4)]),
    (("sum 2", "blocks 0 1 0"), [(4,), (4,)]),
    (("reverse 0", "unsum 3"), [(5,)]),
)


@pytest.mark.parametrize(("steps", "shapes"), CHAINS)
def test_a_chain_has_an_inverse_and_says_its_shapes(steps, shapes):
    chain = parse_chain(steps)
    given = [np.random.default_rng(5).normal(size=s) for s in shapes]
    made = chain.arrays(given)
    assert [x.shape for x in made] == chain.shapes(shapes)
    assert chain.texts == steps
    assert chain.inverse.inverse == chain
    back = chain.inverse.arrays(made)
    if chain.summed:
        assert np.array_equal(back[0], given[0] + given[1])
        assert not back[1].any()
    else:
        assert all(np.array_equal(x, y) for x, y in zip(back, given, strict=True))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "axes 0 2",
        "axes x",
        "turn 1 0",
        "shape 2 3 to 5",
        "shape 2 3",
        "shape -1 -1 to -1 4",
        "blocks 0 1 1",
        "split 0 3",
        "sum 1",
        "reverse",
        "order -1 0 1",
    ],
)
def test_a_step_that_cannot_be_is_refused_with_those_there_are(text):
    with pytest.raises(MisfitError, match="there are: axes ORDER"):
        parse_chain([text])


@pytest.mark.parametrize(
    ("steps", "shapes"),
    [
        (["axes 1 0"], [(2, 3, 4)]),
        (["shape 2 3 to 6"], [(3, 2)]),
        (["blocks 0 1 0"], [(5,)]),
        (["split 0 2 2"], [(5,)]),
        (["join 0 2 2"], [(2, 3), (2, 4)]),
        (["sum 2"], [(2,), (3,)]),
        (["reverse 2"], [(2, 3)]),
    ],
)
def test_a_step_that_does_not_fit_names_itself(steps, shapes):
    with pytest.raises(MisfitError, match=steps[0]):
        parse_chain(steps).shapes(shapes)


# The file


def test_a_map_is_read_as_it_was_written(one_pair, tmp_path):
    odd = harness.Alignment(
        others=(Match(('a "quoted" name',), ("ü/b",), note='a \\ and a "quote"'),),
        only_a=("x",),
        notes=("made by hand",),
    )
    for alignment in (one_pair[3], odd):
        write_alignment(alignment, tmp_path / "map.toml")
        assert read_alignment(tmp_path / "map.toml") == alignment


BAD = {
    "x = 1": "'x' is no part of a map",
    "parms = []": "did you mean params",
    "[[params]]\na = 'w'": r"\[\[params\]\] 1 \(w\): names no tensor of one side",
    "[[params]]\na = 'w'\nb = 'v'\nsteps = ['axes 0 2']": r"1 \(w\): steps: 'axes 0 2'",
    "[[params]]\na = 'w'\nb = ['u', 'v']": "make 1 of 1, and b names 2",
    "[[params]]\na = 'w'\nb = 'v'\nsure = 'maybe'": "'maybe'.*sure is certain or likely",
    "[[params]]\na = 'w'\nb = 'v'\nlayout = 'x'": "'layout' is no field of an entry",
    "[[params]]\na = 3\nb = 'v'": "a: 3 is no list of texts",
    "[[points]]\na = ['u', 'v']\nb = 'w'\nsteps = ['sum 2']": r"allowed in \[\[params\]\] alone",
    "[[params]]\na='u'\nb=['v', 'w']\nsteps=['unsum 2', 'axes 0']": "as the last step alone",
    "[[params]]\na = 'u'\nb = 'v'\n[[params]]\na = 'u'\nb = 'w'": "one partner",
    "[[slots]]\na = 'm'\nb = 'v'\nsteps = ['reverse 0']": "without steps",
    '[[params]]\na = "a\\u001b"\nb = "v"': "cannot name a tensor",
    '[[params]]\na = "a"\nb = "v"\nnote = "\\u001b[2J"': "cannot be printed",
    'notes = ["\\u001b[2J"]': "cannot be printed",
    "params = 3": r"write \[\[params\]\]",
    "= 3": "is no TOML",
}


@pytest.mark.parametrize("text", BAD)
def test_a_bad_map_is_refused_in_a_line_with_file_entry_and_value(text, tmp_path):
    path = tmp_path / "map.toml"
    path.write_text(text)
    with pytest.raises(HarnessError, match=BAD[text]) as told:
        read_alignment(path)
    assert str(path) in str(told.value)
    assert "\n" not in str(told.value)


def test_a_map_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(HarnessError, match="no map can be read"):
        read_alignment(tmp_path / "none.toml")


def test_names_that_a_trace_has_not_are_refused_with_the_nearest(tmp_path):
    path = write(tmp_path / "a.trace", [{"params/dense/kernel": np.ones((2, 3), np.float32)}])
    for given, told in ((("dense/kernle",), "dense/kernel"), (("q",), "there are 1")):
        wrong = harness.Alignment(params=(Match(given, ("w",)),))
        with pytest.raises(HarnessError, match=told):
            open_trace(path, alignment=wrong)
    misfit = harness.Alignment(params=(Match(("dense/kernel",), ("w",), ("axes 2 1 0",)),))
    with pytest.raises(HarnessError, match=r"dense/kernel of .*a.trace: 'axes 2 1 0'"):
        open_trace(path, alignment=misfit).entry(1)


# The view


def plainly(a, truths, swapped, path):
    """The trace a written in b's names and layouts by NumPy alone."""
    trace = open_trace(a)
    families = {"params": ("inputs/params/", "params/", "grads/"), "points": ("forward/",)}
    families |= {"others": ("",), "buffers": ("buffers/",)}
    families["points"] += ("backward/",)
    with harness.TraceWriter(path, label="a", dtype=trace.header.dtype) as writer:
        for number in trace.steps:
            step = trace.step(number)
            held = {entry.name: step.read(entry) for entry in step.entries}
            made = {}
            for truth in truths:
                for prefix in families[truth.section]:
                    if all(prefix + n in held for n in truth.a):
                        given = [held[prefix + n] for n in truth.a]
                        if prefix == "grads/" and truth.summed:
                            given[1:] = [np.zeros_like(x) for x in given[1:]]
                        made |= {
                            prefix + n: x for n, x in zip(truth.b, truth.turn(given), strict=True)
                        }
            writer.write(number, made)
    return path


def test_a_diff_through_a_map_is_that_of_a_trace_in_the_names_and_layouts_of_the_other(tmp_path):
    seen = Counter()
    for seed in range(40):
        folder = tmp_path / str(seed)
        folder.mkdir()
        a, b, truths, swapped = disguised(seed, folder)
        found = harness.align(a, b)
        judged = judge(found, truths, swapped)
        if swapped or judged.missing or judged.wrong_likely:
            continue
        plain = plainly(a, truths, swapped, folder / "plain.trace")
        options = dict(all=True, exclude=["optimizer/*"])
        through = harness.diff(a, b, alignment=found, **options)
        direct = harness.diff(plain, b, **options)
        for field in ("steps_compared", "tensors_compared", "structure", "status", "tightest"):
            assert getattr(through, field) == getattr(direct, field), (seed, field)
        places = [
            {(d.step, d.tensor, d.index, d.a, d.b, d.rel_l2) for d in result.divergences}
            for result in (through, direct)
        ]
        assert places[0] == places[1]
        seen.update([direct.status])
    assert seen["diverged"] > 3
    assert seen.total() > 8


def test_what_has_no_partner_is_told_of_and_is_not_structure(tmp_path):
    x = np.arange(6, dtype=np.float32).reshape(2, 3) + 0.3
    a = write(tmp_path / "a.trace", [{"forward/l": x, "forward/odd": x + 1, "backward/l": x}])
    b = write(tmp_path / "b.trace", [{"forward/d": x.T, "forward/odd": x * 2}])
    found = harness.Alignment(points=(Match(("l",), ("d",), ("axes 1 0",)),))
    result = harness.diff(a, b, alignment=found)
    assert (result.status, result.tensors_compared, result.structure) == ("identical", 1, ())
    assert "2 tensors of a have no partner: forward/odd, backward/d" in result.notes
    assert "1 tensors of b have no partner: forward/odd" in result.notes
    assert result.alignment == found
    assert msgspec.json.decode(msgspec.json.encode(result), type=type(result)) == result


def test_a_tensor_that_a_side_had_and_has_no_more_is_structure(tmp_path):
    steps = [{"forward/l": np.float32(1), "forward/m": np.float32(2)} for _ in range(2)]
    a = write(tmp_path / "a.trace", [steps[0], {"forward/l": np.float32(1)}])
    b = write(
        tmp_path / "b.trace",
        [{k.replace("l", "d"): v for k, v in s.items()} for s in steps],
    )
    points = (Match(("l",), ("d",)), Match(("m",), ("m",)))
    renamed = harness.Alignment(points=points)
    with harness.TraceWriter(b, label="b", dtype="float32") as trace:
        for number in (1, 2):
            trace.write(number, {"forward/d": 1.0, "forward/m": 2.0})
    result = harness.diff(a, b, alignment=renamed)
    assert [(s.kind, s.step, s.tensor) for s in result.structure] == [
        ("missing tensor", 2, "forward/m")
    ]


def test_two_biases_that_sum_to_one_are_compared_as_their_sum_either_way(tmp_path):
    draw = np.random.default_rng(6)
    one, two, g = (draw.normal(size=4).astype(np.float32) for _ in range(3))
    parts = {"inputs/params/b1": one, "inputs/params/b2": two, "grads/b1": g, "grads/b2": g}
    whole = {"inputs/params/b": one + two, "grads/b": g}
    a, b = write(tmp_path / "a.trace", [parts]), write(tmp_path / "b.trace", [whole])
    found = harness.align(a, b)
    assert found.params == (Match(("b1", "b2"), ("b",), ("sum 2",), "certain", ("values",)),)
    for first, second, through in ((a, b, found), (b, a, harness.align(b, a))):
        result = harness.diff(first, second, alignment=through)
        assert (result.status, result.tensors_compared) == ("identical", 2)
    back = found.inverse({"b": one + two})
    assert np.array_equal(back["b1"], one + two)
    assert not back["b2"].any()


def test_weights_are_handed_on_in_the_other_layout(one_pair):
    a, b, _, found, _ = one_pair
    first, second = open_trace(a).step(1), open_trace(b).step(1)
    given = {e.name: second.read(e) for e in second.entries if e.name.startswith("inputs/params/")}
    made = found.inverse(given)
    summed = {n for m in found.params if m.chain.summed for n in m.a}
    for entry in first.entries:
        if entry.name.startswith("inputs/params/"):
            name = entry.name.removeprefix("inputs/params/")
            if name not in summed:
                assert np.array_equal(made[entry.name], first.read(entry)), name


def test_traces_of_statistics_are_compared_by_what_no_layout_changes(tmp_path):
    draw = np.random.default_rng(7)
    w = draw.normal(size=(20, 30)).astype(np.float32)
    kept = Capture(level="stats")
    a = write(tmp_path / "a.trace", [{"params/w": w}], capture=kept)
    b = write(tmp_path / "b.trace", [{"params/k": w.T}], capture=kept)
    off = write(tmp_path / "c.trace", [{"params/k": w.T * 1.01}], capture=kept)
    found = harness.Alignment(params=(Match(("w",), ("k",), ("axes 1 0",)),))
    result = harness.diff(a, b, alignment=found)
    assert result.status == "close"
    assert any("by norm, extremes, mean and counts alone" in note for note in result.notes)
    assert harness.diff(a, off, alignment=found).status == "diverged"
    hashes = write(tmp_path / "d.trace", [{"params/w": w}], capture=Capture(level="hash"))
    with pytest.raises(HarnessError, match="nothing to compare"):
        harness.diff(hashes, b, alignment=found)


# Causes


@dataclass
class Program:
    """A dense layer, GELU and a step down, as one of two programs writes and traces it."""

    width: int = 3
    channels_last: bool = False
    tanh: bool = False
    declares: bool = True

    def run(self, path, dtype):
        from math import erf

        draw = np.random.default_rng(8)
        names = ("k", "act") if self.channels_last else ("w", "y")
        turn = (lambda x: x.transpose(0, 2, 1)) if self.channels_last else (lambda x: x)
        weight = (lambda w: w.T) if self.channels_last else (lambda w: w)
        w = draw.normal(size=(7, 5)).astype(np.float32).astype(dtype)
        before = f"params/{names[0]}@step-1|inputs/params/{names[0]}"
        x = "inputs/x"
        s = harness.stage
        product = s("linear", x, before if self.channels_last else s("transpose", before))
        z = "forward/z"
        stages = {
            z: s("permute", product, axes=[0, 2, 1]) if self.channels_last else product,
            f"forward/{names[1]}": s("gelu", z),
            f"params/{names[0]}": s("descend", before, f"grads/{names[0]}", 0.1),
        }
        with harness.TraceWriter(path, label=path.stem, dtype=dtype) as trace:
            for step in range(1, 4):
                given = draw.normal(size=(4, 3, 5)).astype(np.float32).astype(dtype)
                z_now = (given @ w.T).astype(dtype)
                y = z_now * (1 + np.vectorize(erf)(z_now / np.sqrt(2))) / 2
                if self.tanh:
                    inner = np.sqrt(2 / np.pi) * (z_now + 0.044715 * z_now**3)
                    y = z_now * (1 + np.tanh(inner)) / 2
                grad = draw.normal(size=(7, 5)).astype(np.float32).astype(dtype)
                seen = {f"inputs/params/{names[0]}": weight(w)} if step == 1 else {}
                w = (w - 0.1 * grad).astype(dtype)
                seen |= {x: given, z: turn(z_now), f"forward/{names[1]}": turn(y.astype(dtype))}
                seen |= {f"grads/{names[0]}": weight(grad), f"params/{names[0]}": weight(w)}
                trace.write(step, seen, stages=stages if self.declares else {})
        return path


@pytest.mark.parametrize("declaring", ["a", "b", "both"])
@pytest.mark.parametrize("guilty", ["a", "b"])
def test_causes_are_found_through_a_map_whichever_side_declares_stages(declaring, guilty, tmp_path):
    paths = {}
    for side in "ab":
        program = Program(
            channels_last=side == "b",
            tanh=side == guilty,
            declares=declaring in (side, "both"),
        )
        for dtype in ("float32", "float64"):
            paths[side, dtype] = program.run(tmp_path / f"{side}-{dtype}.trace", dtype)
    a, b = paths["a", "float32"], paths["b", "float32"]
    found = harness.explain(
        a,
        b,
        referee_a=paths["a", "float64"],
        referee_b=paths["b", "float64"],
        alignment=harness.align(a, b),
    ).verdict
    assert found.label == "bug"
    assert found.causes[0].sentence.startswith(
        f"{guilty}-float32 has the GELU by tanh for the exact GELU: recomputed so"
    )
    assert found.causes[0].sure == "certain"


# The command line


def run(*words):
    from click.testing import CliRunner

    from harness.cli.main import harness as command_line

    done = CliRunner().invoke(command_line, words, standalone_mode=False)
    if done.exception:
        raise done.exception
    return done


def test_the_command_writes_a_map_that_diff_takes(one_pair, tmp_path):
    a, b, *_ = map(str, one_pair[:2])
    path = str(tmp_path / "map.toml")
    shown = run("align", a, b, "-o", path)
    assert "ALIGNED" in shown.stdout
    assert "certain" in shown.stdout
    through = json.loads(run("diff", a, b, "--map", path, "--json").stdout)
    assert through["alignment"]["params"]
    alone = json.loads(run("align", a, b, "--json").stdout)
    assert len(alone["params"]) == len(through["alignment"]["params"])


def test_a_diff_aligns_by_itself_where_names_differ_unless_told_not_to(tmp_path):
    draw = np.random.default_rng(9)
    w, x = draw.normal(size=(6, 5)), draw.normal(size=(3, 5))
    a = {"inputs/x": x, "params/l/weight": w, "forward/l": x @ w.T, "forward/loss": 1.0}
    b = {"inputs/x": x, "params/d/kernel": w.T, "forward/d": x @ w.T, "forward/loss": 1.0}
    more = {f"forward/e{k}": draw.normal(size=(3, k + 2)) for k in range(4)}
    a |= more
    b |= {name.replace("/e", "/f"): value for name, value in more.items()}
    paths = [str(write(tmp_path / f"{n}.trace", [t])) for n, t in (("a", a), ("b", b))]
    found = json.loads(run("diff", *paths, "--json").stdout)
    assert found["status"] in ("identical", "close")
    assert "the traces were aligned" in found["notes"][0]
    plain = json.loads(run("diff", *paths, "--map", "none", "--json").stdout)
    assert (plain["status"], plain["alignment"]) == ("structure", None)
    same = json.loads(run("diff", paths[0], paths[0], "--json").stdout)
    assert same["alignment"] is None
    judged = json.loads(run("explain", *paths, "--json").stdout)
    assert judged["verdict"]["label"] in ("identical", "close")


def test_a_written_map_explains_itself(one_pair):
    text = written(one_pair[3])
    assert text.startswith("# Which tensors of trace a are which of trace b")
    assert "unsum COUNT" in text
