"""The machine in words: no name of it, no path on it."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from harness.runs.processes import processors

PACKAGES = (
    "twin-harness",
    "numpy",
    "torch",
    "tensorflow",
    "keras",
    "numba",
    "safetensors",
    "msgspec",
    "xxhash",
)


def describe_machine() -> dict[str, str]:
    """Processor, memory, system and versions of packages, by what they are called."""
    described = {
        "processor": f"{_cpu()}, {processors()} cores used",
        "memory": _memory(),
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
    }
    return described | {"packages": ", ".join(f"{name} {_version(name)}" for name in PACKAGES)}


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown processor"


def _memory() -> str:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (OSError, ValueError):
        return "unknown"
    return f"{total / 2**30:.0f} GiB"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
