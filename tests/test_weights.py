"""Weights: drawn, kept, and carried over from the layouts of other programs."""

import errno
import math
import os

import numpy as np
import pytest
import xxhash
from safetensors.numpy import save_file

from harness.data import weights
from harness.data.weights import WeightsError
from harness.models.layouts import LAYOUTS
from harness.models.table import parameters
from harness.spec import ModelSpec

V, E, H, L = 29, 7, 11, 2
MODEL = ModelSpec(vocab_size=V, embed_size=E, hidden_size=H, num_layers=L)

# What each program calls its arrays, and their shapes, in canonical order.
FILES = {
    "original": {
        "Model/embedding": (V, E),
        **{
            f"Model/RNN/Layer_{k}/{name}": shape
            for k, width in enumerate((E, H))
            for name, shape in (
                *(("w_i", (width, 4 * H)), ("w_h", (H, 4 * H))),
                *(("b_i", (4 * H,)), ("b_h", (4 * H,))),
            )
        },
        "Model/softmax_w": (H, V),
        "Model/softmax_b": (V,),
    },
    "torch": {
        "encoder.weight": (V, E),
        "rnn.weight_ih_l0": (4 * H, E),
        "rnn.weight_hh_l0": (4 * H, H),
        "rnn.bias_ih_l0": (4 * H,),
        "rnn.bias_hh_l0": (4 * H,),
        "rnn.weight_ih_l1": (4 * H, H),
        "rnn.weight_hh_l1": (4 * H, H),
        "rnn.bias_ih_l1": (4 * H,),
        "rnn.bias_hh_l1": (4 * H,),
        "decoder.weight": (V, H),
        "decoder.bias": (V,),
    },
    "keras": {
        "embedding/embeddings": (V, E),
        "lstm_0/kernel": (E, 4 * H),
        "lstm_0/recurrent_kernel": (H, 4 * H),
        "lstm_0/bias": (4 * H,),
        "lstm_1/kernel": (H, 4 * H),
        "lstm_1/recurrent_kernel": (H, 4 * H),
        "lstm_1/bias": (4 * H,),
        "dense/kernel": (H, V),
        "dense/bias": (V,),
    },
    "tf1": {
        "Model/embedding": (V, E),
        "Model/RNN/multi_rnn_cell/cell_0/basic_lstm_cell/kernel": (E + H, 4 * H),
        "Model/RNN/multi_rnn_cell/cell_0/basic_lstm_cell/bias": (4 * H,),
        "Model/RNN/multi_rnn_cell/cell_1/basic_lstm_cell/kernel": (H + H, 4 * H),
        "Model/RNN/multi_rnn_cell/cell_1/basic_lstm_cell/bias": (4 * H,),
        "Model/softmax_w": (H, V),
        "Model/softmax_b": (V,),
    },
}


def foreign(layout):
    """A file's arrays as another program would have them, no two numbers alike."""
    draw = np.random.default_rng(5)
    return {name: draw.standard_normal(shape) * 0.3 for name, shape in FILES[layout].items()}


def canonical():
    draw = np.random.default_rng(6)
    return {p.name: draw.standard_normal(p.shape) * 0.3 for p in parameters(MODEL)}


def put(path, arrays):
    np.savez(path, **arrays)
    return path


def assert_equal(found, expected):
    assert list(found) == list(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, strict=True)


def test_every_parameter_is_drawn_from_the_whole_range():
    found = weights.draw(ModelSpec(40, 30, 50, 2, init_scale=0.05), seed=3)
    assert [*found] == [
        "embedding",
        *("layer0/w_i", "layer0/w_h", "layer0/b_i", "layer0/b_h"),
        *("layer1/w_i", "layer1/w_h", "layer1/b_i", "layer1/b_h"),
        *("softmax_w", "softmax_b"),
    ]
    for name, array in found.items():
        assert array.dtype == np.float32, name
        assert np.abs(array).max() <= np.float32(0.05), name
        assert array.min() < -0.04, name
        assert array.max() > 0.04, name
        # Five standard errors of the mean of a uniform distribution.
        assert abs(array.mean()) < 5 * 0.05 / math.sqrt(3 * array.size), name
        assert np.count_nonzero(array == 0) == 0, name
    firsts = [array.reshape(-1)[0] for array in found.values()]
    assert len(set(firsts)) == len(firsts)  # no two parameters from one stretch of the stream


def test_the_draw_is_the_same_on_every_machine_and_another_for_every_seed():
    kept = b"".join(array.tobytes() for array in weights.draw(MODEL, seed=1).values())
    assert xxhash.xxh3_64_hexdigest(kept) == "f2236527ab8c1e1c"
    other = weights.draw(MODEL, seed=2)
    assert not any(np.array_equal(a, other[n]) for n, a in weights.draw(MODEL, seed=1).items())


@pytest.mark.parametrize("kind", ["npz", "safetensors"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_what_is_saved_is_loaded_bit_for_bit(tmp_path, kind, dtype):
    arrays = {name: array.astype(dtype) for name, array in canonical().items()}
    shuffled = dict(sorted(arrays.items(), key=lambda item: item[0][::-1]))
    weights.save(shuffled, tmp_path / f"w.{kind}")
    assert_equal(weights.load(tmp_path / f"w.{kind}"), arrays)
    assert_equal(weights.load(tmp_path / f"w.{kind}", MODEL), arrays)
    assert os.listdir(tmp_path) == [f"w.{kind}"]


def test_views_and_foreign_byte_orders_are_saved_as_what_they_show(tmp_path):
    arrays = canonical()
    odd = {name: np.asfortranarray(array.astype(">f8")) for name, array in arrays.items()}
    for kind in ("npz", "safetensors"):
        weights.save(odd, tmp_path / f"w.{kind}")
        assert_equal(weights.load(tmp_path / f"w.{kind}"), arrays)


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    for kind in ("npz", "safetensors"):
        path = tmp_path / f"w.{kind}"
        weights.save(canonical(), path)
        before = path.read_bytes()
        for function in ("np.savez", "save_file", "os.replace"):
            with monkeypatch.context() as patch:
                patch.setattr(f"harness.data.weights.{function}", refuse)
                if (function, kind) in (("np.savez", "safetensors"), ("save_file", "npz")):
                    continue
                with pytest.raises(WeightsError, match=r"w\..*: cannot be written: .*No space"):
                    weights.save(weights.draw(MODEL, 1), path)
            assert path.read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["w.npz", "w.safetensors"]


def test_places_that_cannot_be_written_are_named(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.npz").mkdir()
    for place in ("nothing/w.npz", "file/w.npz", "folder.npz", "n" * 300 + ".safetensors"):
        with pytest.raises(WeightsError, match="cannot be written"):
            weights.save(canonical(), tmp_path / place)
    with pytest.raises(WeightsError, match=r"w\.pt: weights are a \.npz or a \.safetensors"):
        weights.save(canonical(), tmp_path / "w.pt")
    assert sorted(os.listdir(tmp_path)) == ["file", "folder.npz"]


def test_files_of_the_original_load_as_they_are(tmp_path):
    arrays = foreign("original")
    found = weights.load(put(tmp_path / "w.npz", arrays), MODEL)
    expected = {
        "embedding": arrays["Model/embedding"],
        **{
            f"layer{k}/{name}": arrays[f"Model/RNN/Layer_{k}/{name}"]
            for k in (0, 1)
            for name in ("w_i", "w_h", "b_i", "b_h")
        },
        "softmax_w": arrays["Model/softmax_w"],
        "softmax_b": arrays["Model/softmax_b"],
    }
    assert_equal(found, expected)


def test_files_of_torch_load_turned_round_with_both_biases(tmp_path):
    arrays = foreign("torch")
    found = weights.load(put(tmp_path / "w.npz", arrays), MODEL)
    expected = {"embedding": arrays["encoder.weight"]}
    for k in (0, 1):
        expected[f"layer{k}/w_i"] = arrays[f"rnn.weight_ih_l{k}"].T
        expected[f"layer{k}/w_h"] = arrays[f"rnn.weight_hh_l{k}"].T
        expected[f"layer{k}/b_i"] = arrays[f"rnn.bias_ih_l{k}"]
        expected[f"layer{k}/b_h"] = arrays[f"rnn.bias_hh_l{k}"]
    expected |= {"softmax_w": arrays["decoder.weight"].T, "softmax_b": arrays["decoder.bias"]}
    assert_equal(found, expected)


@pytest.mark.parametrize("missing", FILES["original"])
def test_a_missing_array_of_the_original_is_named(tmp_path, missing):
    arrays = foreign("original")
    del arrays[missing]
    path = put(tmp_path / "w.npz", arrays)
    for model in (None, MODEL):
        with pytest.raises(WeightsError) as error:
            weights.load(path, model)
        assert str(error.value) == f"{path}: missing {missing}"


@pytest.mark.parametrize("layout", FILES)
def test_missing_extra_and_misshaped_arrays_are_named(tmp_path, layout):
    arrays = foreign(layout)
    first, *_, middle, _, last = arrays
    swapped = {**arrays, middle: arrays[middle].T[..., None]}
    cases = [
        ({**arrays, "Adam/slot": np.ones(3)}, "extra Adam/slot"),
        (
            {n: a for n, a in arrays.items() if n not in (first, last)},
            f"missing {min(first, last)}, {max(first, last)}",
        ),
        (swapped, f"{middle} has shape {list(swapped[middle].shape)}, expected"),
        ({**arrays, last: np.ones((V, 1))}, f"{last} "),
    ]
    for spoilt, words in cases:
        with pytest.raises(WeightsError) as error:
            weights.load(put(tmp_path / "w.npz", spoilt))
        assert words in str(error.value)
        assert str(tmp_path / "w.npz") in str(error.value)


def test_weights_of_another_model_are_refused_with_both_shapes(tmp_path):
    path = put(tmp_path / "w.npz", foreign("torch"))
    other = ModelSpec(vocab_size=V + 1, embed_size=E, hidden_size=H, num_layers=L)
    with pytest.raises(WeightsError) as error:
        weights.load(path, other)
    for words in (f"encoder.weight has shape [{V}, {E}], expected [{V + 1}, {E}]", "decoder.bias"):
        assert words in str(error.value)
    assert "rnn." not in str(error.value)
    with pytest.raises(WeightsError, match=r"missing rnn\.bias_hh_l2, rnn\.bias_ih_l2"):
        weights.load(path, ModelSpec(V, E, H, 3))


def test_a_square_matrix_that_is_not_transposed_is_caught_by_the_others(tmp_path):
    arrays = foreign("torch")
    arrays["rnn.weight_ih_l0"] = arrays["rnn.weight_ih_l0"].T
    with pytest.raises(WeightsError, match=r"rnn\.weight_ih_l0 has shape \[7, 44\].*\[44, 7\]"):
        weights.load(put(tmp_path / "w.npz", arrays))


def test_what_is_in_no_known_layout_is_refused_with_the_known_ones(tmp_path):
    path = put(tmp_path / "w.npz", {"w": np.ones(3)})
    with pytest.raises(WeightsError, match=r"no known layout.*found w") as error:
        weights.load(path)
    for name in ("canonical", "original", "torch", "keras", "tf1", "encoder.weight"):
        assert name in str(error.value)
    for call in (
        lambda: weights.load(put(path, foreign("torch")), layout="jax"),
        lambda: weights.convert(path, tmp_path / "b.npz", "jax"),
    ):
        with pytest.raises(WeightsError, match="no layout 'jax'; there are: canonical, original"):
            call()


@pytest.mark.parametrize("layers", [1, 12])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_model_is_read_from_a_file_in_any_layout(tmp_path, layout, layers):
    model = ModelSpec(vocab_size=V, embed_size=E, hidden_size=H, num_layers=layers)
    weights.save(weights.draw(model, 1), tmp_path / "w.npz")
    weights.convert(tmp_path / "w.npz", tmp_path / "other.safetensors", layout)
    assert weights.describe_model(tmp_path / "other.safetensors") == model


@pytest.mark.parametrize("layout", FILES)
def test_converting_writes_the_names_and_shapes_of_the_other_program(tmp_path, layout):
    weights.save(canonical(), tmp_path / "w.npz")
    written = weights.convert(tmp_path / "w.npz", tmp_path / "other.npz", layout)
    assert written == FILES[layout]
    with np.load(tmp_path / "other.npz") as file:
        assert {name: array.shape for name, array in file.items()} == FILES[layout]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_converts_there_and_back(tmp_path, layout):
    before = canonical()
    weights.save(before, tmp_path / "a.npz")
    weights.convert(tmp_path / "a.npz", tmp_path / "b.safetensors", layout)
    after = weights.load(tmp_path / "b.safetensors", MODEL)
    assert list(after) == list(before)
    sums = layout in ("keras", "tf1")  # one bias: the sum of the two is what comes back
    for name, array in before.items():
        if not (sums and "/b_" in name):
            np.testing.assert_array_equal(after[name], array, strict=True)
    for k in range(L):
        b_before = before[f"layer{k}/b_i"] + before[f"layer{k}/b_h"]
        b_after = after[f"layer{k}/b_i"] + after[f"layer{k}/b_h"]
        np.testing.assert_allclose(b_after, b_before, rtol=0, atol=4e-16)
        assert sums or np.array_equal(after[f"layer{k}/b_i"], before[f"layer{k}/b_i"])


@pytest.mark.parametrize("layout", FILES)
def test_a_file_of_another_program_comes_back_as_it_was(tmp_path, layout):
    before = foreign(layout)
    save_file(before, tmp_path / "a.safetensors")  # by others: without our checksum
    weights.convert(tmp_path / "a.safetensors", tmp_path / "b.npz", "canonical")
    weights.convert(tmp_path / "b.npz", tmp_path / "c.npz", layout)
    after = weights.read_arrays(tmp_path / "c.npz")
    assert {*after} == {*before}
    for name, array in before.items():
        np.testing.assert_allclose(after[name], array, rtol=0, atol=4e-16)


def test_the_gates_of_tf1_are_i_j_f_o_and_its_forget_bias_moves_into_the_bias(tmp_path):
    cell = "Model/RNN/multi_rnn_cell/cell_0/basic_lstm_cell"
    i, j, f, o = [[10, 11], [20, 21], [30, 31], [40, 41]]  # the two units of each gate
    row = np.array([*i, *j, *f, *o], np.float32)
    arrays = {
        "Model/embedding": np.ones((5, 3), np.float32),
        f"{cell}/kernel": row + 100 * np.arange(5, dtype=np.float32)[:, None],  # 3 + 2 inputs
        f"{cell}/bias": row,
        "Model/softmax_w": np.ones((2, 5), np.float32),
        "Model/softmax_b": np.ones(5, np.float32),
    }
    found = weights.load(put(tmp_path / "w.npz", arrays))
    assert (found["layer0/b_i"] + found["layer0/b_h"]).tolist() == [*i, 31, 32, *j, *o]
    assert found["layer0/w_i"].tolist() == [
        [n + r for n in (*i, *f, *j, *o)] for r in (0, 100, 200)
    ]
    assert found["layer0/w_h"].tolist() == [[n + r for n in (*i, *f, *j, *o)] for r in (300, 400)]
    weights.save(found, tmp_path / "w.npz")
    weights.convert(tmp_path / "w.npz", tmp_path / "tf1.npz", "tf1")
    assert_equal(
        dict(sorted(weights.read_arrays(tmp_path / "tf1.npz").items())),
        dict(sorted(arrays.items())),
    )


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def step_canonical(w, k, x, h, c):
    z = x @ w[f"layer{k}/w_i"] + h @ w[f"layer{k}/w_h"] + w[f"layer{k}/b_i"] + w[f"layer{k}/b_h"]
    i, f, g, o = np.split(z, 4, axis=1)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(c), c


def step_original(w, k, x, h, c):
    layer = f"Model/RNN/Layer_{k}"
    z = x @ w[f"{layer}/w_i"] + w[f"{layer}/b_i"] + h @ w[f"{layer}/w_h"] + w[f"{layer}/b_h"]
    i, f, g, o = np.split(z, 4, axis=1)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(c), c


def step_torch(w, k, x, h, c):
    z = x @ w[f"rnn.weight_ih_l{k}"].T + w[f"rnn.bias_ih_l{k}"]
    z += h @ w[f"rnn.weight_hh_l{k}"].T + w[f"rnn.bias_hh_l{k}"]
    i, f, g, o = np.split(z, 4, axis=1)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(c), c


def step_keras(w, k, x, h, c):
    z = x @ w[f"lstm_{k}/kernel"] + h @ w[f"lstm_{k}/recurrent_kernel"] + w[f"lstm_{k}/bias"]
    i, f, candidate, o = np.split(z, 4, axis=1)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(candidate)
    return sigmoid(o) * np.tanh(c), c


def step_tf1(w, k, x, h, c):
    cell = f"Model/RNN/multi_rnn_cell/cell_{k}/basic_lstm_cell"
    z = np.concatenate([x, h], 1) @ w[f"{cell}/kernel"] + w[f"{cell}/bias"]
    i, j, f, o = np.split(z, 4, axis=1)
    c = c * sigmoid(f + 1.0) + sigmoid(i) * np.tanh(j)
    return np.tanh(c) * sigmoid(o), c


STEPS = {"original": step_original, "torch": step_torch, "keras": step_keras, "tf1": step_tf1}


@pytest.mark.parametrize("there", [True, False], ids=["to the layout", "from the layout"])
@pytest.mark.parametrize("layout", STEPS)
def test_a_cell_computes_the_same_in_every_layout(tmp_path, layout, there):
    if there:
        ours = canonical()
        weights.save(ours, tmp_path / "ours.npz")
        weights.convert(tmp_path / "ours.npz", tmp_path / "theirs.npz", layout)
        theirs = weights.read_arrays(tmp_path / "theirs.npz")
    else:
        theirs = foreign(layout)
        ours = weights.load(put(tmp_path / "theirs.npz", theirs))
    draw = np.random.default_rng(8)
    for k, width in enumerate((E, H)):
        x, h, c = (draw.standard_normal((3, n)) for n in (width, H, H))
        for a, b in zip(
            STEPS[layout](theirs, k, x, h, c), step_canonical(ours, k, x, h, c), strict=True
        ):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)
            assert a.shape == (3, H)
            assert np.abs(a).min() > 1e-5  # no gate is shut, so none is hidden


@pytest.mark.parametrize("layout", STEPS)
def test_embedding_and_softmax_mean_the_same_in_every_layout(tmp_path, layout):
    theirs = foreign(layout)
    ours = weights.load(put(tmp_path / "w.npz", theirs))
    names = list(theirs)
    np.testing.assert_array_equal(ours["embedding"], theirs[names[0]])
    h = np.random.default_rng(9).standard_normal((3, H))
    w = theirs[names[-2]]
    logits = h @ (w.T if layout == "torch" else w) + theirs[names[-1]]
    np.testing.assert_allclose(h @ ours["softmax_w"] + ours["softmax_b"], logits, rtol=1e-12)


@pytest.mark.parametrize(("dtype", "expected"), [("float64", np.float64), ("float32", np.float32)])
def test_weights_are_cast_to_the_dtype_that_is_asked_for(tmp_path, dtype, expected):
    arrays = canonical()
    found = weights.load(put(tmp_path / "w.npz", arrays), dtype=dtype)
    assert_equal(found, {name: array.astype(expected) for name, array in arrays.items()})
    assert all(array.flags.writeable for array in found.values())


def test_a_file_that_is_replaced_while_it_is_read_is_read_as_it_was(tmp_path, monkeypatch):
    path, other = tmp_path / "w.safetensors", tmp_path / "other.safetensors"
    weights.save({"a": np.ones(3), "b": np.ones(4)}, path)
    weights.save({"a": np.zeros(3), "b": np.zeros(4)}, other)
    real = weights._tensor

    def replaced(file, name):
        if other.exists():
            other.replace(path)
        return real(file, name)

    monkeypatch.setattr(weights, "_tensor", replaced)
    found = weights.read_arrays(path)
    assert not other.exists()
    assert all(array.all() for array in found.values())
