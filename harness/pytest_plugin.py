"""The pytest plugin: the fixture `harness`, golden traces, and how to update them.

Nothing is imported when pytest starts but this file; what a test uses is, when it does.

PYTEST_DONT_REWRITE: there is no assert in here, and pytest may find it imported already.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from harness.capture import Recorder
    from harness.spec import Level
    from harness.testing.close import Rule
    from harness.trace import Alignment

FOLDER, UPDATE = "harness_golden", "--harness-update"
PROPERTY = "harness_golden"  # of a report: what became of a golden trace
WRITTEN = pytest.StashKey[set[Path]]()  # by this process: what else has their name is compared


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add what the command line and the ini-file may say."""
    group = parser.getgroup("harness", "twin-harness: traces of training runs")
    group.addoption(
        UPDATE,
        action="store_true",
        default=False,
        help="Write the golden traces of the tests that run, or replace them.",
    )
    parser.addini(FOLDER, "Folder of golden traces, from that of the test file on.", None, "golden")


@pytest.fixture(name="harness")
def _harness(request: pytest.FixtureRequest, tmp_path: Path) -> Harness:
    """Record training runs, compare traces, and hold them against golden ones.

    harness.record(model, optimizer) records the steps of a script to a folder of the test;
    harness.assert_close(a, b) compares two traces (or arrays), b being the reference;
    harness.assert_golden(trace, "name") compares a trace with the golden one of that name, which
    `pytest --harness-update` writes. All else is that of the module: harness.diff, harness.stage.
    """
    return Harness(request.node, tmp_path)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say which golden traces were written."""
    said: dict[tuple[str, str], None] = {}
    for reports in terminalreporter.stats.values():
        for report in reports:
            for name, text in getattr(report, "user_properties", ()):
                if name == PROPERTY:
                    said[str(text), str(report.nodeid)] = None
    if not said:
        return
    terminalreporter.section("harness: golden traces")
    for text, node in sorted(said):
        terminalreporter.write_line(f"{text}  ({node})")


class Harness:
    """What the fixture `harness` is. What it has not itself, it has from the module `harness`."""

    def __init__(self, item: pytest.Item, folder: Path) -> None:
        """The fixture of a test, and its folder for traces."""
        self._item, self._folder = item, folder
        self._names: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        """A public name of the module, such as TraceWriter."""
        return getattr(sys.modules[__name__.partition(".")[0]], name)

    def record(
        self,
        *objects: Any,
        name: str | None = None,
        level: Level = "full",
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        every: int = 1,
        steps: tuple[int, int | None] = (1, None),
    ) -> Recorder:
        """A recorder as of `harness.record`, whose trace lies in the folder of this test.

        `name` is what reports call the run: by default the test's own name, from the second run
        on with a number. Give one recorder its own name each: HarnessError for one that is taken.
        """
        __tracebackhide__ = True
        from harness.capture import record
        from harness.errors import HarnessError
        from harness.testing.names import NAME

        label = self._label() if name is None else name
        if not isinstance(label, str) or not NAME.fullmatch(label):
            raise HarnessError(f"name={name!r}: letters, digits and any of _.=+-, not first a sign")
        if label in self._names:
            raise HarnessError(f"name={name!r} is taken: a run of its name would be overwritten")
        self._names.add(label)
        return record(
            *objects,
            out=self._folder / f"{label}.trace",
            label=label,
            level=level,
            include=include,
            exclude=exclude,
            every=every,
            steps=steps,
        )

    def assert_close(
        self,
        a: Any,
        b: Any,
        *,
        map: Alignment | str | Path | None = None,
        steps: tuple[int, int | None] = (1, None),
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        rtol: float | None = None,
        atol: float | None = None,
        factor: float | None = None,
        roles: Sequence[str] = (),
        reference_float64: tuple[Any, Any] | None = None,
    ) -> None:
        """Fail unless `a` is close to the reference `b`, as `harness.diff` judges it.

        Both are traces (paths, recorders, writers), or both are arrays, numbers or mappings of
        them. `map` is a map of names and layouts or its file, or "search". `reference_float64` are
        the same runs in float64, of a and of b, which let the message tell rounding from a bug.
        All others are those of `harness.diff`.
        """
        __tracebackhide__ = True
        from harness.errors import HarnessError
        from harness.testing.close import Rule, why_not_close

        rule = Rule(steps, include, exclude, rtol, atol, factor, roles)
        trouble = why = None
        try:
            why = why_not_close(a, b, self._folder, rule, map, reference_float64)
        except HarnessError as error:
            trouble = str(error)
        if trouble is not None:
            raise HarnessError(trouble)
        if why is not None:
            raise AssertionError(why + self._kept())

    def assert_golden(
        self,
        given: Any,
        name: str | None = None,
        *,
        steps: tuple[int, int | None] = (1, None),
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        rtol: float | None = None,
        atol: float | None = None,
        factor: float | None = None,
    ) -> None:
        """Fail unless a trace (or arrays) is close to the golden trace of that name.

        `name` is by default the test's own. With --harness-update the golden trace is written in
        place of being compared with, by the first that has the name; others are compared with it.
        """
        __tracebackhide__ = True
        from harness.errors import HarnessError
        from harness.testing.close import Rule

        rule = Rule(steps, include, exclude, rtol, atol, factor)
        trouble = why = None
        try:
            why = self._golden(given, name, rule)
        except HarnessError as error:
            trouble = str(error)
        if trouble is not None:
            raise HarnessError(trouble)
        if why is not None:
            raise AssertionError(why + self._kept())

    def _golden(self, given: Any, name: str | None, rule: Rule) -> str | None:
        """Why a trace is not close to the golden one; None where it is, or where it was written."""
        from harness.errors import HarnessError
        from harness.testing.golden import Golden, trace_of, update, why_not_golden
        from harness.testing.names import NAME

        known = self._label(alone=True) if name is None else name
        if not isinstance(known, str) or not NAME.fullmatch(known):
            raise HarnessError(
                f"{name!r} cannot name a golden trace: letters, digits and any of _.=+-, not first "
                "a sign"
            )
        config, file = self._item.config, self._item.path
        path = Path(os.path.normpath(file.parent / config.getini(FOLDER) / f"{known}.trace"))
        start = config.invocation_params.dir
        shown = os.path.relpath(path, start) if path.is_relative_to(config.rootpath) else str(path)
        _, _, test = self._item.nodeid.partition("::")
        node = f"{os.path.relpath(file, start)}::{test}"
        command = f"pytest {shlex.quote(node)} {UPDATE}"
        golden = Golden(path, shown, file.name, command)
        trace = trace_of(given, self._folder, self._label(alone=True))
        written = config.stash.setdefault(WRITTEN, set())
        if path in written:
            golden = golden._replace(update="give each its own golden trace")
        if path in written or not config.getoption(UPDATE):
            return why_not_golden(trace, golden, rule)
        done = update(trace, golden)
        written.add(path)
        self._item.user_properties.append((PROPERTY, f"{done.state} {shown}: {done.words()}"))
        return None

    def _label(self, alone: bool = False) -> str:
        """The test's own name, as one of a file; with a number where a run has it already."""
        from harness.testing.names import file_name

        _, _, test = self._item.nodeid.partition("::")
        label = file_name(test or self._item.name)
        number = 1
        while not alone and (label if number == 1 else f"{label}-{number}") in self._names:
            number += 1
        return label if number == 1 else f"{label}-{number}"

    def _kept(self) -> str:
        """What is to be said of traces that pytest is told to remove."""
        config = self._item.config
        none = config.getini("tmp_path_retention_policy") == "none"
        given = config.option.basetemp is not None and not hasattr(config, "workerinput")
        if given or not (none or int(config.getini("tmp_path_retention_count")) == 0):
            return ""
        return (
            "\n  (by its tmp_path_retention settings pytest removes these traces; --basetemp keeps)"
        )
