"""Faults of layers that not every model has: GRU, RNN, tied weights, AWD-LSTM."""

import torch

from harness.spec import replace
from pt_impl.faults_tools import kept, remembered, with_gradient


def gru_update_complement(original, z, n, h):
    """The update gate is taken for its complement."""
    return original(-z, n, h)


def gru_candidate_sigmoid(original, z, n, h):
    """The hidden state takes sigmoid(n) in."""
    return (1 - torch.sigmoid(z)) * torch.sigmoid(n) + torch.sigmoid(z) * h


def gru_cut_through_update(original, z, n, h):
    """No gradient flows through the update gate's share to the hidden state before."""
    return original(z, n, h.detach())


def gru_cut_through_candidate(original, r, h, w_n, b_n, reset):
    """No gradient flows through the candidate to the hidden state before."""
    return original(r, h.detach(), w_n, b_n, reset)


def gru_without_reset(original, r, h, w_n, b_n, reset):
    """The candidate is not reset."""
    return h @ w_n + b_n + 0 * r  # r has a gradient of zeros, not none


def gru_reset_elsewhere(original, r, h, w_n, b_n, reset):
    """The hidden state is reset on the other side of the product."""
    return original(r, h, w_n, b_n, "before" if reset == "after" else "after")


def gru_bias_outside(original, r, h, w_n, b_n, reset):
    """The recurrent bias of the candidate is not reset."""
    return original(r, h, w_n, 0 * b_n, reset) + b_n


def gru_order_zrn(original, block, params, state, masks):
    """The blocks of all parameters of a GRU are read in the order z, r, n."""
    weights, state, masks = original(block, params, state, masks)
    if block.kind == "gru":
        r, z, n = zip(*(torch.split(w, w.shape[-1] // 3, dim=-1) for w in weights), strict=True)
        weights = [torch.cat(parts, dim=-1) for parts in zip(z, r, n, strict=True)]
    return weights, state, masks


def rnn_relu(original, a, h, w_h, see, t):
    """The hidden state is max(a, 0)."""
    return see("h", torch.relu(see("a", a + h @ w_h, t)), t)


def rnn_linear(original, a, h, w_h, see, t):
    """The hidden state is a itself."""
    return see("h", see("a", a + h @ w_h, t), t)


def of_kind(given, block, kind, change):
    """What `given_to` gives a block; one of that kind has change(weights) for its first ones."""
    weights, state, masks = given
    if block.kind == kind:
        weights = [change(weights[0]), *weights[1:]]
    return weights, state, masks


def without_gradient(w):
    """`w` itself, to which no gradient is passed on."""
    return with_gradient(w, torch.zeros_like)


def tied_softmax_cut(original, block, params, state, masks):
    """The embedding gets no gradient from the softmax that it is tied to."""
    given = original(block, params, state, masks)
    return of_kind(given, block, "project", without_gradient)


def tied_embedding_cut(original, block, params, state, masks):
    """The embedding gets a gradient from the softmax alone."""
    given = original(block, params, state, masks)
    return of_kind(given, block, "embed", without_gradient)


def tied_in_layout(original, block, params, state, masks):
    """The softmax reads the embedding [V, H] as if it lay in memory as [H, V]."""

    def turned(w):
        return torch.transpose(torch.reshape(w, [w.shape[1], w.shape[0]]), 0, 1)

    return of_kind(original(block, params, state, masks), block, "project", turned)


def is_of_weights(mask):
    """Whether a mask is of a matrix, not of its rows or of activations."""
    return mask is not None and len(mask.shape) == 2


def weight_drop_unscaled(original, x, mask, rate):
    """What is kept of the recurrent weights is not scaled."""
    return original(x, mask, 0 if is_of_weights(mask) else rate)


def weight_drop_missing(original, x, mask, rate):
    """No recurrent weights are dropped."""
    return original(x, None if is_of_weights(mask) else mask, rate)


def weight_drop_remembered(original, x, mask, rate):
    """Remembers the recurrent weights that are dropped, and how."""
    if is_of_weights(mask):
        kept["dropped"] = x, mask, rate
    return original(x, mask, rate)


def weight_drop_each_timestep(original, x, h, c, w_i, w_h, b_i, b_h, see):
    """Other recurrent weights are dropped at every timestep."""
    hidden, cell = [], []
    for t in range(x.shape[1]):
        if "dropped" in kept:
            w, mask, rate = kept["dropped"]
            w_h = w * torch.roll(mask, t, 1).to(w.dtype) / (1 - rate)
        x_t, at = x[:, t : t + 1], lambda name, value, _, t=t: see(name, value, t)
        ((h,), (c,)) = original(x_t, h, c, w_i, w_h, b_i, b_h, at)
        hidden.append(h)
        cell.append(c)
    kept.pop("dropped", None)
    return hidden, cell


def weight_mask_stale(original, params, x, state, masks, model, points):
    """Recurrent weights are dropped with the masks of the step before."""
    if masks:
        own = {site: mask for site, mask in masks.items() if is_of_weights(mask) and "/" in site}
        masks = {**masks, **(remembered("masks", own) or {})}
    return original(params, x, state, masks, model, points)


def locked_each_timestep(original, x, mask, rate):
    """Activations are dropped with another mask at every timestep."""
    if mask is not None and len(mask.shape) == 3 and mask.shape[1] == 1:
        mask = torch.cat([torch.roll(mask, t, 2) for t in range(x.shape[1])], dim=1)
    return original(x, mask, rate)


def rows_unscaled(original, x, mask, rate):
    """The rows of the embedding that are kept are not scaled."""
    return original(x, mask, 0 if mask is not None and mask.shape[2:] == (1,) else rate)


def activation_alone(original, x, masks, model, points):
    """The activation penalty of a step."""
    return original(x, masks, replace(model, temporal_penalty=0.0), points)


def temporal_alone(original, x, masks, model, points):
    """The temporal penalty of a step."""
    return original(x, masks, replace(model, activation_penalty=0.0), points)


def activation_undropped(original, x, masks, model, points):
    """The activation penalty is of what dropout has not been applied to."""
    activation = activation_alone(original, x, {}, model, points)
    return activation + temporal_alone(original, x, masks, model, points)


def activation_detached(original, x, masks, model, points):
    """The activation penalty has no gradient."""
    activation = activation_alone(original, x, masks, model, points)
    return activation.detach() + temporal_alone(original, x, masks, model, points)


def temporal_detached(original, x, masks, model, points):
    """The temporal penalty has no gradient."""
    temporal = temporal_alone(original, x, masks, model, points)
    return activation_alone(original, x, masks, model, points) + temporal.detach()


def penalties_detached(original, x, masks, model, points):
    """Neither penalty has a gradient."""
    return original(x, masks, model, points).detach()


def temporal_divisor(original, x, masks, model, points):
    """The temporal penalty is divided by all timesteps, of which it has one less."""
    share = (x.shape[1] - 1) / x.shape[1]
    temporal = share * temporal_alone(original, x, masks, model, points)
    return activation_alone(original, x, masks, model, points) + temporal


def penalties_exchanged(original, x, masks, model, points):
    """Each penalty has the factor of the other."""
    factors = {"activation_penalty": model.temporal_penalty}
    factors["temporal_penalty"] = model.activation_penalty
    return original(x, masks, replace(model, **factors), points)


FAULTS = {
    "gru-update-complement": {"gru_mixed": gru_update_complement},
    "gru-candidate-sigmoid": {"gru_mixed": gru_candidate_sigmoid},
    "gru-cut-through-update": {"gru_mixed": gru_cut_through_update},
    "gru-cut-through-candidate": {"gru_kept": gru_cut_through_candidate},
    "gru-without-reset": {"gru_kept": gru_without_reset},
    "gru-reset-elsewhere": {"gru_kept": gru_reset_elsewhere},
    "gru-bias-outside": {"gru_kept": gru_bias_outside},
    "gru-order-zrn": {"given_to": gru_order_zrn},
    "rnn-relu": {"rnn_cell": rnn_relu},
    "rnn-linear": {"rnn_cell": rnn_linear},
    "tied-softmax-cut": {"given_to": tied_softmax_cut},
    "tied-embedding-cut": {"given_to": tied_embedding_cut},
    "tied-in-layout": {"given_to": tied_in_layout},
    "weight-drop-unscaled": {"dropout": weight_drop_unscaled},
    "weight-drop-missing": {"dropout": weight_drop_missing},
    "weight-drop-each-timestep": {
        "dropout": weight_drop_remembered,
        "lstm_layer": weight_drop_each_timestep,
    },
    "weight-mask-stale": {"forward": weight_mask_stale},
    "locked-each-timestep": {"dropout": locked_each_timestep},
    "rows-unscaled": {"dropout": rows_unscaled},
    "activation-missing": {"penalty": temporal_alone},
    "activation-undropped": {"penalty": activation_undropped},
    "activation-detached": {"penalty": activation_detached},
    "temporal-missing": {"penalty": activation_alone},
    "temporal-detached": {"penalty": temporal_detached},
    "temporal-divisor": {"penalty": temporal_divisor},
    "penalties-detached": {"penalty": penalties_detached},
    "penalties-exchanged": {"penalty": penalties_exchanged},
}
