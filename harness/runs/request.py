"""What a run is asked for: what to compute, how, where to write, how to judge. Parsed, not run."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from harness.compare import Tolerance
from harness.errors import HarnessError
from harness.models.faults import CATALOGUE
from harness.runs.processes import TWINS
from harness.runs.scripts import parse_script
from harness.runs.session import Side
from harness.spec import Capture, Depth, Handed, check_label


class SideRequest(NamedTuple):
    """A side, the settings that only it has, and the faults to plant in it."""

    side: Side
    settings: dict[str, str]
    faults: tuple[str, ...]


class Computation(NamedTuple):
    """What all sides compute; each field is the argument of `run_sides` of that name.

    `settings` are those of all sides, by name.
    """

    trace: int | Literal["all"]
    model: str | None
    weights: str | Path | None
    data: str | Path | None
    tokens: str
    settings: Mapping[str, str]


class Execution(NamedTuple):
    """How the sides are run; `threads` of each (None: an equal share of the processors).

    `hand_over` is what scripts are given of the reference.
    """

    device: Literal["cpu", "gpu"]
    threads: int | None
    sequential: bool
    hand_over: tuple[Handed, ...]


class Output(NamedTuple):
    """Where the run writes, and what; `queue`: bytes of a side's tensors that may wait for it.

    `depth`: what of a script is a point.
    """

    folder: Path
    capture: Capture
    queue: int
    depth: Depth


class Judging(NamedTuple):
    """How the sides are compared and judged (`verdict` None: judged where they diverge).

    `map` is the file of a map to the reference's names (None: searched for where a script is one).
    """

    tolerance: Tolerance
    all: bool
    follow: Literal["step", "stage"] | None
    verdict: bool | None
    zoom: bool
    map: str | None


class Request(NamedTuple):
    """All that a run is asked for."""

    sides: list[SideRequest]
    computation: Computation
    execution: Execution
    output: Output
    judging: Judging


def untraced(
    sides: list[SideRequest],
    computation: Computation,
    execution: Execution,
    folder: str | Path,
    scripts: str,
) -> Request:
    """Twins that are run, and neither traced nor compared tensor by tensor.

    Raises HarnessError for a side that is a script; `scripts` says what of those.
    """
    for side in sides:
        if side.side.script:
            raise HarnessError(f"--side {side.side.script[0]}: {scripts}")
    output = Output(Path(folder), Capture(), 1, "modules")
    judging = Judging(Tolerance.given(None, None), False, None, None, False, None)
    return Request(sides, computation, execution, output, judging)


def parse_sides(
    sides: Sequence[str],
    settings: Sequence[str],
    pythons: Sequence[str],
    faults: Sequence[str],
    most: int = 3,
) -> list[SideRequest]:
    """The sides that texts ask for, as `run_sides` takes them: at most so many.

    Raises HarnessError.
    """
    found = _parse_programs(sides, most)
    own: dict[str, list[str]] = {label: [] for label in found}
    for label, text in _with_labels(settings):
        _require_side(label, found, f"--set {label}:{text}")
        own[label].append(text)
    planted = _parse_faults(faults, found)
    paths = parse_pythons(pythons)
    for label, path in paths.items():
        _require_side(label, found, f"--python {label}={path}")
    for label, side in found.items():
        if side.script and (own[label] or planted[label]):
            option = "--set" if own[label] else "--fault"
            raise HarnessError(
                f"{option} {label}:..: {label} is a script, which takes its own arguments: "
                f'--side "{label}={side.script[0]} ..."'
            )
    return [
        SideRequest(
            side._replace(python=paths.get(label, sys.executable)),
            _parse_settings(own[label]),
            tuple(planted[label]),
        )
        for label, side in found.items()
    ]


def parse_shared_settings(texts: Sequence[str]) -> dict[str, str]:
    """The settings, "name=value", that name no side. Raises HarnessError."""
    return _parse_settings(text for text in texts if ":" not in text.split("=", 1)[0])


def parse_pythons(texts: Iterable[str]) -> dict[str, str]:
    """Interpreters by side, of "LABEL=PATH". Raises HarnessError."""
    paths = {}
    for text in texts:
        label, equals, path = text.partition("=")
        if not equals or not path:
            raise HarnessError(f"--python {text}: give LABEL=PATH")
        paths[label] = path
    return paths


def parse_hand_over(text: str | None) -> tuple[Handed, ...]:
    """What is handed over, of "weights,inputs". Raises HarnessError."""
    found = tuple(part.strip() for part in (text or "").split(",") if part.strip())
    for part in found:
        if part not in get_args(Handed):
            raise HarnessError(
                f"--hand-over {text}: {part!r} cannot be handed over; there are: "
                f"{', '.join(get_args(Handed))}"
            )
    return tuple(what for what in get_args(Handed) if what in found)


def _parse_programs(texts: Sequence[str], most: int) -> dict[str, Side]:
    """Each side by its label, of "TWIN", "SCRIPT.py ARGUMENTS", or those after "LABEL="."""
    found: dict[str, Side] = {}
    for text in texts:
        script = parse_script(text)
        if script:
            label, twin, words = script[0], "", script[1]
        else:
            label, _, twin = text.rpartition("=")
            label, words = label or twin, ()
        label = check_label(label)
        if not script and twin not in TWINS:
            raise HarnessError(
                f"--side {text}: no twin named {twin!r}; there are: {', '.join(TWINS)}; or give a "
                "script: --side mine=train.py"
            )
        if label in found:
            what = twin or words[0]
            raise HarnessError(
                f"--side {text}: two sides named {label!r}; name them: --side old={what} "
                f"--side new={what}"
            )
        found[label] = Side(label, twin, script=words)
    if not 1 <= len(found) <= most:
        run = "a run has one, two to compare, or three to vote"
        raise HarnessError(f"{len(found)} sides: {run if most == 3 else f'at most {most} at once'}")
    return found


def _parse_faults(texts: Sequence[str], twins: Mapping[str, Side]) -> dict[str, list[str]]:
    """The names of faults by side, of "LABEL:NAME"."""
    planted: dict[str, list[str]] = {label: [] for label in twins}
    for text in texts:
        label, colon, name = text.partition(":")
        if not colon:
            raise HarnessError(
                f"--fault {text}: give LABEL:NAME; harness faults list has the names"
            )
        _require_side(label, twins, f"--fault {text}")
        if name not in CATALOGUE:
            near = ", ".join(get_close_matches(name, CATALOGUE, 3, 0.4)) or "harness faults list"
            raise HarnessError(f"--fault {text}: no fault named {name!r}; see {near}")
        planted[label].append(name)
    return planted


def _with_labels(settings: Iterable[str]) -> Iterator[tuple[str, str]]:
    """The settings of one side, "LABEL:name=value", as (label, "name=value")."""
    for text in settings:
        label, colon, _ = text.split("=", 1)[0].partition(":")
        if colon:
            yield label, text[len(label) + 1 :]


def _parse_settings(texts: Iterable[str]) -> dict[str, str]:
    settings = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise HarnessError(f"--set {text}: give name=value, or LABEL:name=value for one side")
        settings[name] = value
    return settings


def _require_side(label: str, twins: Mapping[str, Side], option: str) -> None:
    if label not in twins:
        raise HarnessError(f"{option}: no side named {label!r}; there are: {', '.join(twins)}")
