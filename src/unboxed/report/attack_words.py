"""What attacks achieve, in one sentence."""

from __future__ import annotations

from ..engine.optimize.constraints import format_eps
from ..robustness.result import Robustness
from .input_nouns import InputNouns
from .words import format_percent

SMALLEST_CHANGE_NOTE_TEXT = (
    "Each image was changed just enough for another prediction (DeepFool). A model that relies on what people see "
    "should need a change that people see."
)
ROBUST_ACCURACY_NOTE_TEMPLATE = (
    "Robust accuracy: the share of examples that are still classified correctly after an attack has changed each "
    "{value} by at most eps {unit}. Stronger attacks may leave less: run unboxed attack."
)
ACCURACY_TABLE_NOTE_TEMPLATE = (
    "Each cell: the share of examples that are still classified correctly when an attack may change each {value} by "
    "eps {unit}. Median adversarial distance: half of the correct examples are fooled by a smaller change."
)


def attacked_count_text(n: int, n_examples: int) -> str:
    """How many of the examples were attacked: "100 of the 178 examples"."""
    return f"{n:,} of the {n_examples:,} examples" if n < n_examples else f"all {n_examples:,} examples"


def eps_that_tells_most(robustness: Robustness) -> float:
    """The smallest eps that leaves fewer than half of the correct predictions; the largest where none does."""
    half = robustness.clean_accuracy.count / 2
    return next((e for e in robustness.eps if robustness.robust_accuracy(e).count < half), robustness.eps[-1])


def attack_sentence(robustness: Robustness, nouns: InputNouns, has_labels: bool, n_examples: int) -> str:
    """How many predictions the attacks change within the eps that tells most, and on how many of the examples; of
    accuracy only where there are labels."""
    eps = eps_that_tells_most(robustness)
    clean, robust = robustness.clean_accuracy, robustness.robust_accuracy(eps)
    if not clean.count:
        return "The clean accuracy is 0, so there is nothing to attack: are the labels those of this model?"
    attacked = attacked_count_text(clean.n, n_examples)
    part = f"; {attacked} were attacked" if clean.n < n_examples else ""
    amount = f"{format_eps(eps)} {nouns.unit}"
    if robust.count == clean.count:
        kind = "correct prediction" if clean.count < clean.n else "prediction"
        stays = "stay correct" if has_labels else "stay the same"
        return f"No attack within {amount} changes a {kind} ({robust.count} of {clean.count} {stays}{part})."
    attacks = f"Attacks that change each {nouns.value} by at most {amount}"
    if not has_labels:
        return f"{attacks} change {format_percent(1 - robust.value)} of the predictions for {attacked}."
    before, after = format_percent(clean.value), format_percent(robust.value)
    return f"{attacks} lower the accuracy on {attacked} from {before} to {after}."
