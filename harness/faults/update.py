"""Faults of optimizers, schedule and evaluation, as in faults_update.py of the twins."""

from __future__ import annotations

from harness.faults.fault import Fault

PARAMS = ("params/*",)
RATE = ("update/learning_rate",)
# Six steps an epoch, so that the second one is reached.
SHORT = 100

ADAM = {"optimizer": "adam", "lr": "0.01"}
# Beside the roots of most squares (about 1e-2) 1e-4 is a hundredth: seen in float32 too.
LARGE_EPSILON = {"epsilon": "1e-4"}
MOMENTUM = {"optimizer": "momentum", "lr": "0.5"}
DECAY = {"weight_decay": "0.01"}
# Under plain descent the two kinds of weight decay are one.
ADAM_DECAY = {**ADAM, "weight_decay": "0.1"}

OPTIMIZERS = (
    Fault(
        "momentum-rate-inside",
        "has the learning rate inside the velocity (Keras)",
        ("optimizer/*/velocity",),
        ("momentum-convention", "factor"),
        settings=MOMENTUM,
        also=PARAMS,
    ),
    Fault(
        "momentum-dampened",
        "takes 1 - mu of the gradient into the velocity",
        ("optimizer/*/velocity",),
        ("momentum-convention", "factor"),
        settings=MOMENTUM,
    ),
    Fault(
        "momentum-nesterov",
        "looks ahead (Nesterov)",
        PARAMS,
        ("momentum-convention",),
        settings=MOMENTUM,
    ),
    # Not in float32: 1e-8 beside roots of 1e-2, in steps of 1e-2 of weights of 0.4, rounds away.
    Fault(
        "adam-epsilon",
        "has an epsilon of 1e-7 (Keras) where the other has 1e-8",
        PARAMS,
        ("epsilon",),
        settings={**ADAM, "dtype": "float64"},
    ),
    Fault(
        "adam-epsilon-uncorrected",
        "adds Adam's epsilon to the root before its bias is corrected (Keras)",
        PARAMS,
        ("epsilon",),
        settings={**ADAM, **LARGE_EPSILON},
    ),
    # Rows of the embedding that are not read have no gradient, so Adam divides 0 by 0.
    Fault(
        "adam-epsilon-missing",
        "has no epsilon in Adam",
        PARAMS,
        ("nonfinite", "epsilon"),
        settings=ADAM,
    ),
    Fault(
        "adam-uncorrected",
        "does not correct the bias of Adam's averages",
        PARAMS,
        ("bias-correction",),
        settings=ADAM,
    ),
    Fault(
        "adam-step-ahead",
        "corrects the bias of Adam's averages for one step more",
        PARAMS,
        ("bias-correction",),
        settings=ADAM,
    ),
    Fault(
        "adam-square-fast",
        "has beta 0.99 in Adam's average of squares",
        ("optimizer/*/v",),
        ("optimizer-formula", "factor"),
        settings=ADAM,
        also=PARAMS,
    ),
    Fault(
        "adam-lazy",
        "updates only the rows that have a gradient",
        ("optimizer/embedding/m",),
        ("optimizer-formula", "confined", "stale"),
        bites="step 2",
        settings=ADAM,
        also=("optimizer/embedding/v", "params/embedding"),
    ),
    Fault(
        "rmsprop-epsilon-inside",
        "adds RMSprop's epsilon under the root",
        PARAMS,
        ("epsilon",),
        settings={"optimizer": "rmsprop", "lr": "0.01", **LARGE_EPSILON},
    ),
    Fault(
        "rmsprop-rho-swapped",
        "takes rho for 1 - rho in RMSprop's average of squares",
        ("optimizer/*/square",),
        ("optimizer-formula", "factor"),
        settings={"optimizer": "rmsprop", "lr": "0.01"},
    ),
    Fault(
        "adagrad-epsilon-inside",
        "adds Adagrad's epsilon under the root",
        PARAMS,
        ("epsilon",),
        settings={"optimizer": "adagrad", "lr": "0.1", **LARGE_EPSILON},
    ),
    Fault(
        "adagrad-raised",
        "starts Adagrad's accumulator from 0.1 (Keras)",
        ("optimizer/*/accumulator",),
        ("initial-accumulator", "constant"),
        settings={"optimizer": "adagrad", "lr": "0.1"},
    ),
    Fault(
        "optimizer-rebuilt",
        "makes its optimizer anew at the start of every epoch",
        ("optimizer/*/velocity",),
        ("optimizer-formula", "missing-term"),
        bites="epoch 2",
        settings=MOMENTUM,
        tokens=SHORT,
        steps=7,
    ),
)

STEPS = (
    Fault(
        "decay-coupled",
        "adds weight decay to the gradients where it is to be taken off the weights",
        ("optimizer/*",),
        ("weight-decay",),
        settings={**ADAM_DECAY, "decoupled": "true"},
        also=PARAMS,
    ),
    Fault(
        "decay-decoupled",
        "takes weight decay off the weights where it is to be added to the gradients",
        ("optimizer/*",),
        ("weight-decay",),
        settings=ADAM_DECAY,
        also=PARAMS,
    ),
    Fault(
        "decay-missing",
        "has no weight decay",
        PARAMS,
        ("weight-decay",),
        settings=DECAY,
    ),
    Fault(
        "decay-without-biases",
        "does not decay biases",
        ("params/*b_i", "params/*b_h", "params/softmax_b"),
        ("weight-decay",),
        settings=DECAY,
    ),
    Fault(
        "sgd-ascends",
        "adds the gradient to the weights",
        PARAMS,
        ("sign", "optimizer-formula"),
    ),
    Fault(
        "rate-per-sequence",
        "divides the learning rate by the batch size",
        PARAMS,
        ("factor", "learning-rate"),
    ),
    Fault(
        "parameter-frozen",
        "does not train the recurrent weights of the first layer",
        ("params/layer0/w_h",),
        ("optimizer-formula", "stale", "zero-gradient"),
    ),
    Fault(
        "unclipped-used",
        "hands the optimizer the gradients before clipping",
        PARAMS,
        ("optimizer-formula", "clip-one-side", "factor"),
        bites="norm over limit",
    ),
)

SCHEDULE = (
    Fault(
        "rate-decays-late",
        "lets the learning rate fall one epoch late",
        RATE,
        ("learning-rate", "factor"),
        bites="epoch 2",
        settings={"flat_epochs": "1"},
        tokens=SHORT,
        steps=7,
    ),
    Fault(
        "rate-decays-early",
        "lets the learning rate fall one epoch early",
        RATE,
        ("learning-rate", "factor"),
        bites="epoch 2",
        settings={"flat_epochs": "2"},
        tokens=SHORT,
        steps=7,
    ),
    Fault(
        "rate-compounds",
        "applies every epoch's decay to the decayed learning rate of the last",
        RATE,
        ("learning-rate", "factor"),
        bites="epoch 2",
        settings={"flat_epochs": "0"},
        tokens=SHORT,
        steps=7,
    ),
    Fault(
        "evaluation-divisor",
        "divides by one token too many in evaluation",
        ("evaluate/loss",),
        ("factor",),
        bites="epoch 1 end",
        tokens=SHORT,
        steps=6,
    ),
)

FAULTS = (*OPTIMIZERS, *STEPS, *SCHEDULE)
