"""A CNN with batch normalization, channels last: by tapes, functions and fit; python FILE OUT."""

import keras
import keras_given as given
import numpy as np
import tensorflow as tf
from keras import layers

from harness.capture.adapter import adapter_for
from harness.capture.record import Recorder
from harness.spec import ScriptSpec, build


def network(built=True):
    """Convolutions, normalization, pooling, dropout and classes."""
    parts = [
        layers.Conv2D(5, 3, padding="same", name="conv1"),
        layers.BatchNormalization(momentum=0.9, name="bn1"),
        layers.ReLU(),
        layers.MaxPooling2D(2),
        layers.Conv2D(4, (3, 2), strides=2, activation="relu", name="conv2"),
        layers.Dropout(0.3, name="dropout"),
        layers.Flatten(),
        layers.Dense(7, activation="gelu", name="wide"),
        layers.LayerNormalization(),
        layers.Dense(3, activation="softmax", name="head"),
    ]
    return keras.Sequential([keras.Input((9, 6, 2)), *parts] if built else parts)


DATA = {"x": given.normal(6, 9, 6, 2), "y": given.integers(3, 6)}


def by_tape(record, function=False):
    """Gradients are clipped by the script."""
    model, optimizer = network(), keras.optimizers.Adam(0.003)
    loss_of = keras.losses.SparseCategoricalCrossentropy()

    def step(x, y):
        with tf.GradientTape() as tape:
            loss = loss_of(y, model(x, training=True))
        gradients = tape.gradient(loss, model.trainable_variables)
        gradients, _ = tf.clip_by_global_norm(gradients, 0.5)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss

    given.loop(record(model, optimizer), tf.function(step) if function else step, **DATA)
    return model.variables + optimizer.variables


def by_function(record):
    """The same inside of tf.function."""
    return by_tape(record, function=True)


def by_fit(record, epochs=4, **options):
    """By model.fit, of a model that is not built yet; the optimizer clips and decays."""
    model = network(built=False)
    optimizer = keras.optimizers.AdamW(0.003, global_clipnorm=0.5)
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"], **options)
    draw = np.random.default_rng(0)
    x, y = draw.normal(0, 1, (32, 9, 6, 2)).astype(np.float32), draw.integers(0, 3, 32)
    callback = record(model, fit=True)
    callbacks = [callback] if callback else []
    model.fit(x, y, 6, epochs, verbose=0, validation_split=0.1, callbacks=callbacks)
    return model.variables + optimizer.variables


def by_eager_fit(record):
    """The same without functions."""
    return by_fit(record, 1, run_eagerly=True)


def by_compiled_fit(record):
    """The same compiled by XLA: nothing inside is seen."""
    return by_fit(record, 1, jit_compile=True)


def following(out):
    """Steps that go on with another run's tensors, of a model with another activation."""
    first, other = out / "first.trace", out / "other.trace"
    for path, seed, activation in ((first, 1, "gelu"), (other, 2, "tanh")):
        keras.utils.set_random_seed(seed)
        model, optimizer = network(), keras.optimizers.Adam(0.003)
        model.get_layer("wide").activation = keras.activations.get(activation)
        model.get_layer("dropout").rate = 0.0
        follow = {"trace": str(first), "level": "stage"} if path == other else None
        weights = ({"what": ["weights"], "trace": str(first)},) if follow else ()
        spec = {"label": "x", "argv": ("x",), "steps": 2**30, "trace": str(path)}
        run = build(ScriptSpec, follow=follow, replay=weights, **spec)
        recorder = Recorder(adapter_for((model, optimizer)), run)
        model.compile(optimizer, "sparse_categorical_crossentropy")
        draw = np.random.default_rng(0)
        x, y = draw.normal(0, 1, (24, 9, 6, 2)).astype(np.float32), draw.integers(0, 3, 24)
        x = x if path == first else x[::-1]
        callback = recorder._adapter.callback(recorder)
        model.fit(x, y, 6, verbose=0, shuffle=False, callbacks=[callback])


def main():
    given.both([by_tape, by_function, by_fit, by_eager_fit, by_compiled_fit])
    following(given.OUT)


if __name__ == "__main__":
    main()
