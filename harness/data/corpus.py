"""Text to tokens to windows: corpora, vocabularies, batching, and the built-in corpus."""

from __future__ import annotations

import io
import math
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness.data.randomness import STREAM_CORPUS, STREAM_SHUFFLE, permutation, uniform
from harness.errors import HarnessError
from harness.spec import TrainSpec, replace

Tokens = NDArray[np.int32]

EOS = "<eos>"
SPLITS = ("train", "valid", "test")

# The built-in corpus: vocabulary, tokens of each split, and the exponent of its Zipf law.
SYNTHETIC_VOCABULARY = 256
SYNTHETIC_TOKENS = (100_000, 10_000, 10_000)
SYNTHETIC_EXPONENT = 1.5


class Corpus(NamedTuple):
    """Tokens int32 [N] of each split, the vocabulary by token, and what is known of the source.

    `eos` is the token that ends a line (None for characters and for the built-in corpus);
    `entropy` the exact entropy in nats per token where it is known: no model can do better.
    """

    name: str
    train: Tokens
    valid: Tokens
    test: Tokens
    vocabulary: tuple[str, ...]
    eos: int | None = None
    entropy: float | None = None


class Window(NamedTuple):
    """The data of one step: epoch from 1, its place in it, inputs and targets [B, T]."""

    epoch: int
    first: bool
    last: bool
    x: Tokens
    y: Tokens


def load(path: str | Path | None, level: str = "word", seed: int = 1) -> Corpus:
    """Read a corpus, or make the built-in one where `path` is None.

    `path`, also looked for in the folder HARNESS_DATA, is a folder with train.txt, valid.txt and
    test.txt (or *.train.txt and so on, as ptb.train.txt), or a folder with a single .txt file, or
    a text file; one file is split 90:5:5 at line ends. `level` "word" takes what stands between
    white space and ends each line with <eos>; "char" takes characters, the line's end included.
    Tokens are numbered in first-seen order over train, valid, test. Raises HarnessError that names
    the file and what was expected.
    """
    if path is None:
        return synthetic(seed)
    if level not in ("word", "char"):
        raise HarnessError(f"level {level!r}: a corpus is read by word or by char")
    texts = _read(_find_corpus(Path(path)))
    index: dict[str, int] = {}
    train, valid, test = (_number(_tokenize(texts[name], level), index) for name in SPLITS)
    if not len(train):
        raise HarnessError(f"{path}: the training text has no tokens")
    eos = index.get(EOS if level == "word" else "\n")
    return Corpus(str(path), train, valid, test, tuple(index), eos)


def _find_corpus(path: Path) -> Path:
    """`path` itself, or else its namesake in the folder of corpora that HARNESS_DATA names."""
    shelf = os.environ.get("HARNESS_DATA")
    if shelf and not path.exists() and Path(shelf, path).exists():
        return Path(shelf, path)
    return path


def _read(path: Path) -> dict[str, str]:
    """The text of each split found at `path`."""
    try:
        if path.is_file():
            return _split(path)
        if not path.is_dir():
            raise HarnessError(f"{path}: no such file or folder")
        files = {name: _find(path, name) for name in SPLITS}
        if all(files.values()):
            return {name: file.read_text("utf-8") for name, file in files.items() if file}
        alone = sorted(path.glob("*.txt"))
        if len(alone) == 1:
            return _split(alone[0])
        missing = ", ".join(f"{name}.txt" for name, file in files.items() if not file)
        raise HarnessError(
            f"{path}: no {missing} there: a corpus is a folder with train.txt, valid.txt and "
            f"test.txt (or ptb.train.txt ...), or one text file"
        )
    except (OSError, UnicodeDecodeError) as error:
        raise HarnessError(f"{path}: cannot be read as UTF-8 text: {error}") from None


def _find(folder: Path, split: str) -> Path | None:
    """`train.txt` or the one `*.train.txt` of `folder`."""
    plain = folder / f"{split}.txt"
    if plain.is_file():
        return plain
    matches = sorted(folder.glob(f"*.{split}.txt"))
    if len(matches) > 1:
        names = ", ".join(file.name for file in matches)
        raise HarnessError(f"{folder}: more than one {split} text: {names}; keep one")
    return matches[0] if matches else None


def _split(path: Path) -> dict[str, str]:
    lines = io.StringIO(path.read_text("utf-8")).readlines()  # only a line feed ends a line
    a, b = len(lines) * 90 // 100, len(lines) * 95 // 100
    return {"train": "".join(lines[:a]), "valid": "".join(lines[a:b]), "test": "".join(lines[b:])}


def _tokenize(text: str, level: str) -> list[str]:
    if level == "char":
        return list(text)
    tokens: list[str] = []
    # Not splitlines(): only a line feed ends a line here, as when a file is read line by line.
    for line in text.removesuffix("\n").split("\n") if text else []:
        tokens += line.split()
        tokens.append(EOS)
    return tokens


def _number(tokens: list[str], index: dict[str, int]) -> Tokens:
    """The tokens as numbers; new ones are added to `index` in the order they are first seen."""
    return np.fromiter((index.setdefault(t, len(index)) for t in tokens), np.int32, len(tokens))


def synthetic(seed: int = 1) -> Corpus:
    """The built-in corpus: a Markov chain whose entropy is known exactly.

    From token s the next is (p(s) + k) mod V, with p a fixed random permutation and k drawn from
    one Zipf law whatever s is. Given the past, the next token is therefore a relabelled draw of
    that law: the entropy per token is the law's own, -sum_k q_k ln q_k, to the last digit.
    """
    size = SYNTHETIC_VOCABULARY
    law = np.arange(1, size + 1, dtype=np.float64) ** -SYNTHETIC_EXPONENT
    law /= law.sum()
    after = permutation(seed, STREAM_CORPUS, size)
    splits = []
    for block, count in enumerate(SYNTHETIC_TOKENS, start=1):
        draws = np.searchsorted(np.cumsum(law), uniform(seed, STREAM_CORPUS, block, count))
        tokens = np.empty(count, np.int32)
        state = 0
        for i, k in enumerate(np.minimum(draws, size - 1).tolist()):
            state = (int(after[state]) + k) % size
            tokens[i] = state
        splits.append(tokens)
    train, valid, test = splits
    return Corpus(
        f"synthetic-{seed}",
        train,
        valid,
        test,
        vocabulary=tuple(f"w{i}" for i in range(size)),
        entropy=float(-(law * np.log(law)).sum()),
    )


def shuffle_sentences(tokens: Tokens, eos: int, seed: int) -> Tokens:
    """The same sentences (each ends with `eos`) in another order, chosen by `seed`."""
    sentences = np.split(tokens, np.flatnonzero(tokens == eos) + 1)
    return np.concatenate([sentences[i] for i in permutation(seed, STREAM_SHUFFLE, len(sentences))])


class Batches:
    """The training text cut into B parallel rows of windows of T, as the original program does.

    With n = N // B, the first T ((n - 1) // T) + 1 columns are kept and laid out as [B, columns];
    window i takes inputs from column i T and targets one column on, so an epoch has
    (columns - 1) // T steps and every row reads on where its last window ended.
    """

    def __init__(self, tokens: Tokens, train: TrainSpec, eos: int | None = None) -> None:
        """Raises HarnessError if the text is too short, or cannot be shuffled."""
        if train.shuffle:
            if eos is None:
                raise HarnessError("shuffle=true needs a corpus of sentences: this one has none")
            tokens = shuffle_sentences(tokens, eos, train.seed)
        rows, self.bptt = train.batch_size, train.bptt
        self.steps_per_epoch = (len(tokens) // rows - 1) // self.bptt
        if self.steps_per_epoch < 1:
            raise HarnessError(
                f"the training text has {len(tokens)} tokens, and batch_size={rows} with "
                f"bptt={self.bptt} needs {rows * (self.bptt + 1)}: give a longer text or smaller "
                "sizes"
            )
        columns = self.bptt * self.steps_per_epoch + 1
        self.rows = tokens[: rows * columns].reshape(rows, columns)

    def window(self, step: int) -> Window:
        """The data of `step` (from 1; after the last window of an epoch, the next epoch begins)."""
        epoch, i = divmod(step - 1, self.steps_per_epoch)
        start, stop = i * self.bptt, (i + 1) * self.bptt
        return Window(
            epoch + 1,
            i == 0,
            i == self.steps_per_epoch - 1,
            self.rows[:, start:stop],
            self.rows[:, start + 1 : stop + 1],
        )


def evaluation_batches(tokens: Tokens, train: TrainSpec) -> Batches | None:
    """A text to evaluate on, cut as the training text is, never shuffled; None if too short."""
    if len(tokens) < train.batch_size * (train.bptt + 1):
        return None
    return Batches(tokens, replace(train, shuffle=False))


def describe(corpus: Corpus) -> str:
    """A line about a corpus, with the best perplexity that any model can have where it is known."""
    sizes = " + ".join(f"{len(split):,}" for split in (corpus.train, corpus.valid, corpus.test))
    text = f"corpus {corpus.name}: {sizes} tokens, vocabulary {len(corpus.vocabulary):,}"
    if corpus.entropy is not None:
        text += (
            f", exact entropy {corpus.entropy:.6f} nats per token (no model's perplexity is below "
            f"{perplexity(corpus.entropy):.4f})"
        )
    return text


def save_tokens(tokens: Tokens, path: Path) -> None:
    """Write the tokens that both sides read."""
    np.save(path, tokens, allow_pickle=False)


def load_tokens(path: str | Path) -> Tokens:
    """Read what `save_tokens` wrote. Raises HarnessError that names the file."""
    try:
        tokens = np.load(path, allow_pickle=False)
    except (OSError, EOFError, ValueError) as error:
        raise HarnessError(f"{path}: not a file of tokens: {error}") from None
    if not isinstance(tokens, np.ndarray):
        raise HarnessError(f"{path}: not a file of tokens: an archive, expected one array (.npy)")
    if tokens.dtype != np.int32 or tokens.ndim != 1:
        raise HarnessError(f"{path}: tokens are int32 [N], not {tokens.dtype} {tokens.shape}")
    return np.asarray(tokens)


def perplexity(nats: float) -> float:
    """exp of the mean negative log-likelihood per token; infinite where that overflows."""
    return math.inf if nats >= 700 else math.exp(nats)
