"""Run a command and say how long it took and how much memory it had at most.

`python -I launch.py OUTPUT COMMAND...`, a small process of its own: the peak of a child counts what
its parent held when it was started. Standard error goes to OUTPUT.err.
"""

import json
import os
import subprocess
import sys
import time

KIB = 1 if sys.platform == "darwin" else 1024  # the unit of ru_maxrss


def main(output: str, command: list[str]) -> None:
    """Print a line of JSON: seconds, peak bytes, exit code; the command's output goes to a file."""
    with open(output, "wb") as out, open(f"{output}.err", "wb") as err:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=out, stderr=err)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
    code = os.waitstatus_to_exitcode(status)
    print(json.dumps({"seconds": seconds, "peak": usage.ru_maxrss * KIB, "code": code}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
