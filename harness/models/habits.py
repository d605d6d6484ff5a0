"""What programs call the same thing: parts of the names of parameters, buffers and slots."""

from __future__ import annotations

import re

# Each line is one thing under the names that frameworks and programs give it.
SAME: tuple[frozenset[str], ...] = tuple(
    frozenset(line.split())
    for line in (
        "weight kernel w matrix weights",
        "weight gamma scale gain",
        "bias beta offset b biases shift",
        "weight embedding embeddings table wte wpe",
        "bias_ih bias_ih_l bias b_i b_ih",
        "bias_hh bias_hh_l recurrent_bias b_h b_hh",
        "weight_ih weight_ih_l kernel w_i w_ih",
        "weight_hh weight_hh_l recurrent_kernel w_h w_hh",
        "running_mean moving_mean mean",
        "running_var moving_variance var variance",
        "linear dense fc proj",
        "conv conv2d convolution",
        "norm layernorm ln layer_norm layer_normalization",
        "bn batchnorm batch_norm batch_normalization",
        "attn attention self_attn multi_head_attention mha",
        "layers block blocks layer h encoder_layer",
        "q query q_proj",
        "k key k_proj",
        "v value v_proj",
        "out output out_proj attention_output o o_proj",
        "emb embed embedding embeddings wte token_embedding",
    )
)
# The slots of optimizers: the moving average of gradients, of their squares, its largest.
SLOTS: tuple[frozenset[str], ...] = tuple(
    frozenset(line.split())
    for line in (
        "exp_avg m mu momentum momentum_buffer velocity trace momentums",
        "exp_avg_sq v nu velocity velocities square_avg square accumulator sum average",
        "max_exp_avg_sq vhat velocity_hat nu_max",
        "step t count iterations",
    )
)
_NUMBER = re.compile(r"_?\d+")
_WORDS = re.compile(r"[A-Za-z]+|\d+")


def kind(name: str) -> str:
    """What a tensor is in its layer, by its name: the last part, without numbers."""
    return _NUMBER.sub("", re.split(r"[/.]", name)[-1]).lower()


def parent(name: str) -> str:
    """The layer that a tensor is of, by its name."""
    return name.rpartition("/")[0]


def alike(one: str, two: str) -> bool:
    """Whether two words are names of one thing."""
    return one == two or any(one in line and two in line for line in SAME)


def slots_alike(one: str, two: str) -> bool:
    """Whether two slots of optimizers are the same by their names."""
    return one == two or any(one in line and two in line for line in SLOTS)


def words(name: str) -> list[str]:
    """What a name is made of: words and numbers."""
    return [word.lower() for word in _WORDS.findall(name)]


def likeness(one: str, two: str) -> float:
    """The share of words that two names have in common, by what programs call them: 0 to 1."""
    x, y = words(one), words(two)
    if not x or not y:
        return 0.0
    left = list(y)
    hits = 0
    for word in x:
        found = next((other for other in left if alike(word, other)), None)
        if found is not None:
            left.remove(found)
            hits += 1
    return 2 * hits / (len(x) + len(y))
