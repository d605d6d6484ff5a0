"""Faults of the gradients, of their norm and of clipping, as in faults_backward.py of the twins."""

from __future__ import annotations

from harness.models.faults.fault import Fault

FLOAT64 = {"dtype": "float64"}
LOWER = {"settings": {"clip_limit": "0.2"}}  # of gradients of a mean over time
UNTIED = {"tied": "false"}  # the embedding's gradient is that of the tokens read, and no other
CLIPPED, NORM = ("update/clipped/*",), ("update/global_norm",)

GRADIENTS = (
    Fault(
        "gradient-zero",
        "lets no gradient reach the input weights of the first layer",
        ("grads/layer0/w_i",),
        ("zero: SIDE has nothing but zeros",),
    ),
    Fault(
        "gradient-sign",
        "has the wrong sign in the gradient of one bias",
        ("grads/layer0/b_h",),
        ("sign: SIDE has the sign turned",),
    ),
    # 1e-5 is 84 roundings of float32: under what a clean pair may differ by.
    Fault(
        "gradient-scaled",
        "has a gradient of the softmax weights that is too large by a relative 1e-5",
        ("grads/softmax_w",),
        (r"factor: SIDE is 1 \+ 1e-05 times what it should",),
        settings=FLOAT64,
    ),
    # In float32 it rounds away.
    Fault(
        "gradient-raised",
        "adds 1e-9 to the gradient of the softmax weights",
        ("grads/softmax_w",),
        ("constant: SIDE is larger by 1e-09 in every element",),
        settings=FLOAT64,
    ),
    Fault(
        "gradient-transposed",
        "lays the gradient of the softmax weights out as that of their transpose",
        ("grads/softmax_w",),
        (r"transposed: SIDE is permuted to axes \(1, 0\) and then read in the old shape.*",),
    ),
    Fault(
        "gradient-of-padding-zero",
        "has no gradient for the embedding of token 0, as if it were padding",
        ("grads/embedding",),
        ("zero: SIDE has nothing but zeros, at token 0 alone",),
        bites="token 0",
        settings=UNTIED,
    ),
    Fault(
        "gradient-rows-averaged",
        "averages the gradients of a token that occurs more than once",
        ("grads/embedding",),
        (
            "formula: SIDE averages the gradients of a token, in place of their sum"
            "(, in the sum .*)?",
        ),
    ),
    Fault(
        "gradients-accumulated",
        "adds gradients to those of the steps before",
        ("grads/*",),
        (r"accumulated: SIDE adds the value of the step before to it: not zeroed\?",),
        bites="step 2",
    ),
    Fault(
        "gradients-stale",
        "has at each step the gradients of the step before",
        ("grads/*",),
        ("stale: SIDE has the value of the step before",),
        bites="step 2",
    ),
    Fault(
        "gradients-bfloat16",
        "casts gradients to bfloat16 and back",
        ("grads/*",),
        ("reduced-precision: SIDE is rounded to bfloat16",),
        verdict="precision",
    ),
)

CLIPPING = (
    # Else too few tokens occur twice, and their rows weigh too little in the norm.
    Fault(
        "norm-duplicates",
        "counts in the norm the rows of a token before they are added up",
        NORM,
        (
            "operand-other: SIDE counts the rows of grads/embedding before those of one "
            "token are added up",
        ),
        settings={**UNTIED, "init_scale": "0.8", "batch_size": "5", "bptt": "7"},
        tuned=("init_scale", "batch_size", "bptt"),
    ),
    Fault(
        "norm-without-embedding",
        "leaves the embedding out of the norm",
        NORM,
        ("operand-missing: SIDE leaves out the squares of grads/embedding",),
    ),
    Fault(
        "norm-without-biases",
        "leaves the biases out of the norm",
        NORM,
        (r"operand-missing: SIDE leaves all vectors \(biases\) out",),
    ),
    Fault(
        "norm-largest",
        "takes the largest absolute element for the norm",
        NORM,
        ("formula: SIDE takes the largest absolute element for the norm",),
    ),
    # No element is over the limit, so the clamp changes nothing and looks like no clipping at all.
    Fault(
        "clip-elementwise",
        "clamps each element of the gradients instead of scaling all by the global norm",
        CLIPPED,
        ("formula: SIDE clamps each element of the gradients", "formula: SIDE does not clip"),
        bites="norm over limit",
    ),
    # So low that some gradients are over it and some are not.
    Fault(
        "clip-per-tensor",
        "scales each gradient by its own norm",
        CLIPPED,
        ("formula: SIDE clips each tensor by its own norm",),
        bites="norm over limit",
        settings={"clip_limit": "0.9"},
        tuned=("clip_limit",),
        of=dict.fromkeys(("awd-lstm", "char-rnn", "char-gru", "char-lstm"), LOWER),
    ),
    # So low that elements of every tensor are over it: clamping them is not the same as nothing.
    Fault(
        "clip-never",
        "does not clip",
        CLIPPED,
        ("formula: SIDE does not clip",),
        bites="norm over limit",
        settings={"clip_limit": "0.01"},
        tuned=("clip_limit",),
    ),
    Fault(
        "clip-always",
        "scales gradients to the limit also where they are under it",
        CLIPPED,
        ("formula: SIDE scales gradients to the limit also where their norm is under it",),
    ),
    # A relative 5e-7: four roundings of float32.
    Fault(
        "clip-epsilon",
        "divides by the norm plus 1e-6 (torch.nn.utils.clip_grad_norm_)",
        CLIPPED,
        (r"formula: SIDE adds 1e-6 to the norm before it divides by it \(as torch does\)",),
        bites="norm over limit",
        settings=FLOAT64,
    ),
)

FAULTS = (*GRADIENTS, *CLIPPING)
