"""The command line: parse, call, print, exit code. Nothing is computed here.

What a command needs is imported when it runs: `harness --help` loads neither NumPy nor a framework.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import click

from harness.errors import HarnessError
from harness.spec import PRESETS, field_names

if TYPE_CHECKING:
    from harness.compare import DiffResult
    from harness.run import RunResult

EQUIVALENT, DIVERGENT, TROUBLE = 0, 1, 2
CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


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


def _example(text: str) -> str:
    return f"\b\nExample:\n  {text}"


def _json(value: object) -> None:
    import msgspec

    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2))


JSON = click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
RTOL = click.option("--rtol", type=float, help="With --atol: numpy.allclose's rule.")
ATOL = click.option("--atol", type=float, help="With --rtol: numpy.allclose's rule.")
DATA = click.option(
    "--data", metavar="PATH", help="Corpus: a folder or text file. [default: the built-in one]"
)
LEVEL = click.option(
    "--level", type=click.Choice(["word", "char"]), default="word", help="Tokens of the corpus."
)
MODEL = click.option("--model", type=click.Choice(list(PRESETS)), help="A published model.")
INCLUDE = click.option("--include", multiple=True, metavar="GLOB", help="Only tensors like this.")
EXCLUDE = click.option("--exclude", multiple=True, metavar="GLOB", help="No tensors like this.")
ALL = click.option("--all", "all_", is_flag=True, help="Do not stop at the first divergence.")
PLOT = click.option(
    "--plot", metavar="FILE", help="Draw losses and distances step by step (implies --all)."
)
STEPS = click.option("--steps", metavar="A:B", default=":", help="Steps A to B, both included.")


@click.group(context_settings=CONTEXT, epilog=_example("harness run --trace 10"))
@click.version_option(package_name="twin-harness")
@click.option("--debug", is_flag=True, help="Show where an error came from (anywhere on the line).")
def harness(debug: bool) -> None:
    """Find where, and why, two programs that should compute the same training run part.

    Exit codes: 0 equivalent, 1 divergent, 2 trouble (bad input, a side died, nothing to compare).
    """


@harness.command(
    "run",
    epilog=_example("harness run --trace 10 --weights params.npz --set pt:clip=elementwise"),
)
@click.option("--trace", default=10, show_default=True, metavar="N", help="Steps to run and trace.")
@click.option("--weights", metavar="FILE", help="Start from these. [default: drawn from --seed]")
@DATA
@LEVEL
@MODEL
@click.option(
    "--side",
    "sides",
    multiple=True,
    metavar="[LABEL=]TWIN",
    help="pt or tf; the last is the reference. [default: pt, then tf]",
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="[LABEL:]NAME=VALUE",
    help=f"Change a setting of both sides, or of one: {', '.join(field_names())}.",
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
@click.option("--out", default="traces", show_default=True, metavar="DIR", help="Where to write.")
@INCLUDE
@EXCLUDE
@click.option("--every", default=1, metavar="N", help="Trace one step in N.")
@STEPS
@click.option("--device", type=click.Choice(["cpu", "gpu"]), default="cpu")
@click.option("--threads", type=int, help="Threads of one side. [default: an equal share]")
@click.option("--sequential", is_flag=True, help="One side after the other.")
@RTOL
@ATOL
@ALL
@PLOT
@JSON
def run_command(
    trace: int,
    sides: tuple[str, ...],
    settings: tuple[str, ...],
    as_json: bool,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    every: int,
    steps: str,
    all_: bool,
    plot: str | None,
    **options: Any,
) -> int:
    """Run both sides from the same weights, trace every step, and compare.

    Leaves LABEL.trace (the trace), LABEL.log (standard error), LABEL.npz (the weights after the
    last step) and LABEL.json (what the side was told to do) in --out.
    """
    from harness.report.progress import LiveObserver
    from harness.run import run_sides
    from harness.spec import Capture, build

    first, last = _parse_steps(steps)
    capture = build(Capture, include=include, exclude=exclude, every=every, first=first, last=last)
    named = {name: options.pop(name) for name in ("dtype", "lr", "seed", "batch_size", "bptt")}
    shared = [f"{name}={value}" for name, value in named.items() if value is not None]
    with LiveObserver() as observer:
        result = run_sides(
            trace=trace,
            sides=sides or ("pt", "tf"),
            settings=(*shared, *settings),
            capture=capture,
            observer=observer,
            all=all_ or plot is not None,
            **options,
        )
    if as_json:
        _json(result)
    else:
        _print_run(result)
    if plot and result.diff:
        _plot(result.diff, plot)
    return EQUIVALENT if result.diff is None or result.diff.equivalent else DIVERGENT


def _print_run(result: RunResult) -> None:
    from harness.report import terminal

    out = terminal.console()
    found = result.diff
    parted = found.first_divergence.step if found and found.first_divergence else None
    terminal.show_losses(out, result.losses, parted)
    terminal.show_valid(out, result.valid, result.entropy)
    if found:
        terminal.show_diff(out, found)


def _plot(result: DiffResult, path: str) -> None:
    from harness.report.plots import plot_diff

    plot_diff(result, path)
    click.echo(f"plot: {path}", err=True)


@harness.command("diff", epilog=_example("harness diff traces/pt.trace traces/tf.trace"))
@click.argument("a")
@click.argument("b")
@RTOL
@ATOL
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

    The default tolerance scales with each tensor and its dtype (see the README); --rtol and --atol
    compare exactly as numpy.allclose does.
    """
    from harness.compare import diff
    from harness.report import terminal
    from harness.report.progress import LiveObserver

    with LiveObserver() as observer:
        every = all_ or plot is not None
        progress = observer.part("diff")
        result = diff(a, b, steps=_parse_steps(steps), all=every, progress=progress, **options)
    if as_json:
        _json(result)
    else:
        terminal.show_diff(terminal.console(), result)
    if plot:
        _plot(result, plot)
    return EQUIVALENT if result.equivalent else DIVERGENT


@harness.command(
    "show",
    epilog=_example("harness show traces/pt.trace forward/logits --step 3 --slice 0,:3"),
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
            _json({"header": opened.header, "steps": opened.steps, "entry": entry})
        else:
            terminal.show_trace(terminal.console(), opened, entry)
        return EQUIVALENT
    found = opened.step(number).find(tensor)
    array = select(opened.step(number).read(found), where, tensor)
    if as_json:
        _json({"step": number, "entry": found, "values": array.tolist()})
    else:
        terminal.show_tensor(terminal.console(), number, found, array)
    return EQUIVALENT


@harness.group("trace")
def trace_group() -> None:
    """Work on trace folders."""


@trace_group.command("check", epilog=_example("harness trace check traces/pt.trace"))
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
        _json(result)
    else:
        state = "complete" if result.complete else "not complete: its run was stopped"
        click.echo(f"{trace}: {result.steps} steps, {state}, {len(result.faults)} faults")
        for fault in result.faults:
            click.echo(f"  {fault}")
    if result.faults:
        return TROUBLE
    return EQUIVALENT if result.complete else DIVERGENT


@harness.group("weights")
def weights_group() -> None:
    """Make, inspect, check and convert files of weights (.npz or .safetensors)."""


@weights_group.command(
    "init",
    epilog=_example("harness weights init params.npz --model zaremba-small --seed 1"),
)
@click.argument("file")
@MODEL
@DATA
@LEVEL
@click.option("--seed", default=1, show_default=True, type=click.IntRange(0, 2**62 - 1))
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="Change a setting.")
def weights_init(
    file: str,
    model: str | None,
    data: str | None,
    level: str,
    seed: int,
    settings: tuple[str, ...],
) -> int:
    """Draw weights for a model over a corpus's vocabulary and save them."""
    from harness import weights
    from harness.run import model_for

    spec = model_for(model, data, level, settings)
    drawn = weights.draw(spec, seed)
    weights.save(drawn, file)
    count = sum(array.size for array in drawn.values())
    click.echo(f"{file}: {count:,} parameters drawn from seed {seed}, U(+-{spec.init_scale:g})")
    return EQUIVALENT


@weights_group.command("show", epilog=_example("harness weights show params.npz"))
@click.argument("file")
@JSON
def weights_show(file: str, as_json: bool) -> int:
    """List the arrays of a file: name, shape, dtype, range."""
    from harness import weights
    from harness.report import terminal

    arrays = weights.read_arrays(file)
    if as_json:
        _json({name: {"shape": a.shape, "dtype": str(a.dtype)} for name, a in arrays.items()})
    else:
        terminal.show_arrays(terminal.console(), arrays)
    return EQUIVALENT


@weights_group.command(
    "check",
    epilog=_example("harness weights check params.npz --model zaremba-small --data ptb/"),
)
@click.argument("file")
@MODEL
@DATA
@LEVEL
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="Change a setting.")
@JSON
def weights_check(
    file: str,
    model: str | None,
    data: str | None,
    level: str,
    settings: tuple[str, ...],
    as_json: bool,
) -> int:
    """Check that a file holds the weights of a model: names, shapes, finite numbers.

    Without --model, --data and --set: of any model that is consistent in itself.
    """
    from harness import weights
    from harness.run import model_for

    expected = model_for(model, data, level, settings) if model or data or settings else None
    weights.load(file, expected)
    sizes = weights.describe_model(file)
    if as_json:
        _json(sizes)
        return EQUIVALENT
    click.echo(
        f"{file}: sound; vocabulary {sizes.vocab_size}, embedding {sizes.embed_size}, "
        f"{sizes.num_layers} layers of {sizes.hidden_size}"
    )
    return EQUIVALENT


@weights_group.command(
    "convert",
    epilog=_example("harness weights convert params.npz torch.npz --to torch"),
)
@click.argument("source")
@click.argument("target")
@click.option("--to", required=True, help="canonical, original, torch, keras or tf1.")
@click.option("--from", "layout", help="Layout of SOURCE. [default: recognised by its names]")
def weights_convert(source: str, target: str, to: str, layout: str | None) -> int:
    """Rewrite weights in the layout of another program: names, axes, gate order, biases."""
    from harness import weights

    written = weights.convert(source, target, to, layout)
    click.echo(f"{target}: {len(written)} arrays in layout {to}")
    return EQUIVALENT


@harness.command("corpus", epilog=_example("harness corpus --data ptb/"))
@DATA
@LEVEL
@JSON
def corpus_command(data: str | None, level: str, as_json: bool) -> int:
    """Say what a corpus holds, and of the built-in one its exact entropy."""
    from harness import corpus
    from harness.run import describe_corpus

    found = corpus.load(data, level)
    if as_json:
        splits = {name: len(getattr(found, name)) for name in corpus.SPLITS}
        known = {"vocabulary": len(found.vocabulary), "entropy": found.entropy}
        _json({"name": found.name, **splits, **known})
    else:
        click.echo(describe_corpus(found))
    return EQUIVALENT


@harness.command("bench", epilog=_example("harness bench"))
@click.option("--elements", default=5_000_000, show_default=True, help="Size of an array.")
@click.option("--rounds", default=7, show_default=True, help="How often each is timed.")
@JSON
def bench_command(elements: int, rounds: int, as_json: bool) -> int:
    """Time comparing and tracing against named peers: medians, spread, ratios."""
    from harness.bench import bench
    from harness.report import terminal
    from harness.report.progress import LiveObserver

    if min(elements, rounds) < 1:
        raise HarnessError(f"--elements {elements}, --rounds {rounds}: both are from 1 up")
    with LiveObserver() as observer:
        result = bench(elements, rounds, observer.part("bench"))
    if as_json:
        _json(result)
    else:
        terminal.show_bench(terminal.console(), result)
    return EQUIVALENT


def _parse_steps(text: str) -> tuple[int, int | None]:
    """The first and last step of "A:B", "A:", ":B" or "A"."""
    start, colon, end = text.partition(":")
    try:
        first = int(start) if start else 1
        last = (int(end) if end else None) if colon else first
    except ValueError:
        first, last = 0, None
    if first < 1 or (last is not None and last < first):
        raise HarnessError(f"--steps {text}: give A:B, steps from A to B, counted from 1")
    return first, last
