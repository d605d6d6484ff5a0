"""A small causal transformer of stock Keras layers on TensorFlow, traced."""

import keras
import tensorflow as tf
from given import EPSILON, RATE, arguments, transformer
from keras import layers

import harness

FAULTS = [
    "layernorm-epsilon",
    "gelu-tanh",
    "loss-sum",
    "kernel-transposed",
    "bias-dropped",
    "scale-missing",
    "gradient-doubled",
]
HEADS = 2


def gelu_in_full(x):
    """What `gelu` is in the dtype of x: TensorFlow rounds its constants to float32."""
    root = tf.sqrt(tf.constant(2, x.dtype))
    return x * (1 + tf.math.erf(x / root)) / 2


class Block(keras.Model):
    """Attention, then two dense layers; each reads a norm of what it adds to."""

    def __init__(self, width, plain, fault, name):
        super().__init__(name=name)
        epsilon = 1e-6 if fault == "layernorm-epsilon" else EPSILON
        self.norm1 = layers.LayerNormalization(epsilon=epsilon, name="norm1")
        self.attention = layers.MultiHeadAttention(
            HEADS, width // HEADS, use_bias=not plain, name="attention"
        )
        if fault == "scale-missing":
            self.attention._inverse_sqrt_key_dim = 1.0
        self.norm2 = layers.LayerNormalization(epsilon=EPSILON, name="norm2")
        self.wide = layers.Dense(13, name="wide")
        self.gelu = gelu_in_full if plain else keras.activations.gelu
        self.narrow = layers.Dense(width, name="narrow")
        self.fault = fault

    def call(self, x):
        """What the block makes of x [B, T, E], and its activations by name."""
        seen = {"norm1": (h := self.norm1(x))}
        seen["attention"] = h = self.attention(h, h, use_causal_mask=True)
        seen["norm2"] = h = self.norm2(x := x + h)
        seen["wide"] = h = self.wide(h)
        tanh = self.fault == "gelu-tanh"
        h = keras.activations.gelu(h, approximate=True) if tanh else self.gelu(h)
        seen["gelu"] = h
        inner, h = h, self.narrow(h)
        if self.fault == "bias-dropped":
            h = tf.matmul(inner, self.narrow.kernel)
        seen["narrow"] = h
        return x + h, seen


class Net(keras.Model):
    """Embedding, two blocks, a norm, logits; `fault` is in the first block."""

    def __init__(self, width, plain, fault):
        super().__init__()
        self.tokens = layers.Embedding(11, width, name="tokens")
        self.positions = layers.Embedding(7, width, name="positions")
        self.block0 = Block(width, plain, fault, "block0")
        self.block1 = Block(width, plain, None, "block1")
        self.norm = layers.LayerNormalization(epsilon=EPSILON, name="norm")
        self.head = layers.Dense(11, name="head")

    def call(self, x):
        """The activations by name, the logits [B, T, 11] last."""
        seen = {"embedding": self.tokens(x) + self.positions(tf.range(7))}
        h = seen["embedding"]
        for name in ("block0", "block1"):
            h, inner = getattr(self, name)(h)
            seen |= {f"{name}/{point}": value for point, value in inner.items()}
        seen["norm"] = self.norm(h)
        seen["logits"] = self.head(seen["norm"])
        return seen


def parameters(model):
    """Variables that are trained, by the names of the weights."""
    found = {}
    for variable in model.trainable_variables:
        path = variable.path.partition("/")[2].replace("embeddings", "table")
        name = path.replace("attention/attention_output", "output").replace("attention/", "")
        found[name] = variable
    return found


def arrays(tensors, weights, prefix):
    """Arrays in the shapes of the weights, by names with `prefix`: Keras splits heads."""
    dense = {name: tf.convert_to_tensor(tensor).numpy() for name, tensor in tensors.items()}
    return {f"{prefix}/{n}": array.reshape(weights[n].shape) for n, array in dense.items()}


def main(argv=None):
    """Train and leave a trace."""
    given = arguments(argv, FAULTS)
    keras.config.set_floatx(given.dtype)
    weights, batches = transformer(given.seed, given.plain)
    model = Net(8 if given.plain else 6, given.plain, given.fault)
    model(batches[0][0])  # makes the variables
    variables = parameters(model)
    for name, variable in variables.items():
        wrong = given.fault == "kernel-transposed" and name == "block0/output/kernel"
        array = weights[name].T if wrong else weights[name]
        variable.assign(array.reshape(variable.shape))
    optimizer = keras.optimizers.SGD(RATE)
    loss_of = keras.losses.SparseCategoricalCrossentropy(
        from_logits=True, reduction="sum" if given.fault == "loss-sum" else "sum_over_batch_size"
    )
    with harness.TraceWriter(given.out, label="keras", dtype=given.dtype) as trace:
        for step, (x, y) in enumerate(batches, start=1):
            points = {"inputs/x": x, "inputs/y": y}
            if step == 1:
                points |= arrays(variables, weights, "inputs/params")
            with tf.GradientTape() as tape:
                seen = model(x)
                loss = loss_of(y, seen["logits"])
            points |= {f"forward/{name}": value.numpy() for name, value in seen.items()}
            points["forward/loss"] = loss.numpy()
            sources = {name: variable.value for name, variable in variables.items()}
            zeros = tf.UnconnectedGradients.ZERO
            grads = tape.gradient(loss, sources, unconnected_gradients=zeros)
            if given.fault == "gradient-doubled":
                grads["block0/wide/kernel"] *= 2
            points |= arrays(grads, weights, "grads")
            optimizer.apply_gradients((grads[n], v) for n, v in variables.items())
            points |= arrays(variables, weights, "params")
            trace.write(step, points)


if __name__ == "__main__":
    main()
