"""A side as a process: `python -m tf_impl RUN.json`, or as a run starts it (harness.serving)."""

import sys

from harness.serving import main
from tf_impl.train import train

if __name__ == "__main__":
    sys.exit(main(train))
