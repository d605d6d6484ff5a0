"""What this twin's framework does with bytes for the process of a side (harness.side)."""

import torch

from harness.errors import HarnessError


def prepare(run):
    """Make the framework deterministic, in full precision, on the run's device."""
    torch.set_num_threads(run.threads)
    torch.use_deterministic_algorithms(True)
    torch.backends.cuda.matmul.allow_tf32 = False
    # Until the first step: the weights that are read keep their denormals, in every run.
    torch.set_flush_denormal(False)
    if run.device == "gpu":
        if not torch.cuda.is_available():
            raise HarnessError("device gpu: PyTorch finds no GPU here; use --device cpu")
        torch.set_default_device("cuda")


def versions():
    """The framework and its version, as a trace names them."""
    return {"torch": torch.__version__}


def flush_denormals():
    """From now on numbers under 1e-38 count for nothing, where the framework can do so."""
    # As TensorFlow's kernels do: such numbers cost ten times as much.
    torch.set_flush_denormal(True)


def to_array(tensor):
    """A tensor as an array; on the CPU it shares the tensor's memory."""
    return tensor.detach().cpu().numpy()


def to_tensor(array):
    """An array as a tensor on the run's device; the tensor does not share its memory."""
    return torch.tensor(array)


def scalar(value, dtype):
    """A number as a tensor without axes, of a dtype by its name."""
    return torch.tensor(value, dtype=getattr(torch, dtype))


def compiles(run):
    """Whether the steps of a run are one compiled function, or graph."""
    return run.train.compile


def compiled(step, train):
    """A step as one compiled function.

    Args:
        step: a function of tensors, and of dictionaries of them.
        train: the TrainSpec.

    Returns:
        A function of the same arguments.

    """
    return torch.compile(step, fullgraph=True)


def differentiate(function, params):
    """The gradients of a loss, by the framework's own back-propagation.

    Zeros for what the loss does not depend on: a detached part is to be seen, not to end the run.

    Args:
        function: of the parameters; returns the loss, tensors by name that no gradient is asked of,
            and tensors by name (or lists of them) whose gradients are.
        params: tensors by name.

    Returns:
        The loss, the tensors of the second kind, the gradients of the parameters, and those of the
        third kind, structured as they are.

    """
    params = {name: p.detach().requires_grad_() for name, p in params.items()}
    loss, made, watched = function(params)
    flat = [t for p in watched.values() for t in (p if isinstance(p, list) else [p])]
    wanted = [*params.values(), *(t for t in flat if t.requires_grad)]
    found = iter(torch.autograd.grad(loss, wanted, materialize_grads=True))
    grads = {name: next(found) for name in params}
    flat_grads = iter([next(found) if t.requires_grad else torch.zeros_like(t) for t in flat])
    of_watched = {
        name: [next(flat_grads) for _ in p] if isinstance(p, list) else next(flat_grads)
        for name, p in watched.items()
    }
    return loss.detach(), {name: t.detach() for name, t in made.items()}, grads, of_watched


class _Swap(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value, onward, backward):
        ctx.replace = backward
        return onward.clone()

    @staticmethod
    def backward(ctx, gradient):
        return ctx.replace(gradient), None, None


def swap(value, onward, backward):
    """`onward` in place of `value`; back-propagation goes on with backward(gradient)."""
    return _Swap.apply(value, onward, backward)
