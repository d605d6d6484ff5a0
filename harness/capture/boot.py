"""The first lines of a script's process under `harness run`: the dtype, and then the script."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import os
import runpy
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any


class _Torch(importlib.abc.MetaPathFinder):
    """Sets PyTorch's default dtype as soon as it is imported, and not before: it takes seconds."""

    def __init__(self, dtype: str) -> None:
        self._dtype = dtype

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """The module as it is found without this, but for what is done after its import."""
        if name != "torch":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        load, dtype = spec.loader.exec_module, self._dtype

        def exec_module(module: ModuleType) -> None:
            load(module)
            module.set_default_dtype(getattr(module, dtype))

        loader: Any = spec.loader
        loader.exec_module = exec_module
        return spec


def set_dtype(dtype: str) -> None:
    """PyTorch's default dtype, now or as soon as it is imported.

    Once a process, when this package is imported: a script may start others that train.
    """
    torch: Any = sys.modules.get("torch")
    if torch is None:
        sys.meta_path.insert(0, _Torch(dtype))
    else:
        torch.set_default_dtype(getattr(torch, dtype))


def main() -> None:
    """Run what the arguments name, as `python script.py` or `python -m module` would."""
    if sys.argv[1] == "-m":
        sys.argv = sys.argv[2:]
        sys.path.insert(0, os.getcwd())
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        return
    script = sys.argv[1]
    sys.argv = sys.argv[1:]
    sys.path.insert(0, os.path.dirname(os.path.abspath(script)))
    runpy.run_path(script, run_name="__main__")
