"""Robustness of a model: clean and robust accuracy over eps, by class and by attack, and signs of masked gradients."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from inspect import Parameter, signature
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ..adversarial.attack_ball import check_eps_within_data_range
from ..adversarial.deepfool import deepfool
from ..adversarial.predictions import nan_checked_logits_of_classifier
from ..adversarial.result import Adversarial
from ..argument_names import naming_arguments
from ..box import Box
from ..cards import Card, card_of, cards
from ..engine.optimize.constraints import format_eps, resolve_ball
from ..engine.read.examples import labeled_examples
from ..errors import InputError, NaNError
from ..model.batching import BatchSize
from ..model.nan_checks import reindex_nan_error
from ..objectives import margin
from ..parameters import Norm, Seed
from ..settings import check_settings
from ..spellings import taking_other_spellings
from ..validation import valid_seed
from .attack_compatibility import (
    check_attack_norm,
    check_attacks_accept_inputs,
    check_attacks_accept_norm,
    compatible_attacks,
)
from .evaluation_checkpoint import EvaluationCheckpoint, attack_checkpoint_repr, evaluation_settings
from .gradient_masking import MaskingFinding, check_gradient_masking
from .result import Robustness

AttackFn = Callable[..., Adversarial]  # attack(box, x, y, eps=..., norm=...), and seed, batch_size if it has them
MAX_EXAMPLES_PER_ATTACK_TASK = 500  # examples per task; a checkpoint is written after each
MINIMAL_ATTACK_TASK_NAME = "minimal attack"
OBJECTIVE_ATTACK_CALL_TEMPLATE = (
    "evaluate it by ub.robustness.evaluate_outputs(box, data, eps=[0.03]), or "
    "attack it by ub.adversarial.pgd(box, x, eps=0.03, objective={objective})"
)
CHECKPOINTED_EVALUATION_FIELDS = ("is_robust", "min_distance", "mean_queries")


def default_attack_cards() -> list[Card]:
    """The cards of the attacks that an evaluation runs where none is named, the cheapest first."""
    chosen = [card for card in cards() if card.default_attack is not None]
    return sorted(chosen, key=lambda card: card.n_model_runs(**(card.default_attack or {})))


def default_attacks() -> dict[str, AttackFn]:
    """The attacks that an evaluation runs where none is named, the cheapest first.

    Returns:
        {name: attack}, with the settings of its card's `default_attack`. Attacks of your own with such a card are
        among them.

    Example:
        >>> import unboxed as ub
        >>> list(ub.robustness.default_attacks())
        ['fgsm', 'pgd', 'square']
    """
    return {
        card.key: partial(card.method, **card.default_attack) if card.default_attack else card.method
        for card in default_attack_cards()
    }


@taking_other_spellings
@naming_arguments
def evaluate(
    box: Box,
    data: Any,
    attacks: Mapping[str, AttackFn] | None = None,
    *,
    eps: Sequence[float],
    norm: Norm = "linf",
    max_examples: int | None = None,
    minimal_attack: AttackFn | None = deepfool,
    check_masking: bool = True,
    seed: Seed = 0,
    batch_size: BatchSize = "auto",
    checkpoint: str | os.PathLike[str] | None = None,
    quiet: bool = True,
) -> Robustness:
    """Clean and robust accuracy under attacks, over eps, with checks whether the figures can be believed.

    The question to ask of a model before an attack by hand. Robust accuracy is an upper bound: another attack may find
    more, so give `ub.adversarial.auto_attack` for figures to publish. What an attack fooled at one eps is not attacked
    again at a larger one, since that image is inside the larger ball. Ctrl-C keeps what was found until then.

    Args:
        box: The model.
        data: Examples: a Dataset, a DataLoader, an iterable, or tensors. With labels: (x, y) tensors, or items (input,
            class).
        attacks: {name: attack}, each called as attack(box, x, y, eps=..., norm=...), with seed and batch_size if it
            takes them. None: those of `default_attacks` that take the inputs and the norm.
        eps: Largest distances from x. In pixel range; of a table, in standard deviations of its columns (see
            `Features`).
        norm: Norm in which the distance from x is measured.
        max_examples: Use only the first of the examples; None uses all.
        minimal_attack: Attack that searches for the smallest change, for `min_distance`; what it finds within an eps
            lowers robust accuracy there. None: only `attacks` count.
        check_masking: Look for signs of masked gradients, which make robust accuracy too high. That takes about 310
            gradients and 500 forward passes of each of the first 200 correct examples; False saves them.
        seed: Seed of all random draws: same seed, same result.
        batch_size: Examples per forward pass; "auto" takes as many as fit in memory.
        checkpoint: File from which a call that was stopped goes on. An attack of your own is compared by its code and
            all that it refers to.
        quiet: No progress bar.

    Returns:
        A `Robustness`: `clean_accuracy`, `robust_accuracy(eps, attack)`, `min_distance` (N,), `masking_findings`.

    Raises:
        InputError: for settings out of their range, or attacks that do not take the norm or the inputs.
        DataError: for data without labels or without examples.
        OutputError: for a model without classes, or one that outputs NaN.
        ModelError: for a checkpoint of other settings, attacks, weights, examples or labels.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> data = ub.data.digits("test").first(20)
        >>> attacks = {"fgsm": ub.adversarial.fgsm}
        >>> result = ub.robustness.evaluate(box, data, attacks, eps=[0.1], check_masking=False)
        >>> result.robust_accuracy().n
        20

    Source:
        Carlini et al. 2019, arXiv:1902.06705 (how to evaluate), and Athalye et al. 2018, arXiv:1802.00420, section 3.1
        (signs of masked gradients).
    """
    check_settings(evaluate, locals())
    seed = valid_seed(seed)
    require_evaluable(box)
    x, y = labeled_examples(box, data, max_examples)
    if attacks is not None and not isinstance(attacks, Mapping):
        raise InputError(f'attacks must be a dict, such as {{"pgd": ub.adversarial.pgd}}; got {type(attacks).__name__}')
    chosen_attacks = compatible_attacks(default_attacks(), box, norm) if attacks is None else dict(attacks)
    eps_values = tuple(
        sorted(
            {
                check_eps_within_data_range(box, resolve_ball(eps_value, norm, None)).eps
                for eps_value in check_eps_values(eps)
            }
        )
    )
    if not chosen_attacks:
        raise InputError('give at least one attack, such as {"pgd": ub.adversarial.pgd}')
    check_attacks_accept_inputs(chosen_attacks, box)
    check_attacks_accept_norm({**chosen_attacks, MINIMAL_ATTACK_TASK_NAME: minimal_attack}, norm)
    evaluation = _EvaluationRun(
        box,
        x,
        y,
        norm,
        eps_values,
        chosen_attacks,
        minimal_attack,
        {"norm": norm, "seed": seed, "batch_size": batch_size},
    )
    evaluation.resume(EvaluationCheckpoint(checkpoint, "robustness", partial(evaluation.settings, seed)))
    evaluation.run_all(quiet)
    if check_masking and not evaluation.interrupted:
        evaluation.record_gradient_masking(seed, batch_size)
    return evaluation.to_result()


def require_evaluable(box: Box) -> None:
    """Raise OutputError, with the attack that does it, unless the model gives one class per example."""
    box.require_class_scores("an evaluation", exclusive=True, objective_call=OBJECTIVE_ATTACK_CALL_TEMPLATE)


def check_eps_values(eps: Any) -> list[float]:
    """The radii, each one number. Raises InputError where there is none, or an eps for each of several inputs."""
    if isinstance(eps, Mapping) or (
        isinstance(eps, (list, tuple)) and any(isinstance(value, (Mapping, list, tuple)) for value in eps)
    ):
        raise InputError(
            f"an evaluation takes one number per eps, for all inputs alike; got eps={eps!r}. For an eps of each input "
            "attack once per choice: ub.adversarial.pgd(box, x, y, eps={'image': 0.1, 'table': 0.2}).success, or apgd"
        )
    values: list[Any] = eps.tolist() if hasattr(eps, "tolist") else eps  # a tensor, an array, a NumPy number
    values = list(values) if isinstance(values, Iterable) and not isinstance(values, str) else [values]
    if eps is None or not values:
        raise InputError("give at least one eps, such as eps=[0.1, 0.3]")
    return values


class _EvaluationRun:
    """A running evaluation: one attack, one eps and a part of the examples at a time."""

    def __init__(
        self, box: Box, x: Tensor, y: Tensor, norm: Norm, eps: tuple[float, ...], attacks: dict[str, AttackFn],
        minimal_attack: AttackFn | None, attack_kwargs: dict[str, Any],
    ) -> None:  # fmt: skip
        self.box, self.x, self.y, self.norm, self.eps = box, x, y, norm, eps
        self.attacks, self.minimal_attack, self.attack_kwargs = attacks, minimal_attack, attack_kwargs
        logits = nan_checked_logits_of_classifier(box, x, attack_kwargs["batch_size"])
        self.is_correct, self.margin = logits.argmax(1) == y, margin(y)({"logits": logits})
        self.is_robust = self.is_correct.expand(len(attacks), len(eps), len(x)).clone()  # (A, E, N)
        self.min_distance = torch.where(self.is_correct, torch.inf, 0.0).to(x.dtype)
        self.mean_queries = x.new_zeros(len(attacks)).cpu()
        self.masking_findings: tuple[MaskingFinding, ...] = ()
        self.interrupted, self.checkpoint = False, EvaluationCheckpoint(None, "", dict)

    def run_all(self, quiet: bool) -> None:
        tasks = self._list_attack_tasks()
        with tqdm(total=len(tasks), desc="attacking", disable=quiet, file=sys.stderr, leave=False) as bar:
            bar.update(self.checkpoint.n_finished)
            for name, eps_index, rows in tasks[self.checkpoint.n_finished :]:
                bar.set_description(name if eps_index is None else f"{name}, eps {format_eps(self.eps[eps_index])}")
                try:
                    self._run_task(name, eps_index, rows)
                except KeyboardInterrupt:
                    self.interrupted = True
                if self.interrupted:
                    return
                bar.update()

    def _list_attack_tasks(self) -> list[tuple[str, int | None, slice]]:
        size = len(self.x) if self.box.batch_dependent else MAX_EXAMPLES_PER_ATTACK_TASK
        row_slices = [slice(i, i + size) for i in range(0, len(self.x), size)]
        tasks = [
            (name, eps_index, rows)
            for name in self.attacks
            for eps_index in range(len(self.eps))
            for rows in row_slices
        ]
        return [
            *tasks,
            *((MINIMAL_ATTACK_TASK_NAME, None, part) for part in row_slices if self.minimal_attack is not None),
        ]

    def _run_task(self, name: str, eps_index: int | None, rows: slice) -> None:
        """Attack one part of the examples. What an interrupted attack found is kept."""
        attack = self.minimal_attack if eps_index is None else self.attacks[name]
        attack_index = list(self.attacks).index(name) if eps_index is not None else 0
        is_robust = self.is_correct if eps_index is None else self.is_robust[attack_index, eps_index]
        active = is_robust[rows].nonzero()[:, 0] + rows.start
        if self.box.batch_dependent and len(active):  # a batch-dependent model gets all rows
            active = torch.arange(len(self.x), device=self.x.device)
        if len(active) and attack is not None:
            eps_value = None if eps_index is None else self.eps[eps_index]
            kwargs = supported_kwargs(attack, self.attack_kwargs) | self.checkpoint.attack_kwargs(attack)
            try:
                result = attack(
                    self.box, self.box.restore_structure(self.x[active]), self.y[active], eps=eps_value, **kwargs
                )
            except NaNError as error:
                raise reindex_nan_error(error, active) from None
            check_attack_norm(name, result.norm, self.norm)
            fooled = active[result.success]
            self.min_distance[fooled] = self.min_distance[fooled].minimum(
                result.distance[result.success].to(self.min_distance.dtype)
            )
            if eps_index is not None:
                self.is_robust[attack_index, eps_index:, fooled] = False
                self.mean_queries[attack_index] += result.queries.sum().cpu() / len(self.x)
            self.interrupted |= result.interrupted
        if not self.interrupted:
            self.checkpoint.finish_task({name: getattr(self, name) for name in CHECKPOINTED_EVALUATION_FIELDS})

    def record_gradient_masking(self, seed: int, batch_size: BatchSize) -> None:
        try:
            self.masking_findings = check_gradient_masking(
                self.box, self.x, self.y, self.is_correct, self.eps[-1], self.norm, seed=seed, batch_size=batch_size
            )
        except KeyboardInterrupt:
            self.interrupted = True

    # -- the checkpoint --------------------------------------------------------------------------------------------

    def settings(self, seed: int) -> dict[str, Any]:
        shared = evaluation_settings(self.box, self.x, self.y, self.margin, self.eps, self.norm, seed, self.attacks)
        return shared | {"minimal": attack_checkpoint_repr("minimal", self.minimal_attack)}

    def resume(self, checkpoint: EvaluationCheckpoint) -> None:
        self.checkpoint, saved_state = checkpoint, checkpoint.read()
        if saved_state is not None:
            for name in CHECKPOINTED_EVALUATION_FIELDS:
                setattr(self, name, saved_state[name].to(getattr(self, name).device))

    def to_result(self) -> Robustness:
        return Robustness(
            self.norm,
            self.eps,
            tuple(self.attacks),
            self.box.classes,
            self.y,
            self.is_correct,
            self.is_robust,
            self.min_distance,
            self.mean_queries,
            self.masking_findings,
            self.interrupted,
            _attack_name(self.minimal_attack),
        )


def _attack_name(attack: AttackFn | None) -> str:
    """The name by which an attack is called; "" for none."""
    card = card_of(attack)
    return card.key if card is not None else "" if attack is None else MINIMAL_ATTACK_TASK_NAME


def supported_kwargs(attack: AttackFn, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the settings that an attack takes: one without random draws has no seed."""
    parameters = signature(attack).parameters
    takes_any_keyword = any(parameter.kind is Parameter.VAR_KEYWORD for parameter in parameters.values())
    return {name: value for name, value in kwargs.items() if takes_any_keyword or name in parameters}
