"""Which program made a trace, so that a change of its code between two runs can be told."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from harness.trace.schema import Program

INSTALLED = ("site-packages", "dist-packages")  # folders of libraries, also below a script's own


def twin(package: str) -> Program:
    """The program of a twin: the package that is imported under this name."""
    found = sys.modules.get(package)
    files: dict[str, Path] = {}
    for folder in map(Path, getattr(found, "__path__", ())):
        files |= {path.relative_to(folder).as_posix(): path for path in folder.rglob("*.py")}
    return Program("twin", package, _digest(files))


def script() -> Program:
    """The program of the script that this process runs; "interactive" where it runs none."""
    file = _file(sys.modules.get("__main__"))
    if file is None:
        return Program("script", "interactive", "")
    main = Path(os.path.realpath(file))  # as Python itself does to find the modules beside it
    files = {main.name: main}
    for module in list(sys.modules.values()):
        file = _file(module)
        if file and file.startswith(f"{main.parent}{os.sep}"):
            path = Path(file)
            name = path.relative_to(main.parent)
            if not set(INSTALLED).intersection(name.parts):
                files[name.as_posix()] = path
    return Program("script", _printable(main.name), _digest(files))


def _file(module: Any) -> str | None:
    """The source of a module. Not by attribute: a lazy module would be loaded by that."""
    try:
        name = vars(module).get("__file__")
    except TypeError:  # no module at all
        return None
    return os.path.abspath(name) if isinstance(name, str) and name.endswith(".py") else None


def _digest(files: Mapping[str, Path]) -> str:
    """Of relative paths and bytes, in the order of the paths; "" where a file cannot be read."""
    found = xxhash.xxh3_128()
    try:
        for name in sorted(files):
            source = files[name].read_bytes()
            path = name.encode("utf-8", "surrogateescape")
            found.update(path + f"\0{len(source)}\0".encode() + source)
    except OSError:
        return ""
    return found.hexdigest() if files else ""


def _printable(name: str) -> str:
    return name.encode("utf-8", "backslashreplace").decode()


def versions() -> dict[str, str]:
    """Those of Python, of NumPy and of this project."""
    found = {"python": platform.python_version(), "numpy": np.__version__}
    try:
        found["twin-harness"] = version("twin-harness")
    except PackageNotFoundError:  # run from a checkout that is not installed
        found["twin-harness"] = "not installed"
    return found
