"""The command line: parse, call, print, exit code. Nothing is computed here.

What a command needs is imported when it runs: `harness --help` loads neither NumPy nor a framework.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import click

from harness.cli.bench import bench_command
from harness.cli.faults import faults_group
from harness.cli.files import corpus_command, weights_group
from harness.cli.options import (
    ALL,
    ATOL,
    CONTEXT,
    DATA,
    DIVERGENT,
    EQUIVALENT,
    EXCLUDE,
    FACTOR,
    INCLUDE,
    JSON,
    LEVEL,
    MODEL,
    PLOT,
    RTOL,
    STEPS,
    STRICT,
    TOKENS,
    TROUBLE,
    example,
    parse_count,
    parse_steps,
    print_json,
)
from harness.cli.zoom import zoom_command
from harness.errors import HarnessError
from harness.spec import field_names

if TYPE_CHECKING:
    from harness.compare import DiffResult
    from harness.runs.result import RunResult


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit with its code: 0 equivalent, 1 divergent, 2 trouble."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    try:
        code = harness.main(
            [a for a in arguments if a != "--debug"], "harness", standalone_mode=False
        )
    except click.exceptions.Abort:
        code = _trouble("stopped; what was finished stays readable", debug, 130)
    except click.ClickException as error:
        error.show()
        code = TROUBLE
    except HarnessError as error:
        code = _trouble(str(error), debug)
    except BrokenPipeError:
        sys.stderr.close()  # whoever read our output has gone: nothing to say, nobody to hear it
        code = TROUBLE
    except OSError as error:
        code = _trouble(f"{error}; make room, or choose a place that can be written to", debug)
    except MemoryError:
        code = _trouble("out of memory; trace less at a time (--include, --every, --steps)", debug)
    except Exception as error:
        if debug:
            raise
        code = _trouble(f"internal: {type(error).__name__}: {error}; --debug shows where", debug)
    sys.exit(code or 0)


def _trouble(text: str, debug: bool, code: int = TROUBLE) -> int:
    if debug:
        import traceback

        traceback.print_exc()
    safe = "\n".join(
        "".join(c if c.isprintable() else "?" for c in line) for line in text.split("\n")
    )
    click.echo(f"error: {safe}", err=True)
    return code


@click.group(context_settings=CONTEXT, epilog=example("harness run --trace 10"))
@click.version_option(package_name="twin-harness")
@click.option("--debug", is_flag=True, help="Show where an error came from (anywhere on the line).")
def harness(debug: bool) -> None:
    """Find where, and why, two programs that should compute the same training run part.

    Exit codes of diff: 0 equivalent, 1 divergent. Of run and explain: 0 where the verdict is
    identical, close or rounding (--strict: not rounding), 1 for any other. Of all: 2 trouble (bad
    input, a side died, nothing to compare).
    """


@harness.command(
    "run",
    epilog=example("harness run --trace 10 --weights params.npz --set pt:clip=elementwise"),
)
@click.option(
    "--trace",
    default="10",
    show_default=True,
    metavar="N",
    help="Steps to run and trace; all: one epoch.",
)
@click.option("--weights", metavar="FILE", help="Start from these. [default: drawn from --seed]")
@DATA
@TOKENS
@MODEL
@click.option(
    "--side",
    "sides",
    multiple=True,
    metavar="[LABEL=]TWIN",
    help="pt, tf or np; the last is the reference. [default: pt, then tf]",
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="[LABEL:]NAME=VALUE",
    help=f"Change a setting of both sides, or of one: {', '.join(field_names())}.",
)
@click.option(
    "--fault",
    "faults",
    multiple=True,
    metavar="LABEL:NAME",
    help="Plant a fault in a side (harness faults list).",
)
@click.option(
    "--python",
    "pythons",
    multiple=True,
    metavar="LABEL=PATH",
    help="Interpreter of a side. [default: this one]",
)
@click.option("--dtype", help="float32 or float64.")
@click.option("--lr", help="Learning rate.")
@click.option("--seed", help="Seed of weights, dropout and shuffling.")
@click.option("--batch-size", help="Rows of a batch.")
@click.option("--bptt", help="BPTT length: timesteps of a window.")
@click.option("--compile", "compiled", is_flag=True, help="Compile the steps: torch.compile, XLA.")
@click.option("--out", default="traces", show_default=True, metavar="DIR", help="Where to write.")
@INCLUDE
@EXCLUDE
@click.option("--every", default=1, metavar="N", help="Trace one step in N.")
@STEPS
@LEVEL
@click.option(
    "--checkpoint-every",
    type=int,
    metavar="N",
    help="Keep the weights after every N steps where --level keeps no tensors. [default: 4 times]",
)
@click.option(
    "--zoom",
    is_flag=True,
    help="Run again, from a checkpoint, the steps at which the sides part; trace those in full.",
)
@click.option(
    "--queue",
    default=1024,
    show_default=True,
    metavar="MIB",
    help="Tensors of a side that may wait to be written while it goes on.",
)
@click.option("--device", type=click.Choice(["cpu", "gpu"]), default="cpu")
@click.option("--threads", type=int, help="Threads of one side. [default: an equal share]")
@click.option("--sequential", is_flag=True, help="One side after the other.")
@click.option(
    "--follow",
    is_flag=False,
    flag_value="step",
    type=click.Choice(["step", "stage"]),
    help="Start each step (=stage: each stage) from what the last side's trace holds.",
)
@click.option(
    "--verdict/--no-verdict",
    default=None,
    help="Judge always, or never. [default: where the sides diverge]",
)
@STRICT
@RTOL
@ATOL
@ALL
@PLOT
@JSON
def run_command(
    trace: str,
    sides: tuple[str, ...],
    settings: tuple[str, ...],
    as_json: bool,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    every: int,
    steps: str,
    level: str | None,
    checkpoint_every: int | None,
    zoom: bool,
    queue: int,
    compiled: bool,
    all_: bool,
    plot: str | None,
    strict: bool,
    **options: Any,
) -> int:
    """Run both sides from the same weights, trace every step, compare, and judge.

    Where they diverge, both are run again in float64 and stage by stage from each other's inputs,
    to tell rounding from a bug, and to say which and why.

    Leaves LABEL.trace (the trace), LABEL.log (what it printed), LABEL.npz (the weights after the
    last step) and LABEL.json (what the side was told to do) in --out.
    """
    from harness.report.progress import LiveObserver
    from harness.runs.run import run_sides
    from harness.spec import Capture, build

    first, last = parse_steps(steps)
    kept = {"level": level or ("stats" if zoom else "full"), "checkpoint_every": checkpoint_every}
    names = {"include": include, "exclude": exclude}
    capture = build(Capture, **kept, **names, every=every, first=first, last=last)
    if queue < 1:
        raise HarnessError(f"--queue {queue}: give a number of MiB from 1 up")
    named = {name: options.pop(name) for name in ("dtype", "lr", "seed", "batch_size", "bptt")}
    shared = [f"{name}={value}" for name, value in named.items() if value is not None]
    shared += ["compile=true"] * compiled
    with LiveObserver() as observer:
        result = run_sides(
            trace=parse_count(trace),
            zoom=zoom,
            queue=queue << 20,
            sides=sides or ("pt", "tf"),
            settings=(*shared, *settings),
            capture=capture,
            observer=observer,
            all=all_ or plot is not None,
            **options,
        )
    if as_json:
        print_json(result)
    else:
        _print_run(result)
    if plot and result.diff:
        _plot(result.diff, plot)
    return result.exit_code(strict)


def _print_run(result: RunResult) -> None:
    from harness.report import terminal
    from harness.report.verdict import show_pairs, show_verdict, show_zoom

    out = terminal.console()
    found = result.diff
    parted = found.first_divergence.step if found and found.first_divergence else None
    if result.verdict and found:
        show_verdict(out, result.verdict, found)
    if len(result.pairs) > 1:
        show_pairs(out, result.pairs)
    if result.zoom:
        show_zoom(out, result.zoom)
    terminal.show_losses(out, result.losses, parted)
    terminal.show_valid(out, result.valid, result.entropy)
    if found:
        terminal.show_diff(out, found, result.verdict.label if result.verdict else None)


def _plot(result: DiffResult, path: str) -> None:
    from harness.report.plots import plot_diff

    plot_diff(result, path)
    click.echo(f"plot: {path}", err=True)


@harness.command("diff", epilog=example("harness diff traces/pt.trace traces/tf.trace"))
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
@JSON
def diff_command(
    a: str, b: str, steps: str, all_: bool, plot: str | None, as_json: bool, **options: Any
) -> int:
    """Compare trace A with trace B, the reference: where do they first part?

    The default tolerance scales with each tensor and its dtype (see the README); --factor changes
    its K, and --rtol and --atol compare exactly as numpy.allclose does.
    """
    from harness.compare import diff
    from harness.report import terminal
    from harness.report.progress import LiveObserver

    with LiveObserver() as observer:
        every = all_ or plot is not None
        progress = observer.part("diff")
        result = diff(a, b, steps=parse_steps(steps), all=every, progress=progress, **options)
    if as_json:
        print_json(result)
    else:
        terminal.show_diff(terminal.console(), result)
    if plot:
        _plot(result, plot)
    return EQUIVALENT if result.equivalent else DIVERGENT


@harness.command(
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
@JSON
def explain_command(
    a: str,
    b: str,
    steps: str,
    all_: bool,
    plot: str | None,
    strict: bool,
    as_json: bool,
    **options: Any,
) -> int:
    """Say whether traces A and B (the reference) differ by rounding or by a bug, and why.

    Every further trace makes the answer surer; what would decide is said where one is missing.
    """
    from harness.explain import explain_traces
    from harness.report import terminal
    from harness.report.progress import LiveObserver
    from harness.report.verdict import show_verdict

    with LiveObserver() as observer:
        every = all_ or plot is not None
        options |= {"steps": parse_steps(steps), "all": every, "observer": observer}
        found, verdict = explain_traces(a, b, **options)
    if as_json:
        print_json({"diff": found, "verdict": verdict})
    else:
        out = terminal.console()
        show_verdict(out, verdict, found)
        terminal.show_diff(out, found, verdict.label)
    if plot:
        _plot(found, plot)
    return verdict.exit_code(strict)


@harness.command(
    "show",
    epilog=example("harness show traces/pt.trace forward/logits --step 3 --slice 0,:3"),
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
    found = opened.step(number).find(tensor)
    array = select(opened.step(number).read(found), where, tensor)
    if as_json:
        print_json({"step": number, "entry": found, "values": array.tolist()})
    else:
        terminal.show_tensor(terminal.console(), number, found, array)
    return EQUIVALENT


@harness.group("trace")
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

    with LiveObserver() as observer:
        result = check_trace(trace, observer.part("check"))
    if as_json:
        print_json(result)
    else:
        state = "complete" if result.complete else "not complete: its run was stopped"
        click.echo(f"{trace}: {result.steps} steps, {state}, {len(result.faults)} faults")
        for fault in result.faults:
            click.echo(f"  {fault}")
    if result.faults:
        return TROUBLE
    return EQUIVALENT if result.complete else DIVERGENT


for command in (weights_group, corpus_command, faults_group, zoom_command, bench_command):
    harness.add_command(command)
