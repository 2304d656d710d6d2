"""AutoAttack, the standard ensemble: APGD on the cross-entropy, APGD-T, FAB-T and Square, each on what is still robust.

Croce & Hein 2020, "Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse Parameter-free Attacks",
arXiv:2003.01690, section 5.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor

from ..box import Box
from ..cards import card
from ..checkpointing import CheckpointFile, tensor_digest
from ..engine.optimize.constraints import Ball, NormBall, eps_with_rounding_tolerance
from ..engine.stable_repr import box_checkpoint_settings, cast_outputs_for_comparison, checkpoint_repr
from ..inputs.pixels import Pixels
from ..objectives import Objective, dlr
from ..parameters import (
    AttackSteps,
    AttackTarget,
    BatchSize,
    CheckpointPath,
    CustomAttackObjective,
    Eps,
    InputBatch,
    Labels,
    LinfOrL2Norm,
    MaxQueries,
    RoundingBits,
    Seed,
)
from ..settings import check_settings
from ..validation import valid_seed
from .apgd import APGD_RESTART_SEED_STRIDE, run_apgd, targeted_objective, top_wrong_classes
from .attack_ball import resolve_attack_ball
from .attack_state import AttackState
from .fab import FAB as Fab
from .fab import FABConfig
from .quantization import highest_level_from_bits, quantize_images
from .result import Adversarial
from .square import RandomSearch, SearchProgress

N_TARGET_CLASSES_PER_ATTACK = 9
MAX_ROWS_BETWEEN_CHECKPOINTS = 1000  # largest number of rows between two writes of a checkpoint, and
MIN_ROWS_BETWEEN_CHECKPOINTS = 4  # smallest: single rows take several times as long each,
LARGE_MODEL_FLOPS_PER_EXAMPLE = 1e9  # except for models that take as many per example
SQUARE_QUERIES_BETWEEN_CHECKPOINTS = 250  # of Square, which takes thousands: largest number between two writes
FLOPS_BETWEEN_CHECKPOINTS = 2e11  # of the model between two writes: about half a minute on one core
ACCELERATOR_CHECKPOINT_FLOPS_FACTOR = 100  # factor of FLOPS_BETWEEN_CHECKPOINTS on an accelerator
GRADIENT_COST_IN_FORWARDS = 3  # of which a gradient costs as much
SQUARE_P_INIT = 0.8  # fraction of the image that Square's first squares cover
CHECKPOINTED_ATTACK_STATE_FIELDS = (
    "images",
    "distance",
    "queries",
    "success",
    "initially_misclassified",
    "initial_score",
    "_best_failure_score",
    "_full_batch",
)  # of an attempt


@dataclass(frozen=True, repr=False, eq=False)
class AutoAdversarial(Adversarial):
    """An `Adversarial` that also has the robust examples after each attack."""

    robust_after: Mapping[str, Tensor] = field(default_factory=dict)  # {attack: (N,) bool} not fooled yet


@card(
    name="AutoAttack",
    source="Croce & Hein 2020, arXiv:2003.01690, section 5",
    shows="An input within eps of this one that the model misclassifies, by four different attacks.",
    does_not_show="That there is none where all four fail, though other attacks have rarely found one.",
    example=lambda method, box, x, y: method(box, x, y, eps=0.1, steps=2, queries=3),
    runs=lambda s: 28 * s["steps"] + s["queries"],
    order=4,
    exempt={"interrupt": "it has stages, with a test of their own: tests/adversarial/test_auto_attack.py"},
)
def auto_attack(
    box: Box,
    x: InputBatch,
    y: Labels = None,
    *,
    eps: Eps = None,
    norm: LinfOrL2Norm = "linf",
    ball: Ball = None,
    target: AttackTarget = None,
    objective: CustomAttackObjective = None,
    steps: AttackSteps = 100,
    queries: MaxQueries = 5000,
    checkpoint: CheckpointPath = None,
    callback: Annotated[
        Callable[[str, int], None] | None, "Called after each attack: callback(name, number of robust examples)."
    ] = None,
    bits: RoundingBits = None,
    seed: Seed = 0,
    batch_size: BatchSize = "auto",
) -> AutoAdversarial:
    """Adversarial images within `eps` of x by the standard ensemble of four attacks.

    For a robust accuracy that others can compare with. Each attack runs on the examples that none before it fooled:
    "apgd-ce", "apgd-t" and "fab-t" (towards each of the 9 most probable wrong classes) and, for images, "square". It
    takes about a hundred times as long as `pgd`, mostly on robust examples: try `pgd` first.

    Args:
        box: The model.
        x: Inputs (N, ...) in the box's units: images (N, C, H, W) in [0, 1].
        y: Correct classes (N,), or one for all. None takes those that come with x, as in a Dataset; without any, give
            `target` or `objective`.
        eps: Largest distance from x. In pixel range, 8/255 is eight gray levels; of a table, in standard deviations of
            its columns (see `Features`). Give this or `ball`.
        norm: Norm in which the distance from x is measured.
        ball: Norm ball to stay in, in place of eps and norm.
        target: Class to become (N,), or one for all. None: any class but y.
        objective: What is raised above zero, instead of a wrong class. Not together with `target`.
        steps: Number of iterations. Of each of the three gradient attacks.
        queries: Largest number of forward passes per example. Of Square.
        checkpoint: File from which a call that was stopped goes on. It is written every half minute or so, and refused
            where model, images, labels or settings differ.
        callback: Called after each attack: callback(name, number of robust examples).
        bits: Bits per value to which images are rounded: 8 gives the levels of PNG files. Rounding would undo many
            attacks, so a search among the rounded images follows; `success` is then that of the rounded image.
        seed: Seed of all random draws: same seed, same result.
        batch_size: Examples per forward pass; "auto" takes as many as fit in memory.

    Returns:
        An `AutoAdversarial`: an `Adversarial` with `robust_after`, {attack: (N,) bool, True where an example is not
        fooled yet}.

    Raises:
        InputError: for settings out of their range, or without y, target and objective.
        OutputError: for a model without classes or without a gradient.
        ModelError: for a checkpoint of another model, other images or other settings.
        WriteError: where the checkpoint cannot be written.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> x, y = ub.data.digits("test").first(4)
        >>> result = ub.adversarial.auto_attack(box, x, y, eps=0.3, steps=5, queries=20)
        >>> list(result.robust_after)
        ['apgd-ce', 'apgd-t', 'fab-t', 'square']

    Source:
        Croce & Hein 2020, arXiv:2003.01690, section 5, the standard version: APGD-CE, APGD-T, FAB-T, Square. Models of
        fewer than four classes, for which the targeted DLR is not defined, get the difference of two logits in its
        place. With a target, the second and third attack aim at it alone; with an objective, there is no second.
    """
    check_settings(auto_attack, locals())
    ball = resolve_attack_ball(box, eps, norm, ball, takes_l1=False, takes_own=False)
    if bits is not None:
        highest_level_from_bits(box, bits)  # raises now, not after an hour
    config = _AutoAttackConfig(int(steps), int(queries), valid_seed(seed))
    state = AttackState(box, x, y, norm=ball, target=target, objective=objective, batch_size=batch_size)
    ensemble = _AutoAttack(state, ball, config)
    with state:
        ensemble.rows = state.find_rows_to_attack()
        if checkpoint is not None:
            ensemble.resume(_checkpoint_file(state, ball, config, Path(checkpoint)))
        ensemble.run_attack_stages(callback)
    quantize_images(state, bits, ball)
    result = state.to_result()
    return AutoAdversarial(
        **{field_info.name: getattr(result, field_info.name) for field_info in fields(result)},
        robust_after=ensemble.robust_after,
    )


@dataclass(frozen=True)
class _AutoAttackConfig:
    steps: int
    queries: int
    seed: int


RowsAttackFn = Callable[[Tensor], None]  # of some rows (n,)


class _AutoAttack:
    """The attacks in their order, chunk by chunk, with a checkpoint of their progress."""

    def __init__(self, state: AttackState, ball: NormBall, config: _AutoAttackConfig) -> None:
        self.state, self.ball, self.config = state, ball, config
        self.rows = torch.zeros(0, dtype=torch.long, device=state.x.device)  # (M,) those that are attacked
        self.checkpoint: CheckpointFile | None = None
        self.robust_after = dict[str, Tensor]()
        self.stage_part, self.next_row = 0, 0  # of the running stage: its part, and the next row
        self.top_classes: Tensor | None = None  # (N, T) classes
        self.search: SearchProgress | None = None  # of Square, in the running chunk
        self.chunk = self.rows[:0]  # the rows of that chunk

    # -- the stages --------------------------------------------------------------------------------------------------

    def run_attack_stages(self, callback: Callable[[str, int], None] | None) -> None:
        for name, parts in self._n_parts_by_stage().items():
            if name in self.robust_after:
                continue
            for part in range(self.stage_part, parts):
                self._run_stage_part(name, part)
            self.robust_after[name], self.stage_part = self._robust_mask(), 0
            self._save_checkpoint()
            if callback is not None:
                callback(name, int(self.robust_after[name].sum()))

    def _n_parts_by_stage(self) -> dict[str, int]:
        """The attacks that apply, and the number of parts of each."""
        goal, n_classes = self.state.goal, self.state.box.n_outputs
        parts = {"apgd-ce": 1}
        if goal.is_class_goal:
            parts["apgd-t"] = min(N_TARGET_CLASSES_PER_ATTACK, n_classes - 1) if goal.target_labels is None else 1
        parts["fab-t"] = 1
        if isinstance(self.state.box.inputs, Pixels):
            parts["square"] = 1
        return parts

    def _robust_mask(self) -> Tensor:
        return ~self.state.success

    def _run_stage_part(self, name: str, part: int) -> None:
        """One part of a stage, for the robust rows from next_row on."""
        attack, self.stage_part = self._make_stage_attack(name, part), part
        while len(chunk := self.chunk if self.search is not None else self._next_robust_rows(name)):
            attack(chunk)
            self.next_row = int(chunk[-1]) + 1
            self._save_checkpoint()
        self.stage_part, self.next_row = part + 1, 0

    def _next_robust_rows(self, name: str) -> Tensor:
        """The robust rows from next_row on that come next, (n,)."""
        remaining = self.rows[self._robust_mask()[self.rows] & (self.rows >= self.next_row)]
        return remaining if self.state.box.batch_dependent else remaining[: self._n_rows_between_checkpoints(name)]

    def _n_rows_between_checkpoints(self, name: str) -> int:
        """Rows between two writes, by their operations, never by the clock."""
        box, config = self.state.box, self.config
        forwards = {
            "square": config.queries,
            "fab-t": N_TARGET_CLASSES_PER_ATTACK * (GRADIENT_COST_IN_FORWARDS + 1) * config.steps,
        }
        flops_per_row = forwards.get(name, GRADIENT_COST_IN_FORWARDS * config.steps) * max(box.flops_per_example, 1)
        fewest = MIN_ROWS_BETWEEN_CHECKPOINTS if box.flops_per_example < LARGE_MODEL_FLOPS_PER_EXAMPLE else 1
        return min(
            MAX_ROWS_BETWEEN_CHECKPOINTS, max(fewest, int(self._flops_between_checkpoints() / max(flops_per_row, 1)))
        )

    def _flops_between_checkpoints(self) -> float:
        return FLOPS_BETWEEN_CHECKPOINTS * (
            1 if self.state.box.device.type == "cpu" else ACCELERATOR_CHECKPOINT_FLOPS_FACTOR
        )

    def _make_stage_attack(self, name: str, part: int) -> RowsAttackFn:
        state, ball, config = self.state, self.ball, self.config
        if name == "square":
            return self._run_square
        if name == "fab-t":
            return self._run_fab
        target_objective = None if name == "apgd-ce" else self._targeted_objective_of_part(part)
        seed = config.seed + APGD_RESTART_SEED_STRIDE * (part + (name == "apgd-t"))
        return lambda rows: run_apgd(state, ball, rows, target_objective, steps=config.steps, seed=seed)

    def _targeted_objective_of_part(self, part: int) -> Objective:
        """Towards the most probable wrong class number `part`, or the target."""
        goal, n_classes = self.state.goal, self.state.box.n_outputs
        if goal.target_labels is not None:
            return -dlr(goal.target_labels) if n_classes >= 3 else goal.criterion
        if self.top_classes is None:
            self.top_classes = top_wrong_classes(
                self.state, self.rows[self._robust_mask()[self.rows]], N_TARGET_CLASSES_PER_ATTACK
            )
        return targeted_objective(self.state, self.top_classes[:, part])

    def _run_fab(self, rows: Tensor) -> None:
        """FAB-T, which searches for the nearest image: those beyond eps are no success here."""
        state, config, eps = self.state, self.config, self.ball.eps
        previous_images = state.images[rows]
        fab_config = FABConfig(
            type(self.ball).__name__.lower(), config.steps, alpha_max=0.1, eta=1.05, beta=0.9, target_distance=eps
        )
        try:
            for batch_rows in state.split_rows_into_batches(rows):
                Fab(state, fab_config, eps, config.seed).run(batch_rows, N_TARGET_CLASSES_PER_ATTACK, 1)
        finally:  # Ctrl-C too
            is_too_far = state.distance[rows] > eps_with_rounding_tolerance(eps)
            failed_rows = rows[is_too_far]
            state.images[failed_rows], state.distance[failed_rows], state.success[failed_rows] = (
                previous_images[is_too_far],
                math.inf,
                False,
            )

    def _run_square(self, rows: Tensor) -> None:
        """Square on a chunk, from where a stopped run was; one row may take a large model an hour."""
        search = RandomSearch.for_ball(self.state, self.ball, self.config.seed)
        flops_per_query = max(self.state.box.flops_per_example * len(rows), 1)
        save_every = max(
            1, min(SQUARE_QUERIES_BETWEEN_CHECKPOINTS, int(self._flops_between_checkpoints() / flops_per_query))
        )
        self.chunk, self.search = rows, self.search or search.initial_progress(rows)
        search.run(self.search, self.config.queries, SQUARE_P_INIT, self._save_checkpoint, save_every)
        self.search = None

    # -- the checkpoint ----------------------------------------------------------------------------------------------

    def resume(self, checkpoint: CheckpointFile) -> None:
        self.checkpoint, saved = checkpoint, checkpoint.read()
        if saved is not None:
            self._restore_progress(saved)

    def _save_checkpoint(self) -> None:
        if self.checkpoint is None:
            return
        progress = {
            name: getattr(self, name)
            for name in ("rows", "stage_part", "next_row", "top_classes", "robust_after", "chunk")
        }
        progress["search"] = None if self.search is None else vars(self.search)
        self.checkpoint.write(
            {**progress, "found": {name: getattr(self.state, name) for name in CHECKPOINTED_ATTACK_STATE_FIELDS}}
        )

    def _restore_progress(self, saved: Mapping[str, Any]) -> None:
        device = self.state.x.device
        for name, tensor in saved["found"].items():
            setattr(self.state, name, None if tensor is None else tensor.to(device))
        self.stage_part, self.next_row, self.rows = saved["stage_part"], saved["next_row"], saved["rows"].to(device)
        if (search := saved.get("search")) is not None:
            tensors: dict[str, Any] = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in search.items()}
            self.search, self.chunk = SearchProgress(**tensors), saved["chunk"].to(device)
        self.top_classes = None if saved["top_classes"] is None else saved["top_classes"].to(device)
        self.robust_after = {name: is_robust.to(device) for name, is_robust in saved["robust_after"].items()}


def _checkpoint_file(state: AttackState, ball: NormBall, config: _AutoAttackConfig, path: Path) -> CheckpointFile:
    """The checkpoint of this call: of its model, images, goal, ball and settings. Raises InputError."""
    goal = state.goal
    settings = box_checkpoint_settings(state.box) | {
        "examples": tensor_digest(state.x),
        "labels": tensor_digest(*(k for k in (goal.labels, goal.target_labels) if k is not None)),
        "goal": goal.criterion.name if goal.is_class_goal else _objective_checkpoint_repr(goal.criterion),
        "ball": (type(ball).__name__, ball.eps),
        "steps": config.steps, "queries": config.queries, "seed": config.seed,
        "answers": cast_outputs_for_comparison(state.box, state.initial_score),
    }  # fmt: skip
    return CheckpointFile(path, "AutoAttack", settings)


def _objective_checkpoint_repr(objective: Objective) -> str:
    return checkpoint_repr(f"objective={objective.name}", objective, "leave it out")
