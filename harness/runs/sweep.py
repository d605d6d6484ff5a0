"""Many short runs of each side, which differ in some settings: the loss after so many steps."""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import msgspec
import xxhash
from msgspec.structs import replace

from harness.data.checkpoint import identity_of
from harness.errors import HarnessError
from harness.observer import Observer
from harness.runs.grid import Point, parse_axis, points
from harness.runs.prepare import prepare
from harness.runs.processes import processors
from harness.runs.request import (
    Computation,
    Execution,
    parse_shared_settings,
    parse_sides,
    untraced,
)
from harness.runs.result import SweepPoint, SweepResult
from harness.runs.session import Session, Side
from harness.spec import RunSpec, Training, override

MOST_SIDES = 12
POINTS_FILE, ASKED_FILE = "points.jsonl", "sweep.json"


class Task(NamedTuple):
    """A run of a side, at a point."""

    side: Side
    point: Point
    run: RunSpec

    @property
    def key(self) -> tuple[str, Point]:
        """What tells it from the others."""
        return self.side.label, self.point


Done = Callable[[Task, Sequence[float]], None]


class Pool(Protocol):
    """What runs tasks; each is told of once, in any order."""

    def run(self, tasks: Sequence[Task], done: Done) -> None:
        """Run all. Raises HarnessError for one that fails; what was told of before is kept."""


def sweep_sides(
    *,
    grid: Sequence[str],
    sides: Sequence[str] = ("pt", "tf"),
    steps: int = 200,
    random: int | None = None,
    weights: str | Path | None = None,
    data: str | Path | None = None,
    tokens: str = "word",
    model: str | None = None,
    settings: Sequence[str] = (),
    pythons: Sequence[str] = (),
    out: str | Path = "sweep",
    workers: int | None = None,
    scheduler: str | None = None,
    device: Literal["cpu", "gpu"] = "cpu",
    threads: int = 1,
    observer: Observer | None = None,
) -> SweepResult:
    """Run every side for `steps` at every point, from the same weights on the same text.

    What is finished is kept in `out` (points.jsonl) and not run again. A side's process, with its
    framework and its compiled step, serves one point after another.

    Args:
        grid: "lr=0.01:1.98:0.01" or "lr=0.1,1,10", settings of all sides; several: all pairs.
        random: so many points of the grid, drawn by the seed (None: all).
        workers, threads: processes at once (None: one a processor), and threads of each.
        scheduler: the address of a Dask scheduler, whose workers run them (None: this machine).
        sides, weights, data, tokens, model, settings, pythons, device, observer: as `run_sides`.
    Raises HarnessError for bad input, for a run that fails, and for another sweep in `out`.
    """
    request = untraced(
        parse_sides(sides, settings, pythons, (), most=MOST_SIDES),
        Computation(steps, model, weights, data, tokens, parse_shared_settings(settings)),
        Execution(device, threads, False, ()),
        out,
        "a script has settings of its own: give twins",
    )
    if not grid:
        raise HarnessError("--grid: give a setting and its values, such as lr=0.01:1.98:0.01")
    watcher = observer or Observer()
    prepared = prepare(request, watcher)
    runs = [run for run in prepared.runs if isinstance(run, RunSpec)]
    axes = [parse_axis(text) for text in grid]
    at = points(axes, random, runs[0].train.seed)
    tasks = _tasks([s.side for s in request.sides], runs, at)
    kept = _Kept(request.output.folder, runs, tasks, watcher)
    left = [task for task in tasks if task.key not in kept.found]
    if left:
        pool = _pool(scheduler, request.output.folder, workers, watcher)
        pool.run(left, kept.add)
    rows = tuple(kept.found[task.key] for task in tasks)
    return SweepResult(rows, tuple(name for name, _ in axes), steps, str(kept.file))


def _tasks(sides: Sequence[Side], runs: Sequence[RunSpec], at: Sequence[Point]) -> list[Task]:
    """All runs, those of one side one after another. Raises HarnessError for a bad setting."""
    found = []
    for side, run in zip(sides, runs, strict=True):
        for k, point in enumerate(at):
            model, train = override(run.model, run.train, dict(point))
            if model != run.model:
                raise HarnessError(
                    f"--grid {point[0][0]}=..: it changes the model, and all points start from the "
                    "same weights: sweep a setting of the training"
                )
            # Nothing is evaluated: at the end of an epoch a run goes on.
            own = replace(run, train=train, label=f"{run.label}-{k}", valid="", training=Training())
            found.append(Task(side, point, own))
    return found


class _Kept:
    """The file of finished points."""

    def __init__(
        self, folder: Path, runs: Sequence[RunSpec], tasks: Sequence[Task], watcher: Observer
    ) -> None:
        """With those of an earlier sweep of the same sides. Raises HarnessError for any other."""
        self.file, self._watcher = folder / POINTS_FILE, watcher
        self._lock = threading.Lock()
        _check_asked(folder / ASKED_FILE, runs, self.file)
        self.found = {(p.side, tuple(p.point.items())): p for p in _read(self.file)}
        self._total = len(tasks)
        wanted = sum(task.key in self.found for task in tasks)
        self._done = wanted
        if wanted:
            watcher.note(f"{wanted} of {self._total} points are kept in {self.file}")
        watcher.begin("sweep", self._total)

    def add(self, task: Task, losses: Sequence[float]) -> None:
        """A run has ended."""
        nats = 1 / (task.run.train.bptt if task.run.train.loss == "sum" else 1)
        mean = sum(losses) / len(losses) * nats
        point = SweepPoint(task.side.label, dict(task.point), mean, losses[-1] * nats)
        with self._lock, open(self.file, "a") as file:
            if task.key in self.found:
                at = f"{task.side.label} at {words(dict(task.point))}"
                raise HarnessError(f"{self.file}: has {at} already, and it came once more")
            file.write(json.dumps(msgspec.to_builtins(point)) + "\n")
            self.found[task.key] = point
            self._done += 1
            self._watcher.advance("sweep", self._done)


def _check_asked(path: Path, runs: Sequence[RunSpec], kept: Path) -> None:
    """Keep what the sides compute beside the points; refuse another sweep's points."""
    weights = xxhash.xxh3_128_hexdigest(Path(runs[0].weights).read_bytes())
    asked: dict[str, Any] = {
        run.label: {"steps": run.steps, "weights": weights, **identity_of(run)} for run in runs
    }
    if kept.exists() and path.exists():
        before = json.loads(path.read_text())
        for label, values in asked.items():
            own = before.get(label, values)
            changed = [name for name, value in values.items() if own.get(name) != value]
            if changed:
                raise HarnessError(
                    f"{path}: the points kept there are of other runs: {label} had {changed[0]} = "
                    f"{own.get(changed[0])!r}, and has {values[changed[0]]!r}: name "
                    "another folder (--out)"
                )
        asked = {**before, **asked}
    path.write_text(json.dumps(asked, indent=2) + "\n")


def _read(path: Path) -> Iterator[SweepPoint]:
    """The finished points; a last line that was cut off is cut away."""
    if not path.exists():
        return
    text = path.read_bytes()
    whole = text[: text.rfind(b"\n") + 1]
    if whole != text:
        path.write_bytes(whole)
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            yield msgspec.convert(json.loads(line), SweepPoint)
        except (ValueError, msgspec.MsgspecError) as error:
            raise HarnessError(f"{path}: line {number} is no point of a sweep: {error}") from None


def _pool(scheduler: str | None, folder: Path, workers: int | None, watcher: Observer) -> Pool:
    if scheduler is None:
        return Local(folder, processors() if workers is None else workers, watcher)
    from harness.runs.cluster import Cluster

    found: Pool = Cluster(scheduler, watcher)
    return found


class Local:
    """Processes on this machine: so many at once, each of which serves a side's points in turn."""

    def __init__(self, folder: Path, workers: int, watcher: Observer) -> None:
        """Nothing is started yet. Raises HarnessError for no workers."""
        if workers < 1:
            raise HarnessError(f"--workers {workers}: give a number from 1 up")
        self._folder, self._workers, self._watcher = folder, workers, watcher

    def run(self, tasks: Sequence[Task], done: Done) -> None:
        """As `Pool.run`."""
        left: queue.SimpleQueue[Task] = queue.SimpleQueue()
        for task in tasks:
            left.put(task)
        failures: list[Exception] = []
        over = threading.Event()
        count = min(self._workers, len(tasks))
        threads = [
            threading.Thread(target=self._serve, args=(k, left, done, failures, over), daemon=True)
            for k in range(count)
        ]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                while thread.is_alive():  # so that Ctrl-C is heard
                    thread.join(0.2)
        finally:
            over.set()
            for thread in threads:
                thread.join()
        if failures:
            raise failures[0]

    def _serve(
        self,
        number: int,
        left: queue.SimpleQueue[Task],
        done: Done,
        failures: list[Exception],
        over: threading.Event,
    ) -> None:
        """Run tasks until none is left, or one has failed."""
        folder = self._folder / f"worker-{number}"
        folder.mkdir(exist_ok=True)
        try:
            for side, own in _by_side(left, over):
                with Session([side], folder, Observer()) as session:
                    for task in own:
                        done(task, run_task(session, task, over))
        except Exception as error:
            failures.append(error)
            over.set()


def _by_side(
    left: queue.SimpleQueue[Task], over: threading.Event
) -> Iterator[tuple[Side, Iterable[Task]]]:
    """The tasks of a queue that a worker gets, those of one side together."""
    ahead: list[Task] = []

    def more(side: Side | None) -> Iterator[Task]:
        while not over.is_set():
            try:
                task = ahead.pop() if ahead else left.get_nowait()
            except queue.Empty:
                return
            if side is not None and task.side != side:
                ahead.append(task)
                return
            yield task

    while not over.is_set():
        first = next(more(None), None)
        if first is None:
            return
        ahead.append(first)
        yield first.side, more(first.side)


def run_task(session: Session, task: Task, over: threading.Event) -> list[float]:
    """The loss of every step of a task. Raises HarnessError where it fails, or is `over` before."""
    job = session.start(task.side.label, task.run, show=False)
    while not job.ended:
        if over.wait(0.005):
            job.side.stop()
            raise HarnessError("stopped")
    error = job.wait()
    if error:
        raise HarnessError(f"{task.side.label} at {words(dict(task.point))}: {error}")
    return job.losses


def words(point: Mapping[str, str]) -> str:
    """A point as people write it."""
    return ", ".join(f"{name}={value}" for name, value in point.items())
