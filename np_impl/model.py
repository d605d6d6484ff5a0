"""The language model: embedding, LSTM layers, softmax."""

import numpy as np

from harness.trace import Rows
from np_impl.cells import lstm_layer, lstm_layer_backward, project, project_backward


def zero_state(model, batch_size, dtype):
    """The state at the start of an epoch: h and c of each layer, zeros [B, H]."""
    shape = [batch_size, model.hidden_size]
    return {
        f"layer{k}/{part}": np.zeros(shape, dtype=dtype)
        for k in range(model.num_layers)
        for part in ("h", "c")
    }


def dropout(x, mask, rate):
    """Zero what the mask drops and scale what it keeps by 1 / (1 - rate).

    Args:
        x: activations [B, T, width].
        mask: boolean [B, T, width], True where kept; None leaves x as it is.
        rate: the probability of dropping that the mask was drawn with.

    Returns:
        [B, T, width].

    """
    if mask is None:
        return x
    return x * mask.astype(x.dtype) / (1 - rate)


def dropout_backward(dy, mask, rate):
    """The derivative of `dropout`, which is linear: the same mask and scale on the gradient.

    Args:
        dy: gradient of the result [B, T, width].
        mask: boolean [B, T, width]; None leaves dy as it is.
        rate: the probability of dropping.

    Returns:
        Gradient of the activations [B, T, width].

    """
    if mask is None:
        return dy
    return dy * mask.astype(dy.dtype) / (1 - rate)


def embed(table, x):
    """The rows of `table` [V, E] that tokens x [B, T] name: [B, T, E]."""
    return table[x]


def embed_backward(table, x, dy):
    """The derivative of `embed`: row v of it is the sum of dy [B, T, E] wherever x [B, T] is v.

    Every other row is zero, so only those of the tokens read are made: as many rows as tokens, the
    sum at a token's first occurrence and zeros at the others.

    Args:
        table: [V, E].
        x: tokens, integers [B, T].
        dy: gradient of the embedded tokens [B, T, E].

    Returns:
        Rows (harness.trace) of the gradient [V, E].

    """
    tokens, flat = np.reshape(x, [-1]), np.reshape(dy, [-1, table.shape[1]])  # [B T, E]
    places = np.arange(tokens.shape[0])
    same = tokens[:, None] == tokens[None, :]
    first = np.min(np.where(same, places, tokens.shape[0]), axis=1)  # [B T]
    values = np.zeros_like(flat)
    np.add.at(values, first, flat)
    return Rows(tokens, values, tuple(table.shape))


def carry(state, first, model, train):
    """The state that a window starts from: the last one's, or zeros at the start of an epoch.

    Args:
        state: h and c of each layer [B, H] after the last window; None before the first.
        first: whether an epoch begins.
        model: the ModelSpec.
        train: the TrainSpec.

    Returns:
        The state by name.

    """
    return zero_state(model, train.batch_size, np.dtype(train.dtype)) if first else state


def forward(params, x, state, masks, model, points):
    """The model over one window.

    Args:
        params: tensors by canonical name (harness.models.table.parameters).
        x: tokens, integers [B, T].
        state: h and c of each layer [B, H], by name "layer0/h".
        masks: dropout masks by site (harness.data.randomness.dropout_masks); empty without dropout.
        model: the ModelSpec.
        points: shown every stage (harness.side.points).

    Returns:
        Logits [B, T, V] and the state after the last timestep.

    """
    embedded = points.see("forward/embedding", embed(params["embedding"], x))  # [B, T, E]
    inputs = dropout(embedded, masks.get("embedding"), model.dropout)  # [B, T, E]
    new_state = {}
    for k in range(model.num_layers):
        layer = f"layer{k}"
        weights = [params[f"{layer}/{name}"] for name in ("w_i", "w_h", "b_i", "b_h")]
        see = points.within(f"forward/{layer}")
        h, c = lstm_layer(inputs, state[f"{layer}/h"], state[f"{layer}/c"], *weights, see)
        new_state |= {f"{layer}/h": h[-1], f"{layer}/c": c[-1]}
        inputs = dropout(np.stack(h, axis=1), masks.get(layer), model.dropout)  # [B, T, H]
    logits = project(inputs, params["softmax_w"], params["softmax_b"])  # [B, T, V]
    return points.see("forward/logits", logits), new_state


def forward_backward(params, x, state, masks, model, points, gradient):
    """The derivatives of `forward`: the chain rule from the logits down to the embedding.

    Local derivatives are taken at the values that the forward pass went on with (points.gone_on).

    Args:
        params: tensors by canonical name.
        x: tokens, integers [B, T].
        state: h and c of each layer [B, H], by name "layer0/h"; no gradient flows into it.
        masks: dropout masks by site.
        model: the ModelSpec.
        points: shown the gradient of every stage but the logits.
        gradient: of the logits [B, T, V].

    Returns:
        The gradients of the parameters by name.

    """
    stages = {"embedding": points.gone_on["forward/embedding"]}  # [B, T, E], then [B, T, H] each
    for k in range(model.num_layers):
        stages[f"layer{k}"] = np.stack(points.gone_on[f"forward/layer{k}/h"], axis=1)
    inputs = [dropout(x, masks.get(site), model.dropout) for site, x in stages.items()]
    grads = {}
    projected = project_backward(inputs.pop(), params["softmax_w"], gradient)
    gradient, grads["softmax_w"], grads["softmax_b"] = projected  # [B, T, H]
    for k in reversed(range(model.num_layers)):
        layer = f"layer{k}"
        gradient = dropout_backward(gradient, masks.get(layer), model.dropout)  # [B, T, H]
        given = [state[f"{layer}/h"], state[f"{layer}/c"]]
        given += [params[f"{layer}/w_i"], params[f"{layer}/w_h"]]
        given += [points.gone_on[f"forward/{layer}/{name}"] for name in ("gates", "h", "c")]
        see = points.within(f"backward/{layer}")
        gradient, *found = lstm_layer_backward(inputs.pop(), *given, gradient, see)
        names = [f"{layer}/{name}" for name in ("w_i", "w_h", "b_i", "b_h")]
        grads |= dict(zip(names, found, strict=True))
    gradient = dropout_backward(gradient, masks.get("embedding"), model.dropout)  # [B, T, E]
    gradient = points.see("backward/embedding", gradient)
    grads["embedding"] = embed_backward(params["embedding"], x, gradient)
    return {name: grads[name] for name in params}
