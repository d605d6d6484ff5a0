"""A side as a process: `python -m np_impl RUN.json`, or the names of such files on standard input.

Writes a line of JSON a step to standard output and, serving standard input, one at the end of every
run; whatever is for people goes to standard error.
"""

import json
import sys
import traceback

from harness.errors import HarnessError
from harness.spec import load_run
from np_impl.train import train


def report(**fields):
    """Tell the parent process what happened."""
    print(json.dumps(fields), flush=True)


def run_file(path):
    """Run the side that the file describes; returns what went wrong, or None."""
    try:
        train(load_run(path), report)
    except HarnessError as error:
        print(f"error: {error}", file=sys.stderr)
        return str(error)
    return None


def serve(lines):
    """Run one side after another, so that the framework is imported once; none ends the others."""
    for line in lines:
        try:
            failed = run_file(line.rstrip("\n"))
        except Exception as error:
            traceback.print_exc()
            failed = f"{type(error).__name__}: {error}"
        sys.stderr.flush()
        report(ended=True, failed=failed)


def main(argv):
    """Run the file argv[0], or those that standard input names; returns the exit code."""
    if argv:
        return 2 if run_file(argv[0]) else 0
    serve(sys.stdin)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
