"""What this twin's framework does with bytes for the process of a side (harness.side)."""

import numpy as np

from harness.errors import HarnessError


def prepare(run):
    """Make the framework deterministic, in full precision, on the run's device."""
    # run.threads cannot be kept: the BLAS under NumPy takes its number of threads from the
    # environment when it is loaded, and NumPy has no call that changes it.
    if run.device == "gpu":
        raise HarnessError("device gpu: NumPy has none; use --device cpu")
    if run.train.compile or run.train.autograd:
        raise _missing("compile" if run.train.compile else "autograd")
    if int(np.__version__.split(".")[0]) < 2:
        raise HarnessError(
            f"NumPy {np.__version__} computes with float32 scalars in float64; this twin needs "
            "NumPy 2 or newer"
        )


def versions():
    """The framework and its version, as a trace names them."""
    return {"numpy": np.__version__}


def flush_denormals():
    """From now on numbers under 1e-38 count for nothing, where the framework can do so."""
    # It has no switch for it.


def to_array(tensor):
    """A tensor as an array; on the CPU it shares the tensor's memory."""
    return np.asarray(tensor)


def to_tensor(array):
    """An array as a tensor on the run's device; the tensor does not share its memory."""
    return np.array(array)


def scalar(value, dtype):
    """A number as a tensor without axes, of a dtype by its name."""
    return np.asarray(value, dtype)


def compiles(run):
    """Whether the steps of a run are one compiled function, or graph."""
    return run.train.compile  # which `prepare` refuses


def compiled(step, train):
    """A step as one compiled function.

    Args:
        step: a function of tensors, and of dictionaries of them.
        train: the TrainSpec.

    Returns:
        A function of the same arguments.

    """
    raise _missing("compile")


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
    raise _missing("autograd")


def swap(value, onward, backward):
    """`onward` in place of `value`; back-propagation goes on with backward(gradient)."""
    raise _missing("autograd")


def _missing(name):
    return HarnessError(f"{name}=true: NumPy has neither compiler nor autograd; leave it out")
