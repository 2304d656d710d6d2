"""Loading weights from a file into a model, by their names or by the model's own loading."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from ..errors import ModelError, warn
from ..weight_files import ADAPTER_REFUSED_TEXT, TensorDict, flatten_checkpoint, listed_names_text, read_weights
from .own_loading import weight_sets_by_model_loading_code
from .weight_sets import (
    WeightSet,
    choose_weight_set,
    closest_weight_match,
    matching_weight_sets,
    missing_tensor_names,
    state_tensors,
    tensors_of_part,
    tied_names_with_different_values,
    unused_tensor_names,
    weight_sets_from_unnamed_averages,
    wrong_shape_or_kind_sentences,
)

ADAPTER_NAME_PARTS = ("lora_", "lokr_", "hada_w", "ia3_", "adapter_")  # in the names of adapters' weights
PARAMETRIZATION_NAME_PARTS = (".parametrizations.", "weight_orig", "weight_g", "weight_mask")
RESUME_FILE_NAME_PATTERN = re.compile(r"state\.model\.\d+$")  # of ub.training.fit(checkpoint=)
RESUME_FILE_TEXT = (
    "is the file from which an interrupted training goes on (checkpoint= of ub.training.fit), not of weights: run the "
    "training to its end, then save them by torch.save(model.state_dict(), path)"
)


def weights(model: nn.Module, source: str | Path | Mapping[str, Any]) -> None:
    """Load weights from a file or a state dict into a model, in place.

    Names that a wrapper has prefixed (DataParallel, FSDP, torch.compile, Lightning) are recognized. Where names don't
    fit, the model's own loading is asked: `load_state_dict` with its hooks, `from_pretrained` of transformers. What a
    file holds besides (a loss's weights, a counter) is left out with a warning. Pickled objects are refused: nothing in
    a file is ever executed.

    Args:
        model: The module that the weights belong to.
        source: A safetensors file, a checkpoint of `torch.save`, the folder or index of shards, or a state dict. Of
            several sets of weights in a file, "file.pt:model_ema" takes the one under that key or prefix; averaged
            weights are taken before raw ones, with a warning.

    Raises:
        ModelError: with the names that do not fit; the model is then as it was.

    Example:
        >>> from unboxed import loading, zoo
        >>> trained, _ = zoo.load("digits-cnn")
        >>> fresh, _ = zoo.load("digits-cnn", weights=None)
        >>> loading.weights(fresh, trained.state_dict())
    """
    path, selector = (Path("the state dict"), "") if isinstance(source, Mapping) else _split_path_and_selector(source)
    flat = flatten_checkpoint(source if isinstance(source, Mapping) else read_weights(path), path)
    part = tensors_of_part(flat, selector)
    if not part:
        parts = listed_names_text(dict.fromkeys(name.partition(".")[0] for name in flat))
        raise ModelError(f"{path} has no weights under {selector!r}; it has: {parts}")
    state = state_tensors(model)
    sets = _weight_sets_by_name(model, flat, part, state)
    if not sets:
        sets, missing = weight_sets_by_model_loading_code(model, part, state)
        if not sets:
            raise ModelError(_mismatch_text(path, model, part, state, missing))
    taken = choose_weight_set(sets, str(path), selector)
    _warn_of_unused_tensors(path, model, taken, part, sets)
    _check_tied_weights_equal(path, model, tied_names_with_different_values(taken.tensors, state))
    nn.Module.load_state_dict(model, model.state_dict() | taken.tensors)  # its own may take old names alone


def _weight_sets_by_name(model: nn.Module, flat: TensorDict, part: TensorDict, state: TensorDict) -> list[WeightSet]:
    """The sets in a part of a file that fit by their names; of averages without names, where others are beside them."""
    named = matching_weight_sets(part, state)
    base = next(iter(named or matching_weight_sets(flat, state)), None)
    parameters = [name for name, _ in model.named_parameters()]
    return named if base is None else named + weight_sets_from_unnamed_averages(part, state, parameters, base.tensors)


def _split_path_and_selector(source: str | Path) -> tuple[Path, str]:
    """The path and what follows its last colon, if the path without it is there."""
    head, _, selector = str(source).rpartition(":")
    is_selected = bool(head) and not Path(source).exists() and Path(head).exists()
    return (Path(head), selector) if is_selected else (Path(source), "")


def _warn_of_unused_tensors(
    path: Path, model: nn.Module, taken: WeightSet, part: TensorDict, sets: Iterable[WeightSet]
) -> None:
    """Warn of what is left out. Raises ModelError where the weights are those of a larger model."""
    said = {real for s in sets for real in s.file_names}  # `choose_weight_set` has named the other sets
    larger, beside = unused_tensor_names(
        taken, {name: h for name, h in part.items() if name not in said or name in taken.file_names}
    )
    if larger:
        problem = f"{len(larger)} unexpected in the file: {listed_names_text(larger)}"
        raise ModelError(_weights_do_not_fit_text(path, model, [problem]))
    if beside:
        warn(f"{path}: left out, for {type(model).__name__} has no such weights: {listed_names_text(beside)}")


def _check_tied_weights_equal(path: Path, model: nn.Module, pairs: Sequence[tuple[str, str]]) -> None:
    """Raise ModelError where the model has one tensor and the file two: either would be another model's."""
    if pairs:
        names = listed_names_text(f"{first} and {second}" for first, second in pairs)
        problem = f"{names} are one tensor in the model (tied), and have different values in the file"
        advice = "untie them in the model, or save the file from the tied model"
        raise ModelError(f"{path} doesn't fit {type(model).__name__}: {problem}; the model is as it was: {advice}")


def _mismatch_text(
    path: Path, model: nn.Module, part: TensorDict, state: TensorDict, missing_after_conversion: Sequence[str]
) -> str:
    """What does not fit, by names; or what the model's own loading lacks, where that is less."""
    fitted, unexpected = closest_weight_match(part, state)
    if unexpected and all(any(word in name for word in ADAPTER_NAME_PARTS) for name in part):
        return f"{path} {ADAPTER_REFUSED_TEXT}"
    if unexpected and any(RESUME_FILE_NAME_PATTERN.match(name) for name in part):
        return f"{path} {RESUME_FILE_TEXT}"
    missing = missing_tensor_names(fitted, state)
    if len(missing_after_conversion) < len(missing):
        missing, unexpected = list(missing_after_conversion), []
    groups = {
        "missing in the file": missing,
        "unexpected in the file": unexpected,
        "of another shape or kind": wrong_shape_or_kind_sentences(fitted, state),
    }
    problems = [f"{len(names)} {problem}: {listed_names_text(names)}" for problem, names in groups.items() if names]
    return _weights_do_not_fit_text(path, model, problems) + _parametrization_hint(unexpected)


def _weights_do_not_fit_text(path: Path, model: nn.Module, problems: list[str]) -> str:
    advice = "the model is as it was. Give the model that these weights were saved from"
    return f"{path} doesn't fit {type(model).__name__}: {'; '.join(problems)}; {advice}"


def _parametrization_hint(unexpected: list[str]) -> str:
    if not any(part in f".{name}" for name in unexpected for part in PARAMETRIZATION_NAME_PARTS):
        return ""
    return (
        ", with its parametrizations (weight norm, spectral norm, pruning): apply them to the model first, or save the "
        "weights after torch.nn.utils.parametrize.remove_parametrizations"
    )
