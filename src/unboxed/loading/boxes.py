"""A box from specs: the model, its weights, its inputs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from ..argument_names import naming_arguments
from ..box import Box
from ..errors import InputError, ModelError, warn
from ..inputs.base import Inputs
from ..inputs.preprocessing import Preprocessing, image_shape_in_config, inputs_in_timm_config
from ..inputs.text_models import takes_token_ids
from ..model.nan_checks import names_of_infinite_parameters, names_of_nan_weights
from ..model.outputs import OutputKind
from ..weight_files import listed_names_text
from .checkpoints import weights as put
from .huggingface import HF_CONFIG_FILE_NAME, HF_PROCESSOR_FILE_NAMES
from .models import is_generator, model_with_options

MAX_NAMED_WEIGHTS = 3  # in a warning
COMMON_NORMALIZATIONS_TEXT = (
    "They are in that file of the model's origin; most are 0.5 and 0.5, or ImageNet's (0.485, 0.456, 0.406) and "
    "(0.229, 0.224, 0.225)"
)


@naming_arguments
def load(
    spec: str,
    weights: str | Path | None = None,
    *,
    inputs: Inputs | Preprocessing | None = None,
    classes: Sequence[str] | None = None,
    outputs: OutputKind | None = None,
    output: object = None,
    device: str | torch.device | None = None,
    seed: int = 0,
) -> Box:
    """Open a model that is named by a text, with its weights from a file if given.

    The Python side of `unboxed report --model ... --weights ...`; for a module that you hold already use `ub.Box`.

    Args:
        spec: "zoo:NAME", "package.module:factory", "path/to/file.py:factory", a `torch.export` file (.pt2), or a folder
            that `save_pretrained` of transformers wrote; nothing is fetched, and no code in it is run.
        weights: A safetensors file, a checkpoint, or a folder of shards; nothing in it is ever executed. Of several
            sets in a file, "file.pt:model_ema" takes one. None takes the model as it is made.
        inputs: What its inputs are: `ub.Pixels((3, 224, 224), mean, std)`, an image processor, a transform of
            torchvision or a timm config. None where the factory returns them, a folder has a processor, or the model
            has its config (timm's `pretrained_cfg`).
        classes: Class names, in the order of the outputs, or the path of a file of them. None takes those that the
            factory returns, or of a Hugging Face model (`config.id2label`), else numbers.
        outputs: "logits", "logprobs", "probs", "binary", "multilabel" or "regression". None infers it.
        output: Which tensor of a structured output is meant, as for `Box`: a key, an index or a function of it.
        device: Where the model runs, such as "cuda". None leaves it where it was made.
        seed: Seed of what the factory draws.

    Returns:
        The opened model.

    Raises:
        ModelError: for a wrong spec, weights that do not fit, and inputs that are not known.
        InputError: for a device that is not there.

    Example:
        >>> import unboxed as ub
        >>> ub.load("zoo:digits-cnn").n_outputs
        10
    """
    module, factory_inputs, options = model_with_options(spec, trained=weights is None, seed=seed)
    if weights is not None:
        put(module, weights)
    _warn_of_nonfinite_weights(module)
    inputs = inputs or factory_inputs or inputs_in_timm_config(module)
    if inputs is None:
        raise ModelError(_missing_inputs_text(spec, module))
    if device is not None:
        module = _to_device(module, device)
    if outputs is None and is_generator(spec):  # its values in [0, 1] are no probabilities
        outputs = "regression"
    given = {"classes": classes, "outputs": outputs, "output": output}
    return Box(module, inputs, **{**options, **{name: value for name, value in given.items() if value is not None}})


def _to_device(model: nn.Module, device: str | torch.device) -> nn.Module:
    try:
        return model.to(device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch built without it, or no such device
        reason = str(error).strip().partition("\n")[0]
        raise InputError(f"the model can't run on device={str(device)!r}: {reason}") from error


def _warn_of_nonfinite_weights(model: nn.Module) -> None:
    """Say which weights hold NaN or infinite values: what such a model answers means nothing."""
    for what, names in (("NaN", names_of_nan_weights(model)), ("infinite", names_of_infinite_parameters(model))):
        if names:
            warn(
                f"the model's weights hold {what} values in {listed_names_text(names, MAX_NAMED_WEIGHTS)}: its answers "
                "are then NaN or mean nothing. Load a checkpoint from before the training diverged"
            )


def _missing_inputs_text(spec: str, model: nn.Module) -> str:
    if takes_token_ids(model):
        return f"{spec} takes texts and has no tokenizer that can be loaded: pass inputs=ub.Tokens(tokenizer)"
    shape = ",".join(map(str, image_shape_in_config(model) or (3, 224, 224)))
    python_hint = f"inputs=ub.Pixels(({shape.replace(',', ', ')}), mean=..., std=...)"
    command_hint = f"on the command line --shape {shape} --mean ... --std ..."
    if (Path(spec) / HF_CONFIG_FILE_NAME).is_file():
        missing = _missing_image_processor_text(model)
        return f"{spec} {missing}: pass {python_hint}, {command_hint}. {COMMON_NORMALIZATIONS_TEXT}"
    return (
        f"{spec} doesn't say what its inputs are: pass {python_hint}, "
        f"{command_hint} for images; for a table let the factory return (model, ub.Features(names)), with the names of "
        f"{_column_count_text(model)}, such as ['age', 'height']"
    )


def _column_count_text(model: nn.Module) -> str:
    """The columns that a model of a table takes, as its first layer says."""
    first = next((m for m in model.modules() if next(m.parameters(recurse=False), None) is not None), None)
    return f"its {first.in_features} columns" if isinstance(first, nn.Linear) else "its columns"


def _missing_image_processor_text(model: nn.Module) -> str:
    """What the folder of a model does not say, and where the suggested size is from."""
    known = image_shape_in_config(model)
    size = f"its config has images of {known}" if known else "its config has no image size, (3, 224, 224) is a guess"
    return f"has no {HF_PROCESSOR_FILE_NAMES[0]} that can be taken over, so mean and std are unknown; {size}"
