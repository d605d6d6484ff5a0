"""Tensors of PyTorch as a trace takes them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from harness.capture.step import Step


def copied(tensor: Tensor) -> Tensor:
    """A tensor that nothing changes any more, on the CPU."""
    tensor = tensor.detach()
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    if tensor.device.type == "cpu":
        return tensor.clone(memory_format=torch.contiguous_format)
    return tensor.to("cpu", copy=True).contiguous()


def kept(step: Step, name: str, tensor: Tensor) -> Any:
    """What is kept of a tensor: a copy, or at a level without elements what is known of it."""
    # Operations that are points may get other names later, and what is known goes by the name.
    if not step.deep and tensor.device.type == "cpu" and tensor.layout == torch.strided:
        known = step.described(name, tensor.detach())
        if known is not None:
            return known
    return copied(tensor)


def has_numbers(tensor: Tensor) -> bool:
    """Whether a tensor is of floats that can be read: no stand-in, no subclass."""
    plain = type(tensor) in (Tensor, torch.nn.Parameter)
    return plain and not is_stand_in(tensor) and tensor.is_floating_point()


def is_stand_in(tensor: Tensor) -> bool:
    """Whether a tensor stands for others: of torch.func, or without elements."""
    wrapped: bool = torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    return wrapped or tensor.device.type == "meta"
