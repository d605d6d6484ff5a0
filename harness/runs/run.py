"""A run: sides from the same weights on the same data, in a process each; diff and verdict."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from itertools import combinations
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from harness.compare import DiffResult, Tolerance, diff
from harness.data import corpus as corpora
from harness.data import weights as weights_files
from harness.errors import HarnessError
from harness.explain import Evidence, Following, Verdict, judge
from harness.faults.catalogue import CATALOGUE, planted_names
from harness.observer import Observer
from harness.runs.investigation import Investigation
from harness.runs.processes import TWINS, Job
from harness.runs.session import Session, Side
from harness.runs.zoom import Zoom, require_zoomable, restartable
from harness.runs.zoom import zoom as zoom_in
from harness.spec import (
    Capture,
    Follow,
    ModelSpec,
    RunSpec,
    TrainSpec,
    build,
    check_label,
    override,
    preset,
    replace,
)

DEFAULT_MODEL = "zaremba-small"
QUEUE = 1 << 30  # bytes of a side's tensors that may wait to be written
CHECKPOINTS = 5  # a run that keeps no tensors has one fewer, evenly spread


class RunResult(msgspec.Struct, frozen=True):
    """What a run left: trace folders and losses by side; diff and verdict (None with one side).

    `valid` has the validation loss of every finished epoch, in nats per token; `entropy` the least
    that any model can reach, where it is known. With three sides `diff` is the first that diverged
    from the reference, and `pairs` the status of every pair, as in "pt|np". Where `zoom` is there,
    `diff` and `verdict` are those of the full traces around the step that decides.
    """

    traces: dict[str, str]
    losses: dict[str, list[float]]
    valid: dict[str, list[float]]
    entropy: float | None
    diff: DiffResult | None
    verdict: Verdict | None = None
    pairs: dict[str, str] = {}
    zoom: Zoom | None = None

    def exit_code(self, strict: bool = False) -> int:
        """The verdict's, or without one the diff's; 1 where another pair parts unjudged."""
        if self.verdict is None:
            return 0 if self.equivalent else 1
        judged = "|".join(self.diff.labels) if self.diff else ""
        others = [status for pair, status in self.pairs.items() if pair != judged]
        parted = any(status not in ("identical", "close") for status in others)
        return 1 if parted else self.verdict.exit_code(strict)

    @property
    def equivalent(self) -> bool:
        """Whether no pair of sides differs, and no fault was found in following."""
        if self.verdict and self.verdict.label in ("bug", "precision"):
            return False
        return all(status in ("identical", "close") for status in self.pairs.values())


class _Asked(NamedTuple):
    """A side as asked for, with the settings that only it has and the faults planted in it."""

    side: Side
    settings: dict[str, str]
    faults: tuple[str, ...]


def run_sides(
    *,
    trace: int | Literal["all"] = 10,
    sides: Sequence[str] = ("pt", "tf"),
    weights: str | Path | None = None,
    data: str | Path | None = None,
    tokens: str = "word",
    model: str | None = None,
    settings: Sequence[str] = (),
    faults: Sequence[str] = (),
    pythons: Sequence[str] = (),
    out: str | Path = "traces",
    capture: Capture | None = None,
    zoom: bool = False,
    queue: int = QUEUE,
    device: Literal["cpu", "gpu"] = "cpu",
    threads: int | None = None,
    sequential: bool = False,
    follow: Literal["step", "stage"] | None = None,
    verdict: bool | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    all: bool = False,
    observer: Observer | None = None,
) -> RunResult:
    """Run one to three sides for `trace` steps from the same weights, trace, compare and judge.

    Args:
        trace: optimizer steps; "all" is one epoch.
        sides: "pt", or "LABEL=pt"; the last one is the reference.
        weights: a file of weights; None draws them from the seed and saves them in `out`.
        data, tokens: a corpus and how to read it (`harness.data.corpus.load`); None: the built-in.
        model: a preset's name; None takes the sizes of `weights`, or else zaremba-small.
        settings, faults, pythons: "name=value" for all sides, "LABEL:name=value" for one;
            "LABEL:NAME" of faults to plant (what they need is set for all); "LABEL=PATH".
        out: the folder for traces, logs, and the files that the sides are given.
        capture, device, threads: what to trace, where to run, and threads a side (None: a share).
        zoom, queue: look closely where the traces part; bytes that may wait to be written.
        sequential: one side after the other.
        follow, verdict: start each "step" or "stage" from the reference's; judge (None: at need).
        rtol, atol, all, observer: as for `harness.diff`; told about progress.
    Raises HarnessError for bad input and for a side that failed (the other's trace stays).
    """
    watcher = observer or Observer()
    tolerance = Tolerance.given(rtol, atol)  # refused now, not after the run
    asked = _parse_sides(sides, settings, pythons, faults)
    folder, corpus = Path(out), corpora.load(data, tokens)
    watcher.note(describe_corpus(corpus))
    specs = _specs(model, weights, corpus, _needed(asked) | _shared(settings))
    if trace == "all":
        trace = corpora.Batches(corpus.train, specs[1], corpus.eos).steps_per_epoch
    wanted = _capture(capture or Capture(), trace, zoom, follow)
    common = {"steps": trace, "capture": wanted, "device": device, "queue": queue}
    common |= {"threads": threads or max(1, _processors() // len(asked))}
    runs = _prepare(asked, specs, weights, corpus, folder, common, watcher)
    runs = restartable(runs, capture, "--zoom" if zoom else "--follow" if follow else "", watcher)
    with Session([one.side for one in asked], folder, watcher) as session:
        result = _conclude(session, runs, (follow, verdict, sequential, zoom), tolerance, all)
    _tell_of_faults(asked, result, trace, watcher)
    return msgspec.structs.replace(result, entropy=corpus.entropy)


def _conclude(
    session: Session,
    runs: list[RunSpec],
    how: tuple[str | None, bool | None, bool, bool],
    tolerance: Tolerance,
    all: bool,
) -> RunResult:
    """Run, compare and judge."""
    follow, verdict, sequential, zooms = how
    runs, jobs = _run(session, runs, follow, sequential)
    if follow == "stage" and tolerance.rule == "default":
        tolerance = Tolerance.local()
    found = _compare(runs, tolerance, all or follow is not None, session.watcher)
    chosen = next((d for d in found.values() if not d.equivalent), None)
    chosen = chosen or next(iter(found.values()), None)
    judged, zoomed = None, None
    if chosen and zooms:
        zoomed = zoom_in(session, _pair(runs, chosen), chosen)
    if zoomed:
        chosen, judged = zoomed.diff, zoomed.verdict
    elif chosen and verdict is not False:
        judged = _judge(session, runs, chosen, follow, always=bool(verdict))
    return RunResult(
        {run.label: run.trace for run in runs},
        {run.label: jobs[run.label].losses for run in runs},
        {run.label: jobs[run.label].valid for run in runs},
        None,
        chosen,
        judged,
        {f"{a}|{b}": d.status for (a, b), d in found.items()},
        zoomed.zoom if zoomed else None,
    )


def _tell_of_faults(asked: list[_Asked], result: RunResult, steps: int, watcher: Observer) -> None:
    """A planted fault that did not show is told of, with when it would."""
    for one in asked if result.equivalent else ():
        for name in one.faults:
            watcher.note(
                f"{name} was planted in {one.side.label} and does not show in {steps} steps; it "
                f"bites at: {CATALOGUE[name].bites} (norm, limit and rate are --set clip_limit, lr)"
            )


def _run(
    session: Session, runs: list[RunSpec], follow: str | None, sequential: bool
) -> tuple[list[RunSpec], dict[str, Job]]:
    """Run every side to its end; what follows the reference runs after it."""
    if follow is None:
        return runs, session.run_all([(run.label, run) for run in runs], sequential)
    leader = runs[-1]
    spec = Follow(leader.trace, "stage" if follow == "stage" else "step")
    others = [msgspec.structs.replace(run, follow=spec) for run in runs[:-1]]
    jobs = session.run_all([(leader.label, leader)])
    jobs |= session.run_all([(run.label, run) for run in others], sequential)
    return [*others, leader], jobs


def _compare(
    runs: list[RunSpec], tolerance: Tolerance, all: bool, watcher: Observer
) -> dict[tuple[str, str], DiffResult]:
    """The diff of every pair of sides, those with the reference first."""
    pairs = [(run, runs[-1]) for run in runs[:-1]] + list(combinations(runs[:-1], 2))
    found = {}
    for a, b in pairs:
        told = watcher.part("diff" if len(pairs) == 1 else f"diff {a.label} {b.label}")
        found[a.label, b.label] = diff(
            a.trace, b.trace, tolerance=tolerance, all=all, progress=told
        )
    return found


def _judge(
    session: Session, runs: list[RunSpec], found: DiffResult, follow: str | None, always: bool
) -> Verdict:
    """The verdict on one pair, from what there is or from further runs."""
    if follow == "stage":
        single = (Following("a", found),)
        wide = runs[-1].train.dtype == "float64"
        return judge(Evidence(found, narrow=() if wide else single, wide=single if wide else ()))
    pair = _pair(runs, found)
    if pair[1].capture.level != "full":
        line = (
            f"nothing was run again, as --level {pair[1].capture.level} keeps no tensors: --zoom, "
            f"or harness zoom {pair[0].trace} {pair[1].trace}, looks closely at where traces of "
            "level stats part"
        )
        return judge(Evidence(found, lacking=() if found.equivalent else (line,)))
    if found.equivalent and not always:
        return judge(Evidence(found))
    return Investigation(session, pair, found).verdict()


def _pair(runs: list[RunSpec], found: DiffResult) -> tuple[RunSpec, RunSpec]:
    """The runs that a diff is of."""
    by_label = {run.label: run for run in runs}
    return by_label[found.labels[0]], by_label[found.labels[1]]


def _capture(wanted: Capture, steps: int, zoom: bool, follow: str | None) -> Capture:
    """What to trace, with checkpoints to start again from where tensors are not kept."""
    if zoom:
        require_zoomable(wanted)
    if wanted.level == "full":
        return wanted
    if follow:
        raise HarnessError(
            f"--follow --level {wanted.level}: what is followed must be kept: use --level full"
        )
    # Few: of the small model over PTB, each is as large as the statistics of 300 steps.
    every = wanted.checkpoint_every or steps // CHECKPOINTS + 1
    return msgspec.structs.replace(wanted, checkpoint_every=every)


def _processors() -> int:
    """How many processors this process may use; not every system can tell them from all."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _prepare(
    sides: list[_Asked],
    specs: tuple[ModelSpec, TrainSpec],
    weights: str | Path | None,
    corpus: corpora.Corpus,
    folder: Path,
    common: dict[str, Any],
    watcher: Observer,
) -> list[RunSpec]:
    """Make the files that the sides are given; what each is to do, checked before any starts."""
    _make_folder(folder)
    common |= {
        "weights": str(_weights(weights, *specs, folder, watcher)),
        "tokens": str(folder / "tokens.npy"),
        "valid": str(folder / "valid.npy"),
        "eos": corpus.eos,
    }
    corpora.save_tokens(corpus.train, folder / "tokens.npy")
    corpora.save_tokens(corpus.valid, folder / "valid.npy")
    runs = [_run_spec(side, *specs, folder, common) for side in sides]
    for run in runs:
        corpora.Batches(corpus.train, run.train, corpus.eos)  # is the text long enough?
        short = corpora.evaluation_batches(corpus.valid, run.train) is None
        if short and run.train.schedule == "plateau":
            raise HarnessError(
                f"schedule=plateau needs a validation text of "
                f"{run.train.batch_size * (run.train.bptt + 1)} tokens; {corpus.name} has "
                f"{len(corpus.valid)}"
            )
    return runs


def _run_spec(
    asked: _Asked, model: ModelSpec, train: TrainSpec, folder: Path, common: dict[str, Any]
) -> RunSpec:
    """What one side is to do."""
    own_model, own_train = override(model, train, asked.settings)
    label = asked.side.label
    return build(
        RunSpec,
        label=label,
        model=own_model,
        train=own_train,
        trace=str(folder / f"{label}.trace"),
        final=str(folder / f"{label}.npz"),
        faults=tuple(name for fault in asked.faults for name in planted_names(fault)),
        **common,
    )


def describe_corpus(corpus: corpora.Corpus) -> str:
    """A line about a corpus, with the best perplexity that any model can have where it is known."""
    sizes = " + ".join(f"{len(split):,}" for split in (corpus.train, corpus.valid, corpus.test))
    text = f"corpus {corpus.name}: {sizes} tokens, vocabulary {len(corpus.vocabulary):,}"
    if corpus.entropy is not None:
        text += (
            f", exact entropy {corpus.entropy:.6f} nats per token (no model's perplexity is below "
            f"{corpora.perplexity(corpus.entropy):.4f})"
        )
    return text


def _parse_sides(
    sides: Sequence[str],
    settings: Sequence[str],
    pythons: Sequence[str],
    faults: Sequence[str],
) -> list[_Asked]:
    labels: dict[str, str] = {}
    for text in sides:
        label, _, twin = text.rpartition("=")
        label = check_label(label or twin)
        if twin not in TWINS:
            raise HarnessError(
                f"--side {text}: no twin named {twin!r}; there are: {', '.join(TWINS)}"
            )
        if label in labels:
            raise HarnessError(
                f"--side {text}: two sides named {label!r}; name them: --side old={twin} "
                f"--side new={twin}"
            )
        labels[label] = twin
    if not 1 <= len(labels) <= 3:
        raise HarnessError(f"{len(labels)} sides: a run has one, two to compare, or three to vote")
    own: dict[str, list[str]] = {label: [] for label in labels}
    planted: dict[str, list[str]] = {label: [] for label in labels}
    for text in settings:
        label, colon, _ = text.split("=", 1)[0].partition(":")
        if colon:
            _known(label, labels, f"--set {text}")
            own[label].append(text[len(label) + 1 :])
    for text in faults:
        label, colon, name = text.partition(":")
        if not colon:
            raise HarnessError(
                f"--fault {text}: give LABEL:NAME; harness faults list has the names"
            )
        _known(label, labels, f"--fault {text}")
        if name not in CATALOGUE:
            near = ", ".join(get_close_matches(name, CATALOGUE, 3, 0.4)) or "harness faults list"
            raise HarnessError(f"--fault {text}: no fault named {name!r}; see {near}")
        planted[label].append(name)
    paths = {}
    for text in pythons:
        label, equals, path = text.partition("=")
        if not equals or not path:
            raise HarnessError(f"--python {text}: give LABEL=PATH")
        _known(label, labels, f"--python {text}")
        paths[label] = path
    return [
        _Asked(
            Side(label, twin, paths.get(label, sys.executable)),
            _settings(own[label]),
            tuple(planted[label]),
        )
        for label, twin in labels.items()
    ]


def _needed(sides: Iterable[_Asked]) -> dict[str, str]:
    """The settings that planted faults need to be exercised."""
    names = [name for side in sides for name in side.faults]
    return {key: value for name in names for key, value in CATALOGUE[name].needed.items()}


def _known(label: str, labels: dict[str, str], option: str) -> None:
    if label not in labels:
        raise HarnessError(f"{option}: no side named {label!r}; there are: {', '.join(labels)}")


def _settings(texts: Iterable[str]) -> dict[str, str]:
    """name=value texts as a dictionary; HarnessError for one that has no '='."""
    settings = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise HarnessError(f"--set {text}: give name=value, or LABEL:name=value for one side")
        settings[name] = value
    return settings


def model_for(
    model: str | None, data: str | Path | None, tokens: str, settings: Sequence[str]
) -> ModelSpec:
    """The model that a preset, a corpus and settings describe, as a run of them would have it."""
    return _specs(model, None, corpora.load(data, tokens), _shared(settings))[0]


def _shared(texts: Sequence[str]) -> dict[str, str]:
    """The settings that name no side."""
    return _settings(text for text in texts if ":" not in text.split("=", 1)[0])


def _specs(
    model: str | None,
    weights: str | Path | None,
    corpus: corpora.Corpus,
    settings: dict[str, str],
) -> tuple[ModelSpec, TrainSpec]:
    """The specs that both sides share, before the settings of one."""
    vocabulary = len(corpus.vocabulary)
    base_model, base_train = preset(model or DEFAULT_MODEL, vocabulary)
    if weights is not None:
        found = weights_files.describe_model(weights)
        if found.vocab_size < vocabulary:
            raise HarnessError(
                f"{weights}: weights for a vocabulary of {found.vocab_size}, and the corpus "
                f"{corpus.name} has {vocabulary}: make them with harness weights init --data"
            )
        sizes: dict[str, Any] = {"vocab_size": found.vocab_size}
        if model is None:
            sizes |= {
                "embed_size": found.embed_size,
                "hidden_size": found.hidden_size,
                "num_layers": found.num_layers,
                "network": found.network,
                "tied": found.tied,
            }
        base_model = replace(base_model, **sizes)
    return override(base_model, base_train, settings)


def _weights(
    path: str | Path | None,
    model: ModelSpec,
    train: TrainSpec,
    folder: Path,
    watcher: Observer,
) -> Path:
    """The file of weights that both sides read, checked, or drawn and saved."""
    if path is not None:
        weights_files.load(path, model)
        return Path(path)
    target = folder / "weights.npz"
    weights_files.save(weights_files.draw(model, train.seed), target)
    watcher.note(f"weights drawn from seed {train.seed}: {target}")
    return target


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise HarnessError(f"--out {folder}: cannot be made: {error}") from None
