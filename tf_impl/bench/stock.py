"""The stock language model in TensorFlow: Keras' layers and optimizer on the same run."""

import sys

import keras
import tensorflow as tf

from harness.bench.stock import check, windows
from harness.data import weights
from harness.data.layouts import to_layout
from harness.models.layouts import LAYOUTS
from harness.side.serving import main


class Model:
    """Keras' Embedding, LSTM, Dense and SGD, and one step of training by them."""

    def __init__(self, run, arrays):
        """Build the layers and give them `arrays` (harness.data.layouts, "keras")."""
        model, self.spec = run.model, run.train
        self.embedding = keras.layers.Embedding(model.vocab_size, model.embed_size)
        self.layers = [
            keras.layers.LSTM(
                model.hidden_size, return_sequences=True, return_state=True, unroll=True
            )
            for _ in range(model.num_layers)
        ]
        self.dense = keras.layers.Dense(model.vocab_size)
        self.drop = keras.layers.Dropout(model.dropout)
        self.optimizer = keras.optimizers.SGD(run.train.lr)
        shape = (run.train.batch_size, run.train.bptt)
        self.embedding.build(shape)
        width = model.embed_size
        for layer in self.layers:
            layer.build((*shape, width))
            width = model.hidden_size
        self.dense.build((*shape, width))
        layers = (self.embedding, *self.layers, self.dense)
        self.variables = [v for layer in layers for v in layer.trainable_variables]
        self.optimizer.build(self.variables)
        for variable, array in zip(self.variables, arrays.values(), strict=True):
            variable.assign(array)

    def loss(self, x, y, state):
        """The loss of one window [B, T], and the state after it: a list of [h, c] of each layer."""
        hidden, after = self.drop(self.embedding(x), training=True), []
        for layer, before in zip(self.layers, state, strict=True):
            hidden, *new = layer(hidden, initial_state=before)
            hidden = self.drop(hidden, training=True)  # [B, T, H]
            after.append(new)
        nats = tf.nn.sparse_softmax_cross_entropy_with_logits(y, self.dense(hidden))  # [B, T]
        total = tf.reduce_sum(nats) / self.spec.batch_size
        return total if self.spec.loss == "sum" else total / self.spec.bptt, after

    def step(self, x, y, state):
        """One step of training; the loss and the state after it."""
        with tf.GradientTape() as tape:
            loss, after = self.loss(x, y, state)
        grads = tape.gradient(loss, [v.value for v in self.variables])
        # The norm is that of the gradient: the rows of one token are added up first. XLA knows no
        # tensor whose shape depends on the data, so compiled they are added up in a whole matrix.
        grads[0] = tf.convert_to_tensor(grads[0]) if self.spec.compile else summed(grads[0])
        clipped, _ = tf.clip_by_global_norm(self.doubled(grads), self.spec.clip_limit)
        self.optimizer.apply(self.doubled(clipped))
        return loss, after

    def doubled(self, grads):
        """The gradients, those of the LSTMs' biases times the root of 2.

        Keras has one bias where the model has two, which get the same gradient: before clipping the
        factor makes the norm that of both, and after it the update.
        """
        return [
            g * 2**0.5 if len(g.shape) == 1 and k < len(grads) - 1 else g
            for k, g in enumerate(grads)
        ]


def summed(slices):
    """IndexedSlices in which no row occurs twice."""
    rows, place = tf.unique(tf.reshape(slices.indices, [-1]))
    values = tf.reshape(slices.values, [tf.size(place), -1])
    values = tf.math.unsorted_segment_sum(values, place, tf.size(rows))
    return tf.IndexedSlices(values, rows, slices.dense_shape)


def train(run, report):
    """Run the steps of `run`; a line a step, and no trace."""
    check(run)
    tf.config.threading.set_intra_op_parallelism_threads(run.threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    keras.config.set_floatx(run.train.dtype)
    keras.utils.set_random_seed(run.train.seed)
    model = Model(run, to_layout(weights.load(run.weights, run.model), LAYOUTS["keras"]))
    compute = tf.function(model.step, jit_compile=run.train.compile)
    zeros = tf.zeros([run.train.batch_size, run.model.hidden_size], run.train.dtype)
    for step, lr, window in windows(run):
        if window.first:
            state = [[zeros, zeros] for _ in range(run.model.num_layers)]
        if lr != model.optimizer.learning_rate:
            model.optimizer.learning_rate = lr
        loss, state = compute(tf.constant(window.x), tf.constant(window.y), state)
        report(step=step, loss=float(loss))


if __name__ == "__main__":
    sys.exit(main(train))
