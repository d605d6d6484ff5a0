"""Scripts in Keras and TensorFlow that do things in ways of their own; python FILE OUT."""

import json
from functools import partial

import keras
import keras_given as given
import numpy as np
import tensorflow as tf
from keras import layers

import harness

STEPS = 4


def mean_square(y, p):
    return tf.reduce_mean((y - p) ** 2)


def small(*activations):
    """Dense layers a, b, .. of 4 units, the last of 2."""
    widths = [4] * (len(activations) - 1) + [2]
    parts = zip(widths, activations, "abcd", strict=False)
    made = [layers.Dense(n, activation=f, name=name) for n, f, name in parts]
    return keras.Sequential([keras.Input((5,)), *made])


DATA = {"steps": STEPS, "x": given.normal(4, 5), "y": given.normal(4, 2)}


def shared(record):
    """A layer that is called twice, a model in a model, a frozen layer, several outputs."""
    x = keras.Input((5,))
    twice = layers.Dense(5, activation="tanh", name="twice")
    inner = keras.Sequential([layers.Dense(4, name="in1"), layers.Dense(2, name="in2")], name="sub")
    h = twice(x)
    again = twice(h)
    model = keras.Model(x, {"out": inner(layers.Concatenate()([h, again, x])), "h": again})
    inner.layers[0].trainable = False
    optimizer = keras.optimizers.SGD(0.1)

    def loss_of(y, made):
        return mean_square(y, made["out"]) + 0.1 * tf.reduce_mean(tf.square(made["h"]))

    given.loop(record(model, optimizer), given.tape(model, optimizer, loss_of), **DATA)
    return model.variables


class Module(tf.Module):
    """Two products and a ReLU, without Keras."""

    def __init__(self):
        super().__init__()
        draw = np.random.default_rng(1)
        self.w = tf.Variable(draw.normal(0, 1, (5, 3)).astype(np.float32))
        self.b = tf.Variable(tf.zeros(3))
        self.more = [tf.Variable(tf.ones((3, 2)))]

    def __call__(self, x):
        return tf.nn.relu(x @ self.w + self.b) @ self.more[0]


def module(record):
    """No optimizer: the script moves its variables itself."""
    model = Module()

    @tf.function
    def step(x, y):
        with tf.GradientTape() as tape:
            loss = mean_square(y, model(x))
        gradients = tape.gradient(loss, model.trainable_variables)
        for variable, gradient in zip(model.trainable_variables, gradients, strict=True):
            variable.assign_sub(0.1 * gradient)
        return loss

    given.loop(record(model), step, **DATA)
    return model.variables


def adversaries(record):
    """Two things are minimised in one step, by two tapes and optimizers."""
    one, two = small("tanh", None), keras.Sequential([keras.Input((2,)), layers.Dense(1)])
    optimizers = keras.optimizers.Adam(0.01), keras.optimizers.RMSprop(0.01)
    loss_of = keras.losses.BinaryCrossentropy(from_logits=True)

    @tf.function
    def step(x, y):
        with tf.GradientTape() as first, tf.GradientTape() as second:
            fake, real = two(one(x)), two(y)
            fooled = loss_of(tf.ones_like(fake), fake)
            told = loss_of(tf.ones_like(real), real) + loss_of(tf.zeros_like(fake), fake)
        for tape, loss, model, optimizer in (
            (first, fooled, one, optimizers[0]),
            (second, told, two, optimizers[1]),
        ):
            weights = model.trainable_variables
            optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))
        return told

    given.loop(record(one, two, *optimizers), step, **DATA)
    return one.variables + two.variables


def halves(record):
    """A function that is called twice in a step; its gradients are added up."""
    model, optimizer = small("relu", None), keras.optimizers.SGD(0.1)

    @tf.function
    def half(x, y):
        with tf.GradientTape() as tape:
            loss = mean_square(y, model(x))
        return loss, tape.gradient(loss, model.trainable_variables)

    def step(x, y):
        (one, g1), (two, g2) = half(x[:2], y[:2]), half(x[2:], y[2:])
        total = [a + b for a, b in zip(g1, g2, strict=True)]
        optimizer.apply_gradients(zip(total, model.trainable_variables, strict=True))
        return one + two

    given.loop(record(model, optimizer), step, **DATA)
    return model.variables


def branches(record):
    """Loops and branches of a graph: what happens in them is not seen."""
    model, optimizer = small("relu", None), keras.optimizers.SGD(0.1)

    @tf.function
    def step(x, y):
        with tf.GradientTape() as tape:
            for _ in tf.range(2):
                x = x + 0.1 * tf.reduce_mean(model.layers[0](x))
            made = model(x) if tf.reduce_sum(x) > 0 else model(-x)
            loss = mean_square(y, made)
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss

    given.loop(record(model, optimizer), step, **DATA)
    return model.variables


def reversed_gradient(record):
    """A gradient of the script's own: none follows from the formula."""
    model, optimizer = small("silu", None), keras.optimizers.SGD(0.1)

    @tf.custom_gradient
    def turned(x):
        return tf.identity(x), lambda dy: -dy

    def loss_of(y, made):
        return mean_square(y, turned(tf.nn.silu(made)))

    given.loop(record(model, optimizer), given.tape(model, optimizer, loss_of), **DATA)
    return model.variables


def mixed(record):
    """Layers in bfloat16."""
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        model = small("relu", "tanh")
    finally:
        keras.mixed_precision.set_global_policy("float32")
    optimizer = keras.optimizers.SGD(0.1)

    def loss_of(y, made):
        return mean_square(y, tf.cast(made, tf.float32))

    given.loop(record(model, optimizer), given.tape(model, optimizer, loss_of, True), **DATA)
    return model.variables


def recurrent(record):
    """Masks and an LSTM, which no op of the graph is."""
    model = keras.Sequential(
        [layers.Embedding(9, 4, mask_zero=True), layers.LSTM(3), layers.Dense(2)]
    )
    optimizer = keras.optimizers.Adam(0.01)
    loss_of = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    data = {"x": given.integers(9, 4, 6), "y": given.integers(2, 4)}
    step = given.tape(model, optimizer, loss_of, True)
    given.loop(record(model, optimizer), step, STEPS, **data)
    return model.variables


def penalties(record):
    """Penalties on kernels and activations; a sigmoid, whose loss reads its logits."""
    model = keras.Sequential(
        [
            keras.Input((5,)),
            layers.Dense(4, activation="relu", activity_regularizer="l2", name="a"),
            layers.Dense(1, activation="sigmoid", kernel_regularizer="l2", name="b"),
        ]
    )
    optimizer = keras.optimizers.SGD(0.1)
    step = given.tape(model, optimizer, keras.losses.BinaryCrossentropy())
    data = {"x": given.normal(4, 5), "y": given.integers(2, 4, 1)}
    given.loop(record(model, optimizer), step, STEPS, **data)
    return model.variables


def operations(record, function=True):
    """The functions of keras.ops between layers."""
    ops = keras.ops
    model = keras.Sequential([keras.Input((6, 4)), layers.Dense(4, name="a")])
    optimizer = keras.optimizers.SGD(0.1)

    def loss_of(y, made):
        one, two = ops.split(made, 2, axis=-1)
        h = ops.concatenate([ops.gelu(one, approximate=False), ops.silu(two)], -1) / 2.0
        h = h - ops.mean(h, axis=1, keepdims=True)
        h = ops.softmax(ops.matmul(h, ops.transpose(h, (0, 2, 1)))) + ops.relu(h[:, 1:2, :1])
        h = ops.log(1 + ops.square(ops.sum(h[..., 1:4] * ops.exp(-h[:, :, :3]), axis=2)))
        return ops.mean(ops.square(ops.reshape(ops.stack([h, h * 3], 1), (-1, 12)) - y))

    data = {"x": given.normal(4, 6, 4), "y": given.normal(4, 12)}
    step = given.tape(model, optimizer, loss_of, function)
    given.loop(record(model, optimizer), step, STEPS, **data)
    return model.variables


def points(record):
    """The same, each as a point."""
    return operations(partial(record, depth="ops"))


def eager_points(record):
    """The same, not in a function."""
    return operations(partial(record, depth="ops"), False)


def not_a_number(record):
    model, optimizer = small("relu", None), keras.optimizers.SGD(0.1)
    data = {**DATA, "x": lambda draw: np.full((4, 5), np.nan, np.float32)}
    given.loop(record(model, optimizer), given.tape(model, optimizer, mean_square, True), **data)
    return model.variables


def noisy(record):
    """Random numbers of TensorFlow's own generator."""
    model, optimizer = small("relu", None), keras.optimizers.SGD(0.1)
    tf.random.set_seed(3)

    def loss_of(y, made):
        return mean_square(y, made + tf.random.normal((4, 2)))

    given.loop(record(model, optimizer), given.tape(model, optimizer, loss_of, True), **DATA)
    return model.variables


class Residual(keras.Model):
    """Sums right after products: TensorFlow fuses them in graphs, where nobody reads between."""

    def __init__(self):
        super().__init__()
        self.one, self.two = layers.Dense(16, name="one"), layers.Dense(16, name="two")
        self.last = layers.Dense(2, name="last")

    def call(self, x):
        h = self.one(x)
        h = h + self.two(tf.nn.relu(h))
        return self.last(tf.nn.gelu(h) + h)


def fused(record):
    model, optimizer = Residual(), keras.optimizers.SGD(0.1)
    step = given.tape(model, optimizer, mean_square, True)
    given.loop(record(model, optimizer), step, **{**DATA, "steps": given.STEPS})
    return model.variables


class Custom(keras.Model):
    """A train_step of its own, which clips."""

    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(3, name="dense")

    def call(self, x):
        return self.dense(x)

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(y=y, y_pred=self(x, training=True))
        gradients = tape.gradient(loss, self.trainable_variables)
        clipped = [tf.clip_by_value(g, -0.01, 0.01) for g in gradients]
        self.optimizer.apply_gradients(zip(clipped, self.trainable_variables, strict=True))
        return {"loss": loss}


def custom_fit(record):
    """Data of no known length, in batches of which the last is smaller."""
    model = Custom()
    model.compile(keras.optimizers.SGD(0.1), "mean_absolute_error")
    draw = np.random.default_rng(0)
    x, y = (draw.normal(0, 1, (10, n)).astype(np.float32) for n in (5, 3))
    kinds = tf.TensorSpec((5,)), tf.TensorSpec((3,))
    data = tf.data.Dataset.from_generator(lambda: zip(x, y, strict=True), output_signature=kinds)
    callback = record(model, fit=True)
    model.fit(data.batch(4), epochs=2, verbose=0, callbacks=[callback] if callback else [])
    return model.variables


CASES = [
    *(shared, module, adversaries, halves, branches, reversed_gradient, mixed, recurrent),
    *(penalties, operations, points, eager_points, not_a_number, noisy, fused, custom_fit),
]


def interrupted(out):
    """What is left of hooks where a step, and where model.fit, ends by an exception."""
    model, optimizer = small("relu", None), keras.optimizers.SGD(0.1)
    model.compile(optimizer, "mse")
    found = []

    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            raise KeyError("stop")

    def in_a_step():
        with harness.record(model, out=out / "step.trace") as rec, rec.step(x=np.ones(2)):
            model(np.ones((4, 5)))
            raise KeyError("stop")

    def in_fit():
        recorded = harness.callback(model, out=out / "fit.trace")
        data = np.ones((4, 5), np.float32), np.ones((4, 2), np.float32)
        model.fit(*data, verbose=0, callbacks=[recorded, Stop()])

    for run in (in_a_step, in_fit):
        try:
            run()
        except KeyError:
            found.append(given.left())
    return found


def main():
    given.both(CASES)
    print(json.dumps(interrupted(given.OUT)))


if __name__ == "__main__":
    main()
