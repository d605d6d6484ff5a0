"""The same GPT in JAX with optax: parameters as a tree, queries, keys and values apart.

python gpt_jax.py --steps 20
"""

import argparse

import jax
import jax.numpy as jnp
import optax
from text import batches
from weights import HEADS, WIDTH, initial

import harness


def normalized(p, x, epsilon):
    """Layer normalization."""
    mean = x.mean(-1, keepdims=True)
    variance = jnp.square(x - mean).mean(-1, keepdims=True)
    return (x - mean) / jnp.sqrt(variance + epsilon) * p["scale"] + p["bias"]


def dense(p, x):
    """A product and its bias."""
    return x @ p["kernel"] + p["bias"]


def attend(p, x):
    """Causal attention of x to itself."""
    b, t, _ = x.shape

    def heads(name):
        return dense(p[name], x).reshape(b, t, HEADS, -1).transpose(0, 2, 1, 3)

    q, k, v = heads("query"), heads("key"), heads("value")
    scores = q @ k.transpose(0, 1, 3, 2) / jnp.sqrt(q.shape[-1]).astype(q.dtype)
    seen = jnp.tril(jnp.ones((t, t), bool))
    mixed = jax.nn.softmax(jnp.where(seen, scores, -1e30)) @ v
    return dense(p["out"], mixed.transpose(0, 2, 1, 3).reshape(b, t, WIDTH))


def logits(params, x, epsilon, approximate):
    """The model: embeddings, blocks, a norm, logits."""
    h = params["tokens"][x] + params["places"][: x.shape[1]]
    for p in params["blocks"]:
        h = h + attend(p, normalized(p["norm1"], h, epsilon))
        wide = jax.nn.gelu(dense(p["wide"], normalized(p["norm2"], h, epsilon)), approximate)
        h = h + dense(p["narrow"], wide)
    return normalized(params["norm"], h, epsilon) @ params["head"]


def main():
    """Train for some steps."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--epsilon", type=float, default=1e-5, help="of the layer norms")
    parser.add_argument("--approximate", action="store_true", help="jax.nn.gelu's default")
    given = parser.parse_args()

    def mean_loss(params, x, y):
        z = logits(params, x, given.epsilon, given.approximate)
        return optax.softmax_cross_entropy_with_integer_labels(z, y).mean()

    adamw = optax.adamw(3e-3, weight_decay=0.1)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), adamw)
    params = jax.tree.map(lambda w: jnp.asarray(w, float), initial())
    opt_state = optimizer.init(params)

    @jax.jit
    def train_step(params, opt_state, x, y):
        loss, grads = jax.value_and_grad(mean_loss)(params, x, y)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    with harness.record(params, optimizer) as rec:
        for x, y in batches(given.steps):
            with rec.step(x=x, y=y, params=params, opt_state=opt_state) as (
                x,
                y,
                params,
                opt_state,
            ):
                params, opt_state, loss = train_step(params, opt_state, x, y)
                rec.log(loss=loss, params=params, opt_state=opt_state)
            print(f"loss {loss:.4f}")


if __name__ == "__main__":
    main()
