"""Faults of optimizers, schedule and evaluation, as in faults_update.py of the twins."""

from __future__ import annotations

from harness.models.faults.fault import Fault

PARAMS = ("params/*",)
RATE = ("update/learning_rate",)
# Six steps an epoch, so that the second one is reached.
SHORT = 100

UNTIED = {"tied": "false"}  # tokens that are not read have a gradient of zeros
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
        ("formula: SIDE keeps lr g inside the velocity",),
        settings=MOMENTUM,
        also=PARAMS,
    ),
    Fault(
        "momentum-dampened",
        "takes 1 - mu of the gradient into the velocity",
        ("optimizer/*/velocity",),
        (r"formula: SIDE dampens: \(1 - momentum\) g goes into the velocity",),
        settings=MOMENTUM,
    ),
    Fault(
        "momentum-nesterov",
        "looks ahead (Nesterov)",
        PARAMS,
        (r"formula: SIDE takes Nesterov's step, g \+ momentum v",),
        settings=MOMENTUM,
    ),
    # Not in float32: 1e-8 beside roots of 1e-2, in steps of 1e-2 of weights of 0.4, rounds away.
    Fault(
        "adam-epsilon",
        "has an epsilon of 1e-7 (Keras) where the other has 1e-8",
        PARAMS,
        ("argument: SIDE takes 1e-07 for epsilon 1e-08",),
        settings={**ADAM, "dtype": "float64"},
    ),
    Fault(
        "adam-epsilon-uncorrected",
        "adds Adam's epsilon to the root before its bias is corrected (Keras)",
        PARAMS,
        (
            r"formula: SIDE adds epsilon beside the root that is not bias-corrected \(as "
            r"Keras does\)",
        ),
        settings={**ADAM, **LARGE_EPSILON},
    ),
    # Rows of the embedding that are not read have no gradient, so Adam divides 0 by 0.
    Fault(
        "adam-epsilon-missing",
        "has no epsilon in Adam",
        PARAMS,
        ("argument: SIDE takes 0 for epsilon 1e-08", "nonfinite: .*SIDE has nan .*"),
        settings={**ADAM, **UNTIED},
    ),
    Fault(
        "adam-uncorrected",
        "does not correct the bias of Adam's averages",
        PARAMS,
        ("formula: SIDE corrects no bias",),
        settings=ADAM,
    ),
    Fault(
        "adam-step-ahead",
        "corrects the bias of Adam's averages for one step more",
        PARAMS,
        ("argument: SIDE counts one step more",),
        settings=ADAM,
    ),
    Fault(
        "adam-square-fast",
        "has beta 0.99 in Adam's average of squares",
        ("optimizer/*/v",),
        (r"argument: SIDE takes 0\.99 for beta2 0\.999",),
        settings=ADAM,
        also=PARAMS,
    ),
    Fault(
        "adam-lazy",
        "updates only the rows that have a gradient",
        ("optimizer/embedding/m",),
        ("subset: SIDE leaves rows of tokens that are not in the batch as they were",),
        bites="step 2",
        settings={**ADAM, **UNTIED},
        also=("optimizer/embedding/v", "params/embedding"),
    ),
    Fault(
        "rmsprop-epsilon-inside",
        "adds RMSprop's epsilon under the root",
        PARAMS,
        (r"formula: SIDE adds epsilon inside the root \(as Keras does\)",),
        settings={"optimizer": "rmsprop", "lr": "0.01", **LARGE_EPSILON},
    ),
    Fault(
        "rmsprop-rho-swapped",
        "takes rho for 1 - rho in RMSprop's average of squares",
        ("optimizer/*/square",),
        ("formula: SIDE swaps the shares of the old and the new value",),
        settings={"optimizer": "rmsprop", "lr": "0.01"},
    ),
    Fault(
        "adagrad-epsilon-inside",
        "adds Adagrad's epsilon under the root",
        PARAMS,
        (r"formula: SIDE adds epsilon inside the root \(as Keras does\)",),
        settings={"optimizer": "adagrad", "lr": "0.1", **LARGE_EPSILON},
    ),
    Fault(
        "adagrad-raised",
        "starts Adagrad's accumulator from 0.1 (Keras)",
        ("optimizer/*/accumulator",),
        (r"constant: SIDE starts optimizer/\S+/accumulator from 0\.1",),
        settings={"optimizer": "adagrad", "lr": "0.1"},
    ),
    Fault(
        "optimizer-rebuilt",
        "makes its optimizer anew at the start of every epoch",
        ("optimizer/*/velocity",),
        ("formula: SIDE starts the velocity from zero at every step",),
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
        (
            r"operand-added: SIDE adds the weight decay 0\.1 to update/clipped/\S+",
            "formula: SIDE computes as with decoupled=false",
        ),
        settings={**ADAM_DECAY, "decoupled": "true"},
        also=PARAMS,
    ),
    Fault(
        "decay-decoupled",
        "takes weight decay off the weights where it is to be added to the gradients",
        ("optimizer/*",),
        (
            "formula: SIDE leaves out weight decay of .*",
            "formula: SIDE does not decay this parameter.*",
        ),
        settings=ADAM_DECAY,
        also=PARAMS,
    ),
    Fault(
        "decay-missing",
        "has no weight decay",
        PARAMS,
        (
            "formula: SIDE leaves out weight decay of .*",
            "formula: SIDE does not decay this parameter.*",
        ),
        settings=DECAY,
    ),
    Fault(
        "decay-without-biases",
        "does not decay biases",
        ("params/*b_i", "params/*b_h", "params/softmax_b"),
        (
            "formula: SIDE leaves out weight decay of "
            r"update/clipped/(layer\d/b_[ih]|softmax_b) .*",
            "formula: SIDE does not decay this parameter.*",
        ),
        settings=DECAY,
    ),
    Fault(
        "sgd-ascends",
        "adds the gradient to the weights",
        PARAMS,
        ("formula: SIDE adds lr g to the weights",),
    ),
    Fault(
        "rate-per-sequence",
        "divides the learning rate by the batch size",
        PARAMS,
        (r"factor: SIDE moves 0\.333333 \(1 / batch_size\) times what it should",),
    ),
    Fault(
        "parameter-frozen",
        "does not train the recurrent weights of the first layer",
        ("params/layer0/w_h",),
        ("formula: SIDE does not update this parameter", "stale: SIDE does not move it.*"),
    ),
    Fault(
        "unclipped-used",
        "hands the optimizer the gradients before clipping",
        PARAMS,
        (r"operand-other: SIDE takes grads/\S+ for update/clipped/\S+",),
        bites="norm over limit",
    ),
)

SCHEDULE = (
    Fault(
        "rate-decays-late",
        "lets the learning rate fall one epoch late",
        RATE,
        (
            r"factor: (SIDE is 2 \(lr_decay\)|OTHER is 0\.5 \(1 / lr_decay\)) times what it should",
            "stale: SIDE has the value of the step before",
        ),
        bites="epoch 2",
        settings={"flat_epochs": "1"},
        tokens=SHORT,
        steps=7,
    ),
    Fault(
        "rate-decays-early",
        "lets the learning rate fall one epoch early",
        RATE,
        (r"factor: (SIDE is 0\.5 \(1 / lr_decay\)|OTHER is 2 \(lr_decay\)) times what it should",),
        bites="epoch 2",
        settings={"flat_epochs": "2"},
        tokens=SHORT,
        steps=7,
    ),
    Fault(
        "rate-compounds",
        "applies every epoch's decay to the decayed learning rate of the last",
        RATE,
        (r"factor: (SIDE is 0\.5 \(1 / lr_decay\)|OTHER is 2 \(lr_decay\)) times what it should",),
        bites="epoch 2",
        settings={"flat_epochs": "0"},
        tokens=SHORT,
        steps=7,
    ),
    Fault(
        "evaluation-divisor",
        "divides by one token too many in evaluation",
        ("evaluate/loss",),
        (r"factor: SIDE is 0\.997442 \(390 / 391, as of a count that is one too large.*",),
        bites="epoch 1 end",
        tokens=SHORT,
        steps=6,
    ),
)

FAULTS = (*OPTIMIZERS, *STEPS, *SCHEDULE)
