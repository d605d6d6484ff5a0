"""Run one of the scripts once for each line of standard input, a JSON list of arguments.

To import a framework takes longer than to train.

    python several.py cnn_torch
"""

import json
import sys
from importlib import import_module

script = import_module(sys.argv[1])
for line in sys.stdin:
    script.main(json.loads(line))
    if "keras" in sys.modules:  # which remembers the dtype of the first run
        sys.modules["keras"].utils.clear_session()
    print("done", flush=True)
