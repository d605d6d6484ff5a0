"""Are two traces close? The message of a failed test where they are not."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from harness.align import chosen
from harness.compare import diff
from harness.errors import HarnessError
from harness.explain import explain_traces
from harness.report.failure import failure
from harness.testing.given import arrays, is_trace, opened, unlike_all, write
from harness.trace import Alignment, Trace, remove_trace

SEARCH = "search"  # in the place of a map: find it, as `harness diff` does


class Rule(NamedTuple):
    """How is compared: the keyword arguments of `harness.diff`."""

    steps: tuple[int, int | None] = (1, None)
    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    rtol: float | None = None
    atol: float | None = None
    factor: float | None = None
    roles: Sequence[str] = ()

    def checked(self) -> Rule:
        """The rule itself. Raises HarnessError for what `harness.diff` does not take."""
        steps = self.steps
        if not (isinstance(steps, tuple) and len(steps) == 2 and isinstance(steps[0], int)):
            raise HarnessError(f"steps={steps!r}: give the first and the last, such as (1, 10)")
        for name in ("include", "exclude", "roles"):
            if isinstance(getattr(self, name), str):
                given = getattr(self, name)
                raise HarnessError(f"{name}={given!r}: give a list, such as [{given!r}]")
        return self

    def options(self) -> str:
        """The same for the command line."""
        first, last = self.steps
        words = [f"--{name} {getattr(self, name)!r}" for name in ("rtol", "atol", "factor")]
        words = [word for word in words if not word.endswith(" None")]
        for name, option in (("include", "include"), ("exclude", "exclude"), ("roles", "role")):
            words += [f"--{option} {shlex.quote(glob)}" for glob in getattr(self, name)]
        if (first, last) != (1, None):
            words.append(f"--steps {first}:{'' if last is None else last}")
        return "".join(f" {word}" for word in words)


def why_not_close(
    a: Any,
    b: Any,
    folder: Path,
    rule: Rule,
    map: Alignment | str | Path | None = None,
    reference_float64: tuple[Any, Any] | None = None,
) -> str | None:
    """Why `a` is not close to the reference `b`; None where it is.

    Arrays are written as traces to `folder`, and stay there where they are not close. Raises
    HarnessError for what cannot be compared.
    """
    rule = rule.checked()
    if is_trace(a) and is_trace(b):
        traces = opened(a, rule.roles), opened(b, rule.roles)
        if _same(*traces):
            raise HarnessError(
                f"{traces[0].path} is given twice: a trace is always close to itself"
            )
        return _traces(*traces, rule, map, _referees(reference_float64))
    if is_trace(a) or is_trace(b):
        odd = b if is_trace(a) else a
        raise HarnessError(
            f"a trace beside a {type(odd).__name__}: give two traces, or two arrays (or mappings)"
        )
    return _arrays(a, b, folder, rule)


def _same(a: Trace, b: Trace) -> bool:
    return a.path.resolve() == b.path.resolve()


def _referees(given: tuple[Any, Any] | None) -> tuple[Path, Path] | None:
    if given is None:
        return None
    if not (isinstance(given, tuple | list) and len(given) == 2 and all(map(is_trace, given))):
        raise HarnessError("reference_float64: give two traces, the runs of a and b in float64")
    one, two = (opened(trace).path for trace in given)
    return one, two


def _traces(
    a: Trace,
    b: Trace,
    rule: Rule,
    map: Alignment | str | Path | None,
    referees: tuple[Path, Path] | None,
) -> str | None:
    paths = a.path, b.path
    alignment = None
    if map is not None:
        alignment = chosen(*paths, None if map == SEARCH else map, rule.roles)
    given: dict[str, Any] = {**rule._asdict(), "alignment": alignment}
    try:
        result = diff(*paths, **given)
    except HarnessError as error:
        if "no tensor has the same name" not in str(error):
            raise
        raise HarnessError(f"{error}; find a map with  harness align {words_of(paths)}") from None
    if result.equivalent:
        return None
    verdict, wide = None, referees or (None, None)
    if result.status == "diverged":
        result, verdict = explain_traces(*paths, referee_a=wide[0], referee_b=wide[1], **given)
    words = ["harness explain", words_of(paths)]
    if isinstance(map, str | Path) and map != SEARCH:
        words += ["--map", shlex.quote(str(map))]
    for side, path in zip("ab", referees or (), strict=False):
        words += [f"--referee-{side}", shlex.quote(str(path))]
    commands = [("next", " ".join(words) + rule.options())]
    if alignment is None and result.status == "structure" and not result.last_agreeing:
        commands.insert(0, ("names", f"harness align {words_of(paths)} -o map.toml"))
    return failure(result, verdict, commands)


def words_of(paths: Sequence[Path]) -> str:
    """Paths as words of a command."""
    return " ".join(shlex.quote(str(path)) for path in paths)


def _arrays(a: Any, b: Any, folder: Path, rule: Rule) -> str | None:
    """The same for arrays: as traces of one step, which are gone again where they are close."""
    given = arrays(a, b)
    unlike = unlike_all(*given)
    if unlike:
        return "\n  ".join(["STRUCTURE: a and b do not hold the same arrays", *unlike])
    number = sum(1 for _ in folder.glob("arrays-*-a.trace")) + 1
    traces = [
        write(one, folder / f"arrays-{number}-{side}.trace", side)
        for one, side in zip(given, "ab", strict=True)
    ]
    why = _traces(opened(traces[0]), opened(traces[1]), rule, None, None)
    if why is None:
        for trace in traces:
            remove_trace(trace)
    return why
