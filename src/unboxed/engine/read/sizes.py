"""Images of other sizes than the box's: convolutional models accept them, as far as the forward pass has to run."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...box import Box
from ...errors import InputError, LayerError
from ...inputs.examples import to_batch
from ...inputs.multi import MultiInput
from ...inputs.pixels import Pixels, PixelsOfAnySize
from ...inputs.tokens import Tokens
from ...objectives import Objective
from ..column_units import ScaledInputs

LOG = logging.getLogger("unboxed")
Size = tuple[int, int]  # (H, W)
ANY_SIZE_CARD_EXEMPTION = {
    "another size": "images may have any size that the model takes as far as the layers asked for"
}
"""What the card of such a method says."""


def require_images(box: Box, caller: str) -> Pixels:
    """The box's inputs, if they are images. Raises InputError."""
    if not isinstance(box.inputs, Pixels):
        raise _other_inputs_error(box, caller, "images alone (Pixels)")
    return box.inputs


def require_images_or_texts(box: Box, caller: str) -> None:
    """Raise InputError unless the model takes texts, or images alone."""
    if not isinstance(box.inputs, (Pixels, Tokens)):
        raise _other_inputs_error(box, caller, "images alone (Pixels) or texts (Tokens)")


def _other_inputs_error(box: Box, caller: str, wanted: str) -> InputError:
    inputs = box.inputs.base if isinstance(box.inputs, ScaledInputs) else box.inputs  # attacks scale tables
    way = ": box.fix_other_inputs(name, x) is a box of one of them" if isinstance(inputs, MultiInput) else ""
    return InputError(f"{caller} needs a model that takes {wanted}; this one takes {type(inputs).__name__}{way}")


def validate_any_size(box: Box, x: Any, caller: str) -> Tensor:
    """As `box.validate_inputs`, for images (N, C, H, W) of any size. Raises InputError."""
    inputs = require_images(box, caller)
    if inputs.n_axes != 2:  # signals and volumes have one size
        return box.validate_inputs(x)
    x = to_batch(x, PixelsOfAnySize(inputs.shape, white=inputs.white))
    if isinstance(x, Tensor) and x.ndim == 4 and x.shape[1] == inputs.shape[0] and min(x.shape) > 0:
        inputs = replace(inputs, shape=(x.shape[1], x.shape[2], x.shape[3]))
    inputs.check(x)
    with torch.inference_mode(False):
        images: Tensor = x.detach().to(box.device, box.dtype, copy=True)
        return images


def native_size(box: Box) -> Size:
    """The size that the box was opened for."""
    return box.inputs.shape[-2], box.inputs.shape[-1]


def accepts_size(box: Box, objective: Objective, size: Size) -> bool:
    """Whether the model runs on images of this size, as far as the objective needs, with one output per row."""
    if size == native_size(box):
        return True
    first_row_objective = objective.rows(slice(0, 1))
    try:
        with box.isolated(grad=False):
            x = torch.full((1, box.inputs.shape[0], *size), 0.5, device=box.device, dtype=box.dtype)
            return first_row_objective(box.forward(x, first_row_objective.layers)).shape == (1,)
    except (InputError, LayerError, torch.OutOfMemoryError):
        raise
    except Exception:  # a model may raise anything for an unsupported size
        LOG.info("images of %s are not taken", format_size(size), exc_info=True)
        return False


def check_model_accepts_size(box: Box, objective: Objective, size: Size, hint: str) -> None:
    """Raise InputError, with what to do instead, unless the model takes images of this size."""
    if not accepts_size(box, objective, size):
        problem = (
            f"the model takes no images of {format_size(size)} as far as "
            f"{objective.name}; its own are {format_size(native_size(box))}"
        )
        raise InputError(f"{problem}: {hint}")


def format_size(size: Size) -> str:
    return f"{size[0]}x{size[1]}"


def resize_images(x: Tensor, size: Size) -> Tensor:
    """Images (N, C, H, W) at another size, bilinear and without aliasing."""
    if tuple(x.shape[-2:]) == size:
        return x
    return F.interpolate(x, size, mode="bilinear", align_corners=False, antialias=True)
