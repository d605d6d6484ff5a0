"""A package that is a function too: `harness.explain` holds modules, and `harness.explain(a, b)` is
what a user calls.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any


class _CallableModule(ModuleType):
    called: Callable[..., Any]

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Call the function that the package is named after."""
        return self.called(*arguments, **options)


def callable_as(module: str, function: Callable[..., Any]) -> None:
    """Make calling the module of this name call `function`."""
    made = sys.modules[module]
    made.__class__ = _CallableModule
    made.__dict__["called"] = function
