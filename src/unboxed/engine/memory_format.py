"""The memory format in which a CPU runs a model of images faster.

Channels last: pooling is vectorized over channels, and convolutions reorder less. Forward passes were measured to be up
to twice as fast (SqueezeNet), and none slower; outputs are the same but for rounding, which is checked once per model.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ..box import Box
from ..inputs.pixels import Pixels
from ..model.identity import has_forward_hooks
from ..model.layers import Layers
from ..objectives import INPUT_OUTPUT_ADDRESSES

LOG = logging.getLogger("unboxed")
MAX_DIFFERENCE_IN_EPS = 100  # of the largest output's magnitude
MAX_RELATIVE_DIFFERENCE = 0.02  # in half precision, whose eps are large
MIN_ROWS = 32  # below which it is not worth the forward passes that ask whether the outputs are the same


def faster_memory_format(box: Box, addresses: Collection[str], n_rows: int) -> torch.memory_format:
    """The format of `n_rows` inputs for forward passes alone that read these addresses: channels last, or what it is.

    Layers are read as they come, since what reads them may need them contiguous. Called outside `isolated`.
    """
    has_images = isinstance(box.inputs, Pixels) and len(box.inputs.shape) == 3 and box.device.type == "cpu"
    reads_scores_alone = {*addresses} <= INPUT_OUTPUT_ADDRESSES and not box.output_map_shape
    is_worth_it = n_rows >= MIN_ROWS and has_images and reads_scores_alone
    takes_it = is_worth_it and _runs_in_channels_last(box)
    return torch.channels_last if takes_it else torch.preserve_format


_RUNS_IN_CHANNELS_LAST: WeakKeyDictionary[Layers, bool] = WeakKeyDictionary()
"""By the layers of a box, which are found again when its model has changed."""


def _runs_in_channels_last(box: Box) -> bool:
    if box.layers in _RUNS_IN_CHANNELS_LAST:
        return _RUNS_IN_CHANNELS_LAST[box.layers]
    try:
        is_same = _gives_same_logits_in_channels_last(box)
    except Exception:  # a view of what is not contiguous
        LOG.info("this model does not run in channels_last", exc_info=True)
        if has_forward_hooks(box.modules.values()):
            return False  # it may be a hook that raised: the next call tries again
        is_same = False
    _RUNS_IN_CHANNELS_LAST[box.layers] = is_same
    return is_same


def _gives_same_logits_in_channels_last(box: Box) -> bool:
    noise = box.noise(2)[: box.max_rows]
    usual, other = (
        _logits(box, noise.to(memory_format=layout))  # as callers do: `contiguous` leaves one channel as it is
        for layout in (torch.contiguous_format, torch.channels_last)
    )
    is_finite = usual.isfinite()  # a class may be masked by a logit of -inf
    if not is_finite.any() or not torch.equal(usual[~is_finite], other[~is_finite]):
        return False
    relative = min(MAX_DIFFERENCE_IN_EPS * torch.finfo(usual.dtype).eps, MAX_RELATIVE_DIFFERENCE)
    tolerance = relative * float(usual[is_finite].abs().max())
    return torch.allclose(usual[is_finite], other[is_finite], rtol=0, atol=tolerance)


def _logits(box: Box, x: Tensor) -> Tensor:
    with box.isolated(grad=False):
        return box.forward(x, ["logits"])["logits"]
