"""From what is asked for to what each side is told to do, and the files that all are given."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from harness.data import corpus as corpora
from harness.data import weights as weights_files
from harness.errors import HarnessError
from harness.faults.catalogue import planted_names, reaches
from harness.models.faults import CATALOGUE
from harness.observer import Observer
from harness.runs.checkpoints import restartable, with_checkpoints
from harness.runs.processes import processors
from harness.runs.request import Computation, Request, SideRequest, parse_shared_settings
from harness.spec import (
    AnyRun,
    ModelSpec,
    RunSpec,
    ScriptSpec,
    TrainSpec,
    build,
    override,
    preset,
    replace,
)

DEFAULT_MODEL = "zaremba-small"
HEARD = ("dtype", "seed")  # the settings that scripts are told
TOKENS, DEVICE = "word", "cpu"  # what is asked for where nothing is


class Prepared(NamedTuple):
    """What each side is to do, and the corpus (None: scripts have their own)."""

    runs: list[AnyRun]
    corpus: corpora.Corpus | None

    @property
    def entropy(self) -> float | None:
        """That of the corpus in nats per token, where it is known."""
        return self.corpus.entropy if self.corpus else None


def prepare(request: Request, watcher: Observer) -> Prepared:
    """Write the files that the sides are given; what each is to do, checked before any starts.

    Raises HarnessError for whatever of the request cannot be done.
    """
    _make_folder(request.output.folder)
    twins = [side for side in request.sides if not side.side.script]
    if not twins:
        _refuse_what_twins_take(request)
    elif len(twins) == len(request.sides) and request.output.depth != "modules":
        raise HarnessError(
            f"--depth {request.output.depth}: no side is a script; twins trace what their model has"
        )
    _check_hand_over(request)
    found = _prepare_twins(request, twins, watcher) if twins else Prepared([], None)
    by_label: dict[str, AnyRun] = {run.label: run for run in found.runs}
    for side in request.sides:
        if side.side.script:
            by_label[side.side.label] = _script_spec(side, request)
    runs = [by_label[side.side.label] for side in request.sides]
    return Prepared(_whole_where_mapped(runs, request), found.corpus)


def _whole_where_mapped(runs: Sequence[AnyRun], request: Request) -> list[AnyRun]:
    """The runs, with what a map is searched by, and what is handed over, stored at any level."""
    if request.output.capture.level == "full" or not any(isinstance(r, ScriptSpec) for r in runs):
        return list(runs)
    handed = ("inputs/",) if "inputs" in request.execution.hand_over else ()
    *others, leader = (msgspec.structs.replace(run, whole=()) for run in runs)
    return [*others, msgspec.structs.replace(leader, whole=handed)]


def _refuse_what_twins_take(request: Request) -> None:
    """Raise HarnessError for what no script would ever hear of."""
    computation = request.computation
    given = {f"--set {name}": True for name in computation.settings if name not in HEARD}
    given |= {
        "--model": computation.model is not None,
        "--weights": computation.weights is not None,
        "--data": computation.data is not None,
        "--tokens": computation.tokens != TOKENS,
        "--device": request.execution.device != DEVICE,
    }
    option = next((option for option, there in given.items() if there), None)
    if option:
        raise HarnessError(
            f"{option}: no side is a twin, and scripts are told of {' and '.join(HEARD)} alone; "
            'give a script arguments of its own: --side "train.py --lr 0.1"'
        )


def _check_hand_over(request: Request) -> None:
    """Raise HarnessError where nobody would be handed anything."""
    handed = request.execution.hand_over
    scripts = [side.side.label for side in request.sides if side.side.script]
    option = f"--hand-over {','.join(handed)}"
    if handed and not scripts:
        raise HarnessError(
            f"{option}: no side is a script, and twins start from the same already: leave it out"
        )
    *others, leader = (side.side.label for side in request.sides)
    if set(handed) - {"masks"} and not set(scripts) & set(others):
        raise HarnessError(
            f"{option}: nothing would be handed over: scripts get it from the last side, "
            f"{leader}, and no other side is a script: add a --side before it, or leave "
            "--hand-over out"
        )


def _script_spec(side: SideRequest, request: Request) -> ScriptSpec:
    """What a script is to do."""
    computation, output, judging = request.computation, request.output, request.judging
    if computation.trace == "all":
        raise HarnessError("--trace all: a script has no epochs that are known: give a number")
    dtype = computation.settings.get("dtype")
    return build(
        ScriptSpec,
        label=side.side.label,
        argv=side.side.script,
        steps=computation.trace,
        trace=str(output.folder / f"{side.side.label}.trace"),
        dtype=dtype,
        capture=with_checkpoints(
            output.capture, computation.trace, judging.zoom, judging.follow is not None
        ),
        queue=output.queue,
        threads=_threads(request),
        depth=output.depth,
    )


def _threads(request: Request) -> int:
    return request.execution.threads or max(1, processors() // len(request.sides))


def _prepare_twins(request: Request, sides: Sequence[SideRequest], watcher: Observer) -> Prepared:
    """The same of the twins among the sides."""
    computation, output, judging = request.computation, request.output, request.judging
    corpus = corpora.load(computation.data, computation.tokens)
    watcher.note(corpora.describe(corpus))
    model, train = _specs(computation, corpus, _needed_settings(sides))
    steps = computation.trace
    if steps == "all":
        steps = corpora.Batches(corpus.train, train, corpus.eos).steps_per_epoch
    capture = with_checkpoints(output.capture, steps, judging.zoom, judging.follow is not None)
    common = {
        "steps": steps,
        "capture": capture,
        "device": request.execution.device,
        "queue": output.queue,
        "threads": _threads(request),
        "eos": corpus.eos,
    }
    common["weights"] = str(
        _weights_file(computation.weights, model, train, output.folder, watcher)
    )
    common |= _text_files(corpus, output.folder)
    runs = [_run_spec(side, model, train, output.folder, common) for side in sides]
    _check_lengths(runs, corpus)
    whole = restartable(runs, _restarting_option(request), watcher)
    return Prepared(list(whole), corpus)


def model_for(
    model: str | None, data: str | Path | None, tokens: str, settings: Sequence[str]
) -> ModelSpec:
    """The model that a preset, a corpus and settings describe, as a run of them would have it."""
    shared = parse_shared_settings(settings)
    computation = Computation(1, model, None, data, tokens, shared)
    return _specs(computation, corpora.load(data, tokens), {})[0]


def _needed_settings(sides: Iterable[SideRequest]) -> dict[str, str]:
    """The settings that planted faults need to be exercised."""
    names = [name for side in sides for name in side.faults]
    return {key: value for name in names for key, value in CATALOGUE[name].needed.items()}


def _specs(
    computation: Computation, corpus: corpora.Corpus, needed: Mapping[str, str]
) -> tuple[ModelSpec, TrainSpec]:
    """The specs that all sides share, before the settings of one; `needed` where none are given."""
    vocabulary = len(corpus.vocabulary)
    model, train = preset(computation.model or DEFAULT_MODEL, vocabulary)
    weights = computation.weights
    if weights is not None:
        sizes = weights_files.describe_model(weights)
        if sizes.vocab_size < vocabulary:
            raise HarnessError(
                f"{weights}: weights for a vocabulary of {sizes.vocab_size}, and the corpus "
                f"{corpus.name} has {vocabulary}: make them with harness weights init --data"
            )
        fields: dict[str, Any] = {"vocab_size": sizes.vocab_size}
        if computation.model is None:
            fields |= {
                "embed_size": sizes.embed_size,
                "hidden_size": sizes.hidden_size,
                "num_layers": sizes.num_layers,
                "network": sizes.network,
                "tied": sizes.tied,
            }
        model = replace(model, **fields)
    return override(model, train, {**needed, **computation.settings})


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise HarnessError(f"--out {folder}: cannot be made: {error}") from None


def _weights_file(
    path: str | Path | None,
    model: ModelSpec,
    train: TrainSpec,
    folder: Path,
    watcher: Observer,
) -> Path:
    """The file of weights that all sides read, checked, or drawn and saved."""
    if path is not None:
        weights_files.load(path, model)
        return Path(path)
    target = folder / "weights.npz"
    weights_files.save(weights_files.draw(model, train.seed), target)
    watcher.note(f"weights drawn from seed {train.seed}: {target}")
    return target


def _text_files(corpus: corpora.Corpus, folder: Path) -> dict[str, str]:
    """Save the texts; their paths by field of a RunSpec."""
    texts = {"tokens": corpus.train, "valid": corpus.valid}
    paths = {name: folder / f"{name}.npy" for name in texts}
    for name, path in paths.items():
        corpora.save_tokens(texts[name], path)
    return {name: str(path) for name, path in paths.items()}


def _run_spec(
    request: SideRequest, model: ModelSpec, train: TrainSpec, folder: Path, common: dict[str, Any]
) -> RunSpec:
    """What one side is to do."""
    own_model, own_train = override(model, train, request.settings)
    label = request.side.label
    for name in request.faults:
        if not reaches(CATALOGUE[name], own_model, own_train):
            raise HarnessError(
                f"--fault {label}:{name}: this model ({own_model.network}) has nothing that it is "
                "a fault of; harness faults list --json says of what blocks and tensors each is"
            )
    return build(
        RunSpec,
        label=label,
        model=own_model,
        train=own_train,
        trace=str(folder / f"{label}.trace"),
        final=str(folder / f"{label}.npz"),
        faults=tuple(part for name in request.faults for part in planted_names(name)),
        **common,
    )


def _check_lengths(runs: Iterable[RunSpec], corpus: corpora.Corpus) -> None:
    """Raises HarnessError where a text is too short for the batches of a run."""
    for run in runs:
        corpora.Batches(corpus.train, run.train, corpus.eos)  # refuses one that is too short
        short = corpora.evaluation_batches(corpus.valid, run.train) is None
        if short and run.train.schedule == "plateau":
            raise HarnessError(
                f"schedule=plateau needs a validation text of "
                f"{run.train.batch_size * (run.train.bptt + 1)} tokens; {corpus.name} has "
                f"{len(corpus.valid)}"
            )


def _restarting_option(request: Request) -> str:
    """The option that needs all that a restart needs to be traced, or ""."""
    if request.judging.zoom:
        return "--zoom"
    if request.judging.follow:
        return "--follow"
    every = request.output.capture.checkpoint_every
    return f"--checkpoint-every {every}" if every else ""
