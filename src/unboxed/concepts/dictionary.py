"""Dictionaries of features: a sparse autoencoder of a layer, beside its twin whose directions are random and frozen.

Gao et al. 2024, arXiv:2406.04093 (top-k); Bussmann et al. 2024, arXiv:2412.06410 (batch-top-k); Fel et al. 2025,
"Archetypal SAE", arXiv:2502.12892. That frozen random directions do nearly as well: arXiv:2602.14111.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from .. import rng
from ..box import Box
from ..cards import card
from ..engine.intervals import Interval
from ..engine.linear.sparse_autoencoder import AutoencoderConfig, SparseActivation, SparseAutoencoder, fit_autoencoders
from ..engine.output_change import output_change_unit_text
from ..engine.read.class_labels import has_class_labels
from ..engine.read.examples import OptionallyLabeledExamples, indexed_examples, indexed_inputs
from ..engine.read.features import default_feature_layer
from ..engine.results import ResultMixin
from ..engine.rows import MAX_ROW_MATRIX_VALUES, evenly_spaced_indices
from ..errors import DataError, InputError, LayerError
from ..objectives import Objective, direction
from ..parameters import BatchSize, Data, LayerAddress, MaxExamples, Seed
from ..settings import AtLeast, Unit, check_settings
from ..validation import check_int, valid_seed
from ._claims import FAIL, NOT_TESTED_CLAIM, PASS, ClaimGrade
from ._classes import random_card_examples
from ._dictionary_rows import PositionSample, top_examples
from ._dictionary_table import Comparison, DictionaryScore
from ._rebuild import EvaluatedExamples, resolve_inner_layer

DEFAULT_FEATURES_PER_UNIT, DEFAULT_FEATURES_PER_ACTIVE_FEATURE = (
    2,
    16,
)  # defaults: features per unit of the layer, and features per active one
HELD_OUT_FRACTION = 0.2
MAX_ROWS = 100_000  # positions of fitted examples; of more, some of each example are drawn
MAX_TESTED_ROWS = 4000  # positions of held-out examples
MAX_REBUILT_EXAMPLES = 200  # held-out examples on which the model is run with the layer replaced
MIN_HELD_OUT_EXAMPLES_FOR_VERDICT = 8  # held-out examples, from which a verdict is given
MIN_EXAMPLES = 5
N_TOP_EXAMPLES_PER_FEATURE = 9  # examples of each feature


@dataclass(frozen=True, eq=False, repr=False)
class Dictionary(ResultMixin):
    """A sparse dictionary of a layer, the strongest features first, beside dictionaries that it should beat.

    Attributes:
        autoencoder: Directions, encoder and offset of the first seed's.
        strength: (F,) the mean squared amount of each feature in the fitted activations.
        frequency: (F,) the share of the fitted activations that have it.
        example_index: (F, T) the examples with the largest amount of each feature, in the data, the largest first.
        example_amount: (F, T) those amounts, over positions the largest.
        scores: The table: this dictionary, its twin with frozen random directions, NMF where it can, PCA, the mean.
        gap: Explained variance above the twin's, with its interval over held-out examples and seeds.
        accuracy: The model's own accuracy on held-out examples; None without labels.
        layer: The layer's address.
        unit: Of the outputs' change.
        unit_axis: Axis of the layer's units.
        n_held_out: Number of held-out examples.
    """

    returns: ClassVar[str] = "table"

    autoencoder: SparseAutoencoder
    strength: Tensor
    frequency: Tensor
    example_index: Tensor
    example_amount: Tensor
    scores: tuple[DictionaryScore, ...]
    gap: Interval
    accuracy: float | None
    layer: str
    unit: str
    unit_axis: int
    n_held_out: int

    @property
    def n_features(self) -> int:
        return len(self.autoencoder.directions)

    def score(self, name: str) -> DictionaryScore | None:
        """The row of the table with this name; None where there is none."""
        return next((s for s in self.scores if s.name == name), None)

    def objective(self, feature: int) -> Objective:
        """How much of a feature there is, before its sparse selection: an objective for attribution and synthesis.

        Over positions the mean. Raises InputError for an unknown feature.
        """
        if check_int("feature", feature) >= self.n_features:
            raise InputError(f"the dictionary has features 0 to {self.n_features - 1}; got {feature}")
        if self.unit_axis != 1:
            raise LayerError(f"{self.layer!r} has its units on axis {self.unit_axis}; a direction needs them on axis 1")
        encoder = self.autoencoder.encoder[feature]
        return direction(self.layer, encoder) - float(encoder @ self.autoencoder.offset)

    @property
    def verdict(self) -> ClaimGrade:
        """ "pass" where the features explain more than frozen random directions, "fail" where they may not."""
        if self.n_held_out < MIN_HELD_OUT_EXAMPLES_FOR_VERDICT:
            return NOT_TESTED_CLAIM
        return PASS if self.gap.low > 0 else FAIL

    @property
    def reason(self) -> str:
        """The sentence of the verdict."""
        if self.n_held_out < MIN_HELD_OUT_EXAMPLES_FOR_VERDICT:
            return f"{self.n_held_out} held-out examples are too few to compare with frozen random directions"
        own, frozen = (s.explained_variance.mean for s in self.scores[:2])
        text = f"{self.n_features} features explain {own:.1%} of the variance of held-out activations, as many frozen "
        text += f"random directions {frozen:.1%}: a gap of {self.gap.mean:.3f} (90% interval {self.gap.low:.3f} to "
        return f"{text}{self.gap.high:.3f})" + (", which may be nothing" if self.verdict == FAIL else "")


@card(
    name="Dictionary",
    source="Gao et al. 2024, arXiv:2406.04093; Bussmann et al. 2024, arXiv:2412.06410; Fel et al. 2025, "
    "arXiv:2502.12892; its twin: arXiv:2602.14111",
    shows="Which many directions of a layer its activations are sparse sums of, and which examples have each.",
    does_not_show="That these are the model's own features: other seeds find others, as the stability says.",
    example=lambda method, box, x, y: method(
        box, random_card_examples(box, 9), n_features=3, k=2, n_steps=2, n_seeds=2
    ),
    exempt={"rows": "its features are of all examples together"},
    runs=lambda s: 3,
    order=6,
)
def dictionary(
    box: Box,
    data: Data,
    layer: LayerAddress = None,
    *,
    n_features: Annotated[int | None, AtLeast(1), Unit("features"), "Number of features."] = None,
    k: Annotated[int | None, AtLeast(1), Unit("features"), "Number of features that an activation has."] = None,
    activation: Annotated[SparseActivation, "How features are selected."] = "top_k",
    archetypal: Annotated[bool, "Directions are mixtures of the data, which agree more between seeds."] = False,
    n_steps: Annotated[int, AtLeast(1), Unit("steps"), "Steps of the fit, of 256 activations each."] = 1000,
    n_seeds: Annotated[int, AtLeast(1), Unit("seeds"), "Dictionaries that are fitted, each with its twin."] = 3,
    max_examples: MaxExamples = None,
    seed: Seed = 0,
    batch_size: BatchSize = "auto",
) -> Dictionary:
    """Fit a sparse dictionary (a sparse autoencoder) to a layer, beside its twin with frozen random directions.

    To take a layer apart into more features than it has units, each shown by its top examples. For a few directions
    with what they decide take `discover`. A feature is an objective, `result.objective(3)`, which attribution explains
    and `ub.synthesis.feature` draws.

    Args:
        box: The opened model.
        data: Examples: a Dataset, a DataLoader, an iterable, or tensors. A fifth of them is held out.
        layer: Address of the layer, as `box.layers` lists them. Each position is an activation of its own. None: the
            input of the last layer with parameters.
        n_features: Number of features. None: twice as many as the layer has units, at most one per activation.
        k: Number of features that an activation has. None: a sixteenth of them.
        activation: How features are selected. "top_k": the k largest of each activation; "batch_top_k": k per
            activation on average, and more where more is going on.
        archetypal: Directions are mixtures of the data, which agree more between seeds. They explain somewhat less.
        n_steps: Steps of the fit, of 256 activations each.
        n_seeds: Dictionaries that are fitted, each with its twin. The first one is returned; 1 says nothing of the
            stability.
        max_examples: Use only the first of the examples; None uses all.
        seed: Seed of all random draws: same seed, same result.
        batch_size: Examples per forward pass; "auto" takes as many as fit in memory.

    Returns:
        A `Dictionary`: the `autoencoder`, the top examples of each feature, the table of `scores` (explained variance,
        dead features, stability, what is left of the model's answers), the `gap` to the twin; a `verdict` with its
        `reason`: "fail" where the gap's interval covers 0.

    Raises:
        DataError: for fewer than 5 examples.
        InputError: for more features than activations, or k above the number of features.
        LayerError: for an unknown layer.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> result = ub.concepts.dictionary(box, ub.data.digits("train").first(100), n_steps=50)
        >>> result.layer, result.n_features, result.verdict
        ('fc2:input', 80, 'pass')
        >>> ub.synthesis.feature(box, result.objective(0), steps=4).images.shape
        torch.Size([1, 1, 28, 28])

    Source:
        Gao et al. 2024, arXiv:2406.04093: top-k, the encoder started as the decoder's transpose, the auxiliary loss of
        dead features (their weight 1/32). Bussmann et al. 2024 for batch-top-k with its threshold. Archetypes: Fel et
        al. 2025, arXiv:2502.12892, without the relaxation; the points are k-means centroids. Deviations: directions
        have length 1; dead features also start again from rows that are rebuilt badly. The twin of arXiv:2602.14111
        learns its encoder, not its random directions.
    """
    check_settings(dictionary, locals())
    seed = valid_seed(seed)
    x, labels, dataset_rows = _examples(box, data, max_examples)
    rows = resolve_inner_layer(box, layer, default_feature_layer, "dictionary")
    order = torch.randperm(len(x), generator=rng.keyed_generator(rng.CPU, "dictionary", seed))
    n_held_out = max(1, round(HELD_OUT_FRACTION * len(x)))
    held_out = PositionSample.of(rows, order[:n_held_out], MAX_TESTED_ROWS)
    fitted = PositionSample.of(rows, order[n_held_out:], MAX_ROWS)
    if n_features is None:
        n_features = min(
            DEFAULT_FEATURES_PER_UNIT * rows.n_units, len(fitted), max(1, MAX_ROW_MATRIX_VALUES // rows.n_units)
        )
    k = max(1, n_features // DEFAULT_FEATURES_PER_ACTIVE_FEATURE) if k is None else k
    plan = AutoencoderConfig(n_features, k, activation, archetypal, n_steps)
    plan.check(len(fitted))
    h = fitted.read(box, x, seed, batch_size).flatten(0, 1)  # (A, C)
    tested = held_out.read(box, x, seed, batch_size)  # (M, p, C)
    seeds = [rng.derive_seed("dictionary", seed, i) for i in range(n_seeds)]
    own, frozen = fit_autoencoders(h.to(box.dtype), plan, seeds, n_frozen=n_seeds)
    n_held_out = len(held_out.examples)
    n_shown = n_held_out if box.batch_dependent else MAX_REBUILT_EXAMPLES
    shown = held_out.examples[evenly_spaced_indices(n_held_out, n_shown)]
    examples = EvaluatedExamples(box, x[shown], None if labels is None else labels[shown], batch_size)
    scores, gap = Comparison(rows, h, tested, k, examples).table(own, frozen, seeds)
    chosen, strength, frequency = _sort_features_by_strength(own[0], h)
    top = top_examples(box, rows, x, chosen, N_TOP_EXAMPLES_PER_FEATURE, batch_size)
    return Dictionary(
        chosen, strength, frequency, dataset_rows[top.index.cpu()], top.amount.to(box.dtype), scores, gap,
        examples.accuracy(), rows.address, output_change_unit_text(box), rows.axis, n_held_out,
    )  # fmt: skip


def _examples(box: Box, data: Any, max_examples: int | None) -> OptionallyLabeledExamples:
    """The examples, with their labels where these are classes. Raises DataError for too few."""
    if has_class_labels(box):
        x, labels, dataset_rows = indexed_examples(box, data, max_examples)
    else:
        (x, dataset_rows), labels = indexed_inputs(box, data, max_examples), None
    if len(x) < MIN_EXAMPLES:
        raise DataError(f"dictionary needs at least {MIN_EXAMPLES} examples, one of them held out; got {len(x)}")
    return OptionallyLabeledExamples(x, None if labels is None else labels.cpu(), dataset_rows)


def _sort_features_by_strength(autoencoder: SparseAutoencoder, h: Tensor) -> tuple[SparseAutoencoder, Tensor, Tensor]:
    """The autoencoder with its strongest features first, their mean squared amounts, and how often each is active."""
    strength, frequency = autoencoder.double().strength_and_frequency(h)
    order = strength.argsort(descending=True, stable=True)
    chosen = replace(autoencoder, directions=autoencoder.directions[order], encoder=autoencoder.encoder[order])
    like = autoencoder.directions
    return chosen, strength[order].to(like), frequency[order].to(like)
