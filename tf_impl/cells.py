"""The LSTM cell and a layer of it over time."""

import tensorflow as tf


def unseen(name, value, t):
    """What a stage shows its result to where nobody watches: goes on with `value` itself."""
    return value


def lstm_cell(z, c, see=unseen, t=None):
    """One timestep of an LSTM from its gate pre-activations.

    c' = sigmoid(f) c + sigmoid(i) tanh(g), h' = sigmoid(o) tanh(c')
    (Zaremba et al. 2014, arXiv 1409.2329, section 3.1, whose j is g here; no forget-bias offset).

    Args:
        z: pre-activations [B, 4H], blocks in the order i, f, g, o.
        c: cell state [B, H].
        see: shown each result; returns what goes on (tf_impl.points).
        t: the timestep.

    Returns:
        The new hidden state and cell state, each [B, H].

    """
    i, f, g, o = tf.split(z, 4, axis=1)  # each [B, H]
    c = see("c", tf.sigmoid(f) * c + tf.sigmoid(i) * tf.tanh(g), t)  # [B, H]
    h = see("h", tf.sigmoid(o) * tf.tanh(c), t)  # [B, H]
    return h, c


def project(x, w, b):
    """An affine map of the last axis: x w + b.

    Args:
        x: [B, T, in].
        w: [in, out].
        b: [out].

    Returns:
        [B, T, out].

    """
    B, T, width = x.shape
    return tf.reshape(tf.reshape(x, [B * T, width]) @ w + b, [B, T, -1])


def lstm_layer(x, h, c, w_i, w_h, b_i, b_h, see=unseen):
    """A layer over time: z_t = x_t w_i + b_i + h_(t-1) w_h + b_h, then the cell.

    Args:
        x: inputs [B, T, E].
        h: hidden state before the first timestep [B, H].
        c: cell state before the first timestep [B, H].
        w_i: input weights [E, 4H].
        w_h: recurrent weights [H, 4H].
        b_i: bias of the input product [4H].
        b_h: bias of the recurrent product [4H].
        see: shown "gates", "c" and "h" of every timestep; returns what goes on.

    Returns:
        Two lists of T tensors: hidden and cell states [B, H].

    """
    hidden, cell = [], []
    for t, z in enumerate(tf.unstack(project(x, w_i, b_i), axis=1)):
        z = see("gates", z + h @ w_h + b_h, t)  # [B, 4H]
        h, c = lstm_cell(z, c, see, t)
        hidden.append(h)
        cell.append(c)
    return hidden, cell
