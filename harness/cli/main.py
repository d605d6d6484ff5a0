"""The command line: parse, call, print, exit code. Nothing is computed here.

What a command needs is imported when it runs: `harness --help` loads neither NumPy nor a framework.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import click

from harness.cli.align import align_command
from harness.cli.bench import bench_command
from harness.cli.faults import faults_group
from harness.cli.files import corpus_command, weights_group
from harness.cli.gradflow import gradflow_command
from harness.cli.options import CONTEXT, TROUBLE, example
from harness.cli.repro import repro_command
from harness.cli.run import run_command
from harness.cli.sweep import sweep_command
from harness.cli.traces import diff_command, explain_command, show_command, trace_group
from harness.cli.train import train_command
from harness.cli.zoom import zoom_command
from harness.errors import DEBUG, HarnessError


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit with its code: 0 equivalent, 1 divergent, 2 trouble."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    if debug:
        os.environ[DEBUG] = "1"
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


COMMANDS = (
    run_command,
    diff_command,
    explain_command,
    align_command,
    repro_command,
    gradflow_command,
    show_command,
    trace_group,
    weights_group,
    corpus_command,
    faults_group,
    zoom_command,
    train_command,
    sweep_command,
    bench_command,
)
for command in COMMANDS:
    harness.add_command(command)
