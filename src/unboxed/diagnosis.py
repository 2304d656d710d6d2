"""What works on a model and what does not: every method that has a card is tried, and says so itself."""

from __future__ import annotations

import math
import re
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Annotated, Any, NamedTuple

from torch import Tensor
from tqdm import tqdm

from .argument_names import naming_arguments
from .box import Box
from .cards import Card, cards
from .engine.read.class_labels import has_class_labels
from .engine.read.output_values import predicted_output_values
from .errors import UnboxedError, UnboxedWarning
from .inputs.labels import are_default_class_names
from .inputs.tokens import Tokens
from .model.nan_checks import names_of_nan_weights
from .objectives import Objective, logit, mean_over_positions
from .parameters import InputBatch
from .settings import Above, Unit, check_settings, takes_texts
from .table_views import TableViewsMixin

N_TRIAL_EXAMPLES = 3
MIN_FORWARD_CALL_BUDGET, MIN_FORWARD_ROW_BUDGET = 3, 16  # model runs that a method is let do, whatever they cost
MAX_FLOPS_PER_METHOD = 1e11  # per method
MAX_LISTED_ALTERNATIVES = 3
NO_NAN_TEXT = "no NaN"
TRIED_ON_NOISE_TEXT = "noise, whose maps say nothing of real inputs: pass x= to try the methods on yours"
REPORT_BUG_TEXT = "this is a bug of the method, please report it"


@dataclass(frozen=True)
class MethodCheck:
    """Whether a method works on a model; if not, why, and what to do instead. `notes` are its warnings."""

    method: str
    name: str
    family: str
    works: bool
    reason: str = ""
    remedy: str = ""
    notes: tuple[str, ...] = ()
    is_complete: bool = True  # False: stopped after a bounded number of model runs, without an error so far
    objective: str = ""  # with this `objective=` it works, where it refuses to work on classes


@dataclass(frozen=True)
class Diagnosis(TableViewsMixin):
    """What works on a model: `model` are facts on it and on what was tried, {what: text}; `methods` are the checks."""

    model: Mapping[str, str]
    methods: tuple[MethodCheck, ...]

    @property
    def working(self) -> tuple[str, ...]:
        """The names of the methods that work."""
        return tuple(check.method for check in self.methods if check.works)

    @property
    def refused(self) -> dict[str, str]:
        """{name: why not, and what to do} of the methods that do not work."""
        return {c.method: f"{c.reason}; {c.remedy}" for c in self.methods if not c.works}

    def working_by_family(self) -> list[tuple[str, list[str], int]]:
        """(family, the names of its methods that work, how many it has) in the order of the families."""
        by_family = {check.family: [c for c in self.methods if c.family == check.family] for check in self.methods}
        return [(family, [c.method for c in cs if c.works], len(cs)) for family, cs in by_family.items()]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"model": dict(self.model), "methods": [asdict(check) for check in self.methods]}

    def __repr__(self) -> str:
        refused = f", not {', '.join(self.refused)}" if self.refused else ""
        weights = self.model.get("weights", NO_NAN_TEXT)
        refused = f"; the weights hold {weights}{refused}" if weights != NO_NAN_TEXT else refused
        kind = " that take texts" * ("texts" in self.model)
        return f"Diagnosis({len(self.working)} of {len(self.methods)} methods{kind} work{refused})"


@takes_texts
@naming_arguments
def doctor(
    box: Box,
    x: Annotated[InputBatch | None, "Inputs to try the methods on, 2 or more; None takes noise."] = None,
    *,
    max_flops: Annotated[
        float, Above(0), Unit("FLOPs"), "Largest cost of trying one method, about; then it is stopped."
    ] = MAX_FLOPS_PER_METHOD,
    quiet: bool = True,
) -> Diagnosis:
    """What works on a model and what does not, and why: every method is tried by its smallest useful call.

    The first thing to do with an unusual model, before a method fails in the middle of other work. Methods of your own
    with a card are tried too. Of a model of texts those that take texts are tried.

    Args:
        box: The opened model.
        x: Inputs (N, ...) in the box's units: images (N, C, H, W) in [0, 1], or texts. None takes noise, of which
            the warnings of methods then are ("on noise: ...").
        max_flops: Largest cost of trying one method, about; then it is stopped. A method that is stopped without an
            error counts as working, and its check says that it is not complete.
        quiet: No progress bar.

    Returns:
        A `Diagnosis`: `working`, `refused` with the reason and the remedy of each, and facts on the model.

    Raises:
        InputError: for inputs that do not fit, and for `max_flops` that is not above 0.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> found = ub.doctor(box, max_flops=1e7)
        >>> "gradient" in found.working, "rollout" in found.refused
        (True, True)
    """
    check_settings(doctor, locals())
    inputs = box.noise(N_TRIAL_EXAMPLES) if x is None else _trial_inputs(box, x)
    logits = box(box.restore_structure(inputs))
    labels = _TrialLabels(mean_over_positions(logits).argmax(1), predicted_output_values(box, logits))
    row_budget = max(MIN_FORWARD_ROW_BUDGET, max_flops / max(1.0, box.flops_per_example))
    limited = _make_run_budget_box(box)
    tried = [card for card in cards() if card.texts or not isinstance(box.inputs, Tokens)]
    bar = tqdm(tried, disable=quiet, file=sys.stderr, leave=False, desc="Trying each method")
    checks = [_check_method_or_with_objective(card, limited, inputs, labels, row_budget) for card in bar]
    if x is None:  # a warning may be of the noise, not of the model
        checks = [replace(check, notes=tuple(f"on noise: {note}" for note in check.notes)) for check in checks]
    facts = {"tried on": TRIED_ON_NOISE_TEXT if x is None else "your inputs"} | _model_facts(box)
    if n_untried := len(cards()) - len(tried):
        facts["texts"] = f"{len(tried)} methods take them; {n_untried} that do not are left out"
    return Diagnosis(facts, tuple(_with_alternatives_as_remedy(check, checks) for check in checks))


def _trial_inputs(box: Box, x: InputBatch) -> Tensor:
    """The first inputs; of texts, for a model without a mask, those as long as the first: no padding is in the way."""
    inputs = box.validate_inputs(x)
    if isinstance(box.inputs, Tokens) and not box.inputs.takes_mask:
        mask = box.inputs.mask(inputs)  # (N, T)
        inputs = inputs[(mask == mask[0]).all(1)][:, mask[0]]
    return inputs[:N_TRIAL_EXAMPLES]


# -- trying a method ---------------------------------------------------------------------------------------------------


class _RunBudgetExceeded(BaseException):
    """Raised in place of a model run that would go beyond a limit; no method handles it."""


class _RunBudgetBox(Box):
    """A box whose model runs are counted, and stopped beyond a number of rows."""

    n_calls, n_rows, row_budget = 0, 0, math.inf

    def set_run_budget(self, row_budget: float) -> None:
        self.n_calls, self.n_rows, self.row_budget = 0, 0, row_budget

    def raw_output(self, x: Tensor) -> object:
        self.n_calls, self.n_rows = self.n_calls + 1, self.n_rows + x.shape[0]
        if self.n_calls > MIN_FORWARD_CALL_BUDGET and self.n_rows > self.row_budget:
            raise _RunBudgetExceeded
        return super().raw_output(x)


def _make_run_budget_box(box: Box) -> _RunBudgetBox:
    reopen, arguments = box.__reduce__()
    return _RunBudgetBox(*arguments, **reopen.keywords)


class _TrialLabels(NamedTuple):
    """What the model says of the inputs."""

    classes: Tensor  # (N,)
    output_values: Tensor  # in the form of its outputs (see `check_output_values`)


def _check_method_or_with_objective(
    card: Card, box: _RunBudgetBox, x: Tensor, labels: _TrialLabels, row_budget: float
) -> MethodCheck:
    """Run the card's example; where the outputs are no classes, once more with an objective in place of one."""
    takes_output_values = card.returns == "adversarial" or card.family == "robustness"
    y = labels.output_values if takes_output_values and not has_class_labels(box) else labels.classes
    check = _check_method(card, box, x, y, row_budget)
    text, objective = _fallback_objective_text_and_value(box)
    if check.works or check.remedy or objective is None or "objective" not in card.settings:
        return check
    with_objective = replace(card, method=partial(card.method, objective=objective))
    return (
        replace(check, objective=text)
        if _check_method(with_objective, box, x, labels.classes, row_budget).works
        else check
    )


def _fallback_objective_text_and_value(box: Box) -> tuple[str, Objective | None]:
    """An objective for outputs that are not one class per example, and its code; None where they are."""
    if box.outputs == "regression":
        return "ub.logit(0) - 3.5", logit(0) - 3.5
    if box.output_map_shape:
        return ("ub.logit(1) - ub.logit(0)", logit(1) - logit(0)) if box.n_outputs > 1 else ("ub.logit(0)", logit(0))
    return ("-ub.logit(0)", -logit(0)) if box.outputs == "multilabel" else ("", None)


def _check_method(card: Card, box: _RunBudgetBox, x: Tensor, y: Tensor, row_budget: float) -> MethodCheck:
    """Run the card's example, and report how it ends."""
    reason, remedy, is_complete = "", "", True
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        box.set_run_budget(row_budget)
        try:
            card.example(card.method, box, box.restore_structure(x.clone()), y.clone())
        except _RunBudgetExceeded:
            is_complete = False
        except UnboxedError as error:
            reason = str(error)
        except Exception as error:  # no method may raise it; the others are tried all the same
            reason, remedy = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}", REPORT_BUG_TEXT
        finally:
            box.set_run_budget(math.inf)
    notes = tuple(dict.fromkeys(str(w.message) for w in caught if issubclass(w.category, UnboxedWarning)))
    return MethodCheck(card.key, card.name, card.family, not reason, reason, remedy, notes, is_complete)


def _with_alternatives_as_remedy(check: MethodCheck, checks: Sequence[MethodCheck]) -> MethodCheck:
    """The check with what works instead: an objective, or the first methods of its family that work."""
    if check.works or check.remedy:
        return check
    family = [c for c in checks if c.family == check.family]
    others = [c for c in family if not _says_to_use(check.reason, c.method)]
    family = others if any(c.works for c in others) else family
    return replace(
        check, remedy=_works_with_objective_text(check.objective) or _alternatives_text(check.family, family)
    )


def _says_to_use(reason: str, method: str) -> bool:
    return re.search(rf"\buse {method}\b", reason) is not None


def _works_with_objective_text(objective: str) -> str:
    return f"tried with objective={objective}, it works" if objective else ""


def _alternatives_text(family: str, checks: Sequence[MethodCheck]) -> str:
    """The first methods of a family that work, or else those that do with an objective."""
    working = [c for c in checks if c.works] or [c for c in checks if c.objective]
    if not working:
        return f"no method of {family} works on this model as it is opened"
    names = ", ".join(c.method for c in working[:MAX_LISTED_ALTERNATIVES])
    objective = working[0].objective
    return f"others that work: {names}" + (f" with objective={objective}" if objective else "")


# -- the model ---------------------------------------------------------------------------------------------------------

MODEL_FACT_FN_BY_NAME: dict[str, Callable[[Box], str]] = {
    "model": lambda box: f"{type(box.model).__name__}, {len(box.layers)} layers that run, on {box.device}",
    "inputs": lambda box: str(box.inputs),
    "outputs": lambda box: f"{box.outputs}, {(box.n_outputs, *box.output_map_shape)} per example",
    "classes": lambda box: (
        "no names: pass classes=" if are_default_class_names(box.classes) else ", ".join(box.classes[:8])
    ),
    "precision": lambda box: str(box.model_dtype).removeprefix("torch."),
    "weights": lambda box: _nan_weights_text(box),
    "cost": lambda box: f"{box.flops_per_example:,.0f} FLOPs per example",
    "batches": lambda box: "examples depend on one another: never split" if box.batch_dependent else "independent",
    "random numbers": lambda box: "drawn in each forward pass: results are by the seed" if box.stochastic else "none",
}


def _nan_weights_text(box: Box) -> str:
    """Which parameters and buffers hold NaN."""
    names = names_of_nan_weights(box.model)
    more = ", ..." * (len(names) > MAX_LISTED_ALTERNATIVES)
    return f"NaN in {', '.join(names[:MAX_LISTED_ALTERNATIVES])}{more}" if names else NO_NAN_TEXT


def _model_facts(box: Box) -> dict[str, str]:
    return {what: describe(box) for what, describe in MODEL_FACT_FN_BY_NAME.items()}
