"""A small network over images and tokens in flax.nnx, trained in place.

python jax_nnx.py [TRACE]: with a trace it records. Prints a digest of the weights after 8 steps.
"""

import hashlib
import sys
from contextlib import nullcontext

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import harness

B, STEPS = 4, 6


class Net(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(3, 6, kernel_size=(3, 3), strides=2, rngs=rngs)
        self.bn = nnx.BatchNorm(6, momentum=0.9, rngs=rngs)
        self.embed = nnx.Embed(11, 12, rngs=rngs)
        self.ln = nnx.LayerNorm(12, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 12, decode=False, rngs=rngs)
        self.drop = nnx.Dropout(0.2, rngs=rngs)
        self.head = nnx.Linear(6 * 4 + 12, 5, rngs=rngs)

    def __call__(self, image, tokens):
        h = nnx.relu(self.bn(self.conv(image)))
        h = nnx.max_pool(h, (2, 2), strides=(2, 2)).reshape(image.shape[0], -1)
        t = self.embed(tokens)
        t = (t + self.attention(self.ln(t))).mean(1)
        return self.head(self.drop(jnp.concatenate([h, nnx.gelu(t)], axis=-1)))


@nnx.jit
def train_step(model, optimizer, image, tokens, y):
    def loss_fn(model):
        logits = model(image, tokens)
        return optax.softmax_cross_entropy(logits, jax.nn.one_hot(y, 5)).mean()

    loss, grads = nnx.value_and_grad(loss_fn)(model)
    optimizer.update(model, grads)
    return loss


def main(out=None):
    model = Net(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.sgd(1e-2, momentum=0.9, nesterov=True), wrt=nnx.Param)
    rng = np.random.default_rng(5)
    with harness.record(model, optimizer, out=out) if out else nullcontext() as rec:
        for _ in range(STEPS):
            image = rng.normal(size=(B, 8, 8, 3)).astype(np.float32)
            tokens, y = rng.integers(11, size=(B, 7)), rng.integers(5, size=B)
            if rec is None:
                loss = train_step(model, optimizer, image, tokens, y)
                continue
            with rec.step(image=image, tokens=tokens, y=y) as (image, tokens, y):
                loss = train_step(model, optimizer, image, tokens, y)
                rec.log(loss=loss)
    leaves = jax.tree.leaves(nnx.state(model, nnx.Param, nnx.BatchStat))
    print(hashlib.sha256(b"".join(np.asarray(x).tobytes() for x in leaves)).hexdigest())


if __name__ == "__main__":
    main(*sys.argv[1:2])
