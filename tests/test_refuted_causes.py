"""Faults that no list holds, planted in a twin: no cause is called certain that is not so."""

import re

import msgspec
import numpy as np
import pytest
from causes_fixtures import lone_case
from some import some
from twins import a_run

from harness import Observer
from harness.compare import diff
from harness.explain.case import Cause
from harness.explain.causes import explain
from harness.explain.refute import Record
from harness.runs.investigation import Investigation
from harness.runs.processes import TWINS, Twin
from harness.runs.session import Session, Side

TWIN = """
import sys
import numpy as np
import np_impl.train as twin
from harness.data import randomness
from harness.models.update import RATE
from harness.side.serving import main

plain, step_of, masks_of = twin.Execution, twin.train_step, randomness.dropout_masks

def with_rate(change):
    def train_step(params, slots, state, x, y, masks, lr, step, *rest):
        return step_of(params, slots, state, x, y, masks, change(lr, step), step, *rest)
    twin.train_step = train_step

def with_tensors(change):
    class Changed(plain):
        def run(self, stages, see):
            def saw(name, x, t):
                return see(name, np.asarray(change(self, name, x), x.dtype), t)
            super().run(stages, saw)
    twin.Execution = Changed

def named(run, prefix):
    return {{n.removeprefix(prefix): x for n, x in run.made.items() if n.startswith(prefix)}}

def clip(grads, norm, limit):
    return {{name: g * np.asarray(limit / max(norm, limit), g.dtype) for name, g in grads.items()}}

def with_clip(change):
    def changed(run, name, x):
        _, _, own = name.partition("update/clipped/")
        if not own:
            return x
        limit = run.graph.value(name).inputs[2].arg("value")
        return change(named(run, "grads/"), run.made["update/global_norm"], limit)[own]
    with_tensors(changed)

def with_update(change):
    def changed(run, name, x):
        return change(name, run.before[name], x, run.step) if name.startswith("params/") else x
    with_tensors(changed)

def times(factor, only):
    with_tensors(lambda run, name, x: x * x.dtype.type(factor) if name == only else x)

def with_hidden_rate(factor):
    class Changed(plain):
        def run(self, stages, see):
            if RATE in self.made:
                self.made[RATE] = self.made[RATE] * self.made[RATE].dtype.type(factor)
            super().run(stages, see)
    twin.Execution = Changed

def grid():
    h = ("forward/layer0/h", "forward/layer1/h")
    with_tensors(lambda run, name, x: np.rint(x * 1024) / 1024 if name in h else x)

{code}

if __name__ == "__main__":
    sys.exit(main(twin.train))
"""

# The fault, what the run is given, where it must be found, what may be said of it for certain (a
# pattern that every certain cause must match), and what must be the first cause, if anything must.
LR = "update/learning_rate"
FAULTS = {
    "a warm-up is no decay": (
        "with_rate(lambda lr, step: lr * min(1, step / 4))",
        {"lr": 2.0},
        LR,
        "^$",
        None,
    ),
    "a rate that is a thousandth off is nobody's earlier value": (
        "with_rate(lambda lr, step: lr * 1.001)",
        {"lr": 0.3},
        LR,
        r"mine is 1 \+ 0\.001 times other",
        None,
    ),
    "a rate that is off from the start is no schedule": (
        "with_rate(lambda lr, step: lr / 1.25)",
        {"lr": 2.0, "lr_decay": 1.25},
        LR,
        r"mine is 0\.8 .*times other",
        None,
    ),
    "one bias unclipped is no other way of clipping": (
        "with_clip(lambda g, n, x: {**clip(g, n, x), 'softmax_b': g['softmax_b']})",
        {"clip_limit": 0.5},
        "update/clipped/softmax_b",
        "^$",
        "^mine does not clip: .*update/clipped/softmax_b agrees",
    ),
    "no clipping is not said to be clipping element by element": (
        "with_clip(lambda g, n, x: g)",
        {"clip_limit": 0.5},
        "update/clipped/.*",
        "mine does not clip",
        "mine does not clip",
    ),
    "a coefficient of its own has no limit that is nowhere": (
        "with_clip(lambda g, n, x: clip(g, n + 1.1 * x, x))",
        {"clip_limit": 0.5},
        "update/clipped/.*",
        r"mine adds 0\.55 to update/global_norm",
        None,
    ),
    "a step that is not applied is not a frozen parameter": (
        "with_update(lambda name, old, new, step: old if step == 3 else new)",
        {},
        "params/embedding",
        "^$",
        "does not update this parameter.*does not hold at",
    ),
    "a parameter that never moves is said to be it": (
        "with_update(lambda name, old, new, step: old if name == 'params/softmax_w' else new)",
        {},
        "params/softmax_w",
        "mine does not update this parameter",
        "mine does not update this parameter.*so also where else it was tried: steps",
    ),
    "a stale mask is behind, and the other side not ahead": (
        "randomness.dropout_masks = lambda m, t, s: masks_of(m, t, max(s - 1, 1))",
        {},
        "inputs/mask/embedding",
        "mine has the value of the step before|mine has what other had at the step before",
        "mine has",
    ),
    "a gradient that is a fifth says nothing of the loss": (
        "times(0.2, 'grads/embedding')",
        {},
        "grads/embedding",
        "(?!.*averages the loss)",
        "mine is 0.2 .*times other",
    ),
    "a rate that is a millionth off is not 1 times the other": (
        "with_hidden_rate(1.000001)",
        {"dtype": "float64"},
        "params/embedding",
        "mine moves 1 [+] 1e-06 times other",
        "1 [+] 1e-06 times",
    ),
    "a factor of a product is no rate of dropout": (
        "b = 'params/softmax_b'  # dropout by masks\n"
        "with_tensors(lambda run, n, x: (x - run.before[b]) * 1.2247 + run.before[b]"
        " if n == 'forward/logits' else x)",
        {},
        "forward/logits",
        r"mine multiplies .* by 1\.2247",
        r"mine multiplies .* by 1\.2247",
    ),
    "an average is not a tenth of a sum": (
        "with_tensors(lambda run, n, x: 0.9 * run.before[n] + 0.1 * (x - run.before[n])"
        " if n.startswith('optimizer/') else x)",
        {"optimizer": "adagrad"},
        "optimizer/.*",
        r"mine averages, with the share 0\.9",
        r"mine averages, with the share 0\.9",
    ),
    "a loss with a factor of its own has it at every step": (
        "times(0.6131, 'forward/loss')",
        {},
        "forward/loss",
        r"mine is 0\.6131 times other",
        r"mine is 0\.6131 times other",
    ),
    "a fixed grid is no narrower format": (
        "grid()",
        {},
        "forward/layer0/h",
        "^$",
        None,
    ),
    **{
        f"a ratio of {factor} is no count": (
            f"times({factor}, 'update/clipped/layer0/w_i')",
            {},
            "update/clipped/layer0/w_i",
            "(?!.*(count|one less|momentum|batch|BPTT|hidden))",
            f"mine is {shown} times other",
        )
        for factor, shown in ((1.05, "1.05"), (1.01, "1.01"), (4 / 3, "1.33333"))
    },
}


def verdict_of(folder, monkeypatch, code, settings):
    """The verdict on a twin that runs with `code`, against the same twin without."""
    packages = folder / "packages"
    packages.mkdir()
    (packages / "changed_twin.py").write_text(TWIN.format(code=code))
    monkeypatch.setenv("PYTHONPATH", str(packages))
    monkeypatch.setitem(TWINS, "changed", Twin("changed_twin", "NumPy", "all"))
    dropout = 0.3 if "mask" in code else 0.0
    runs = []
    for label in ("mine", "other"):
        run = a_run(folder, label, steps=6, **settings)
        runs.append(msgspec.structs.replace(run, model=replaced(run.model, dropout=dropout)))
    runs[0] = msgspec.structs.replace(runs[0], weights=runs[1].weights)
    sides = [Side("mine", "changed"), Side("other", "np")]
    with Session(sides, folder, Observer()) as session:
        session.run_all([(run.label, run) for run in runs])
        found = diff(runs[0].trace, runs[1].trace)
        return Investigation(session, tuple(runs), found).verdict()


def replaced(spec, **fields):
    return msgspec.structs.replace(spec, **fields)


@pytest.mark.parametrize("name", some(FAULTS, fast=list(FAULTS)[::2]))
def test_what_is_certain_is_so(tmp_path, monkeypatch, name):
    code, settings, tensor, certain, first = FAULTS[name]
    found = verdict_of(tmp_path, monkeypatch, code, settings)
    assert (found.label, found.side) == ("bug", "mine"), found.evidence
    assert re.fullmatch(tensor, found.where.tensor)
    for cause in found.causes:
        assert cause.sure != "certain" or re.search(certain, cause.sentence), cause.sentence
    if first:
        assert re.search(first, found.causes[0].sentence), found.causes


def places(a_of, b_of, steps=5, tensor="mystery/tensor", fed=True):
    """The case of a tensor at each step, in which side a was fed by side b."""
    points = {}
    for step in range(1, steps + 1):
        points["a", step, tensor], points["b", step, tensor] = a_of(step), b_of(step)
    return [
        lone_case(a_of(step), b_of(step), tensor, points, step)._replace(fed=fed)
        for step in range(1, steps + 1)
    ]


def drawn(step):
    return np.random.default_rng(step).standard_normal((4, 6)).astype("float32")


def judged(cases, at=2):
    """The causes at one step, tried at the others."""
    return explain(cases[at - 1], [case for case in cases if case.step != at])


def test_a_sign_that_is_turned_at_every_step_is_certain_and_says_where():
    (cause,) = judged(places(lambda step: -drawn(step), drawn))
    assert (cause.name, cause.sure) == ("sign", "certain")
    assert cause.sentence.endswith("; so also where else it was tried: steps 1, 3, 4, 5")


def test_one_that_is_turned_once_is_only_likely():
    (cause,) = judged(places(lambda step: -drawn(step) if step == 2 else drawn(step), drawn))
    assert (cause.name, cause.sure) == ("sign", "likely")
    assert cause.sentence.endswith("(it does not hold at steps 1, 3, 4, 5)")


def test_a_claim_that_other_steps_contradict_is_dropped():
    def side(step):
        return -drawn(step) if step == 2 else drawn(step) + drawn(step + 100)

    assert not [cause for cause in judged(places(side, drawn)) if cause.name == "sign"]


def test_a_claim_without_another_place_is_only_likely():
    first, second = places(lambda step: -drawn(step), drawn, steps=2)
    none = first._replace(a=first.b)  # at which the sides agree on nothing but zeros
    none = none._replace(a=0 * none.a, b=0 * none.b)
    (cause,) = explain(second, [none])
    assert (cause.sure, cause.sentence.endswith("(seen at this place alone)")) == ("likely", True)


def test_zeros_on_both_sides_neither_support_nor_refute():
    def of(sign):
        return lambda step: sign * drawn(step) * (step not in (1, 4))

    (cause,) = judged(places(of(-1), of(1)))
    assert cause.sure == "certain"
    assert cause.sentence.endswith("; so also where else it was tried: steps 3, 5")


def test_later_differences_of_free_runs_contradict_nothing():
    def side(step):
        return -drawn(step) if step == 2 else drawn(step) + drawn(step + 100) * (step > 2)

    (cause,) = judged(places(side, drawn, fed=False))
    assert (cause.name, cause.sure) == ("sign", "likely")


def test_the_side_that_is_off_is_the_subject():
    case = places(lambda step: 2 * drawn(step), drawn)[0]
    for off, words in (("a", "pt is 2 times tf"), ("b", "tf is 0.5 times pt")):
        (cause,) = explain(case._replace(off=off))
        assert words in cause.sentence
        assert cause.side == case.labels["ab".index(off)]


def test_a_cause_of_the_side_that_is_not_off_is_none():
    case = places(lambda step: np.zeros((4, 6), "float32"), drawn)[0]
    assert [c.name for c in explain(case._replace(tensor="forward/x", off="a"))] == ["zero"]
    assert not explain(case._replace(tensor="forward/x", off="b"))


@pytest.mark.parametrize(
    ("dtype", "gap", "sure"),
    [("float64", 1.0, "certain"), ("float32", 1.0, "likely"), ("float32", 1e-5, None)],
)
def test_one_number_supports_a_claim_only_as_far_as_its_digits_go(dtype, gap, sure):
    b = np.array(1.5, dtype)
    a = np.asarray(b * (1 + gap), dtype)
    case = lone_case(a, b, "forward/loss", settings={"bptt": 1 + gap}, level=16.0)
    assert [cause.sure for cause in explain(case._replace(off="a"))] == ([sure] if sure else [])
    # Which side is off nobody knows: then it may be off for any reason.
    assert all(cause.sure == "likely" for cause in explain(case))


def test_elements_vote_and_not_copies_of_them():
    few = lone_case(np.full((50, 50), 3.0), np.full((50, 50), 2.0))
    many = lone_case(1.5 * drawn(1).astype("float64"), drawn(1).astype("float64"))
    assert -20 < few.chance() < -10
    assert many.chance() < -200
    assert few.chance(free=1) == 0
    assert few.chance(same=True) < -1000


def test_numbers_that_are_not_finite_are_no_matter_of_chance():
    assert lone_case(np.array([np.nan, 1.0]), np.array([2.0, 1.0])).chance() == -np.inf


def record_of(*found):
    """What places say of a claim: it holds or not, on a side that fits the stage or not."""
    record = Record()
    for step, (holds, plain) in enumerate(found, 1):
        (case,) = places(lambda step: -drawn(step), drawn, steps=1)
        record.add(case._replace(step=step), holds, True, plain, case.tensor, True)
    return record.rule(Cause("mine", "words", 0.0, claim="c"))


def test_what_other_tensors_do_at_the_same_step_does_not_save_a_claim_that_other_steps_contradict():
    record = Record()
    (case,) = places(lambda step: -drawn(step), drawn, steps=1)
    record.add(case._replace(tensor="its/neighbour"), True, True, False, case.tensor, True)
    assert record.rule(Cause("mine", "words", 0.0, claim="c")).sure == "certain"
    record.add(case._replace(step=2), False, True, False, case.tensor, True)
    assert record.rule(Cause("mine", "words", 0.0, claim="c")) is None


def test_the_same_two_numbers_at_every_step_are_evidence_once():
    """A constant rate is off by some factor whatever is wrong with it."""

    def certain(b_of):
        first, *rest = places(
            lambda step: np.array(0.6131 * b_of(step)), lambda step: np.array(b_of(step))
        )
        found = explain(first._replace(off="a"), [case._replace(off="a") for case in rest])
        return [cause.claim for cause in found if cause.sure == "certain"]

    assert certain(lambda step: 0.3 + 0.01 * step**2) == ["pt is 0.6131 times what it should"]
    assert not certain(lambda step: 0.3)


def test_a_side_that_differs_by_what_came_in_alone_is_not_evidence_for_a_claim():
    assert record_of((True, False)).sure == "certain"
    assert record_of((False, False)) is None
    assert record_of((True, True)).sentence == "words (seen at this place alone)"
    assert record_of((True, False), (False, True)).sentence == "words (it does not hold at step 2)"
