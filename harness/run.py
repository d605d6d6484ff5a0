"""`python -m harness.run` is the command `harness run`."""

import sys

from harness.cli.main import main

if __name__ == "__main__":
    main(["run", *sys.argv[1:]])
