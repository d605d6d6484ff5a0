"""Faults to plant: each puts a small replacement in place of functions of this twin.

A replacement is given the function that it replaces, then that one's arguments.
"""

import sys
from contextlib import contextmanager
from functools import partial
from importlib import import_module

from harness.errors import HarnessError
from harness.side.steps import compiled
from tf_impl.faults_backward import FAULTS as BACKWARD
from tf_impl.faults_forward import FAULTS as FORWARD
from tf_impl.faults_layers import FAULTS as LAYERS
from tf_impl.faults_tools import kept
from tf_impl.faults_update import FAULTS as UPDATE

# Name of the fault -> name of the function that is replaced -> its replacement.
FAULTS = {**FORWARD, **BACKWARD, **UPDATE, **LAYERS}


@contextmanager
def planted(names):
    """Plant the faults of these names; several may replace one function."""
    unknown = [name for name in names if name not in FAULTS]
    if unknown:
        raise HarnessError(f"no fault named {unknown[0]!r}; there are: {', '.join(sorted(FAULTS))}")
    import_module(f"{__package__}.train")  # it imports all that can be replaced
    if names:
        compiled.cache_clear()  # graphs of the functions as they were
    twin = [module for name, module in sys.modules.items() if name.startswith(f"{__package__}.")]
    originals = []
    kept.clear()
    try:
        for function, replacement in [pair for name in names for pair in FAULTS[name].items()]:
            for module in [module for module in twin if hasattr(module, function)]:
                original = getattr(module, function)
                originals.append((module, function, original))
                setattr(module, function, partial(replacement, original))
        yield
    finally:
        for module, function, original in reversed(originals):
            setattr(module, function, original)
        kept.clear()
        if names:
            compiled.cache_clear()
