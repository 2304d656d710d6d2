"""Feature ablation: hide one player at a time, and see what the score loses.

Zeiler & Fergus 2014, arXiv:1311.2901, section 4.2, with segments in place of a sliding square.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..box import Box
from ..cards import card
from ..engine.baselines import Baseline
from ..engine.estimators import without_rounding
from ..engine.hiding import game, objective, scores
from ..engine.masks import leave_one_out
from ..engine.segments import Segments
from ..net.batching import BatchSize
from ..objectives import Objective


@card(
    name="Feature ablation",
    source="Zeiler & Fergus 2014, arXiv:1311.2901, section 4.2 (there a sliding square)",
    tells="What this score loses when one part of the input is hidden and the rest stays.",
    not_tells="What parts do together: where either of two is enough, hiding one loses nothing.",
    example=lambda method, box, x, y: method(box, x, y, segments="pixels"),
    exempt={"one look": "it runs the net once for each player"},
    laws=("contribution", "dummy", "symmetry"),
)
def feature_ablation(
    box: Box,
    x: Tensor,
    target: int | Tensor | Objective | None = None,
    *,
    segments: Segments = None,
    baseline: Baseline = None,
    batch_size: BatchSize = "auto",
) -> Tensor:
    """The score lost when a number's player is hidden: (N, 1 or C, H, W) of images, else shaped like x.

    `segments` says which numbers are hidden together (see engine.segments): by default a column each, and about 50 SLIC
    superpixels of an image. The map has a player's whole loss on each of its pixels, in the unit of the score. Players
    that hide nothing cost nothing and get zero.
    Raises InputError for segments or a baseline that do not fit x.
    """
    x = box.accept(x)
    score, _ = objective(box, target, x, batch_size)
    played = game(box, x, segments, baseline)
    own = {a: leave_one_out(a) for a in set(played.counts)}
    found = scores(played, [own[a] for a in played.counts], [score], batch_size)
    eps = torch.finfo(box.net_dtype).eps
    lost = [without_rounding((v[:1] - v[1:]), v, eps)[:, 0] for v in found]  # (A,) each
    return box.shaped(played.players.gathered(played.placed(lost)))  # type: ignore[no-any-return]
