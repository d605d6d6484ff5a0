"""Tensors of PyTorch as a trace takes them."""

from __future__ import annotations

import torch
from torch import Tensor


def copied(tensor: Tensor) -> Tensor:
    """A tensor that nothing changes any more, on the CPU."""
    tensor = tensor.detach()
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    return tensor.to("cpu", copy=True).contiguous()


def has_numbers(tensor: Tensor) -> bool:
    """Whether a tensor is of floats that can be read: no stand-in, no subclass."""
    plain = type(tensor) in (Tensor, torch.nn.Parameter)
    return plain and not is_stand_in(tensor) and tensor.is_floating_point()


def is_stand_in(tensor: Tensor) -> bool:
    """Whether a tensor stands for others: of torch.func, or without elements."""
    wrapped: bool = torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    return wrapped or tensor.device.type == "meta"
