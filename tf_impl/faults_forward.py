"""Faults of the forward pass: tokens, embedding, cells, state, dropout, loss, precision."""

import tensorflow as tf

from tf_impl.cells import lstm_cell, project
from tf_impl.faults_tools import (
    Changed,
    cast_and_back,
    kept,
    remembered,
    rounded_to_tf32,
    with_value,
)
from tf_impl.losses import log_sum_exp

# A rare token, counted from the end of the vocabulary: small batches of the built-in corpus first
# meet it at step 5, batches of 20 x 20 of PTB at step 1,570.
RARE = 47


def targets_not_shifted(original, window):
    """The targets are the inputs."""
    x, _ = original(window)
    return x, x


def targets_shifted_twice(original, window):
    """The targets are the tokens after the next ones."""
    x, y = original(window)
    return x, tf.concat([y[:, 1:], y[:, -1:]], axis=1)


def inputs_reversed(original, window):
    """The rows of the batch come in reverse order on the side of the inputs."""
    x, y = original(window)
    return tf.reverse(x, [0]), y


def next_embedding_row(original, table, x):
    """Token k reads row k + 1."""
    return original(table, (x + 1) % table.shape[0])


def read_time_major(original, table, x):
    """The embedded tokens [B, T, E] are read as if they lay in memory as [T, B, E]."""
    B, T = x.shape
    return tf.transpose(tf.reshape(original(table, x), [T, B, -1]), [1, 0, 2])


def rare_token_scaled(original, table, x):
    """The embedding of one rare token is half as large again."""
    rows = original(table, x)
    return with_value(rows, tf.where((x == table.shape[0] - RARE)[:, :, None], rows * 1.5, rows))


def in_order(z, order):
    """Pre-activations with their blocks in another order."""
    blocks = tf.split(z, 4, axis=1)
    return tf.concat([blocks[k] for k in order], axis=1)


def gates_igfo(original, z, c, see, t):
    """The gates are read in the order i, g, f, o."""
    return original(in_order(z, (0, 2, 1, 3)), c, see, t)


def gates_ifog(original, z, c, see, t):
    """The gates are read in the order i, f, o, g."""
    return original(in_order(z, (0, 1, 3, 2)), c, see, t)


def gates_iofg(original, z, c, see, t):
    """The gates are read in the order i, o, f, g."""
    return original(in_order(z, (0, 2, 3, 1)), c, see, t)


def forget_bias_added(original, z, c, see, t):
    """Adds 1 to the forget gate."""
    i, f, g, o = tf.split(z, 4, axis=1)
    return original(tf.concat([i, f + 1, g, o], axis=1), c, see, t)


def hard_sigmoid(x):
    """0.2 x + 0.5, not under 0 and not over 1."""
    return tf.clip_by_value(0.2 * x + 0.5, 0, 1)


def gates_hard(original, z, c, see, t):
    """The gates are hard sigmoids."""
    i, f, g, o = tf.split(z, 4, axis=1)
    c = see("c", hard_sigmoid(f) * c + hard_sigmoid(i) * tf.tanh(g), t)
    h = see("h", hard_sigmoid(o) * tf.tanh(c), t)
    return h, c


def output_without_tanh(original, z, c, see, t):
    """The hidden state is sigmoid(o) c."""
    i, f, g, o = tf.split(z, 4, axis=1)
    c = see("c", tf.sigmoid(f) * c + tf.sigmoid(i) * tf.tanh(g), t)
    return see("h", tf.sigmoid(o) * c, t), c


def candidate_sigmoid(original, z, c, see, t):
    """The cell state takes sigmoid(g) in."""
    i, f, g, o = tf.split(z, 4, axis=1)
    c = see("c", tf.sigmoid(f) * c + tf.sigmoid(i) * tf.sigmoid(g), t)
    h = see("h", tf.sigmoid(o) * tf.tanh(c), t)
    return h, c


def changed(given, index, change):
    """What `given_to` gives a block, where it is recurrent with change(parameter) of one."""
    weights, state, masks = given
    if state:
        weights = [change(w) if k == index else w for k, w in enumerate(weights)]
    return weights, state, masks


def recurrent_bias_twice(original, block, params, state, masks):
    """The recurrent bias is counted twice."""
    return changed(original(block, params, state, masks), 3, lambda b_h: 2 * b_h)


def recurrent_bias_missing(original, block, params, state, masks):
    """The recurrent bias is left out."""
    return changed(original(block, params, state, masks), 3, lambda b_h: 0 * b_h)


def recurrent_weights_transposed(original, block, params, state, masks):
    """The recurrent weights [H, n H] are read as if they lay in memory as [n H, H]."""

    def turned(w_h):
        return tf.transpose(tf.reshape(w_h, [w_h.shape[1], -1]))

    return changed(original(block, params, state, masks), 1, turned)


def softmax_bias_missing(original, params, x, state, masks, model, points):
    """The bias of the softmax is left out."""
    params = {**params, "softmax_b": 0 * params["softmax_b"]}
    return original(params, x, state, masks, model, points)


def state_not_carried(original, state, first, model, train):
    """Every window starts from zeros."""
    return original(state, True, model, train)


def state_not_reset(original, state, first, model, train):
    """An epoch starts from the state that the last one ended with."""
    return original(state, state is None, model, train)


def state_parts_swapped(original, state, first, model, train):
    """h and c change places between windows."""
    state = original(state, first, model, train)
    return {name: state[name[:-1] + {"h": "c", "c": "h"}[name[-1]]] for name in state}


def state_layers_swapped(original, state, first, model, train):
    """The state of the first layer goes to the last one, and so on."""
    state, last = original(state, first, model, train), model.num_layers - 1
    places = [(int(name[5]), name[6:]) for name in state]
    return {f"layer{k}{part}": state[f"layer{last - k}{part}"] for k, part in places}


def state_rows_reversed(original, state, first, model, train):
    """The state is carried to other rows of the batch."""
    state = original(state, first, model, train)
    return {name: tf.reverse(s, [0]) for name, s in state.items()}


def state_of_ones(original, model, batch_size, dtype):
    """An epoch starts from ones."""
    return {name: s + 1 for name, s in original(model, batch_size, dtype).items()}


def dropout_keep_for_drop(original, x, mask, rate):
    """Takes the probability of keeping for that of dropping."""
    return original(x, mask, 1 - rate)


def dropout_unscaled(original, x, mask, rate):
    """What is kept is not scaled."""
    return original(x, mask, 0)


def dropout_scaled_twice(original, x, mask, rate):
    """What is kept is scaled twice."""
    return original(x, mask, rate if mask is None else 1 - (1 - rate) * (1 - rate))


def dropout_first_mask(original, x, mask, rate):
    """Every timestep has the mask of the first."""
    return original(x, mask if mask is None else mask[:, :1], rate)


def dropout_inverted(original, x, mask, rate):
    """Drops what the mask keeps and keeps what it drops."""
    return original(x, mask if mask is None else tf.logical_not(mask), rate)


def dropout_of_other_layer(original, params, x, state, masks, model, points):
    """The last layer has the mask of the first."""
    if masks:
        masks = {**masks, f"layer{model.num_layers - 1}": masks["layer0"]}
    return original(params, x, state, masks, model, points)


def dropout_in_evaluation(original, params, x, state, masks, model, points):
    """Evaluation drops too, with the masks of the last step."""
    kept["masks"] = masks or kept.get("masks", {})
    return original(params, x, state, kept["masks"], model, points)


def old_weights(original, params, x, state, masks, model, points):
    """The model computes with the weights that the last step began with."""
    old = remembered("params", params) or params
    params = {name: with_value(p, tf.stop_gradient(old[name])) for name, p in params.items()}
    return original(params, x, state, masks, model, points)


def at(point, change):
    """What Changed wants: `change` of one trace point's value, its gradient left alone."""
    return lambda name, value: with_value(value, change(value)) if name == point else value


def logits_scaled(original, params, x, state, masks, model, points):
    """The logits are too large by a relative 1e-5."""
    points = Changed(points, at("forward/logits", lambda value: value * (1 + 1e-5)))
    return original(params, x, state, masks, model, points)


def logits_raised(original, params, x, state, masks, model, points):
    """1e-7 is added to the logits."""
    points = Changed(points, at("forward/logits", lambda value: value + 1e-7))
    return original(params, x, state, masks, model, points)


def logits_late(original, params, x, state, masks, model, points):
    """The logits come one timestep late."""
    points = Changed(points, at("forward/logits", lambda value: tf.roll(value, 1, 1)))
    return original(params, x, state, masks, model, points)


def activation_float16(original, params, x, state, masks, model, points):
    """The hidden state of the first layer is cast to float16 and back."""
    change = at("forward/layer0/h", lambda value: cast_and_back(value, "float16"))
    return original(params, x, state, masks, model, Changed(points, change))


def products_tf32(original, x, w, b):
    """Float32 matrix products take their operands in TF32."""
    if x.dtype == tf.float64:
        return original(x, w, b)
    return original(with_value(x, rounded_to_tf32(x)), with_value(w, rounded_to_tf32(w)), b)


def products_bfloat16(original, x, w, b):
    """Float32 matrix products take their operands in bfloat16."""
    if x.dtype == tf.float64:
        return original(x, w, b)
    x, w = (with_value(v, cast_and_back(v, "bfloat16")) for v in (x, w))
    return original(x, w, b)


def loss_averaged_over_time(original, logits, y, loss):
    """The loss is averaged over time where a sum is asked for."""
    return original(logits, y, "mean")


def loss_summed_over_batch(original, logits, y, loss):
    """The loss is summed over the batch."""
    return original(logits, y, loss) * y.shape[0]


def loss_without_last(original, logits, y, loss):
    """The last timestep does not count."""
    return original(logits[:, :-1], y[:, :-1], loss)


def loss_smoothed(original, logits, y, loss):
    """A tenth of the target's probability is spread over all tokens."""
    count = y.shape[0] if loss == "sum" else tf.size(y, logits.dtype)
    uniform = -tf.reduce_sum(tf.reduce_mean(logits - log_sum_exp(logits), axis=-1)) / count
    return 0.9 * original(logits, y, loss) + 0.1 * uniform


def softmax_naive(original, logits):
    """The largest logit is not subtracted before the exponential."""
    return tf.math.log(tf.reduce_sum(tf.exp(logits), axis=-1, keepdims=True))


def gradient_cut_in_window(original, x, h, c, w_i, w_h, b_i, b_h, see):
    """No gradient flows from a timestep to the hidden state before it."""
    hidden, cell = [], []
    for t, z in enumerate(tf.unstack(project(x, w_i, b_i + b_h), axis=1)):
        z = see("gates", z + tf.stop_gradient(h) @ w_h, t)
        h, c = lstm_cell(z, c, see, t)
        hidden.append(h)
        cell.append(c)
    return hidden, cell


def gradient_cut_in_rnn(original, a, h, w_h, see, t):
    """No gradient flows from a timestep to the hidden state before it."""
    return original(a, tf.stop_gradient(h), w_h, see, t)


def gradient_cut_through_cell(original, z, c, see, t):
    """No gradient flows from a timestep to the cell state before it."""
    return original(z, tf.stop_gradient(c), see, t)


FAULTS = {
    "targets-not-shifted": {"tokens_of": targets_not_shifted},
    "targets-shifted-twice": {"tokens_of": targets_shifted_twice},
    "inputs-reversed": {"tokens_of": inputs_reversed},
    "next-embedding-row": {"embed": next_embedding_row},
    "read-time-major": {"embed": read_time_major},
    "rare-token-scaled": {"embed": rare_token_scaled},
    "gates-igfo": {"lstm_cell": gates_igfo},
    "gates-ifog": {"lstm_cell": gates_ifog},
    "gates-iofg": {"lstm_cell": gates_iofg},
    "forget-bias-added": {"lstm_cell": forget_bias_added},
    "gates-hard": {"lstm_cell": gates_hard},
    "output-without-tanh": {"lstm_cell": output_without_tanh},
    "candidate-sigmoid": {"lstm_cell": candidate_sigmoid},
    "recurrent-bias-twice": {"given_to": recurrent_bias_twice},
    "recurrent-bias-missing": {"given_to": recurrent_bias_missing},
    "recurrent-weights-transposed": {"given_to": recurrent_weights_transposed},
    "softmax-bias-missing": {"forward": softmax_bias_missing},
    "state-not-carried": {"carry": state_not_carried},
    "state-not-reset": {"carry": state_not_reset},
    "state-parts-swapped": {"carry": state_parts_swapped},
    "state-layers-swapped": {"carry": state_layers_swapped},
    "state-rows-reversed": {"carry": state_rows_reversed},
    "state-of-ones": {"zero_state": state_of_ones},
    "dropout-keep-for-drop": {"dropout": dropout_keep_for_drop},
    "dropout-unscaled": {"dropout": dropout_unscaled},
    "dropout-scaled-twice": {"dropout": dropout_scaled_twice},
    "dropout-first-mask": {"dropout": dropout_first_mask},
    "dropout-inverted": {"dropout": dropout_inverted},
    "dropout-of-other-layer": {"forward": dropout_of_other_layer},
    "dropout-in-evaluation": {"forward": dropout_in_evaluation},
    "old-weights": {"forward": old_weights},
    "logits-scaled": {"forward": logits_scaled},
    "logits-raised": {"forward": logits_raised},
    "logits-late": {"forward": logits_late},
    "activation-float16": {"forward": activation_float16},
    "products-tf32": {"project": products_tf32},
    "products-bfloat16": {"project": products_bfloat16},
    "loss-averaged-over-time": {"cross_entropy": loss_averaged_over_time},
    "loss-summed-over-batch": {"cross_entropy": loss_summed_over_batch},
    "loss-without-last": {"cross_entropy": loss_without_last},
    "loss-smoothed": {"cross_entropy": loss_smoothed},
    "softmax-naive": {"log_sum_exp": softmax_naive},
    "gradient-cut-in-window": {
        "lstm_layer": gradient_cut_in_window,
        "rnn_cell": gradient_cut_in_rnn,
    },
    "gradient-cut-through-cell": {"lstm_cell": gradient_cut_through_cell},
}
