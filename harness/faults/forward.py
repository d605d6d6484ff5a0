"""Faults of the forward pass, as in faults_forward.py of the twins."""

from __future__ import annotations

from harness.faults.fault import Fault

FLOAT64 = {"dtype": "float64"}
DROPOUT = {"dropout": "0.4"}  # not 0.5: keeping and dropping must be two numbers
# Six steps an epoch, so that the second one is reached.
SHORT = 100

C, H = ("forward/layer*/c",), ("forward/layer*/h",)
GATES, LOGITS = ("forward/layer*/gates",), ("forward/logits",)
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
        ("shift",),
    ),
    Fault(
        "targets-shifted-twice",
        "takes for targets the tokens after the next ones",
        ("inputs/y",),
        ("shift",),
    ),
    Fault(
        "inputs-reversed",
        "pairs the inputs with the targets of other rows of the batch",
        ("inputs/x",),
        ("permuted-rows",),
    ),
    Fault(
        "next-embedding-row",
        "reads the embedding of token k + 1 for token k",
        ("forward/embedding",),
        ("shift",),
        also=("grads/embedding",),
    ),
    Fault(
        "read-time-major",
        "reads embedded tokens that lie batch-major as if they lay time-major",
        ("forward/embedding",),
        ("transposed", "permuted-rows"),
        also=("grads/embedding",),
    ),
    Fault(
        "rare-token-scaled",
        "has an embedding half as large again for one rare token",
        ("forward/embedding",),
        ("confined", "factor"),
        bites="token 209",
        steps=6,
    ),
)

CELLS = (
    Fault(
        "gates-igfo",
        "reads the gates in the order i, g, f, o (TensorFlow 1)",
        C,
        ("gate-order",),
        also=CELL_BACK,
    ),
    Fault(
        "gates-ifog",
        "reads the gates in the order i, f, o, g",
        C,
        ("gate-order",),
        also=(*H, *CELL_BACK),
    ),
    Fault(
        "gates-iofg",
        "reads the gates in the order i, o, f, g",
        C,
        ("gate-order",),
        also=(*H, *CELL_BACK),
    ),
    Fault(
        "forget-bias-added",
        "adds 1 to the forget gate",
        C,
        ("forget-bias",),
        also=CELL_BACK,
    ),
    Fault(
        "gates-hard",
        "has hard sigmoids 0.2 x + 0.5 for gates (Keras 2)",
        C,
        ("cell-formula",),
        also=(*H, *CELL_BACK),
    ),
    Fault(
        "output-without-tanh",
        "leaves out the tanh of the cell state in the hidden state",
        H,
        ("cell-formula",),
        also=CELL_BACK,
    ),
    Fault(
        "candidate-sigmoid",
        "has a sigmoid for the tanh of what the cell state takes in",
        C,
        ("cell-formula",),
        also=("backward/layer*/gates",),
    ),
    Fault(
        "recurrent-bias-twice",
        "counts the recurrent bias twice",
        GATES,
        ("bias-twice",),
        also=("grads/layer*/b_h",),
    ),
    Fault(
        "recurrent-bias-missing",
        "leaves out the recurrent bias",
        GATES,
        ("bias-missing",),
        also=("grads/layer*/b_h",),
    ),
    Fault(
        "softmax-bias-missing",
        "leaves out the bias of the softmax",
        LOGITS,
        ("bias-missing",),
        also=("grads/softmax_b",),
    ),
    Fault(
        "recurrent-weights-transposed",
        "reads the recurrent weights as if they lay in memory as their transpose",
        GATES,
        ("transposed",),
        also=("backward/layer*/h", "grads/layer*/w_h"),
    ),
    Fault(
        "gradient-cut-in-window",
        "lets no gradient flow from a timestep to the hidden state before it",
        ("backward/layer*/h",),
        ("zero-gradient", "missing-term"),
    ),
    Fault(
        "gradient-cut-through-cell",
        "lets no gradient flow from a timestep to the cell state before it",
        ("backward/layer*/c",),
        ("zero-gradient", "missing-term"),
    ),
)

STATE = (
    Fault(
        "state-not-carried",
        "starts every window from zeros",
        ("state/in/*",),
        ("state-not-carried",),
        bites="step 2",
    ),
    Fault(
        "state-not-reset",
        "starts an epoch from the state that the last one ended with",
        ("state/in/*",),
        ("state-not-reset",),
        bites="epoch 2",
        tokens=SHORT,
        steps=7,
    ),
    Fault(
        "state-parts-swapped",
        "carries the hidden state as cell state and the cell state as hidden state",
        ("state/in/*",),
        ("state-swapped",),
        bites="step 2",
    ),
    Fault(
        "state-layers-swapped",
        "carries the state of one layer to the other",
        ("state/in/*",),
        ("state-swapped",),
        bites="step 2",
    ),
    Fault(
        "state-rows-reversed",
        "carries the state to other rows of the batch",
        ("state/in/*",),
        ("permuted-rows",),
        bites="step 2",
    ),
    Fault(
        "state-of-ones",
        "starts from ones",
        ("state/in/*",),
        ("constant",),
    ),
)

MASKS = (
    Fault(
        "dropout-keep-for-drop",
        "scales by the probability of dropping where that of keeping is meant",
        GATES,
        ("dropout",),
        settings=DROPOUT,
        also=DROPPED,
    ),
    Fault(
        "dropout-unscaled",
        "does not scale what dropout keeps",
        GATES,
        ("dropout",),
        settings=DROPOUT,
        also=DROPPED,
    ),
    Fault(
        "dropout-scaled-twice",
        "scales twice what dropout keeps",
        GATES,
        ("dropout",),
        settings=DROPOUT,
        also=DROPPED,
    ),
    Fault(
        "dropout-first-mask",
        "has the mask of the first timestep at every one",
        GATES,
        ("dropout",),
        settings=DROPOUT,
        also=DROPPED,
    ),
    Fault(
        "dropout-inverted",
        "drops what the mask keeps and keeps what it drops",
        GATES,
        ("dropout",),
        settings=DROPOUT,
        also=DROPPED,
    ),
    Fault(
        "dropout-of-other-layer",
        "has the mask of the first layer for the last",
        LOGITS,
        ("dropout",),
        settings=DROPOUT,
        also=("backward/layer*/h", "grads/softmax_w"),
    ),
    Fault(
        "dropout-in-evaluation",
        "drops in evaluation too",
        ("evaluate/loss",),
        ("dropout",),
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
        ("stale",),
        bites="step 2",
        also=PRODUCTS,
    ),
    # 1e-5 is 84 roundings of float32: under what a clean pair may differ by.
    Fault(
        "logits-scaled",
        "has logits that are too large by a relative 1e-5",
        LOGITS,
        ("factor",),
        settings=FLOAT64,
    ),
    # In float32 it rounds away.
    Fault(
        "logits-raised",
        "adds 1e-7 to the logits",
        LOGITS,
        ("constant",),
        settings=FLOAT64,
    ),
    Fault(
        "logits-late",
        "has the logits one timestep late",
        LOGITS,
        ("shift",),
    ),
    Fault(
        "activation-float16",
        "casts the hidden state of the first layer to float16 and back",
        ("forward/layer0/h",),
        ("reduced-precision",),
        verdict="precision",
    ),
    Fault(
        "products-tf32",
        "computes matrix products in TF32",
        GATES,
        ("reduced-precision",),
        verdict="precision",
        also=DROPPED,
    ),
    Fault(
        "products-bfloat16",
        "computes matrix products in bfloat16",
        GATES,
        ("reduced-precision",),
        verdict="precision",
        also=DROPPED,
    ),
)

LOSS = (
    Fault(
        "loss-averaged-over-time",
        "averages the loss over time where the other sums it",
        ("forward/loss",),
        ("loss-formula", "factor"),
        also=("backward/logits",),
    ),
    Fault(
        "loss-summed-over-batch",
        "sums the loss over the batch where the other averages it",
        ("forward/loss",),
        ("loss-formula", "factor"),
        also=("backward/logits",),
    ),
    Fault(
        "loss-without-last",
        "leaves the last timestep out of the loss",
        ("forward/loss",),
        ("loss-formula", "missing-term"),
        also=("backward/logits",),
    ),
    Fault(
        "loss-smoothed",
        "spreads a tenth of the target's probability over all tokens",
        ("forward/loss",),
        ("loss-formula",),
        also=("backward/logits",),
    ),
    # Weights so large that logits pass 89, whose exponential is infinite in float32.
    Fault(
        "softmax-naive",
        "does not subtract the largest logit before the exponential",
        ("forward/loss",),
        ("nonfinite",),
        settings={"init_scale": "40", "lr": "0.1"},
        also=("backward/logits",),
    ),
)

FAULTS = (*TOKENS, *CELLS, *STATE, *MASKS, *VALUES, *LOSS)
