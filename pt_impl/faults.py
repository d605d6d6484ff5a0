"""Faults to plant: each puts a small replacement in place of functions of this twin.

A replacement is given the function that it replaces, then that one's arguments.
"""

import sys
from contextlib import contextmanager
from functools import partial
from importlib import import_module

from harness.errors import HarnessError
from pt_impl import faults_backward, faults_forward, faults_update
from pt_impl.faults_tools import kept

# Name of the fault -> name of the function that is replaced -> its replacement.
FAULTS = {**faults_forward.FAULTS, **faults_backward.FAULTS, **faults_update.FAULTS}


@contextmanager
def planted(names):
    """Plant the faults of these names; several may replace one function."""
    unknown = [name for name in names if name not in FAULTS]
    if unknown:
        raise HarnessError(f"no fault named {unknown[0]!r}; there are: {', '.join(sorted(FAULTS))}")
    import_module(f"{__package__}.train")  # it binds all that can be replaced
    originals = []
    kept.clear()
    try:
        for name in names:
            for function, replacement in FAULTS[name].items():
                originals += put(function, replacement)
        yield
    finally:
        for module, function, original in reversed(originals):
            setattr(module, function, original)
        kept.clear()


def put(function, replacement):
    """Put `replacement` wherever this twin has `function`; returns where, and what was there."""
    own = [m for name, m in sys.modules.items() if name.startswith(f"{__package__}.")]
    having = [module for module in own if hasattr(module, function)]
    original = getattr(having[0], function)
    having = [module for module in having if getattr(module, function) is original]
    changed = partial(replacement, original)
    for module in having:
        setattr(module, function, changed)
    return [(module, function, original) for module in having]
