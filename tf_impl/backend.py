"""What this twin's framework does with bytes for the process of a side (harness.side)."""

import numpy as np
import tensorflow as tf

from harness.errors import HarnessError

GRAPH = 30  # steps from which on building a graph pays
# Faults that are Python: they keep something from one call to the next, or compute a setting.
NO_GRAPH = {"gradients-stale", "gradients-accumulated", "old-weights", "norm-duplicates"}
NO_GRAPH |= {
    "optimizer-rebuilt",
    "unclipped-used",
    "dropout-in-evaluation",
    "adam-epsilon-uncorrected",
    "weight-mask-stale",
}


def prepare(run):
    """Make the framework deterministic, in full precision, on the run's device."""
    tf.config.threading.set_intra_op_parallelism_threads(run.threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    tf.config.experimental.enable_op_determinism()
    tf.config.experimental.enable_tensor_float_32_execution(False)
    # A graph is to compute what its operations say, and nothing that they are rewritten to.
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    if run.device == "cpu":
        tf.config.set_visible_devices([], "GPU")
    elif not tf.config.list_physical_devices("GPU"):
        raise HarnessError("device gpu: TensorFlow finds no GPU here; use --device cpu")


def versions():
    """The framework and its version, as a trace names them."""
    return {"tensorflow": tf.__version__}


def flush_denormals():
    """From now on numbers under 1e-38 count for nothing, where the framework can do so."""
    # Its kernels do so always.


def to_array(tensor):
    """A tensor as an array; on the CPU it shares the tensor's memory."""
    return np.asarray(memoryview(tensor)) if "CPU" in tensor.device else tensor.numpy()


def to_tensor(array):
    """An array as a tensor on the run's device; the tensor does not share its memory."""
    return tf.constant(array)


def scalar(value, dtype):
    """A number as a tensor without axes, of a dtype by its name."""
    return tf.constant(value, dtype=getattr(tf, dtype))


def compiles(run):
    """Whether the steps of a run are one compiled function, or graph."""
    # Not compiled it is a graph: the kernels of eager calls, so the same bits, at half their cost.
    graph = run.steps - run.start >= GRAPH and not NO_GRAPH.intersection(run.faults)
    return run.train.compile or graph


def compiled(step, train):
    """A step as one compiled function.

    Args:
        step: a function of tensors, and of dictionaries of them.
        train: the TrainSpec.

    Returns:
        A function of the same arguments.

    """
    return tf.function(step, jit_compile=train.compile, autograph=False)


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
    with tf.GradientTape() as tape:
        tape.watch(params)
        loss, made, watched = function(params)
    nothing = tf.UnconnectedGradients.ZERO
    found = tape.gradient(loss, (params, watched), unconnected_gradients=nothing)
    # The embedding's gradient comes as rows, one for each token read: add up those of one token.
    grads = {name: tf.convert_to_tensor(g) for name, g in found[0].items()}
    return loss, made, grads, found[1]


def swap(value, onward, backward):
    """`onward` in place of `value`; back-propagation goes on with backward(gradient)."""

    @tf.custom_gradient
    def swapped(value):
        return tf.identity(onward), backward

    return swapped(value)
