"""A small GPT in plain JAX: fused projections, causal attention, layer norm, gelu, AdamW, clipping.

python jax_gpt.py [TRACE]: with a trace it records. Prints a digest of the weights after 20 steps.
"""

import hashlib
import sys
from contextlib import nullcontext

import jax
import jax.numpy as jnp
import numpy as np
import optax

import harness

B, T, V, E, HEADS, LAYERS, STEPS = 3, 5, 11, 8, 2, 1, 20


def initial(key):
    def draw(*shape):
        nonlocal key
        key, now = jax.random.split(key)
        return 0.3 * jax.random.normal(now, shape)

    def norm():
        return {"scale": 1 + draw(E), "bias": draw(E)}

    blocks = [
        {
            "ln1": norm(),
            "qkv": {"w": draw(E, 3 * E), "b": draw(3 * E)},
            "out": {"w": draw(E, E), "b": draw(E)},
            "ln2": norm(),
            "up": {"w": draw(E, 4 * E), "b": draw(4 * E)},
            "down": {"w": draw(4 * E, E), "b": draw(E)},
        }
        for _ in range(LAYERS)
    ]
    return {"wte": draw(V, E), "wpe": draw(T, E), "blocks": blocks, "ln": norm()}


def layer_norm(p, x):
    mean = x.mean(-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(-1, keepdims=True)
    return (x - mean) / jnp.sqrt(variance + 1e-5) * p["scale"] + p["bias"]


def linear(p, x):
    return x @ p["w"] + p["b"]


def attention(p, x):
    b, t, e = x.shape
    parts = jnp.split(linear(p["qkv"], x), 3, axis=-1)
    q, k, v = (h.reshape(b, t, HEADS, e // HEADS).transpose(0, 2, 1, 3) for h in parts)
    scores = q @ k.swapaxes(-1, -2) / jnp.sqrt(e // HEADS)
    scores = jnp.where(jnp.tril(jnp.ones((t, t), bool)), scores, -jnp.inf)
    mixed = jax.nn.softmax(scores, axis=-1) @ v
    return linear(p["out"], mixed.transpose(0, 2, 1, 3).reshape(b, t, e))


def loss_fn(params, x, y):
    h = params["wte"][x] + params["wpe"]
    for block in params["blocks"]:
        h = h + attention(block, layer_norm(block["ln1"], h))
        inner = jax.nn.gelu(linear(block["up"], layer_norm(block["ln2"], h)))
        h = h + linear(block["down"], inner)
    logits = layer_norm(params["ln"], h) @ params["wte"].T
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


rate = optax.warmup_cosine_decay_schedule(0.0, 1e-2, 3, 30) if "schedule" in sys.argv else 1e-2
tx = optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(rate, weight_decay=0.1))


@jax.jit
def train_step(params, opt_state, x, y):
    loss, grads = jax.value_and_grad(loss_fn)(params, x, y)
    updates, opt_state = tx.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, loss


def batches():
    rng = np.random.default_rng(5)
    for _ in range(STEPS):
        yield rng.integers(V, size=(B, T)), rng.integers(V, size=(B, T))


def main(out=None):
    params = initial(jax.random.key(0))
    opt_state = tx.init(params)
    with harness.record(params, tx, out=out) if out else nullcontext() as rec:
        for x, y in batches():
            if rec is None:
                params, opt_state, loss = train_step(params, opt_state, x, y)
                continue
            with rec.step(x=x, y=y, params=params, opt_state=opt_state) as given:
                x, y, params, opt_state = given
                params, opt_state, loss = train_step(params, opt_state, x, y)
                rec.log(loss=loss, params=params, opt_state=opt_state)
    leaves = jax.tree.leaves((params, opt_state))
    print(hashlib.sha256(b"".join(np.asarray(x).tobytes() for x in leaves)).hexdigest())


if __name__ == "__main__":
    main(*sys.argv[1:2])
