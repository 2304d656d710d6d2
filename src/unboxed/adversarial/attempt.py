"""One call of an attack: whom it asks, what it wants, what it has found and what it has spent."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType

import torch
from torch import Tensor

from ..box import Box
from ..engine.gradients.score import REENTRANT, pull_stuck
from ..engine.optimize.ascent import near_sizes
from ..engine.optimize.constraints import Ball, Linf, per_row
from ..errors import InputError, NaNError, OutputError
from ..inputs.pixels import Pixels
from ..model.answers import without_nan
from ..model.batching import BatchSize, in_batches
from ..model.hooks import Acts
from ..objectives import Objective
from .goal import goal_of
from .result import Adversarial

ASK_ONLY = "square, boundary and hop_skip_jump attack models without gradients"
TRIED = "an image that was tried instead"
Pick = Callable[[Tensor, Tensor], Tensor]  # logits (n, K) and rows (n,) -> scores (n, J)
Parts = tuple[Tensor, ...]
Shape = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Slope:
    """What one look at some rows shows."""

    score: Tensor  # (n,)
    fooled: Tensor  # (n,) above zero: the example is what the attack wants
    grad: Tensor  # (n, ...) of the score in the image


class Attempt:
    """The model as an attack sees it, every look counted; and the best image found for each example.

    An attack asks about images z (n, ...) of some `rows` (n,): those that are still to be fooled. As a context it ends
    on Ctrl-C with `interrupted` set, so that what was found so far is returned.
    """

    def __init__(
        self,
        box: Box,
        x: Tensor,
        y: Tensor | int | None = None,
        *,
        norm: Ball,
        target: Tensor | int | None = None,
        objective: Objective | None = None,
        loss: str = "ce",
        draws: int = 1,
        batch_size: BatchSize = "auto",
    ) -> None:
        self.box, self.x, self.norm = box, box.accept(x), norm
        self.draws, self.batch_size = draws, batch_size
        n, device = len(self.x), self.x.device
        self.goal = goal_of(box, n, y, target, objective, loss)
        self.images = self.x.clone()  # (N, ...) the best found
        self.distance = torch.full((n,), math.inf, device=device, dtype=self.x.dtype)
        self.queries = torch.zeros(n, dtype=torch.long, device=device)
        self.success, self.already = (torch.zeros(n, dtype=torch.bool, device=device) for _ in range(2))
        self.before = torch.full_like(self.distance, math.nan)  # (N,) above zero where the original fools
        self.blank = self.x  # (N, ...) what is returned where nothing was found
        self.interrupted = False
        self._offered = torch.full_like(self.distance, -math.inf)  # how near the tries in `images` come to fooling
        self._held = self.x.clone() if box.coupled else None  # rows that change one another are asked together

    def __enter__(self) -> Attempt:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> bool:
        stopped = kind is not None and issubclass(kind, KeyboardInterrupt)
        self.interrupted |= stopped
        return stopped

    # -- what was found ----------------------------------------------------------------------------------------------

    def begin(self) -> Tensor:
        """Look at the originals: those that fool the model as they are need no attack. The rows (M,) of all others."""
        rows = torch.arange(len(self.x), device=self.x.device)
        self.before = self.fooled(self.x, rows)
        self.already = self.before > 0
        self.keep(self.x, rows, self.already)
        return rows[~self.already]

    def keep(self, z: Tensor, rows: Tensor, good: Tensor) -> Tensor:
        """Keep images z of the rows where they are good (n,) and nearer than what was found; where that was so."""
        d = self.norm.distance(z, self.x[rows])
        nearer = good & (d < self.distance[rows])
        at = rows[nearer]
        self.images[at], self.distance[at], self.success[at] = z[nearer].to(self.images.dtype), d[nearer], True
        return nearer

    def offer(self, z: Tensor, rows: Tensor, fooled: Tensor) -> None:
        """Where nothing fools yet, keep images z of the rows that come nearer to it (n,) than what was offered before.

        So an attack within eps gives its best try back where it fails.
        """
        better = ~self.success[rows] & (fooled > self._offered[rows])
        at = rows[better]
        self.images[at], self._offered[at] = z[better].to(self.images.dtype), fooled[better]

    def result(self, eps: float = math.inf) -> Adversarial:
        """What was found; beyond `eps`, an image is no success and the original is returned."""
        far = self.distance > eps * (1 + 1e-6)
        images = torch.where(per_row(far, self.x), self.blank, self.images)
        success = self.success & ~far
        if self._held is not None:  # rows that change one another are judged in the company that they end in
            success = self.fooled(images, torch.arange(len(images), device=images.device)) > 0
        return Adversarial(
            self.box.shaped(images),
            success,
            self.queries,
            self.norm.distance(images, self.x),
            self.already,
            type(self.norm).__name__.lower(),
            self.interrupted,
        )

    def blocks(self, rows: Tensor) -> tuple[Tensor, ...]:
        """The rows in parts that one batch holds, to be attacked one after the other; those that mix stay together."""
        size, most = self.box.splits(len(rows), self.batch_size)
        even = -(-len(rows) // max(1, -(-len(rows) // max(1, most))))
        return torch.split(rows, max(1, even if size == "auto" else size))

    # -- asking the model ----------------------------------------------------------------------------------------------

    def logits(self, z: Tensor, rows: Tensor) -> Tensor:
        """(n, K), without a gradient."""
        (found,) = self._asked(
            z, rows, lambda h, i: (self._read(h, {"logits"}, lambda acts: acts["logits"]),), (self.box.n_outputs,)
        )
        return found

    def fooled(self, z: Tensor, rows: Tensor) -> Tensor:
        """(n,) above zero where the example is what the attack wants; without a gradient."""

        def part(h: Tensor, i: Tensor) -> Parts:
            wanted = self.goal.fooled.rows(i)
            return (self._read(h, wanted.layers, wanted),)

        return self._asked(z, rows, part, ())[0]

    def look(self, z: Tensor, rows: Tensor, objective: Objective | None = None) -> tuple[Tensor, Tensor]:
        """The score and `fooled` (n,) of `slope`, without a gradient."""
        of = self.goal.climb if objective is None else objective

        def part(h: Tensor, i: Tensor) -> Parts:
            climb, wanted = of.rows(i), self.goal.fooled.rows(i)
            both = self._read(h, climb.layers | wanted.layers, lambda acts: torch.stack([climb(acts), wanted(acts)], 1))
            return both[:, 0], both[:, 1]

        score, fooled = self._asked(z, rows, part, (), ())
        return score, fooled

    def slope(self, z: Tensor, rows: Tensor, objective: Objective | None = None) -> Slope:
        """Score, whether fooled, and gradient: of the goal's own score, or of an objective with a row for each of N."""
        of = self.goal.climb if objective is None else objective

        def part(h: Tensor, i: Tensor) -> Parts:
            return self._pulled(h, of.rows(i), self.goal.fooled.rows(i))

        return Slope(*self._asked(z, rows, part, (), (), tuple(self.x.shape[1:])))

    def jacobian(self, z: Tensor, rows: Tensor, pick: Pick) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (n, K), the scores (n, J) that `pick(logits, rows)` makes of them, their gradients (n, J, ...).

        One look, and J ways back through the model.
        """

        def part(h: Tensor, i: Tensor) -> Parts:
            with differentiable(), self.box.quiet():
                h = h.detach().requires_grad_()
                logits = self.box.forward(h, {"logits"})["logits"].to(self.x.dtype)  # (n, K)
                scores = pick(logits, i)  # (n, J)
                last = scores.shape[1] - 1
                ways = [torch.autograd.grad(scores[:, j].sum(), h, retain_graph=j < last)[0] for j in range(last + 1)]
            return logits.detach(), scores.detach(), torch.stack(ways, 1)

        k, one = self.box.n_outputs, tuple(self.x.shape[1:])
        j = 0 if len(rows) else pick(self.x.new_zeros(0, k), rows).shape[1]
        logits, scores, grads = self._asked(z, rows, part, (k,), (j,), (j, *one))
        return logits, scores, grads

    def _asked(self, z: Tensor, rows: Tensor, part: Callable[[Tensor, Tensor], Parts], *shapes: Shape) -> Parts:
        """What `_each` gives, refused where the answers are NaN. `shapes` are those of one row's parts.

        Judged are logits, or what says whether an example fools: another score may be NaN where a class is masked by
        a logit of -inf. Where there is no row, the model is not asked.
        """
        if not len(rows):
            return tuple(self.x.new_zeros(0, *shape) for shape in shapes)
        found = self._each(z, rows, part)
        without_nan(found[int(shapes[:2] == ((), ()))], rows, TRIED)
        return found

    def _each(self, z: Tensor, rows: Tensor, part: Callable[[Tensor, Tensor], Parts]) -> Parts:
        """`part(images, rows)` in bounded batches; rows that change one another are all asked, and all counted."""
        if self._held is not None:
            self._held[rows] = z.to(self._held.dtype)
            self.queries += self.draws
            found = part(self._held, torch.arange(len(self.x), device=rows.device))
            return tuple(h[rows] for h in found)
        self.queries.index_add_(0, rows, torch.full_like(rows, self.draws))  # a row may be asked about several images
        size, most = near_sizes(self.box, len(rows), self.batch_size)
        with torch.inference_mode(False):  # the caller may be in it
            z = z.clone() if z.is_inference() else z
            parts = in_batches(lambda s: part(z[s], rows[s]), len(rows), size, most)
        return parts[0] if len(parts) == 1 else tuple(torch.cat(h) for h in zip(*parts, strict=True))

    def _read(self, z: Tensor, wanted: Collection[str], of: Callable[[Acts], Tensor]) -> Tensor:
        return self._mean(lambda: of(self.box.forward(z, wanted)).to(self.x.dtype), grad=False)

    def _pulled(self, z: Tensor, climb: Objective, wanted: Objective) -> Parts:
        """Score (n,), fooled (n,) and gradient (n, ...)."""

        def once() -> Tensor:  # (n, 2 + D)
            h = z.detach().requires_grad_()
            acts = self.box.forward(h, climb.layers | wanted.layers)
            score = climb(acts)
            (grad,), _ = pull_stuck(score, acts, climb, [h], unclamp="no")
            looked = torch.stack([score.detach(), wanted(acts).detach()], 1).to(self.x.dtype)
            return torch.cat([looked, grad.to(self.x.dtype).flatten(1)], 1)

        found = self._mean(once, grad=True)
        return found[:, 0], found[:, 1], found[:, 2:].view(z.shape)

    def _mean(self, once: Callable[[], Tensor], grad: bool) -> Tensor:
        """What a look shows, the mean over so many draws of the model's own noise."""
        looks = list[Tensor]()
        for draw in range(self.draws):
            with differentiable(), self.box.quiet(grad=grad, seed=draw):
                looks.append(once())
        return looks[0] if len(looks) == 1 else torch.stack(looks).mean(0)


@contextmanager
def differentiable() -> Iterator[None]:
    """An attack by gradient that meets a model without one names the attacks that need none."""
    try:
        yield
    except NaNError:
        raise
    except OutputError as error:
        raise OutputError(f"{error}; {ASK_ONLY}") from None
    except RuntimeError as error:
        if "does not require grad" in str(error):
            raise OutputError(f"the model gives no gradient of its input; {ASK_ONLY}") from error
        if "use_reentrant" in str(error):
            raise OutputError(f"{REENTRANT}; {ASK_ONLY}") from error
        raise


def in_range(box: Box, ball: Ball) -> Ball:
    """The ball, unless its eps is larger than two images can be apart. Raises InputError."""
    if not isinstance(box.inputs, Pixels):
        return ball
    most = float(ball.distance(torch.ones(1, *box.inputs.shape), torch.zeros(1, *box.inputs.shape)))
    if ball.eps > most * (1 + 1e-6):
        hint = f": for {ball.eps:g} gray levels give eps={ball.eps:g}/255" if isinstance(ball, Linf) else ""
        raise InputError(f"images lie in [0, 1], so none are more than {most:g} apart; got eps={ball.eps:g}{hint}")
    return ball
