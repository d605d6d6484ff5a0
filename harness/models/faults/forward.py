"""Faults of the forward pass, as in faults_forward.py of the twins."""

from __future__ import annotations

from harness.models.faults.fault import Fault

FLOAT64 = {"dtype": "float64"}
DROPOUT = {"dropout": "0.4"}  # not 0.5: keeping and dropping must be two numbers
# Six steps an epoch, so that the second one is reached.
SHORT = 100

C, H = ("forward/layer*/c",), ("forward/layer*/h",)
# The first that a layer makes of what it reads: an LSTM, an RNN, a GRU.
GATES = ("forward/layer*/gates", "forward/layer*/a", "forward/layer*/r")
LOGITS = ("forward/logits",)
LSTM = ("lstm",)
# What AWD-LSTM drops first: rows of the embedding.
ROWS_FIRST = {"awd-lstm": {"tensor": ("forward/embedding",)}}
# Its last layer is as wide as the embedding and no other.
NOT_TIED_AWD = {"awd-lstm": None}
# What is computed from the pre-activations of a cell, and goes back to them.
CELL_BACK = ("backward/layer*/gates", "backward/layer*/c")
# What a matrix product makes and passes back.
PRODUCTS = (*GATES, *LOGITS, "backward/layer*/h", "backward/embedding")
# What goes through dropout, forward and back.
DROPPED = (*PRODUCTS, "grads/layer*/w_i", "grads/softmax_w")

TOKENS = (
    Fault(
        "targets-not-shifted",
        "takes the inputs for targets",
        ("inputs/y",),
        ("operand-other: SIDE has what inputs/x should be",),
    ),
    Fault(
        "targets-shifted-twice",
        "takes for targets the tokens after the next ones",
        ("inputs/y",),
        (r"shift: (SIDE is moved by -1|OTHER is moved by \+1) timestep",),
    ),
    Fault(
        "inputs-reversed",
        "pairs the inputs with the targets of other rows of the batch",
        ("inputs/x",),
        (r"permuted-rows: \S+ has the batch rows in reverse order",),
    ),
    Fault(
        "next-embedding-row",
        "reads the embedding of token k + 1 for token k",
        ("forward/embedding",),
        ("formula: SIDE reads the row of the next token",),
        also=("grads/embedding",),
    ),
    Fault(
        "read-time-major",
        "reads embedded tokens that lie batch-major as if they lay time-major",
        ("forward/embedding",),
        (r"transposed: SIDE .* batch-major numbers taken for time-major\?",),
        also=("grads/embedding",),
    ),
    Fault(
        "rare-token-scaled",
        "has an embedding half as large again for one rare token",
        ("forward/embedding",),
        (r"factor: SIDE is 1\.5 times what it should, at token 209 alone",),
        bites="token 209",
        steps=6,
    ),
)

CELLS = (
    Fault(
        "gates-igfo",
        "reads the gates in the order i, g, f, o (TensorFlow 1)",
        C,
        (r"block-order: SIDE reads the gates of forward/layer\d/gates in the order igfo",),
        also=CELL_BACK,
        blocks=LSTM,
    ),
    Fault(
        "gates-ifog",
        "reads the gates in the order i, f, o, g",
        C,
        (r"block-order: SIDE reads the gates of forward/layer\d/gates in the order ifog",),
        also=(*H, *CELL_BACK),
        blocks=LSTM,
    ),
    Fault(
        "gates-iofg",
        "reads the gates in the order i, o, f, g",
        C,
        (r"block-order: SIDE reads the gates of forward/layer\d/gates in the order iofg",),
        also=(*H, *CELL_BACK),
        blocks=LSTM,
    ),
    Fault(
        "forget-bias-added",
        "adds 1 to the forget gate",
        C,
        (r"constant: SIDE adds 1 to gate f of forward/layer\d/gates",),
        also=CELL_BACK,
        blocks=LSTM,
    ),
    Fault(
        "gates-hard",
        "has hard sigmoids 0.2 x + 0.5 for gates (Keras 2)",
        C,
        (
            r"formula: SIDE has the hard sigmoid clip\(0\.2 x \+ 0\.5, 0, 1\) for the sigmoid "
            ".*Keras.*",
        ),
        also=(*H, *CELL_BACK),
        blocks=LSTM,
    ),
    Fault(
        "output-without-tanh",
        "leaves out the tanh of the cell state in the hidden state",
        H,
        (r"formula: SIDE leaves out the tanh of forward/layer\d/c",),
        also=CELL_BACK,
        blocks=LSTM,
    ),
    Fault(
        "candidate-sigmoid",
        "has a sigmoid for the tanh of what the cell state takes in",
        C,
        ("formula: SIDE has a sigmoid for the tanh, in the tanh of gate g of .*",),
        also=("backward/layer*/gates",),
        blocks=LSTM,
    ),
    Fault(
        "recurrent-bias-twice",
        "counts the recurrent bias twice",
        GATES,
        (r"operand-twice: SIDE counts params/layer\d/b_h twice",),
        also=("grads/layer*/b_h",),
    ),
    Fault(
        "recurrent-bias-missing",
        "leaves out the recurrent bias",
        GATES,
        (r"operand-missing: SIDE leaves out params/layer\d/b_h",),
        also=("grads/layer*/b_h",),
    ),
    Fault(
        "softmax-bias-missing",
        "leaves out the bias of the softmax",
        LOGITS,
        ("operand-missing: SIDE leaves out params/softmax_b",),
        also=("grads/softmax_b",),
        of={
            "awd-lstm": {  # its bias starts from zeros
                "tensor": ("grads/softmax_b",),
                "causes": ("zero: SIDE has nothing but zeros",),
            },
        },
    ),
    Fault(
        "recurrent-weights-transposed",
        "reads the recurrent weights as if they lay in memory as their transpose",
        GATES,
        (
            r"transposed: SIDE reads params/layer\d/w_h in the layout of its transpose",
            r"transposed: SIDE transposes params/layer\d/w_h",  # of an RNN: they are square
        ),
        also=("backward/layer*/h", "grads/layer*/w_h"),
    ),
    Fault(
        "gradient-cut-in-window",
        "lets no gradient flow from a timestep to the hidden state before it",
        ("backward/layer*/h",),
        (
            r"operand-missing: SIDE leaves out the product of backward/layer\d/(gates|a) and the "
            r"transposed weights of params/layer\d/w_h",
            r"operand-missing: SIDE leaves out the product with backward/layer\d/gates",
        ),
        blocks=("lstm", "rnn"),
    ),
    Fault(
        "gradient-cut-through-cell",
        "lets no gradient flow from a timestep to the cell state before it",
        ("backward/layer*/c",),
        (
            r"operand-missing: SIDE leaves out the product of backward/layer\d/c and the "
            r"sigmoid of gate f of forward/layer\d/gates",
        ),
        blocks=LSTM,
    ),
)

STATE = (
    Fault(
        "state-not-carried",
        "starts every window from zeros",
        ("state/in/*",),
        ("formula: SIDE starts from zeros",),
        bites="step 2",
    ),
    Fault(
        "state-not-reset",
        "starts an epoch from the state that the last one ended with",
        ("state/in/*",),
        (
            r"formula: SIDE goes on with state/out/layer\d/h of the step before",
            "formula: OTHER starts from zeros",
        ),
        bites="epoch 2",
        tokens=SHORT,
        steps=7,
    ),
    Fault(
        "state-parts-swapped",
        "carries the hidden state as cell state and the cell state as hidden state",
        ("state/in/*",),
        (r"operand-other: SIDE takes state/out/layer\d/c for state/out/layer\d/h",),
        bites="step 2",
        blocks=LSTM,
    ),
    Fault(
        "state-layers-swapped",
        "carries the state of one layer to the other",
        ("state/in/*",),
        ("operand-other: SIDE takes state/out/layer1/h for state/out/layer0/h",),
        bites="step 2",
        layers=2,
        of=NOT_TIED_AWD,
    ),
    Fault(
        "state-rows-reversed",
        "carries the state to other rows of the batch",
        ("state/in/*",),
        (
            r"permuted-rows: SIDE has the batch rows of state/out/layer\d/h of the step "
            "before in reverse order",
        ),
        bites="step 2",
    ),
    Fault(
        "state-of-ones",
        "starts from ones",
        ("state/in/*",),
        (r"constant: SIDE starts state/out/layer\d/h from 1", "formula: SIDE starts from ones"),
    ),
)

MASKS = (
    Fault(
        "dropout-keep-for-drop",
        "scales by the probability of dropping where that of keeping is meant",
        GATES,
        (r"formula: SIDE scales what dropout keeps by 1 / rate, not 1 / \(1 - rate\), in .*",),
        settings=DROPOUT,
        also=DROPPED,
        of=ROWS_FIRST,
    ),
    Fault(
        "dropout-unscaled",
        "does not scale what dropout keeps",
        GATES,
        ("formula: SIDE does not scale what dropout keeps, in .*",),
        settings=DROPOUT,
        also=DROPPED,
        of=ROWS_FIRST,
    ),
    Fault(
        "dropout-scaled-twice",
        "scales twice what dropout keeps",
        GATES,
        ("formula: SIDE applies the mask of dropout twice, with its scale, in .*",),
        settings=DROPOUT,
        also=DROPPED,
        of=ROWS_FIRST,
    ),
    Fault(
        "dropout-first-mask",
        "has the mask of the first timestep at every one",
        GATES,
        ("formula: SIDE applies the mask of a sequence's first timestep to all of them, in .*",),
        settings=DROPOUT,
        also=DROPPED,
        of={"awd-lstm": None},
    ),
    Fault(
        "dropout-inverted",
        "drops what the mask keeps and keeps what it drops",
        GATES,
        ("formula: SIDE drops what the mask keeps and keeps what it drops, in .*",),
        settings=DROPOUT,
        also=DROPPED,
        of=ROWS_FIRST,
    ),
    Fault(
        "dropout-of-other-layer",
        "has the mask of the first layer for the last",
        LOGITS,
        ("operand-other: SIDE takes inputs/mask/layer0 for inputs/mask/layer1",),
        settings=DROPOUT,
        also=("backward/layer*/h", "grads/softmax_w"),
        layers=2,
        of=NOT_TIED_AWD,
    ),
    Fault(
        "dropout-in-evaluation",
        "drops in evaluation too",
        ("evaluate/loss",),
        ("formula: SIDE .*dropout.*evaluation.*",),
        bites="epoch 1 end",
        settings=DROPOUT,
        tokens=SHORT,
        steps=6,
    ),
)

VALUES = (
    Fault(
        "old-weights",
        "computes with the weights that the last step began with",
        ("forward/embedding", *GATES),
        (
            "stale: SIDE computes with weights as they were before the last step",
            "stale: SIDE takes params/embedding as it was before the last step",
        ),
        bites="step 2",
        also=PRODUCTS,
    ),
    # 1e-5 is 84 roundings of float32: under what a clean pair may differ by.
    Fault(
        "logits-scaled",
        "has logits that are too large by a relative 1e-5",
        LOGITS,
        (r"factor: SIDE is 1 \+ 1e-05 times what it should",),
        settings=FLOAT64,
    ),
    # In float32 it rounds away.
    Fault(
        "logits-raised",
        "adds 1e-7 to the logits",
        LOGITS,
        ("constant: SIDE is larger by 1e-07 in every element",),
        settings=FLOAT64,
    ),
    Fault(
        "logits-late",
        "has the logits one timestep late",
        LOGITS,
        (
            r"shift: SIDE is moved by \+1 timestep",
            r"shift: SIDE takes the timestep before of (dropout of )?forward/layer\d/h.*, and its "
            "last for the first",
            "permuted-rows: SIDE has the timesteps in the order 4, 0, 1, 2, 3",
        ),
    ),
    Fault(
        "activation-float16",
        "casts the hidden state of the first layer to float16 and back",
        ("forward/layer0/h",),
        ("reduced-precision: SIDE is rounded to float16",),
        verdict="precision",
    ),
    Fault(
        "products-tf32",
        "computes matrix products in TF32",
        GATES,
        (
            "reduced-precision: SIDE rounds the operands of the product of forward/embedding "
            "and params/layer0/w_i to tf32",
            "reduced-precision: SIDE rounds the operands of the product with forward/embedding "
            "to tf32",
        ),
        verdict="precision",
        also=DROPPED,
    ),
    Fault(
        "products-bfloat16",
        "computes matrix products in bfloat16",
        GATES,
        (
            "reduced-precision: SIDE rounds the operands of the product of forward/embedding "
            "and params/layer0/w_i to bfloat16",
            "reduced-precision: SIDE rounds the operands of the product with forward/embedding "
            "to bfloat16",
        ),
        verdict="precision",
        also=DROPPED,
    ),
)

LOSS = (
    Fault(
        "loss-averaged-over-time",
        "averages the loss over time where the other sums it",
        ("forward/loss",),
        ("formula: SIDE averages the loss over batch and time(, in the cross-entropy of .*)?",),
        also=("backward/logits",),
        settings={"loss": "sum"},
    ),
    Fault(
        "loss-summed-over-batch",
        "sums the loss over the batch where the other averages it",
        ("forward/loss",),
        ("formula: SIDE sums the loss over batch and time(, in the cross-entropy of .*)?",),
        also=("backward/logits",),
        settings={"loss": "sum"},
    ),
    Fault(
        "loss-without-last",
        "leaves the last timestep out of the loss",
        ("forward/loss",),
        ("formula: SIDE leaves the last timestep out of the loss(, in .*)?",),
        also=("backward/logits",),
    ),
    Fault(
        "loss-smoothed",
        "spreads a tenth of the target's probability over all tokens",
        ("forward/loss",),
        (r"formula: SIDE smooths the targets by 0\.1(, in .*)?",),
        also=("backward/logits",),
    ),
    # Weights so large that logits pass 89, whose exponential is infinite in float32.
    Fault(
        "softmax-naive",
        "does not subtract the largest logit before the exponential",
        ("forward/loss",),
        ("nonfinite: .*SIDE has inf .* leaves the range of float32 is a number on the way .*",),
        settings={"init_scale": "40", "lr": "0.1"},
        of={"awd-lstm": {"settings": {"init_scale": "400", "lr": "0.1"}}},
        also=("backward/logits",),
    ),
)

FAULTS = (*TOKENS, *CELLS, *STATE, *MASKS, *VALUES, *LOSS)
