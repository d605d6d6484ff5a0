"""Compiled functions of PyTorch, which run while they are recorded as if nobody watched."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def compiled_regions(hooks: Hooks) -> Iterator[None]:
    """While this lasts, compiled functions run without the mode and without module hooks.

    Either would be traced into them, and they would compute something else than unwatched. What
    enters and leaves them goes through one function of torch._dynamo, which is not public: the
    frame that calls it first enters the outermost of them, and leaves it with its second call.
    """
    frames = sys.modules.get("torch._dynamo.eval_frame")
    enter = getattr(frames, "_maybe_set_eval_frame", None)
    if frames is None or enter is None:
        yield
        return
    inside: list[tuple[Any, Callable[[], None]]] = []

    def watched(callback: Any) -> Any:
        frame = sys._getframe(1)
        if not inside and callable(callback):
            inside.append((frame, _pause(hooks)))
        elif inside and inside[0][0] is frame:
            inside.pop()[1]()
        return enter(callback)

    frames._maybe_set_eval_frame = watched  # type: ignore[attr-defined]
    try:
        yield
    finally:
        frames._maybe_set_eval_frame = enter  # type: ignore[attr-defined]


class Hooks:
    """Hooks on some modules, which can be taken away and put back."""

    def __init__(
        self, modules: Sequence[Any], before: Callable[..., None], after: Callable[..., Any]
    ) -> None:
        """None is there yet."""
        self._modules, self._before, self._after = modules, before, after
        self._handles: list[Any] = []

    def add(self) -> None:
        """Put them on."""
        for module in self._modules:
            self._handles.append(module.register_forward_pre_hook(self._before))
            self._handles.append(module.register_forward_hook(self._after))

    def remove(self) -> None:
        """Take them away."""
        while self._handles:
            self._handles.pop().remove()


def _pause(hooks: Hooks) -> Callable[[], None]:
    """Take the mode and the hooks away; what puts them back."""
    hooks.remove()
    stack = []
    while torch._C._len_torch_function_stack():
        stack.append(torch.overrides._pop_mode())  # type: ignore[no-untyped-call]

    def resume() -> None:
        while stack:
            torch.overrides._push_mode(stack.pop())  # type: ignore[no-untyped-call]
        hooks.add()

    return resume
