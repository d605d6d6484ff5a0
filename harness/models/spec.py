"""The fields of a model: which row of the table it is, and its sizes and rates."""

from __future__ import annotations

import sys
from typing import Annotated, Literal

import msgspec

Positive = Annotated[int, msgspec.Meta(ge=1)]
PositiveFloat = Annotated[float, msgspec.Meta(gt=0, le=sys.float_info.max)]
Penalty = Annotated[float, msgspec.Meta(ge=0, le=sys.float_info.max)]
Probability = Annotated[float, msgspec.Meta(ge=0, lt=1)]


class ModelSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A language model over V tokens: its row of harness.models.table, and what that row reads.

    Embedding [V,E], `num_layers` recurrent layers of H units, softmax. `init_scale` is the
    half-width of the uniform distribution that weights are drawn from; `dropout` the probability
    of dropping (never of keeping) at every non-recurrent site. `network` names the row, which says
    what of the other fields it has; a field that it has not is refused. `reset`: where a GRU resets
    the hidden state, after its product with w_h or before. `tied`: the softmax has the transposed
    embedding for its weights.

    Of AWD-LSTM: the probabilities of dropping whole rows of the embedding, units of its output,
    units between layers (`dropout` is that after the last), and elements of each w_h; and the
    factors of the mean squares that are added to the loss, of the last layer's dropped output and
    of its change from timestep to timestep.
    """

    vocab_size: Positive
    embed_size: Positive
    hidden_size: Positive
    num_layers: Positive
    init_scale: PositiveFloat = 0.1
    dropout: Probability = 0.0
    network: str = "lstm"
    reset: Literal["after", "before"] = "after"
    tied: bool = False
    embedding_dropout: Probability = 0.0
    input_dropout: Probability = 0.0
    layer_dropout: Probability = 0.0
    weight_dropout: Probability = 0.0
    activation_penalty: Penalty = 0.0
    temporal_penalty: Penalty = 0.0
