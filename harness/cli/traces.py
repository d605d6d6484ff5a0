"""The commands on traces: compare them, explain how they differ, show and check one."""

from __future__ import annotations

from typing import Any

import click

from harness.cli.options import (
    ALL,
    ATOL,
    DIVERGENT,
    EQUIVALENT,
    EXCLUDE,
    FACTOR,
    INCLUDE,
    JSON,
    MAP,
    PLOT,
    ROLE,
    RTOL,
    STEPS,
    STRICT,
    TROUBLE,
    example,
    parse_steps,
    print_json,
    write_plot,
)


@click.command("diff", epilog=example("harness diff traces/pt.trace traces/tf.trace"))
@click.argument("a")
@click.argument("b")
@RTOL
@ATOL
@FACTOR
@ALL
@PLOT
@INCLUDE
@EXCLUDE
@STEPS
@ROLE
@MAP
@JSON
def diff_command(
    a: str,
    b: str,
    steps: str,
    all_: bool,
    plot: str | None,
    map_: str | None,
    as_json: bool,
    **options: Any,
) -> int:
    """Compare trace A with trace B, the reference: where do they first part?

    The default tolerance scales with each tensor and its dtype (see the README); --factor changes
    its K, and --rtol and --atol compare exactly as numpy.allclose does.
    """
    from harness.align import chosen
    from harness.compare import diff
    from harness.report import terminal
    from harness.report.progress import LiveObserver

    with LiveObserver() as observer:
        every = all_ or plot is not None
        searched = observer.part("align")
        options["alignment"] = chosen(a, b, map_, options["roles"], searched)
        progress = observer.part("diff")
        result = diff(a, b, steps=parse_steps(steps), all=every, progress=progress, **options)
    if as_json:
        print_json(result)
    else:
        terminal.show_diff(terminal.console(), result)
    if plot:
        write_plot(result, plot)
    return EQUIVALENT if result.equivalent else DIVERGENT


@click.command(
    "explain",
    epilog=example("harness explain A.trace B.trace --referee-a A64.trace --referee-b B64.trace"),
)
@click.argument("a")
@click.argument("b")
@click.option("--referee-a", metavar="TRACE", help="The run of A again, in float64.")
@click.option("--referee-b", metavar="TRACE", help="The run of B again, in float64.")
@click.option("--followed-a", metavar="TRACE", help="A again, each stage given B's inputs.")
@click.option("--followed-b", metavar="TRACE", help="B again, each stage given A's inputs.")
@STRICT
@RTOL
@ATOL
@FACTOR
@ALL
@PLOT
@INCLUDE
@EXCLUDE
@STEPS
@ROLE
@MAP
@JSON
def explain_command(
    a: str,
    b: str,
    steps: str,
    all_: bool,
    plot: str | None,
    map_: str | None,
    strict: bool,
    as_json: bool,
    **options: Any,
) -> int:
    """Say whether traces A and B (the reference) differ by rounding or by a bug, and why.

    Every further trace makes the answer surer; what would decide is said where one is missing.
    """
    from harness.align import chosen
    from harness.explain import explain_traces
    from harness.report import terminal
    from harness.report.progress import LiveObserver
    from harness.report.verdict import show_verdict

    with LiveObserver() as observer:
        every = all_ or plot is not None
        searched = observer.part("align")
        options["alignment"] = chosen(a, b, map_, options["roles"], searched)
        options |= {"steps": parse_steps(steps), "all": every, "observer": observer}
        result, verdict = explain_traces(a, b, **options)
    if as_json:
        print_json({"diff": result, "verdict": verdict})
    else:
        out = terminal.console()
        show_verdict(out, verdict, result)
        terminal.show_diff(out, result, verdict.label)
    if plot:
        write_plot(result, plot)
    return verdict.exit_code(strict)


@click.command(
    "show",
    epilog=example("harness show traces/pt.trace inputs/x --step 3 --slice 0,:3"),
)
@click.argument("trace")
@click.argument("tensor", required=False)
@click.option("--step", type=int, help="Which step. [default: the first]")
@click.option("--slice", "where", metavar="I,A:B", help="Which elements, as NumPy would index.")
@JSON
def show_command(
    trace: str, tensor: str | None, step: int | None, where: str | None, as_json: bool
) -> int:
    """Show what a trace holds: its run, the tensors of a step, or the values of one tensor."""
    from harness.report import terminal
    from harness.trace import open_trace, select

    opened = open_trace(trace)
    number = step if step is not None else next(iter(opened.steps), None)
    entry = None if number is None else opened.entry(number)
    if tensor is None or number is None:
        if as_json:
            print_json({"header": opened.header, "steps": opened.steps, "entry": entry})
        else:
            terminal.show_trace(terminal.console(), opened, entry)
        return EQUIVALENT
    tensor_entry = opened.step(number).find(tensor)
    array = select(opened.step(number).read(tensor_entry), where, tensor)
    if as_json:
        print_json({"step": number, "entry": tensor_entry, "values": array.tolist()})
    else:
        terminal.show_tensor(terminal.console(), number, tensor_entry, array)
    return EQUIVALENT


@click.group("trace")
def trace_group() -> None:
    """Work on trace folders."""


@trace_group.command("check", epilog=example("harness trace check traces/pt.trace"))
@click.argument("trace")
@JSON
def trace_check(trace: str, as_json: bool) -> int:
    """Read a whole trace and check it: hashes, statistics, order, completeness.

    Exit code 0 where it is sound and complete, 1 where its run was stopped, 2 where it is damaged.
    """
    from harness.report.progress import LiveObserver
    from harness.trace import check_trace
    from harness.trace.ranks import rank_steps

    with LiveObserver() as observer:
        result = check_trace(trace, observer.part("check"))
    if as_json:
        print_json(result)
    else:
        stopped = f"not complete: its run was stopped{rank_steps(trace)}"
        state = "complete" if result.complete else stopped
        click.echo(f"{trace}: {result.steps} steps, {state}, {len(result.faults)} faults")
        for fault in result.faults:
            click.echo(f"  {fault}")
    if result.faults:
        return TROUBLE
    return EQUIVALENT if result.complete else DIVERGENT
