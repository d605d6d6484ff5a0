"""Planted faults: where and when each shows is what the catalogue says, in either twin."""

import sys
from fnmatch import fnmatchcase
from functools import cache, partial
from importlib import import_module

import pytest
import twin_calls
from some import some

from harness.compare import diff
from harness.data import corpus, weights
from harness.errors import HarnessError
from harness.faults import (
    BASE,
    CATALOGUE,
    MODELS,
    Fault,
    first_step,
    home,
    named,
    planted_names,
    within,
)
from harness.faults.catalogue import specs
from harness.models.table import parameters
from harness.spec import Follow, RunSpec, override, preset
from harness.trace import open_trace
from np_impl.faults import planted as planted_in_the_referee

PAIRS = [name for name, fault in CATALOGUE.items() if fault.parts]
# Faults that remember something from one call to the next.
REMEMBERING = ["gradients-stale", "gradients-accumulated", "old-weights", "norm-duplicates"]
REMEMBERING += ["optimizer-rebuilt", "unclipped-used", "dropout-in-evaluation"]


def run_of(fault):
    """What a clean run beside a fault is told by; the fault is planted in its first model."""
    return home(fault), fault.settings, fault.tokens, fault.steps


SETTINGS = []  # of runs, each once
for _fault in CATALOGUE.values():
    if run_of(_fault) not in SETTINGS:
        SETTINGS.append(run_of(_fault))


# Called in a process that holds one framework.


def fault_table(twin):
    """Fault -> function that is replaced -> what its replacement is called, and says of itself."""
    table = import_module(f"{twin}_impl.faults").FAULTS
    return {
        name: {place: (new.__name__, new.__doc__) for place, new in where.items()}
        for name, where in table.items()
    }


def graphless():
    return import_module("tf_impl.backend").NO_GRAPH


def train_with_harmless_replacements(twin, run):
    """A run whose faults are planted, but whose replacements all call what they replace."""
    table = import_module(f"{twin}_impl.faults").FAULTS
    real = dict(table)
    try:
        for name, where in real.items():
            table[name] = dict.fromkeys(where, lambda original, *args: original(*args))
        return twin_calls.train(twin, run)
    finally:
        table.update(real)


def planting(twin, names):
    """How often planting in a block that fails changes the twin, before and after its failure."""
    faults = import_module(f"{twin}_impl.faults")
    import_module(f"{twin}_impl.train")

    def changed():
        own = [m for name, m in sys.modules.items() if name.startswith(f"{twin}_impl.")]
        return [
            f"{m.__name__}.{name}"
            for m in own
            for name, value in vars(m).items()
            if isinstance(value, partial)
        ]

    try:
        with faults.planted(names):
            during = changed()
            raise RuntimeError
    except RuntimeError:
        return during, changed()


def at_once(workers, function, given=((), ())):
    """Call `function` in both twins' processes, each with its own of the `given` arguments."""
    pairs = zip(workers, given, strict=True)
    calls = [worker.pool.submit(function, worker.twin, *own) for worker, own in pairs]
    return [call.result() for call in calls]


# Runs, and what differs in them.


class Shelf:
    """The runs of this module in one folder; a clean run is made once for all that share it."""

    def __init__(self, folder, pt, tf):
        self.folder, self.workers = folder, (pt, tf)
        self.clean = cache(self.clean)
        self.text = corpus.load(None)
        corpus.save_tokens(self.text.valid[:200], folder / "valid.npy")

    def spec(self, fault, label, steps, follow=None, faults=(), start=1, model=None):
        # As the faulty side is differentiated, so that their other bits are the same.
        name = model or home(fault)
        model, train = specs(name, {**fault.settings, "autograd": "true"})
        drawn = self.folder / f"drawn-{name}-{model.init_scale}.npz"
        if not drawn.exists():
            weights.save(weights.draw(model, 1), drawn)
        tokens = self.folder / f"tokens-{fault.tokens}.npy"
        if not tokens.exists():
            corpus.save_tokens(self.text.train[: fault.tokens], tokens)
        return RunSpec(
            label=label,
            model=model,
            train=train,
            steps=steps,
            weights=str(drawn),
            tokens=str(tokens),
            valid=str(self.folder / "valid.npy"),
            trace=str(self.path(label)),
            final=str(self.folder / f"{label}.npz"),
            follow=Follow(str(self.path(follow)), "stage") if follow else None,
            faults=faults,
            start=start,
        )

    def path(self, label):
        return self.folder / f"{label}.trace"

    def clean(self, model, settings, tokens, steps):
        """A clean run of each twin with these settings; their labels."""
        fault = Fault("none", "", (), (), settings=dict(settings), tokens=tokens)
        told = (f"{k}={v}" for k, v in settings)
        label = "-".join(["clean", model, *told, str(tokens), str(steps)])
        labels = [f"{worker.twin}-{label}" for worker in self.workers]
        clean = [self.spec(fault, label, steps, model=model) for label in labels]
        self.run(twin_calls.train, clean)
        return labels

    def clean_for(self, fault):
        settings = tuple(sorted(fault.settings.items()))
        return self.clean(home(fault), settings, fault.tokens, fault.steps)

    def bites(self, fault):
        """The step at which the fault must show, from the clean run."""
        label = self.clean_for(fault)[0]
        batches = corpus.Batches(
            corpus.load_tokens(self.spec(fault, label, 1).tokens), self.spec(fault, label, 1).train
        )
        trace = open_trace(self.path(label))

        def norm(step):
            return trace.step(step).find("update/global_norm").min

        return first_step(fault, batches, norm, home(fault))

    def run(self, function, specs):
        at_once(self.workers, function, [(spec,) for spec in specs])

    def follow(self, fault, steps, *, other, start=1, names=None, function=twin_calls.train):
        """Run both twins with the fault, each stage fed by a clean run: its own, or the other's.

        Returns for each twin the faulty trace (of the steps from `start` on) and the clean one.
        """
        clean = self.clean_for(fault)[:: -1 if other else 1]
        labels = [f"{worker.twin}-faulty" for worker in self.workers]
        names = names or planted_names(fault.name)
        pairs = zip(labels, clean, strict=True)
        self.run(function, [self.spec(fault, a, steps, b, names, start) for a, b in pairs])
        pairs = zip(labels, clean, strict=True)
        return [(open_trace(self.path(a)), open_trace(self.path(b))) for a, b in pairs]


@pytest.fixture(scope="module")
def shelf(tmp_path_factory, pt, tf):
    return Shelf(tmp_path_factory.mktemp("faults"), pt, tf)


def unequal(a, b):
    """Step and name of every trace point that has not the same bits, in execution order."""
    found = []
    for step in a.steps:
        entries = {entry.name: entry.hash for entry in b.step(step).entries}
        own = a.step(step).entries
        assert {entry.name for entry in own} == set(entries)
        found += [(step, e.name) for e in own if e.hash != entries[e.name]]
    return found


def too_far(a, b):
    """The same of those that are not close."""
    return [(found.step, found.tensor) for found in diff(a, b, all=True).divergences]


def matches(tensor, globs):
    return any(fnmatchcase(tensor, glob) for glob in globs)


def check(fault, found, step):
    """What the catalogue says of a fault is what was found: (step, tensor), the first one first."""
    assert found, f"{fault.name} changes nothing"
    assert found[0][0] == step
    assert matches(found[0][1], fault.tensor)
    strays = [t for s, t in found if s == step and not matches(t, (*fault.tensor, *fault.also))]
    assert not strays, f"{fault.name} is also seen at {strays}"


# The catalogue.


def test_both_twins_have_the_faults_of_the_catalogue_with_the_same_replacements(pt, tf):
    ours, theirs = at_once((pt, tf), fault_table)
    assert ours == theirs
    assert sorted(ours) == sorted(set(CATALOGUE) - set(PAIRS))
    assert all(doc for where in ours.values() for _, doc in where.values())
    assert len(ours) >= 50
    assert len(PAIRS) >= 3
    assert tf.pool.submit(graphless).result() <= set(ours)


def test_what_the_catalogue_says_of_a_fault_is_whole():
    assert len({fault.title for fault in CATALOGUE.values()}) == len(CATALOGUE)
    for name, fault in CATALOGUE.items():
        assert fault.name == name
        assert fault.tensor, name
        assert fault.causes, name
        model, _ = specs(home(fault), fault.settings)
        names = [p.name for p in parameters(model)]
        for glob in (*fault.tensor, *fault.also):
            group, _, rest = glob.partition("/")
            if group in ("grads", "params"):
                assert any(fnmatchcase(n, rest) for n in names), f"{name}: {glob}"
        assert set(fault.parts) <= set(CATALOGUE) - set(PAIRS)


def test_a_fault_that_there_is_not_is_refused_with_those_that_there_are(pt, tf, shelf):
    spec = shelf.spec(CATALOGUE["clip-never"], "refused", 1, faults=("clip-nevr",))
    for worker in (pt, tf):
        with pytest.raises(HarnessError, match=r"no fault named 'clip-nevr'; .*, clip-never"):
            worker("train", spec)
    with pytest.raises(HarnessError, match=r"no fault named 'x'; there are: .*, clip-never"):
        named("x")
    with pytest.raises(HarnessError, match="there are"):
        planted_names("x")


def test_the_referee_takes_no_faults():
    with planted_in_the_referee(()):
        pass
    words = "takes no faults: plant 'clip-never' in pt or tf"
    with pytest.raises(HarnessError, match=words), planted_in_the_referee(("clip-never",)):
        pass


def test_the_first_step_of_a_fault_follows_its_rule():
    tokens = corpus.load(None).train[:100]
    train = override(*preset("zaremba-small", 256), dict(BASE))[1]
    batches = corpus.Batches(tokens, train)
    assert batches.steps_per_epoch == 6
    late = int(batches.window(5).x[0, 0])
    assert late not in [int(k) for step in range(1, 5) for k in batches.window(step).x.ravel()]
    rules = {
        "step 3": 3,
        "norm over limit": 4,
        "epoch 1": 1,
        "epoch 2": 7,
        "epoch 2 end": 12,
        f"token {late}": 5,
    }
    for rule, step in rules.items():
        fault = Fault("any", "", (), (), bites=rule, steps=12)
        assert first_step(fault, batches, lambda step: step * 0.5) == step, rule
        with pytest.raises(HarnessError, match="in none of the steps"):
            first_step(fault._replace(steps=step - 1), batches, lambda step: step * 0.5)


def test_a_fault_is_within_the_models_that_have_what_it_needs():
    reached = {model: {n for n, f in CATALOGUE.items() if within(f, model)} for model in MODELS}
    assert set().union(*reached.values()) == set(CATALOGUE)
    everywhere = set.intersection(*reached.values())
    assert {"inputs-reversed", "clip-elementwise", "adam-epsilon", "state-of-ones"} <= everywhere
    where = {
        "gates-igfo": {"lstm", "tied", "awd-lstm", "char-lstm"},
        "gru-without-reset": {"gru", "gru-before", "char-gru"},
        "gru-bias-outside": {"gru", "char-gru"},
        "rnn-relu": {"rnn", "char-rnn"},
        "tied-in-layout": {"tied", "awd-lstm"},
        "adam-lazy": set(MODELS) - {"tied", "awd-lstm"},
        "gradient-scaled": set(MODELS) - {"tied", "awd-lstm"},
        "weight-drop-unscaled": {"awd-lstm"},
        "state-layers-swapped": set(MODELS) - {"awd-lstm", "char-rnn", "char-gru"},
    }
    assert {n: {m for m in MODELS if n in reached[m]} for n in where} == where


def test_what_is_another_in_a_model_is_so_there_alone():
    fault = CATALOGUE["dropout-unscaled"]
    assert within(fault, "awd-lstm").tensor == ("forward/embedding",)
    assert within(fault, "gru").tensor == fault.tensor
    assert within(CATALOGUE["dropout-first-mask"], "awd-lstm") is None
    assert within(CATALOGUE["clip-per-tensor"], "char-rnn").settings == {"clip_limit": "0.2"}


# Planting.


@pytest.mark.parametrize("name", CATALOGUE)
def test_a_fault_shows_first_where_and_when_the_catalogue_says_and_nowhere_else(shelf, name):
    fault = CATALOGUE[name]
    step = shelf.bites(fault)
    for faulty, clean in shelf.follow(fault, step, other=False):
        check(fault, unequal(faulty, clean), step)


@pytest.mark.parametrize("name", some(CATALOGUE, fast=list(CATALOGUE)[::3]))
def test_a_fault_of_one_twin_is_over_the_tolerance_of_the_other(shelf, name):
    fault = CATALOGUE[name]
    step = shelf.bites(fault)
    # From the step before: some faults remember it.
    for faulty, clean in shelf.follow(fault, step, other=True, start=max(1, step - 1)):
        check(fault, too_far(faulty, clean), step)


@pytest.mark.parametrize("name", PAIRS)
def test_faults_planted_together_show_each_at_its_own_place(shelf, name):
    both = CATALOGUE[name]
    parts = [
        CATALOGUE[part]._replace(settings=both.settings, tokens=both.tokens, steps=both.steps)
        for part in both.parts
    ]
    parts[0] = parts[0]._replace(bites=both.bites)
    steps = [shelf.bites(part) for part in parts]
    for faulty, clean in shelf.follow(both, max(steps), other=True):
        found = too_far(faulty, clean)
        for part, step in zip(parts, steps, strict=True):
            own = [(s, t) for s, t in found if matches(t, part.tensor)]
            assert own, part.name
            assert own[0][0] == step


@pytest.mark.parametrize("settings", SETTINGS)
def test_none_of_these_tests_passes_where_the_replacements_do_nothing(shelf, settings):
    alike = [f for f in CATALOGUE.values() if run_of(f) == settings]
    steps = [shelf.bites(fault) for fault in alike]
    harmless = shelf.follow(
        alike[0],
        max(steps),
        other=False,
        start=min(steps),
        names=tuple(dict.fromkeys(n for fault in alike for n in planted_names(fault.name))),
        function=train_with_harmless_replacements,
    )
    for faulty, clean in harmless:
        found = unequal(faulty, clean)
        for fault, step in zip(alike, steps, strict=True):
            with pytest.raises(AssertionError, match=f"{fault.name} changes nothing"):
                check(fault, found, step)


@pytest.mark.parametrize("name", REMEMBERING)
def test_a_fault_starts_afresh_and_leaves_the_twin_as_it_was(shelf, name):
    fault = CATALOGUE[name]
    step = shelf.bites(fault)
    first = [unequal(*pair) for pair in shelf.follow(fault, step, other=False)]
    again = [unequal(*pair) for pair in shelf.follow(fault, step, other=False)]
    assert all(first)
    assert again == first
    labels = [f"{worker.twin}-after" for worker in shelf.workers]
    shelf.run(twin_calls.train, [shelf.spec(fault, label, min(step, 2)) for label in labels])
    for a, b in zip(labels, shelf.clean_for(fault), strict=True):
        assert unequal(open_trace(shelf.path(a)), open_trace(shelf.path(b))) == []


def test_faults_are_taken_out_of_a_run_that_fails(pt, tf):
    names = [name for name in CATALOGUE if name not in PAIRS]
    for during, after in at_once((pt, tf), planting, [(names,)] * 2):
        assert len(during) > 20
        assert after == []
