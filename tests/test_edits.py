"""The search over edits: what it can make of a stage, it finds in a run that has it there."""

import numpy as np
import pytest
from causes_fixtures import SETTINGS, case_of, clean, graph_of_settings

from harness.explain.alike import one_claim
from harness.explain.causes import MOST, SHORTER, explain, same_bits
from harness.explain.edits import edits
from harness.explain.formats import TELLING
from harness.explain.refute import transported
from harness.explain.search import search
from harness.explain.trial import Fit, Trial, own
from harness.models.graph import below, name_of, references
from harness.models.ops import OPS

KINDS = {
    "sgd": SETTINGS | dict(dropout=0.35),
    "adam": SETTINGS | dict(optimizer="adam", lr=0.02, epsilon=1e-3, weight_decay=0.01),
    "decoupled": SETTINGS
    | dict(optimizer="adam", lr=0.02, epsilon=1e-3, weight_decay=0.01, decoupled=True),
    "momentum": SETTINGS | dict(optimizer="momentum"),
    "rmsprop": SETTINGS | dict(optimizer="rmsprop", lr=0.02, epsilon=1e-3),
    "adagrad": SETTINGS | dict(optimizer="adagrad", lr=0.02, epsilon=1e-3),
    "clamped": SETTINGS | dict(clip="elementwise", clip_limit=0.05, loss="mean"),
}
STEP = 2  # of which the step before is traced, and which is not the last
RARE = 12  # bits of the members of a family that few programs have
APART = 64  # levels by which an edit must be off to be planted
PARTS = 32  # of a stage's edits: one is always planted, the others where tests are slow


def stages():
    """Each stage once, of the models that have it: settings and tensor."""
    seen = set()
    for kind, settings in KINDS.items():
        for name, stage in graph_of_settings(tuple(settings.items())).stages.items():
            if stage.value.op != "given" and stage.value not in seen:
                seen.add(stage.value)
                yield kind, name


def form(value):
    """A stage without its tensors' names: of one form are those of several layers or parameters."""
    kept = ("name", "first")
    return tuple((x.op, *(pair for pair in x.args if pair[0] not in kept)) for x in below(value))


STAGES = list(stages())
FORMS = {}
for _kind, _name in STAGES:
    _value = graph_of_settings(tuple(KINDS[_kind].items())).value(_name)
    FORMS.setdefault((form(_value), _name.partition("/")[0]), (_kind, _name))
# One stage of each form; the others, and other parts of their edits, where tests are slow.
FIRST = set(FORMS.values())
EACH = [
    pytest.param(*at, marks=[] if at in FIRST else pytest.mark.slow, id="-".join(at))
    for at in STAGES
]


def clean_case(kind, tensor, step=STEP, dtype="float64"):
    """A tensor of two clean runs."""
    a, b = (clean(tuple(KINDS[kind].items()), dtype, seed) for seed in (1, 2))
    return case_of(a, b, step, tensor, KINDS[kind])


def with_a(case, value):
    """The case with another tensor on side a, seen by every lookup."""

    def lookup(side, step, name):
        here = side == "a" and (step, name) == (case.step, case.tensor)
        return value if here else case.lookup(side, step, name)

    return case._replace(a=value, lookup=lookup)


def made_over_time(case, value):
    """The case whose side a has an expression of its own numbers; None where there is none such.

    A tensor that is stacked over time feeds itself, so that it is made timestep by timestep.
    """
    for turn in range(SETTINGS["bptt"] + 2):
        made = Trial(case).value("a", value)
        if made is None or not np.isfinite(made).all():
            return None
        made = np.asarray(made, case.b.dtype)
        if turn and np.array_equal(made, own(case, "a")):
            return case
        case = with_a(case, made)
    return None


def noisy(case, edit):
    """The case with about half an eps of noise on side a, but in numbers of a narrower format."""
    if edit.format:
        return case
    noise = np.random.default_rng(5).uniform(-1, 1, case.a.shape)
    return with_a(case, np.asarray(case.a * (1 + 0.5 * case.eps * noise), case.a.dtype))


def planted_edits(kind, tensor):
    """Edits of a stage that make other numbers than it, and the cases that have them on side a."""
    case = clean_case(kind, tensor)
    stage = case.graph.value(tensor)
    for edit in edits(Trial(case).scene(stage)):
        if edit.format and case.b.size < TELLING:
            continue  # one number supports no claim about a format
        own_name = [x for x in references(edit.value) if name_of(x) == tensor]
        if any(not x.arg("time") and not x.arg("back") for x in own_name):
            continue  # what is made of itself is no cause
        there = (
            None
            if "moved" in {x.op for x in below(edit.value)}
            else made_over_time(case, edit.value)
        )
        if there is not None and there.gap() > APART * case.level:
            yield edit, noisy(there, edit)


def complaints(kind, tensor, edit, case):
    """What is wrong with the causes of a case in which an edit is planted."""
    trial, stage = Trial(case), case.graph.value(tensor)
    planted = Fit(edit, 0.0, "a", stage)
    fits = {f"pt {fit.edit.words}": fit for fit in search(trial)}
    same = {
        claim
        for claim, fit in fits.items()
        if one_claim(trial, fit, planted)
        or same_bits(trial, fit, planted)
        # A rare formula that makes the numbers of a usual one here is not told from it.
        or (edit.bits >= RARE and fit.edit.bits < edit.bits - SHORTER)
    }
    causes = explain(case)
    claims = [cause.claim for cause in causes]
    if not same & set(claims) and len(claims) < MOST:
        yield f"{edit.words}: not found, but {claims}"
    for cause in causes:
        if cause.sure == "certain" and cause.claim not in same:
            yield f"{edit.words}: {cause.claim} is called certain"


@pytest.mark.parametrize(
    "part", [0, *(pytest.param(k, marks=pytest.mark.slow) for k in range(1, PARTS))]
)
@pytest.mark.parametrize(("kind", "tensor"), EACH)
def test_an_edit_that_is_planted_is_found_and_no_other_is_certain(kind, tensor, part):
    found = list(planted_edits(kind, tensor))
    assert found
    said = [c for edit, case in found[part::PARTS] for c in complaints(kind, tensor, edit, case)]
    assert not said, "\n".join(said)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("kind", "tensor"), EACH)
def test_noise_gives_no_certain_cause_of_any_stage(kind, tensor, dtype):
    case = clean_case(kind, tensor, dtype=dtype)
    draw = np.random.default_rng(3)
    for size in (100, 10_000):
        noise = size * case.eps * draw.standard_normal(case.b.shape)
        for made in (case.b * (1 + noise), case.b + np.abs(case.b).max() * noise):
            found = explain(with_a(case, np.asarray(made, case.b.dtype)))
            assert not [cause for cause in found if cause.sure == "certain"]


@pytest.mark.parametrize("part", ["c", "h"])
def test_edits_move_to_the_same_stage_of_another_layer(part):
    here, there = (clean_case("sgd", f"forward/layer{k}/{part}") for k in (0, 1))
    stages = [case.graph.value(case.tensor) for case in (here, there)]
    known = {edit.value: edit.words for edit in edits(Trial(there).scene(stages[1]))}
    count = 0
    for edit in edits(Trial(here).scene(stages[0])):
        if any("layer1" in name_of(x) for x in references(edit.value)):
            continue  # of the other layer, there is nothing that corresponds to it
        fit = Fit(edit, 0.0, "a", stages[0])
        moved = transported(fit, stages[1], {here.tensor: there.tensor})
        assert moved is not None, edit.words
        assert known[moved] == edit.words.replace("layer0", "layer1")
        count += 1
    assert count > 80


def test_an_edit_of_one_layer_is_none_of_a_stage_of_another_form():
    here = clean_case("sgd", "forward/layer0/c")
    stage = here.graph.value(here.tensor)
    fit = Fit(next(edits(Trial(here).scene(stage))), 0.0, "a", stage)
    for other in ("forward/layer0/h", "forward/logits", "backward/layer1/c"):
        assert transported(fit, here.graph.value(other), {here.tensor: other}) is None


def test_the_same_edit_holds_at_another_step():
    for tensor in ("forward/layer1/gates", "params/layer0/w_i", "grads/embedding"):
        for edit, case in list(planted_edits("adam", tensor))[::9]:
            later = made_over_time(clean_case("adam", tensor, 3), edit.value)
            if later is None or later.gap() <= APART * later.level:
                continue
            causes = explain(case, [noisy(later, edit)])
            assert not [c for c in causes if "does not hold at" in c.sentence], (edit, causes)


def test_every_formula_of_a_family_is_an_edit_of_some_stage():
    # A norm that is written as the root of sums of squares has the family of one op as well.
    reached, plain = set(), {"global_norm"}
    for kind, tensor in STAGES:
        case = clean_case(kind, tensor)
        stage = case.graph.value(tensor)
        plain |= {x.op for x in below(stage)}
        for edit in edits(Trial(case).scene(stage)):
            reached |= {(x.arg("of"), x.arg("does")) for x in below(edit.value) if x.op == "kin"}
    families = {(name, kin.does) for name in plain & set(OPS) for kin in OPS[name].kin}
    assert families == reached


def test_an_error_in_the_search_is_told_of_and_does_not_cost_the_verdict(monkeypatch, tmp_path):
    from harness import TraceWriter, explain
    from harness.explain import verdict

    for label, value in (("a", 2.0), ("b", 1.0)):
        with TraceWriter(tmp_path / label, label=label, dtype="float64") as trace:
            trace.write(1, {"x": np.full(3, value)})

    def broken(case, others):
        raise KeyError("of our own")

    monkeypatch.setattr(verdict, "explain", broken)
    with pytest.raises(KeyError):
        explain(tmp_path / "a", tmp_path / "b")
    monkeypatch.delenv("HARNESS_DEBUG")
    found = explain(tmp_path / "a", tmp_path / "b").verdict
    assert found.where.tensor == "x"
    assert any("KeyError: 'of our own'" in line for line in found.evidence)
