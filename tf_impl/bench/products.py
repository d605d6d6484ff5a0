"""The bare matrix products of a step, by TensorFlow: a limit for whatever computes the step."""

import sys

import tensorflow as tf

from harness.bench.products import shapes
from harness.side.serving import main


def train(run, report):
    """Compute the products once a step."""
    tf.config.threading.set_intra_op_parallelism_threads(run.threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    kind = getattr(tf, run.train.dtype)
    left, right = [], []
    for count, m, k, n in shapes(run.model, run.train):
        weight = tf.random.normal([k, n], dtype=kind)  # one for all timesteps
        for _ in range(count):
            left.append(tf.random.normal([m, k], dtype=kind))
            right.append(weight)

    @tf.function
    def products(left, right):
        # All are returned, so that none is left out.
        return [a @ b for a, b in zip(left, right, strict=True)]

    for step in range(run.start, run.steps + 1):
        products(left, right)[-1].numpy()
        report(step=step, loss=0.0)


if __name__ == "__main__":
    sys.exit(main(train))
