"""The stock models in Keras, traced under the names and in the layouts that Keras has itself.

python native_keras.py MODEL --out PATH ...: cnn, transformer or lstm; arguments as of the others.
"""

import sys

import cnn_keras
import keras
import numpy as np
import tensorflow as tf
import transformer_keras
from given import ADAM_EPSILON, ADAM_RATE, arguments, cnn, transformer
from keras import layers

import harness


class Lstm(keras.Model):
    """Tokens, two LSTM layers, logits."""

    def __init__(self):
        super().__init__()
        self.tokens = layers.Embedding(11, 6)
        self.lower = layers.LSTM(6, return_sequences=True)
        self.upper = layers.LSTM(6, return_sequences=True)
        self.head = layers.Dense(11)

    def call(self, x):
        """Logits [B, T, 11]."""
        return {"logits": self.head(self.upper(self.lower(self.tokens(x))))}


def lstm(seed):
    """Weights of the LSTM model, drawn as the script in PyTorch draws them, and batches."""
    draw = np.random.default_rng(seed)
    normal = lambda *shape: draw.normal(0, 0.4, shape).astype(np.float32)  # noqa: E731
    weights = [normal(11, 6)]
    for _ in range(2):
        w_i, w_h = normal(24, 6), normal(24, 6)
        weights += [w_i.T, w_h.T, np.zeros(24, np.float32)]
    weights += [normal(11, 6).T, np.zeros(11, np.float32)]
    tokens = draw.integers(0, 11, (5, 3, 8)).astype(np.int32)
    return weights, [(t[:, :-1], t[:, 1:]) for t in tokens]


def made(which, given):
    """The model with its weights, and batches."""
    if which == "lstm":
        weights, batches = lstm(given.seed)
        model = Lstm()
        model(batches[0][0])
        for variable, w in zip(model.trainable_variables, weights, strict=True):
            variable.assign(w)
        return model, batches
    if which == "cnn":
        weights, batches = cnn(given.seed, given.plain, None)
        model = cnn_keras.Net(not given.plain, given.fault)
        model(tf.cast(batches[0][0], given.dtype))
        for name in ("bn1", "bn2"):
            norm = getattr(model, name)
            norm.moving_mean.assign(tf.zeros_like(norm.moving_mean))
            norm.moving_variance.assign(tf.ones_like(norm.moving_variance))
        for name, variable in cnn_keras.parameters(model).items():
            variable.assign(weights[name])
        return model, batches
    weights, batches = transformer(given.seed, given.plain)
    model = transformer_keras.Net(8 if given.plain else 6, given.plain, given.fault)
    model(batches[0][0])
    for name, variable in transformer_keras.parameters(model).items():
        variable.assign(weights[name].reshape(variable.shape))
    return model, batches


def watched(seen):
    """See the output of every layer, by its path."""
    plain = layers.Layer.__call__

    def call(self, *args, **kwargs):
        output = plain(self, *args, **kwargs)
        if isinstance(output, tf.Tensor):
            seen[f"forward/{self.path or self.name}"] = output
        return output

    layers.Layer.__call__ = call


def main(argv=None):
    """Train and leave a trace."""
    which, *rest = sys.argv[1:] if argv is None else argv
    given = arguments(rest, [*cnn_keras.FAULTS, *transformer_keras.FAULTS])
    keras.config.set_floatx(given.dtype)
    model, batches = made(which, given)
    seen = {}
    watched(seen)
    optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
    if given.adam:
        optimizer = keras.optimizers.Adam(ADAM_RATE, epsilon=ADAM_EPSILON)
    variables = {v.path: v for v in model.trainable_variables}
    others = {v.path: v for v in model.non_trainable_variables if "seed" not in v.path}
    mean = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    with harness.TraceWriter(given.out, label="keras", dtype=given.dtype) as trace:
        for step, (x, y) in enumerate(batches[:5], start=1):
            points = {"inputs/x": x, "inputs/y": y}
            if step == 1:
                points |= {f"inputs/params/{n}": v.numpy() for n, v in variables.items()}
                points |= {f"inputs/buffers/{n}": v.numpy() for n, v in others.items()}
            seen.clear()
            inputs = tf.cast(x, given.dtype) if x.dtype.kind == "f" else x
            with tf.GradientTape(persistent=True) as tape:
                loss = mean(y, model(inputs)["logits"])
            points |= {n: t.numpy() for n, t in seen.items()}
            points["forward/loss"] = loss.numpy()
            back = tape.gradient(loss, dict(seen))
            points |= {
                n.replace("forward/", "backward/"): tf.convert_to_tensor(g).numpy()
                for n, g in reversed(back.items())
                if g is not None
            }
            grads = tape.gradient(loss, {n: v.value for n, v in variables.items()})
            dense = {n: tf.convert_to_tensor(g).numpy() for n, g in grads.items()}
            points |= {f"grads/{n}": g for n, g in dense.items()}
            optimizer.apply_gradients((grads[n], v) for n, v in variables.items())
            points |= slots(optimizer, variables)
            points |= {f"params/{n}": v.numpy() for n, v in variables.items()}
            points |= {f"buffers/{n}": v.numpy() for n, v in others.items()}
            trace.write(step, points)


def slots(optimizer, variables):
    """What the optimizer keeps of each variable, by its own word for it."""
    found = {}
    for n, v in variables.items():
        key = v.path.replace("/", "_")
        for kept in optimizer.variables:
            base = kept.path.rpartition("/")[2]
            if base.startswith(key + "_"):
                found[f"optimizer/{n}/{base.removeprefix(key + '_')}"] = kept.numpy()
    return found


if __name__ == "__main__":
    main()
