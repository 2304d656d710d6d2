"""Feature ablation: hide one player at a time, and see what the score loses.

Zeiler & Fergus 2014, arXiv:1311.2901, section 4.2, with segments in place of a sliding square.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..box import Box
from ..cards import card
from ..engine.perturb.baselines import Baseline
from ..engine.perturb.estimators import without_rounding
from ..engine.perturb.masking import HIDDEN, Game, game, objective, scores
from ..engine.perturb.masks import leave_one_out
from ..engine.perturb.segments import Segments, share
from ..engine.perturb.windows import windows
from ..engine.read.sizes import Size
from ..model.answers import check_finite_scores
from ..model.batching import BatchSize
from ..objectives import Objective

MANY = 1024  # players that are looked at one by one, whether they are rectangles


@card(
    name="Feature ablation",
    source="Zeiler & Fergus 2014, arXiv:1311.2901, section 4.2 (there a sliding square)",
    shows="What this score loses when one part of the input is hidden and the rest stays.",
    does_not_show="What parts do together: where either of two is enough, hiding one loses nothing.",
    example=lambda method, box, x, y: method(box, x, y, segments=("squares", share(box, 4))),
    exempt={"one look": "it runs the model once for each player"},
    axioms=("contribution", "dummy", "symmetry"),
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

    `segments` says which numbers are hidden together (see `engine.perturb.segments`): by default a column each, and
    about 50 SLIC superpixels of an image. The map has a player's whole loss on each of its pixels, in the unit of the
    score. Players that hide nothing cost nothing and get zero. What rectangles (squares, pixels) don't reach in the
    model is not computed. Raises InputError for segments or a baseline that do not fit x.
    """
    x = box.validate_inputs(x)
    score, _ = objective(box, target, x, batch_size)
    played = game(box, x, segments, baseline)
    found = _by_windows(played, score, batch_size)
    if found is None:
        own = {a: leave_one_out(a) for a in set(played.counts)}
        found = scores(played, [own[a] for a in played.counts], [score], batch_size)
    eps = torch.finfo(box.model_dtype).eps
    lost = [without_rounding((v[:1] - v[1:]), v, eps)[:, 0] for v in found]  # (A,) each
    return box.restore_structure(played.players.gathered(played.placed(lost)))  # type: ignore[no-any-return]


def _by_windows(played: Game, score: Objective, batch_size: BatchSize) -> list[Tensor] | None:
    """The score of each row as it is, and without each of its active players, (1 + A, 1), if all are rectangles.

    Then only what a rectangle reaches in the model is computed, as for occlusion.
    """
    rectangles = _rectangles(played)
    if rectangles is None:
        return None
    box, x = played.box, played.x
    every = torch.zeros(len(x), played.players.most, dtype=box.dtype, device=x.device)
    whole = every[:, :1]
    for size, places in rectangles.items():
        corners = torch.tensor(list(places.values()))
        run = windows(box, x, score, played.base, corners, size, logits=False, itself=True, batch_size=batch_size)
        every[:, list(places)], whole = run.score[:, :-1].to(every), run.score[:, -1:].to(every)
    check_finite_scores(whole)
    check_finite_scores(every, HIDDEN)
    return [torch.cat([whole[i], every[i, on]])[:, None].cpu().double() for i, on in enumerate(played.active)]


def _rectangles(played: Game) -> dict[Size, dict[int, tuple[int, int]]] | None:
    """{size: {player: its corner}} of the players that hide something, where images are cut alike into rectangles."""
    of, active = played.players.of, played.active.any(0).nonzero().flatten().tolist()
    if of.ndim != 4 or of.shape[1] != 1 or not MANY >= len(active) > 0 or not bool((of == of[:1]).all()):
        return None
    found: dict[Size, dict[int, tuple[int, int]]] = {}
    for k in active:
        rows, cols = (of[0, 0] == k).nonzero(as_tuple=True)
        top, left = int(rows.min()), int(cols.min())
        size = int(rows.max()) - top + 1, int(cols.max()) - left + 1
        if size[0] * size[1] != len(rows):
            return None
        found.setdefault(size, {})[k] = (top, left)
    return found
