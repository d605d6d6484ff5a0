"""A small causal transformer, built at its first call, under several optimizers; FILE OUT."""

import keras
import keras_given as given
import tensorflow as tf
from keras import layers

V, T, E = 11, 7, 6


class Block(layers.Layer):
    """Attention, then two dense layers; each reads a norm of what it adds to."""

    def __init__(self, gelu, **named):
        super().__init__(**named)
        self.norm1 = layers.LayerNormalization(name="norm1")
        self.attention = layers.MultiHeadAttention(2, E // 2, name="attention")
        self.norm2 = layers.LayerNormalization(epsilon=1e-5, name="norm2")
        self.wide = layers.Dense(13, name="wide")
        self.narrow = layers.Dense(E, name="narrow")
        self.gelu = gelu

    def call(self, x):
        h = self.norm1(x)
        x = x + self.attention(h, h, use_causal_mask=True)
        return x + self.narrow(self.gelu(self.wide(self.norm2(x))))


class Net(keras.Model):
    """Embeddings, two blocks, logits."""

    def __init__(self, gelu):
        super().__init__()
        self.tokens = layers.Embedding(V, E, name="tokens")
        self.positions = layers.Embedding(T, E, name="positions")
        self.blocks = [Block(gelu, name="block0"), Block(gelu, name="block1")]
        self.head = layers.Dense(V, name="head")

    def call(self, x):
        h = self.tokens(x) + self.positions(tf.range(T))
        for block in self.blocks:
            h = block(h)
        return {"logits": self.head(h), "mean": tf.reduce_mean(h, 1)}


def trained(record, optimizer, function=False, gelu=keras.activations.gelu, steps=4):
    """Train with a penalty on the mean; the loss is logged as a number."""
    model = Net(gelu)
    loss_of = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def step(x, y):
        with tf.GradientTape() as tape:
            made = model(x, training=True)
            loss = loss_of(y, made["logits"]) + 0.1 * tf.reduce_sum(made["mean"] ** 2)
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss

    step = tf.function(step) if function else step
    data = {"x": given.integers(V, 4, T), "y": given.integers(V, 4, T)}
    given.loop(record(model, optimizer), lambda x, y: float(step(x, y)), steps, **data)
    return model.variables + optimizer.variables


def momentum(record):
    return trained(record, keras.optimizers.SGD(0.02, momentum=0.9), function=True, steps=20)


def nesterov(record):
    def gelu(x):
        return tf.nn.gelu(x, approximate=True)

    optimizer = keras.optimizers.SGD(0.02, momentum=0.9, nesterov=True, clipnorm=0.3)
    return trained(record, optimizer, gelu=gelu)


def adam(record):
    return trained(record, keras.optimizers.Adam(0.01, clipvalue=0.01))


def rmsprop(record):
    return trained(record, keras.optimizers.RMSprop(0.01, weight_decay=0.1), function=True)


def adagrad(record):
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 5, 0.5)
    return trained(record, keras.optimizers.Adagrad(schedule), function=True)


def main():
    given.both([momentum, nesterov, adam, rmsprop, adagrad])


if __name__ == "__main__":
    main()
