"""Probes of sentences: SentEval's files, any encoder, the baselines, and whether the model uses what is read."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import unboxed as ub
from real_data import SENTENCES, needs_sentences
from unboxed.cli import app
from unboxed.engine.linear.erasure import FeatureCovariance
from unboxed.engine.linear.probing import probe_features
from unboxed.errors import DataError, InputError, LayerError, NaNError
from unboxed.language._bag_of_words import BagOfWords
from unboxed.language._sentence_features import PooledTokensView, TokenReader
from unboxed.language.probing_tasks import ProbingTask
from unboxed.language.sentence_probing import probe_sentences

N, D = 240, 12
QUICK: dict[str, Any] = {"n_controls": 1, "n_random": 0}
INDEX_FIGURES = {  # of the data's index: accuracy of a bag of words, share of the most frequent class of the test
    "past_present": (0.910, 0.735),
    "sentence_length": (0.642, 0.329),
    "subj_number": (0.734, 0.587),
    "tree_depth": (0.475, 0.330),
    "bigram_shift": (0.511, 0.506),
}


def planted_sentences(seed: int = 0) -> tuple[list[str], Tensor, Tensor]:
    """Sentences with one of two words for a, one for b, among words that say nothing."""
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.randint(2, (N,), generator=generator) for _ in range(2))
    fillers = torch.randint(6, (N, 3), generator=generator)
    rows = [
        " ".join([("a", "a'")[i], *(f"f{k}" for k in row), ("b", "b'")[j]])
        for i, j, row in zip(a.tolist(), b.tolist(), fillers.tolist(), strict=True)
    ]
    return rows, a, b


def as_task(sentences: list[str], y: Tensor, name: str = "planted") -> ub.language.ProbingTask:
    flags = ["tr"] * (N // 2) + ["va"] * (N // 4) + ["te"] * (N // 4)
    return ub.language.ProbingTask(name, sentences, [f"c{int(k)}" for k in y], flags)


WORDS = ["[PAD]", "a", "a'", "b", "b'", *(f"f{k}" for k in range(6))]


class Mean(nn.Module):
    """Word vectors, moved by a linear layer; the head reads a from their mean, orthogonally to b."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.embedding, self.mix, self.head = nn.Embedding(len(WORDS), D), nn.Linear(D, D), nn.Linear(D, 2)
        basis = torch.linalg.qr(torch.randn(D, D, generator=generator)).Q
        table = 0.3 * torch.randn(len(WORDS), D, generator=generator)
        table[1:5] = torch.stack([3 * basis[0], -3 * basis[0], 3 * basis[1], -3 * basis[1]])
        with torch.no_grad():
            self.embedding.weight.copy_(table)
            self.mix.weight.copy_(torch.eye(D))
            self.mix.bias.zero_()
            self.head.weight.copy_(torch.stack([basis[0], -basis[0]]))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        h, mask = self.mix(self.embedding(input_ids)), attention_mask[..., None].to(self.head.weight.dtype)
        return self.head((h * mask).sum(1) / mask.sum(1))  # type: ignore[no-any-return]


def planted_box() -> ub.Box:
    return ub.Box(Mean(), ub.Tokens(lambda text: [WORDS.index(w) for w in text.split()], pad_id=0), outputs="logits")


# -- files -------------------------------------------------------------------------------------------------------------

LINES = "tr\tO\tone two\ntr\tI\ttwo one\n\nva\tO\tsome words\nte\tI\twords some\n"


def test_a_file_is_read_also_compressed(tmp_path: Path) -> None:
    plain, packed = tmp_path / "shift.txt", tmp_path / "shift.txt.gz"
    plain.write_text(LINES)
    packed.write_bytes(gzip.compress(LINES.encode()))
    for path in (plain, packed):
        task = ub.language.load_probing_task(path)
        assert (task.name, task.flags, task.classes) == ("shift", ("tr", "tr", "va", "te"), ("I", "O"))
        assert task.y.tolist() == [1, 0, 1, 0]
        assert task.sentences[1] == "two one"


def test_numbers_as_labels_are_in_order(tmp_path: Path) -> None:
    path = tmp_path / "depth.txt"
    path.write_text("tr\t10\tx\ntr\t9\ty\nva\t9\tz\nte\t10\tw\n")
    assert ub.language.load_probing_task(path).classes == ("9", "10")


BROKEN: dict[str, tuple[bytes, str]] = {
    "fields": (b"tr\tO\tone\ntr O two\n", "line 2 of .* has 1 fields: 'tr O two'"),
    "tab in a sentence": (b"tr\tO\tone\ttwo\n", "line 1 of .* has 4 fields"),
    "flag": (b"tr\tO\tone\ntrain\tO\ttwo\n", "line 2 of .* has the flag 'train'"),
    "sentence": (b"tr\tO\tone\n\ntr\tI\t \n", "line 3 of .* has an empty sentence"),
    "label": (b"tr\t\tone\n", "line 1 of .* has an empty label"),
    "bytes": (b"tr\tO\tone\ntr\tI\t\xff\xfe\n", "line 2 of .* is not UTF-8"),
    "nothing": (b"\n\n", "is empty"),
    "no test": (b"tr\tO\tone\ntr\tI\ttwo\nva\tI\tthree\n", "no sentence has the flag 'te'"),
    "one class": (b"tr\tO\tone\nva\tI\ttwo\nte\tI\tthree\n", "all training sentences have the label 'O'"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_file_is_refused_with_its_line(tmp_path: Path, kind: str) -> None:
    content, words = BROKEN[kind]
    path = tmp_path / "task.txt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=words):
        ub.language.load_probing_task(path)


def test_files_that_are_no_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no file"):
        ub.language.load_probing_task(tmp_path / "none.txt")
    cut = tmp_path / "cut.txt.gz"
    cut.write_bytes(gzip.compress(LINES.encode() * 500)[:-20])
    with pytest.raises(DataError, match="is broken after line"):
        ub.language.load_probing_task(cut)


def test_a_task_of_values_is_checked() -> None:
    with pytest.raises(InputError, match="2 sentences, 1 labels and 2 flags"):
        ub.language.ProbingTask("t", ["x", "y"], ["a"], ["tr", "te"])
    with pytest.raises(InputError, match="flags must be 'tr', 'va' or 'te'; got 'test'"):
        ub.language.ProbingTask("t", ["x", "y"], ["a", "b"], ["tr", "test"])
    with pytest.raises(InputError, match="sentence 1 is empty"):
        ub.language.ProbingTask("t", ["x", " "], ["a", "b"], ["tr", "te"])


# -- baselines ---------------------------------------------------------------------------------------------------------


@needs_sentences
@pytest.mark.parametrize("name", INDEX_FIGURES)
def test_a_bag_of_words_has_the_published_figures(name: str) -> None:
    task = ub.language.load_probing_task(SENTENCES / f"{name}.txt.gz")
    accuracy, majority = INDEX_FIGURES[name]
    counts = task.y[task.rows("te")].bincount()
    assert BagOfWords.fit(task).accuracy.mean == pytest.approx(accuracy, abs=0.01)
    assert float(counts.max() / counts.sum()) == pytest.approx(majority, abs=6e-4)


def test_word_order_is_beyond_a_bag_of_words_and_not_beyond_an_encoder() -> None:
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(2, (N,), generator=generator)
    sentences = [f"x{i % 7} " + ("one two" if k else "two one") for i, k in enumerate(y.tolist())]
    found = ub.language.probe_sentences(lambda texts: torch.tensor([[float("one two" in t), 1.0] for t in texts]),
                                        as_task(sentences, y), n_controls=2)  # fmt: skip
    read = found.best.probe
    assert read.accuracy.mean == 1.0
    assert abs(found.bag_of_words.accuracy.mean - 0.5) < 0.2
    assert found.gains[0].low > 0
    assert read.selectivity.mean > 0.2  # a random class of the first word is not in the vectors
    assert found.verdict == "not tested"  # a function has nothing to erase
    assert "above the bag of words" in found.comparison


def test_a_vector_that_says_nothing_is_not_decodable() -> None:
    sentences, a, _ = planted_sentences()
    found = ub.language.probe_sentences(lambda texts: torch.ones(len(texts), 3), as_task(sentences, a), n_controls=1)
    assert found.verdict == "not decodable"
    assert "below the bag of words" in found.comparison


def test_constant_features_carry_no_information() -> None:
    y = torch.arange(40) % 2
    assert not probe_features(torch.ones(40, 3), y, flags=["tr"] * 20 + ["va"] * 10 + ["te"] * 10).is_decodable


def test_the_mean_of_word_vectors_names_what_it_misses() -> None:
    sentences, a, _ = planted_sentences()
    vectors = ub.language.WordVectors(["a", "a'", "f1"], torch.eye(3), "three")
    found = ub.language.probe_sentences(vectors, as_task(sentences, a), n_controls=1)
    assert found.best.layer == "mean of word vectors"
    assert found.best.probe.accuracy.mean == 1.0
    assert "of the words have no vector, and 0 sentences none that has" in found.note
    assert found.note in found.comparison
    with pytest.raises(InputError, match="has none of the words of these sentences"):
        ub.language.probe_sentences(ub.language.WordVectors(["z"], torch.eye(1)), as_task(sentences, a))


# -- models ------------------------------------------------------------------------------------------------------------


def test_what_the_model_answers_by_is_used_and_what_it_only_carries_is_not() -> None:
    box, (sentences, a, b) = planted_box(), planted_sentences()
    used, unused = (ub.language.probe_sentences(box, as_task(sentences, y), "mix", n_controls=1) for y in (a, b))
    assert min(f.best.probe.accuracy.mean for f in (used, unused)) == 1.0
    assert (used.verdict, unused.verdict) == ("used", "not used")
    assert used.layers[0].erasure is not None


def test_the_default_layers_are_those_that_give_vectors() -> None:
    sentences, a, _ = planted_sentences()
    found = ub.language.probe_sentences(planted_box(), as_task(sentences, a), **QUICK)
    assert [p.layer for p in found.layers] == ["mix:input", "head:input"]  # of each token, and of each sentence
    assert [p.probe.n_features for p in found.layers] == [D, D]


@pytest.mark.parametrize("pooling", ["mean", "first", "last"])
def test_vectors_are_those_of_the_tokens_without_padding(pooling: Any) -> None:
    box, (sentences, *_) = planted_box(), planted_sentences()
    uneven = [" ".join(s.split()[: 1 + i % 5]) for i, s in enumerate(sentences[:9])]
    reader = TokenReader(box, pooling)
    read = reader.read(uneven, ["embedding"], 4).by_layer["embedding"]
    pool: dict[str, Callable[[Tensor], Tensor]] = {
        "mean": lambda h: h.mean(0),
        "first": lambda h: h[0],
        "last": lambda h: h[-1],
    }
    for sentence, vector in zip(uneven, read, strict=True):
        h = box.model.embedding.weight[[WORDS.index(w) for w in sentence.split()]]  # type: ignore[index,union-attr]
        assert torch.allclose(vector, pool[pooling](h), atol=1e-6)


def test_layers_of_a_transformer_are_pooled_as_by_hand() -> None:
    transformers = pytest.importorskip("transformers")
    from unboxed.training.text_classifier import small_bert, word_tokenizer

    sentences = planted_sentences()[0]
    tokenizer = word_tokenizer(sorted({w for s in sentences for w in s.replace("'", " ' ").split()}))
    model = small_bert(len(tokenizer), ("x", "y"))
    box = ub.Box(model, ub.Tokens(tokenizer))
    reader = TokenReader(box, "mean")
    layers = reader.default_layers(sentences[0])
    assert layers == ["bert.encoder.layer.0:input", "bert.encoder.layer.0", "bert.encoder.layer.1"]
    read = reader.read(sentences[:5], layers, "auto").by_layer
    assert isinstance(model, transformers.PreTrainedModel)
    with torch.no_grad():
        for i, sentence in enumerate(sentences[:5]):
            states = model(**tokenizer(sentence, return_tensors="pt"), output_hidden_states=True).hidden_states
            for layer, h in zip(layers, states, strict=True):
                assert torch.allclose(read[layer][i], h[0].mean(0), atol=1e-5)


def test_erasing_a_mean_edits_every_token_and_a_first_one_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(60, 5, 4, generator=generator, dtype=torch.float64)
    z = torch.nn.functional.one_hot(torch.arange(60) % 2).double()
    mean_eraser = FeatureCovariance.fit(h.mean(1)).eraser(z)
    edited = PooledTokensView("a", None).edit(h, mean_eraser)
    assert torch.allclose(edited.mean(1), mean_eraser(h.mean(1)))
    positions = torch.arange(60) % 5
    eraser = FeatureCovariance.fit(h[:, 0]).eraser(z)
    view = PooledTokensView("a", positions).of_rows(torch.arange(10, 60))
    edited = view.edit(h[10:], eraser)
    rows = torch.arange(50)
    assert torch.allclose(edited[rows, positions[10:]], eraser(h[10:])[rows, positions[10:]])
    same = (edited == h[10:]).all(2)
    assert int((~same).sum()) == 50  # of each text one token


def test_batches_change_nothing() -> None:
    box, (sentences, a, _) = planted_box(), planted_sentences()
    task, settings = as_task(sentences, a), {"n_controls": 1, "n_random": 5}
    one, two = (ub.language.probe_sentences(box, task, "mix", batch_size=n, **settings) for n in ("auto", 7))
    assert one.layers[0].probe.accuracy == two.layers[0].probe.accuracy
    changes = [f.layers[0].erasure.change for f in (one, two) if f.layers[0].erasure is not None]
    assert torch.allclose(*changes, atol=1e-6)


def test_pictures_and_text() -> None:
    box, (sentences, a, _) = planted_box(), planted_sentences()
    by_layer = ub.language.probe_sentences(box, as_task(sentences, a), n_controls=1, n_random=5)
    assert set(ub.plots.figures(by_layer)) == {"accuracy", "erased"}
    assert "planted by Mean (bag of words 100.0%" in str(by_layer)
    alone = ub.language.probe_sentences(lambda texts: torch.randn(len(texts), 2), as_task(sentences, a), n_controls=1)
    assert set(ub.plots.figures(alone)) == {"accuracy"}


# -- bad input ---------------------------------------------------------------------------------------------------------


def test_bad_input_is_refused() -> None:
    sentences, a, _ = planted_sentences()
    task = as_task(sentences, a)
    probe: Any = ub.language.probe_sentences
    with pytest.raises(
        InputError,
        match=r"task must be \(texts, labels\), texts with labels as .*, or a ProbingTask",
    ):
        probe(planted_box(), sentences)
    with pytest.raises(InputError, match="encoder must be a model of texts"):
        probe("bert", task)
    with pytest.raises(InputError, match="wanted a model of texts"):
        probe(ub.Box(*ub.zoo.load("digits-cnn")), task)
    with pytest.raises(InputError, match="this encoder has none"):
        probe(lambda texts: torch.ones(len(texts), 2), task, "mix")
    with pytest.raises(InputError, match=r"wanted the vectors \(120, D\) of 120 texts"):
        probe(lambda texts: torch.ones(len(texts)), task)
    with pytest.raises(InputError, match="pooling"):
        probe(planted_box(), task, pooling="max")
    with pytest.raises(LayerError):
        probe(planted_box(), task, "mixx")


def test_the_command(tmp_path: Path) -> None:
    sentences, a, _ = planted_sentences()
    task, path = as_task(sentences, a), tmp_path / "planted.txt"
    path.write_text(
        "".join(f"{f}\t{k}\t{s}\n" for f, k, s in zip(task.flags, task.labels, task.sentences, strict=True))
    )
    vectors = tmp_path / "vectors.txt"
    vectors.write_text("a 1 0\na' 0 1\nf1 .5 .5\n")
    out = tmp_path / "out"
    pytest.importorskip("gensim")
    done = CliRunner().invoke(app, ["probe", "--text", str(path), "--vectors", str(vectors), "-o", str(out)])
    assert done.exit_code == 0, done.output
    assert {p.name for p in out.iterdir()} == {"accuracy.png", "probe.json"}
    assert "no different from the bag of words" in done.output
    for words, said in (
        (["--text", str(path)], "--text wants --model"),
        (["--text", str(path), "--data", "digits", "--model", "zoo:digits-cnn"], "--text takes no --data"),
        (["--data", "digits"], "wanted --model and --data"),
        (["--text", str(path), "--model", "zoo:digits-cnn"], "wanted a model of texts"),
        (["--text", str(tmp_path / "no.txt"), "--model", "zoo:digits-cnn"], "there is no file"),
    ):
        refused = CliRunner().invoke(app, ["probe", *words, "-o", str(out)])
        assert refused.exit_code == 2, refused.output
        assert said in refused.output


def vector_of(text: str) -> Tensor:
    return torch.tensor([float(len(text)), float(text[-1] == "d")])


def tense_task() -> ProbingTask:
    texts = [f"the {w} {verb}" for w in "abcdefgh" for verb in ("rests", "rested")]
    return ProbingTask("tense", texts, ["now", "past"] * 8, ["tr"] * 8 + ["va"] * 4 + ["te"] * 4)


def test_an_encoder_may_return_a_list_or_a_tuple_of_vectors() -> None:
    want = probe_sentences(lambda texts: torch.stack([vector_of(t) for t in texts]), tense_task())
    for encoder in (
        lambda texts: [vector_of(t) for t in texts], lambda texts: tuple(vector_of(t).numpy() for t in texts),
        lambda texts: [vector_of(t).tolist() for t in texts],
    ):  # fmt: skip
        assert probe_sentences(encoder, tense_task()).best.probe.accuracy.mean == want.best.probe.accuracy.mean
    for wrong in (lambda texts: None, lambda texts: texts, lambda texts: [torch.ones(len(t)) for t in texts]):
        with pytest.raises(InputError, match="wanted vectors \\(N, D\\) of N texts from the function"):
            probe_sentences(wrong, tense_task())


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_sentences_whose_vector_is_not_finite_are_named(value: float) -> None:
    task = tense_task()

    def encoder(texts: list[str]) -> Tensor:
        return torch.stack([vector_of(t) * (value if t == task.sentences[5] else 1) for t in texts])

    with pytest.raises(NaNError, match="row 5") as caught:
        probe_sentences(encoder, task, batch_size=3)
    assert caught.value.rows == [5]
