"""A small CNN of stock Keras layers on TensorFlow, traced; images are [B, H, W, C]."""

import keras
import tensorflow as tf
from given import ADAM_EPSILON, ADAM_RATE, EPSILON, RATE, arguments, cnn
from keras import layers

import harness

FAULTS = [
    "batchnorm-momentum",
    "loss-sum",
    "kernel-transposed",
    "bias-dropped",
    "gradient-doubled",
    "leaky-relu",
]


class Net(keras.Model):
    """Two of convolution, batch normalization, ReLU, the first with pooling; then classes."""

    def __init__(self, bias, fault):
        super().__init__()
        momentum = 0.99 if fault == "batchnorm-momentum" else 0.9
        self.conv1 = layers.Conv2D(5, 3, padding="same", use_bias=bias, name="conv1")
        self.bn1 = layers.BatchNormalization(epsilon=EPSILON, momentum=momentum, name="bn1")
        leaky = fault == "leaky-relu"
        self.relu1 = layers.LeakyReLU(negative_slope=0.01) if leaky else layers.ReLU()
        self.pool1 = layers.MaxPooling2D(2)
        self.conv2 = layers.Conv2D(4, 3, padding="same", use_bias=bias, name="conv2")
        self.bn2 = layers.BatchNormalization(epsilon=EPSILON, momentum=0.9, name="bn2")
        self.relu2 = layers.ReLU()
        self.flatten = layers.Flatten()
        self.head = layers.Dense(3, name="head")
        self.fault = fault

    def call(self, x):
        """The activations by name, the logits [B, 3] last."""
        seen = {"conv1": self.conv1(x)}
        seen["bn1"] = self.bn1(seen["conv1"], training=True)
        seen["relu1"] = self.relu1(seen["bn1"])
        seen["pool1"] = self.pool1(seen["relu1"])
        seen["conv2"] = self.conv2(seen["pool1"])
        seen["bn2"] = self.bn2(seen["conv2"], training=True)
        seen["relu2"] = self.relu2(seen["bn2"])
        flat = self.flatten(seen["relu2"])
        seen["logits"] = self.head(flat)
        if self.fault == "bias-dropped":
            seen["logits"] = tf.matmul(flat, self.head.kernel)
        return seen


def parameters(model):
    """Variables that are trained, by the names of the weights."""
    return {"/".join(v.path.split("/")[-2:]): v for v in model.trainable_variables}


def main(argv=None):
    """Train and leave a trace."""
    given = arguments(argv, FAULTS)
    keras.config.set_floatx(given.dtype)
    weights, batches = cnn(given.seed, given.plain, given.flip)
    model = Net(not given.plain, given.fault)
    model(tf.cast(batches[0][0], given.dtype))  # makes the variables
    for name in ("bn1", "bn2"):  # and has moved the running averages
        getattr(model, name).moving_mean.assign(tf.zeros_like(getattr(model, name).moving_mean))
    variables = parameters(model)
    for name, variable in variables.items():
        array = weights[name]
        if given.fault == "kernel-transposed" and name == "conv2/kernel":
            array = array.swapaxes(0, 1)
        variable.assign(array)
    optimizer = keras.optimizers.SGD(RATE)
    if given.adam:
        optimizer = keras.optimizers.Adam(ADAM_RATE, epsilon=ADAM_EPSILON)
    mean = keras.losses.SparseCategoricalCrossentropy(
        from_logits=True, reduction="sum" if given.fault == "loss-sum" else "sum_over_batch_size"
    )
    with harness.TraceWriter(given.out, label="keras", dtype=given.dtype) as trace:
        for step, (x, y) in enumerate(batches, start=1):
            points = {"inputs/x": x, "inputs/y": y}
            if step == 1:
                points |= {f"inputs/params/{n}": v.numpy() for n, v in variables.items()}
            with tf.GradientTape() as tape:
                seen = model(tf.cast(x, given.dtype))
                loss = mean(y, seen["logits"])
            points |= {f"forward/{name}": value.numpy() for name, value in seen.items()}
            points["forward/loss"] = loss.numpy()
            for name in ("bn1", "bn2"):
                points[f"buffers/{name}/mean"] = getattr(model, name).moving_mean.numpy()
            sources = {name: variable.value for name, variable in variables.items()}
            zeros = tf.UnconnectedGradients.ZERO
            grads = tape.gradient(loss, sources, unconnected_gradients=zeros)
            if given.fault == "gradient-doubled":
                grads["conv2/kernel"] *= 2
            points |= {f"grads/{name}": grad.numpy() for name, grad in grads.items()}
            optimizer.apply_gradients((grads[n], v) for n, v in variables.items())
            points |= {f"params/{n}": v.numpy() for n, v in variables.items()}
            trace.write(step, points)


if __name__ == "__main__":
    main()
