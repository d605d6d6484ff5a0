"""The same CNN in Keras, trained by model.fit; images are [B, H, W, C].

python cnn_keras.py --steps 20
"""

import argparse

import keras
from images import CLASSES, SIZE, batches
from keras import layers

import harness


def network(epsilon, momentum):
    """Two of convolution, batch normalization, ReLU and pooling; then classes."""
    return keras.Sequential(
        [
            layers.Input((SIZE, SIZE, 3)),
            layers.Conv2D(8, 3, padding="same", name="conv1"),
            layers.BatchNormalization(epsilon=epsilon, momentum=momentum, name="bn1"),
            layers.ReLU(),
            layers.MaxPooling2D(),
            layers.Conv2D(12, 3, padding="same", name="conv2"),
            layers.BatchNormalization(epsilon=epsilon, momentum=momentum, name="bn2"),
            layers.ReLU(),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(CLASSES, name="head"),
        ]
    )


def main():
    """Train for some steps."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--epsilon", type=float, default=1e-3, help="of batch normalization")
    parser.add_argument("--momentum", type=float, default=0.99, help="of batch normalization")
    parser.add_argument("--adam", action="store_true")
    given = parser.parse_args()
    keras.utils.set_random_seed(1)
    model = network(given.epsilon, given.momentum)
    adam = keras.optimizers.Adam(1e-3, epsilon=1e-7)
    model.compile(
        optimizer=adam if given.adam else keras.optimizers.SGD(0.05),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    model.fit(
        batches(given.steps),
        steps_per_epoch=given.steps,
        verbose=2,
        callbacks=[harness.callback(model)],
    )


if __name__ == "__main__":
    main()
