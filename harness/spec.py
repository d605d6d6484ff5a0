"""What a run computes: the model, its training, and one side's share of it. Frozen and validated.

What a model consists of follows from its row (harness.models.table).
"""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from harness.errors import HarnessError
from harness.models.spec import ModelSpec as ModelSpec
from harness.models.spec import Positive, PositiveFloat, Probability
from harness.models.table import PRESETS, check_fields, fields_of

Dtype = Literal["float32", "float64"]
Optimizer = Literal["sgd", "momentum", "adam", "rmsprop", "adagrad"]
Level = Literal["full", "stats", "hash"]
Depth = Literal["modules", "ops"]  # what of a script is a point

# What a run can start again from: the first parts of the names of the tensors that hold it.
CHECKPOINT = ("params/", "optimizer/", "state/out/")
STATE = (*CHECKPOINT, "buffers/")  # buffers are what only scripts have

LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
S = TypeVar("S", bound=msgspec.Struct)


class TrainSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the model is trained: batches, loss, clipping, optimizer and schedule.

    `lr` is divided by `lr_decay` once for every epoch after the first `flat_epochs`, or, with
    schedule="plateau", once for every epoch that did not better the validation loss.
    `clip_limit` is the largest global norm (clip="global_norm") or the largest absolute value of
    one element (clip="elementwise"). `loss` says what happens along time; along the batch the loss
    is always averaged. `shuffle` shuffles the sentences of the corpus once, by `seed`.
    Of the settings of optimizers, `momentum` is read by momentum, `beta1` and `beta2` by Adam,
    `rho` by RMSprop, and `epsilon` (added to the root) by Adam, RMSprop and Adagrad.
    `weight_decay` is added to the gradient as weight_decay * p, or, where `decoupled`, taken off
    the weights as lr * weight_decay * p.
    How a step is computed, and not what: `compile` hands it to the framework's compiler
    (torch.compile, XLA); `autograd` takes the framework's own back-propagation in place of the
    derivatives that the twin has written out.
    """

    batch_size: Positive = 20
    bptt: Positive = 20
    lr: PositiveFloat = 1.0
    flat_epochs: Annotated[int, msgspec.Meta(ge=0)] = 4
    lr_decay: PositiveFloat = 2.0
    schedule: Literal["fixed", "plateau"] = "fixed"
    clip: Literal["global_norm", "elementwise", "none"] = "global_norm"
    clip_limit: PositiveFloat = 5.0
    loss: Literal["sum", "mean"] = "sum"
    optimizer: Optimizer = "sgd"
    momentum: Probability = 0.9
    beta1: Probability = 0.9
    beta2: Probability = 0.999
    rho: Probability = 0.99
    epsilon: Annotated[float, msgspec.Meta(ge=0, le=1)] = 1e-8
    weight_decay: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0
    decoupled: bool = False
    shuffle: bool = False
    dtype: Dtype = "float32"
    seed: Annotated[int, msgspec.Meta(ge=0, lt=2**62)] = 1
    compile: bool = False
    autograd: bool = False


class Capture(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which steps and which tensors a trace holds, and how much of each. Globs match whole names.

    A step is traced if it lies in first..last (both included; last None means no end) and is the
    first of every `every`. A tensor is traced if a glob of `include` matches (none means all) and
    none of `exclude` does.

    `level` is how much of a tensor is kept: "full" all of it; "stats" its hash, statistics and
    sketch; "hash" its hash alone. At the levels that keep no tensors, every step that is a multiple
    of `checkpoint_every` keeps in full what a run can start again from (STATE).
    """

    level: Level = "full"
    checkpoint_every: Positive | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    every: Positive = 1
    first: Positive = 1
    last: Positive | None = None

    def keeps(self, step: int, name: str) -> bool:
        """Whether the elements of a traced tensor are stored, not only what is known of them."""
        if self.level == "full":
            return True
        if self.checkpoint_every is None or step % self.checkpoint_every:
            return False
        return name.startswith(STATE)

    def wants_step(self, step: int) -> bool:
        """Whether a step is to be traced, or compared."""
        if step < self.first or (self.last is not None and step > self.last):
            return False
        return (step - self.first) % self.every == 0

    def wants(self, name: str) -> bool:
        """Whether a tensor of this name is."""
        included = not self.include or any(fnmatchcase(name, glob) for glob in self.include)
        return included and not any(fnmatchcase(name, glob) for glob in self.exclude)


class Follow(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Another side's trace that a run follows.

    Every step starts from the weights, optimizer slots and hidden state that `trace` holds of the
    step before. At level "stage", every stage of the step is also given that side's input.
    `map` is the file that says which of its tensors are whose (None: names are the same); it leads
    from that side to this one, or, `reverse`, from this one to that. A script that follows stages
    goes on with its own where a glob of `exclude` matches.
    """

    trace: str
    level: Literal["step", "stage"] = "step"
    map: str | None = None
    reverse: bool = False
    exclude: tuple[str, ...] = ()


Handed = Literal["weights", "inputs", "masks"]


class HandOver(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a script is handed: by `trace`, which may be of another side (`map` as in Follow).

    "weights": parameters and buffers before the first step; "inputs": those of each step; "masks":
    what dropout keeps is drawn by `seed` (harness.data.randomness), the same on every side.
    """

    what: tuple[Handed, ...]
    trace: str | None = None
    map: str | None = None
    reverse: bool = False
    seed: int = 1


class Resume(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a run starts again: after `step` of `trace`, which keeps what it needs (CHECKPOINT)."""

    trace: str
    step: Positive


class Disturbance(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A planted disturbance: at one step, part of one trace point is multiplied by 1 + size.

    `index` has an entry for each axis of the tensor as it is traced ([B, T, ...]): a number, or
    None for all of that axis.
    """

    step: Positive
    tensor: str
    index: tuple[int | None, ...]
    size: float


class Training(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A run that trains to the end and traces nothing.

    `test` is the text that it is tested on (.npy); `checkpoint` the file that keeps where it has
    come to, after every `every` steps and every epoch. One that begins after step 1 goes on there.
    Without a checkpoint nothing is kept, neither the weights.
    """

    test: str | None = None
    checkpoint: str | None = None
    every: Positive = 1


class RunSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One side of a run, as handed to its process: what to compute, from which files, into which.

    `eos` is the token that ends a sentence (None in a corpus that has none); `tokens` and `valid`
    the training and validation texts as int32 [N] in .npy files; `final` is where the weights go
    after the last step. `faults` are planted (harness.faults); a run that follows a trace, or that
    starts again from one (`resume`), may begin at a later step, `start`. `queue` bounds the bytes
    that wait to be written to the trace while the run goes on. `whole`: as in ScriptSpec.
    `training`: it is to be trained, and not traced.
    """

    label: str
    model: ModelSpec
    train: TrainSpec
    steps: Positive
    weights: str
    tokens: str
    valid: str
    trace: str
    final: str
    eos: int | None = None
    capture: Capture = Capture()
    device: Literal["cpu", "gpu"] = "cpu"
    threads: Positive = 1
    start: Positive = 1
    follow: Follow | None = None
    disturb: Disturbance | None = None
    faults: tuple[str, ...] = ()
    resume: Resume | None = None
    queue: Positive = 1 << 30
    whole: tuple[str, ...] | None = None
    training: Training | None = None

    def keeps(self, step: int, name: str) -> bool:
        """Whether the elements of a traced tensor are stored."""
        return self.capture.keeps(step, name) or _whole(self.whole, step, name)


class ScriptSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One run of a script, as its process is told: which steps, in what dtype, from what, where to.

    `argv` is the script and its arguments. `dtype` None is the script's own. `replay` is what it is
    handed. It goes through all steps; nothing is traced of those before `start`, at which one that
    follows begins to, and one with `resume` is given the weights, buffers and slots that are kept
    there. `whole`: the first step is stored in full, and at each step what begins so (None: what
    `capture` says), as scripts are mapped to one another, and handed, what is stored. `depth`:
    whether operations between modules are points of their own.
    """

    label: str
    argv: tuple[str, ...]
    steps: Positive
    trace: str
    dtype: Dtype | None = None
    capture: Capture = Capture()
    threads: Positive = 1
    start: Positive = 1
    follow: Follow | None = None
    replay: tuple[HandOver, ...] = ()
    resume: Resume | None = None
    queue: Positive = 1 << 30
    whole: tuple[str, ...] | None = None
    depth: Depth = "modules"

    def keeps(self, step: int, name: str) -> bool:
        """Whether the elements of a traced tensor are stored."""
        return self.capture.keeps(step, name) or _whole(self.whole, step, name)


AnyRun = RunSpec | ScriptSpec  # of a twin, or of a script


def _whole(first: tuple[str, ...] | None, step: int, name: str) -> bool:
    return first is not None and (step == 1 or name.startswith(first))


def preset(name: str, vocab_size: int) -> tuple[ModelSpec, TrainSpec]:
    """The model and training of a published model over a vocabulary of `vocab_size` tokens."""
    if name not in PRESETS:
        raise HarnessError(f"no model named {name!r}; there are: {', '.join(PRESETS)}")
    model, train = PRESETS[name]
    return build(ModelSpec, vocab_size=vocab_size, **model), build(TrainSpec, **train)


def build(kind: type[S], **fields: Any) -> S:
    """A validated spec of `kind`. Raises HarnessError that names the field, value and rule."""
    try:
        return msgspec.convert(fields, kind, strict=False)
    except msgspec.ValidationError as error:
        raise HarnessError(f"{kind.__name__}: {_explain(kind, fields, error)}") from None


def replace(spec: S, **fields: Any) -> S:
    """`spec` with some fields changed and all of it validated again."""
    return build(type(spec), **{**msgspec.structs.asdict(spec), **fields})


def _explain(kind: type[msgspec.Struct], fields: dict[str, Any], error: Exception) -> str:
    """The sentence of a validation error, with the value that broke the rule in it."""
    text = str(error)
    found = re.search(r"`\$\.(\w+)`", text)
    if found and found[1] in fields:
        rule = text.split(" - at ")[0]
        return f"{found[1]}={fields[found[1]]!r}: {rule}"
    if "unknown field" in text:
        return f"{text}; fields: {', '.join(kind.__struct_fields__)}"
    return text


def field_names() -> tuple[str, ...]:
    """Every name that `--set NAME=VALUE` takes for one model or another."""
    return ModelSpec.__struct_fields__ + TrainSpec.__struct_fields__


def override(
    model: ModelSpec, train: TrainSpec, settings: dict[str, str]
) -> tuple[ModelSpec, TrainSpec]:
    """`model` and `train` with `settings` (field name to text) applied to whichever has the field.

    Raises HarnessError for a name that neither this model nor its training has, and for a value
    outside what the field allows.
    """
    network = settings.get("network", model.network)
    known = (*fields_of(network), *TrainSpec.__struct_fields__)
    for name in settings:
        if name not in known:
            model_has = f"no setting named {name!r}"
            if name in ModelSpec.__struct_fields__:
                model_has = f"{name}: the model {network} has no such field"
            raise HarnessError(f"{model_has}; there are: {', '.join(sorted(known))}")
    own = {k: v for k, v in settings.items() if k in ModelSpec.__struct_fields__}
    rest = {k: v for k, v in settings.items() if k not in own}
    changed = replace(model, **own)
    check_fields(changed)
    return changed, replace(train, **rest)


def settings_of(run: RunSpec) -> dict[str, Any]:
    """What a run computes, as plain values: "model.hidden_size", "train.lr" and so on."""
    return {
        f"{part}.{name}": value
        for part, spec in (("model", run.model), ("train", run.train))
        for name, value in msgspec.to_builtins(spec).items()
    }


def check_label(label: str) -> str:
    """`label` itself if it can name a side and its files; HarnessError otherwise."""
    if not LABEL.fullmatch(label):
        raise HarnessError(
            f"{label!r} cannot name a side: letters, digits, '-', '_' and '.', not first a sign"
        )
    return label


def save_run(run: AnyRun, path: Path) -> None:
    """Write `run` as JSON to `path`: what a side's process is started with."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(run), indent=2) + b"\n")


def load_run(path: str | Path) -> RunSpec:
    """The run of a twin that `save_run` wrote. Raises HarnessError that names file and fault."""
    return _load(path, RunSpec)


def load_script(path: str | Path) -> ScriptSpec:
    """The run of a script that `save_run` wrote. Raises HarnessError that names file and fault."""
    return _load(path, ScriptSpec)


def _load(path: str | Path, kind: type[S]) -> S:
    try:
        return msgspec.json.decode(Path(path).read_bytes(), type=kind)
    except (OSError, msgspec.MsgspecError, RecursionError) as error:
        raise HarnessError(f"{path}: not a run specification: {error}") from None
