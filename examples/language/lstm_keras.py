"""The same LSTM in TensorFlow: Keras' layer, a gradient tape, clip_by_global_norm.

python lstm_keras.py --steps 20
"""

import argparse

import keras
import tensorflow as tf
from keras import layers
from text import CHARACTERS, batches

import harness

WIDTH, HIDDEN, LIMIT = 16, 32, 0.2


def main():
    """Train for some steps."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=20)
    given = parser.parse_args()
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            layers.Input((None,), dtype="int32"),
            layers.Embedding(len(CHARACTERS), WIDTH, name="embedding"),
            layers.LSTM(HIDDEN, return_sequences=True, use_bias=False, name="lstm"),
            layers.Dense(len(CHARACTERS), name="softmax"),
        ]
    )
    optimizer = keras.optimizers.SGD(8.0)
    mean = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    with harness.record(model, optimizer) as rec:
        for x, y in batches(given.steps):
            with rec.step(x=x, y=y) as (x, y):
                with tf.GradientTape() as tape:
                    loss = mean(y, model(x))
                gradients = tape.gradient(loss, model.trainable_variables)
                # As a tensor, in which the rows of a token that was read twice are added up.
                gradients = [tf.convert_to_tensor(g) for g in gradients]
                gradients, _ = tf.clip_by_global_norm(gradients, LIMIT)
                optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
                rec.log(loss=loss)
            print(f"loss {float(loss):.4f}")


if __name__ == "__main__":
    main()
