"""A trace on disk as a run that can be made again: what its side was told, and by which twin."""

from __future__ import annotations

from pathlib import Path

from harness.errors import HarnessError
from harness.runs.processes import TWINS
from harness.runs.session import Side
from harness.spec import AnyRun, ScriptSpec, load_run, load_script
from harness.trace import Trace


def run_of(trace: Trace) -> AnyRun:
    """What the side that left a trace was told to do. Raises HarnessError where that is gone."""
    script = trace.header.program is not None and trace.header.program.kind == "script"
    file = trace.path.parent / f"{trace.header.label}.json"
    if script and not file.is_file():
        raise HarnessError(
            f"{trace.path}: its script cannot be run again: there is no {file.name} beside it, as "
            "harness run leaves it; run it as a side: harness run --zoom --side ..."
        )
    run: AnyRun = load_script(file) if script else load_run(file)
    if Path(run.trace).resolve() != trace.path.resolve():
        raise HarnessError(
            f"{trace.path}: its run cannot be started again: {trace.header.label}.json beside it "
            f"is of {run.trace}; give the traces where harness run left them"
        )
    return run


def side_of(trace: Trace, run: AnyRun, python: str) -> Side:
    """The side that made a trace, to be run again. Raises HarnessError where it is not there."""
    if not isinstance(run, ScriptSpec):
        return Side(run.label, twin_of(trace), python)
    if run.argv[0] != "-m" and not Path(run.argv[0]).is_file():
        raise HarnessError(
            f"{trace.path}: its script {run.argv[0]} is not there: run again where it was run first"
        )
    return Side(run.label, "", python, run.argv)


def twin_of(trace: Trace) -> str:
    """The twin that left a trace; that of its framework where the header does not say.

    Raises HarnessError for a trace of another program.
    """
    program, framework = trace.header.program, trace.header.framework
    for name, twin in TWINS.items():
        if program and (program.kind, program.name) == ("twin", twin.module):
            return name
    for name, package in (("pt", "torch"), ("tf", "tensorflow"), ("np", "numpy")):
        if program is None and package in framework:
            return name
    raise HarnessError(
        f"{trace.path}: made by {program.name if program else 'an unknown program'}, which is no "
        f"twin of ours ({', '.join(twin.module for twin in TWINS.values())}), so it cannot be run "
        "again"
    )
