"""The model: a walk over the blocks of its row, forwards and backwards."""

import tensorflow as tf

from harness.models.table import model_of
from tf_impl.blocks import KINDS, PENALTIES, added


def described(model):
    """The blocks and the carried state (harness.models.table.Model) of a ModelSpec."""
    return model_of(model)


def zero_state(model, batch_size, dtype):
    """The state at the start of an epoch: zeros [B, H] for all that the layers carry, by name."""
    return {
        name: tf.zeros([batch_size, size], dtype=dtype)
        for name, size in described(model).state.items()
    }


def carry(state, first, model, train):
    """The state that a window starts from: the last one's, or zeros at the start of an epoch.

    Args:
        state: what each layer carries [B, H] after the last window; None before the first.
        first: whether an epoch begins.
        model: the ModelSpec.
        train: the TrainSpec.

    Returns:
        The state by name.

    """
    return zero_state(model, train.batch_size, getattr(tf, train.dtype)) if first else state


def given_to(block, params, state, masks):
    """What a block reads besides its input: lists of parameters, of state and of masks.

    A mask is None where nothing is dropped.
    """
    weights, carried = [params[n] for n in block.params], [state[n] for n in block.state]
    return weights, carried, [masks.get(site) for site in block.draws]


def inputs_of(x, masks, model, points):
    """What each block of `forward` read, from what the stages went on with (points.gone_on).

    Args:
        x: tokens, integers [B, T].
        masks: dropout masks by site.
        model: the ModelSpec.
        points: has been shown the forward pass.

    Returns:
        A tensor for each block.

    """
    inputs = []
    for block in described(model).blocks:
        inputs.append(x)
        if block.traced:
            x = points.gone_on[f"forward/{block.traced[-1]}"]
            x = tf.stack(x, axis=1) if isinstance(x, list) else x
        else:
            given = given_to(block, {}, {}, masks)
            x, _ = KINDS[block.kind][0](x, *given, None, **dict(block.args))
    return inputs


def penalty(x, masks, model, points):
    """What the model adds to the loss, of the values that the forward pass went on with.

    Args:
        x: tokens, integers [B, T].
        masks: dropout masks by site.
        model: the ModelSpec.
        points: has been shown the forward pass.

    Returns:
        A scalar; 0 for a model that adds nothing.

    """
    blocks = described(model).blocks
    if not any(block.kind in PENALTIES for block in blocks):
        return 0
    read = zip(blocks, inputs_of(x, masks, model, points), strict=True)
    return sum(PENALTIES[b.kind](v, **dict(b.args)) for b, v in read if b.kind in PENALTIES)


def forward(params, x, state, masks, model, points):
    """The model over one window: what each block makes is read by the next.

    Args:
        params: tensors by canonical name (harness.models.table.parameters).
        x: tokens, integers [B, T].
        state: what each layer carries [B, H], by name "layer0/h".
        masks: dropout masks by site (harness.data.randomness.dropout_masks); empty without dropout.
        model: the ModelSpec.
        points: shown every stage (harness.side.points).

    Returns:
        Logits [B, T, V] and the state after the last timestep.

    """
    new_state = {}
    for block in described(model).blocks:
        run, given = KINDS[block.kind][0], given_to(block, params, state, masks)
        x, after = run(x, *given, points.within(f"forward/{block.name}"), **dict(block.args))
        if block.traced and not block.state:  # a layer with a state shows each timestep itself
            x = points.see(f"forward/{block.traced[-1]}", x)
        new_state |= zip(block.state, after, strict=True)
    return x, new_state


def forward_backward(params, x, state, masks, model, points, gradient):
    """The derivatives of `forward`: the chain rule from the last block back to the first.

    Local derivatives are taken at the values that the forward pass went on with (points.gone_on).

    Args:
        params: tensors by canonical name.
        x: tokens, integers [B, T].
        state: what each layer carries [B, H], by name "layer0/h"; no gradient flows into it.
        masks: dropout masks by site.
        model: the ModelSpec.
        points: shown the gradient of every stage.
        gradient: of the logits [B, T, V].

    Returns:
        The gradients of the parameters by name.

    """
    inputs, grads = inputs_of(x, masks, model, points), {}
    for block in reversed(described(model).blocks):
        if block.traced and not block.state:
            gradient = points.see(f"backward/{block.traced[-1]}", gradient)
        run, given = KINDS[block.kind][1], given_to(block, params, state, masks)
        seen = [points.gone_on[f"forward/{name}"] for name in block.traced]
        see = points.within(f"backward/{block.name}")
        read = inputs.pop()
        gradient, found = run(gradient, read, *given, seen, see, **dict(block.args))
        for name, g in zip(block.params, found, strict=True):
            # A parameter of two blocks has the sum of what each sends it.
            grads[name] = added(grads[name], g) if name in grads else g
    return {name: grads[name] for name in params}
