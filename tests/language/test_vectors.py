"""Word vectors: lookup, spelling, files of all formats, and what is wrong with broken ones."""

from __future__ import annotations

import gzip
import pickle
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gensim.models
import numpy as np
import pytest
import torch

import unboxed as ub
from real_data import WORDS, needs_words
from unboxed.errors import DataError, InputError, MissingPackageError
from unboxed.language import WordVectors, load_vectors

NAMES = ["the", "café", "moon", "Bread", "new_york"]
VALUES = torch.arange(15, dtype=torch.float32).reshape(5, 3) / 7 - 1


@pytest.fixture
def vectors() -> WordVectors:
    return WordVectors(NAMES, VALUES, "tiny")


def keyed() -> Any:
    kv = gensim.models.KeyedVectors(3)
    kv.add_vectors(NAMES, VALUES.numpy())
    return kv


def write_glove(path: Path) -> Path:
    lines = [f"{w} {' '.join(f'{v:.8f}' for v in row)}" for w, row in zip(NAMES, VALUES.tolist(), strict=True)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def write_word2vec(path: Path) -> Path:
    keyed().save_word2vec_format(str(path), binary=False)
    return path


def write_binary(path: Path) -> Path:
    keyed().save_word2vec_format(str(path), binary=True)
    return path


def compressed(write: Callable[[Path], Path]) -> Callable[[Path], Path]:
    def write_gz(path: Path) -> Path:
        plain = write(path.with_name("plain"))
        path = path.with_name(f"{path.name}.gz")
        path.write_bytes(gzip.compress(plain.read_bytes()))
        return path

    return write_gz


WRITERS = {
    "glove": write_glove, "word2vec text": write_word2vec, "word2vec binary": write_binary,
    "glove.gz": compressed(write_glove), "binary.gz": compressed(write_binary),
}  # fmt: skip


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_every_format_is_read(write: Callable[[Path], Path], tmp_path: Path) -> None:
    loaded = load_vectors(write(tmp_path / "v.txt"))
    assert loaded.words == tuple(NAMES)
    assert torch.allclose(loaded.vectors, VALUES, atol=1e-6)
    first = load_vectors(write(tmp_path / "v.txt"), max_words=2)
    assert first.words == tuple(NAMES[:2])
    assert torch.equal(first.vectors, loaded.vectors[:2])
    assert len(load_vectors(write(tmp_path / "v.txt"), max_words=99)) == 5


def test_a_model_of_fasttext_is_read(tmp_path: Path) -> None:
    sentences = [["sun", "moon", "star"], ["bread", "salt", "oil"]] * 10
    model = gensim.models.FastText(sentences, vector_size=4, min_count=1, epochs=1, bucket=50, workers=1, seed=1)
    gensim.models.fasttext.save_facebook_model(model, str(tmp_path / "m.bin"))
    loaded = load_vectors(tmp_path / "m.bin")
    assert set(loaded.words) == {w for s in sentences for w in s}
    assert np.allclose(loaded["moon"].numpy(), model.wv["moon"], atol=1e-6)
    (tmp_path / "cut.bin").write_bytes((tmp_path / "m.bin").read_bytes()[:200])
    with pytest.raises(DataError, match="broken or ends early"):
        load_vectors(tmp_path / "cut.bin")


BROKEN_TEXT = {
    "another dimension": ("a 1 2 3\nb 1 2\nc 1 2 3\n", r"line 2 of .* has 2 numbers; its first line has 3 dimensions"),
    "a single number": ("a 1 2 3\nb 5\nc 1 2 3\n", r"line 2 of .* has 1 numbers"),
    "more numbers": ("a 1 2 3\nb 1 2 3 4\n", "line 2 of .* has 4 numbers"),
    "a word with a space": ("a 1 2 3\nnew york 1 2 3\n", "line 2 of .*'new york 1 2 3'"),
    "an empty line": ("a 1 2 3\n\nc 1 2 3\n", "line 2 of .* has 0 numbers"),
    "no number": ("a 1 2 3\nb 1 x 3\nc 1 2 3\n", "line 2 of .*: 'x' of the word 'b' is no finite number"),
    "NaN": ("a 1 2 3\nb 1 2 3\nc 1 nan 3\n", "line 3 of .*: 'nan' of the word 'c'"),
    "out of range": ("a 1 2 3\nb 1 2 1e50\n", "line 2 of .*: '1e50'"),
    "fewer than promised": ("3 2\na 1 2\nb 1 2\n", "ends after line 3: its header promises 3 vectors"),
    "another dimension than the header": ("2 3\na 1 2 3\nb 1 2\n", "line 3 of .* has 2 numbers; its header has 3"),
    "no vectors": ("0 3\n", "no vectors"),
    "an empty file": ("", "begins with an empty line"),
    "prose": ("hello\n", "is not a file of word vectors"),
}


@pytest.mark.parametrize(("text", "message"), BROKEN_TEXT.values(), ids=BROKEN_TEXT)
@pytest.mark.parametrize("suffix", ["txt", "txt.gz"])
def test_a_broken_line_is_named(text: str, message: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"v.{suffix}"
    path.write_bytes(gzip.compress(text.encode()) if suffix.endswith("gz") else text.encode())
    with pytest.raises(DataError, match=message):
        load_vectors(path)


def test_lines_that_are_not_read_may_be_broken(tmp_path: Path) -> None:
    (tmp_path / "v.txt").write_text("a 1 2 3\nb 1 2 3\nbroken\n")
    assert load_vectors(tmp_path / "v.txt", max_words=2).words == ("a", "b")


BROKEN_BYTES = {
    "cut": (b"5 3\nword " + struct.pack("<3f", 1, 2, 3), "promises 5 vectors of 3"),
    "promises too much": (b"9999999999 300\nword " + struct.pack("<300f", *range(300)), "promises 9,999,999,999"),
    "pickle": (pickle.dumps([1, 2]), "pickle"),
    "zip": (b"PK\x03\x04rest", "zip archive"),
    "other bytes": (bytes(range(256)), "not a file of word vectors"),
}


@pytest.mark.parametrize(("content", "message"), BROKEN_BYTES.values(), ids=BROKEN_BYTES)
def test_broken_binary_files_are_refused(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "v.bin").write_bytes(content)
    with pytest.raises(DataError, match=message):
        load_vectors(tmp_path / "v.bin")


def test_files_that_are_not_there_or_no_gzip(tmp_path: Path) -> None:
    write_glove(tmp_path / "glove.txt")
    with pytest.raises(DataError, match=r"did you mean .*glove\.txt"):
        load_vectors(tmp_path / "glov.txt")
    (tmp_path / "v.gz").write_bytes(b"plain text")
    with pytest.raises(DataError, match="cannot be read"):
        load_vectors(tmp_path / "v.gz")
    whole = gzip.compress(b"a 1 2\n" * 20_000)
    (tmp_path / "cut.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"cut\.gz"):
        load_vectors(tmp_path / "cut.gz")


def test_without_gensim_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in sys.modules if n.partition(".")[0] == "gensim"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "gensim", None)
    with pytest.raises(MissingPackageError, match=r'pip install "unboxed\[language\]"'):
        load_vectors(write_glove(tmp_path / "v.txt"))


# -- words -------------------------------------------------------------------------------------------------------------


def test_lookup(vectors: WordVectors) -> None:
    assert torch.equal(vectors["moon"], VALUES[2])
    assert "moon" in vectors
    assert "bread" not in vectors
    assert 3 not in vectors
    assert len(vectors) == 5
    assert repr(vectors) == "WordVectors('tiny', 5 words, 3 dimensions)"


def test_an_unknown_word_is_told_with_those_spelled_like_it(vectors: WordVectors) -> None:
    with pytest.raises(InputError, match="tiny has no word 'mon': did you mean 'moon'"):
        vectors["mon"]
    with pytest.raises(InputError, match="did you mean 'Bread'"):
        vectors["bread"]
    with pytest.raises(InputError, match=r"'moon'.*ignore_case=True"):
        vectors["Moon"]
    with pytest.raises(InputError, match="none of its 5 words is spelled like it"):
        vectors["xyzzy"]
    with pytest.raises(InputError, match="wanted a word; got int"):
        vectors[3]  # type: ignore[index]


def test_case_is_ignored_where_asked() -> None:
    vectors = WordVectors(["amy", "May", "may"], torch.eye(3), ignore_case=True)
    assert torch.equal(vectors["Amy"], torch.eye(3)[0])
    assert torch.equal(vectors["May"], torch.eye(3)[1])
    assert torch.equal(vectors["MAY"], torch.eye(3)[2])
    with pytest.raises(InputError):
        vectors["Bob"]


def test_nearest_words_and_vectors(vectors: WordVectors) -> None:
    assert [w for w, _ in vectors.nearest("moon", 99)] == [
        w for w, _ in vectors.nearest(vectors["moon"], 99) if w != "moon"
    ]
    (word, value), *_ = vectors.nearest(vectors["moon"].numpy(), 1)
    assert (word, value) == ("moon", pytest.approx(1))
    assert "new_york" not in dict(vectors.nearest("moon", 9, exclude=["new_york"]))
    for bad in (torch.zeros(3), torch.ones(2), torch.full((3,), torch.nan)):
        with pytest.raises(InputError):
            vectors.nearest(bad)
    with pytest.raises(InputError, match="k must be"):
        vectors.nearest("moon", 0)


@pytest.mark.parametrize(
    ("words", "values"),
    [(["a"], torch.ones(2, 3)), (["a", "a"], torch.ones(2, 3)), (["a"], torch.ones(3)), ([], torch.ones(0, 3)),
     (["a"], torch.full((1, 2), torch.inf)), (["a"], torch.ones(1, 2, dtype=torch.long))],
)  # fmt: skip
def test_what_are_no_word_vectors(words: list[str], values: torch.Tensor) -> None:
    with pytest.raises(InputError):
        WordVectors(words, values)


def test_the_caller_s_vectors_stay(vectors: WordVectors) -> None:
    before = VALUES.clone()
    vectors.nearest("moon"), vectors.analogy("moon", "the", "café")
    assert torch.equal(VALUES, before)


@needs_words
def test_glove_and_word2vec() -> None:
    glove = load_vectors(WORDS / "glove.6B.50d.top2446.txt")
    assert (len(glove), glove.vectors.shape[1]) == (2446, 50)
    assert glove.analogy("man", "king", "woman")[0][0] == "queen"
    assert glove.analogy("he", "his", "she")[0][0] == "her"
    word2vec = ub.language.load_vectors(WORDS / "weat_w2v.txt")
    assert (len(word2vec), word2vec.vectors.shape[1]) == (347, 300)
