"""Faults of layers that not every model has, as in faults_layers.py of the twins."""

from __future__ import annotations

from harness.models.faults.fault import Fault

GRU, RNN, TIED = ("gru",), ("rnn",), {"tied": "true"}
H, LOSS = ("forward/layer*/h",), ("forward/loss",)
BACK = ("backward/layer*/h",)
EMBEDDED = ("grads/embedding",)

GATED = (
    Fault(
        "gru-update-complement",
        "takes the update gate of a GRU for its complement",
        H,
        (
            r"sign: SIDE turns the sign of forward/layer\d/z",
            r"formula: SIDE takes 1 - the sigmoid of forward/layer\d/z for .*",
        ),
        also=("backward/layer*/n", "backward/layer*/z", *BACK),
        blocks=GRU,
    ),
    Fault(
        "gru-candidate-sigmoid",
        "has a sigmoid for the tanh of a GRU's candidate",
        H,
        (r"formula: SIDE has a sigmoid for the tanh, in the tanh of forward/layer\d/n",),
        also=("backward/layer*/n", "backward/layer*/z"),
        blocks=GRU,
    ),
    Fault(
        "gru-cut-through-update",
        "lets no gradient through a GRU's update gate to the hidden state before it",
        BACK,
        (r"operand-missing: SIDE leaves out the product of .*forward/layer\d/z.*",),
        blocks=GRU,
    ),
    Fault(
        "gru-cut-through-candidate",
        "lets no gradient through a GRU's candidate to the hidden state before it",
        BACK,
        (r"operand-missing: SIDE leaves out the product (of|with) .*backward/layer\d/n.*",),
        blocks=GRU,
    ),
    Fault(
        "gru-without-reset",
        "does not reset a GRU's candidate",
        ("forward/layer*/n",),
        (r"operand-missing: SIDE leaves out the factor the sigmoid of forward/layer\d/r",),
        also=("backward/layer*/r", *BACK, "grads/layer*/w_h", "grads/layer*/b_h"),
        blocks=GRU,
    ),
    Fault(
        "gru-reset-elsewhere",
        "resets a GRU's hidden state on the other side of the product",
        ("forward/layer*/n",),
        ("formula: SIDE computes as with reset=before",),
        also=("backward/layer*/r", *BACK, "grads/layer*/w_h", "grads/layer*/b_h"),
        blocks=GRU,
        of={"gru-before": {"causes": ("formula: SIDE computes as with reset=after",)}},
    ),
    Fault(
        "gru-bias-outside",
        "does not reset the recurrent bias of a GRU's candidate",
        ("forward/layer*/n",),
        (r"formula: SIDE adds gate n of params/layer\d/b_h after the product, not before it",),
        settings={"reset": "after"},
        also=("backward/layer*/r", "grads/layer*/b_h"),
        blocks=GRU,
    ),
    Fault(
        "gru-order-zrn",
        "reads the blocks of a GRU's weights in the order z, r, n (Keras)",
        ("forward/layer*/r",),
        (
            r"operand-other: SIDE has what forward/layer\d/z should be",
            "block-order: SIDE takes block 1 for block 0 of .*, and takes block 1 for block 0 .*",
        ),
        also=(
            *("forward/layer*/z", "backward/layer*/h", "backward/embedding", "grads/layer*/w_i"),
            *("grads/layer*/w_h", "grads/layer*/b_i", "grads/layer*/b_h"),
        ),
        blocks=GRU,
    ),
)

PLAIN = (
    Fault(
        "rnn-relu",
        "has max(a, 0) for the tanh of an RNN",
        H,
        ("formula: SIDE has .*ReLU.* for the tanh",),
        also=("backward/layer*/a",),
        blocks=RNN,
    ),
    Fault(
        "rnn-linear",
        "leaves out the tanh of an RNN",
        H,
        (
            r"formula: SIDE leaves out the tanh of forward/layer\d/a",
            r"operand-other: SIDE has what forward/layer\d/a should be",
        ),
        also=("backward/layer*/a",),
        blocks=RNN,
    ),
)

TIES = (
    Fault(
        "tied-softmax-cut",
        "does not add the softmax's gradient to that of the embedding it is tied to",
        EMBEDDED,
        (r"operand-missing: SIDE leaves out the transposed weights .*with forward/layer\d/h",),
        settings=TIED,
    ),
    Fault(
        "tied-embedding-cut",
        "has for the gradient of the embedding that of the softmax alone",
        EMBEDDED,
        (
            "operand-missing: SIDE leaves out (the term )?(dropout of )?the sum over a token's "
            "places (of|with) params/embedding and inputs/.*",
        ),
        settings=TIED,
    ),
    Fault(
        "tied-in-layout",
        "reads the tied embedding in the layout of its transpose",
        ("forward/logits",),
        ("transposed: SIDE reads params/embedding in the layout of its transpose",),
        settings=TIED,
        also=("backward/layer*/h", "grads/embedding"),
    ),
)

GATES = ("forward/layer*/gates",)
WEIGHT_DROP = ("backward/layer*/h", "grads/layer*/w_h")
OTHER_MASKS = ("formula: SIDE drops other elements at every timestep.*",)
DROPS = (
    Fault(
        "weight-drop-unscaled",
        "does not scale what dropout keeps of the recurrent weights",
        GATES,
        ("formula: SIDE does not scale what dropout keeps, in .*w_h.*",),
        also=WEIGHT_DROP,
    ),
    Fault(
        "weight-drop-missing",
        "drops no recurrent weights",
        GATES,
        ("formula: SIDE (leaves out|drops nothing).*w_h.*",),
        also=WEIGHT_DROP,
    ),
    Fault(
        "weight-drop-each-timestep",
        "drops other recurrent weights at every timestep",
        GATES,
        OTHER_MASKS,
        also=(*WEIGHT_DROP, "grads/layer*/w_i", "grads/layer*/b_[ih]"),
    ),
    Fault(
        "weight-mask-stale",
        "drops recurrent weights with the masks of the step before",
        GATES,
        (r"stale: SIDE .*inputs/mask/layer\d/w_h.*",),
        bites="step 2",
        also=WEIGHT_DROP,
    ),
    Fault(
        "locked-each-timestep",
        "drops other activations at every timestep where they are to be the same",
        GATES,
        OTHER_MASKS,
        also=(
            *("forward/logits", "forward/loss", "backward/layer*/h", "backward/embedding"),
            *("grads/layer*/w_i", "grads/embedding"),
        ),
    ),
    Fault(
        "rows-unscaled",
        "does not scale the rows of the embedding that are kept",
        ("forward/embedding",),
        ("formula: SIDE does not scale what dropout keeps, in .*embedding.*",),
        also=("grads/embedding",),
    ),
)

PENALTIES = (
    Fault(
        "activation-missing",
        "has no activation penalty (AR)",
        LOSS,
        ("operand-missing: SIDE leaves out all that activation_penalty scales",),
        also=BACK,
    ),
    Fault(
        "activation-undropped",
        "has an activation penalty (AR) of what is not dropped",
        LOSS,
        ("formula: SIDE leaves out dropout .*forward/layer1/h.*",),
        also=BACK,
    ),
    Fault(
        "activation-detached",
        "has an activation penalty (AR) without a gradient",
        BACK,
        ("operand-missing: SIDE leaves out all that activation_penalty scales",),
    ),
    Fault(
        "temporal-missing",
        "has no temporal penalty (TAR)",
        LOSS,
        ("operand-missing: SIDE leaves out all that temporal_penalty scales",),
        also=BACK,
    ),
    Fault(
        "temporal-detached",
        "has a temporal penalty (TAR) without a gradient",
        BACK,
        ("operand-missing: SIDE leaves out all that temporal_penalty scales",),
    ),
    Fault(
        "temporal-divisor",
        "divides the temporal penalty (TAR) by all timesteps, of which it has one less",
        LOSS,
        ("formula: SIDE divides by one timestep more, in mean square of .*",),
        also=BACK,
    ),
    Fault(
        "penalties-detached",
        "has penalties (AR and TAR) without a gradient",
        BACK,
        (
            "operand-missing: SIDE leaves out all that activation_penalty and temporal_penalty "
            "scale",
        ),
    ),
    Fault(
        "penalties-exchanged",
        "has for each penalty (AR and TAR) the factor of the other",
        LOSS,
        ("argument: SIDE exchanges activation_penalty and temporal_penalty",),
        also=BACK,
    ),
)
AWD = tuple(fault._replace(blocks=("temporal",)) for fault in (*DROPS, *PENALTIES))

FAULTS = (*GATED, *PLAIN, *TIES, *AWD)
