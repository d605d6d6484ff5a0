"""Text to tokens to windows, and the built-in corpus whose entropy is known."""

import collections
import math
import os
from pathlib import Path

import numpy as np
import pytest
import xxhash

from harness.data import corpus
from harness.data.corpus import Batches
from harness.errors import HarnessError
from harness.spec import TrainSpec

TRAIN = TrainSpec(batch_size=3, bptt=5)


def folder(path, prefix="", **texts):
    path.mkdir(exist_ok=True)
    for name, text in texts.items():
        (path / f"{prefix}{name}.txt").write_bytes(text.encode())
    return path


def words(found, split):
    return [found.vocabulary[i] for i in getattr(found, split)]


def test_tokens_are_numbered_as_first_seen_over_train_valid_and_test(tmp_path):
    path = folder(tmp_path, train="b a\nb c\n", valid="d a\n", test="\n e  d\tf \n")
    found = corpus.load(path)
    assert found.vocabulary == ("b", "a", "<eos>", "c", "d", "e", "f")
    assert found.train.tolist() == [0, 1, 2, 0, 3, 2]
    assert found.valid.tolist() == [4, 1, 2]
    assert found.test.tolist() == [2, 5, 4, 6, 2]
    assert {found.train.dtype, found.valid.dtype, found.test.dtype} == {np.dtype(np.int32)}
    assert (found.eos, found.entropy, found.name) == (2, None, str(path))


def test_characters_are_tokens_and_the_end_of_a_line_is_one_too(tmp_path):
    found = corpus.load(folder(tmp_path, train="b a\nb", valid="ü\n", test="a"), level="char")
    assert found.vocabulary == ("b", " ", "a", "\n", "ü")
    assert found.train.tolist() == [0, 1, 2, 3, 0]
    assert found.valid.tolist() == [4, 3]
    assert found.test.tolist() == [2]
    assert found.eos == 3
    assert corpus.load(folder(tmp_path, train="ab", valid="a", test="b"), "char").eos is None


@pytest.mark.parametrize("text", ["a b\n", "a b", " a\u00a0b \n", "a\x0cb\n", "a\u2028b\n"])
def test_only_a_line_feed_ends_a_line_and_the_last_may_be_left_out(tmp_path, text):
    found = corpus.load(folder(tmp_path, train=text, valid="\n", test="\n\n"))
    assert words(found, "train") == ["a", "b", "<eos>"]
    assert words(found, "valid") == ["<eos>"]
    assert words(found, "test") == ["<eos>", "<eos>"]


def test_files_may_carry_the_name_of_the_corpus(tmp_path):
    path = folder(tmp_path, prefix="ptb.", train="a\n", valid="b\n", test="c\n")
    (path / "ptb.char.train.md").write_text("not a text of the corpus")
    assert corpus.load(path).vocabulary == ("a", "<eos>", "b", "c")
    folder(tmp_path, train="x\n")  # the plain name goes first
    assert corpus.load(path).vocabulary == ("x", "<eos>", "b", "c")


def test_two_texts_for_one_split_are_refused_by_name(tmp_path):
    path = folder(tmp_path, prefix="ptb.", train="a\n", valid="b\n", test="c\n")
    folder(path, prefix="wiki.", train="a\n")
    with pytest.raises(HarnessError, match=r"more than one train text: ptb\.train\.txt, wiki\.t"):
        corpus.load(path)


@pytest.mark.parametrize("as_folder", [True, False])
def test_a_single_file_is_split_at_the_ends_of_lines(tmp_path, as_folder):
    lines = [f"w{i} x\x0cy\u2028z\x85\n" for i in range(41)]  # what is no end of a line among them
    folder(tmp_path, input="".join(lines))
    found = corpus.load(tmp_path if as_folder else tmp_path / "input.txt")
    for split, first, last in (("train", 0, 36), ("valid", 36, 38), ("test", 38, 41)):
        expected = [t for i in range(first, last) for t in (f"w{i}", "x", "y", "z", "<eos>")]
        assert words(found, split) == expected


@pytest.mark.parametrize("missing", ["train", "valid", "test"])
def test_a_missing_file_is_named(tmp_path, missing):
    texts = dict(train="a\n", valid="b\n", test="c\n")
    del texts[missing]
    with pytest.raises(HarnessError, match=rf"no {missing}\.txt there: a corpus is a folder"):
        corpus.load(folder(tmp_path, **texts))


def test_what_is_no_corpus_is_named(tmp_path):
    with pytest.raises(HarnessError, match=r"gone: no such file or folder"):
        corpus.load(tmp_path / "gone")
    with pytest.raises(HarnessError, match=r"no train\.txt, valid\.txt, test\.txt there"):
        corpus.load(tmp_path)
    with pytest.raises(HarnessError, match=r"the training text has no tokens"):
        corpus.load(folder(tmp_path / "empty", train="", valid="a\n", test="b\n"))
    with pytest.raises(HarnessError, match=r"level 'line': a corpus is read by word or by char"):
        corpus.load(tmp_path, level="line")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(HarnessError, match=r"latin\.txt: cannot be read as UTF-8"):
        corpus.load(tmp_path / "latin.txt")


def restated(tokens, rows, bptt):
    """The windows of an epoch, by plain loops over the words of the docstring."""
    n = len(tokens) // rows
    columns = bptt * ((n - 1) // bptt) + 1
    table = [[int(tokens[row * columns + c]) for c in range(columns)] for row in range(rows)]
    return [
        (
            [[table[row][i * bptt + t] for t in range(bptt)] for row in range(rows)],
            [[table[row][i * bptt + t + 1] for t in range(bptt)] for row in range(rows)],
        )
        for i in range((columns - 1) // bptt)
    ]


@pytest.mark.parametrize("count", [18, 19, 32, 33, 34, 47, 48, 50, 100])
def test_windows_are_those_of_the_description(count):
    tokens = np.random.default_rng(count).integers(0, 1000, count).astype(np.int32)
    expected = restated(tokens, 3, 5)
    batches = Batches(tokens, TRAIN)
    assert batches.steps_per_epoch == len(expected)
    for step in range(1, 3 * len(expected) + 1):
        window = batches.window(step)
        assert (window.x.tolist(), window.y.tolist()) == expected[(step - 1) % len(expected)]
        assert window.epoch == 1 + (step - 1) // len(expected)
        assert window.first == ((step - 1) % len(expected) == 0)
        assert (window.x.shape, window.x.dtype) == ((3, 5), np.int32)


def test_windows_of_a_small_text_are_these():
    batches = Batches(np.arange(38, dtype=np.int32), TRAIN)  # 12 to a row, of which 11 are kept
    one, two, again = (batches.window(step) for step in (1, 2, 3))
    assert one.x.tolist() == [[0, 1, 2, 3, 4], [11, 12, 13, 14, 15], [22, 23, 24, 25, 26]]
    assert one.y.tolist() == [[1, 2, 3, 4, 5], [12, 13, 14, 15, 16], [23, 24, 25, 26, 27]]
    assert two.x.tolist() == [[5, 6, 7, 8, 9], [16, 17, 18, 19, 20], [27, 28, 29, 30, 31]]
    assert two.y.tolist() == [[6, 7, 8, 9, 10], [17, 18, 19, 20, 21], [28, 29, 30, 31, 32]]
    assert [(w.epoch, w.first) for w in (one, two, again)] == [(1, True), (1, False), (2, True)]
    assert again.x.tolist() == one.x.tolist()


@pytest.mark.parametrize("count", [0, 2, 17])
def test_a_text_too_short_for_one_window_is_refused_with_what_it_takes(count):
    with pytest.raises(
        HarnessError, match=rf"has {count} tokens, and batch_size=3 with bptt=5"
    ) as e:
        Batches(np.zeros(count, np.int32), TRAIN)
    assert "needs 18" in str(e.value)
    assert Batches(np.zeros(18, np.int32), TRAIN).steps_per_epoch == 1


SENTENCES = [[1, 2, 0], [3, 0], [0], [4, 5, 6, 0], [3, 0], *([7, i, 0] for i in range(10, 40))]
TEXT = np.array([token for sentence in SENTENCES for token in sentence], np.int32)


def split(tokens):
    found, sentence = [], ()
    for token in tokens.tolist():
        sentence += (token,)
        if token == 0:
            found.append(sentence)
            sentence = ()
    assert sentence == ()
    return found


def test_shuffling_keeps_every_sentence_and_changes_their_order():
    orders = set()
    for seed in (1, 2, 3):
        shuffled = corpus.shuffle_sentences(TEXT, 0, seed)
        assert collections.Counter(split(shuffled)) == collections.Counter(map(tuple, SENTENCES))
        orders.add(tuple(split(shuffled)))
    assert len(orders - {tuple(map(tuple, SENTENCES))}) == 3


def test_batches_are_shuffled_by_the_seed_of_the_training():
    plain = TrainSpec(batch_size=3, bptt=5, seed=2)
    shuffle = TrainSpec(batch_size=3, bptt=5, seed=2, shuffle=True)
    expected = restated(corpus.shuffle_sentences(TEXT, 0, 2), 3, 5)
    assert Batches(TEXT, shuffle, eos=0).window(2).x.tolist() == expected[1][0]
    assert Batches(TEXT, plain, eos=0).window(2).x.tolist() == restated(TEXT, 3, 5)[1][0]
    assert expected[1] != restated(TEXT, 3, 5)[1]
    with pytest.raises(HarnessError, match="needs a corpus of sentences"):
        Batches(TEXT, shuffle)


SIZE = 256
WEIGHTS = [k**-1.5 for k in range(1, SIZE + 1)]
LAW = [weight / math.fsum(WEIGHTS) for weight in WEIGHTS]
ENTROPY = -math.fsum(q * math.log(q) for q in LAW)


@pytest.fixture(scope="module")
def built_in():
    return corpus.load(None, seed=1)


def test_the_built_in_corpus_is_the_same_bytes_on_every_machine(built_in):
    kept = b"".join(
        t.astype("<i4").tobytes() for t in (built_in.train, built_in.valid, built_in.test)
    )
    assert xxhash.xxh3_64_hexdigest(kept) == "8a5a15cc6733a775"
    assert not np.array_equal(corpus.synthetic(seed=2).train, built_in.train)
    assert built_in.name == "synthetic-1"
    assert built_in.eos is None


def test_the_built_in_corpus_has_three_different_texts_over_its_vocabulary(built_in):
    texts = (built_in.train, built_in.valid, built_in.test)
    assert [len(text) for text in texts] == [100_000, 10_000, 10_000]
    assert {text.dtype for text in texts} == {np.dtype(np.int32)}
    assert len(set(built_in.vocabulary)) == SIZE
    assert set(built_in.train.tolist()) == set(range(SIZE))
    assert not np.array_equal(built_in.train[:100], built_in.valid[:100])
    assert not np.array_equal(built_in.test[:100], built_in.valid[:100])


def test_the_entropy_of_the_built_in_corpus_is_that_of_its_law(built_in):
    assert built_in.entropy == pytest.approx(ENTROPY, rel=1e-13)


def ranks(tokens, after):
    """How far each token lies from the most likely successor of the one before it."""
    return (tokens[1:] - after[tokens[:-1]]) % SIZE


def test_the_texts_follow_the_law_that_the_entropy_is_computed_from(built_in):
    pairs = np.zeros((SIZE, SIZE), int)
    np.add.at(pairs, (built_in.train[:-1], built_in.train[1:]), 1)
    after = pairs.argmax(axis=1)  # learnt from the text itself
    assert sorted(after) == list(range(SIZE))
    nats = -np.log(LAW)
    for tokens, tolerance in (
        (built_in.train, 0.02),
        (built_in.valid, 0.03),
        (built_in.test, 0.03),
    ):
        drawn = ranks(tokens, after)
        assert nats[drawn].mean() == pytest.approx(ENTROPY, rel=tolerance)
        for rank in range(10):  # five standard errors
            error = 5 * math.sqrt(LAW[rank] / len(drawn))
            assert np.mean(drawn == rank) == pytest.approx(LAW[rank], abs=error)
    drawn = ranks(built_in.train, after)
    for half in (
        built_in.train[:-1] < SIZE // 2,
        np.r_[0, drawn[:-1]] == 0,
    ):  # whatever came before
        for part in (drawn[half], drawn[~half]):
            assert nats[part].mean() == pytest.approx(ENTROPY, rel=0.02)


def test_the_perplexity_of_a_uniform_guess_is_the_vocabulary():
    assert corpus.perplexity(math.log(10_000)) == pytest.approx(10_000)


def test_tokens_come_back_from_their_file(tmp_path):
    corpus.save_tokens(TEXT, tmp_path / "tokens.npy")
    np.testing.assert_array_equal(corpus.load_tokens(tmp_path / "tokens.npy"), TEXT, strict=True)


def test_what_is_no_file_of_tokens_is_refused_by_name(tmp_path):
    path = tmp_path / "tokens.npy"
    for array in (TEXT.astype(np.int64), TEXT.reshape(2, -1), TEXT.astype(np.float32)):
        np.save(path, array)
        with pytest.raises(HarnessError, match=r"tokens\.npy: tokens are int32 \[N\], not"):
            corpus.load_tokens(path)
    np.save(path, TEXT)
    for data in (b"", b"\x80\x04N.", path.read_bytes()[:-1], path.read_bytes()[:30]):
        path.write_bytes(data)
        with pytest.raises(HarnessError, match=r"tokens\.npy: not a file of tokens"):
            corpus.load_tokens(path)
    with open(path, "wb") as file:
        np.savez(file, tokens=TEXT)
    with pytest.raises(HarnessError, match=r"tokens\.npy: not a file of tokens: an archive"):
        corpus.load_tokens(path)
    with pytest.raises(HarnessError, match=r"gone\.npy: not a file of tokens"):
        corpus.load_tokens(tmp_path / "gone.npy")


@pytest.mark.skipif("HARNESS_DATA" not in os.environ, reason="HARNESS_DATA names no folder of data")
def test_penn_treebank_has_the_published_counts():
    found = corpus.load(Path(os.environ["HARNESS_DATA"]) / "ptb")
    assert [len(t) for t in (found.train, found.valid, found.test)] == [929_589, 73_760, 82_430]
    assert len(found.vocabulary) == 10_000
    assert words(found, "train")[:4] == ["aer", "banknote", "berlitz", "calloway"]
    assert found.vocabulary[found.eos] == "<eos>"
    small = TrainSpec(batch_size=20, bptt=20)
    assert Batches(found.train, small).steps_per_epoch == 2323  # (46479 - 1) // 20


def test_a_corpus_is_also_looked_for_in_the_folder_of_corpora(tmp_path, monkeypatch):
    (tmp_path / "shelf" / "mine").mkdir(parents=True)
    (tmp_path / "shelf" / "mine" / "text.txt").write_text("a b\n" * 40)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HARNESS_DATA", raising=False)
    with pytest.raises(HarnessError, match="mine: no such file or folder"):
        corpus.load("mine")
    monkeypatch.setenv("HARNESS_DATA", str(tmp_path / "shelf"))
    assert corpus.load("mine").vocabulary == ("a", "b", "<eos>")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "text.txt").write_text("c\n" * 40)
    assert corpus.load("mine").vocabulary == ("c", "<eos>")  # what is here comes first
