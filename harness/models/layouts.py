"""The layouts in which other programs keep the weights of our models: one row a layout.

Sources: torch.nn.LSTM documentation (weight_ih_l0 is [4H, in], gates i f g o, two biases);
keras/src/layers/rnn/lstm.py (kernel [in, 4H], gates i f c o, one bias, forget bias in the bias);
TF1 BasicLSTMCell (one kernel [in + H, 4H], gates i j f o, one bias, forget_bias=1 added at run
time). Any model of the table is held by the canonical layout; the others hold LSTMs.
"""

from __future__ import annotations

from typing import NamedTuple


class Layout(NamedTuple):
    """Names ({k}: the layer) and conventions of one layout.

    `w_h` None: the rows of w_h follow those of w_i in one matrix. `b_h` None: one bias, the sum of
    the two. `gates` is the order of the four blocks, `transposed` says that matrices are
    [out, in], `forget_bias` is what the program adds to the forget gate at run time.
    """

    name: str
    embedding: str
    w_i: str
    w_h: str | None
    b_i: str
    b_h: str | None
    softmax_w: str
    softmax_b: str
    gates: str = "ifgo"
    transposed: bool = False
    forget_bias: float = 0.0

    def layer_names(self, k: int) -> list[str]:
        """The names of layer `k`'s arrays."""
        templates = (self.w_i, self.w_h, self.b_i, self.b_h)
        return [template.format(k=k) for template in templates if template]

    def names(self, layers: int) -> list[str]:
        """All names of a file of `layers` layers, in canonical order."""
        middle = [name for k in range(layers) for name in self.layer_names(k)]
        return [self.embedding, *middle, self.softmax_w, self.softmax_b]


_ROWS = (
    Layout(
        "canonical",
        *("embedding", "layer{k}/w_i", "layer{k}/w_h", "layer{k}/b_i", "layer{k}/b_h"),
        *("softmax_w", "softmax_b"),
    ),
    Layout(  # debug_pytorch_lm, the program that this project grew from
        "original",
        *("Model/embedding", "Model/RNN/Layer_{k}/w_i", "Model/RNN/Layer_{k}/w_h"),
        *("Model/RNN/Layer_{k}/b_i", "Model/RNN/Layer_{k}/b_h"),
        *("Model/softmax_w", "Model/softmax_b"),
    ),
    Layout(  # the state dict of PyTorch's word language model
        "torch",
        *("encoder.weight", "rnn.weight_ih_l{k}", "rnn.weight_hh_l{k}"),
        *("rnn.bias_ih_l{k}", "rnn.bias_hh_l{k}", "decoder.weight", "decoder.bias"),
        transposed=True,
    ),
    Layout(
        "keras",
        *("embedding/embeddings", "lstm_{k}/kernel", "lstm_{k}/recurrent_kernel"),
        b_i="lstm_{k}/bias",
        b_h=None,
        softmax_w="dense/kernel",
        softmax_b="dense/bias",
    ),
    Layout(
        "tf1",
        "Model/embedding",
        w_i="Model/RNN/multi_rnn_cell/cell_{k}/basic_lstm_cell/kernel",
        w_h=None,
        b_i="Model/RNN/multi_rnn_cell/cell_{k}/basic_lstm_cell/bias",
        b_h=None,
        softmax_w="Model/softmax_w",
        softmax_b="Model/softmax_b",
        gates="igfo",
        forget_bias=1.0,
    ),
)
LAYOUTS = {row.name: row for row in _ROWS}
CANONICAL = LAYOUTS["canonical"]
