"""Runs programs that `harness repro` wrote, all of one framework in one process, without harness.

Called as `python -I repro_programs.py PROGRAM ...`: what each prints is printed as JSON, by path.
"""

import contextlib
import io
import json
import os
import runpy
import sys


def main(paths):
    printed = {}
    sys.modules["harness"] = None  # cannot be imported, wherever it is installed
    for path in paths:
        os.chdir(os.path.dirname(path))
        with contextlib.redirect_stdout(io.StringIO()) as out:
            runpy.run_path(path, run_name="__main__")
        printed[path] = out.getvalue().splitlines()
    del sys.modules["harness"]
    loaded = [name for name in sys.modules if name.partition(".")[0] == "harness"]
    print(json.dumps({"printed": printed, "harness": loaded}))


if __name__ == "__main__":
    main(sys.argv[1:])
