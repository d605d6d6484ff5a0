"""The blocks that models are made of: each a few lines of what it computes, stage by stage.

Each function takes the Builder, the block's name, what it reads and its sizes, and gives what it
makes; a twin has a function and its derivative under the same name.
"""

from __future__ import annotations

from typing import Any

from harness.errors import HarnessError
from harness.models.build import Builder
from harness.models.graph import BATCH, TIME, Axis, Blocks, Node, const, node, ref

GATES = Blocks("gate", tuple("ifgo"))
RESETS = Blocks("gate", tuple("rzn"))
WIDTH = "unit"


def embedding(m: Builder, size: int, vocabulary: int, drop: float | None = None) -> Node:
    """The rows of a table that tokens name; `drop` drops whole rows (Gal and Ghahramani 2016)."""
    table = m.param("embedding", (vocabulary, size), ("token", WIDTH))
    named = _dropping(["rows"], drop)
    m.block("embed", "embedding", params=("embedding",), traced=("embedding",), **named)
    if drop is not None:
        table = m.dropout(table, "rows", (vocabulary, 1), ("token", WIDTH), drop)
    return m.trace("embedding", node("embed", table, ref("inputs/x")), WIDTH)


def dropout(m: Builder, site: str, x: Node, width: int, rate: float) -> Node:
    """Dropout with a new mask for every element (Zaremba et al. 2014)."""
    m.block("dropout", site, draws=(site,), args={"rate": rate})
    return m.dropout(x, site, (-1, -1, width), (BATCH, TIME, WIDTH), rate)


def _dropping(sites: list[str], rate: float | None) -> dict[str, Any]:
    """The fields of a block that drops at these sites, if it drops at all."""
    return {} if rate is None else {"draws": tuple(sites), "args": {"rate": rate}}


def locked(m: Builder, site: str, x: Node, width: int, rate: float) -> Node:
    """Dropout with one mask for all timesteps of a window (Gal and Ghahramani 2016)."""
    m.block("dropout", site, **_dropping([site], rate))
    return m.dropout(x, site, (-1, 1, width), (BATCH, TIME, WIDTH), rate)


def activation_penalty(m: Builder, x: Node, factor: float) -> Node:
    """factor times the mean square of x: Merity et al. 2017 (arXiv 1708.02182), section 4.6, AR."""
    m.block("activation", "activation", args={"factor": factor})
    return node("scale", node("mean_square", x), const(factor, "activation_penalty"))


def temporal_penalty(m: Builder, x: Node, factor: float) -> Node:
    """factor times the mean square of x[t+1] - x[t]: Merity et al. 2017, section 4.6, TAR."""
    m.block("temporal", "temporal", args={"factor": factor})
    later, earlier = node("part", x, start=1, stop=0), node("part", x, start=0, stop=-1)
    change = node("add", later, node("negate", earlier))
    return node("scale", node("mean_square", change), const(factor, "temporal_penalty"))


def _layer(
    m: Builder,
    name: str,
    width: int,
    units: int,
    columns: Axis,
    of: int = 1,
    init: float | None = None,
) -> tuple[Node, ...]:
    """The parameters of a recurrent layer: w_i, w_h, b_i, b_h, with `of` blocks of columns."""
    w_i = m.param(f"{name}/w_i", (width, of * units), ("input", columns), init)
    w_h = m.param(f"{name}/w_h", (units, of * units), ("hidden", columns), init)
    b_i = m.param(f"{name}/b_i", (of * units,), (columns,), init)
    b_h = m.param(f"{name}/b_h", (of * units,), (columns,), init)
    return w_i, w_h, b_i, b_h


def _block(m: Builder, kind: str, name: str, state: str, traced: str, **fields: Any) -> None:
    """A recurrent layer for the twins; `state` and `traced` are the last parts of names."""
    m.block(
        kind,
        name,
        params=tuple(f"{name}/{part}" for part in ("w_i", "w_h", "b_i", "b_h")),
        state=tuple(f"{name}/{part}" for part in state.split()),
        traced=tuple(f"{name}/{part}" for part in traced.split()),
        **fields,
    )


def rnn(m: Builder, name: str, x: Node, width: int, units: int) -> Node:
    """A tanh RNN layer: a = x w_i + h w_h + b_i + b_h; h = tanh(a).

    (Elman 1990; Goodfellow et al. 2016, Deep Learning, equations 10.8 and 10.9.)
    """
    w_i, w_h, b_i, b_h = _layer(m, name, width, units, WIDTH)
    h = m.carried(f"{name}/h", units)
    _block(m, "rnn", name, "h", "a h")
    a = node("add", node("linear", x, w_i), node("linear", h, w_h))
    a = m.trace(f"{name}/a", node("bias", node("bias", a, b_i), b_h), WIDTH)
    return m.trace(f"{name}/h", node("tanh", a), WIDTH)


def gru(m: Builder, name: str, x: Node, width: int, units: int, reset: str) -> Node:
    """A GRU layer: h = (1 - s(z)) tanh(n) + s(z) h, s being the sigmoid.

    r, z and n are blocks of x w_i + b_i + h w_h + b_h, but that n takes of its block of h w_h + b_h
    s(r) times as much (`reset` "after": torch, cuDNN, Keras), or (s(r) h) w_h + b_h (`reset`
    "before": Cho et al. 2014, arXiv 1406.1078, equations 5 to 8, whose z is 1 - z here).
    """
    w_i, w_h, b_i, b_h = _layer(m, name, width, units, RESETS, of=3)
    h = m.carried(f"{name}/h", units)
    _block(m, "gru", name, "h", "r z n h", args={"reset": reset})

    def third(y: Node, index: int) -> Node:
        return node("block", y, index=index, of=3)

    read, kept = (
        node("bias", node("linear", x, w_i), b_i),
        node("bias", node("linear", h, w_h), b_h),
    )
    r = m.trace(f"{name}/r", node("add", third(read, 0), third(kept, 0)), WIDTH)
    z = m.trace(f"{name}/z", node("add", third(read, 1), third(kept, 1)), WIDTH)
    if reset == "after":
        taken = node("multiply", node("sigmoid", r), third(kept, 2))
    else:
        taken = node("linear", node("multiply", node("sigmoid", r), h), third(w_h, 2))
        taken = node("bias", taken, third(b_h, 2))
    n = m.trace(f"{name}/n", node("add", third(read, 2), taken), WIDTH)
    update = node("sigmoid", z)
    new = node("multiply", node("complement", update), node("tanh", n))
    return m.trace(f"{name}/h", node("add", new, node("multiply", update, h)), WIDTH)


def lstm(
    m: Builder,
    name: str,
    x: Node,
    width: int,
    units: int,
    drop: float | None = None,
    init: float | None = None,
) -> Node:
    """An LSTM layer: z = x w_i + b_i + h w_h + b_h; c = s(f) c + s(i) tanh(g); h = s(o) tanh(c).

    (Zaremba et al. 2014, arXiv 1409.2329, section 3.1, whose j is g; no forget-bias offset.)
    `drop` drops elements of w_h, the same at all timesteps (Wan et al. 2013, DropConnect; Merity et
    al. 2017, arXiv 1708.02182, section 2).
    """
    w_i, w_h, b_i, b_h = _layer(m, name, width, units, GATES, 4, init)
    h, c = m.carried(f"{name}/h", units), m.carried(f"{name}/c", units)
    _block(m, "lstm", name, "h c", "gates c h", **_dropping([f"{name}/w_h"], drop))
    if drop is not None:
        w_h = m.dropout(w_h, f"{name}/w_h", (units, 4 * units), ("hidden", GATES), drop)
    z = node("add", node("linear", x, w_i), node("linear", h, w_h))
    z = m.trace(f"{name}/gates", node("bias", node("bias", z, b_i), b_h), GATES)
    i, f, g, o = (node("block", z, index=k, of=4) for k in range(4))
    kept = node("multiply", node("sigmoid", f), c)
    taken = node("multiply", node("sigmoid", i), node("tanh", g))
    c = m.trace(f"{name}/c", node("add", kept, taken), WIDTH)
    return m.trace(f"{name}/h", node("multiply", node("sigmoid", o), node("tanh", c)), WIDTH)


def project(
    m: Builder, x: Node, width: int, vocabulary: int, tied: bool, init: float | None = None
) -> Node:
    """Logits: x w + b; where `tied`, w is the transposed embedding.

    (Press and Wolf 2017, arXiv 1608.05859; Inan et al. 2017, arXiv 1611.01462.)
    """
    embedded = m.params["embedding"].shape[1]
    if tied and embedded != width:
        raise HarnessError(
            f"tied=true: the embedding has {embedded} units and the last layer {width}; give both "
            "the same (embed_size, hidden_size), or tied=false"
        )
    name = "embedding" if tied else "softmax_w"
    axes = ("token", WIDTH) if tied else ("hidden", "token")
    w = m.param(name, (vocabulary, width) if tied else (width, vocabulary), axes)
    b = m.param("softmax_b", (vocabulary,), ("token",), init)
    params = (name, "softmax_b")
    m.block("project", "logits", params=params, traced=("logits",), args={"tied": tied})
    w = node("transpose", w) if tied else w
    return m.trace("logits", node("bias", node("linear", x, w), b), "token")


def cross_entropy(m: Builder, logits: Node) -> Node:
    """The negative log-likelihood of the targets."""
    time = m.train.loss if m.train else "sum"
    return node("cross_entropy", logits, ref("inputs/y"), time=time)
