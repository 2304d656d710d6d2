"""How many examples are attacked, how far, and in how many steps: fewer where each step costs much."""

from __future__ import annotations

from functools import partial

from ..box import Box
from ..robustness.evaluate import AttackFn, default_attack_cards
from ..robustness.evaluate_outputs import DEFAULT_OUTPUT_ATTACKS
from .blocks import Block, Caution
from .context import ReportContext

MAX_ATTACKED_EXAMPLES, MIN_ATTACKED_EXAMPLES = 100, 8
GRAYSCALE_EPS_VALUES = (0.1, 0.2, 0.3)  # of line drawings and tables; of photos as Madry et al. 2018
COLOR_EPS_VALUES = (1 / 255, 2 / 255, 4 / 255, 8 / 255)
MAX_ATTACK_FLOPS = 1.5e11  # of all attacks on one model
MAX_DEEPFOOL_COST = 1e13  # of all searches for the smallest change on one model; FLOPs and memory, as FLOPs
MIN_DEEPFOOL_STEPS, MAX_DEEPFOOL_STEPS = 5, 50
FORWARDS_PER_DEEPFOOL_STEP = 21  # one, and a backward pass of twice its cost for each of ten boundaries
MAX_ATTACK_STEPS, MAX_MODEL_RUNS_PER_ATTACK = 20, 200  # of an attack; forward and backward passes


def default_attacks_in_few_steps() -> dict[str, AttackFn]:
    """Those of an evaluation, without those that take too many queries."""
    attacks: dict[str, AttackFn] = {}
    for card in default_attack_cards():
        has_steps = "steps" in card.settings
        settings = {**(card.default_attack or {}), **({"steps": MAX_ATTACK_STEPS} if has_steps else {})}
        if card.n_model_runs(**settings) <= MAX_MODEL_RUNS_PER_ATTACK:
            attacks[f"{card.name}-{MAX_ATTACK_STEPS}" if has_steps else card.name] = partial(card.method, **settings)
    return attacks


def default_output_attacks_in_few_steps() -> dict[str, AttackFn]:
    """Those of `evaluate_outputs`, of numbers, several labels and label maps."""
    steps = MAX_ATTACK_STEPS
    return {f"{name}-{steps}": partial(attack, steps=steps) for name, attack in DEFAULT_OUTPUT_ATTACKS.items()}


def eps_values(box: Box) -> tuple[float, ...]:
    return GRAYSCALE_EPS_VALUES if is_single_channel_or_flat(box) else COLOR_EPS_VALUES


def is_single_channel_or_flat(box: Box) -> bool:
    """Whether the inputs are drawings of one channel, whose budgets are larger."""
    return box.inputs.shape[0] == 1 or len(box.inputs.shape) == 1


def n_attacked_examples(context: ReportContext) -> int:
    return max(MIN_ATTACKED_EXAMPLES, min(MAX_ATTACKED_EXAMPLES, affordable_attacked_examples(context)))


def affordable_attacked_examples(context: ReportContext) -> int:
    """The number of examples of which all attacks are within MAX_ATTACK_FLOPS."""
    return int(MAX_ATTACK_FLOPS / (3 * MAX_MODEL_RUNS_PER_ATTACK * max(context.box.flops_per_example, 1)))


def affordable_deepfool_steps(context: ReportContext, n_examples: int) -> int:
    """The steps of DeepFool on so many examples within MAX_DEEPFOOL_COST: a model that is not fooled takes all."""
    step_cost = FORWARDS_PER_DEEPFOOL_STEP * n_examples * context.forward_flops(1) * context.memory_cost_factor
    return max(MIN_DEEPFOOL_STEPS, min(MAX_DEEPFOOL_STEPS, int(MAX_DEEPFOOL_COST / step_cost)))


def fewer_steps_cautions(steps: int) -> list[Block]:
    """What DeepFool may have missed on a large model, and the command that runs it in full."""
    if steps == MAX_DEEPFOOL_STEPS:
        return []
    command = f"unboxed run deepfool --norm linf --steps {MAX_DEEPFOOL_STEPS}"
    return [
        Caution(f"DeepFool took at most {steps} steps, to keep the report short; `{command}` takes the usual ones.")
    ]
