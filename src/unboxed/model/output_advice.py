"""What to do where a method needs one row of class scores per example, and the model gives something else."""

from __future__ import annotations

from .outputs import OutputReader

FEATURE_CALL_TEMPLATE = "ub.synthesis.feature(box, {score})"
MINIMAL_ATTACK_CALL_TEMPLATE = "ub.adversarial.fmn(box, x, objective={objective})"


def class_scores_problem_text(
    reader: OutputReader, map_shape: tuple[int, ...], *, exclusive: bool, objective_call: str = ""
) -> str:
    """What is wrong with such outputs and the way out, to follow the method's name; "" where nothing is.

    `objective_call` does the same for an objective: it has {objective}, to be raised above zero, or {score} in it.
    """
    ways: list[str] = []
    if map_shape:
        problem = f"needs one row of class scores per example; the model gives a map {map_shape}"
        ways.append(f"open it with {_mean_output_code(reader, len(map_shape))}, the mean over positions (or pick one)")
        score, objective = "ub.logit(k)", "ub.logit(k) - ub.logit(c)"
        meaning = "class k is above class c on average"
    elif reader.outputs == "regression":
        problem = "needs classes, and a regression model has none"
        score, objective, meaning = "ub.logit(0)", "ub.logit(0) - 3.5", "output 0 is above 3.5"
    elif exclusive and reader.outputs == "multilabel":
        problem = "needs one class per example; the box's outputs are multilabel"
        ways.append('open one label k by itself: Box(..., output=lambda out: out[:, k], outputs="binary")')
        score, objective, meaning = "ub.logit(k)", "-ub.logit(k)", "label k is off"
    else:
        return ""
    if objective_call:
        success = f" ({meaning})" if "{objective}" in objective_call else ""
        ways.append(objective_call.format(objective=objective, score=score) + success)
    return f"{problem}: {', or '.join(ways)}" if ways else problem


def _mean_output_code(reader: OutputReader, n_positions: int) -> str:
    """`output=` of the mean over the positions, as it is written in Python."""
    key = "" if reader.pick is None or callable(reader.pick) else f"[{reader.pick!r}]"
    axes = tuple(axis for axis in range(1, n_positions + 2) if axis != reader.class_axis)
    return f"Box(..., output=lambda out: out{key}.mean({axes if len(axes) > 1 else axes[0]}))"
