"""The place of a verdict, as a run leaves it beside its traces."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
from msgspec.structs import replace

from harness.compare import DiffResult
from harness.compare.diff import Difference
from harness.errors import HarnessError
from harness.explain import Verdict
from harness.explain.case import Side

FILE = "verdict.json"
LIMIT = 64 << 20


class Found(msgspec.Struct, frozen=True):
    """What a run found, in the words of its report.

    `traces` are its own, `shown` those that show the place that decides; `follower` is the side of
    those that was given the other's inputs, if one was, and `map` the file of the map between them.
    """

    traces: tuple[str, str]
    labels: tuple[str, str]
    label: str
    sentence: str
    where: Difference | None = None
    side: str | None = None
    cause: str | None = None
    evidence: tuple[str, ...] = ()
    shown: tuple[str, str] | None = None
    follower: Side | None = None
    map: str | None = None

    @classmethod
    def of(cls, found: DiffResult, verdict: Verdict, map_: str | None) -> Found:
        """What is kept of the verdict on a diff."""
        return cls(
            (found.a, found.b),
            found.labels,
            verdict.label,
            verdict.sentence,
            verdict.where,
            verdict.side,
            verdict.causes[0].sentence if verdict.causes else None,
            verdict.evidence,
            verdict.traces,
            verdict.follower,
            map_,
        )


def write_found(folder: Path, found: Found) -> None:
    """Leave it in the folder of a run."""
    text = msgspec.json.format(msgspec.json.encode(found), indent=2)
    temporary = folder / f"{FILE}.part"
    temporary.write_bytes(text)
    os.replace(temporary, folder / FILE)


def read_found(folder: Path) -> Found | None:
    """What a run left in its folder; None where it left nothing. Raises HarnessError."""
    path = folder / FILE
    try:
        if path.stat().st_size > LIMIT:
            raise HarnessError(f"{path}: larger than any verdict: remove it, and run again")
        return _in(folder, msgspec.json.decode(path.read_bytes(), type=Found))
    except OSError:
        return None
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError) as error:
        raise HarnessError(f"{path}: is no verdict of a run ({error}): run again") from None


def _in(folder: Path, found: Found) -> Found:
    """What was found, with its files in the folder that it is read from: it may have moved."""

    def here(path: str) -> str:
        return str(folder / Path(path).name)

    one, two = found.traces
    shown = (here(found.shown[0]), here(found.shown[1])) if found.shown else None
    map_ = here(found.map) if found.map else None
    return replace(found, traces=(here(one), here(two)), shown=shown, map=map_)


def same(one: tuple[str, str], two: tuple[str, str]) -> bool:
    """Whether two pairs of traces are the same folders."""
    return all(Path(x).resolve() == Path(y).resolve() for x, y in zip(one, two, strict=True))
