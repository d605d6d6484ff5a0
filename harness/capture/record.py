"""`harness.record`: the steps of a script, written as a trace while it trains."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from harness.capture.adapter import Adapter, adapter_for
from harness.capture.ranks import which_rank
from harness.capture.replay import Replay
from harness.capture.step import Step, line, logged
from harness.capture.told import Told, told
from harness.errors import HarnessError
from harness.models.entries import Made
from harness.spec import Capture, Depth, Level, ScriptSpec, build
from harness.trace import TraceWriter
from harness.trace.ranks import KEY, rank_folder
from harness.trace.schema import HEADER_FILE

QUEUE = 1 << 30  # bytes of tensors that may wait to be written
DIRECTORY = "traces"
SAID = 2  # traced steps of which it is said how their tensors are made
LOSS, OBJECTIVE = "forward/loss", "forward/objective"


def record(
    *objects: Any,
    out: str | Path | None = None,
    label: str | None = None,
    level: Level = "full",
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    every: int = 1,
    steps: tuple[int, int | None] = (1, None),
    depth: Depth = "modules",
) -> Recorder:
    """Record the training steps of this script: inputs, activations, gradients, weights, slots.

    Args:
        objects: the model (or models) and its optimizers, of PyTorch, Keras or JAX.
        out: the trace to write; "traces/SCRIPT.trace" by default.
        label: what reports call this run; the script's name by default.
        level: how much is kept of a tensor: "full", "stats" or "hash".
        include, exclude, every, steps: which tensors (globs), and which steps.
        depth: "ops" to have operations between modules as points of their own.

    Use the recorder as a context manager. Where `harness run` started the script, that decides
    where to write, what, and when the script ends.

    Raises HarnessError for what cannot be recorded.

    Example:
        with harness.record(model, optimizer) as rec:
            for x, y in batches:
                with rec.step(x=x, y=y) as (x, y):
                    ...
                    rec.log(loss=loss)

    """
    rank, ranks = which_rank()
    asked = told(rank, ranks)
    if asked:
        return Recorder(adapter_for(objects), asked.run, asked, (rank, ranks))
    name = label or _script()
    first, last = steps
    capture = build(
        Capture, level=level, include=include, exclude=exclude, every=every, first=first, last=last
    )
    path = out if out is not None else Path(DIRECTORY) / f"{name}.trace"
    trace = _of_rank(path, rank) if ranks > 1 else str(path)
    argv, endless = tuple(sys.argv), 2**62
    run = build(
        ScriptSpec, label=name, argv=argv, steps=endless, trace=trace, capture=capture, depth=depth
    )
    return Recorder(adapter_for(objects), run, place=(rank, ranks))


def callback(*objects: Any, **options: Any) -> Any:
    """Record what a training loop of the framework's own does: a callback for it.

    Args:
        objects: the model; of Keras, a compiled one, and a LightningModule for a Trainer.
        options: those of `record`.

    Raises HarnessError for a framework that has no such loop.

    Example:
        model.fit(x, y, callbacks=[harness.callback(model)])
        Trainer(callbacks=[harness.callback(module)]).fit(module, batches)

    """
    recorder = record(*objects, **options)
    return recorder._adapter.callback(recorder)


def _of_rank(path: str | Path, rank: int) -> str:
    """Where one of several processes writes. HarnessError where the trace of a single one lies."""
    if (Path(path) / HEADER_FILE).exists():
        raise HarnessError(
            f"{path}: is the trace of one process, and this is rank {rank} of several: remove it, "
            "or give record another out"
        )
    return str(rank_folder(path, rank))


def _script() -> str:
    """What the script is called; "interactive" where there is none."""
    name = Path(sys.argv[0] if sys.argv else "").stem
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in name).lstrip("-_.") or (
        "interactive"
    )


class Recorder:
    """Writes the steps of a script as a trace; made by `record`."""

    def __init__(
        self,
        adapter: Adapter,
        run: ScriptSpec,
        asked: Told | None = None,
        place: tuple[int, int] = (0, 1),
    ) -> None:
        """Nothing is written before the first step. `place`: the rank, and how many there are."""
        self.run = run
        self._adapter, self._asked, self._place = adapter, asked, place
        self._writer: TraceWriter | None = None
        self._replay = Replay(run, *place)
        self._now: Step | None = None
        self._number = 0
        self._process = os.getpid()
        self._spent = self._started = 0.0
        self._loss: float | None = None
        self._logged: dict[str, int] = {}  # how often in this step, by name

    def __enter__(self) -> Recorder:
        """Return the recorder."""
        if not Path(self.run.trace).parent.is_dir():
            try:
                Path(self.run.trace).parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise HarnessError(f"{self.run.trace}: cannot be made: {error}") from None
        self._started = time.perf_counter()
        self._adapter.begin(self.run.dtype)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Take all hooks away and close the trace: whole, unless an exception ended the block."""
        self._adapter.end()
        if self._writer is None or self._forked:
            return
        self._writer.__exit__(kind if kind is not SystemExit else None, error, traceback)
        if self._asked is None:
            self._tell()

    def step(self, **inputs: Any) -> _OneStep:
        """A context manager for one optimizer step: hands the inputs back, in their order.

        One input comes back as it is, several as a tuple; what the step is to go on with, which is
        another's where `harness run` hands inputs over.
        """
        return _OneStep(self, inputs)

    def log(self, **values: Any) -> None:
        """Anything else worth comparing in this step: `loss`, or other tensors and numbers."""
        if self._now is None:
            if self._number == 0:
                raise HarnessError("rec.log outside of a step: put it inside `with rec.step(..)`")
            if "loss" in values:  # of a step that is not recorded, for `harness run` to show
                self._loss = _number(self._adapter.owned(values["loss"]))
            return
        began = time.perf_counter()
        for name, value in values.items():
            if self._adapter.takes(name, value):
                continue
            if isinstance(value, Mapping):
                self._log_tree(logged(name), value)
            else:
                self._log_one(logged(name), value)
        self._spent += time.perf_counter() - began

    def tap(self, name: str, value: Any) -> Any:
        """Record a value inside of the model as forward/NAME; goes on with what comes back."""
        return self._adapter.tap(self._now, f"forward/{name}", value)

    def _log_tree(self, prefix: str, tree: Mapping[str, Any]) -> None:
        for name, value in tree.items():
            inner = f"{prefix}/{name}"
            if isinstance(value, Mapping):
                self._log_tree(inner, value)
            else:
                self._log_one(inner, value)

    def _log_one(self, name: str, value: Any) -> None:
        assert self._now is not None
        count = self._logged[name] = self._logged.get(name, 0) + 1
        name = name if count == 1 else f"{name}:{count}"  # of another batch of the step
        known = self._adapter.made(value)
        if known == name:
            return
        if known == OBJECTIVE and name == LOSS:  # what was minimised is the loss itself
            self._now.rename(OBJECTIVE, LOSS)
            self._adapter.call(value, LOSS)
            return
        made = Made("add", (known,), {}) if isinstance(known, str) else known
        self._now.see(name, self._adapter.owned(value), made, line())
        self._adapter.call(value, name)

    def handed(self, number: int, name: str) -> Any:
        """The input that is handed over to a step in place of the script's own, if any."""
        return self._replay.input(number, name)

    def more(self, count: int, inputs: Mapping[str, Any]) -> list[Any]:
        """One batch more of the step that is open, its number `count`; what it goes on with."""
        return self._given({f"{name}:{count}": value for name, value in inputs.items()}, self._now)

    def undo(self) -> None:
        """The step that began last was none: a loop found no more data."""
        self._number -= 1

    @property
    def _forked(self) -> bool:
        """Whether this is a process that was forked off the one that records."""
        return os.getpid() != self._process

    def _open(self) -> TraceWriter:
        run, adapter, ranks = self.run, self._adapter, self._place[1]
        if which_rank() != self._place:
            raise HarnessError(
                "harness.record came before this process knew its rank, and every rank would write "
                "the same trace: set up the process group first"
            )
        writer = TraceWriter(
            run.trace,
            label=run.label,
            dtype=adapter.dtype(),
            framework=adapter.versions(),
            spec={"script": adapter.settings(), **({KEY: ranks} if ranks > 1 else {})},
            capture=run.capture,
            queue=run.queue,
            threads=run.threads,
            keeps=run.keeps,
        )
        writer.owns()
        return writer

    def _begin_step(self, inputs: Mapping[str, Any]) -> tuple[Step | None, list[Any]]:
        """The step that begins, None where nothing of it is wanted; and its inputs."""
        number = self._number = self._number + 1
        self._loss, self._logged = None, {}
        if number == 1:
            self._adapter.load(self._replay.weights(), 0)
        if number >= self.run.start:
            self._adapter.load(self._replay.restart(number), number - 1)
        if self._writer is None:
            self._writer = self._open()
        handed = self._given(inputs)
        wanted = number >= self.run.start and self._writer.wants_step(number)
        if self._forked or not (wanted or self._replay.within(number)):
            return None, handed
        said = self._writer.steps_given < SAID  # a reader looks at the first ones alone
        describe = partial(self._writer.described, number) if wanted else None
        deep = self.run.depth == "ops"
        step = Step(number, self._replay.feed(number), self._replay.seed, said, deep, describe)
        self._see(step, inputs, handed)
        if number == 1:
            for name, tensor in self._adapter.state().items():
                if not name.startswith("optimizer/"):
                    step.see(f"inputs/{name}", tensor)
        return step, handed

    def _given(self, inputs: Mapping[str, Any], step: Step | None = None) -> list[Any]:
        """What the step goes on with for its inputs; seen in it, where one is given."""
        number = self._number
        handed = [
            self._adapter.given(name, value, self._replay.input(number, name), self.run.dtype)
            for name, value in inputs.items()
        ]
        if step is not None:
            self._see(step, inputs, handed)
        return handed

    def _see(self, step: Step, names: Iterable[str], handed: Sequence[Any]) -> None:
        for name, value in zip(names, handed, strict=True):
            for point, tensor in self._adapter.inputs(name, value).items():
                step.see(point, tensor)

    def _end_step(self, step: Step | None) -> None:
        """Write what the step was, and say that it is done."""
        if self._forked:
            return
        if step is not None and self._writer is not None:
            self._adapter.finish(step)
            found = step.points.get(LOSS) or step.points.get(OBJECTIVE)
            self._loss = None if found is None else _number(found.array)
            if self._number >= self.run.start and self._writer.wants_step(self._number):
                how = (step.stages(), step.sources()) if step.said else ()
                self._writer.write(self._number, step.tensors(), *how)
        if self._asked is None or self._number < self.run.start:
            return
        loss = math.nan if self._loss is None else self._loss
        if self._number <= self.run.steps:
            self._asked.report(step=self._number, loss=loss)
        if self._number >= self.run.steps:
            self._leave()

    def _leave(self) -> None:
        """All steps that were asked for are done: the script ends here, well."""
        assert self._asked is not None
        self._adapter.end()
        if self._writer:
            self._writer.close()
        self._asked.end(self._place[1])
        sys.stdout.flush()
        sys.stderr.flush()
        raise SystemExit(0)

    def _tell(self) -> None:
        """Say where the trace is, and what recording cost."""
        whole = time.perf_counter() - self._started
        share = f"{100 * self._spent / whole:.0f} %" if whole else "none"
        steps = self._writer.steps if self._writer else 0
        print(
            f"harness: {self.run.trace}: {steps} steps; recording took {share} of the time",
            file=sys.stderr,
        )


def _number(array: Any) -> float | None:
    """An array as a number, where it is one."""
    try:
        return float(array)
    except (TypeError, ValueError, RuntimeError):
        return None


class _OneStep:
    """One step of a recorder, as a context manager."""

    def __init__(self, recorder: Recorder, inputs: Mapping[str, Any]) -> None:
        self._recorder, self._inputs = recorder, inputs
        self._watch: Any = None

    def __enter__(self) -> Any:
        recorder = self._recorder
        if recorder._now is not None:
            raise HarnessError("rec.step inside of rec.step: end one step before the next begins")
        began = time.perf_counter()
        step, handed = recorder._begin_step(self._inputs)
        recorder._now = step
        if step is not None:
            self._watch = recorder._adapter.watch(step)
            self._watch.__enter__()
        recorder._spent += time.perf_counter() - began
        return handed[0] if len(handed) == 1 else tuple(handed)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        recorder = self._recorder
        began = time.perf_counter()
        step, recorder._now = recorder._now, None
        if self._watch is not None:
            self._watch.__exit__(kind, error, traceback)
        try:
            if kind is None:
                recorder._end_step(step)
        finally:
            recorder._spent += time.perf_counter() - began
