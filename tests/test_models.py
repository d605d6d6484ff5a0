"""Every model of the table: what follows from its row, the twins, autograd, the graph, layers.

The cases are made from the table: each row with every random draw on, and with each other value of
every field that is a choice.
"""

from typing import Literal, get_args, get_origin, get_type_hints

import numpy as np
import pytest
from twins import (
    B,
    E,
    H,
    L,
    T,
    V,
    a_run,
    assert_all_close,
    assert_close,
    random_slots,
    random_state,
    random_tokens,
    random_weights,
    tensors_of,
    train_spec,
)

from harness.compare import Tolerance, compare
from harness.data import weights
from harness.data.randomness import dropout_masks
from harness.errors import HarnessError
from harness.models.evaluate import Values
from harness.models.spec import ModelSpec
from harness.models.table import ROWS, graph_of, model_of, parameters, restart_names
from harness.spec import TrainSpec, override, preset
from harness.trace.statistics import describe

HINTS = get_type_hints(ModelSpec)


def _rates(network):
    """Every field of a row that is a number with a default, switched on."""
    names = [n for n in ROWS[network].fields if HINTS[n] is float and n != "init_scale"]
    return {name: 0.2 + 0.1 * k for k, name in enumerate(names)}


def _variants(network):
    """Each other value of every field that is a choice."""
    for name in ROWS[network].fields:
        hint, default = HINTS[name], getattr(ModelSpec(V, E, H, L), name)
        values = get_args(hint) if get_origin(hint) is Literal else [True] if hint is bool else []
        for value in values:
            if value != default:
                yield {name: value}


def _model(network, more):
    embed = H if more.get("tied") else E
    return ModelSpec(V, embed, H, L, network=network, **_rates(network), **more)


CASES = {
    " ".join([network, *(f"{k}={v}" for k, v in more.items())]): _model(network, more)
    for network in ROWS
    for more in ({}, *_variants(network))
}
EACH = pytest.mark.parametrize("model", CASES.values(), ids=CASES)


@EACH
def test_blocks_name_all_parameters_states_stages_and_draws_of_the_row(model):
    found = model_of(model)
    names = [name for block in found.blocks for name in block.params]
    assert list(dict.fromkeys(names)) == [p.name for p in found.params]
    assert ("softmax_w" in names) != model.tied
    assert [name for block in found.blocks for name in block.state] == list(found.state)
    traced = [f"forward/{name}" for block in found.blocks for name in block.traced]
    assert [*traced, "forward/loss"] == [stage.out.name for stage in found.forward]
    assert [site for block in found.blocks for site in block.draws] == list(found.draws)
    streams = [draw.stream for draw in found.draws.values()]
    assert len(set(streams)) == len(streams) > 0


@EACH
def test_weights_masks_and_what_a_run_resumes_from_follow_from_the_row(model):
    train = TrainSpec(batch_size=B, bptt=T, optimizer="adam")
    drawn = weights.draw(model, seed=1)
    assert {n: a.shape for n, a in drawn.items()} == {p.name: p.shape for p in parameters(model)}
    for p in parameters(model):
        scale = model.init_scale if p.init is None else p.init
        assert 0.5 * scale <= np.abs(drawn[p.name]).max(initial=0) <= scale
    masks = dropout_masks(model, train, 1)
    for site, draw in model_of(model).draws.items():
        sizes = {"batch row": B, "timestep": T}
        shape = [sizes[axis] if n < 0 else n for n, axis in zip(draw.shape, draw.axes, strict=True)]
        assert list(masks[site].shape) == shape
        assert 0 < masks[site].sum() < masks[site].size
    names = restart_names(model, train)
    assert len(names) == 3 * len(drawn) + len(model_of(model).state)


@EACH
def test_weights_of_the_model_are_read_back(model, tmp_path):
    drawn = weights.draw(model, seed=1)
    weights.save(drawn, tmp_path / "w.npz")
    for found in (weights.load(tmp_path / "w.npz", model), weights.load(tmp_path / "w.npz")):
        assert list(found) == list(drawn)
        assert all(np.array_equal(found[name], drawn[name]) for name in drawn)


def step(twin, dtype, model, **fields):
    """One training step: new parameters, slots and state, loss, and the trace points."""
    train = train_spec(dtype, optimizer="adam", **fields)
    state, slots = random_state(dtype, model=model), random_slots(dtype, train, model=model)
    given = [random_weights(dtype, model=model), slots, state, *random_tokens()]
    given += [dropout_masks(model, train, 1), 0.07, 3, model, train]
    return twin("watched", "train.train_step", *given)


@EACH
def test_the_twins_agree_at_every_trace_point(pt, tf, dtype, model):
    *found_a, loss_a, points_a = step(pt, dtype, model)
    *found_b, loss_b, points_b = step(tf, dtype, model)
    assert_all_close(points_a, points_b)
    for a, b in zip(found_a, found_b, strict=True):  # parameters, slots, state
        assert_all_close(a, b)
    assert_close(loss_a, loss_b, "loss")


@EACH
def test_the_gradient_by_hand_is_that_of_autograd(side, dtype, model):
    by_hand, by_autograd = (
        step(side, dtype, model, autograd=autograd)[-1] for autograd in (False, True)
    )
    assert set(by_hand) == set(by_autograd)
    assert_all_close(by_hand, by_autograd)


@EACH
def test_a_run_draws_the_same_bytes_and_every_stage_is_that_of_the_graph(pt, tf, model, tmp_path):
    runs = {
        twin.twin: a_run(tmp_path, twin.twin, model, steps=3, lr=0.1, dtype="float64")
        for twin in (pt, tf)
    }
    for job in [twin.start("train", runs[twin.twin]) for twin in (pt, tf)]:
        job.result()
    steps = {side: [tensors_of(tmp_path, side, k) for k in (1, 2, 3)] for side in runs}
    graph = graph_of(model, runs["pt"].train)
    for k, (a, b) in enumerate(zip(steps["pt"], steps["tf"], strict=True)):
        masks = dropout_masks(model, runs["pt"].train, k + 1)
        assert {n.removeprefix("inputs/mask/") for n in a if "/mask/" in n} == set(masks)
        for site, mask in masks.items():
            assert a[f"inputs/mask/{site}"].tobytes() == mask.tobytes()
            assert b[f"inputs/mask/{site}"].tobytes() == mask.tobytes()

        def read(back, name, k=k):
            return steps["pt"][k - back].get(name)

        values = Values(read, k + 1, graph)
        for name in graph.stages.keys() - {n for n in graph.stages if n.startswith("inputs/")}:
            made = graph.stages[name].value
            if made.op != "given":
                assert_close(np.asarray(values.value(made)), a[name], name)


@EACH
def test_a_run_that_follows_at_every_stage_is_close(pt, tf, model, tmp_path):
    tf("train", a_run(tmp_path, "tf", model, steps=3))
    pt("train", a_run(tmp_path, "pt", model, steps=3, follow="tf"))
    for k in (1, 2, 3):
        a, b = tensors_of(tmp_path, "pt", k), tensors_of(tmp_path, "tf", k)
        assert a.keys() == b.keys()
        for name, value in a.items():
            tolerance = Tolerance().allowance(describe(name, b[name]))
            assert compare(value, b[name], tolerance).close, name


# The models that frameworks have as stock layers.
STOCK = {"rnn": "simple_rnn", "gru": "gru"}
STOCKED = {n: m for n, m in CASES.items() if m.network in STOCK and not m.tied}


def one_bias(model):
    """Whether Keras has the sum of the two biases."""
    return model.network != "gru" or model.reset == "before"


def to_stock(side, arrays, model):
    """Parameters, or gradients, under the names and in the layout of the side's stock layers."""
    w, found = arrays, {}
    if side == "pt":
        found["encoder.weight"] = w["embedding"]
        for k in range(L):
            named = {"weight_ih": "w_i", "weight_hh": "w_h", "bias_ih": "b_i", "bias_hh": "b_h"}
            found |= {f"rnn.{n}_l{k}": w[f"layer{k}/{p}"].T for n, p in named.items()}
        return found | {"decoder.weight": w["softmax_w"].T, "decoder.bias": w["softmax_b"]}
    found["embedding/embeddings"] = w["embedding"]
    layer = STOCK[model.network]
    for k in range(L):
        w_i, w_h, b_i, b_h = (w[f"layer{k}/{part}"] for part in ("w_i", "w_h", "b_i", "b_h"))
        if layer == "gru":  # z, r, n; reset before or after
            w_i, w_h, b_i, b_h = (
                np.concatenate([a[..., H : 2 * H], a[..., :H], a[..., 2 * H :]], -1)
                for a in (w_i, w_h, b_i, b_h)
            )
        found[f"{layer}_{k}/kernel"], found[f"{layer}_{k}/recurrent_kernel"] = w_i, w_h
        found[f"{layer}_{k}/bias"] = b_i + b_h if one_bias(model) else np.stack([b_i, b_h])
    return found | {"dense/kernel": w["softmax_w"], "dense/bias": w["softmax_b"]}


@pytest.mark.parametrize("model", STOCKED.values(), ids=STOCKED)
def test_a_step_is_that_of_the_stock_layers(side, dtype, model):
    if side.twin == "pt" and model.network == "gru" and model.reset == "before":
        pytest.skip("torch has no GRU that resets before the product")
    given, state = random_weights(dtype, model=model), random_state(dtype, model=model)
    (x, y), train = random_tokens(), train_spec(dtype)
    loss, after, grads, points = side(
        "watched", "train.gradients", given, state, x, y, {}, model, train
    )
    stock = to_stock(side.twin, given, model)
    logits, stock_loss, stock_grads, last = side("stock_step", stock, x, y, state, model, dtype)
    assert_close(points["forward/logits"], logits, "logits")
    assert_close(loss, np.asarray(stock_loss, dtype), "loss")
    for name, value in after.items():
        assert_close(value, last[name], name)
    if side.twin == "tf" and one_bias(
        model
    ):  # one bias is the sum of two, and has the gradient of each
        for k in range(L):
            assert_close(grads[f"layer{k}/b_i"], grads[f"layer{k}/b_h"], "the two biases")
            grads[f"layer{k}/b_h"] = np.zeros_like(grads[f"layer{k}/b_h"])
    expected = to_stock(side.twin, grads, model)
    assert expected.keys() == stock_grads.keys()
    for name, value in expected.items():
        assert_close(value, stock_grads[name], name)


AWD = {name: model for name, model in CASES.items() if model.network == "awd-lstm"}


@pytest.mark.parametrize("model", AWD.values(), ids=AWD)
def test_awd_lstm_is_that_of_the_stock_layers(side, dtype, model):
    given, state = random_weights(dtype, model=model), random_state(dtype, model=model)
    (x, y), train = random_tokens(), train_spec(dtype, loss="mean")
    masks = dropout_masks(model, train, 1)
    loss, after, grads, _ = side(
        "watched", "train.gradients", given, state, x, y, masks, model, train
    )
    stock_loss, stock_grads, last = side("stock_awd_lstm", given, masks, state, x, y, model)
    assert_close(loss, np.asarray(stock_loss, dtype), "loss")
    for name, value in after.items():
        assert_close(value, last[name], name)
    for name, value in grads.items():
        assert_close(value, stock_grads[name], name)


def test_a_tied_embedding_has_the_gradients_of_lookup_and_softmax(side, dtype):
    """Against the same model untied, whose softmax has the transposed table for its weights."""
    tied = ModelSpec(V, H, H, L, tied=True)
    given, state = random_weights(dtype, model=tied), random_state(dtype, model=tied)
    (x, y), train = random_tokens(), train_spec(dtype)
    call = ["watched", "train.gradients"]
    loss, _, grads, _ = side(*call, given, state, x, y, {}, tied, train)
    untied, more = ModelSpec(V, H, H, L), {**given, "softmax_w": given["embedding"].T.copy()}
    more["softmax_b"] = more.pop("softmax_b")
    other, _, parts, _ = side(*call, more, state, x, y, {}, untied, train)
    assert_close(loss, other, "loss")
    assert_close(grads["embedding"], parts["embedding"] + parts["softmax_w"].T, "grads/embedding")


def test_tied_weights_of_two_widths_are_refused_with_the_remedy():
    with pytest.raises(HarnessError, match=r"^tied=true: the embedding has 7 units and the last"):
        model_of(ModelSpec(V, E, H, L, tied=True))


@pytest.mark.parametrize("network", ROWS)
def test_a_field_that_a_model_has_not_is_refused_by_name(network):
    model, train = preset("zaremba-small", 100)
    own = {"network": network}
    for name in ModelSpec.__struct_fields__:
        if name not in ROWS[network].fields:
            with pytest.raises(HarnessError, match=rf"^{name}: the model {network} has no such"):
                override(model, train, {**own, name: "0.3"})
            with pytest.raises(HarnessError, match=rf"^{name}=.*: the model {network} has no"):
                model_of(ModelSpec(V, E, H, L, network=network, **{name: 0.31}))
    assert override(model, train, own)[0].network == network


def test_an_unknown_model_is_answered_with_those_that_there_are():
    model, train = preset("zaremba-small", 100)
    with pytest.raises(HarnessError, match=r"^network='gpt': no such model; there are: lstm, rnn"):
        override(model, train, {"network": "gpt"})
