"""Specs: the published models, validation, and settings from the command line."""

import math

import pytest

from harness.errors import HarnessError
from harness.models.table import PRESETS, parameters
from harness.spec import (
    ModelSpec,
    RunSpec,
    TrainSpec,
    build,
    check_label,
    load_run,
    override,
    preset,
    replace,
    save_run,
)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("zaremba-small", 4_653_200),
        ("zaremba-medium", 19_780_400),
        ("zaremba-large", 66_034_000),
        ("awd-lstm", 24_221_600),
    ],
)
def test_the_published_models_have_the_published_number_of_parameters(name, count):
    model, _ = preset(name, 10_000)
    assert sum(math.prod(p.shape) for p in parameters(model)) == count


def test_the_published_training_is_that_of_the_paper():
    names = [f"zaremba-{size}" for size in ("small", "medium", "large")]
    small, medium, large = (preset(name, 100) for name in names)
    assert (small[1].batch_size, small[1].bptt, small[1].lr, small[1].clip_limit) == (20, 20, 1, 5)
    assert (medium[1].bptt, medium[0].dropout, medium[1].flat_epochs) == (35, 0.5, 6)
    assert (large[0].hidden_size, large[0].dropout, large[1].clip_limit) == (1500, 0.65, 10)
    assert [m.init_scale for m, _ in (small, medium, large)] == [0.1, 0.05, 0.04]


def test_every_named_model_can_be_built_and_has_what_its_network_has():
    for name in PRESETS:
        model, _ = preset(name, 100)
        assert parameters(model), name


def test_awd_lstm_drops_and_penalises_as_published():
    model, train = preset("awd-lstm", 10_000)
    assert (model.weight_dropout, model.dropout, model.embedding_dropout) == (0.5, 0.4, 0.1)
    assert (model.activation_penalty, model.temporal_penalty, model.tied) == (2, 1, True)
    assert (train.lr, train.clip_limit, train.loss, train.bptt) == (30, 0.25, "mean", 70)
    inits = {p.name: p.init for p in parameters(model)}
    assert inits["softmax_b"] == 0
    assert inits["layer1/w_h"] == pytest.approx(1150**-0.5)
    assert inits["layer2/w_h"] == pytest.approx(400**-0.5)
    assert inits["embedding"] is None
    assert model.init_scale == 0.1


def test_an_unknown_model_is_answered_with_those_that_exist():
    with pytest.raises(HarnessError, match="zaremba-small, zaremba-medium, zaremba-large"):
        preset("zaremba", 100)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("lr", "-1"),
        ("lr", "fast"),
        ("batch_size", "0"),
        ("bptt", "2.5"),
        ("clip", "norm"),
        ("dtype", "float16"),
        ("seed", "-1"),
        ("dropout", "1"),
        ("dropout", "-0.1"),
        ("lr", "nan"),
        ("lr", "inf"),
        ("clip_limit", "0"),
    ],
)
def test_a_setting_out_of_range_is_named_with_its_value(field, value):
    model, train = preset("zaremba-small", 100)
    with pytest.raises(HarnessError) as caught:
        override(model, train, {field: value})
    assert field in str(caught.value)
    assert value in str(caught.value)


def test_an_unknown_setting_is_answered_with_those_that_exist():
    model, train = preset("zaremba-small", 100)
    with pytest.raises(HarnessError, match=r"no setting named 'learning_rate'.*lr"):
        override(model, train, {"learning_rate": "1"})


def test_settings_reach_the_model_and_the_training():
    model, train = override(*preset("zaremba-small", 100), {"dropout": "0.25", "lr": "0.5"})
    assert (model.dropout, train.lr) == (0.25, 0.5)
    assert override(model, train, {"shuffle": "true"})[1].shuffle is True


def test_a_spec_cannot_be_changed_and_a_copy_is_validated_again():
    train = TrainSpec()
    with pytest.raises(AttributeError):
        train.lr = 2.0
    with pytest.raises(HarnessError, match="lr=0"):
        replace(train, lr=0)


def test_an_unknown_field_is_refused():
    with pytest.raises(HarnessError, match="hidden"):
        build(ModelSpec, vocab_size=3, embed_size=3, hidden_size=3, num_layers=1, hidden=4)


@pytest.mark.parametrize("label", ["", "../up", "a/b", "-x", "a b", "\x1b[31m", "."])
def test_a_label_that_could_name_another_folder_is_refused(label):
    with pytest.raises(HarnessError):
        check_label(label)


def a_run():
    model, train = preset("zaremba-small", 100)
    files = dict(weights="w.npz", tokens="t.npy", valid="v.npy", trace="a.trace", final="a.npz")
    return RunSpec(label="a", model=model, train=train, steps=3, **files)


def test_a_run_is_read_back_as_it_was_saved(tmp_path):
    save_run(a_run(), tmp_path / "run.json")
    assert load_run(tmp_path / "run.json") == a_run()


@pytest.mark.parametrize("content", [b"", b"{}", b"[" * 10**6, b'{"label": 1}', b"\xff"])
def test_a_damaged_run_file_is_named(tmp_path, content):
    path = tmp_path / "run.json"
    path.write_bytes(content)
    with pytest.raises(HarnessError, match=r"run\.json"):
        load_run(path)


def test_a_missing_run_file_is_named(tmp_path):
    with pytest.raises(HarnessError, match=r"none\.json"):
        load_run(tmp_path / "none.json")
