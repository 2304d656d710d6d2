"""Which examples the report attacks, and which it shows: right ones that are clearly decided, and the followed ones."""

from __future__ import annotations

from torch import Tensor

from .attack_budget import n_attacked_examples
from .context import ReportContext
from .survey import evenly_spaced_indices

MAX_SHOWN_EXAMPLES = 4  # examples with figures
N_PREVIEW_EXAMPLES = 2  # before the section is opened
MIN_MARGIN_OF_DECIDED = 0.5  # of the probability over that of the next class, from which an example is clearly decided


def attacked_indices(context: ReportContext) -> list[int]:
    """Indices of the examples attacked, evenly spread over the examples in the order of their classes."""
    n = n_attacked_examples(context)
    order = labels_or_predictions(context).argsort(stable=True)
    return sorted(int(order[i]) for i in evenly_spaced_indices(len(order), n))


def shown_example_indices(context: ReportContext) -> list[int]:
    """Indices of the examples with figures: the followed ones, then clearly decided ones; where none is, any."""
    s, followed = context.survey, context.followed_indices
    decided = clearly_decided_indices(context)[:N_PREVIEW_EXAMPLES]
    others = [*decided, *s.typical_indices, *s.indices_by_margin]
    n = max(MAX_SHOWN_EXAMPLES, len({*followed, *decided}))
    return list(dict.fromkeys([*followed, *others]))[:n]


def clearly_decided_indices(context: ReportContext) -> list[int]:
    """Indices of examples that are right (any, without labels) and far from another answer, of different classes."""
    s = context.survey
    return [i for i in s.typical_indices if float(s.margin[i]) >= MIN_MARGIN_OF_DECIDED]


def labels_or_predictions(context: ReportContext) -> Tensor:
    """The labels of the examples, (n,); without labels, the predictions."""
    s = context.survey
    return s.predicted if s.labels is None or not s.exclusive_classes else s.labels
