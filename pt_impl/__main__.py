"""One side of a run as a process: `python -m pt_impl RUN.json`.

Writes one line of JSON a step to standard output, whatever is for people to standard error.
"""

import json
import sys

from harness.errors import HarnessError
from harness.spec import load_run
from pt_impl.train import train


def report(**fields):
    """Tell the parent process about a finished step."""
    print(json.dumps(fields), flush=True)


def main(argv):
    """Run the side that the file argv[0] describes; returns the exit code."""
    try:
        train(load_run(argv[0]), report)
    except HarnessError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
