"""A side as a process: `python -m tf_impl RUN.json`, or served (harness.side.serving)."""

import sys

from harness.side.serving import main
from tf_impl.train import train

if __name__ == "__main__":
    sys.exit(main(train))
