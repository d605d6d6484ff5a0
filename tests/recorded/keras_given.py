"""What the scripts in Keras share: data, a loop, and both runs of a case, recorded and not."""

import hashlib
import json
import sys
from contextlib import nullcontext
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

import harness

OUT = Path(sys.argv[1]) if len(sys.argv) > 1 else Path("traces")
STEPS = 20


def normal(*shape):
    """Draws an array of floats."""
    return lambda draw: draw.normal(0, 1, shape).astype(np.float32)


def integers(below, *shape):
    """Draws an array of integers."""
    return lambda draw: draw.integers(0, below, shape)


def one_hot(classes, *shape):
    """Draws classes, each as a row with one 1."""
    return lambda draw: np.eye(classes, dtype=np.float32)[draw.integers(0, classes, shape)]


def loop(rec, step, steps=STEPS, **given):
    """A training loop of some steps, recorded where there is a recorder."""
    draw = np.random.default_rng(0)
    with rec or nullcontext():
        for _ in range(steps):
            inputs = {name: make(draw) for name, make in given.items()}
            with rec.step(**inputs) if rec else nullcontext():
                loss = step(*inputs.values())
                if rec:
                    rec.log(loss=loss)


def tape(model, optimizer, loss_of, function=False):
    """A step of a loop with a tape, in a function or not."""

    def step(x, y):
        with tf.GradientTape() as tape:
            loss = loss_of(y, model(x, training=True))
            if model.losses:
                loss = loss + tf.add_n(model.losses)
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss

    return tf.function(step) if function else step


def digest(variables):
    """A digest of the bits of variables."""
    return hashlib.sha256(b"".join(v.numpy().tobytes() for v in variables)).hexdigest()


def both(cases):
    """Run each case unrecorded and recorded, and print whether the bits are the same as JSON.

    A case is a function of `record`, which takes what harness.record takes (or the model alone, and
    fit=True for a callback) and returns None in the first run; it returns variables.
    """
    found = {}
    for case in cases:
        digests = []
        for recorded in (False, True):
            keras.utils.set_random_seed(1)

            def record(*objects, fit=False, on=recorded, name=case.__name__, **options):
                if not on:
                    return None
                start = harness.callback if fit else harness.record
                return start(*objects, out=OUT / f"{name}.trace", label=name, **options)

            digests.append(digest(case(record)))
        found[case.__name__] = digests[0] == digests[1]
    print(json.dumps({"same": found, "left": left()}))


def left():
    """What of ours is still around Keras and TensorFlow."""
    from tensorflow.python.eager.polymorphic_function import polymorphic_function
    from tensorflow.python.ops import custom_gradient

    owners = {
        "layer": keras.layers.Layer.__call__,
        "loss": keras.losses.Loss.__call__,
        "tape": tf.GradientTape.gradient,
        "function": polymorphic_function.Function.__call__,
        "optimizer": keras.optimizers.Optimizer.apply,
        "custom gradient": custom_gradient._eager_mode_decorator,
    }
    found = [name for name, f in owners.items() if "harness" in f.__code__.co_filename]
    from tensorflow.python.eager import context

    return found + ["operations"] * bool(context.context().op_callbacks)
