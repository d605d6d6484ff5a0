"""A script of anybody's own as a side: what its process is started with, and its runs."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping
from pathlib import Path

from harness.errors import HarnessError
from harness.runs.processes import ROOT, Program
from harness.side.serving import RUN_VARIABLE
from harness.spec import LABEL, ScriptSpec

# This project's folder is searched last, so that nothing of the script's own is shadowed.
BOOT = "import sys; sys.path.append(sys.argv.pop(1)); from harness.capture.boot import main; main()"
DTYPE_VARIABLE = "HARNESS_DTYPE"
KERAS = "keras.json"
LAUNCHERS = {"torchrun": ("-m", "torch.distributed.run")}  # as the side's own interpreter has them


def parse_script(text: str) -> tuple[str, tuple[str, ...]] | None:
    """The label and the arguments of "[LABEL=]SCRIPT.py ARGUMENTS"; None for a twin.

    In place of the script, "-m MODULE" or "torchrun", which starts it in several processes.
    Raises HarnessError for a script that there is not.
    """
    head, equals, rest = text.partition("=")
    label, command = (head, rest) if equals and LABEL.fullmatch(head) else ("", text)
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise HarnessError(f"--side {text}: {error}: quote it as for a shell") from None
    if words and words[0] in LAUNCHERS:
        words[:1] = LAUNCHERS[words[0]]
    if len(words) > 1 and words[0] == "-m":
        scripts = [word for word in words if word.endswith(".py")]
        return label or Path(scripts[0] if scripts else words[1]).stem, tuple(words)
    if not words or not words[0].endswith(".py"):
        return None
    if not Path(words[0]).is_file():
        raise HarnessError(f"--side {text}: no file {words[0]}: give a script, or a twin")
    return label or Path(words[0]).stem, tuple(words)


def script_program(run: ScriptSpec) -> Program:
    """What the interpreter of a script runs."""
    arguments = ("-P", "-c", BOOT, str(ROOT), *run.argv)
    return Program(arguments, "the script imports it", "it", served=False)


def script_environment(run: ScriptSpec, file: Path, folder: Path) -> Mapping[str, str]:
    """What a script's process finds in its environment, beside that of this one."""
    found = {RUN_VARIABLE: str(file), "OMP_NUM_THREADS": str(run.threads)}
    if "OMP_NUM_THREADS" in os.environ:
        del found["OMP_NUM_THREADS"]
    if run.dtype is None:
        return found
    home = folder / f"keras-{run.dtype}"
    home.mkdir(parents=True, exist_ok=True)
    (home / KERAS).write_text(json.dumps({**_keras_config(), "floatx": run.dtype}), "utf-8")
    wide = "1" if run.dtype == "float64" else "0"
    return {
        **found,
        DTYPE_VARIABLE: run.dtype,
        "KERAS_HOME": str(home.resolve()),
        **({"JAX_ENABLE_X64": wide} if wide == "1" else {}),
    }


def _keras_config() -> dict[str, object]:
    """The user's own settings of Keras, which name the backend."""
    home = Path(os.environ.get("KERAS_HOME", Path.home() / ".keras"))
    try:
        found = json.loads((home / KERAS).read_text("utf-8"))
    except (OSError, ValueError):
        return {"backend": "tensorflow"}
    return found if isinstance(found, dict) else {}
