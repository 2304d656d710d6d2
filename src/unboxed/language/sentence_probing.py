"""What does a vector know of its sentence? Probing tasks on any encoder, beside a bag of words and a control task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from torch import Tensor

from ..box import Box
from ..engine.intervals import Interval, bootstrap_mean_interval
from ..engine.linear.probing import FeatureProbe, ProbeKind, probe_features
from ..engine.output_change import output_change_unit_text
from ..engine.read.attribute_erasure import ErasureTest, erased_example_indices, erasure_test
from ..engine.read.features import resolve_layers
from ..engine.read.layer_probes import LayerProbe, Probing
from ..errors import InputError
from ..objectives import INPUT_OUTPUT_ADDRESSES, mean_over_positions
from ..parameters import BatchSize, Seed
from ..settings import AtLeast, Unit, check_settings, takes_texts
from ..validation import valid_seed
from ._bag_of_words import BagOfWords
from ._lookup import TextEncoder
from ._sentence_features import (
    Pooling,
    SentenceFeatures,
    TokenReader,
    features_by_function,
    features_by_word_vectors,
    tokens_of,
)
from .probing_tasks import ProbingTask, as_probing_task, first_word_types
from .vectors import WordVectors

SentenceEncoder = Box | WordVectors | TextEncoder
"""A model of texts, word vectors whose mean is a sentence's, or a function from N texts to vectors (N, D)."""

MAX_ERASED_SENTENCES, MIN_ERASED_SENTENCES = 200, 20  # that the model is run on with each set of directions erased
MAX_ERASED_LOGITS = 2**27  # of all of these runs, fewer sentences of a model with many classes
N_REMAINING_FOLDS = 5  # of the probe that reads what is left


@dataclass(frozen=True, eq=False, repr=False)
class SentenceProbing(Probing):
    """What can be read of a sentence's label from its vector, layer by layer of a model.

    Attributes:
        task: Name of the task.
        encoder: What gave the vectors.
        pooling: Which vector of a layer is a sentence's; empty where the encoder has no layers.
        bag_of_words: What is read from the counts of words.
        gains: Accuracy of each layer's probe minus that of the bag of words, of the same test sentences.
        note: What the encoder left out; empty where it is nothing.
    """

    task: str
    encoder: str
    pooling: str
    bag_of_words: BagOfWords
    gains: tuple[Interval, ...] = field(repr=False)
    note: str = ""

    @property
    def comparison(self) -> str:
        """In a sentence: the best layer beside the bag of words, and what the encoder left out."""
        best = self.layers.index(self.best)
        gain, read, words = self.gains[best], self.best.probe.accuracy.mean, self.bag_of_words.accuracy.mean
        sure = "above" if gain.low > 0 else "below" if gain.high < 0 else "no different from"
        note = f" {self.note}." * bool(self.note)
        return (
            f"{self.best.layer}: {read:.1%}, {sure} the bag of words, {words:.1%} (90% interval of the difference "
            f"{gain.low:+.1%} to {gain.high:+.1%}).{note}"
        )

    def __str__(self) -> str:
        rows = [self._layer_text(p, gain) for p, gain in zip(self.layers, self.gains, strict=True)]
        words = f"bag of words {self.bag_of_words.accuracy.mean:.1%}, majority {self.layers[0].probe.majority:.1%}"
        note = f"\n{self.note}" * bool(self.note)
        return "\n".join([f"{self.task} by {self.encoder} ({words}):", *rows]) + note

    def _layer_text(self, p: LayerProbe, gain: Interval) -> str:
        read = p.probe
        return (
            f"  {p.layer}: {read.accuracy.mean:.1%} ({gain.mean:+.1%} to the words, control {read.control.mean:.1%}), "
            f"{p.verdict}"
        )


@takes_texts
def probe_sentences(
    encoder: SentenceEncoder,
    task: ProbingTask | Any,
    layers: Sequence[str] | str | None = None,
    *,
    pooling: Pooling = "mean",
    kind: Annotated[ProbeKind, "Classifier that reads the label."] = "linear",
    n_controls: Annotated[int, AtLeast(1), Unit("draws"), "Control tasks drawn."] = 5,
    n_random: Annotated[
        int, AtLeast(0), Unit("draws"), "Sets of random directions that are erased in place of the label's."
    ] = 39,
    description_length: Annotated[bool, "Compute the description length, too."] = False,
    batch_size: BatchSize = "auto",
    seed: Seed = 0,
) -> SentenceProbing:
    """Read a label of sentences from their vectors, by SentEval's protocol, and see whether the model uses it.

    To compare encoders, or the layers of one, by what their vectors carry: word order, tense, length, syntax. Beside
    each accuracy stand the majority class, a control task, and what the words alone say: a task that a bag of words
    solves asks nothing of an encoder. For other inputs than sentences use `concepts.probe`.

    Args:
        encoder: A model of texts, `ub.Box(model, ub.Tokens(tokenizer))`; `WordVectors`, whose mean is a sentence's
            vector; or a function from N texts to vectors (N, D).
        task: The sentences and their labels, as `load_probing_task` reads them; or (texts, labels), or what
            `ub.data.texts` reads: three fifths of each label's texts then train, a fifth chooses the penalty, a fifth
            tests.
        layers: Addresses of the layers, as `box.layers` lists them. None: what goes into the first block of a
            transformer, and up to 12 of its blocks; of another model what its layers with weights receive.
        pooling: Which vector of a layer is a sentence's: the mean of its tokens, or one token. "first" is [CLS] of
            models that have it, "last" is for causal models. A layer with one vector per sentence is taken as it is.
        kind: Classifier that reads the label. "linear" is multinomial logistic regression, "mlp" has a hidden layer of
            64 units.
        n_controls: Control tasks drawn.
        n_random: Sets of random directions that are erased in place of the label's. 39 allow a level of 5 %; 0 leaves
            out whether the model uses it.
        description_length: Compute the description length, too. It takes about three times as long.
        batch_size: Examples per forward pass; "auto" takes as many as fit in memory.
        seed: Seed of all random draws: same seed, same result.

    Returns:
        A `SentenceProbing`: of each of the `layers` the `probe` (accuracy on the test sentences, majority, control) and
        the `verdict` as of `concepts.probe`; `bag_of_words`, and the `gains` over it. An encoder that is a function has
        one layer, "encoder", whose use cannot be tested.

    Raises:
        InputError: for another task or encoder, or vectors that are not (N, D).
        LayerError: for an unknown layer, or one that gives no vector per token or sentence.
        NaNError: where vectors or answers are NaN; the error names the rows.

    Example:
        >>> import torch, unboxed as ub
        >>> now, past = [f"the {w} rests" for w in "abcdefgh"], [f"the {w} rested" for w in "abcdefgh"]
        >>> flags = ["tr"] * 8 + ["va"] * 4 + ["te"] * 4
        >>> task = ub.language.ProbingTask("tense", [s for p in zip(now, past) for s in p], ["now", "past"] * 8, flags)
        >>> encode = lambda texts: torch.tensor([[float(len(t)), float(t[-1] == "d")] for t in texts])
        >>> result = ub.language.probe_sentences(encode, task)
        >>> result.best.probe.accuracy.mean, result.verdict
        (1.0, 'not tested')

    Source:
        Conneau et al. 2018, arXiv:1805.01070, and SentEval: fitted on "tr", the penalty chosen on "va", tested on "te".
        Deviations: L-BFGS to the optimum and penalties of 10 to .0001 in place of Adam with early stopping; the MLP has
        64 tanh units. The control task (Hewitt & Liang 2019) gives each first word of a sentence a random class. The
        bag of words counts those of two training sentences or more, in lower case, split at spaces.
    """
    check_settings(probe_sentences, locals())
    task = as_probing_task(task)
    seed, reader = valid_seed(seed), None
    if isinstance(encoder, Box):
        tokens_of(encoder)
        reader = TokenReader(encoder, pooling)
    features = _read_features(encoder, reader, task, layers, batch_size)
    types, y = first_word_types(task), task.y
    erasing = None
    if reader is not None and features.outputs is not None and n_random:
        erasing = _Erasing.of(reader, task, features.outputs, n_random, batch_size, seed)
    found = []
    for layer, h in features.by_layer.items():
        read = probe_features(
            h.double(), y, flags=task.flags, kind=kind, types=types, n_controls=n_controls,
            description_length=description_length, seed=seed,
        )  # fmt: skip
        is_testable = read.is_decodable and layer not in INPUT_OUTPUT_ADDRESSES
        found.append(LayerProbe(layer, read, erasing(layer, h.double()) if erasing and is_testable else None))
    return _make_result(encoder, task, found, features, kind, pooling if reader else "", seed)


def _read_features(
    encoder: SentenceEncoder, reader: TokenReader | None, task: ProbingTask, layers: Sequence[str] | str | None,
    batch_size: BatchSize,
) -> SentenceFeatures:  # fmt: skip
    if reader is not None:
        longest = max(task.sentences, key=len)
        addresses = reader.default_layers(longest) if layers is None else resolve_layers(reader.box, layers)
        return reader.read(task.sentences, addresses, batch_size)
    if layers is not None:
        raise InputError("layers are those of a model, ub.Box(model, ub.Tokens(tokenizer)); this encoder has none")
    if isinstance(encoder, WordVectors):
        return features_by_word_vectors(encoder, task.sentences)
    if not callable(encoder):
        raise InputError(
            "encoder must be a model of texts (Box), WordVectors, or a function from N texts to vectors (N, D); got "
            f"{type(encoder).__name__}"
        )
    return features_by_function(encoder, task.sentences, batch_size)


@dataclass(frozen=True, eq=False)
class _Erasing:
    """Runs some of the sentences with the label erased from a layer."""

    reader: TokenReader
    task: ProbingTask
    outputs: Tensor  # (N, K')
    x: Tensor  # (M, T, ...) of the sentences that are run
    rows: Tensor  # (M,)
    before: Tensor  # (M, K)
    n_random: int
    batch_size: BatchSize
    seed: int

    @classmethod
    def of(
        cls, reader: TokenReader, task: ProbingTask, outputs: Tensor, n_random: int, batch_size: BatchSize, seed: int
    ) -> _Erasing:  # fmt: skip
        box = reader.box
        n_classes = len(box.classes) or 1
        n = min(MAX_ERASED_SENTENCES, max(MIN_ERASED_SENTENCES, MAX_ERASED_LOGITS // (n_classes * (n_random + 2))))
        rows = erased_example_indices(box, len(task), n)
        sentences = [task.sentences[i] for i in rows.tolist()]
        size, limit = reader.batch_plan(sentences, batch_size)
        x, size = box.validate_inputs(sentences), limit if size == "auto" else size
        before = mean_over_positions(box(x, batch_size=size)).detach()
        return cls(reader, task, outputs, x, rows, before, n_random, size, seed)

    def __call__(self, layer: str, h: Tensor) -> ErasureTest | None:
        return erasure_test(
            self.reader.box, self.x, self.rows, self.task.y, h, self.reader.view(layer, self.x), None,
            outputs=self.outputs, before=self.before, n_random=self.n_random, n_folds=N_REMAINING_FOLDS, seed=self.seed,
            batch_size=self.batch_size,
        )  # fmt: skip


def _make_result(
    encoder: SentenceEncoder, task: ProbingTask, layers: Sequence[LayerProbe], features: SentenceFeatures,
    kind: ProbeKind, pooling: str, seed: int,
) -> SentenceProbing:  # fmt: skip
    words = BagOfWords.fit(task)
    gains = tuple(_gain_interval(task, p.probe, words, seed) for p in layers)
    unit = output_change_unit_text(encoder) if isinstance(encoder, Box) else ""
    return SentenceProbing(
        tuple(layers), task.classes, task.y.bincount(minlength=len(task.classes)), len(task), kind, unit,
        "first words of the sentences", task.name, _name_of_encoder(encoder), pooling, words, gains, features.note,
    )  # fmt: skip


def _gain_interval(task: ProbingTask, probe: FeatureProbe, words: BagOfWords, seed: int) -> Interval:
    """Accuracy minus that of the bag of words, over the same test sentences."""
    correct = probe.predicted == task.y[probe.tested]
    return bootstrap_mean_interval((correct.double() - words.correct.double())[:, None], seed)


def _name_of_encoder(encoder: SentenceEncoder) -> str:
    if isinstance(encoder, Box):
        return type(encoder.model).__name__
    if isinstance(encoder, WordVectors):
        return f"the mean of {encoder.name}"
    name = str(getattr(encoder, "__name__", type(encoder).__name__))
    return "a function" if name == "<lambda>" else name
